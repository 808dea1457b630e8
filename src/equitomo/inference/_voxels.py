"""The volumes that tiles are read from and written to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equitomo.io import release
from equitomo.tiling import Placement
from equitomo.volumes import Shape, VolumeLike, as_voxels


class Source:
    """One volume, or the mean of several, converted to float32 and to ``(v - mean) / deviation`` when it is read.

    The volumes have one shape ``(z, y, x)`` and any type and byte order, in memory or in files.
    """

    def __init__(self, volumes: Sequence[VolumeLike], mean: float = 0.0, deviation: float = 1.0) -> None:
        self._volumes = [as_voxels(volume) for volume in volumes]
        self._mean, self._deviation = np.float32(mean), np.float32(deviation)
        self.shape: Shape = self._volumes[0].shape

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        voxels = np.array(self._volumes[0][index], np.float32, order="C")
        for volume in self._volumes[1:]:
            voxels += np.asarray(volume[index], np.float32)
        voxels /= len(self._volumes)
        voxels -= self._mean
        voxels /= self._deviation
        return voxels

    def release(self) -> None:
        """Give back the memory that reading from files took."""
        release(*self._volumes)


@dataclass(frozen=True)
class Target:
    """A volume of zeros to which the cores of tiles are added, as ``share * (v * deviation + mean)``."""

    # Returns the array (channel, z, y, x) for a number of channels.
    array: Callable[[int], NDArray[np.floating]]
    mean: float = 0.0
    deviation: float = 1.0
    # The weight of this reconstruction in the result.
    share: float = 1.0

    @classmethod
    def of(cls, volume: NDArray[np.float32]) -> Self:
        """Return a target that writes one channel into a volume ``(z, y, x)``, on the network's scale."""
        return cls(lambda n_channels: volume[None])

    def add(self, placements: Sequence[Placement], tiles: NDArray[np.float32]) -> None:
        """Add the cores of tiles ``(batch, channel, z, y, x)`` with their weights."""
        array = self.array(tiles.shape[1])
        for placement, tile in zip(placements, tiles, strict=True):
            core = self._restored(tile[:, *placement.core])
            core *= placement.weight
            array[:, *placement.target] += core
        release(array)

    def add_volume(self, volume: NDArray[np.float32]) -> None:
        """Add a whole volume of one channel, section by section."""
        array = self.array(1)
        for section, own in zip(volume, array[0], strict=True):
            own += self._restored(section)
            release(volume, array)

    def _restored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        restored: NDArray[np.float32] = values * np.float32(self.deviation)
        restored += np.float32(self.mean)
        restored *= np.float32(self.share)
        return restored


class Result:
    """The array that a prediction fills: the caller's, or one that is made when the number of channels is known.

    The caller's array ``out`` has the input's shape, or a channel axis before ``(z, y, x)`` besides. It is set to zero,
    and must not share its memory with the ``sources``.
    """

    def __init__(self, shape: tuple[int, ...], out: NDArray[np.floating] | None, sources: Sequence[VolumeLike]) -> None:
        self._shape, self._out = shape, out
        if out is None:
            return
        self._require_shape(out.shape[-4] if out.ndim == len(shape) + 1 else 1)
        arrays = [array for array in map(array_behind, sources) if isinstance(array, np.ndarray)]
        if any(np.may_share_memory(out, array) for array in arrays):
            raise ValueError("`out` must not be the input, whose voxels are read several times")
        for index in np.ndindex(out.shape[:-2]):
            out[index] = 0
            release(out)

    @property
    def array(self) -> NDArray[np.floating]:
        """The result, with a channel axis before ``(z, y, x)`` for several channels."""
        assert self._out is not None
        return self._out

    def part(self, index: tuple[int, ...]) -> Callable[[int], NDArray[np.floating]]:
        """Return a function that gives a target the array of one of the volumes along the leading axes."""
        return partial(self._part, index)

    def _part(self, index: tuple[int, ...], n_channels: int) -> NDArray[np.floating]:
        if self._out is None:
            self._out = np.zeros(self._shape_with(n_channels), np.float32)
        self._require_shape(n_channels)
        part: NDArray[np.floating] = self._out[index]
        return part if part.ndim == 4 else part[None]

    def _shape_with(self, n_channels: int) -> tuple[int, ...]:
        return self._shape if n_channels == 1 else (*self._shape[:-3], n_channels, *self._shape[-3:])

    def _require_shape(self, n_channels: int) -> None:
        """Refuse an array of the caller whose shape or type does not fit this number of channels."""
        out, allowed = self.array, [self._shape_with(n_channels)]
        if n_channels == 1:
            allowed.append((*self._shape[:-3], 1, *self._shape[-3:]))
        if out.shape not in allowed or out.dtype.kind != "f" or out.dtype.itemsize < 4:
            raise ValueError(f"`out` must be float32 of shape {allowed[0]}, got {out.dtype} of shape {out.shape}")


def array_behind(volume: VolumeLike) -> Any:
    """Return the array, the map of a file, or the voxels in a store that a volume reads from."""
    return getattr(volume, "mapped", volume)
