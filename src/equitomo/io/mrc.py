"""Read tomograms in the MRC format (MRC2014 and the older headers of IMOD)."""

import bz2
import gzip
import math
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from .errors import FileFormatError, FileFormatWarning
from .mrc_header import (
    HEADER_BYTES,
    STAMPS,
    Array,
    Axes,
    MrcHeader,
    as_record,
    axis_numbers,
    axis_order,
    check_one_volume,
    expected_size,
    stored_layout,
    understood,
    voxel_size_of,
)
from .opening import named, open_regular

PACKERS = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2"}
MAX_TRAILING = 1 << 16


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
    """

    data: Array
    voxel_size: Axes
    header: MrcHeader
    path: Path

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
        packer = PACKERS.get(file.read(3))
        file.seek(0)
        content = _unpacked(path, file, packer) if packer else None
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
            data = np.memmap(cast(Any, file), dtype, "r", skip, shape)
    voxel_size = voxel_size_of(record, notes)
    order = axis_order(record)
    if order != (0, 1, 2):
        notes.append(f"axes are stored in another order (mapc, mapr, maps = {axis_numbers(record)}); made (z, y, x)")
    for note in notes:
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=2)
    data = _native(data.transpose(order), memory_map)
    return Volume(data, voxel_size, MrcHeader(record, extended), path)


def _unpacked(path: Path, file: BinaryIO, packer: str) -> bytearray:
    """Content of a packed file, never more than its header asks for."""
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file) if packer == "gzip" else bz2.BZ2File(file))
    try:
        content = bytearray(stream.read(HEADER_BYTES))
        order = STAMPS.get(bytes(content[212:214]))
        if order is None or len(content) < HEADER_BYTES:
            raise FileFormatError(
                f"{path}: the {packer} file holds no MRC header with a machine stamp, so how much it may "
                "unpack to is unknown; if it is an MRC file with an old header, unpack it first"
            )
        expected = expected_size(as_record(bytes(content), order)) or 0
        # Grow with what is really there: the header of a small file may ask for terabytes.
        while len(content) <= expected + MAX_TRAILING and (part := stream.read(1 << 22)):
            content += part
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(f"{path}: the {packer} file is damaged ({error}); pack or copy it again") from error
    if len(content) > expected + MAX_TRAILING and expected:
        raise FileFormatError(
            f"{path}: unpacks to more than the {expected} bytes that its header states; refused as damaged "
            "or hostile. Unpack it elsewhere and look at it"
        )
    return content


def _native(data: Array, memory_map: bool) -> Array:
    """Voxels in native byte order and aligned, copied only where needed."""
    if not data.dtype.isnative:
        return np.array(data, data.dtype.newbyteorder("="), order="C")
    if not data.flags.aligned or not memory_map:
        return np.array(data, order="C")
    return data
