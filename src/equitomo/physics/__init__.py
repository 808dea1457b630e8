"""Measurement operators, as deepinv physics."""

from equitomo.physics.ctf import (
    ContrastTransfer,
    CtfState,
    contrast_transfers,
    deconvolve,
    flip_phases,
    transfer_contrast,
)
from equitomo.physics.generator import TiltRangeGenerator
from equitomo.physics.streamed import apply_by_planes
from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator, WedgeOperator

__all__ = [
    "ContrastTransfer",
    "CtfState",
    "MissingWedgeOperator",
    "PaddedMissingWedgeOperator",
    "TiltRangeGenerator",
    "WedgeOperator",
    "apply_by_planes",
    "contrast_transfers",
    "deconvolve",
    "flip_phases",
    "transfer_contrast",
]
