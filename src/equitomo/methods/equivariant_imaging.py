"""Equivariant imaging from a single volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepinv.loss import Loss, MCLoss
from deepinv.physics import Physics
from torch import Tensor

from equitomo.loss import MaskedEquivarianceLoss
from equitomo.methods.parts import operator, rotations, unet
from equitomo.training import Method, TrainingConfig


def method(config: TrainingConfig) -> Method:
    r"""Return the losses of :cite:t:`chen2021equivariant`, for one volume and no halves.

    .. math:: \mathcal{L} = w \lVert A f(y) - y \rVert^2
        + \alpha\, \mathbb{E}_g \lVert f(A R_g f(y)) - R_g f(y) \rVert^2

    Here :math:`w` is ``data_weight`` and :math:`\alpha` is ``equivariance_weight``. The second term compares all of
    Fourier space. No term removes noise: the first one is smallest where the network reproduces the measurement. If two
    halves are given, their mean is taken. The first term is deepinv's loss and judges whole cubes, so ``margin``
    applies to the second term only.
    """

    def losses(physics: Physics) -> Mapping[str, Loss]:
        group = rotations(physics, config.flips)
        return {
            "data": _WeightedConsistency(config.data_weight),
            "equivariance": MaskedEquivarianceLoss(group, config.equivariance_weight, False, margin=config.margin),
        }

    return Method("equivariant_imaging", unet(config), operator(config, support="ball"), losses, n_views=1)


class _WeightedConsistency(MCLoss):  # type: ignore[misc]
    """The measurement consistency loss times a weight; the trainer does not call a loss of weight 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, **given: Any) -> Tensor:
        value: Tensor = self.weight * super().forward(**given)
        return value
