"""Small readers that several formats of tilt series share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equitomo.io.angles import Lines, number
from equitomo.io.errors import FileFormatError
from equitomo.io.mrc import read_header
from equitomo.io.mrc_header import field
from equitomo.io.opening import read_text


def lines_of(path: Path, kind: str, expected: str) -> Lines:
    """Return the numbered lines of a text file."""
    return list(enumerate(read_text(path, kind, expected).splitlines(), 1))


def rows_of_numbers(path: Path, lines: Lines, n_columns: range, what: str) -> list[tuple[int, list[float]]]:
    """Return the numbers of every line that is neither empty nor a comment, each with its line."""
    rows = []
    for line, text in lines:
        columns = text.split("#")[0].split()
        if columns and len(columns) not in n_columns:
            allowed = f"{n_columns[0]} to {n_columns[-1]}" if len(n_columns) > 1 else f"{n_columns[0]}"
            raise FileFormatError(f"{path}: line {line} has {len(columns)} columns, expected {allowed} of {what}")
        if columns:
            rows.append((line, [number(path, line, column, f"a number of {what}") for column in columns]))
    return rows


def stack_header(path: Path) -> tuple[tuple[int, int, int], float | None]:
    """Return the number of images, rows and columns of an MRC stack, and its pixel size in ångström or None."""
    header, _ = read_header(path, False, [])
    record = header.record
    shape = field(record, "nz"), field(record, "ny"), field(record, "nx")
    cell, sampling = float(record["cella"]["x"]), field(record, "mx")
    return shape, cell / sampling if 0 < cell < float("inf") and sampling > 0 else None


def existing(paths: Iterable[Path | None]) -> Path | None:
    """Return the first of these files that exists, or None."""
    return next((path for path in paths if path is not None and path.is_file()), None)


def both_existing(first: Path, second: Path) -> tuple[Path, Path] | None:
    """Return two files if both exist, else None."""
    return (first, second) if first.is_file() and second.is_file() else None


def order_of(keys: Iterable[Any]) -> tuple[int, ...]:
    """Return the place of each key among all in ascending order; equal keys keep their order."""
    keys = list(keys)
    places = [0] * len(keys)
    for place, n in enumerate(sorted(range(len(keys)), key=lambda n: keys[n])):
        places[n] = place
    return tuple(places)


def dose_before(doses: Iterable[float], order: Iterable[int]) -> tuple[float, ...]:
    """Return the dose accumulated before each view from the dose of each view and its place in the acquisition."""
    pairs = list(zip(doses, order, strict=True))
    return tuple(sum(dose for dose, place in pairs if place < here) for _, here in pairs)
