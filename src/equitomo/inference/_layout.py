"""Where the tiles of a volume lie, and how large they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import psutil
import torch
from torch import nn

from equitomo.tiling import Border, Placement, Tiling, shortest_tile
from equitomo.volumes import Shape

# Smaller tiles are mostly margin. Larger ones gain little, and the host holds several copies of one.
_SMALLEST, _LARGEST, _LEAST_CORE = 112, 240, 64
# For a network that does not state its memory by an attribute `maps_at_once`.
_USUAL = 128
# Shares of the total memory of a device. A share of the free memory would give another result tomorrow.
_OF_GPU, _OF_HOST = 4, 8
# More small tiles in one network call gain nothing, and touch more rows of a file than there is memory for.
_MOST_SMALL = 64


@dataclass(frozen=True)
class TileLayout:
    """The placement of large tiles, and of the small ones in which a local wedge is emptied, for volumes of any shape.

    The fields are those arguments of :class:`~equitomo.TiledPredictor` that concern tiles.
    """

    tile: int
    margin: int
    blend: int
    batch: int
    stride: int
    border: Border
    local_tile: int
    # Whether tiles may be shorter if just as many of them cover the volume.
    shortened: bool
    # Whether every tile has exactly the side `tile`, however small the volume is.
    exact: bool

    @property
    def aligned_margin(self) -> int:
        """The margin, rounded up to a multiple of the stride."""
        return _rounded_up(self.margin, self.stride)

    @property
    def small_batch(self) -> int:
        """The number of small tiles in one network call; with their padding they are no larger than the large ones."""
        return self.batch * min(max(1, self.tile // (2 * self.local_tile)) ** 3, _MOST_SMALL)

    def large(self, shape: Shape) -> Tiling:
        """Return the tiling of the first pass, and of every pass of which the whole volume is the input."""
        lengths = [self._length(n) for n in shape]
        return Tiling(shape, (lengths[0], lengths[1], lengths[2]), self.margin, self.stride, self.blend, self.border)

    def small(self, shape: Shape) -> Tiling:
        """Return the tiling within which a local wedge is emptied."""
        side = self.local_tile
        return Tiling(shape, side, side // 8, self.stride, side // 4, self.border)

    def _length(self, n: int) -> int:
        if self.exact:
            return self.tile
        # A tile is no longer than one that holds the whole axis and both margins.
        length = min(self.tile, _rounded_up(self.aligned_margin + n + self.margin, self.stride))
        return shortest_tile(n, length, self.margin, self.stride, self.blend) if self.shortened else length


def suitable_tile(network: nn.Module, device: torch.device, dtype: torch.dtype, stride: int, margin: int) -> int:
    """Return the side of the largest tile, from 112 to 240 voxels, that the memory of a device holds comfortably.

    It is larger only where wide margins would leave less than 64 voxels of it.
    """
    maps = getattr(network, "maps_at_once", None)
    side = _USUAL if maps is None else int((_budget(device) / (maps * dtype.itemsize)) ** (1 / 3))
    side = max(min(side, _LARGEST), _SMALLEST) // stride * stride
    return max(side, _rounded_up(2 * margin + _LEAST_CORE, stride))


def tile_shape(tiling: Tiling) -> Shape:
    """Return the voxels ``(z, y, x)`` of a tile."""
    return cast(Shape, tiling.tile)


def in_batches(tiling: Tiling, size: int) -> Iterator[list[Placement]]:
    """Yield the tiles of a volume in lists of ``size``; the last one may be shorter."""
    batch: list[Placement] = []
    for placement in tiling:
        batch.append(placement)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // _OF_GPU
    return int(psutil.virtual_memory().total) // _OF_HOST


def _rounded_up(n: int, stride: int) -> int:
    return -(-n // stride) * stride
