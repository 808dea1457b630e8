"""The losses of the latest steps, on their way from the device into ``losses.csv``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.training.loss_table import LossTable
from equitomo.training.skipped import SkippedSteps


class LossRecord:
    """The losses of the steps that are not read from the device yet, or not written into a table.

    Reading waits for the device, and writing for the disk; a training does neither in every step.

    Parameters
    ----------
    names
        The names of the losses.
    table
        The table; ``None`` in a process that writes nothing.
    skipped
        The counts of the skipped steps, which follow what is read.
    """

    def __init__(self, names: Sequence[str], table: LossTable | None, skipped: SkippedSteps) -> None:
        self._names, self._table, self._skipped = names, table, skipped
        # The losses of the latest steps, on the device; and those that are read, but not written.
        self._rows: list[Tensor] = []
        self._unwritten: list[list[float]] = []
        # The step sizes of all steps that are not written.
        self._rates: list[float] = []

    def add(self, losses: Tensor, bad: Tensor, rate: float) -> None:
        """Add a step: its losses and whether it was skipped, both on the device, and its step size."""
        self._rows.append(torch.cat([losses, bad[None]]))
        self._rates.append(rate)

    def read(self) -> dict[str, float]:
        """Fetch the losses of the latest steps and return those of the last one by name; nothing if none is new."""
        if not self._rows:
            return {}
        rows = torch.stack(self._rows).cpu().tolist()
        self._rows = []
        self._unwritten += rows
        self._skipped.count(bad for *_, bad in rows)
        return dict(zip(self._names, rows[-1], strict=False))

    def write(self, step: int) -> None:
        """Write the losses that were read but not written yet, of which the last are those of ``step``."""
        first, rows, rates = step - len(self._unwritten), self._unwritten, self._rates
        self._unwritten, self._rates = [], []
        if self._table is None or not rows:
            return
        numbered = enumerate(zip(rows, rates, strict=True), start=first + 1)
        self._table.append([(number, *losses, rate, int(bad)) for number, ((*losses, bad), rate) in numbered])

    def forget_after(self, step: int) -> None:
        """Drop from the table the steps that a resumed run will repeat."""
        if self._table is not None:
            self._table.forget_after(step)
