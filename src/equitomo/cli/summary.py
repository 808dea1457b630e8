"""What the commands say of a pair and its reconstruction, without a copy of the volumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equitomo.datasets import TomogramPair
from equitomo.fourier import cosine_taper
from equitomo.io import SLAB_BYTES, Index, slabs_of
from equitomo.metrics import fourier_shell_correlation, wedge_energy_fraction
from equitomo.volumes import VolumeLike as Volume
from equitomo.volumes import middle_of

# Voxels along an axis, at most: spectra of whole volumes would take more memory than all the rest.
_LARGEST = 256


class MeanOfHalves:
    """The mean of the halves in the input's intensities, computed where it is looked at."""

    def __init__(self, pair: TomogramPair) -> None:
        self._pair = pair
        self.shape = pair.shape

        self.dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any, /) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = self._pair.restore(self._pair.volumes[(slice(None), *index)].mean(0)).numpy()
        return mean

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, NDArray[np.float32]]]:
        """Yield pieces of about ``n_bytes``, each with its place."""
        return slabs_of(self, n_bytes)


def agreement(pair: TomogramPair) -> str:
    """How far down the middles of the halves agree."""
    first, second = map(_middle, pair.volumes)
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    curve = fourier_shell_correlation(first, second, voxel_size=size)
    unit = "voxels" if size is None else "Å"
    return f"agree down to {curve.resolution(0.143):.1f} {unit} (Fourier shell correlation of 0.143)"


def filling(pair: TomogramPair, after: Volume) -> str:
    """How full the wedge is in the middle of the halves' mean, and of what was made of them."""
    before, then = (wedge_energy_fraction(_middle(v), pair.geometry).relative for v in (MeanOfHalves(pair), after))
    return (
        f"Power in the missing wedge, relative to an even spread: {before:.3f} before, {then:.3f} after. "
        "What the wedge holds now was inferred, not measured."
    )


def _middle(volume: Volume) -> Tensor:
    """The middle of a volume without its mean, fading towards its faces: their jumps would fill the spectrum."""
    middle = middle_of(volume, _LARGEST)
    return (middle - middle.mean()).mul_(cosine_taper(middle.shape))
