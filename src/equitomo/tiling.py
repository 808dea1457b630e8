"""Tiles that cover a volume of any size, and the weights with which they are joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
Border = Literal["reflect", "zero"]


@dataclass(frozen=True)
class Tiling:
    r"""Overlapping tiles over a volume, each with a margin that is computed and discarded.

    A tile reads ``tile`` voxels per axis, padded beyond the faces of the volume, and writes its core, which is the tile
    without the margin. Tiles begin at multiples of ``stride``, so that pooling combines the same voxels in every tile.
    Cores are blended linearly where they overlap, and the weights of all tiles add up to one at every voxel (a
    partition of unity).

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the volume.
    tile
        Voxels of a tile along each axis, or one number for all axes; multiples of ``stride``.
    margin
        Number of voxels that are discarded at every face of a tile, less than half of the tile.
    stride
        The stride of the network, as in :attr:`equitomo.ScaleEquivariantUNet3D.stride`.
    blend
        Minimum number of voxels over which neighbouring cores overlap.
    border
        What the volume is padded with: its reflection, or zeros as in the reference program.

    Raises
    ------
    ValueError
        If the tile is not a multiple of the stride, or is too small for a core.

    Examples
    --------
    >>> tiling = Tiling((40, 50, 33), tile=32, margin=8, stride=8)
    >>> len(tiling)
    36
    >>> total = np.zeros((40, 50, 33))
    >>> for placement in tiling:
    ...     total[placement.target] += placement.weight
    >>> bool(np.allclose(total, 1))
    True
    """

    shape: tuple[int, int, int]
    tile: int | tuple[int, int, int]
    margin: int
    stride: int = 1
    blend: int = 0
    border: Border = "reflect"

    def __post_init__(self) -> None:
        tile = self.tile if isinstance(self.tile, tuple) else (self.tile,) * 3
        object.__setattr__(self, "tile", tile)
        if min(self.shape) < 1 or self.stride < 1 or self.margin < 0 or self.blend < 0:
            raise ValueError("`shape` and `stride` must be positive, `margin` and `blend` zero or more")
        for axis, length in enumerate(tile):
            if length % self.stride:
                below = length // self.stride * self.stride
                fitting = f"{below} or {below + self.stride}" if below else f"{self.stride}"
                raise ValueError(
                    f"a tile must be a multiple of the network's stride {self.stride}, got {length}: use {fitting}"
                )
            # A tile that covers its axis and both margins has no neighbour to overlap with.
            alone = length - self._first() - self.margin >= self.shape[axis]
            if not alone and length - 2 * self.margin - self.blend < self.stride:
                raise ValueError(
                    f"a tile of {length} voxels with margins of {self.margin} and a blend of {self.blend} leaves no "
                    f"core of {self.stride} voxels: use a larger tile or a smaller margin"
                )

    def __len__(self) -> int:
        return int(np.prod([len(self._origins(axis)) for axis in range(3)]))

    def __iter__(self) -> Iterator[Placement]:
        axes = [self._axis_placements(axis) for axis in range(3)]
        for parts in itertools.product(*axes):
            (rz, tz, cz, wz), (ry, ty, cy, wy), (rx, tx, cx, wx) = parts
            weight = wz[:, None, None] * wy[None, :, None] * wx[None, None, :]
            yield Placement((rz, ry, rx), (tz, ty, tx), (cz, cy, cx), weight)

    def _origins(self, axis: int) -> list[int]:
        """Return the ascending indices at which the tiles begin; the first is zero or negative."""
        length, tile = self.shape[axis], self._tile(axis)
        step = (tile - 2 * self.margin - self.blend) // self.stride * self.stride
        origins = [-self._first()]
        while origins[-1] + tile - self.margin < length:
            origins.append(origins[-1] + step)
        return origins

    def _axis_placements(self, axis: int) -> list[tuple[NDArray[np.intp], slice, slice, NDArray[np.float32]]]:
        """Return source, target, core and weight along one axis for every tile."""
        length, tile = self.shape[axis], self._tile(axis)
        origins = self._origins(axis)
        weights = np.stack([_core_weight(o, tile, self.margin, self.blend, length) for o in origins])
        weights /= weights.sum(axis=0)
        placements = []
        for origin, weight in zip(origins, weights, strict=True):
            start, stop = max(origin + self.margin, 0), min(origin + tile - self.margin, length)
            index = np.arange(origin, origin + tile)
            outside = (index < 0) | (index >= length)
            placements.append(
                (
                    reflected(index, length) if self.border == "reflect" else np.where(outside, -1, index),
                    slice(start, stop),
                    slice(start - origin, stop - origin),
                    weight[start:stop].astype(np.float32),
                )
            )
        return placements

    def _first(self) -> int:
        """Return the number of voxels by which the first tile begins before the volume."""
        return -(-self.margin // self.stride) * self.stride

    def _tile(self, axis: int) -> int:
        """Return the voxels of a tile along an axis."""
        assert isinstance(self.tile, tuple)
        return self.tile[axis]


class _Sliceable(Protocol):
    """An array, or an object that returns float32 arrays where it is sliced."""

    def __getitem__(self, index: Any, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Placement:
    """One tile of a volume.

    Parameters
    ----------
    source
        The indices of the voxels that the tile reads along each axis; -1 stands for a zero.
    target
        The part of the volume to which the core is written.
    core
        The part of the tile that is the core.
    weight
        The weights of the core's voxels in the volume.
    """

    source: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    target: Box
    core: Box
    weight: NDArray[np.float32]

    def read(self, volume: _Sliceable) -> NDArray[np.float32]:
        """Return the tile's voxels."""
        if all(bool((np.diff(index) == 1).all()) and index[0] >= 0 for index in self.source):
            z, y, x = (slice(int(index[0]), int(index[-1]) + 1) for index in self.source)
            # Copying a box is many times faster than reading a memory map by lists of indices.
            return np.ascontiguousarray(volume[z, y, x])
        # The box of all needed voxels is read in the same way, and reflected in memory.
        starts = [int(index[index >= 0].min()) for index in self.source]
        z, y, x = (slice(start, int(index.max()) + 1) for start, index in zip(starts, self.source, strict=True))
        places = (np.maximum(index - start, 0) for start, index in zip(starts, self.source, strict=True))
        tile: NDArray[np.float32] = volume[z, y, x][np.ix_(*places)]
        for axis, index in enumerate(self.source):
            tile.swapaxes(0, axis)[index < 0] = 0
        return tile


def shortest_tile(length: int, tile: int, margin: int, stride: int = 1, blend: int = 0) -> int:
    """Return the shortest tile that covers an axis with no more tiles than one of ``tile`` voxels does.

    Examples
    --------
    >>> shortest_tile(256, 160, 18, stride=8)
    128
    """

    def count(n: int) -> int:
        return len(Tiling((length,) * 3, n, margin, stride, blend)._origins(0))

    shortest = tile
    while shortest > stride:
        try:
            if count(shortest - stride) > count(tile):
                break
        except ValueError:
            break
        shortest -= stride
    return shortest


def reflected(index: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Return indices within an axis, reflected about the outermost voxels where they lie beyond its ends.

    Examples
    --------
    >>> reflected(np.arange(-3, 7), 4).tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    """
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = index % period
    return np.minimum(index, period - index)


def _core_weight(origin: int, tile: int, margin: int, blend: int, length: int) -> NDArray[np.float64]:
    """Return a weight along the axis that rises and falls over ``blend`` voxels and is zero outside the core."""
    position = np.arange(length)
    rise = position - (origin + margin) + 1
    fall = (origin + tile - margin) - position
    return np.clip(np.minimum(rise, fall) / (blend + 1), 0, 1)
