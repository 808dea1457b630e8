"""The voxels of a Zarr array, decoded where they are read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileFormatError
from .mapped import SLAB_BYTES, Array, Index
from .zarr_metadata import Level

# The package zarr decodes ten chunks at the same time by default, and holds four copies of each: packed, unpacked, and
# two in between. Its threads keep as much again for the next chunks, except for blocks of 32 MiB and more, which the
# allocator frees at once.
_AT_ONCE, _COPIES, _GIVEN_BACK = 10, 4, 1 << 25


@dataclass(frozen=True, eq=False)
class ZarrVoxels:
    """The voxels of a Zarr array, decoded where they are read.

    An object that is indexed like an array, by integers and slices without steps, and returns arrays ``(z, y, x)``.
    Every access decodes all chunks that it touches: :meth:`slabs` reads the whole volume and decodes each chunk once,
    and ``numpy.asarray`` keeps the result.

    Parameters
    ----------
    path
        The store.
    array
        The array, a :class:`zarr.Array`.
    level
        The folder of the array, and which of its axes are z, y and x. The other axes have length 1.
    permissive
        Read missing chunks as the fill value.
    """

    path: Path
    array: Any
    level: Level
    permissive: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        return self._reordered(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read, in native byte order."""
        stored: np.dtype[Any] = self.array.dtype
        return stored.newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Voxels of a chunk along (z, y, x), at most those of the volume."""
        z, y, x = (min(n, chunk) for n, chunk in zip(self.shape, self._reordered(self.array.chunks), strict=True))
        return z, y, x

    def bytes_to_read(self, box: tuple[int, int, int]) -> int:
        """Return the peak memory of decoding, without the result, while any box of these lengths is read."""
        along = zip(box, self._reordered(self.array.chunks), self.shape, strict=True)
        touched = math.prod(min(-(-(n - 1) // chunk) + 1, -(-length // chunk)) for n, chunk, length in along)
        # All requested chunks of a shard are read before the first is decoded.
        n_chunks = touched if self.array.shards else min(touched, _AT_ONCE)
        # A chunk at the end of an axis is stored with its full lengths.
        n_bytes = int(math.prod(self.array.chunks)) * self.dtype.itemsize
        return n_chunks * n_bytes * _COPIES * (1 if n_bytes >= _GIVEN_BACK else 2)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"{self.path}: the voxels are decoded from chunks, which copies them")
        whole: Array = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for place, block in self.slabs():
            whole[place] = block
        return whole

    def __getitem__(self, index: Any, /) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        if at := [k for k, part in enumerate(index) if part is Ellipsis]:
            index = index[: at[0]] + (slice(None),) * (4 - len(index)) + index[at[0] + 1 :]
        index += (slice(None),) * (3 - len(index))
        z, y, x = (_span(part, n) for part, n in zip(index, self.shape, strict=True))
        return self._read((z, y, x))[tuple(slice(None) if isinstance(part, slice) else 0 for part in index)]

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
        """Yield boxes of whole chunks of about ``n_bytes``, each with its place; errors as for :meth:`Volume.slabs`."""
        steps = list(self._reordered(self.array.chunks))
        for axis in (2, 1, 0):
            room = n_bytes // (math.prod(steps) * self.dtype.itemsize)
            steps[axis] = min(steps[axis] * max(1, room), self.shape[axis])
        for starts in product(*(range(0, n, step) for n, step in zip(self.shape, steps, strict=True))):
            z, y, x = (slice(a, min(a + step, n)) for a, step, n in zip(starts, steps, self.shape, strict=True))
            yield (z, y, x), self._read((z, y, x))

    def first_missing(self, box: Index) -> Path | None:
        """Return the file of the first missing chunk of a box, or None."""
        # Within a shard a lost chunk cannot be distinguished from one that was left out as empty.
        sizes = self.array.shards or self.array.chunks
        spans = [range(1)] * self.level.n_axes
        for axis, part in zip(self.level.axes, box, strict=True):
            spans[axis] = range(part.start // sizes[axis], -(-part.stop // sizes[axis]))
        for place in _grid(spans):
            chunk: Path = self.level.folder / self.array.metadata.encode_chunk_key(place)
            if not chunk.is_file():
                return chunk
        return None

    def _read(self, box: Index) -> Array:
        """Return a box of voxels, or raise an error that names the store."""
        # A chunk may be lost after the store was opened, and the package would return the fill value in its place.
        if not self.permissive and (missing := self.first_missing(box)) is not None:
            raise FileFormatError(f"{self.path}: the chunk {missing} is missing; copy the store again")
        selection: list[slice | int] = [0] * self.level.n_axes
        for axis, part in zip(self.level.axes, box, strict=True):
            selection[axis] = part
        try:
            block = np.asarray(self.array[tuple(selection)], self.dtype)
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            # Every codec has its own kinds of errors.
            raise FileFormatError(
                f"{self.path}: a chunk of {self.level.folder.name!r} is damaged ({error}); copy the store again"
            ) from error
        stored = sorted(self.level.axes)
        return block.transpose([stored.index(axis) for axis in self.level.axes])

    def _reordered(self, lengths: tuple[int, ...]) -> tuple[int, int, int]:
        """Reorder a per-axis value from array order to (z, y, x)."""
        z, y, x = (int(lengths[axis]) for axis in self.level.axes)
        return z, y, x


def _grid(spans: list[range]) -> Iterator[tuple[int, ...]]:
    """Yield the product of ranges without storing them, as itertools.product does: a file states their lengths."""
    if not spans:
        return iter([()])
    return ((first, *rest) for first in spans[0] for rest in _grid(spans[1:]))


def _span(part: Any, n: int) -> slice:
    """Return the slice of one axis that an integer or a slice without step names."""
    if isinstance(part, int | np.integer):
        place = int(part) + (n if part < 0 else 0)
        if not 0 <= place < n:
            raise IndexError(f"index {part} is out of bounds for an axis of {n} voxels")
        return slice(place, place + 1)
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise IndexError(f"voxels of a Zarr store are read by integers and slices without steps, got {part}")
    start, stop, _ = part.indices(n)
    return slice(start, max(start, stop))
