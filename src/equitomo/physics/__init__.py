"""Measurement operators, as deepinv physics."""

from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator

__all__ = ["MissingWedgeOperator", "PaddedMissingWedgeOperator"]
