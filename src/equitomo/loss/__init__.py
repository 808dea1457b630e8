"""Losses for learning from two half tomograms, as deepinv losses."""

from equitomo.loss.equivariance import MaskedEquivarianceLoss
from equitomo.loss.noise2noise import Noise2NoiseLoss

__all__ = ["MaskedEquivarianceLoss", "Noise2NoiseLoss"]
