"""Noise2Noise between two halves, which ignores the missing wedge."""

from __future__ import annotations

from collections.abc import Mapping

from deepinv.loss import Loss
from deepinv.physics import LinearPhysics, Physics

from equitomo.geometry import Geometry
from equitomo.loss import Noise2NoiseLoss
from equitomo.methods.parts import unet
from equitomo.training import Method, TrainingConfig
from equitomo.volumes import Shape


def method(config: TrainingConfig) -> Method:
    r"""Return the loss of cryoCARE (:cite:t:`buchholz2019cryo`), with one call of the network in a step.

    .. math:: \mathcal{L} = \tfrac12 \sum_v \lVert f(y_v) - y_{\bar v} \rVert^2

    The halves are compared in all of Fourier space, so the operator is the identity. The network removes noise and
    leaves the wedge empty, as it is in both halves. No cube is rotated or padded, so that ``flips`` and ``padding``
    change nothing.
    """

    def losses(physics: Physics) -> Mapping[str, Loss]:
        return {"data": Noise2NoiseLoss(config.data_weight, margin=config.margin)}

    return Method("noise2noise", unet(config), _identity, losses)


def _identity(shape: Shape, geometry: Geometry) -> Physics:
    return LinearPhysics(img_size=(1, *shape))
