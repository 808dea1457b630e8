"""Read tables of tomograms: one line for each tomogram, with its halves, tilts and mask."""

import csv
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import FileFormatError, FileFormatWarning
from .opening import read_text
from .star import project_file, star_tables

COLUMNS = ("first", "second", "tilts", "tilt_axis", "mask")
# The names of these columns in RELION 5 and in programs that follow it.
LABELS = {
    "rlnTomoReconstructedTomogramHalf1": "first",
    "rlnTomoReconstructedTomogramHalf2": "second",
    "rlnTomoTiltSeriesStarFile": "tilts",
    "rlnMaskName": "mask",
}
# A tomogram made from all tilts; it is used as the first half if a table names no halves.
WHOLE = "rlnTomoReconstructedTomogram"
LIMITS = ("rlnTiltMin", "rlnTiltMax")
# The number of a line, counted from 1, and its values by column.
Row = tuple[int, dict[str, str]]
# The columns that a table must have: both halves, or the first one.
Needed = tuple[str, ...]


@dataclass(frozen=True)
class TableRow:
    """One tomogram of a table.

    Parameters
    ----------
    line
        Number of its line, counted from 1.
    first, second
        The halves; ``second`` is ``None`` for a single volume.
    tilts
        A file, or ``LOW,HIGH`` in degrees; ``None`` if the table does not say.
    tilt_axis
        ``"y"`` or ``"x"``; ``None`` if the table does not say.
    mask
        A file, or ``"auto"``; ``None`` if the table does not say.
    """

    line: int
    first: Path
    second: Path | None
    tilts: str | None
    tilt_axis: Literal["y", "x"] | None
    mask: str | None


def read_table(path: str | Path, *, need_second: bool = True) -> list[TableRow]:
    """Read the list of tomograms to work on from a CSV, TSV or STAR file.

    The first line of a CSV or TSV file names its columns; empty lines and lines that begin with ``#`` are skipped. In a
    STAR file the first table with both halves is taken. Its columns have the labels of RELION 5
    (``rlnTomoReconstructedTomogramHalf1`` and ``Half2``, ``rlnTomoTiltSeriesStarFile``), with ``rlnTiltMin``,
    ``rlnTiltMax`` and ``rlnMaskName`` as IsoNet 2 writes them, or the names that this package uses. Paths are relative
    to the table's folder. RELION's paths are relative to the folder of its project, so a file that a STAR file names
    and that is not in the table's folder is taken from the nearest folder above that has it.

    Parameters
    ----------
    path
        The table.
    need_second
        If False, the second half and its column are optional. If no table of a STAR file then has both halves, the
        first table with first halves, or with whole tomograms (``rlnTomoReconstructedTomogram``), is read.

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
    *most, last = (name for name in COLUMNS if name not in needed)
    return (
        f"expected a table named .csv (commas), .tsv (tabs) or .star, with the column{'s' * (len(needed) > 1)} "
        f"{' and '.join(needed)}, and optionally {', '.join(most)} and {last}"
    )


def _columns(labels: list[str], needed: Needed) -> list[str]:
    names = [LABELS.get(label, label) for label in labels]
    if "second" not in needed and "first" not in names:
        names = ["first" if name == WHOLE else name for name in names]
    return names


def _separated(path: Path, lines: list[tuple[int, str]], delimiter: str, needed: Needed) -> Iterator[Row]:
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
                f"{path}: line {line} has {len(values)} values, the head names {len(names)} columns; put a value that "
                'contains a comma, such as "-60,60", between quotes'
            )
        else:
            yield line, dict(zip(names, values, strict=True))


def _check_names(path: Path, line: int, names: list[str], needed: Needed) -> None:
    if unknown := [name for name in names if name not in (*COLUMNS, *LIMITS)]:
        raise FileFormatError(f"{path}: line {line}: there is no column {unknown[0]!r}; {_expected(needed)}")
    if missing := [name for name in needed if name not in names]:
        raise FileFormatError(f"{path}: line {line}: the column {missing[0]!r} is missing; {_expected(needed)}")
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path}: line {line}: a column is named twice")


def _star(path: Path, lines: list[tuple[int, str]], needed: Needed) -> Iterator[Row]:
    tables = [
        (_columns([label.lstrip("_") for label in labels], needed), rows)
        for _, labels, rows in star_tables(path, lines)
    ]
    for wanted in (("first", "second"), needed):
        for names, rows in tables:
            if set(wanted) <= set(names):
                for line, values in rows:
                    yield line, dict(zip(names, values, strict=True))
                return
    if "second" not in needed:
        raise FileFormatError(f"{path}: no table with the column _{WHOLE}Half1 or _{WHOLE}; give a .csv")
    raise FileFormatError(
        f"{path}: no table with the columns _rlnTomoReconstructedTomogramHalf1 and _rlnTomoReconstructedTomogramHalf2; "
        "reconstruct the tomograms with halves, or give a .csv"
    )


def _row(path: Path, line: int, values: dict[str, str], needed: Needed) -> TableRow:
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
        tilts if tilts is None or re.fullmatch(r"[-+\d.,\s]+", tilts) else str(_place(path, line, tilts)),
        axis,  # type: ignore[arg-type]
        mask if mask in (None, "auto") else str(_place(path, line, mask)),
    )


def _place(path: Path, line: int, name: str) -> Path:
    """Return the path of a file that the table names."""
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
    """Refuse a file that is named twice, by mistake or as the half of two tomograms."""
    seen: dict[Path, int] = {}
    for row in rows:
        for half in filter(None, (row.first, row.second)):
            if half in seen:
                raise FileFormatError(f"{path}: line {row.line}: {half} is named in line {seen[half]} already")
            seen[half] = row.line
