"""Losses for learning from two half tomograms, as deepinv losses."""

from equitomo.loss.equivariance import MaskedEquivarianceLoss
from equitomo.loss.noise2noise import Noise2NoiseLoss
from equitomo.loss.residual import inside, mean_square, measured_inside, measured_mean_square

__all__ = [
    "MaskedEquivarianceLoss",
    "Noise2NoiseLoss",
    "inside",
    "mean_square",
    "measured_inside",
    "measured_mean_square",
]
