"""The error of a network on the block that was held out of its training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from equitomo.datasets import HeldOut
from equitomo.inference import TiledPredictor
from equitomo.metrics import CrossHalfError, RowsToBeat, rows_to_beat
from equitomo.precision import Precision
from equitomo.training.loss_table import HeldOutTable, LossTable
from equitomo.training.method import Tilts
from equitomo.training.stability import Stability

# The surroundings of the block are margin enough, so that this is for the seams between tiles only.
_MARGIN = 8
# Voxels over which the faces of the block fade, at most, and the share of its shortest side that they take at most.
_TAPER, _OF_SIDE = 8, 4


class HeldOutJudge:
    """The measure of a network on a held-out block, and the record of it in the folder of a run.

    The network is applied once to each half, as in the training, also where predictions apply it twice.

    Parameters
    ----------
    held_out
        The block.
    tilts
        The tilts of both halves.
    folder
        The folder of the run.
    losses
        The names of its losses.
    """

    def __init__(self, held_out: HeldOut, tilts: Tilts, folder: Path, losses: tuple[str, ...]) -> None:
        self._held_out = held_out
        self._halves = held_out.volumes[(slice(None), *held_out.inner)].cpu()
        taper = min(_TAPER, min(self._halves.shape[1:]) // _OF_SIDE)
        self.metric = CrossHalfError(tilts[0], second_geometry=tilts[-1], taper=taper)
        self.table, self._losses = HeldOutTable(folder), LossTable(folder, losses)

    @cached_property
    def rows(self) -> RowsToBeat:
        """The errors that the network must beat."""
        return rows_to_beat(self._halves, self.metric)

    def error(self, network: nn.Module, precision: Precision) -> float:
        """Return the :class:`~equitomo.metrics.CrossHalfError` of a network."""
        predictor = TiledPredictor(network, passes=1, margin=_MARGIN, precision=precision)
        results = torch.stack([predictor(half)[self._held_out.inner].cpu() for half in self._held_out.volumes])
        return float(self.metric(results[None].float(), self._halves[None]))

    def record(self, step: int, network: nn.Module, precision: Precision) -> None:
        """Add the error of a network after a step to the table."""
        self.table.append([(step, self.error(network, precision), *self.rows)])

    def is_stable(self) -> bool:
        """Return whether neither the losses nor the error change any more, by what is recorded."""
        return Stability.of(self._losses.losses(), self.table.read()).step is not None
