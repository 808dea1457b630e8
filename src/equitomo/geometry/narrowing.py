"""A part of a tilt range, as if the outermost tilts had not been taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from equitomo.geometry.tilts import Geometry, TiltGeometry, TiltUnion, as_geometry

Ends = Literal["both", "low", "high"]

# Degrees by which a tilt may lie beyond the new end of the range.
_EDGE = 1e-6


def narrowed(geometry: Geometry | tuple[float, float], share: float = 0.8, ends: Ends = "both") -> Geometry:
    """Return the geometry without its outermost tilts.

    Of a continuous range the share is kept exactly, of a list of tilts those inside the share. The series of a union
    are narrowed one by one.

    Parameters
    ----------
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    share
        The share of the tilt range to keep, more than 0 and less than 1.
    ends
        Where tilts are left out: in equal parts at both ends of the range, or at the ``"low"`` or the ``"high"`` end.

    Raises
    ------
    ValueError
        If the share or the ends are none of these, or the share leaves no tilt out or less than two in.

    Examples
    --------
    >>> narrowed((-60.0, 60.0), 0.75).tilt_range
    (-45.0, 45.0)
    >>> narrowed(TiltGeometry(range(-60, 61, 3)), ends="low").tilt_range
    (-36.0, 60.0)
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` is the share of the tilt range to keep, more than 0 and less than 1, got {share:g}")
    if ends not in get_args(Ends):
        raise ValueError(f"`ends` is 'both', 'low' or 'high', got {ends!r}")
    parts = [_narrowed(part, share, ends) for part in as_geometry(geometry).parts]
    return parts[0] if len(parts) == 1 else TiltUnion(parts)


def _narrowed(part: TiltGeometry, share: float, ends: Ends) -> TiltGeometry:
    low, high = part.tilt_range
    lost = (1 - share) * (high - low) / (2 if ends == "both" else 1)
    low, high = low + lost * (ends != "high"), high - lost * (ends != "low")
    if part.continuous:
        return replace(part, angles=(low, high))
    kept = [i for i, angle in enumerate(part.angles) if low - _EDGE <= angle <= high + _EDGE]
    angles = [part.angles[i] for i in kept]
    if len(kept) == len(part.angles) or len(set(angles)) < 2:
        raise ValueError(
            f"a `share` of {share:g} of the tilts {part} keeps {len(kept)} of {len(part.angles)}: at least one must be "
            "left out and two different ones kept"
        )
    weights = None if part.weights is None else [part.weights[i] for i in kept]
    return TiltGeometry(angles, part.tilt_axis, weights=weights)
