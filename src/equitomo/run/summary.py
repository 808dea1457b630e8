"""Numbers and pictures of a pair and its reconstruction, made without a copy of the volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equitomo import report
from equitomo.datasets import TomogramPair
from equitomo.filled import measured_part
from equitomo.fourier import cosine_taper
from equitomo.geometry import Geometry, shared_axes
from equitomo.io import release
from equitomo.metrics import fourier_shell_correlation, wedge_energy_fraction
from equitomo.volumes import Index, Shape, VolumeLike, as_voxels, middle_of

# Voxels along an axis at most: spectra of whole volumes would take more memory than all the rest.
_LARGEST = 256


class MeanOfHalves:
    """The mean of a pair's halves in the intensities of the input, computed where it is read."""

    dtype = np.dtype(np.float32)

    def __init__(self, pair: TomogramPair) -> None:
        self._halves = pair.halves
        self.shape: Shape = pair.shape

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        return self._mean([half[index] for half in self._halves])

    def slabs(self, n_bytes: int = 1 << 22) -> Iterator[tuple[Index, NDArray[Any]]]:
        """Yield the volume in pieces of about ``n_bytes``, each with its place."""
        for pieces in zip(*(half.slabs(n_bytes) for half in self._halves), strict=True):
            yield pieces[0][0], self._mean([block for _, block in pieces])

    @staticmethod
    def _mean(blocks: list[NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(np.mean([np.asarray(block, np.float32) for block in blocks], axis=0, dtype=np.float32))


class FilledPart:
    """The part of a volume that no tilt measured, computed where it is read: the volume without its measured part.

    Parameters
    ----------
    volume
        A volume ``(z, y, x)``.
    geometry
        The tilts about one axis, or series about the same axis.

    Raises
    ------
    ValueError
        If the specimen was tilted about several axes, because single planes cannot be filtered then.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> volume = np.random.default_rng(0).standard_normal((8, 9, 10)).astype(np.float32)
    >>> filled = np.empty_like(volume)
    >>> for place, block in FilledPart(volume, TiltGeometry([-60, 60])).slabs(1000):
    ...     filled[place] = block
    >>> bool(0 < filled.var() < volume.var())
    True
    """

    dtype = np.dtype(np.float32)

    def __init__(self, volume: VolumeLike, geometry: Geometry) -> None:
        axes = shared_axes(geometry)
        if axes is None:
            raise ValueError(f"{geometry}: the filled part is computed plane by plane, across one tilt axis")
        self._voxels, self._geometry, self._along = as_voxels(volume), geometry, axes.along + 3
        self.shape: Shape = self._voxels.shape

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        picked = [*(index if isinstance(index, tuple) else (index,)), *(slice(None),) * 3][:3]
        planes, whole = picked[self._along], [slice(None)] * 3
        is_one = not isinstance(planes, slice)
        whole[self._along] = slice(planes, planes + 1) if is_one else planes
        picked[self._along] = 0 if is_one else slice(None)
        return np.asarray(self._filled(self._voxels[tuple(whole)])[tuple(picked)])

    def slabs(self, n_bytes: int = 1 << 24) -> Iterator[tuple[Index, NDArray[Any]]]:
        """Yield planes across the tilt axis, about ``n_bytes`` at a time, each with its place."""
        n = self.shape[self._along]
        step = max(1, n_bytes // (4 * math.prod(self.shape) // n))
        for start in range(0, n, step):
            place = [slice(0, length) for length in self.shape]
            place[self._along] = slice(start, min(start + step, n))
            index = (place[0], place[1], place[2])
            yield index, self._filled(self._voxels[index])
            release(self._voxels)

    def _filled(self, block: NDArray[Any]) -> NDArray[np.float32]:
        """Return the filled part of whole planes across the tilt axis."""
        # The mask does not depend on the frequency along the tilt axis, so that planes are filtered on their own.
        filled: NDArray[np.float32] = np.subtract(block, measured_part(block, self._geometry), dtype=np.float32)
        return filled


def draw_reconstruction(
    path: Path, pair: TomogramPair, reconstruction: VolumeLike, truth: VolumeLike | None = None
) -> Path:
    """Draw slices and spectra of a pair, its reconstruction and, where it is known, the truth; return the path."""
    title = "mean of the halves" if pair.n_views == 2 else "input"
    volumes: dict[str, VolumeLike] = {title: MeanOfHalves(pair), "reconstruction": reconstruction}
    if truth is not None:
        volumes["truth"] = truth
    return report.draw_slices(path, volumes, geometry=pair.geometry, voxel_size=pair.voxel_size)


def agreement(pair: TomogramPair) -> str:
    """Return the resolution down to which the middles of the halves agree, as a sentence."""
    first, second = map(tapered_middle, pair.halves)
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    curve = fourier_shell_correlation(first, second, voxel_size=size)
    unit = "voxels" if size is None else "Å"
    return f"The input halves agree down to {curve.resolution(0.143):.1f} {unit} (Fourier shell correlation of 0.143)"


def filling(pair: TomogramPair, reconstruction: VolumeLike) -> str:
    """Return the power in the missing wedge of the mean of the halves and of the reconstruction, as sentences."""
    before, after = (
        wedge_energy_fraction(tapered_middle(volume), pair.geometry).relative
        for volume in (MeanOfHalves(pair), reconstruction)
    )
    return (
        f"Power in the missing wedge, relative to an even spread: {before:.3f} before, {after:.3f} after. "
        "What the wedge holds now was inferred, not measured."
    )


def tapered_middle(volume: VolumeLike) -> Tensor:
    """Return the middle of a volume without its mean, fading to zero at its faces, whose jumps would fill the wedge."""
    middle = middle_of(volume, _LARGEST)
    return (middle - middle.mean()).mul_(cosine_taper(middle.shape))
