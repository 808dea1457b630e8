"""Lists of tilt angles, and rules that the angles of a series must satisfy, wherever they come from."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import FileFormatError

# The lines of a file with their numbers, counted from 1.
Lines = list[tuple[int, str]]
# One angle and its place in the file: a line, counted from 1, or a section, counted from 0.
Found = tuple[str, float]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# Series are recorded in steps of a degree or more: a smaller span means one view twice.
LEAST_SPAN = 1.0
# A right angle is 1.571 radians. No tilt series in degrees stays within this range.
RADIANS = 1.6


def check_angles(
    source: object, angles: Sequence[float], places: Sequence[str] | None = None, *, full_range: bool = False
) -> None:
    """Raise an error for angles that cannot be the degrees of a tilt series.

    Parameters
    ----------
    source
        What messages begin with: the path of the file, or the name of the series.
    angles
        The angles, which should be degrees.
    places
        Where each one stands, such as ``"line 3"``. None counts the views from 0.
    full_range
        Allow a span of 180 degrees, of a specimen that can be turned round: nothing is missing then.

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
    if span > 180 or (span == 180 and not full_range):
        raise FileFormatError(
            f"{source}: the tilts span {span:g} degrees, expected less than 180; radians or degrees? Leave out the "
            "views that are not needed"
        )


def number(path: Path, line: int, text: str, what: str = "a tilt angle; expected a number of degrees") -> float:
    """Return one number, or raise an error that names the line; ``what`` says what it should be."""
    # Digits with an exponent such as 1e999 are infinite.
    if not NUMBER.fullmatch(text) or not math.isfinite(value := float(text)):
        raise FileFormatError(f"{path}: line {line}: {text!r} is not {what}")
    return value


def listed_angles(path: Path, lines: Lines) -> list[Found]:
    """Return the angles of a list with one number per line, each with its line."""
    found = []
    for line, text in lines:
        columns = text.split("#")[0].split()
        # It is impossible to know which of several columns is the angle: shifts look like angles too.
        if len(columns) > 1 and all(NUMBER.fullmatch(column) for column in columns):
            raise FileFormatError(
                f"{path}: line {line} has {len(columns)} columns, expected one angle per line; an AreTomo "
                "alignment must be named .aln, its table of tilts _TLT.txt, and IMOD's transforms hold no angles: give "
                "the .tlt file beside them"
            )
        if columns:
            found.append((f"line {line}", number(path, line, " ".join(columns))))
    return found
