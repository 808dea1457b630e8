"""Cubes from more tomograms than fit into memory."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets.cubes import Cubes, SubtomogramDataset, central_cube, cube_at, require_one_voxel_size
from equitomo.datasets.pair import TomogramPair
from equitomo.datasets.starts import ValidStarts
from equitomo.datasets.stored import ReadingStoppedError, StoredTomogramPair
from equitomo.draws import CUBES, SLOTS, TOMOGRAMS, draw_integers

_log = logging.getLogger(__name__)

# The golden ratio less one, of 2**64: multiples of it are spread over the range as evenly as numbers can be.
_GOLDEN = 0x9E3779B97F4A7C15


class SubtomogramPool(Cubes):
    r"""Cubes of tomograms that take turns in memory, while the next one is read in the background.

    Time is cut into stretches of cubes. During stretch :math:`s` the places ``s`` to ``s + n_held - 1`` of an endless
    list are in memory and cubes are drawn from all of them alike, while place ``s + n_held`` is read. Place :math:`t`
    belongs to the tomogram in whose share of all valid starts, laid end to end on a circle, the point
    :math:`u + t (\sqrt 5 - 1) / 2` falls, with :math:`u` drawn from the seed: after any number of places
    each tomogram was there in proportion to its valid starts, but for a few (the points of a golden rotation
    have the least discrepancy).

    What item ``k`` is depends on the seed, the tomograms, ``memory``, ``stretch`` and ``k`` alone: ranks and resumed
    runs see the cubes they would have seen, also from the middle of a stretch. Use no worker processes: each would
    hold tomograms of its own.

    Parameters
    ----------
    pairs
        The tomograms. Each is read once at the beginning to find its scale and its valid starts.
    side
        Voxels per side of a cube.
    length
        Number of cubes the dataset counts, e.g. steps times batch size.
    memory
        Bytes that tomograms may take, those in use and the one that is being read together.
    stretch
        Cubes from one exchange to the next.
    seed
        Source of the draws.
    min_fraction
        Share of a cube's voxels that must lie inside the pair's mask, where it has one.
    mixed_voxel_sizes
        Accept tomograms whose voxel sizes differ.

    Attributes
    ----------
    n_held : int
        Places in memory at a time.

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
        pairs: Sequence[StoredTomogramPair],
        side: int,
        *,
        length: int,
        memory: int,
        stretch: int,
        seed: int = 0,
        min_fraction: float = 0.3,
        mixed_voxel_sizes: bool = False,
    ) -> None:
        self.pairs = tuple(pairs)
        if not self.pairs:
            raise ValueError("at least one pair of half tomograms is needed")
        if stretch < 1:
            raise ValueError(f"stretch must be at least one cube, got {stretch}")
        if not mixed_voxel_sizes:
            require_one_voxel_size(self.pairs)
        self.side, self.length, self.seed, self.stretch = int(side), int(length), int(seed), int(stretch)
        self.n_held = _places([pair.n_bytes for pair in self.pairs], memory)
        self._survey(min_fraction)
        self._ends = np.cumsum([starts.count for starts in self._starts])
        self._first = draw_integers(self.seed, range(1), 2**63, TOMOGRAMS)[0] * 2
        self._n_stretches = -(-self.length // self.stretch)
        self._held: dict[int, Tensor] = {}
        self._current: int | None = None
        self._ahead: _Reading | None = None
        self._warn_of_unvisited()

    @property
    def n_starts(self) -> int:
        return int(self._ends[-1])

    @property
    def example(self) -> Tensor:
        return self._example

    def batch(self, indices: range) -> tuple[Tensor, list[int]]:
        # One stretch after the other: what is drawn from the first must not keep its tomograms in memory.
        parts = [self._of_one_stretch(part) for part in self._by_stretch(indices)]
        cubes = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts])
        return cubes, [source for _, sources in parts for source in sources]

    def tenant(self, place: int) -> int:
        """The number of the tomogram that a place of the endless list belongs to."""
        # In whole numbers, which are the same everywhere.
        point = (self._first + place * _GOLDEN) % 2**64
        return int(np.searchsorted(self._ends, point * self.n_starts >> 64, side="right"))

    def close(self) -> None:
        """End the reading in the background; :meth:`batch` begins it again."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        # Whatever comes next is to look again for what should be read ahead.
        self._current = None

    def _by_stretch(self, indices: range) -> Iterator[range]:
        for stretch in range(indices.start // self.stretch, -(-indices.stop // self.stretch)):
            first, last = stretch * self.stretch, (stretch + 1) * self.stretch
            yield range(max(first, indices.start), min(last, indices.stop))

    def _of_one_stretch(self, indices: range) -> tuple[Tensor, list[int]]:
        stretch = indices.start // self.stretch
        if stretch != self._current:
            self._enter(stretch)
        cubes, sources = [], []
        for index, slot in zip(indices, draw_integers(self.seed, indices, self.n_held, SLOTS), strict=True):
            source = self.tenant(stretch + slot)
            starts = self._starts[source]
            (rank,) = draw_integers(self.seed, range(index, index + 1), starts.count, CUBES)
            cubes.append(cube_at(self._held[source], starts.locate(rank), self.side))
            sources.append(source)
        return torch.stack(cubes), sources

    def _survey(self, min_fraction: float) -> None:
        """Read every tomogram once, for its checks, scale and valid starts."""
        self._starts = []
        for number, pair in enumerate(self.pairs, 1):
            _log.info("reading tomogram %d of %d: %s", number, len(self.pairs), pair.name)
            loaded = pair.load()
            self._starts.append(ValidStarts(loaded, self.side, min_fraction))
            if number == 1:
                self._example = central_cube(loaded.volumes, self.side).clone()

    def _warn_of_unvisited(self) -> None:
        visited = {self.tenant(place) for place in range(self._n_stretches - 1 + self.n_held)}
        if len(visited) < len(self.pairs):
            warnings.warn(
                f"only {len(visited)} of {len(self.pairs)} tomograms will be visited in {self._n_stretches} stretches: "
                "train for more steps, shorten stretch, or allow more memory",
                stacklevel=3,
            )

    def _enter(self, stretch: int) -> None:
        """Have in memory what a stretch needs, and begin to read what the next one needs."""
        self._current = None
        needed = dict.fromkeys(self.tenant(stretch + slot) for slot in range(self.n_held))
        following = self.tenant(stretch + self.n_held) if stretch + 1 < self._n_stretches else None
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
        self._current = stretch

    def _read(self, source: int) -> Tensor:
        if self._ahead is not None and self._ahead.source == source:
            reading, self._ahead = self._ahead, None
            return reading.result()
        return _named(self.pairs[source], lambda: False)


def cubes_of(
    pairs: Sequence[TomogramPair | StoredTomogramPair],
    side: int,
    *,
    length: int,
    memory: int | None,
    stretch: int,
    seed: int = 0,
    min_fraction: float = 0.3,
    mixed_voxel_sizes: bool = False,
) -> SubtomogramDataset | SubtomogramPool:
    """Cubes of pairs that are all in memory, or take turns there if they do not fit into ``memory`` bytes."""
    stored = [pair for pair in pairs if isinstance(pair, StoredTomogramPair)]
    if memory is not None and len(stored) == len(pairs) and sum(pair.n_bytes for pair in stored) > memory:
        return SubtomogramPool(
            stored,
            side,
            length=length,
            memory=memory,
            stretch=stretch,
            seed=seed,
            min_fraction=min_fraction,
            mixed_voxel_sizes=mixed_voxel_sizes,
        )
    if not mixed_voxel_sizes:
        # Before they are read.
        require_one_voxel_size(pairs)
    return SubtomogramDataset(
        [pair.load() if isinstance(pair, StoredTomogramPair) else pair for pair in pairs],
        side,
        length=length,
        seed=seed,
        min_fraction=min_fraction,
        mixed_voxel_sizes=mixed_voxel_sizes,
    )


class _Reading:
    """A tomogram that is being read in a thread of its own."""

    def __init__(self, source: int, pair: StoredTomogramPair) -> None:
        self.source = source
        self._pair = pair
        self._stop = threading.Event()
        self._volumes: Tensor | None = None
        self._error: Exception | None = None
        # A daemon: the end of the program does not wait for a disk.
        self._thread = threading.Thread(target=self._run, name=f"reading {pair.name}", daemon=True)
        self._thread.start()

    def result(self) -> Tensor:
        """The volumes, or the error that reading them came to."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._volumes is not None
        return self._volumes

    def cancel(self) -> None:
        """Leave off, and wait until that is done."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._volumes = _named(self._pair, self._stop.is_set)
        except Exception as error:  # kept for who asks for the result
            self._error = error


def _named(pair: StoredTomogramPair, stopped: Callable[[], bool]) -> Tensor:
    """The volumes of a pair, or an error that names it."""
    try:
        return pair.read(stopped)
    except (OSError, ReadingStoppedError):
        raise
    except Exception as error:
        raise OSError(f"{pair.name} could not be read again: {str(error) or type(error).__name__}") from error


def _places(sizes: Sequence[int], memory: int) -> int:
    """How many tomograms fit besides the one that is read, whichever they are."""
    largest = sorted(sizes, reverse=True)
    n_held = sum(total <= memory for total in accumulate(largest)) - 1
    if n_held < 1 < len(largest):
        needed = sum(largest[:2])
        raise ValueError(
            f"tomograms may take {memory / 2**30:.3g} GiB of memory, but the two largest, one in use and one being "
            f"read, take {math.ceil(100 * needed / 2**30) / 100:g}: allow that much"
        )
    return max(n_held, 1)
