"""Rules that the tilt angles of a series must satisfy, wherever they come from."""

import math
from collections.abc import Sequence

from .errors import FileFormatError

# Series are recorded in steps of a degree or more: a smaller span means one view twice.
LEAST_SPAN = 1.0
# A right angle is 1.571 radians. No tilt series in degrees stays within this range.
RADIANS = 1.6


def check_angles(source: object, angles: Sequence[float], places: Sequence[str] | None = None) -> None:
    """Raise an error for angles that cannot be the degrees of a tilt series.

    Parameters
    ----------
    source
        What messages begin with: the path of the file, or the name of the series.
    angles
        The angles, which should be degrees.
    places
        Where each one stands, such as ``"line 3"``. None counts the views from 0.

    Raises
    ------
    FileFormatError
        If an angle is not finite or beyond 90 degrees, if there are fewer than two different angles, if they seem to
        be radians, or if they span less than 1 degree, or 180 degrees or more.
    """
    for n, angle in enumerate(angles):
        if not (math.isfinite(angle) and abs(angle) <= 90):
            raise FileFormatError(
                f"{source}: {places[n] if places else f'view {n}'}: {angle:g} is not a tilt between -90 and 90 "
                "degrees; radians or degrees? Or another column?"
            )
    if len(set(angles)) < 2:
        raise FileFormatError(
            f"{source}: {len(set(angles))} different tilt angle(s), expected those of a tilt series, one per image"
        )
    span = max(angles) - min(angles)
    if span < LEAST_SPAN:
        raise FileFormatError(
            f"{source}: the tilts span {span:g} degrees, expected at least {LEAST_SPAN:g} of a tilt series; radians or "
            "degrees? Or another column?"
        )
    if max(map(abs, angles)) <= RADIANS:
        raise FileFormatError(
            f"{source}: all angles lie between {min(angles):g} and {max(angles):g}, so they seem to be radians, "
            "expected degrees; multiply each by 57.29578 (180 / pi)"
        )
    if span >= 180:
        raise FileFormatError(
            f"{source}: the tilts span {span:g} degrees, expected less than 180; radians or degrees? Leave out the "
            "views that are not needed"
        )
