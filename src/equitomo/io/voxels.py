"""The voxels of a file, read piece by piece."""

import errno
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .mapped import release
from .mrc_header import Array
from .opening import open_regular
from .packing import packer_of, unpacked

Index = tuple[slice, slice, slice]
# Small enough for the allocator to use one block again and again: fresh memory costs more than reading.
SLAB_BYTES = 1 << 22


def slabs_of(volume: Any, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
    """Yield pieces of about ``n_bytes`` of an array ``(z, y, x)``, each with its place, in the order of the memory.

    What is no array but is sliced like one is cut along z. The memory of a map is given back after each piece.
    """
    axis = int(np.argmax(np.abs(getattr(volume, "strides", (1, 0, 0)))))
    n = volume.shape[axis]
    step = max(1, n_bytes // max(1, math.prod(volume.shape) // max(1, n) * volume.dtype.itemsize))
    for start in range(0, n, step):
        place = [slice(0, length) for length in volume.shape]
        place[axis] = slice(start, min(start + step, n))
        index = (place[0], place[1], place[2])
        yield index, volume[index]
        release(volume)


@dataclass(frozen=True)
class StoredVoxels(ABC):
    """Where the voxels of a volume stand in its file.

    Read in large pieces, as disks and networks like it best, and with an error where something is wrong with the file:
    through a memory map the program would be killed. The file is not kept open.

    Parameters
    ----------
    path
        The file.
    fill
        What stands for voxels that are NaN or infinite; ``None`` leaves them.
    """

    path: Path
    fill: float | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
        """Pieces of about ``n_bytes`` in the order of the file, each with its place in the volume ``(z, y, x)``.

        A piece is to be copied: its memory may be used again for the next one.

        Raises
        ------
        OSError
            If the file is gone, cannot be read to the end, or has become shorter.
        FileFormatError
            If a packed file or a chunk is damaged.
        """
        for place, block in self._pieces(n_bytes):
            if self.fill is not None:
                block = np.where(np.isfinite(block), block, np.float32(self.fill))
            yield place, block

    @abstractmethod
    def _pieces(self, n_bytes: int) -> Iterator[tuple[Index, Array]]:
        """The same, as they stand in the file."""


@dataclass(frozen=True)
class MrcVoxels(StoredVoxels):
    """The voxels of an MRC file, read from front to back.

    Parameters
    ----------
    dtype
        Numbers as stored, in the byte order of the file.
    stored_shape
        Sections, rows and columns as stored.
    skip
        Bytes before the first voxel.
    order
        Which of the stored axes are z, y and x.
    """

    dtype: np.dtype[Any]
    stored_shape: tuple[int, ...]
    skip: int
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        z, y, x = (self.stored_shape[axis] for axis in self.order)
        return z, y, x

    def _pieces(self, n_bytes: int) -> Iterator[tuple[Index, Array]]:
        """A few sections at a time, all in the same memory."""
        n_sections, *section = self.stored_shape
        section_bytes = math.prod(section) * self.dtype.itemsize
        step = max(1, n_bytes // section_bytes)
        with open_regular(self.path, "an MRC file") as file:
            packer = packer_of(file)
            content = memoryview(unpacked(self.path, file, packer)) if packer else None
            buffer = memoryview(bytearray(0 if packer else min(step, n_sections) * section_bytes))
            file.seek(self.skip)
            for start in range(0, n_sections, step):
                stop = min(start + step, n_sections)
                first, last = (self.skip + n * section_bytes for n in (start, stop))
                if content is None:
                    self._fill(buffer[: last - first], file, last)
                piece = buffer[: last - first] if content is None else content[first:last]
                block: Array = np.frombuffer(piece, self.dtype).reshape(stop - start, *section)
                places = [slice(None)] * 3
                places[self.order.index(0)] = slice(start, stop)
                yield (places[0], places[1], places[2]), block.transpose(self.order)

    def _fill(self, buffer: memoryview, file: BinaryIO, last: int) -> None:
        """The next bytes of the file, up to byte ``last``."""
        try:
            n_read = file.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as error:
            raise type(error)(error.errno, f"cannot be read: {error.strerror}", str(self.path)) from error
        if n_read < len(buffer):
            remedy = f"ends before byte {last}: it was cut or replaced after it was opened; copy it again"
            raise OSError(errno.EIO, remedy, str(self.path))
