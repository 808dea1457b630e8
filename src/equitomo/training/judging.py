"""The error of a network on the block that was held out of its training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from equitomo.datasets import HeldOut, TomogramPair
from equitomo.inference import TiledPredictor
from equitomo.metrics import CrossHalfError, RowsToBeat, rows_to_beat
from equitomo.precision import Precision
from equitomo.training.loss_table import HeldOutTable, LossTable
from equitomo.training.method import Tilts
from equitomo.training.stability import Stability
from equitomo.volumes import middle_of

# The surroundings of the block are margin enough, so that this is for the seams between tiles only.
_MARGIN = 8
# Voxels over which the faces of the block fade, at most, and the share of its shortest side that they take at most.
_TAPER, _OF_SIDE = 8, 4


# Shares of the starting weights to choose from, and by how much of the signal power the error may exceed the least.
_SHARES, _TOLERANCE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 0.005
# Voxels along an axis at most on which the shares are compared.
_LARGEST = 64


def choose_share(networks: Callable[[float], nn.Module], pair: TomogramPair, precision: Precision) -> float:
    """Return the largest share of the starting weights that fits the halves of a tomogram hardly worse than any other.

    The result for each half is compared with the other half in the measured part of Fourier space, in the middle of
    the tomogram. The network was trained on these voxels, which favours small shares. Without a second half, or where
    the halves hold no signal, nothing speaks for the start, and the share is 0.

    Parameters
    ----------
    networks
        Makes the network with a share of the starting weights.
    pair
        The tomogram; no more than its middle is read.
    precision
        The number format of the network.
    """
    if pair.n_views != 2:
        return 0.0
    halves = torch.stack([pair.scale.apply(middle_of(half, _LARGEST)) for half in pair.halves])
    metric = _metric(halves, pair.geometries)
    signal = float(metric(torch.zeros_like(halves)[None], halves[None])) - 0.5
    if signal <= 0:
        return 0.0
    errors = {share: _error(networks(share), halves, halves, metric, precision) for share in _SHARES}
    return max(share for share, error in errors.items() if error <= min(errors.values()) + _TOLERANCE * signal)


def _metric(halves: Tensor, tilts: Tilts) -> CrossHalfError:
    """Return the measure for halves ``(2, z, y, x)``, whose faces fade."""
    taper = min(_TAPER, min(halves.shape[1:]) // _OF_SIDE)
    return CrossHalfError(tilts[0], second_geometry=tilts[-1], taper=taper)


def _error(
    network: nn.Module,
    volumes: Tensor,
    halves: Tensor,
    metric: CrossHalfError,
    precision: Precision,
    inner: tuple[slice, ...] = (),
) -> float:
    """Return the error of a network that sees ``volumes``, on the ``halves`` at the place ``inner`` of them."""
    predictor = TiledPredictor(network, passes=1, margin=_MARGIN, precision=precision)
    results = torch.stack([predictor(half)[inner].cpu() for half in volumes])
    return float(metric(results[None].float(), halves[None]))


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
        self.metric = _metric(self._halves, tilts)
        self.table, self._losses = HeldOutTable(folder), LossTable(folder, losses)

    @cached_property
    def rows(self) -> RowsToBeat:
        """The errors that the network must beat."""
        return rows_to_beat(self._halves, self.metric)

    def error(self, network: nn.Module, precision: Precision) -> float:
        """Return the :class:`~equitomo.metrics.CrossHalfError` of a network."""
        place = self._held_out
        return _error(network, place.volumes, self._halves, self.metric, precision, place.inner)

    def record(self, step: int, network: nn.Module, precision: Precision) -> None:
        """Add the error of a network after a step to the table."""
        self.table.append([(step, self.error(network, precision), *self.rows)])

    def is_stable(self) -> bool:
        """Return whether neither the losses nor the error change any more, by what is recorded."""
        return Stability.of(self._losses.losses(), self.table.read()).step is not None
