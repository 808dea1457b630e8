"""Tables of tomograms: a line for each, with its halves, tilts and mask."""

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
from .star import star_tables

EXPECTED = (
    "expected is a table named .csv (commas), .tsv (tabs) or .star, with the columns first and second, and if wanted "
    "tilts, tilt_axis and mask"
)
COLUMNS = ("first", "second", "tilts", "tilt_axis", "mask")
# What RELION 5 and programs that follow it call them.
LABELS = {
    "rlnTomoReconstructedTomogramHalf1": "first",
    "rlnTomoReconstructedTomogramHalf2": "second",
    "rlnTomoTiltSeriesStarFile": "tilts",
    "rlnMaskName": "mask",
}
LIMITS = ("rlnTiltMin", "rlnTiltMax")
# The line, counted from 1, and its values by column.
Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class TableRow:
    """One tomogram of a table.

    Parameters
    ----------
    line
        Where it stands, counted from 1.
    first, second
        The halves.
    tilts
        A file, or ``LOW,HIGH`` in degrees; ``None`` if the table does not say.
    tilt_axis
        ``"y"`` or ``"x"``; ``None`` if the table does not say.
    mask
        A file, or ``"auto"``; ``None`` if the table does not say.
    """

    line: int
    first: Path
    second: Path
    tilts: str | None
    tilt_axis: Literal["y", "x"] | None
    mask: str | None


def read_table(path: str | Path) -> list[TableRow]:
    """Read which tomograms to train on from a CSV, TSV or STAR file.

    The first line of a CSV or TSV file names its columns; empty lines and those that begin with ``#`` are skipped.
    Of a STAR file the first table with both halves is taken, by the labels of RELION 5
    (``rlnTomoReconstructedTomogramHalf1`` and ``Half2``, ``rlnTomoTiltSeriesStarFile``), with ``rlnTiltMin``,
    ``rlnTiltMax`` and ``rlnMaskName`` as IsoNet 2 writes them, or by the names of this package. Paths are relative to
    the table's folder. RELION's are relative to the folder of its project: those of a STAR file which are not in the
    table's folder are taken from the nearest folder above it that has them.

    Raises
    ------
    FileFormatError
        If the file is no such table, or a line of it cannot be used. The message names the line.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If a file that a STAR file names is in none of these folders.
    """
    path = Path(path)
    readers = {".csv": ",", ".tsv": "\t", ".star": None}
    if path.suffix.lower() not in readers:
        raise FileFormatError(f"{path}: the extension {path.suffix!r} does not tell a table; {EXPECTED}")
    lines = list(enumerate(read_text(path, "table", EXPECTED).splitlines(), 1))
    delimiter = readers[path.suffix.lower()]
    found = list(_star(path, lines) if delimiter is None else _separated(path, lines, delimiter))
    if not found:
        raise FileFormatError(f"{path}: names no tomogram; {EXPECTED}")
    rows = [_row(path, line, values) for line, values in found]
    _refuse_repetitions(path, rows)
    return rows


def _separated(path: Path, lines: list[tuple[int, str]], delimiter: str) -> Iterator[Row]:
    names: list[str] = []
    for line, text in lines:
        if not text.strip(f" {delimiter}") or text.lstrip().startswith("#"):
            continue
        values = [value.strip() for value in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))]
        if not names:
            names = [LABELS.get(value, value) for value in values]
            _check_names(path, line, names)
        elif len(values) != len(names):
            raise FileFormatError(
                f"{path}: line {line} has {len(values)} values, the head names {len(names)} columns; put a value with "
                'a comma in it, as "-60,60", between quotes'
            )
        else:
            yield line, dict(zip(names, values, strict=True))


def _check_names(path: Path, line: int, names: list[str]) -> None:
    if unknown := [name for name in names if name not in (*COLUMNS, *LIMITS)]:
        raise FileFormatError(f"{path}: line {line}: there is no column {unknown[0]!r}; {EXPECTED}")
    if missing := [name for name in ("first", "second") if name not in names]:
        raise FileFormatError(f"{path}: line {line}: the column {missing[0]!r} is missing; {EXPECTED}")
    if len(set(names)) < len(names):
        raise FileFormatError(f"{path}: line {line}: a column is named twice")


def _star(path: Path, lines: list[tuple[int, str]]) -> Iterator[Row]:
    for _, labels, rows in star_tables(path, lines):
        names = [LABELS.get(label.lstrip("_"), label.lstrip("_")) for label in labels]
        if {"first", "second"} <= set(names):
            for line, values in rows:
                yield line, dict(zip(names, values, strict=True))
            return
    raise FileFormatError(
        f"{path}: no table with the columns _rlnTomoReconstructedTomogramHalf1 and _rlnTomoReconstructedTomogramHalf2; "
        "reconstruct the tomograms with halves, or give a .csv"
    )


def _row(path: Path, line: int, values: dict[str, str]) -> TableRow:
    given = {name: value for name, value in values.items() if value.lower() not in ("", "none")}
    if missing := [name for name in ("first", "second") if name not in given]:
        raise FileFormatError(f"{path}: line {line}: no {missing[0]} half; give the files of both")
    axis = given.get("tilt_axis")
    if axis not in (None, "y", "x"):
        raise FileFormatError(f"{path}: line {line}: tilt_axis is y or x, got {axis!r}")
    tilts = given.get("tilts")
    if tilts is None and all(limit in given for limit in LIMITS):
        tilts = ",".join(given[limit] for limit in LIMITS)
    mask = given.get("mask")
    return TableRow(
        line,
        _place(path, line, given["first"]),
        _place(path, line, given["second"]),
        tilts if tilts is None or re.fullmatch(r"[-+\d.,\s]+", tilts) else str(_place(path, line, tilts)),
        axis,  # type: ignore[arg-type]
        mask if mask in (None, "auto") else str(_place(path, line, mask)),
    )


def _place(path: Path, line: int, name: str) -> Path:
    """Where a file is that the table names."""
    beside = path.parent / name
    if path.suffix.lower() != ".star" or Path(name).is_absolute() or os.access(beside, os.F_OK):
        return beside
    # Links are not resolved: the folder of a job may lie on another disk, and that of the project not above it there.
    folder = Path(os.path.normpath(path.parent.absolute()))
    for above in folder.parents:
        if os.access(above / name, os.F_OK):
            return above / name
    # No error: other lines may be of use, and a command reports what it cannot open by its line.
    note = f"{name} is neither in {folder} nor in a folder above it; leave the table where it was written"
    warnings.warn(f"{path}: line {line}: {note}, or mend its paths", FileFormatWarning, stacklevel=4)
    return beside


def _refuse_repetitions(path: Path, rows: list[TableRow]) -> None:
    """A file in two places is a slip of the pen, or would make halves of two tomograms out of one."""
    seen: dict[Path, int] = {}
    for row in rows:
        for half in (row.first, row.second):
            if half in seen:
                raise FileFormatError(f"{path}: line {row.line}: {half} stands in line {seen[half]} already")
            seen[half] = row.line
