r"""Read what RELION 4 and 5 write: ``tomograms.star`` and the table of each tilt series.

The reader uses our own reader of STAR files: ``starfile`` needs pandas and pyarrow, and does not name the line of a
damaged file. A position in an image of RELION is
:math:`R_z(\text{ZRot})\,R_y(\text{YTilt})\,R_x(\text{XTilt})\,p + \text{shift}`, about the pixel ``n / 2`` of an axis
of ``n`` pixels, half a pixel after the middle.
"""

import re
from pathlib import Path
from typing import Any, Literal

from equitomo.io.angles import number
from equitomo.io.errors import FileFormatError
from equitomo.io.star import project_file, star_tables

from .metadata import Defocus, SeriesMetadata
from .tables import both_existing, lines_of, order_of, stack_header

_EXPECTED = "expected tomograms.star or the table of a tilt series of RELION"
Row = dict[str, str]


def read_relion(path: Path) -> list[SeriesMetadata]:
    """Return all tilt series of a ``tomograms.star``, or the one of a table of views."""
    tables = _tables(path)
    for _, rows in tables:
        if rows and "rlnTomoTiltSeriesStarFile" in rows[0][1]:
            return [_listed(path, line, row, tables) for line, row in rows]
    for block, rows in tables:
        if rows and {"rlnTomoYTilt", "rlnTomoNominalStageTiltAngle"} & set(rows[0][1]):
            return [_series(path, block or path.stem, rows, {}, (path,))]
    raise FileFormatError(f"{path}: neither names tilt series (rlnTomoTiltSeriesStarFile) nor lists tilts; {_EXPECTED}")


def _tables(path: Path) -> list[tuple[str, list[tuple[int, Row]]]]:
    """Return the tables of a STAR file: their names, and their rows by column."""
    found = star_tables(path, lines_of(path, "STAR file", _EXPECTED))
    return [
        (block, [(line, dict(zip((c.lstrip("_") for c in columns), row, strict=True))) for line, row in rows])
        for block, columns, rows in found
    ]


def _listed(path: Path, line: int, row: Row, tables: list[tuple[str, list[tuple[int, Row]]]]) -> SeriesMetadata:
    """Return the series of one line of a ``tomograms.star``."""
    named = row["rlnTomoTiltSeriesStarFile"]
    file = project_file(path, named)
    if file is None:
        raise FileFormatError(
            f"{path}: line {line}: {named} is neither in the folder of the table nor in one above it; leave the table "
            "where RELION wrote it"
        )
    name = row.get("rlnTomoName", file.stem)
    views = [(block, rows) for block, rows in _tables(file) if rows]
    chosen = [rows for block, rows in views if block == name] or [rows for _, rows in views]
    if not chosen:
        raise FileFormatError(f"{file}: has no table of views; {_EXPECTED}")
    return _series(file, name, chosen[0], row, (path, file))


def _series(path: Path, name: str, rows: list[tuple[int, Row]], series: Row, files: tuple[Path, ...]) -> SeriesMetadata:
    """Return the series from the rows of its views and its line in ``tomograms.star``."""

    def column(label: str) -> tuple[float, ...] | None:
        if label not in rows[0][1]:
            return None
        return tuple(number(path, line, row[label], f"a number ({label})") for line, row in rows)

    def value(*labels: str) -> float | None:
        label = next((label for label in labels if label in series), None)
        return number(files[0], 0, series[label], f"a number ({label})") if label else None

    n = len(rows)
    pixel_size = value("rlnTomoTiltSeriesPixelSize", "rlnMicrographOriginalPixelSize")
    angles = column("rlnTomoYTilt") or column("rlnTomoNominalStageTiltAngle")
    if angles is None:
        raise FileFormatError(f"{path}: no column rlnTomoYTilt or rlnTomoNominalStageTiltAngle; {_EXPECTED}")
    x, y = column("rlnTomoXShiftAngst"), column("rlnTomoYShiftAngst")
    shifts = None
    if x and y and pixel_size:
        shifts = tuple((-dx / pixel_size - 0.5, -dy / pixel_size - 0.5) for dx, dy in zip(x, y, strict=True))
    x_tilt, dose = column("rlnTomoXTilt"), column("rlnMicrographPreExposure")
    u, v, angle = (column(f"rlnDefocus{end}") for end in ("U", "V", "Angle"))
    phase = column("rlnPhaseShift") or (0.0,) * n
    hand = value("rlnTomoHand")
    thickness = value("rlnTomoSizeZ")
    return SeriesMetadata(
        name,
        angles,
        dose=dose,
        acquisition_order=order_of(dose) if dose else None,
        tilt_axis_angle=column("rlnTomoZRot"),
        shifts=shifts,
        x_tilt=x_tilt if x_tilt and any(x_tilt) else None,
        pixel_size=pixel_size,
        thickness=int(thickness) if thickness else None,
        defocus=tuple(map(Defocus, u, v, angle or (0.0,) * n, phase)) if u and v else None,
        defocus_handedness=_sign(hand),
        voltage=value("rlnVoltage"),
        spherical_aberration=value("rlnSphericalAberration"),
        amplitude_contrast=value("rlnAmplitudeContrast"),
        half_tomograms=_halves(files[0], series),
        reconstruction_method="wbp",
        program="relion",
        files=files,
        notes=("RELION removes the mean of tomograms unless --keep_mean was given",),
        **_images(files[0], rows),
    )


def _sign(hand: float | None) -> Literal[1, -1] | None:
    """Return the sign of a handedness, or None if it is unknown."""
    return None if not hand else (1 if hand > 0 else -1)


def _halves(path: Path, series: Row) -> tuple[Path, Path] | None:
    """Return the tomograms of the halves if they are named and there."""
    files = [project_file(path, series.get(f"rlnTomoReconstructedTomogramHalf{half}", "") or "none") for half in (1, 2)]
    return both_existing(files[0], files[1]) if files[0] and files[1] else None


def _images(path: Path, rows: list[tuple[int, Row]]) -> dict[str, Any]:
    """Return the files of the images and of their halves, as far as they are named; a stack as its sections."""

    def files(label: str) -> tuple[Path, ...] | None:
        names = [row.get(label, "") for _, row in rows]
        return tuple(project_file(path, name) or path.parent / name for name in names) if all(names) else None

    named = [re.fullmatch(r"(\d+)@(.+)", row.get("rlnMicrographName", "")) for _, row in rows]
    known: dict[str, Any] = {"movies": files("rlnMicrographMovieName")}
    even, odd = files("rlnMicrographNameEven"), files("rlnMicrographNameOdd")
    known["half_images"] = (even, odd) if even and odd else None
    stacks = {match[2] for match in named if match}
    if all(named) and len(stacks) == 1:
        stack = project_file(path, stacks.pop())
        known["stack"], known["sections"] = stack, tuple(int(match[1]) - 1 for match in named if match)
        known["image_shape"] = stack_header(stack)[0][1:] if stack else None
    else:
        known["images"] = files("rlnMicrographName")
    return known
