"""Tilt series: what microscopes, alignment programs and programs of materials science write about them."""

from .metadata import CtfState, Defocus, Program, ReconstructionMethod, SeriesMetadata
from .reading import SeriesProgram, find_series, read_series
from .stacks import read_stack

__all__ = [
    "CtfState",
    "Defocus",
    "Program",
    "ReconstructionMethod",
    "SeriesMetadata",
    "SeriesProgram",
    "find_series",
    "read_series",
    "read_stack",
]
