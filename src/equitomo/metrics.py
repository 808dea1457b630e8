"""Fourier shell correlation and other scores, for all of Fourier space, its measured part and the wedge.

All work on discrete Fourier transforms. A volume cut out of something larger is not periodic: take off its
mean and multiply it by :func:`equitomo.fourier.cosine_taper` first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequencies, multiplicity, rfftn
from equitomo.geometry import TiltGeometry, wedge_mask

Volume = Tensor | npt.NDArray[np.floating]
Shape = tuple[int, int, int]
Device = torch.device | str | None
_NYQUIST = 0.5
_EDGE = 1e-9  # radii are compared in float64; a coefficient on the very edge counts as inside


@dataclass(frozen=True)
class FourierShellCorrelation:
    """A Fourier shell correlation curve, made by :func:`fourier_shell_correlation`.

    Shell centres in cycles per voxel, the last one at Nyquist; the correlation in each, NaN where a shell is
    empty or a volume has nothing in it; the number of coefficients, mirror images counted; Å per voxel.
    """

    frequency: Tensor
    correlation: Tensor
    count: Tensor
    voxel_size: float | None = None

    def resolution(self, threshold: float = 0.143) -> float:
        """Where the curve first falls below a threshold, in Å, or in voxels without a voxel size.

        The crossing is interpolated linearly between two shells; shells of NaN are passed over. A curve that
        never falls below gives Nyquist, one that starts below its first shell, one of NaN alone gives NaN.

        Parameters
        ----------
        threshold
            0.143 for two half data sets (:cite:t:`rosenthal2003optimal`), 0.5 against a reference.

        Examples
        --------
        >>> frequency, correlation = torch.tensor([0.1, 0.3, 0.5]), torch.tensor([1.0, 0.8, 0.0])
        >>> round(FourierShellCorrelation(frequency, correlation, torch.ones(3), 10.0).resolution(0.6), 2)
        28.57
        """
        valid = self.correlation.isfinite()
        frequency, correlation = self.frequency[valid].tolist(), self.correlation[valid].tolist()
        scale = 1.0 if self.voxel_size is None else self.voxel_size
        if not correlation:
            return math.nan
        below = next((i for i, value in enumerate(correlation) if value < threshold), None)
        if below is None:
            return scale / _NYQUIST
        if below == 0:
            return scale / float(frequency[0])
        share = (correlation[below - 1] - threshold) / (correlation[below - 1] - correlation[below])
        return scale / float(frequency[below - 1] + share * (frequency[below] - frequency[below - 1]))


def fourier_shell_correlation(
    first: Volume,
    second: Volume,
    *,
    voxel_size: float | None = None,
    mask: Tensor | None = None,
    n_shells: int | None = None,
) -> FourierShellCorrelation:
    r"""Correlation of two volumes in shells of equal frequency (:cite:t:`harauz1986exact`).

    .. math::

        \mathrm{FSC}(S) = \frac{\sum_{k \in S} \operatorname{Re} F_1(k)\, \overline{F_2(k)}}
        {\sqrt{\sum_{k \in S} |F_1(k)|^2 \; \sum_{k \in S} |F_2(k)|^2}}

    Shell :math:`i = 1 \dots n` holds the frequencies nearest to :math:`i / 2n` cycles per voxel, up to
    Nyquist, without zero. Two halves of equal signal and independent noise have the expectation
    SNR / (SNR + 1), with the signal-to-noise ratio of one half.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of the same shape, cubes or not.
    voxel_size
        Ångström per voxel.
    mask
        Fourier region to compare, nonzero inside, even, and broadcastable to the half spectrum
        ``(z, y, x // 2 + 1)``, as :func:`region_masks` and :func:`equitomo.geometry.wedge_mask` make it;
        ``None`` for everything.
    n_shells
        Number of shells; ``None`` for half of the shortest side.

    Raises
    ------
    ValueError
        If the volumes are not two of the same shape, or there is no shell.

    Examples
    --------
    >>> signal, noise = torch.randn(32, 32, 32), torch.randn(2, 32, 32, 32)
    >>> wedge = region_masks(signal.shape, (-60.0, 60.0)).wedge
    >>> curve = fourier_shell_correlation(signal + noise[0], signal + noise[1], mask=wedge)
    >>> bool((curve.correlation[8:] - 0.5).abs().max() < 0.2)
    True
    """
    shape, spectra = _spectra(first, second)
    n = min(shape) // 2 if n_shells is None else n_shells
    if n < 1:
        raise ValueError(f"n_shells must be positive and sides at least 2, got {n_shells} and {shape}")
    device = spectra[0].device
    kz, ky, kx = frequencies(shape, device=device)
    sums = torch.zeros(4, n + 1, dtype=torch.float64, device=device)
    inside = torch.ones(1, 1, 1, device=device) if mask is None else mask.to(device)
    # Section by section: what is made of the spectra would take several times their memory.
    for k, kept, *sections in zip(kz, inside.expand(spectra[0].shape), *spectra, strict=True):
        radius = (k**2 + ky[0] ** 2 + kx[0] ** 2).sqrt()
        ball = (radius > 0) & (radius <= _NYQUIST + _EDGE)
        weight = multiplicity(shape[2], device=device).double() * (ball & (kept != 0))
        shell = (2 * n * radius).round().long().where(ball, 0).flatten()
        for total, values in zip(sums, (torch.ones_like(weight), *_products(*sections)), strict=True):
            total += torch.bincount(shell, (weight * values).flatten(), minlength=n + 1)
    count, cross, *power = sums[:, 1:]
    return FourierShellCorrelation(
        frequency=torch.arange(1, n + 1, device=device, dtype=torch.float64) / (2 * n),
        correlation=cross / (power[0].sqrt() * power[1].sqrt()),
        count=count.long(),
        voxel_size=voxel_size,
    )


def conical_fsc(
    first: Volume,
    second: Volume,
    *,
    half_angle: float = 20.0,
    voxel_size: float | None = None,
    n_shells: int | None = None,
) -> dict[str, FourierShellCorrelation]:
    """Fourier shell correlation in double cones about the three axes (:cite:t:`diebolder2015conical`).

    The cone about z lies in the missing wedge.

    Parameters
    ----------
    first, second, voxel_size, n_shells
        As in :func:`fourier_shell_correlation`; shells where a narrow cone is empty are NaN.
    half_angle
        Degrees from the axis to the side of a cone, in (0, 90]; the default is that of 3DFSC
        (:cite:t:`tan2017addressing`).

    Examples
    --------
    >>> volume = torch.randn(16, 16, 16)
    >>> {axis: curve.resolution() for axis, curve in conical_fsc(volume, volume).items()}
    {'z': 2.0, 'y': 2.0, 'x': 2.0}
    """
    if not 0 < half_angle <= 90:
        raise ValueError(f"half_angle must be more than 0 and at most 90 degrees, got {half_angle}")
    shape = spatial_shape(first.shape)
    device = first.device if isinstance(first, Tensor) else None
    side = math.cos(math.radians(half_angle)) * _radius(shape, device) - _EDGE
    cones = {axis: k.abs() >= side for axis, k in zip("zyx", frequencies(shape, device=device), strict=True)}
    return {
        axis: fourier_shell_correlation(first, second, voxel_size=voxel_size, mask=cone, n_shells=n_shells)
        for axis, cone in cones.items()
    }


def fourier_correlation(first: Volume, second: Volume, mask: Tensor | None = None) -> float:
    """Normalised correlation over a region of Fourier space: one shell, of any form, of the FSC.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of the same shape.
    mask
        The region, as in :func:`fourier_shell_correlation` but taken whole, with any corners and zero
        frequency in it; ``None`` for the Nyquist ball without zero frequency. NaN comes of an empty region
        and of a volume with nothing in it.

    Examples
    --------
    >>> volume = torch.randn(16, 16, 16)
    >>> round(fourier_correlation(volume, -2 * volume), 6)
    -1.0
    """
    shape, spectra = _spectra(first, second)
    weight = _multiplicity(shape, _ball(shape, spectra[0].device) if mask is None else mask)
    cross, *power = ((weight * values).sum() for values in _products(*spectra))
    return float(cross / (power[0].sqrt() * power[1].sqrt()))


@dataclass(frozen=True)
class FourierRegions:
    """Boolean half-spectrum masks: the Nyquist ball without zero, its measured part, the wedge in it."""

    overall: Tensor
    measured: Tensor
    wedge: Tensor


def region_masks(
    shape: Sequence[int], geometry: TiltGeometry | tuple[float, float], *, device: Device = None
) -> FourierRegions:
    """The regions that scores are given for; what lies between the outermost tilts counts as measured.

    The masks are on ``device``, torch's default for ``None``.

    Examples
    --------
    >>> regions = region_masks((16, 16, 16), (-60.0, 60.0))
    >>> bool((regions.measured ^ regions.wedge == regions.overall).all())
    True
    """
    ball = _ball(spatial_shape(shape), device)
    measured = wedge_mask(shape, geometry, support="box").to(ball.device) != 0
    return FourierRegions(overall=ball, measured=ball & measured, wedge=ball & ~measured)


@dataclass(frozen=True)
class WedgeEnergy:
    """The wedge's share of energy, of coefficients, and the ratio: 1 for a wedge as full as the rest."""

    fraction: float
    coefficient_fraction: float
    relative: float


def wedge_energy_fraction(volume: Volume, geometry: TiltGeometry | tuple[float, float]) -> WedgeEnergy:
    """How much of the energy of a volume ``(z, y, x)`` lies in the missing wedge.

    Both shares are of the Nyquist ball without zero frequency.

    Examples
    --------
    >>> energy = wedge_energy_fraction(torch.randn(32, 32, 32), (-60.0, 60.0))
    >>> bool(abs(energy.relative - 1) < 0.1)  # white noise is everywhere alike
    True
    """
    power, shape = _spectrum(volume).abs().square_(), spatial_shape(volume.shape)
    regions = region_masks(shape, geometry, device=power.device)

    def total(mask: Tensor) -> Tensor:
        """Power and number of the coefficients, one after the other: together they would take twice the memory."""
        weight = _multiplicity(shape, mask)
        return torch.stack(((weight * power).sum(), weight.sum()))

    fraction, coefficients = total(regions.wedge) / total(regions.overall)
    return WedgeEnergy(float(fraction), float(coefficients), float(fraction / coefficients))


def _spectra(first: Volume, second: Volume) -> tuple[Shape, tuple[Tensor, Tensor]]:
    """The common shape of two volumes and their half spectra."""
    if first.shape != second.shape:
        raise ValueError(f"two volumes of the same shape are needed, got {first.shape} and {second.shape}")
    spectra = _spectrum(first), _spectrum(second)
    return spatial_shape(first.shape), spectra


def _spectrum(volume: Volume) -> Tensor:
    if volume.ndim != 3:
        raise ValueError(f"a volume must be (z, y, x), got shape {tuple(volume.shape)}")
    # An array is copied: of a read-only memory map torch would warn that it could be written to.
    return rfftn(volume if isinstance(volume, Tensor) else torch.tensor(volume))


def _products(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Real part of the cross spectrum, and the two power spectra."""
    return (first * second.conj()).real, first.abs() ** 2, second.abs() ** 2


def _multiplicity(shape: Shape, mask: Tensor) -> Tensor:
    """Coefficients of the full spectrum that each one of the half stands for, 0 outside ``mask``; float64."""
    weight = multiplicity(shape[2], device=mask.device)
    return (weight.double() * (mask != 0)).expand(shape[0], shape[1], len(weight))


def _radius(shape: Shape, device: Device) -> Tensor:
    kz, ky, kx = frequencies(shape, device=device)
    return (kz**2 + ky**2 + kx**2).sqrt()


def _ball(shape: Shape, device: Device) -> Tensor:
    radius = _radius(shape, device)
    return (radius > 0) & (radius <= _NYQUIST + _EDGE)
