"""Read tomograms in the MRC format (MRC2014 and the older headers of IMOD)."""

import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .errors import FileFormatWarning
from .mrc_header import (
    HEADER_BYTES,
    Array,
    Axes,
    MrcHeader,
    axis_numbers,
    axis_order,
    check_one_volume,
    stored_layout,
    understood,
    voxel_size_of,
)
from .opening import named, open_regular
from .packing import packer_of, unpacked
from .voxels import StoredVoxels


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and what its file says about it.

    Parameters
    ----------
    data
        Voxels with axes ``(z, y, x)`` in the stored type (int8, uint8, int16, uint16, float16
        or float32) and native byte order.
    voxel_size
        Along ``(z, y, x)`` in ångström; 0 if the file does not say.
    header
        The rest of the header, for :func:`write_volume`.
    path
        The file it was read from.

    Attributes
    ----------
    stored : StoredVoxels or None
        The same voxels in the file, to be read from front to back; ``None`` if ``data`` are others.
    """

    data: Array
    voxel_size: Axes
    header: MrcHeader
    path: Path
    # Not an argument: dataclasses.replace(volume, data=...) must not leave the file's voxels behind.
    stored: StoredVoxels | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = self.data.shape
        return z, y, x

    def as_float32(self) -> npt.NDArray[np.float32]:
        """Voxels as float32: ``data`` itself if it has that type, else a converted copy."""
        return np.asanyarray(self.data).astype(np.float32, copy=False)


def read_volume(path: str | Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    r"""Read a tomogram from an MRC file, plain or packed by gzip or bzip2.

    The content decides, not the extension (``.mrc .rec .st .ali .map``, ``.gz .bz2``). Modes 0,
    1, 2, 6 and 12 of either byte order are read, with MRC2014 headers or older ones. The header
    is held against the size of the file before anything is allocated. Axes stored in another
    order (``mapc, mapr, maps``) are brought into ``(z, y, x)``.

    Parameters
    ----------
    path
        The file.
    memory_map
        True: ``data`` is a read-only :class:`numpy.memmap` where the file allows it (plain and
        in native byte order), so volumes larger than the memory can be opened. False: an
        ordinary array that belongs to the caller.
    permissive
        Read a file without the ``MAP`` mark whenever the sizes agree, not only if its header is
        otherwise a valid old one.

    Raises
    ------
    FileFormatError
        If the file is not MRC, is damaged, or holds something other than one real volume. The
        message says what was expected and how to mend it.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If the header is old, contradicts itself or leaves out the voxel size, and if the file
        says it is a stack of images (``ispg`` 0 with ``mz`` 1; with ``mz`` equal to ``nz``, as
        IMOD writes tomograms, it is taken as a volume silently).

    Examples
    --------
    >>> from equitomo.io import write_volume
    >>> folder = getfixture("tmp_path")
    >>> path = write_volume(folder / "a.mrc", np.ones((4, 5, 6), np.float32), voxel_size=10.0)
    >>> volume = read_volume(path)
    >>> volume.data.shape, volume.voxel_size
    ((4, 5, 6), (10.0, 10.0, 10.0))
    """
    path = named(path)
    notes: list[str] = []
    with open_regular(path, "an MRC file") as file:
        packer = packer_of(file)
        content = unpacked(path, file, packer) if packer else None
        size = len(content) if content is not None else os.fstat(file.fileno()).st_size
        head = bytes(content[:HEADER_BYTES]) if content is not None else file.read(HEADER_BYTES)
        record = understood(path, head, size, permissive, notes)
        check_one_volume(path, record, notes)
        dtype, shape, skip = stored_layout(record, notes)
        if content is not None:
            extended = bytes(content[HEADER_BYTES:skip])
            data: Array = np.frombuffer(content, dtype, math.prod(shape), skip).reshape(shape)
        else:
            extended = file.read(skip - HEADER_BYTES)
            data = (
                np.memmap(cast(Any, file), dtype, "r", skip, shape)
                if memory_map
                else np.fromfile(cast(Any, file), dtype, math.prod(shape)).reshape(shape)
            )
    voxel_size = voxel_size_of(record, notes)
    order = axis_order(record)
    if order != (0, 1, 2):
        notes.append(f"axes are stored in another order (mapc, mapr, maps = {axis_numbers(record)}); made (z, y, x)")
    for note in notes:
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=2)
    volume = Volume(_native(data.transpose(order), memory_map), voxel_size, MrcHeader(record, extended), path)
    object.__setattr__(volume, "stored", StoredVoxels(path, dtype, shape, skip, order))
    return volume


def _native(data: Array, memory_map: bool) -> Array:
    """Voxels in native byte order and aligned, copied only where needed."""
    if not data.dtype.isnative:
        return np.array(data, data.dtype.newbyteorder("="), order="C")
    if not memory_map:
        return np.require(data, requirements=["C", "W", "A"])
    return data if data.flags.aligned else np.array(data, order="C")
