"""What tiles are read from and written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equitomo.io import release
from equitomo.tiling import Placement
from equitomo.volumes import Voxels


class Source:
    """One volume, or the mean of several, as float32 on the network's intensity scale, converted where it is read.

    Parameters
    ----------
    arrays
        Volumes ``(z, y, x)`` of one shape and of any type and byte order, maps of files or not, or voxels in a file.
    mean, deviation
        A voxel ``v`` is read as ``(v - mean) / deviation``.
    """

    def __init__(
        self, arrays: Sequence[NDArray[np.generic] | Voxels], mean: float = 0.0, deviation: float = 1.0
    ) -> None:
        self._arrays, self._mean, self._deviation = arrays, np.float32(mean), np.float32(deviation)
        z, y, x = arrays[0].shape
        self.shape = (z, y, x)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        voxels = np.array(self._arrays[0][index], np.float32, order="C")
        for array in self._arrays[1:]:
            voxels += np.asarray(array[index], np.float32)
        voxels /= len(self._arrays)
        voxels -= self._mean
        voxels /= self._deviation
        return voxels

    def release(self) -> None:
        """Give back the memory that reading from files took."""
        release(*self._arrays)


@dataclass(frozen=True)
class Target:
    """An array of zeros that the cores of tiles are added to, back on the intensity scale of the input.

    Parameters
    ----------
    array
        Of the volume's shape.
    mean, deviation
        A voxel ``v`` of the network's is written as ``v * deviation + mean``.
    share
        Weight of this reconstruction in the whole.
    """

    array: NDArray[np.floating]
    mean: float = 0.0
    deviation: float = 1.0
    share: float = 1.0

    def add(self, placement: Placement, tile: NDArray[np.float32]) -> None:
        """Add a tile's core with its weights."""
        core = self._restored(tile[placement.core])
        core *= placement.weight
        self.array[placement.target] += core

    def add_all(self, volume: NDArray[np.float32]) -> None:
        """Add a whole volume, section by section."""
        for section, own in zip(volume, self.array, strict=True):
            own += self._restored(section)
            release(volume, self.array)

    def _restored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        restored: NDArray[np.float32] = values * np.float32(self.deviation)
        restored += np.float32(self.mean)
        restored *= np.float32(self.share)
        return restored

    def release(self) -> None:
        """Give back the memory that writing to a file took."""
        release(self.array)
