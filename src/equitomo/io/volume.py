"""A volume, and what its file says about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .mrc_header import Array, Axes, MrcHeader
from .voxels import SLAB_BYTES, Index, StoredVoxels, slabs_of
from .zarr_voxels import ZarrVoxels


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and what its file says about it.

    Parameters
    ----------
    data
        Voxels with axes ``(z, y, x)`` in the stored type (of MRC files int8, uint8, int16, uint16,
        float16 or float32) and native byte order. What a Zarr store holds is decoded where it is
        indexed; ``numpy.asarray(data)`` reads all of it.
    voxel_size
        Along ``(z, y, x)`` in ångström; 0 if the file does not say.
    header
        The rest of the header, for :func:`write_volume`. For other formats one that holds what they say.
    path
        The file it was read from.

    Attributes
    ----------
    stored : StoredVoxels or None
        The same voxels in the file, to be read piece by piece; ``None`` if ``data`` are others.
    """

    data: Array | ZarrVoxels
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

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return self.data.dtype

    def __getitem__(self, index: Any, /) -> Array:
        voxels: Array = self.data[index]
        return voxels

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
        """Yield pieces of about ``n_bytes``, each with its place in the volume, from front to back of the file."""
        return slabs_of(self.data, n_bytes) if self.stored is None else self.stored.slabs(n_bytes)

    def as_float32(self) -> npt.NDArray[np.float32]:
        """Voxels as float32: ``data`` itself if it has that type, else a converted copy."""
        return np.asanyarray(self.data).astype(np.float32, copy=False)
