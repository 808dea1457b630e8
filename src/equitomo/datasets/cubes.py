"""Cubes cut at random from pairs of half tomograms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from equitomo._draws import CUBES, draw_integers
from equitomo.datasets.pair import TomogramPair


class SubtomogramDataset(Dataset[dict[str, Tensor]]):
    """Cubes of both halves, drawn uniformly over all places where enough specimen is.

    Item ``k`` depends on the seed and ``k`` alone: workers, ranks and resumed runs see the cubes they would
    have seen. Several tomograms are drawn from in proportion to their valid starts. As items are dicts with
    the key ``"y"``, the dataset serves :class:`deepinv.Trainer` as it is.

    Parameters
    ----------
    pairs
        One pair or several.
    side
        Voxels per side of a cube.
    length
        Number of cubes the dataset counts, e.g. steps times batch size.
    seed
        Source of the draws.
    min_fraction
        Share of a cube's voxels that must lie inside the pair's mask, where it has one. 0.3 is
        DeepDeWedge's default (:cite:t:`wiedemann2024deep`).

    Raises
    ------
    ValueError
        If a volume is smaller than the cube (the largest side that fits is named), or no cube holds enough
        specimen (the largest fraction that one holds is named).

    Examples
    --------
    >>> pair = TomogramPair(*torch.randn(2, 16, 20, 24) + torch.randn(16, 20, 24), (-60.0, 60.0))
    >>> dataset = SubtomogramDataset(pair, 16, length=100)
    >>> dataset[0]["y"].shape, dataset.n_starts
    (torch.Size([2, 16, 16, 16]), 45)
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        side: int,
        *,
        length: int,
        seed: int = 0,
        min_fraction: float = 0.3,
    ) -> None:
        self.pairs = (pairs,) if isinstance(pairs, TomogramPair) else tuple(pairs)
        if not self.pairs:
            raise ValueError("at least one pair of half tomograms is needed")
        self.side, self.length, self.seed = int(side), int(length), int(seed)
        self._starts = [_Starts(pair, self.side, min_fraction) for pair in self.pairs]
        self._ends = np.cumsum([starts.count for starts in self._starts])

    @property
    def n_starts(self) -> int:
        """Number of different cubes that can be drawn."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The cube of both halves, ``{"y": (2, side, side, side)}``."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        return {"y": self.batch(range(index, index + 1))[0][0]}

    def batch(self, indices: range) -> tuple[Tensor, list[int]]:
        """The items ``indices`` as one tensor ``(len(indices), 2, side, side, side)``.

        Returns
        -------
        tuple
            The cubes, on the device of the volumes, and for each the number of the pair it was cut from.
        """
        ranks = draw_integers(self.seed, indices, self.n_starts, CUBES)
        cubes, sources = [], []
        for rank in ranks:
            source = int(np.searchsorted(self._ends, rank, side="right"))
            before = int(self._ends[source - 1]) if source else 0
            z, y, x = (slice(o, o + self.side) for o in self._starts[source].locate(rank - before))
            cubes.append(self.pairs[source].volumes[:, z, y, x])
            sources.append(source)
        return torch.stack(cubes), sources


class _Starts:
    """The valid starts of one volume, in (z, y, x) order, found by rank."""

    def __init__(self, pair: TomogramPair, side: int, min_fraction: float) -> None:
        if side < 1 or side > min(pair.shape):
            raise ValueError(
                f"cubes of {side} voxels do not fit into {pair.name} of {pair.shape} (z, y, x): "
                f"the largest side that does is {min(pair.shape)}"
            )
        self._shape = tuple(n - side + 1 for n in pair.shape)
        # Without a mask every start is valid and the table is not needed.
        self._valid = None if pair.mask is None else _valid_starts(pair, side, min_fraction)
        # Ranks are found by row, then within the row: a table of one number per start would weigh more
        # than the volume.
        self._row_ends = None if self._valid is None else np.cumsum(self._valid.sum(axis=2).ravel())
        self.count = int(np.prod(self._shape) if self._row_ends is None else self._row_ends[-1])

    def locate(self, rank: int) -> tuple[int, int, int]:
        if self._valid is None or self._row_ends is None:
            start = np.unravel_index(rank, self._shape)
            return int(start[0]), int(start[1]), int(start[2])
        row = int(np.searchsorted(self._row_ends, rank, side="right"))
        before = int(self._row_ends[row - 1]) if row else 0
        z, y = divmod(row, int(self._shape[1]))
        return z, y, int(np.flatnonzero(self._valid[z, y])[rank - before])


def _valid_starts(pair: TomogramPair, side: int, min_fraction: float) -> NDArray[np.bool_]:
    assert pair.mask is not None
    inside = _box_sums(pair.mask.cpu().numpy(), side)
    valid: NDArray[np.bool_] = inside >= min_fraction * side**3
    if not valid.any():
        # Rounded down: what the message names must do.
        fullest = math.floor(1e6 * inside.max() / side**3) / 1e6
        raise ValueError(
            f"no cube of {side} voxels in {pair.name} holds a share of {min_fraction:g} of specimen by its mask, the "
            f"fullest one holds {fullest:.6f}: lower min_fraction (min_specimen) to at most that, or widen the mask"
        )
    return valid


def _box_sums(mask: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Number of voxels inside the mask, for the cube at each start."""
    sums = mask.astype(np.int32)
    for axis in range(3):
        # Differences of running sums, one axis after the other.
        running = np.cumsum(sums, axis=axis, dtype=np.int32)
        running = np.insert(running, 0, 0, axis=axis)
        count = running.shape[axis]
        upper = np.take(running, range(side, count), axis=axis)
        sums = upper - np.take(running, range(count - side), axis=axis)
    return sums
