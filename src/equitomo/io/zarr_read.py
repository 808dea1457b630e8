"""Read tomograms from OME-Zarr stores."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileFormatError, FileFormatWarning
from .mrc_header import header_at
from .volume import Volume
from .zarr_metadata import Level, check_codecs, find_level
from .zarr_voxels import ZarrVoxels

# The usual compressors cannot hold more in one chunk.
_MAX_CHUNK_BYTES = 1 << 31


def read_zarr(path: Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    """Return the volume in an OME-Zarr store; see :func:`read_volume`."""
    notes: list[str] = []
    level = find_level(path, notes)
    voxels = _opened(path, level, permissive)
    z, y, x = voxels.shape
    missing = voxels.first_missing((slice(0, z), slice(0, y), slice(0, x)))
    if missing is not None and not permissive:
        raise FileFormatError(
            f"{path}: the chunk {missing} is missing; copy the store again. If the program that wrote it leaves out "
            "chunks that hold only the fill value, pass `permissive=True`"
        )
    if missing is not None:
        notes.append(
            f"chunks are missing, the first is {missing.relative_to(level.folder)}; they are read as the fill value"
        )
    for note in notes:
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=3)
    return Volume(voxels if memory_map else np.asarray(voxels), level.voxel_size, header_at(level.origin), path)


def import_zarr(path: Path) -> Any:
    """Return the package zarr, which is imported only if a store is read or written."""
    try:
        import zarr
    except ImportError as error:
        raise FileFormatError(f"{path}: Zarr stores need the package zarr: pip install 'equitomo[zarr]'") from error
    return zarr


def _opened(path: Path, level: Level, permissive: bool) -> ZarrVoxels:
    """Return the array of a level, checked against the metadata."""
    zarr = import_zarr(path)
    if not any((level.folder / name).is_file() for name in ("zarr.json", ".zarray")):
        raise FileFormatError(
            f"{path}: the metadata names an array {level.folder}, but there is none; copy the store again"
        )
    check_codecs(level.folder)
    try:
        array = zarr.open_array(level.folder, mode="r")
    except Exception as error:
        # The package does not catch the errors of its parsers, which are of any kind.
        raise FileFormatError(f"{level.folder}: not an array that can be read ({error}); export it again") from error
    others = [n for axis, n in enumerate(array.shape) if axis not in level.axes]
    if array.ndim != level.n_axes or any(n != 1 for n in others):
        raise FileFormatError(
            f"{level.folder}: an array of shape {array.shape} for {level.n_axes} axes, expected one volume, "
            "with length 1 along axes other than z, y and x; save the wanted channel or time as its own store"
        )
    voxels = ZarrVoxels(path, array, level, permissive)
    if voxels.dtype.kind not in "biuf":
        raise FileFormatError(f"{level.folder}: holds {array.dtype}, expected real numbers; convert it to float32")
    if min(voxels.shape) < 1 or voxels.shape[0] == 1:
        raise FileFormatError(
            f"{level.folder}: {voxels.shape} voxels (z, y, x), expected a volume; give the tomogram, not a slice"
        )
    chunk_bytes = math.prod(array.chunks) * voxels.dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise FileFormatError(
            f"{level.folder}: chunks of {array.chunks} voxels take {chunk_bytes} bytes, more than {_MAX_CHUNK_BYTES}; "
            "save the array again with chunks of 64 to 256"
        )
    return voxels
