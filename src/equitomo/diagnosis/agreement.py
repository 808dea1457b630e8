"""A shift, a mirror or an inverted contrast between two half tomograms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.datasets import clipped
from equitomo.fourier import frequency_radius, hann, irfftn, rfftn
from equitomo.volumes import VolumeLike, middle_of

# The middle of a volume is enough to find a shift or a mirror; smaller parts resemble each other by chance.
_MOST, _LEAST = 128, 24
_SHELLS = 16
# Above a quarter of the sampling rate there is mostly noise.
_LOW_PASS = 0.25
# Heights of peaks in standard deviations. Under the window the peaks of noise in small volumes reach 10. A peak counts
# if it is higher than 12 and 1.3 times those of all other orientations (different specimens on a common lattice reach
# 13 in several). It counts as a shift if it is 1.5 times the value at zero shift.
SURE, _ALONE, _HIGHER = 12.0, 1.3, 1.5
# With a shift of one voxel the wide peak of a tomogram is hardly lower at zero, but its top, interpolated between the
# voxels, moves. In 482 good pairs with a peak above 24 (simulated, and parts of real and realistic tomograms) it lay at
# most 0.58 voxels from zero; in 747 of 760 pairs shifted by one voxel beyond 0.7. With peaks below 20 the two overlap.
_DISTINCT, _OFF = 24.0, 0.7
# Every set of axes along which the second half may be mirrored, the empty one first.
_MIRRORS = ["".join(axes) for n in range(4) for axes in combinations("zyx", n)]


@dataclass(frozen=True)
class HalvesAgreement:
    """The position and contrast of the second half relative to the first.

    Parameters
    ----------
    shift
        Voxels along ``(z, y, x)`` by which the second half is shifted against the first; zeros if it is not shifted
        or nothing was found.
    mirrored
        The axes along which the second half is mirrored, as ``"z"`` or ``"yx"``; empty if it is not.
    inverted
        Whether the contrast of one half is the opposite of the other's.
    peak
        Height of the correlation at that position, in its standard deviations: above 12 the halves surely show
        the same specimen, below zero the opposite contrast correlates.
    """

    shift: tuple[int, int, int] = (0, 0, 0)
    mirrored: str = ""
    inverted: bool = False
    peak: float = 0.0

    @property
    def faults(self) -> list[tuple[str, str]]:
        """The faults that were found, each with its remedy; empty if there are none."""
        found = []
        if self.inverted:
            found.append(("the halves are anticorrelated: the contrast of one is inverted", "multiply it by -1"))
        if self.mirrored:
            found.append(
                (
                    f"the halves are mirrored along {', '.join(self.mirrored)} against each other",
                    "reconstruct both with the same geometry, or turn one back",
                )
            )
        if any(self.shift):
            found.append(
                (
                    f"the second half is shifted against the first by {self.shift} voxels (z, y, x)",
                    "align them, or reconstruct both from one alignment",
                )
            )
        return found


def compare_halves(first: VolumeLike, second: VolumeLike) -> HalvesAgreement:
    r"""Find a shift, a mirror or an inverted contrast between two halves from their cross-correlation.

    .. math:: c(s) = F^{-1} \bigl[ w(|k|)\, F_1\, \overline{F_2} \bigr](s)

    Every shell of frequencies below a quarter of the sampling rate is scaled to the same power, so that gradients and
    thick membranes do not blur the peak, and outliers are clipped. The peak must be well above noise and 1.5 times as
    high as the value at zero; a shift of one voxel is reported if the peak is 24 standard deviations high. A negative
    peak means inverted contrast. The second half is tried as it is and mirrored along every set of axes. The middle 128
    voxels along each axis are compared, under a Hann window.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of one shape.

    Examples
    --------
    >>> specimen = torch.randn(24, 24, 24)
    >>> first, second = specimen + 0.5 * torch.randn(2, 24, 24, 24)
    >>> compare_halves(first, second).faults
    []
    >>> compare_halves(first, second.roll((0, 2, 0), (0, 1, 2))).shift
    (0, 2, 0)
    >>> compare_halves(first, second.flip(0)).mirrored
    'z'
    """
    if min(first.shape) < _LEAST:
        return HalvesAgreement()
    one, other = _middle(first), _middle(second)
    shape = spatial_shape(one.shape)
    radius = frequency_radius(shape, dtype=torch.float32)
    low = ((radius > 0) & (radius <= _LOW_PASS)).float()
    spectrum = _whitened(one) * low
    found = {}
    for axes in _MIRRORS:
        mirrored = other.flip(["zyx".index(axis) for axis in axes])
        found[axes] = _peak(spectrum, _whitened(mirrored), shape)
    axes = max(found, key=lambda name: found[name].height)
    peak = found[axes]
    others = max(other.height for name, other in found.items() if name != axes)
    if peak.height < SURE or peak.height < _ALONE * others:
        plain = found[""]
        return HalvesAgreement(peak=-plain.at_zero if plain.inverted else plain.at_zero)
    if axes:
        return HalvesAgreement(mirrored=axes, inverted=peak.inverted, peak=peak.height)
    is_one_off = peak.height > _DISTINCT and _OFF < max(map(abs, peak.top)) < 1.5
    if peak.height > _HIGHER * peak.at_zero or is_one_off:
        z, y, x = (round(length) for length in peak.top)
        return HalvesAgreement(shift=(z, y, x), inverted=peak.inverted, peak=peak.height)
    return HalvesAgreement(inverted=peak.inverted, peak=peak.at_zero)


def _middle(volume: VolumeLike) -> Tensor:
    """Return the middle of a volume under a window, without its mean."""
    # Hot voxels and gold would outweigh everything else.
    cut = torch.from_numpy(clipped(middle_of(volume, _MOST).numpy()))
    return (cut - cut.mean()) * hann(cut.shape)


def _whitened(volume: Tensor) -> Tensor:
    """Return the spectrum scaled to equal power in every shell."""
    spectrum = rfftn(volume)
    radius = frequency_radius(spatial_shape(volume.shape), dtype=torch.float32)
    shell = (radius / _LOW_PASS * _SHELLS).long().clamp_max(_SHELLS)
    power = torch.bincount(shell.flatten(), spectrum.abs().square().flatten().double(), minlength=_SHELLS + 1)
    power = power / torch.bincount(shell.flatten(), minlength=_SHELLS + 1).clamp_min(1)
    return spectrum / power.sqrt().clamp_min(1e-30).float()[shell]


@dataclass(frozen=True)
class _Peak:
    """The position of the highest correlation, its height and that at zero, in standard deviations.

    The heights are those of the opposite contrast if that correlates better.
    """

    top: tuple[float, ...] = (0.0, 0.0, 0.0)
    height: float = 0.0
    at_zero: float = 0.0
    inverted: bool = False


def _peak(one: Tensor, other: Tensor, shape: tuple[int, int, int]) -> _Peak:
    """Return the peak of the cross-correlation of two volumes of a shape, given by their spectra."""
    correlation = irfftn(one.conj() * other, shape)
    deviation = float(correlation.std())
    if not deviation > 0:
        return _Peak()
    inverted = bool(-correlation.min() > correlation.max())
    if inverted:
        correlation = -correlation
    index = [int(i) for i in np.unravel_index(int(correlation.argmax()), correlation.shape)]

    def neighbour(axis: int, step: int) -> float:
        place = index.copy()
        place[axis] = (place[axis] + step) % shape[axis]
        return float(correlation[*place])

    whole = [i - n if 2 * i > n else i for i, n in zip(index, shape, strict=True)]
    top = tuple(i + _top(*(neighbour(axis, step) for step in (-1, 0, 1))) for axis, i in enumerate(whole))
    return _Peak(top, float(correlation.max()) / deviation, float(correlation[0, 0, 0]) / deviation, inverted)


def _top(before: float, here: float, after: float) -> float:
    """Return where a parabola through the highest value and its two neighbours has its top, from -1/2 to 1/2."""
    curvature = before - 2 * here + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0
