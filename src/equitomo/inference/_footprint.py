"""What a prediction takes, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

Shape = tuple[int, int, int]

# Copies of a batch of tiles, of one tile, and of a tile's padded grid that are held at once. Of grids there are five;
# how the allocator joins the pieces differs from run to run, by more than twice, and once took more than five.
_BATCHES, _TILES, _GRIDS = 4, 6, 7
# What the system maps at both sides of a row that is read.
_MAPPED_AROUND = 2 << 16
# Memory that was freed in pieces of a tile's size is neither given back at once nor always of use for the next pieces.
_FRAGMENTATION = 2


@dataclass(frozen=True)
class Footprint:
    """What a prediction takes beyond the program itself and what the network computes with.

    Parameters
    ----------
    memory
        Bytes of the host's memory at the peak.
    disk
        Bytes of intermediate files at the peak.
    """

    memory: int
    disk: int

    def __str__(self) -> str:
        return f"{self.memory / 2**30:.2f} GiB of memory and {self.disk / 2**30:.2f} GiB of intermediate files"

    @classmethod
    def of(cls, arrays: int, mapped: int, kept: int, shape: Shape, streamed: bool) -> Self:
        """From the bytes of passing arrays, of mapped pages, and of what is kept between the passes."""
        memory = _FRAGMENTATION * arrays
        return cls(memory + mapped, kept) if streamed else cls(memory + 4 * math.prod(shape) + kept, 0)


def tile_bytes(shape: Shape, tile: Shape, batch: int, n_sources: int) -> tuple[int, int]:
    """Of the arrays that a batch of tiles passes through, and of the pages of files that it touches."""
    arrays = 4 * math.prod(tile) * (_BATCHES * batch + _TILES)
    # All rows of the sections that the tiles lie in, in each source and in the target.
    touched = batch * tile[0] * (4 * min(tile[1], shape[1]) * shape[2] + _MAPPED_AROUND)
    return arrays, (n_sources + 1) * min(touched, 4 * math.prod(shape) + _MAPPED_AROUND)


def transform_bytes(grid: Shape, batch: int) -> int:
    """Of the transforms of a batch of tiles within their padded grid."""
    return 4 * math.prod(grid) * _GRIDS * batch
