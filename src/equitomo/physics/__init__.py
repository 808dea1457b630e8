"""Measurement operators, as deepinv physics."""

from equitomo.physics.generator import TiltRangeGenerator
from equitomo.physics.streamed import apply_by_planes
from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator

__all__ = ["MissingWedgeOperator", "PaddedMissingWedgeOperator", "TiltRangeGenerator", "apply_by_planes"]
