"""The network, the operator and the rotations that methods share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deepinv.physics import Physics

from equitomo.geometry import Geometry, Support
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.physics import PaddedMissingWedgeOperator
from equitomo.training import TrainingConfig
from equitomo.training.method import Operator
from equitomo.transform import CubeRotationGroup
from equitomo.volumes import Shape


def unet(config: TrainingConfig) -> Callable[[], ScaleEquivariantUNet3D]:
    """Return a function that makes the network of the configuration."""
    return partial(
        ScaleEquivariantUNet3D,
        width=config.width,
        levels=config.levels,
        unshuffle=config.unshuffle,
        negative_slope=config.negative_slope,
        checkpointing=config.checkpointing,
    )


def operator(config: TrainingConfig, *, support: Support) -> Operator:
    """Return a function that makes the padded operator of the configuration."""

    def made(shape: Shape, geometry: Geometry) -> Physics:
        return PaddedMissingWedgeOperator(shape, geometry, padding=config.padding, support=support)

    return made


def rotations(physics: Physics, flips: bool) -> CubeRotationGroup:
    """Return the rotations that move the wedge of an operator, or all of them for an operator without a mask."""
    if all(hasattr(physics, name) for name in ("mask", "grid_shape", "volume_shape")):
        return CubeRotationGroup.moving(physics, flips)
    return CubeRotationGroup(flips=flips)
