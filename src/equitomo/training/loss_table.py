"""Tables of numbers by step: ``losses.csv`` with those of every step of a run, and ``held_out.csv`` with some."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from equitomo.io import open_without_links, write_atomically
from equitomo.training.checkpoint import CheckpointError

# Columns of losses.csv that are not losses.
NOT_LOSSES = ("step", "learning_rate", "skipped")
# The most that one number of a row takes.
_NUMBER_BYTES = 25


class StepTable:
    """A file of numbers with the steps of a run in its first column.

    Parameters
    ----------
    path
        The file.
    columns
        The names of the columns after ``step``.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = ["step", *columns]

    def append(self, rows: Sequence[Sequence[float]]) -> None:
        """Add rows of the step and the other columns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._path.exists()
        # A link that someone else put there is not followed. Path.open has no option for that.
        with open(self._path, "a", newline="", opener=open_without_links) as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(self._columns)
            writer.writerows(rows)
            # The rows must be on the disk before the checkpoint that follows, or a power failure would leave a gap.
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, NDArray[np.float64]]:
        """Return the columns by name, empty if there is no file."""
        return _columns_of(self._path) if self._path.exists() else {name: np.empty(0) for name in self._columns}

    def forget_after(self, step: int) -> int:
        """Drop the rows that a resumed run will write again, refuse a foreign file, and return how many are left."""
        there = self._path.exists()
        header, *lines = self._path.read_bytes().splitlines(keepends=True) if there else [self._header()]
        try:
            kept = [line for line in lines if line.endswith(b"\n") and int(line.split(b",", 1)[0]) <= step]
        except ValueError:
            kept = None
        if kept is None or (kept and header != self._header()):
            raise CheckpointError(f"{self._path} holds rows that this program did not write: move it away")
        if there:
            write_atomically(self._path, b"".join([header, *kept]), overwrite=True)
        return len(kept)

    def _header(self) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(self._columns)
        return text.getvalue().encode()


class LossTable(StepTable):
    """The file ``losses.csv`` in the folder of a run, with a column for each named loss and a row for each step."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder / "losses.csv", [*names, "learning_rate", "skipped"])
        self._names = names

    @staticmethod
    def row_bytes(n_losses: int) -> int:
        """Return about how many bytes a row takes."""
        return _NUMBER_BYTES * (n_losses + 3)

    def losses(self) -> dict[str, NDArray[np.float64]]:
        """Return the steps and the losses by name."""
        columns = self.read()
        return {name: columns[name] for name in ("step", *self._names)}

    def forget_after(self, step: int) -> int:
        """Drop the rows that a resumed run will write again, and warn if rows before these are missing."""
        n_left = super().forget_after(step)
        if n_left < step:
            warnings.warn(
                f"{self._path} has rows for {n_left} of the {step} steps so far: the losses of the others are lost, "
                "and the run continues",
                stacklevel=2,
            )
        return n_left


@dataclass(frozen=True)
class LossHistory:
    """The steps in a table such as ``losses.csv``, each loss by name, and how many steps were skipped."""

    steps: NDArray[np.int64]
    losses: Mapping[str, NDArray[np.float64]]
    n_skipped: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the history that a table holds."""
        columns = _columns_of(path)
        losses = {name: values for name, values in columns.items() if name not in NOT_LOSSES}
        return cls(columns["step"].astype(np.int64), losses, int(columns.get("skipped", np.zeros(1)).sum()))


class HeldOutTable(StepTable):
    """The file ``held_out.csv`` in the folder of a run, with errors on the held-out block after some of the steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "held_out.csv", ["network", "gaussian", "sigma", "nothing"])


def _columns_of(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a table of numbers by the names in its first line."""
    with path.open(newline="") as file:
        columns = zip(*filter(None, csv.reader(file)), strict=True)
        return {name: np.array(numbers, np.float64) for name, *numbers in columns}
