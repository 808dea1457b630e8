"""Tilt geometries, and the part of Fourier space that they measure."""

from equitomo.geometry.masks import MaskPlanes, Planes, Sampling, Support, WedgeMask, WedgePlanes, wedge_mask
from equitomo.geometry.measured import MeasuredMask
from equitomo.geometry.narrowing import Ends, narrowed
from equitomo.geometry.tilts import Geometry, TiltAxes, TiltAxis, TiltGeometry, TiltUnion, as_geometry, shared_axes

__all__ = [
    "Ends",
    "Geometry",
    "MaskPlanes",
    "MeasuredMask",
    "Planes",
    "Sampling",
    "Support",
    "TiltAxes",
    "TiltAxis",
    "TiltGeometry",
    "TiltUnion",
    "WedgeMask",
    "WedgePlanes",
    "as_geometry",
    "narrowed",
    "shared_axes",
    "wedge_mask",
]
