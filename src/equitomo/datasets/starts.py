"""Where cubes may be cut from a volume."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from equitomo.datasets.pair import TomogramPair


class ValidStarts:
    """The valid starts of one volume, in (z, y, x) order, found by rank.

    Without a mask only the shape is kept, with one a bit per start: 1/64 of what the pair weighs.
    """

    def __init__(self, pair: TomogramPair, side: int, min_fraction: float) -> None:
        if side < 1 or side > min(pair.shape):
            raise ValueError(
                f"cubes of {side} voxels do not fit into {pair.name} of {pair.shape} (z, y, x): "
                f"the largest side that does is {min(pair.shape)}"
            )
        self._shape = tuple(n - side + 1 for n in pair.shape)
        # Rows of bits, and the number of starts up to the end of each row.
        self._rows: NDArray[np.uint8] | None = None
        self._row_ends: NDArray[np.int64] | None = None
        if pair.mask is not None:
            self._rows, self._row_ends = _table(pair, side, min_fraction)
        self.count = int(math.prod(self._shape) if self._row_ends is None else self._row_ends[-1])

    def locate(self, rank: int) -> tuple[int, int, int]:
        """The start of a rank below ``count``."""
        if self._rows is None or self._row_ends is None:
            start = np.unravel_index(rank, self._shape)
            return int(start[0]), int(start[1]), int(start[2])
        row = int(np.searchsorted(self._row_ends, rank, side="right"))
        before = int(self._row_ends[row - 1]) if row else 0
        z, y = divmod(row, self._shape[1])
        return z, y, int(np.flatnonzero(np.unpackbits(self._rows[row]))[rank - before])


def _table(pair: TomogramPair, side: int, min_fraction: float) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    assert pair.mask is not None
    rows, counts, fullest = [], [], 0
    for inside in _box_sums(pair.mask.cpu().numpy(), side):
        valid = inside >= min_fraction * side**3
        rows.append(np.packbits(valid, axis=1))
        counts.append(valid.sum(axis=1))
        fullest = max(fullest, int(inside.max()))
    ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
    if not ends[-1]:
        # Rounded down: what the message names must do.
        share = math.floor(1e6 * fullest / side**3) / 1e6
        raise ValueError(
            f"no cube of {side} voxels in {pair.name} holds a share of {min_fraction:g} of specimen by its mask, the "
            f"fullest one holds {share:.6f}: lower min_fraction (min_specimen) to at most that, or widen the mask"
        )
    return np.concatenate(rows), ends


def _box_sums(mask: NDArray[np.bool_], side: int) -> Iterator[NDArray[np.int32]]:
    """Number of voxels inside the mask for the cubes at each (y, x), one z after the other."""
    _, height, width = mask.shape
    total = np.zeros((height - side + 1, width - side + 1), np.int32)
    for z, plane in enumerate(mask):
        total += _square_sums(plane, side)
        if z >= side - 1:
            yield total
            # Computed once more: planes to remember would weigh more than the mask.
            total -= _square_sums(mask[z - side + 1], side)


def _square_sums(plane: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Number of voxels inside for each square of a plane, from differences of running sums."""
    running = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1), np.int32)
    running[1:, 1:] = plane.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    sums: NDArray[np.int32] = running[side:, side:] - running[:-side, side:] - running[side:, :-side]
    sums += running[:-side, :-side]
    return sums
