"""Cubes from more tomograms than fit into memory."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets.cubes import Cubes, SubtomogramDataset, central_cube
from equitomo.datasets.pair import TomogramPair
from equitomo.datasets.statistics import ReadingStoppedError
from equitomo.draws import CUBES, SLOTS, TOMOGRAMS, draw_integers
from equitomo.physics import WedgeOperator
from equitomo.volumes import Shape

_log = logging.getLogger(__name__)

# The golden ratio less one, times 2**64: its multiples are spread over the range as evenly as numbers can be.
_GOLDEN = 0x9E3779B97F4A7C15


class SubtomogramPool(Cubes):
    r"""Cubes of tomograms that take turns in memory, while the next one is read in the background.

    The cubes are divided into intervals of ``exchange_every`` cubes. During interval :math:`s` the tomograms of the
    turns ``s`` to ``s + n_held - 1`` of an endless list are in memory and cubes are drawn from all of them alike,
    while the tomogram of turn ``s + n_held`` is read. Turn :math:`t` belongs to the tomogram in whose share of all
    valid starts, laid end to end on a circle, the point :math:`u + t (\sqrt 5 - 1) / 2` falls, with :math:`u` drawn
    from the seed: after any number of turns each tomogram was held in proportion to its valid starts, to within a few
    turns (the points of a golden rotation have the least discrepancy).

    Item ``k`` depends on the seed, the tomograms, ``memory``, ``exchange_every`` and ``k`` alone: ranks and resumed
    runs see the same cubes, also from the middle of an interval. Do not use worker processes: each would hold
    tomograms of its own.

    Parameters
    ----------
    pairs
        The tomograms. Each is read once at the beginning to find its scale and its valid starts.
    side, length, seed, min_fraction, mixed_voxel_sizes, physics, held_out, reach
        As for :class:`~equitomo.SubtomogramDataset`.
    memory
        Bytes that tomograms may take, those in use and the one that is being read together.
    exchange_every
        Number of cubes after which one tomogram is exchanged for the next.

    Attributes
    ----------
    n_held : int
        Number of turns whose tomograms are in memory at the same time.

    Raises
    ------
    ValueError
        If two of the tomograms do not fit into ``memory``, or for the reasons of
        :class:`~equitomo.SubtomogramDataset`.

    Warns
    -----
    UserWarning
        If the run is too short to visit every tomogram.
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        side: int | Shape,
        *,
        length: int,
        memory: int,
        exchange_every: int,
        seed: int = 0,
        min_fraction: float = 0.3,
        mixed_voxel_sizes: bool = False,
        physics: WedgeOperator | None = None,
        held_out: int = 0,
        reach: int = 0,
    ) -> None:
        if exchange_every < 1:
            raise ValueError(f"`exchange_every` must be at least one cube, got {exchange_every}")
        super().__init__(
            pairs,
            side,
            length=length,
            seed=seed,
            mixed_voxel_sizes=mixed_voxel_sizes,
            physics=physics,
            held_out=held_out,
            reach=reach,
        )
        self.exchange_every = int(exchange_every)
        self.n_held = _turns_held([pair.n_bytes for pair in self.pairs], memory)
        self._survey(min_fraction)
        self._first = draw_integers(self.seed, range(1), 2**63, TOMOGRAMS)[0] * 2
        self._n_intervals = -(-self.length // self.exchange_every)
        self._held: dict[int, Tensor] = {}
        self._current: int | None = None
        self._ahead: _Reading | None = None
        self._warn_of_unvisited()

    @property
    def example(self) -> Tensor:
        return self._example

    def cut(self, indices: range, margin: int = 0) -> tuple[Tensor, list[int], list[Shape]]:
        parts, n = [], self.exchange_every
        # One interval after the other: the cubes drawn in the first must not keep its tomograms in memory.
        for interval in range(indices.start // n, -(-indices.stop // n)):
            if interval != self._current:
                self._exchange(interval)
            part = range(max(interval * n, indices.start), min((interval + 1) * n, indices.stop))
            parts.append(self._cut(self._drawn(interval, part), margin))
        cubes = parts[0][0] if len(parts) == 1 else torch.cat([part for part, *_ in parts])
        return cubes, [s for _, sources, _ in parts for s in sources], [b for *_, begins in parts for b in begins]

    def tomogram_at(self, turn: int) -> int:
        """Return the number of the tomogram whose turn it is."""
        # In whole numbers, which are the same everywhere.
        point = (self._first + turn * _GOLDEN) % 2**64
        return int(np.searchsorted(self._ends, point * self.n_starts >> 64, side="right"))

    def close(self) -> None:
        """End reading in the background; :meth:`batch` begins it again."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        # The next batch has to look again for what should be read ahead.
        self._current = None

    def _drawn(self, interval: int, indices: range) -> Iterator[tuple[int, Shape, Tensor]]:
        """Yield the pair, the start and the volumes of each item of an interval."""
        for index, slot in zip(indices, draw_integers(self.seed, indices, self.n_held, SLOTS), strict=True):
            source = self.tomogram_at(interval + slot)
            starts = self._starts[source]
            (rank,) = draw_integers(self.seed, range(index, index + 1), starts.count, CUBES)
            yield source, starts.locate(rank), self._held[source]

    def _survey(self, min_fraction: float) -> None:
        """Read every tomogram once, to check it and to find its scale and its valid starts."""
        for number, pair in enumerate(self.pairs, 1):
            _log.info("reading tomogram %d of %d: %s", number, len(self.pairs), pair.name)
            volumes = pair.load_volumes()
            mask = pair.load_mask(volumes)
            self._add_starts(pair, volumes, mask, min_fraction)
            if number == 1:
                if self.held_out is not None:
                    # Without the rest of the tomogram, which is released.
                    self.held_out = replace(self.held_out, volumes=self.held_out.volumes.clone())
                self._example = central_cube(volumes, self.shape).clone()
            # The statistics of many tomograms would take more memory than the tomograms in use.
            pair.release()

    def _warn_of_unvisited(self) -> None:
        visited: set[int] = set()
        # A training whose number of steps is not known has practically infinitely many turns.
        for turn in range(self._n_intervals - 1 + self.n_held):
            visited.add(self.tomogram_at(turn))
            if len(visited) == len(self.pairs):
                return
        warnings.warn(
            f"only {len(visited)} of {len(self.pairs)} tomograms will be visited in {self._n_intervals} intervals: "
            "train for more steps, lower `exchange_every`, or allow more `memory`",
            stacklevel=3,
        )

    def _exchange(self, interval: int) -> None:
        """Load the tomograms of an interval, and begin to read the one that the next interval needs."""
        self._current = None
        needed = dict.fromkeys(self.tomogram_at(interval + slot) for slot in range(self.n_held))
        following = self.tomogram_at(interval + self.n_held) if interval + 1 < self._n_intervals else None
        # Before anything is read: memory is for those in use and one more.
        self._held = {source: held for source, held in self._held.items() if source in needed or source == following}
        if self._ahead is not None and self._ahead.source not in needed and self._ahead.source != following:
            self._ahead.cancel()
            self._ahead = None
        for source in needed:
            if source not in self._held:
                self._held[source] = self._read(source)
        if following is not None and following not in self._held and self._ahead is None:
            self._ahead = _Reading(following, self.pairs[following])
        self._current = interval

    def _read(self, source: int) -> Tensor:
        if self._ahead is not None and self._ahead.source == source:
            reading, self._ahead = self._ahead, None
            return reading.result()
        return _load(self.pairs[source], lambda: False)


def cubes_of(
    pairs: TomogramPair | Sequence[TomogramPair],
    side: int | Shape,
    *,
    memory: int | None,
    exchange_every: int,
    **settings: Any,
) -> SubtomogramDataset | SubtomogramPool:
    """Return a dataset of pairs that are all in memory, or a pool if lazy pairs do not fit into ``memory`` bytes."""
    pairs = (pairs,) if isinstance(pairs, TomogramPair) else tuple(pairs)
    if memory is not None and all(pair.is_lazy for pair in pairs) and sum(pair.n_bytes for pair in pairs) > memory:
        return SubtomogramPool(pairs, side, memory=memory, exchange_every=exchange_every, **settings)
    return SubtomogramDataset(pairs, side, **settings)


class _Reading:
    """Reads a tomogram in a thread of its own."""

    def __init__(self, source: int, pair: TomogramPair) -> None:
        self.source = source
        self._pair = pair
        self._stop = threading.Event()
        self._volumes: Tensor | None = None
        self._error: Exception | None = None
        # A daemon: the end of the program does not wait for a disk.
        self._thread = threading.Thread(target=self._run, name=f"reading {pair.name}", daemon=True)
        self._thread.start()

    def result(self) -> Tensor:
        """Return the volumes, or raise the error that occurred while they were read."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._volumes is not None
        return self._volumes

    def cancel(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._volumes = _load(self._pair, self._stop.is_set)
        except Exception as error:  # raised again by result()
            self._error = error


def _load(pair: TomogramPair, stopped: Callable[[], bool]) -> Tensor:
    """Return the volumes of a pair; any error names the pair."""
    try:
        return pair.load_volumes(stopped)
    except (OSError, ReadingStoppedError):
        raise
    except Exception as error:
        raise OSError(f"{pair.name} could not be read again: {str(error) or type(error).__name__}") from error


def _turns_held(sizes: Sequence[int], memory: int) -> int:
    """Return how many tomograms fit beside the one that is being read, whichever they are."""
    largest = sorted(sizes, reverse=True)
    n_held = sum(total <= memory for total in accumulate(largest)) - 1
    if n_held < 1 < len(largest):
        needed = sum(largest[:2])
        raise ValueError(
            f"`memory` allows {memory / 2**30:.3g} GiB for tomograms, but the two largest, one in use and one being "
            f"read, take {math.ceil(100 * needed / 2**30) / 100:g}: allow that much"
        )
    return max(n_held, 1)
