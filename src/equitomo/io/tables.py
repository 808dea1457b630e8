"""Read tables that have one line for each tomogram, with its halves, tilts and mask."""

import csv
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .angles import Lines
from .errors import FileFormatError, FileFormatWarning
from .opening import read_text
from .star import project_file, star_tables

COLUMNS = ("first", "second", "tilts", "tilt_axis", "second_axis_tilts", "second_tilts", "mask")
# The names of these columns in RELION 5 and in programs that follow it.
LABELS = {
    "rlnTomoReconstructedTomogramHalf1": "first",
    "rlnTomoReconstructedTomogramHalf2": "second",
    "rlnTomoTiltSeriesStarFile": "tilts",
    "rlnMaskName": "mask",
}
# The column of tomograms made from all tilts, which are used as first halves if a table names no halves.
WHOLE = "rlnTomoReconstructedTomogram"
LIMITS = ("rlnTiltMin", "rlnTiltMax")
# A row is the number of its line, counted from 1, and its values by column.
Row = tuple[int, dict[str, str]]
# These columns must be in a table: both halves, or only the first.
Needed = tuple[str, ...]


@dataclass(frozen=True)
class TableRow:
    """One tomogram of a table.

    Parameters
    ----------
    line
        The number of its line, counted from 1.
    first, second
        The files of the halves; ``second`` is ``None`` for a single volume.
    tilts
        A file, or ``LOW,HIGH`` in degrees; ``None`` if the table does not state it.
    tilt_axis
        ``"y"`` or ``"x"``; ``None`` if the table does not state it.
    mask
        A file, or ``"auto"``; ``None`` if the table does not state it.
    second_axis_tilts
        The tilts about the other axis of a dual-axis series; ``None`` if the table does not state them.
    second_tilts
        The tilts of the second half; ``None`` if the table does not state that they differ.
    """

    line: int
    first: Path
    second: Path | None
    tilts: str | None
    tilt_axis: Literal["y", "x"] | None
    mask: str | None
    second_axis_tilts: str | None = None
    second_tilts: str | None = None


def read_table(path: str | Path, *, need_second: bool = True) -> list[TableRow]:
    """Read a list of tomograms from a CSV, TSV or STAR file.

    The first line of a CSV or TSV file names its columns. Empty lines and lines that begin with ``#`` are skipped. Of a
    STAR file the first table with both halves is read. Its columns have the labels of RELION 5
    (``rlnTomoReconstructedTomogramHalf1`` and ``Half2``, ``rlnTomoTiltSeriesStarFile``) and of IsoNet 2
    (``rlnTiltMin``, ``rlnTiltMax``, ``rlnMaskName``), or the names that this package uses. Paths are relative to the
    folder of the table. The paths of RELION are relative to the folder of its project, so if a file that a STAR file
    names is not in the folder of the table, it is searched in the folders above, the nearest first.

    Parameters
    ----------
    path
        The table.
    need_second
        If False, the second half and its column are optional. A STAR file in which no table has both halves may then
        have one with first halves, or with whole tomograms (``rlnTomoReconstructedTomogram``).

    Raises
    ------
    FileFormatError
        If the file is not such a table, or one of its lines cannot be used. The message names the line.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If none of these folders has a file that a STAR file names.
    """
    path = Path(path)
    needed = ("first", "second") if need_second else ("first",)
    expected = _expected(needed)
    readers = {".csv": ",", ".tsv": "\t", ".star": None}
    if path.suffix.lower() not in readers:
        raise FileFormatError(f"{path}: the extension {path.suffix!r} is not that of a table; {expected}")
    lines = list(enumerate(read_text(path, "table", expected).splitlines(), 1))
    delimiter = readers[path.suffix.lower()]
    found = list(_star(path, lines, needed) if delimiter is None else _separated(path, lines, delimiter, needed))
    if not found:
        raise FileFormatError(f"{path}: names no tomogram; {expected}")
    rows = [_row(path, line, values, needed) for line, values in found]
    _refuse_repetitions(path, rows)
    return rows


def _expected(needed: Needed) -> str:
    """Return a description of the tables that can be read, for error messages."""
    *most, last = (name for name in COLUMNS if name not in needed)
    return (
        f"expected a table named .csv (commas), .tsv (tabs) or .star, with the column{'s' * (len(needed) > 1)} "
        f"{' and '.join(needed)}, and optionally {', '.join(most)} and {last}"
    )


def _columns(labels: list[str], needed: Needed) -> list[str]:
    """Return the names of columns in this package for the labels of RELION and IsoNet."""
    names = [LABELS.get(label, label) for label in labels]
    if "second" not in needed and "first" not in names:
        names = ["first" if name == WHOLE else name for name in names]
    return names


def _separated(path: Path, lines: Lines, delimiter: str, needed: Needed) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file."""
    names: list[str] = []
    for line, text in lines:
        if not text.strip(f" {delimiter}") or text.lstrip().startswith("#"):
            continue
        values = [value.strip() for value in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
        if not names:
            names = _columns(values, needed)
            _check_names(path, line, names, needed)
        elif len(values) != len(names):
            raise FileFormatError(
                f"{path}: line {line} has {len(values)} values, the head names {len(names)} columns; put quotes around "
                'a value that contains a comma, such as "-60,60"'
            )
        else:
            yield line, dict(zip(names, values, strict=True))


def _check_names(path: Path, line: int, names: list[str], needed: Needed) -> None:
    """Raise an error for columns that are unknown, missing or repeated."""
    if unknown := [name for name in names if name not in (*COLUMNS, *LIMITS)]:
        raise FileFormatError(f"{path}: line {line}: there is no column {unknown[0]!r}; {_expected(needed)}")
    if missing := [name for name in needed if name not in names]:
        raise FileFormatError(f"{path}: line {line}: the column {missing[0]!r} is missing; {_expected(needed)}")
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path}: line {line}: a column is named twice; {_expected(needed)}")


def _star(path: Path, lines: Lines, needed: Needed) -> list[Row]:
    """Return the rows of the first table with both halves in a STAR file, or else of the first usable one."""
    tables = [
        (_columns([label.lstrip("_") for label in labels], needed), rows)
        for _, labels, rows in star_tables(path, lines)
    ]
    for wanted in (("first", "second"), needed):
        for names, rows in tables:
            if set(wanted) <= set(names):
                return [(line, dict(zip(names, values, strict=True))) for line, values in rows]
    if "second" not in needed:
        raise FileFormatError(f"{path}: no table with the column _{WHOLE}Half1 or _{WHOLE}; give a .csv")
    raise FileFormatError(
        f"{path}: no table with the columns _{WHOLE}Half1 and _{WHOLE}Half2; reconstruct the tomograms with halves, or "
        "give a .csv"
    )


def _row(path: Path, line: int, values: dict[str, str], needed: Needed) -> TableRow:
    """Return one tomogram, or raise an error if a half is missing or the tilt axis is unknown."""
    given = {name: value for name, value in values.items() if value.lower() not in ("", "none")}
    if missing := [name for name in needed if name not in given]:
        remedy = "give the files of both" if "second" in needed else "give its file"
        raise FileFormatError(f"{path}: line {line}: no {missing[0]} half; {remedy}")
    axis = given.get("tilt_axis")
    if axis not in (None, "y", "x"):
        raise FileFormatError(f"{path}: line {line}: tilt_axis must be y or x, got {axis!r}")
    tilts = given.get("tilts")
    if tilts is None and all(limit in given for limit in LIMITS):
        tilts = ",".join(given[limit] for limit in LIMITS)
    mask = given.get("mask")
    return TableRow(
        line,
        _place(path, line, given["first"]),
        _place(path, line, given["second"]) if "second" in given else None,
        _tilts(path, line, tilts),
        axis,  # type: ignore[arg-type]
        mask if mask in (None, "auto") else str(_place(path, line, mask)),
        _tilts(path, line, given.get("second_axis_tilts")),
        _tilts(path, line, given.get("second_tilts")),
    )


def _tilts(path: Path, line: int, tilts: str | None) -> str | None:
    """Return a range of tilts as it is, and a file of tilts with its folder."""
    return tilts if tilts is None or re.fullmatch(r"[-+\d.,\s]+", tilts) else str(_place(path, line, tilts))


def _place(path: Path, line: int, name: str) -> Path:
    """Return the path of a file that the table names, or issue a warning if there is no such file."""
    in_folder = path.parent / name
    if path.suffix.lower() != ".star" or Path(name).is_absolute() or os.access(in_folder, os.F_OK):
        return in_folder
    if found := project_file(path, name):
        return found
    folder = Path(os.path.normpath(path.parent.absolute()))
    # This is not an error: other lines may be usable, and a command reports by its line what it cannot open.
    note = f"{name} is neither in {folder} nor in a folder above it; leave the table where it was written"
    warnings.warn(f"{path}: line {line}: {note}, or correct its paths", FileFormatWarning, stacklevel=4)
    return in_folder


def _refuse_repetitions(path: Path, rows: list[TableRow]) -> None:
    """Raise an error for a file that is named twice, by mistake or as the half of two tomograms."""
    seen: dict[Path, int] = {}
    for row in rows:
        for half in filter(None, (row.first, row.second)):
            if half in seen:
                raise FileFormatError(f"{path}: line {row.line}: {half} is named in line {seen[half]} already")
            seen[half] = row.line
