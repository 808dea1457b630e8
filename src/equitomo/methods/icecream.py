"""ICECREAM in the form of the paper."""

from __future__ import annotations

from collections.abc import Mapping

from deepinv.loss import Loss
from deepinv.physics import Physics

from equitomo.loss import MaskedEquivarianceLoss, Noise2NoiseLoss
from equitomo.methods.parts import operator, rotations, unet
from equitomo.training import Method, TrainingConfig


def method(config: TrainingConfig) -> Method:
    r"""Return equation (6) of :cite:t:`kishore2026icecream`.

    .. math:: \mathcal{L} = \mathcal{L}_{\text{data}} + \lambda \mathcal{L}_{\text{equi}}

    A step calls the network twice. As in the reference program the halves are compared within the measured region on
    both sides, and rotations are drawn that move the wedge.
    """

    def losses(physics: Physics) -> Mapping[str, Loss]:
        group = rotations(physics, config.flips)
        return {
            "data": Noise2NoiseLoss(config.data_weight, margin=config.margin, mask_target=True),
            "equivariance": MaskedEquivarianceLoss(group, config.equivariance_weight, margin=config.margin),
        }

    return Method("icecream", unet(config), operator(config, support="ball"), losses)
