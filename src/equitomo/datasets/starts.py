"""The places where cubes may be cut from a volume."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equitomo.volumes import Shape

# For each axis, which starts are barred.
Barred = tuple[NDArray[np.bool_], ...]


class ValidStarts:
    """The places in one volume where a cube with enough specimen begins, numbered in (z, y, x) order.

    At least the share ``min_fraction`` of a cube's voxels must lie inside the mask; without a mask every place is valid
    and only the shape is kept. With a mask one bit per start is kept, 1/64 of the memory of a pair. Starts that are
    ``barred`` along all three axes are not valid.
    """

    def __init__(
        self,
        shape: Shape,
        mask: Tensor | None,
        cube: Shape,
        min_fraction: float,
        name: str,
        barred: Barred | None = None,
    ) -> None:
        self._shape = tuple(n - side + 1 for n, side in zip(shape, cube, strict=True))
        # Rows of bits, and the number of starts up to the end of each row.
        self._rows: NDArray[np.uint8] | None = None
        self._row_ends: NDArray[np.int64] | None = None
        if mask is not None or barred is not None:
            # Every voxel is specimen to the table if there is no mask.
            inside = np.broadcast_to(np.True_, shape) if mask is None else mask.cpu().numpy()
            self._rows, self._row_ends = _table(inside, cube, min_fraction, name, barred)
        self.count = int(math.prod(self._shape) if self._row_ends is None else self._row_ends[-1])

    def locate(self, rank: int) -> Shape:
        """Return the start with the number ``rank``, from 0 to ``count - 1``."""
        if self._rows is None or self._row_ends is None:
            start = np.unravel_index(rank, self._shape)
            return int(start[0]), int(start[1]), int(start[2])
        row = int(np.searchsorted(self._row_ends, rank, side="right"))
        before = int(self._row_ends[row - 1]) if row else 0
        z, y = divmod(row, self._shape[1])
        return z, y, int(np.flatnonzero(np.unpackbits(self._rows[row]))[rank - before])


def require_fit(shape: Shape, cube: Shape, name: str) -> None:
    """Refuse cubes that are larger than a volume, or empty."""
    if any(not 1 <= side <= n for side, n in zip(cube, shape, strict=True)):
        most = f"the largest side that does is {min(shape)}" if _is_cube(cube) else f"sides up to {shape} do"
        raise ValueError(f"cubes of {_sides(cube)} voxels do not fit into {name} of {shape} (z, y, x): {most}")


def _is_cube(cube: Shape) -> bool:
    return len(set(cube)) == 1


def _sides(cube: Shape) -> str:
    return str(cube[0]) if _is_cube(cube) else str(cube)


def _table(
    mask: NDArray[np.bool_], cube: Shape, min_fraction: float, name: str, barred: Barred | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the rows of bits that are set at valid starts, and the number of starts up to the end of each row."""
    rows, counts, fullest, n_voxels = [], [], 0, math.prod(cube)
    for z, inside in enumerate(_box_sums(mask, cube)):
        valid = inside >= min_fraction * n_voxels
        if barred is not None and barred[0][z]:
            valid &= ~(barred[1][:, None] & barred[2])
        rows.append(np.packbits(valid, axis=1))
        counts.append(valid.sum(axis=1))
        fullest = max(fullest, int(inside.max()))
    ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
    if not ends[-1] and fullest >= min_fraction * n_voxels:
        raise ValueError(
            f"every cube of {_sides(cube)} voxels in {name} with enough specimen overlaps the block that is held out: "
            "lower `held_out` or `side`"
        )
    if not ends[-1]:
        # Rounded down, so that the share in the message is one that works.
        share = math.floor(1e6 * fullest / n_voxels) / 1e6
        raise ValueError(
            f"no cube of {_sides(cube)} voxels in {name} holds a share of {min_fraction:g} of specimen by its mask, "
            f"the fullest one holds {share:.6f}: lower `min_specimen` (`min_fraction` of a dataset) to at most that, "
            "or widen the mask"
        )
    return np.concatenate(rows), ends


def _box_sums(mask: NDArray[np.bool_], cube: Shape) -> Iterator[NDArray[np.int32]]:
    """Yield the number of voxels inside the mask for the cubes at each (y, x), one z after the other."""
    _, height, width = mask.shape
    depth, *sides = cube
    total = np.zeros((height - sides[0] + 1, width - sides[1] + 1), np.int32)
    for z, plane in enumerate(mask):
        total += _rectangle_sums(plane, *sides)
        if z >= depth - 1:
            yield total
            # Computed again: the planes to be remembered would take more memory than the mask.
            total -= _rectangle_sums(mask[z - depth + 1], *sides)


def _rectangle_sums(plane: NDArray[np.bool_], height: int, width: int) -> NDArray[np.int32]:
    """Return the number of voxels inside for each rectangle of a plane, from differences of running sums."""
    running = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1), np.int32)
    running[1:, 1:] = plane.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    sums: NDArray[np.int32] = running[height:, width:] - running[:-height, width:] - running[height:, :-width]
    sums += running[:-height, :-width]
    return sums
