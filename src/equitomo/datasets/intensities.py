"""The intensities of volumes, in memory or in files: their scale, and whether they can be used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.io import ZarrVoxels, release

Normalization = Literal["robust", "scale"]
Samples = NDArray[np.generic] | Tensor | ZarrVoxels

# In robust standard deviations from the median: what lies beyond the first does not enter the scale
# (a Gaussian loses nothing by it), what lies beyond the second is worth a word.
_CLIP, _OUTLIER = 6.0, 50.0
_SAMPLES = 4_000_000


@dataclass(frozen=True)
class IntensityScale:
    """An affine map of intensities to zero mean and unit deviation, and back.

    Parameters
    ----------
    mean, scale
        A volume ``v`` becomes ``(v - mean) / scale``.

    Examples
    --------
    >>> scale = IntensityScale.of(torch.tensor([1.0, 3.0]).reshape(1, 1, 2))
    >>> scale.mean, scale.scale
    (2.0, 1.0)
    >>> scale.restore(scale.apply(torch.tensor([5.0])))
    tensor([5.])
    """

    mean: float
    scale: float

    @classmethod
    def of(cls, *volumes: Samples, normalization: Normalization = "robust") -> IntensityScale:
        """The common scale of volumes, tensors or arrays (also memory maps), unmoved by hot pixels and gold.

        Values more than six robust standard deviations (from the median absolute deviation) off the median
        are clipped before mean and deviation are taken. ``"scale"`` leaves the mean at zero, for data with a
        true zero.

        Raises
        ------
        ValueError
            If the volumes are constant, or ``normalization`` is unknown.
        """
        if normalization not in ("robust", "scale"):
            raise ValueError(f"normalization is 'robust' or 'scale', got {normalization!r}")
        values = np.concatenate([sampled(volume) for volume in volumes]).astype(np.float64)
        _require_contrast(values, "the volume")
        values = clipped(values)
        scale = float(values.std())
        return cls(float(values.mean()) if normalization == "robust" else 0.0, scale)

    def apply(self, volume: Tensor) -> Tensor:
        """To the common scale."""
        return (volume - self.mean) / self.scale

    def restore(self, volume: Tensor) -> Tensor:
        """Back to the input's intensities."""
        return volume * self.scale + self.mean


def require_usable(volume: Samples, name: str) -> None:
    """Refuse a volume with voxels that are no numbers, or with nothing to see in it; section by section."""
    require_finite(volume, name)
    _require_contrast(sampled(volume).astype(np.float64), name)


def require_finite(volume: Samples, name: str) -> None:
    """Name how many voxels are NaN or infinite, and where the first one is."""
    count, first = 0, ""
    for z, section in sections(volume):
        # The sum is finite unless a voxel is not (or the sum overflows): the full search is for the rare case.
        if torch.isfinite(section.sum(dtype=torch.float64)):
            continue
        bad = (~torch.isfinite(section)).nonzero()
        count += len(bad)
        if len(bad) and not first:
            first = ", ".join(f"{axis} {k}" for axis, k in zip("zyx", [z, *bad[0].tolist()], strict=True))
    if count:
        raise ValueError(
            f"{name} holds {count} voxels that are NaN or infinite, the first at {first} (counted from 0): "
            "reconstruct it anew or replace them (on the command line with --nan mean)"
        )


def sections(volume: Samples) -> Iterator[tuple[int, Tensor]]:
    """Sections of a volume as float32, however large it is."""
    for z in range(len(volume)):
        if isinstance(volume, Tensor):
            yield z, volume[z].detach().float()
        else:
            yield z, torch.from_numpy(np.array(volume[z], np.float32))
            release(volume)


def warn_of_outliers(volumes: Iterable[Samples], scale: IntensityScale, name: str) -> None:
    """Say how far the extremes of volumes lie from the mean, if that is very far; section by section."""
    ends = [float(end) for volume in volumes for _, section in sections(volume) for end in section.aminmax()]
    largest = max(abs(end - scale.mean) for end in ends) / scale.scale
    if largest > _OUTLIER:
        warnings.warn(
            f"{name} holds values {largest:.0f} standard deviations from the mean (hot pixels?): they do not enter the "
            "scale, but are seen by the network",
            stacklevel=3,
        )


def sampled(volume: Samples) -> NDArray[np.float32]:
    """At most a few million voxels, evenly spread: enough for statistics of any volume."""
    n_voxels, size = math.prod(volume.shape), math.prod(volume.shape[1:])
    # An odd step does not fall on the same column of every row.
    step = -(-n_voxels // _SAMPLES) | 1
    return np.concatenate([s.reshape(-1)[-z * size % step :: step].cpu().numpy() for z, s in sections(volume)])


def clipped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values, none more than six robust standard deviations off the median."""
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    # Most voxels equal, as in simulated vacuum: nothing to be robust about.
    return np.clip(values, centre - _CLIP * spread, centre + _CLIP * spread) if spread > 0 else values


def _require_contrast(values: NDArray[np.float64], name: str) -> None:
    if not values.std() > 1e-6 * abs(values.mean()):
        raise ValueError(
            f"{name} is constant ({values[0]:g} throughout), so there is nothing to reconstruct: is it the right file, "
            "and was it written to its end?"
        )
