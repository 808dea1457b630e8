"""``losses.csv``: the losses of every step of a run."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from equitomo.io import open_without_links, write_atomically
from equitomo.training.checkpoint import CheckpointError

# Of one row, at most.
ROW_BYTES = 100
_COLUMNS = ("step", "data", "equivariance", "learning_rate", "skipped")


def append_losses(folder: Path, rows: Sequence[Sequence[float]]) -> None:
    """Add rows of step, both losses, step size and whether the step was skipped."""
    path = folder / "losses.csv"
    folder.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    # A link put there by someone else is not followed, which Path.open cannot say.
    with open(path, "a", newline="", opener=open_without_links) as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(_COLUMNS)
        writer.writerows(rows)
        # On the disk before the checkpoint is that follows, or a power failure would leave a gap.
        file.flush()
        os.fsync(file.fileno())


def forget_losses_after(folder: Path, step: int) -> None:
    """Drop the rows that a resumed run will write again.

    Raises
    ------
    CheckpointError
        If the file holds other rows than those of :func:`append_losses`.

    Warns
    -----
    UserWarning
        If it does not hold all rows up to ``step``.
    """
    path = folder / "losses.csv"
    there = path.exists()
    lines = path.read_bytes().splitlines(keepends=True) if there else []
    try:
        kept = [line for line in lines[1:] if line.endswith(b"\n") and int(line.split(b",", 1)[0]) <= step]
    except ValueError as error:
        raise CheckpointError(f"{path} holds rows that this program did not write: move it away") from error
    if len(kept) < step:
        warnings.warn(
            f"{path} has {len(kept)} of the {step} steps so far: the losses of the others are lost, the run goes on",
            stacklevel=2,
        )
    if there:
        write_atomically(path, b"".join([*lines[:1], *kept]), overwrite=True)
