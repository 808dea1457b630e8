"""Measurement operators, as deepinv physics."""

from equitomo.physics.generator import TiltRangeGenerator
from equitomo.physics.streamed import apply_by_planes
from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator, WedgeOperator

__all__ = [
    "MissingWedgeOperator",
    "PaddedMissingWedgeOperator",
    "TiltRangeGenerator",
    "WedgeOperator",
    "apply_by_planes",
]
