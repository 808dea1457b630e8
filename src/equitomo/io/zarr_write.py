"""Write tomograms as OME-Zarr stores, laid out like those of the CryoET Data Portal."""

import json
import math
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .mapped import Array, release
from .placing import atomic_folder, require_place
from .writing import Precision, WritingPlan, as_stored
from .zarr_metadata import NODES
from .zarr_read import import_zarr

# Full resolution, and two coarser levels for viewers.
_LEVELS = 3
_CHUNK = 128


def write_zarr(plan: WritingPlan, data: Array) -> None:
    """Write a volume as an OME-Zarr store; see :func:`write_volume`."""
    n_bytes = stored_bytes(plan.shape, plan.dtype)
    with atomic_folder(plan.path, overwrite=plan.overwrite, n_bytes=n_bytes) as folder:
        _write_levels(folder, plan, data)


def require_zarr_place(target: Path, *, overwrite: bool = False, n_bytes: int = 0) -> None:
    """Raise an error, before any work, if a store could not be written."""
    import_zarr(target)
    require_place(target, overwrite=overwrite, n_bytes=n_bytes, folder=True)
    # A folder of that name with any other content must not be removed.
    is_store = not target.is_symlink() and any((target / name).is_file() for name in NODES)
    if os.path.lexists(target) and not is_store:
        raise FileExistsError(f"{target}: exists and is not a Zarr store, so it is not replaced; choose another name")


def stored_bytes(shape: tuple[int, ...], dtype: Precision) -> int:
    """Return the bytes of all levels without compression."""
    voxels = sum(math.prod(_halved(shape, level)) for level in range(_LEVELS))
    return voxels * np.dtype(dtype).itemsize


def _halved(shape: tuple[int, ...], times: int) -> tuple[int, ...]:
    """Return the shape of a coarser level."""
    return tuple(-(-n // 2**times) for n in shape)


def _write_levels(folder: Path, plan: WritingPlan, data: Array) -> None:
    """Write all levels, then the metadata."""
    group = import_zarr(plan.path).open_group(folder, mode="a", zarr_format=2)
    finer: Any = data
    for level in range(_LEVELS):
        shape = _halved(plan.shape, level)
        array = group.create_array(
            str(level),
            shape=shape,
            chunks=tuple(min(n, _CHUNK) for n in shape),
            dtype=plan.dtype,
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
            # A chunk that is left out because it holds only zeros could not be distinguished from a lost one.
            config={"write_empty_chunks": True},
        )
        for z, y, x in product(*(range(0, n, _CHUNK) for n in shape)):
            # The same region has twice the lengths in the finer level.
            near = tuple(slice(start << bool(level), (start + _CHUNK) << bool(level)) for start in (z, y, x))
            block = np.asarray(finer[near])
            block = _mean_of_eight(block) if level else block
            array[z : z + _CHUNK, y : y + _CHUNK, x : x + _CHUNK] = as_stored(block, np.dtype(plan.dtype))
            if x + _CHUNK >= shape[2]:
                release(data)
        finer = array
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [_image(plan)]}, indent=1))


def _mean_of_eight(block: Array) -> Array:
    """Return the means over 2 x 2 x 2 voxels, or over fewer at the end of an axis of odd length."""
    block = np.pad(block.astype(np.float32), [(0, n % 2) for n in block.shape], mode="edge")
    z, y, x = (n // 2 for n in block.shape)
    means: Array = block.reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))
    return means


def _image(plan: WritingPlan) -> dict[str, Any]:
    """Return the metadata in OME-NGFF 0.4."""
    origin = plan.like.header.origin if plan.like else (0.0, 0.0, 0.0)
    axes, sizes = [], [size or 1.0 for size in plan.voxel_size]
    for name, size in zip("zyx", plan.voxel_size, strict=True):
        # A scale must be positive, so an unknown voxel size is written as a scale of 1 without a unit.
        axes.append({"name": name, "type": "space"} | ({"unit": "angstrom"} if size else {}))
    datasets = []
    for level in range(_LEVELS):
        # The first voxel of a coarser level has its centre between those of the first 2, 4, ... fine voxels.
        shifts = [start + (2**level - 1) / 2 * size for start, size in zip(origin, sizes, strict=True)]
        transforms = [
            {"type": "scale", "scale": [size * 2**level for size in sizes]},
            {"type": "translation", "translation": shifts},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return {
        "version": "0.4",
        "name": plan.path.stem,
        "axes": axes,
        "datasets": datasets,
        "type": "mean",
        "metadata": {"description": plan.label},
    }
