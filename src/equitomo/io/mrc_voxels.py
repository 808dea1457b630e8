"""The voxels of an MRC file, read where they are needed."""

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from .mapped import SLAB_BYTES, Array, Index
from .unpacking import is_packed, open_unpacked


@dataclass(frozen=True, eq=False)
class MrcVoxels:
    """The voxels of an MRC file, which is opened only while they are read.

    Parameters
    ----------
    path
        The file.
    head
        The first bytes of the file. If they have changed when the file is opened again, another file has replaced it.
    offset
        The number of bytes before the first voxel.
    stored_shape, stored_dtype
        The numbers of sections, rows and columns, and the type of the voxels, as they are stored.
    order
        The stored axes that are z, y and x.
    """

    path: Path
    head: bytes
    offset: int
    stored_shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = (self.stored_shape[axis] for axis in self.order)
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read, in native byte order."""
        return self.stored_dtype.newbyteorder("=")

    @cached_property
    def array(self) -> Array:
        """The voxels ``(z, y, x)`` as an array, which is made at the first access.

        It is a read-only map of the file; or a copy in memory if the file is packed, has the other byte order, or has
        an extended header of odd length.
        """
        with self._opened() as file:
            if not is_packed(file) and self.stored_dtype.isnative and self.offset % self.stored_dtype.itemsize == 0:
                end = self.offset + math.prod(self.stored_shape) * self.stored_dtype.itemsize
                if os.fstat(file.fileno()).st_size < end:
                    raise self._shortened(end)
                stored = np.memmap(cast(Any, file), self.stored_dtype, "r", self.offset, self.stored_shape)
                return stored.transpose(self.order)
        return self.read()

    @property
    def mapped(self) -> Array | None:
        """The map of the file or the copy in memory, or None before the first access to :attr:`array`."""
        return self.__dict__.get("array")

    def read(self) -> Array:
        """Return all voxels in a new array."""
        whole = np.empty(self.shape, self.dtype)
        for place, block in self.slabs():
            whole[place] = block
        return whole

    def __getitem__(self, index: Any, /) -> Array:
        block: Array = self.array[index]
        return block

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
        """Yield pieces of about ``n_bytes``, each with its place in the volume, in the order of the file.

        A piece must be copied before the next one is asked for, because all use the same memory. Errors are raised as
        by :meth:`equitomo.io.Volume.slabs`.
        """
        # Large reads suit disks and networks, and a fault of the disk raises an error here; in a map of the file it
        # would kill the process.
        n_sections, *section = self.stored_shape
        section_bytes = math.prod(section) * self.stored_dtype.itemsize
        step = min(max(1, n_bytes // section_bytes), n_sections)
        with self._opened() as file:
            buffer = memoryview(bytearray(step * section_bytes))
            for start in range(0, n_sections, step):
                stop = min(start + step, n_sections)
                piece = buffer[: (stop - start) * section_bytes]
                if file.readinto(piece) < len(piece):  # type: ignore[attr-defined]
                    raise self._shortened(self.offset + stop * section_bytes)
                block: Array = np.frombuffer(piece, self.stored_dtype).reshape(stop - start, *section)
                place = [slice(0, n) for n in self.shape]
                place[self.order.index(0)] = slice(start, stop)
                yield (place[0], place[1], place[2]), block.transpose(self.order)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the file at its first voxel."""
        with open_unpacked(self.path) as file:
            if file.read(len(self.head)) != self.head:
                raise OSError(errno.EIO, "was replaced by another file after it was opened", str(self.path))
            file.seek(self.offset)
            yield file

    def _shortened(self, end: int) -> OSError:
        """Return the error for a file that ends too early."""
        remedy = f"ends before byte {end}: it was cut or replaced after it was opened; copy it again"
        return OSError(errno.EIO, remedy, str(self.path))
