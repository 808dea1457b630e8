"""The error of a network on the block that was held out of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equitomo.datasets import HeldOut, TomogramPair
from equitomo.inference import TiledPredictor
from equitomo.metrics import CrossHalfError, RowsToBeat, relative_error, rows_to_beat
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
# The share if the network has learned so much noise by heart that its error seems to be less than none.
_SHARE_UNKNOWN = 0.5
# Voxels along an axis of a tomogram, and tomograms, at most, on which weights are compared.
_LARGEST, _N_TOMOGRAMS = 64, 8
# The step after which the starting weights are judged, and the share of the signal power by which so few steps lower
# the error if the weights do not fit; see docs/benchmarks.md.
JUDGED_AT, _MISFIT = 50, 0.06


@dataclass(frozen=True)
class Restart:
    """A training that began again from scratch because the weights of the start did not fit.

    Parameters
    ----------
    step
        The step after which it did so.
    gained
        By how much the steps before had lowered the error of the results for the halves, relative to the power of the
        signal.
    """

    step: int
    gained: float

    def __str__(self) -> str:
        return (
            f"The network that training started from does not fit this specimen ({self.step} steps lowered its error "
            f"by {self.gained:.1%} of the signal's power, more than {_MISFIT:.0%}): training begins again from scratch"
        )


class StartJudge:
    """Compares networks on the halves of all tomograms, by which the share of the starting weights is chosen.

    The result for each half is compared with the other half in the measured part of Fourier space, in the middle of
    each tomogram. The network was trained on these voxels, which favours small shares. Of more than eight tomograms,
    eight are taken. Those with one volume, and those whose halves hold no signal, say nothing.

    Parameters
    ----------
    pairs
        The tomograms; no more than their middle is read.
    precision
        The number format of the networks.
    """

    def __init__(self, pairs: Sequence[TomogramPair], precision: Precision) -> None:
        self._precision = precision
        self._compared: list[_Compared] = []
        for pair in [pair for pair in pairs if pair.n_views == 2][:: -(-len(pairs) // _N_TOMOGRAMS)]:
            halves = torch.stack([pair.scale.apply(middle_of(half, _LARGEST)) for half in pair.halves])
            metric = _metric(halves, pair.geometries)
            nothing = float(metric(torch.zeros_like(halves)[None], halves[None]))
            if nothing > 0.5:
                self._compared.append(_Compared(halves, metric, nothing, math.prod(pair.shape)))

    def error(self, network: nn.Module) -> float | None:
        """Return the power of the error relative to that of the signal, as a mean over all voxels of the tomograms.

        ``None`` if no tomogram says anything.
        """
        total = sum(one.n_voxels for one in self._compared)
        errors = [
            one.n_voxels
            * relative_error(_error(network, one.halves, one.halves, one.metric, self._precision), one.nothing)
            for one in self._compared
        ]
        return sum(errors) / total if errors else None

    def share(self, networks: Callable[[float], nn.Module]) -> float:
        """Return the largest share of the starting weights that fits the halves hardly worse than any other.

        It is 0 where the halves say nothing, and a half where they say that an error has less power than none, because
        the network has learned their noise by heart. ``networks`` makes the network with a share.
        """
        errors = {share: self.error(networks(share)) for share in _SHARES}
        known = {share: error for share, error in errors.items() if error is not None}
        if min(known.values(), default=0.0) < 0:
            return _SHARE_UNKNOWN
        return max((share for share, error in known.items() if error <= min(known.values()) + _TOLERANCE), default=0.0)

    def gained(self, networks: Callable[[float], nn.Module]) -> float:
        """Return by how much the training has lowered the error, relative to the power of the signal; at least 0.

        It is 0 where the halves say nothing, and where the error has less power than none.
        """
        before, now = self.error(networks(1.0)), self.error(networks(0.0))
        return 0.0 if before is None or now is None or now < 0 else max(before - now, 0.0)


class _Compared(NamedTuple):
    """The middle of a tomogram, the measure for it, the error of zeros by this measure, and the tomogram's voxels."""

    halves: Tensor
    metric: CrossHalfError
    nothing: float
    n_voxels: int


def does_not_fit(gained: float) -> bool:
    """Return whether the first steps lowered the error so much that the weights of the start do not fit."""
    return gained > _MISFIT


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
