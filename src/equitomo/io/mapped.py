"""Arrays in memory and in maps of files, for volumes that are larger than the memory."""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Index = tuple[slice, slice, slice]
# The allocator reuses blocks of this size, and getting new memory takes longer than reading.
SLAB_BYTES = 1 << 22


def slabs_of(volume: Any, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
    """Yield pieces of about ``n_bytes`` of an array ``(z, y, x)``, each with its place, in the order of the memory.

    An object without strides that is sliced like an array is cut along z. The memory of a map is released after each
    piece.
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


def scratch_array(folder: str | Path | None, shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
    """Return an array of zeros in a file without a name, or in memory.

    Parameters
    ----------
    folder
        The folder of the file; ``None`` uses memory. The space on the disk is allocated at once. It is freed when the
        array is no longer used or the process ends, even if it is killed.
    shape, dtype
        Shape and type of the array.

    Raises
    ------
    OSError
        If the folder is missing, not writable or too full.

    Examples
    --------
    >>> array = scratch_array(getfixture("tmp_path"), (2, 3, 4))
    >>> array[1] += 1
    >>> float(array.sum()), list(getfixture("tmp_path").iterdir())
    (12.0, [])
    """
    if folder is None:
        return np.zeros(shape, dtype)
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file, n_bytes)
            # The map keeps a descriptor of its own.
            return np.memmap(file, dtype, "r+", 0, tuple(shape))
    except OSError as error:
        remedy = f"cannot keep {n_bytes} bytes of intermediate results there: {error.strerror}. Give another folder"
        raise type(error)(error.errno, remedy, str(folder)) from error


def allocate(file: BinaryIO, n_bytes: int) -> None:
    """Give a file its final size, and allocate the space on the disk."""
    # Without the allocation a full disk would kill the process when it writes to a map of the file.
    file.flush()
    file.truncate(n_bytes)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            # Some file systems cannot allocate; there the earlier check of the free space must be enough.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def release(*arrays: Any) -> None:
    """Release the memory that maps of files use; the voxels stay in the file.

    Pages of a map that were read or written count as memory of the process until the system needs them. Arguments that
    are not shared maps of files, nor voxels in one, are ignored.
    """
    for array in arrays:
        array = getattr(array, "mapped", array)
        # A private map ("c") would lose what was written to it.
        if isinstance(array, np.memmap) and array.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
            base: Any = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_DONTNEED)
