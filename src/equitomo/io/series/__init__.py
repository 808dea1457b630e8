"""Tilt series: what microscopes, alignment programs and programs of materials science write about them."""

from .metadata import CtfState, Defocus, Program, ReconstructionMethod, SeriesMetadata

__all__ = ["CtfState", "Defocus", "Program", "ReconstructionMethod", "SeriesMetadata"]
