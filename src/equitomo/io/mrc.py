"""Read tomograms in the MRC format (MRC2014 and the older headers of IMOD)."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from .errors import FileFormatWarning
from .mrc_header import (
    HEADER_BYTES,
    Array,
    MrcHeader,
    axis_numbers,
    axis_order,
    check_one_volume,
    stored_layout,
    understood,
    voxel_size_of,
)
from .opening import open_regular
from .packing import packer_of, unpacked
from .volume import Volume
from .voxels import MrcVoxels


def read_mrc(path: Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    """A volume from an MRC file, plain or packed; see :func:`read_volume`."""
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
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=3)
    volume = Volume(_native(data.transpose(order), memory_map), voxel_size, MrcHeader(record, extended), path)
    object.__setattr__(volume, "stored", MrcVoxels(path, dtype, shape, skip, order))
    return volume


def _native(data: Array, memory_map: bool) -> Array:
    """Voxels in native byte order and aligned, copied only where needed."""
    if not data.dtype.isnative:
        return np.array(data, data.dtype.newbyteorder("="), order="C")
    if not memory_map:
        return np.require(data, requirements=["C", "W", "A"])
    return data if data.flags.aligned else np.array(data, order="C")
