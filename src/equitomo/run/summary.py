"""Numbers and pictures of a pair and its reconstruction, made without a copy of the volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equitomo import report
from equitomo.datasets import TomogramPair
from equitomo.fourier import cosine_taper
from equitomo.geometry import Geometry
from equitomo.metrics import (
    FourierShellCorrelation,
    fourier_shell_correlation,
    region_masks,
    wedge_energy_fraction,
)
from equitomo.volumes import Index, Shape, VolumeLike, middle_of

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


def correlations(pair: TomogramPair, geometry: Geometry | None = None) -> dict[str, FourierShellCorrelation]:
    """Return the correlation of two volumes: in all of Fourier space, and with a geometry also in each region."""
    first, second = (np.asarray(half[:, :, :], np.float32) for half in pair.halves)
    masks: dict[str, Tensor | None] = {"whole": None}
    if geometry is not None:
        regions = region_masks(pair.shape, geometry)
        masks |= {"measured": regions.measured, "wedge": regions.wedge}
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    return {name: fourier_shell_correlation(first, second, voxel_size=size, mask=mask) for name, mask in masks.items()}


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
