"""Two half tomograms of one specimen, checked and brought to a common scale."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets.halves import judge_halves
from equitomo.datasets.intensities import (
    IntensityScale,
    Normalization,
    require_finite,
    require_usable,
    warn_of_outliers,
)
from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.volumes import VolumeLike as Voxels
from equitomo.volumes import as_voxels


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
        anticorrelated or hardly correlated, differ in scale, hold extreme outliers, or the mask is not binary.

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
        for complaint in judge_halves(volumes[0], volumes[1], name):
            warnings.warn(f"{name}: {complaint}", stacklevel=2)
        self.scale = IntensityScale.of(*volumes, normalization=normalization)
        self.volumes = volumes.sub_(self.scale.mean).div_(self.scale.scale)
        warn_of_outliers(self.volumes, IntensityScale(0.0, 1.0), name)
        self.mask = None if mask is None else _checked_mask(mask, self.shape, name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        _, z, y, x = self.volumes.shape
        return z, y, x

    def restore(self, volume: Tensor) -> Tensor:
        """A reconstruction in the intensities of the input."""
        return self.scale.restore(volume)


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
    else:
        for place, block in as_voxels(volume).slabs():
            target.numpy()[place] = block


def _checked_mask(mask: Voxels, shape: tuple[int, int, int], name: str) -> Tensor:
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"{name}: the mask has shape {tuple(mask.shape)}, the tomogram {shape} (z, y, x): make one on its grid, or "
            "let --mask auto find it"
        )
    values = torch.empty(shape, device=mask.device if isinstance(mask, Tensor) else None)
    copy_into(values, mask)
    require_finite(values, f"the mask of {name}")
    if not bool(((values == 0) | (values == 1)).all()):
        warnings.warn(f"{name}: the mask is not binary; every voxel other than 0 counts as specimen", stacklevel=3)
    inside = values != 0
    if not bool(inside.any()):
        raise ValueError(f"{name}: the mask is empty: it must be non-zero where the specimen is")
    return inside
