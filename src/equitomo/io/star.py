"""Read the tables in STAR files of RELION and other programs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .angles import Lines
from .errors import FileFormatError


def star_tables(path: Path, lines: Lines) -> Iterator[tuple[str, list[str], list[tuple[int, list[str]]]]]:
    """Yield the name of the block, the columns and the rows, with their lines, of every ``loop_`` in a STAR file."""
    block, columns, rows = "", list[str](), list[tuple[int, list[str]]]()
    state = "pairs"  # it is "head" after loop_, and then "rows"
    for line, text in [*lines, (len(lines) + 1, "data_")]:
        # A word that begins with # starts a comment, such as "#3" after the label of a column.
        words = re.findall(r"\"[^\"]*\"|'[^']*'|#.*|\S+", text)
        words = [word.strip("\"'") for word in words if not word.startswith("#")]
        first = words[0] if words else ""
        if first.startswith("data_") or first == "loop_":
            if rows:
                yield block, columns, rows
            block = first[5:] if first.startswith("data_") else block
            state, columns, rows = ("head" if first == "loop_" else "pairs"), [], []
        elif state == "head" and first.startswith("_"):
            columns.append(first)
        elif words and state != "pairs":
            if len(words) != len(columns):
                raise FileFormatError(
                    f"{path}: line {line} has {len(words)} values, the table has {len(columns)} columns"
                )
            state = "rows"
            rows.append((line, words))
        elif words and not first.startswith("_"):
            raise FileFormatError(f"{path}: line {line}: expected data_, loop_ or a label, so this is not a STAR file")


def project_file(path: Path, name: str) -> Path | None:
    """Return the file that a STAR file names, or None if there is none.

    RELION's paths are relative to the folder of its project: the nearest folder above the table that has it is taken.
    """
    # Links are not resolved: the folder of a job may lie on another disk, where the project's folder is not above it.
    folder = Path(os.path.normpath(path.parent.absolute()))
    if os.access(path.parent / name, os.F_OK):
        return path.parent / name
    if Path(name).is_absolute():
        return None
    return next((above / name for above in folder.parents if os.access(above / name, os.F_OK)), None)
