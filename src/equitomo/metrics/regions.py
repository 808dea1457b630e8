"""Regions of Fourier space, and the sums over them from which every score is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequencies, frequency_radius, multiplicity, rfftn
from equitomo.geometry import Geometry, MeasuredMask
from equitomo.volumes import Shape

Array = Tensor | npt.NDArray[np.floating]
Device = torch.device | str | None
# For a range of kz, the region of each coefficient: int64 (kz, ky, kx), 0 outside all regions.
Labels = Callable[[slice], Tensor]

NYQUIST = 0.5
EDGE = 1e-9  # radii are compared in float64; a coefficient exactly on an edge counts as inside
# Coefficients whose products are held at once: those of a whole spectrum would take several times its memory.
_TOGETHER = 1 << 16


@dataclass(frozen=True)
class FourierRegions:
    """Boolean masks on the half spectrum for which scores are given.

    Parameters
    ----------
    overall
        All frequencies up to Nyquist except zero.
    measured, wedge
        The measured part of ``overall``, and the missing wedge in it. Of two volumes with different tilts, what both
        have measured and what neither has.
    """

    overall: Tensor
    measured: Tensor
    wedge: Tensor


def region_masks(
    shape: Sequence[int],
    geometry: Geometry | tuple[float, float],
    *,
    second_geometry: Geometry | tuple[float, float] | None = None,
    device: Device = None,
) -> FourierRegions:
    """Return the masks of all, of the measured and of the missing frequencies of a volume.

    A frequency counts as measured if it lies between the outermost tilts of a series, or of one of the series in a
    union, and has a weight other than zero.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the volume.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    second_geometry
        The tilts of a second volume where they differ. What one of the two has measured and the other has not is then
        in neither region, because their correlation says nothing there.
    device
        Device of the masks; ``None`` for torch's default.

    Examples
    --------
    >>> regions = region_masks((16, 16, 16), (-60.0, 60.0))
    >>> bool((regions.measured ^ regions.wedge == regions.overall).all())
    True
    """
    ball = nyquist_ball(spatial_shape(shape), device)
    first, second = (MeasuredMask(one)(shape).to(ball.device) != 0 for one in (geometry, second_geometry or geometry))
    return FourierRegions(overall=ball, measured=ball & first & second, wedge=ball & ~(first | second))


class RegionSums(NamedTuple):
    """Sums over the coefficients of each region, one region per index of the last axis, in float64.

    ``cross`` sums the real part of the cross spectrum, ``first`` and ``second`` sum the two power spectra, all of
    shape (batch, regions). ``n_coefficients`` counts the coefficients of the full spectrum in each region.
    """

    cross: Tensor
    first: Tensor
    second: Tensor
    n_coefficients: Tensor

    @property
    def correlation(self) -> Tensor:
        """Return the normalised correlation, NaN where a region or a volume is empty."""
        return self.cross / (self.first.sqrt() * self.second.sqrt())


def region_sums(first: Tensor, second: Tensor, labels: Labels, n_regions: int) -> RegionSums:
    """Return differentiable sums over regions of Fourier space for volumes ``(batch, C, z, y, x)``.

    The channels of a sample are summed too. ``labels`` numbers the regions from 1.
    """
    one = rfftn(first)
    other = one if second is first else rfftn(second)
    return spectral_sums(one, other, spatial_shape(first.shape[1:]), labels, n_regions)


def spectral_sums(one: Tensor, other: Tensor, shape: Shape, labels: Labels, n_regions: int) -> RegionSums:
    """Return what :func:`region_sums` does, given the half spectra ``(batch, C, z, y, x // 2 + 1)`` of the volumes."""
    weight = multiplicity(shape[2], device=one.device).double()
    sums = weight.new_zeros(3, len(one), n_regions + 1)
    count = weight.new_zeros(n_regions + 1)
    step = max(1, _TOGETHER // one[:, :, 0].numel())
    for start in range(0, shape[0], step):
        section = slice(start, start + step)
        region = labels(section)
        count.index_add_(0, region.flatten(), weight.expand(region.shape).flatten())
        a, b = (torch.view_as_real(spectrum[:, :, section]) for spectrum in (one, other))
        products = torch.stack([(u * v).sum((1, -1)) for u, v in ((a, b), (a, a), (b, b))])
        values = (products * weight).flatten(2)
        sums = sums.scatter_add(-1, region.flatten().expand(values.shape), values)
    cross, power, other_power = sums[..., 1:]
    return RegionSums(cross, power, other_power, count[1:].long())


def inside(shape: Shape, mask: Tensor | None, device: Device) -> Labels:
    """Return the labels of a single region, given by a mask on the half spectrum; ``None`` for the Nyquist ball."""
    kept = nyquist_ball(shape, device) if mask is None else _on_half_spectrum(mask, shape, device)
    return lambda section: kept[section].long()


def shells(shape: Shape, n_shells: int, mask: Tensor | None, device: Device) -> Labels:
    """Return the labels of the shells about ``i / 2n`` cycles per voxel, up to Nyquist and inside a mask."""
    kz, ky, kx = frequencies(shape, device=device)
    kept = _on_half_spectrum(torch.ones(1, 1, 1) if mask is None else mask, shape, device)

    def labels(section: slice) -> Tensor:
        radius = (kz[section] ** 2 + ky**2 + kx**2).sqrt()
        return (2 * n_shells * radius).round().long().where(kept[section] & (radius <= NYQUIST + EDGE), 0)

    return labels


def cone_masks(shape: Shape, half_angle: float, device: Device) -> dict[str, Tensor]:
    """Return the masks of the double cones about the axes z, y and x, for a half angle in degrees."""
    if not 0 < half_angle <= 90:
        raise ValueError(f"`half_angle` must be more than 0 and at most 90 degrees, got {half_angle}")
    side = math.cos(math.radians(half_angle)) * frequency_radius(shape, device=device) - EDGE
    return {axis: k.abs() >= side for axis, k in zip("zyx", frequencies(shape, device=device), strict=True)}


def _on_half_spectrum(mask: Tensor, shape: Shape, device: Device) -> Tensor:
    return (mask.to(device) != 0).expand(shape[0], shape[1], shape[2] // 2 + 1)


def nyquist_ball(shape: Shape, device: Device) -> Tensor:
    """Return the mask of all frequencies up to Nyquist except zero."""
    radius = frequency_radius(shape, device=device)
    return (radius > 0) & (radius <= NYQUIST + EDGE)


def as_batch(volume: Array) -> Tensor:
    """Return a volume ``(z, y, x)`` as a batch of one."""
    if volume.ndim != 3:
        raise ValueError(f"a volume must be (z, y, x), got shape {tuple(volume.shape)}")
    # An array is copied, because torch warns about read-only arrays such as memory maps.
    tensor = volume if isinstance(volume, Tensor) else torch.tensor(volume)
    return tensor[None, None]
