"""Check the arguments of writing a volume, and convert its voxels, for all formats."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .mapped import Array
from .mrc_header import Axes
from .volume import Volume

Precision = Literal["float32", "float16"]


class WritingPlan(NamedTuple):
    """The checked arguments of :func:`write_volume`."""

    path: Path
    shape: tuple[int, int, int]
    like: Volume | None
    voxel_size: Axes
    dtype: Precision
    label: str
    overwrite: bool


def plan_writing(
    path: Path,
    shape: tuple[int, ...],
    like: Volume | None,
    voxel_size: float | Axes | None,
    dtype: Precision,
    label: str | None,
    overwrite: bool,
) -> WritingPlan:
    """Return the checked arguments, or raise a ValueError that names the wrong one."""
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"`data` must have three axes (z, y, x), none empty, got shape {shape}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f'`dtype` must be "float32" or "float16", got {dtype!r}')
    label = "Written by equitomo" if label is None else label
    if len(label) > 80 or not (label.isascii() and label.isprintable() and label.strip()):
        raise ValueError(f"`label` must be 1 to 80 printable ASCII characters, got {len(label)}: {label!r}")
    z, y, x = shape
    return WritingPlan(path, (z, y, x), like, _three_sizes(voxel_size, like), dtype, label, overwrite)


def as_stored(slab: Array, dtype: np.dtype[Any]) -> Array:
    """Return voxels in the stored type, or raise a ValueError if that type cannot hold a finite one."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(slab, dtype)
        if not np.can_cast(slab.dtype, dtype) and np.any(np.isinf(stored) & np.isfinite(slab)):
            raise ValueError(
                f"`data` reaches {np.abs(slab[np.isfinite(slab)]).max():g}, more than {dtype.name} can hold "
                f"({np.finfo(dtype).max:g}); pass `dtype='float32'` or scale the volume"
            )
    return stored


def _three_sizes(voxel_size: float | Axes | None, like: Volume | None) -> Axes:
    """Return the voxel size along (z, y, x), or raise an error if it is not valid."""
    if voxel_size is None:
        return like.voxel_size if like else (0.0, 0.0, 0.0)
    sizes = np.broadcast_to(np.asarray(voxel_size, dtype=float), 3) if np.size(voxel_size) in (1, 3) else [np.nan]
    if not all(0 <= size < np.inf for size in sizes):
        raise ValueError(f"`voxel_size` must be one number or (z, y, x) in ångström, not negative, got {voxel_size}")
    z, y, x = (float(size) for size in sizes)
    return z, y, x
