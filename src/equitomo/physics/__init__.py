"""Measurement operators, as deepinv physics."""

from equitomo.physics.backprojection import (
    RampWindow,
    filtered_backprojection,
    ramp_filtered,
    ramp_response,
    tilt_steps,
)
from equitomo.physics.ctf import (
    ContrastTransfer,
    contrast_transfers,
    deconvolve,
    flip_phases,
    transfer_contrast,
)
from equitomo.physics.generator import TiltRangeGenerator
from equitomo.physics.projector import Projector, keys_gain, keys_weights
from equitomo.physics.streamed import apply_by_planes
from equitomo.physics.tilt_series import TiltSeriesPhysics, full_detector
from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator, WedgeOperator

__all__ = [
    "ContrastTransfer",
    "MissingWedgeOperator",
    "PaddedMissingWedgeOperator",
    "Projector",
    "RampWindow",
    "TiltRangeGenerator",
    "TiltSeriesPhysics",
    "WedgeOperator",
    "apply_by_planes",
    "contrast_transfers",
    "deconvolve",
    "filtered_backprojection",
    "flip_phases",
    "full_detector",
    "keys_gain",
    "keys_weights",
    "ramp_filtered",
    "ramp_response",
    "tilt_steps",
    "transfer_contrast",
]
