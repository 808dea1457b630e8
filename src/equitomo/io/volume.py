"""A volume and the metadata of its file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .mapped import SLAB_BYTES, Array, Index, slabs_of
from .mrc_header import Axes, MrcHeader
from .mrc_voxels import MrcVoxels
from .zarr_voxels import ZarrVoxels


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and the metadata of its file.

    It is sliced like an array, by integers and slices without steps, and returns arrays ``(z, y, x)``. :meth:`slabs`
    reads the whole file once and keeps nothing in memory.

    Parameters
    ----------
    voxels
        Voxels with axes ``(z, y, x)`` in the stored type (of MRC files int8, uint8, int16, uint16, float16 or float32)
        and native byte order: an array, or voxels in a file.
    voxel_size
        Voxel size along ``(z, y, x)`` in ångström; 0 if the file does not state it.
    header
        The header, for :func:`write_volume`. For other formats than MRC it is a new one that holds only the origin.
    path
        The file that it was read from.
    """

    voxels: Array | MrcVoxels | ZarrVoxels
    voxel_size: Axes
    header: MrcHeader
    path: Path

    @property
    def data(self) -> Array | ZarrVoxels:
        """The voxels as an array, a map of the MRC file where possible.

        The voxels of a Zarr store are decoded where they are indexed; ``numpy.asarray(data)`` reads all of them.
        """
        return self.voxels.array if isinstance(self.voxels, MrcVoxels) else self.voxels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(z, y, x)``."""
        z, y, x = self.voxels.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return self.voxels.dtype

    @property
    def mapped(self) -> Any:
        """The array whose memory :func:`release` releases."""
        return getattr(self.voxels, "mapped", self.voxels)

    def __getitem__(self, index: Any, /) -> Array:
        block: Array = self.voxels[index]
        return block

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, Array]]:
        """Yield pieces of about ``n_bytes``, each with its place in the volume, in the order of the file.

        A piece must be copied before the next one is asked for and must not be written to.

        Raises
        ------
        OSError
            If the file was removed, shortened or replaced by another one, or cannot be read to its end.
        FileFormatError
            If a packed file or a chunk is damaged.
        """
        return slabs_of(self.voxels, n_bytes) if isinstance(self.voxels, np.ndarray) else self.voxels.slabs(n_bytes)
