"""Fourier shell correlation, in shells, in cones and over regions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import rfftn
from equitomo.metrics.regions import (
    NYQUIST,
    Array,
    as_batch,
    cone_masks,
    inside,
    region_sums,
    shells,
    spectral_sums,
)
from equitomo.volumes import Shape


@dataclass(frozen=True)
class FourierShellCorrelation:
    """The curve that :func:`fourier_shell_correlation` returns.

    Parameters
    ----------
    frequency
        Centres of the shells in cycles per voxel. The last one is Nyquist.
    correlation
        Correlation in each shell. It is NaN where a shell is empty or one of the volumes has no power.
    count
        Number of coefficients of the full spectrum in each shell.
    voxel_size
        Å per voxel; ``None`` if it is not known.
    """

    frequency: Tensor
    correlation: Tensor
    count: Tensor
    voxel_size: float | None = None

    def resolution(self, threshold: float = 0.143) -> float:
        """Return where the curve first falls below a threshold, in Å, or in voxels if there is no voxel size.

        The crossing is interpolated linearly between two shells, and shells with NaN are skipped. The resolution is
        Nyquist if the curve never falls below the threshold, the first shell if it starts below it, and NaN if all
        shells are NaN. It is not differentiable; :class:`MeanFSC` is.

        Parameters
        ----------
        threshold
            0.143 for two half data sets (:cite:t:`rosenthal2003optimal`), 0.5 for a volume and its reference.

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
            return scale / NYQUIST
        if below == 0:
            return scale / float(frequency[0])
        share = (correlation[below - 1] - threshold) / (correlation[below - 1] - correlation[below])
        return scale / float(frequency[below - 1] + share * (frequency[below] - frequency[below - 1]))


def fourier_shell_correlation(
    first: Array,
    second: Array,
    *,
    voxel_size: float | None = None,
    mask: Tensor | None = None,
    n_shells: int | None = None,
) -> FourierShellCorrelation:
    r"""Return the correlation of two volumes in shells of equal frequency (:cite:t:`harauz1986exact`).

    .. math::

        \mathrm{FSC}(S) = \frac{\sum_{k \in S} \operatorname{Re} F_1(k)\, \overline{F_2(k)}}
        {\sqrt{\sum_{k \in S} |F_1(k)|^2 \; \sum_{k \in S} |F_2(k)|^2}}

    Shell :math:`i = 1 \dots n` holds the frequencies nearest to :math:`i / 2n` cycles per voxel, up to Nyquist and
    without zero. For two halves with the same signal and independent noise the expectation is SNR / (SNR + 1), where
    SNR is the signal-to-noise ratio of one half.

    Parameters
    ----------
    first, second
        Two volumes ``(z, y, x)`` of the same shape, which need not be cubes.
    voxel_size
        Å per voxel.
    mask
        The part of Fourier space to compare, nonzero inside. It must be even and broadcastable to the half spectrum
        ``(z, y, x // 2 + 1)``, like the masks of :func:`region_masks` and :func:`equitomo.wedge_mask`. ``None``
        compares everything.
    n_shells
        Number of shells; ``None`` for half of the shortest side.

    Raises
    ------
    ValueError
        If the volumes differ in shape or are not ``(z, y, x)``, or there is no shell.

    Examples
    --------
    >>> from equitomo.metrics import region_masks
    >>> signal, noise = torch.randn(32, 32, 32), torch.randn(2, 32, 32, 32)
    >>> wedge = region_masks(signal.shape, (-60.0, 60.0)).wedge
    >>> curve = fourier_shell_correlation(signal + noise[0], signal + noise[1], mask=wedge)
    >>> bool((curve.correlation[8:] - 0.5).abs().max() < 0.2)
    True
    """
    return shell_correlations(first, second, {"": mask}, voxel_size=voxel_size, n_shells=n_shells)[""]


def conical_fsc(
    first: Array,
    second: Array,
    *,
    half_angle: float = 20.0,
    voxel_size: float | None = None,
    n_shells: int | None = None,
) -> dict[str, FourierShellCorrelation]:
    """Return the Fourier shell correlation in double cones about the three axes (:cite:t:`diebolder2015conical`).

    The cone about z lies in the missing wedge.

    Parameters
    ----------
    first, second, voxel_size, n_shells
        As for :func:`fourier_shell_correlation`. Shells in which a narrow cone has no coefficient are NaN.
    half_angle
        Degrees between the axis and the side of a cone, in (0, 90]. The default is that of 3DFSC
        (:cite:t:`tan2017addressing`).

    Examples
    --------
    >>> volume = torch.randn(16, 16, 16)
    >>> {axis: curve.resolution() for axis, curve in conical_fsc(volume, volume).items()}
    {'z': 2.0, 'y': 2.0, 'x': 2.0}
    """
    device = first.device if isinstance(first, Tensor) else None
    cones = cone_masks(spatial_shape(first.shape), half_angle, device)
    return shell_correlations(first, second, dict(cones), voxel_size=voxel_size, n_shells=n_shells)


def shell_correlations(
    first: Array,
    second: Array,
    masks: Mapping[str, Tensor | None],
    *,
    voxel_size: float | None = None,
    n_shells: int | None = None,
) -> dict[str, FourierShellCorrelation]:
    """Return the Fourier shell correlation in each of several parts of Fourier space.

    Each volume is transformed once.

    Parameters
    ----------
    first, second, voxel_size, n_shells
        As for :func:`fourier_shell_correlation`.
    masks
        The parts of Fourier space by name, each as for :func:`fourier_shell_correlation`.

    Examples
    --------
    >>> from equitomo.metrics import region_masks
    >>> volume, regions = torch.randn(16, 16, 16), region_masks((16, 16, 16), (-60.0, 60.0))
    >>> curves = shell_correlations(volume, volume, {"whole": None, "wedge": regions.wedge})
    >>> curves["wedge"].resolution()
    2.0
    """
    one, other, shape = _pair(first, second)
    n = number_of_shells(shape, n_shells)
    spectrum = rfftn(one)
    other_spectrum = spectrum if second is first else rfftn(other)
    frequency = torch.arange(1, n + 1, device=one.device, dtype=torch.float64) / (2 * n)
    curves = {}
    for name, mask in masks.items():
        sums = spectral_sums(spectrum, other_spectrum, shape, shells(shape, n, mask, one.device), n)
        curves[name] = FourierShellCorrelation(frequency, sums.correlation[0], sums.n_coefficients, voxel_size)
    return curves


def fourier_correlation(first: Array, second: Array, mask: Tensor | None = None) -> float:
    """Return the normalised correlation of two volumes over one region of Fourier space.

    Parameters
    ----------
    first, second
        Two volumes ``(z, y, x)`` of the same shape.
    mask
        The region, as for :func:`fourier_shell_correlation`, but including any corners and zero frequency that the
        mask holds; ``None`` for the Nyquist ball without zero frequency. The correlation is NaN if the region is empty
        or one of the volumes has no power in it.

    Examples
    --------
    >>> volume = torch.randn(16, 16, 16)
    >>> round(fourier_correlation(volume, -2 * volume), 6)
    -1.0
    """
    one, other, shape = _pair(first, second)
    return float(region_sums(one, other, inside(shape, mask, one.device), 1).correlation)


def number_of_shells(shape: Shape, n_shells: int | None) -> int:
    """Return the number of shells for volumes of a shape, where ``None`` stands for half of the shortest side."""
    n = min(shape) // 2 if n_shells is None else n_shells
    if n < 1:
        raise ValueError(f"`n_shells` must be positive and sides at least 2, got {n_shells} and {shape}")
    return n


def _pair(first: Array, second: Array) -> tuple[Tensor, Tensor, Shape]:
    """Return two volumes as batches of one, and their common shape."""
    if first.shape != second.shape:
        raise ValueError(f"two volumes of the same shape are needed, got {first.shape} and {second.shape}")
    one, other = as_batch(first), as_batch(second)
    return one, other, spatial_shape(one.shape[1:])
