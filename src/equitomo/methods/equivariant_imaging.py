"""Equivariant imaging from a single volume."""

from __future__ import annotations

from collections.abc import Mapping

from deepinv.loss import Loss, MCLoss
from deepinv.physics import Physics

from equitomo.loss import MaskedEquivarianceLoss
from equitomo.methods.parts import operator, rotations, unet
from equitomo.training import Method, TrainingConfig


def method(config: TrainingConfig) -> Method:
    r"""Return the losses of :cite:t:`chen2021equivariant`, for one volume and no halves.

    .. math:: \mathcal{L} = \lVert A f(y) - y \rVert^2
        + \alpha\, \mathbb{E}_g \lVert f(A R_g f(y)) - R_g f(y) \rVert^2

    The second term compares all of Fourier space. Nothing removes noise: the first term is smallest where the network
    reproduces the measurement. Of two halves the mean is taken. The settings ``data_weight`` and ``margin`` are those
    of the second term only where deepinv's loss has none: the first term has weight 1 and judges whole cubes.
    """

    def losses(physics: Physics) -> Mapping[str, Loss]:
        group = rotations(physics, config.flips)
        return {
            "data": MCLoss(),
            "equivariance": MaskedEquivarianceLoss(group, config.equivariance_weight, False, margin=config.margin),
        }

    return Method("equivariant_imaging", unet(config), operator(config, support="ball"), losses, n_views=1)
