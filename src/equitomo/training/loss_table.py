"""``losses.csv``: the losses of every step of a run."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from equitomo.io import open_without_links, write_atomically
from equitomo.training.checkpoint import CheckpointError

# The most that one number of a row takes.
_NUMBER_BYTES = 25


class LossTable:
    """The file ``losses.csv`` in the folder of a run, with a column for each named loss."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._path = folder / "losses.csv"
        self._columns = ["step", *names, "learning_rate", "skipped"]

    @staticmethod
    def row_bytes(n_losses: int) -> int:
        """Return about how many bytes a row takes."""
        return _NUMBER_BYTES * (n_losses + 3)

    def append(self, rows: Sequence[Sequence[float]]) -> None:
        """Add rows of step, losses, step size and whether the step was skipped."""
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

    def forget_after(self, step: int) -> None:
        """Drop the rows that a resumed run will write again; refuse a foreign file, and warn if rows are missing."""
        there = self._path.exists()
        header, *lines = self._path.read_bytes().splitlines(keepends=True) if there else [self._header()]
        try:
            kept = [line for line in lines if line.endswith(b"\n") and int(line.split(b",", 1)[0]) <= step]
        except ValueError:
            kept = None
        if kept is None or (kept and header != self._header()):
            raise CheckpointError(f"{self._path} holds rows that this program did not write: move it away")
        if len(kept) < step:
            warnings.warn(
                f"{self._path} has rows for {len(kept)} of the {step} steps so far: the losses of the others are lost, "
                "and the run continues",
                stacklevel=2,
            )
        if there:
            write_atomically(self._path, b"".join([header, *kept]), overwrite=True)

    def _header(self) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(self._columns)
        return text.getvalue().encode()
