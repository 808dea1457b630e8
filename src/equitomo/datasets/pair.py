"""Two half tomograms of one specimen, checked and brought to a common scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.datasets.agreement import compare_halves
from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.io import StoredVoxels, Volume, ZarrVoxels, release

Normalization = Literal["robust", "scale"]
Samples = NDArray[np.generic] | Tensor | ZarrVoxels
Voxels = Samples | Volume | StoredVoxels

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
        values = np.concatenate([_sample(volume) for volume in volumes]).astype(np.float64)
        _require_contrast(values, "the volume")
        values = _clipped(values)
        scale = float(values.std())
        return cls(float(values.mean()) if normalization == "robust" else 0.0, scale)

    def apply(self, volume: Tensor) -> Tensor:
        """To the common scale."""
        return (volume - self.mean) / self.scale

    def restore(self, volume: Tensor) -> Tensor:
        """Back to the input's intensities."""
        return volume * self.scale + self.mean


class TomogramPair:
    """Two half tomograms with independent noise, on one intensity scale, and what belongs to them.

    Parameters
    ----------
    first, second
        The halves: arrays or tensors ``(z, y, x)``, or what :func:`~equitomo.read_volume` returns, whose file is then
        read piece by piece. Copied once to float32.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    voxel_size
        Ångström per voxel along ``(z, y, x)``, or one number; ``None`` if unknown.
    mask
        Where the specimen is, ``(z, y, x)``, non-zero inside; ``None`` for everywhere. See
        :func:`~equitomo.datasets.specimen_mask`.
    normalization
        ``"robust"`` subtracts one mean and divides by one deviation, taken over both halves with outliers
        clipped; ``"scale"`` only divides.
    name
        What messages call the pair.

    Attributes
    ----------
    volumes : Tensor
        Both halves, float32 of shape (2, z, y, x), on the common scale.
    scale : IntensityScale
        The map between the input's intensities and ``volumes``.

    Raises
    ------
    ValueError
        If the halves differ in shape, are equal or all but equal, constant, or hold NaN or infinite values
        (their number and the first place are named), or the mask does not fit.

    Warns
    -----
    UserWarning
        If the halves are shifted or mirrored against each other (see :func:`~equitomo.datasets.compare_halves`),
        anticorrelated or hardly correlated, hold extreme outliers, or the mask is not binary.

    Examples
    --------
    >>> specimen = torch.randn(16, 16, 16)
    >>> first, second = specimen + torch.randn(2, 16, 16, 16)
    >>> pair = TomogramPair(first, second, (-60.0, 60.0), voxel_size=10.0)
    >>> pair.shape, pair.voxel_size
    ((16, 16, 16), (10.0, 10.0, 10.0))
    """

    def __init__(
        self,
        first: Voxels,
        second: Voxels,
        geometry: TiltGeometry | tuple[float, float],
        *,
        voxel_size: float | tuple[float, float, float] | None = None,
        mask: Voxels | None = None,
        normalization: Normalization = "robust",
        name: str = "the pair",
    ) -> None:
        self.geometry = as_geometry(geometry)
        self.voxel_size = _three(voxel_size)
        self.name = name
        if len(first.shape) != 3 or tuple(first.shape) != tuple(second.shape):
            raise ValueError(
                f"{name}: the halves must be volumes (z, y, x) of one shape, got {tuple(first.shape)} and "
                f"{tuple(second.shape)}"
            )
        volumes = torch.empty((2, *first.shape), device=first.device if isinstance(first, Tensor) else None)
        for half, given in zip(volumes, (first, second), strict=True):
            copy_into(half, given)
        for label, volume in zip(("first", "second"), volumes, strict=True):
            require_usable(volume, f"the {label} half of {name}")
        self.scale = IntensityScale.of(*volumes, normalization=normalization)
        self.volumes = volumes.sub_(self.scale.mean).div_(self.scale.scale)
        _check_independence(self.volumes, name)
        _warn_of_outliers(self.volumes, name)
        self.mask = None if mask is None else _checked_mask(mask, self.shape, name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        _, z, y, x = self.volumes.shape
        return z, y, x

    def restore(self, volume: Tensor) -> Tensor:
        """A reconstruction in the intensities of the input."""
        return self.scale.restore(volume)


def require_usable(volume: Samples, name: str) -> None:
    """Refuse a volume with voxels that are no numbers, or with nothing to see in it; section by section."""
    _require_finite(volume, name)
    _require_contrast(_sample(volume).astype(np.float64), name)


def _require_finite(volume: Samples, name: str) -> None:
    """Name how many voxels are NaN or infinite, and where the first one is."""
    count, first = 0, ""
    for z, section in _sections(volume):
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


def _sections(volume: Samples) -> Iterator[tuple[int, Tensor]]:
    """Sections of a volume as float32, however large it is."""
    for z in range(len(volume)):
        if isinstance(volume, Tensor):
            yield z, volume[z].detach().float()
        else:
            yield z, torch.from_numpy(np.array(volume[z], np.float32))
            release(volume)


def _three(voxel_size: float | tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    if voxel_size is None:
        return None
    sizes = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else tuple(map(float, voxel_size))
    if len(sizes) != 3 or not all(0 < size < np.inf for size in sizes):
        raise ValueError(f"voxel_size must be positive ångström, one number or one for z, y and x, got {voxel_size}")
    return sizes[0], sizes[1], sizes[2]


def copy_into(target: Tensor, volume: Voxels) -> None:
    """Voxels as float32, without a second copy in memory. Read-only, swapped and reversed arrays are settled by it."""
    if isinstance(volume, Tensor):
        target.copy_(volume.detach())
    elif isinstance(volume, Volume):
        copy_into(target, volume.stored if volume.stored and isinstance(volume.data, np.memmap) else volume.data)
    elif isinstance(volume, StoredVoxels):
        for place, block in volume.slabs():
            target.numpy()[place] = block
    else:
        target.numpy()[...] = volume


def _sample(volume: Samples) -> NDArray[np.float32]:
    """At most a few million voxels, evenly spread: enough for statistics of any volume."""
    n_voxels, size = math.prod(volume.shape), math.prod(volume.shape[1:])
    # An odd step does not fall on the same column of every row.
    step = -(-n_voxels // _SAMPLES) | 1
    return np.concatenate([s.reshape(-1)[-z * size % step :: step].cpu().numpy() for z, s in _sections(volume)])


def _require_contrast(values: NDArray[np.float64], name: str) -> None:
    if not values.std() > 1e-6 * abs(values.mean()):
        raise ValueError(f"{name} is constant ({values[0]:g} throughout): there is nothing to reconstruct")


def _clipped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values, none more than six robust standard deviations off the median."""
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    # Most voxels equal, as in simulated vacuum: nothing to be robust about.
    return np.clip(values, centre - _CLIP * spread, centre + _CLIP * spread) if spread > 0 else values


def _check_independence(volumes: Tensor, name: str) -> None:
    # A few hot voxels must neither hide what the halves share nor pass for it.
    first, second = (_clipped(_sample(volume).astype(np.float64)) for volume in volumes)
    correlation = float(np.corrcoef(first, second)[0, 1])
    if correlation > 0.999:
        raise ValueError(
            f"{name}: the halves are not independent, their voxels correlate to {correlation:.4f}: give the two half "
            "tomograms (odd/even tilts or frames), not the same volume twice"
        )
    if complaint := compare_halves(*volumes).complaint:
        warnings.warn(f"{name}: {complaint}", stacklevel=3)
        return
    coarse = torch.nn.functional.avg_pool3d(volumes[:, None], 4, ceil_mode=True).flatten(1).double().numpy()
    correlation = float(np.corrcoef([_clipped(values) for values in coarse])[0, 1])
    # Thrice what chance gives this many blocks: a small volume says little about its contrast.
    chance = max(0.05, 3 / coarse.shape[1] ** 0.5)
    if correlation < -chance:
        warnings.warn(
            f"{name}: the halves are anticorrelated ({correlation:.2f} after averaging 4x4x4 voxels): is the contrast "
            "of one inverted?",
            stacklevel=3,
        )
    elif correlation < 0.05:
        warnings.warn(
            f"{name}: the halves hardly correlate ({correlation:.2f} after averaging 4x4x4 voxels): do they show the "
            "same specimen, unshifted?",
            stacklevel=3,
        )


def _warn_of_outliers(volumes: Tensor, name: str) -> None:
    lowest, highest = (float(value) for value in volumes.aminmax())
    largest = max(-lowest, highest)
    if largest > _OUTLIER:
        warnings.warn(
            f"{name} holds values {largest:.0f} standard deviations from the mean (hot pixels?): they do not enter the "
            "scale, but are seen by the network",
            stacklevel=3,
        )


def _checked_mask(mask: Voxels, shape: tuple[int, int, int], name: str) -> Tensor:
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name}: the mask has shape {tuple(mask.shape)}, the tomogram {shape} (z, y, x)")
    values = torch.empty(shape, device=mask.device if isinstance(mask, Tensor) else None)
    copy_into(values, mask)
    _require_finite(values, f"the mask of {name}")
    if not bool(((values == 0) | (values == 1)).all()):
        warnings.warn(f"{name}: the mask is not binary; every voxel other than 0 counts as specimen", stacklevel=3)
    inside = values != 0
    if not bool(inside.any()):
        raise ValueError(f"{name}: the mask is empty")
    return inside
