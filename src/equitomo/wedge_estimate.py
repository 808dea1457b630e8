"""The missing wedge as the data show it, from a volume's own power spectrum, held against what was declared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequencies, hann, rfftn
from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.volumes import VolumeLike as Volume
from equitomo.volumes import middle_of

Axis = Literal["z", "y", "x"]

# The plane across each tilt axis, its two axes in the order (z, y, x).
_PLANES: dict[Axis, tuple[Axis, Axis]] = {"y": ("z", "x"), "x": ("z", "y"), "z": ("y", "x")}
# More voxels of a side tell no more; fewer than the least blur the edges of a wedge by more than they may be off.
_MOST, _LEAST = 192, 24
# A ring holds the coefficients of like frequency along the tilt axis and like distance from it.
_ALONG, _RADII, _SHELLS = 12, 10, 24
_STEP = 2  # degrees of a sector of a ring
# In logarithms of power: a thousandth of what its shell holds counts as empty, whatever lies below.
_EMPTY = math.log(1e-3)
# What makes a finding sure: the variance explained, and how many degrees the edges move at most between the inner and
# the outer half of the rings. Without a wedge the first stays below 0.3; filters along an axis reach 0.8, but move the
# edges by 8 degrees and more, wedges by less than 4.
_EXPLAINED, _DRIFT = 0.4, 6.0
_BLUR = 15.0  # degrees that the window may blur an edge by; at 20 it moves by 9
# Ends of ranges are found within 4 degrees: what fits the opposite sign better by more has that sign.
_SIGN = 4.0
_NARROWEST = 50.0  # degrees of tilt that a series spans at least


@dataclass(frozen=True, eq=False)
class WedgeEstimate:
    """The empty sector that :func:`estimate_wedge` found in a spectrum, or why it cannot tell.

    Parameters
    ----------
    tilt_axis
        The axis that the sector is constant along; ``None`` if the spectrum does not tell.
    beam_axis
        The axis that the middle of the sector is nearest to.
    tilt_range
        Lowest and highest measured tilt in degrees, in the convention of :class:`~equitomo.TiltGeometry`.
    contrast
        Power per coefficient outside the sector over that inside.
    explained
        Share of the variance of the logarithm of power, within rings about the tilt axis, that the sector explains:
        near 0 without a wedge, from 0.5 to 0.9 with one. The confidence of the finding.
    reason
        Why it cannot be told, empty if it was.
    angle, power
        The power per coefficient over the angle in the plane across the tilt axis, in degrees from the axis across to
        the beam axis, relative to what lies outside the sector; for :func:`equitomo.report.draw_wedge`.
    """

    tilt_axis: Axis | None = None
    beam_axis: Axis | None = None
    tilt_range: tuple[float, float] | None = None
    contrast: float = math.nan
    explained: float = 0.0
    reason: str = ""
    angle: tuple[float, ...] = ()
    power: tuple[float, ...] = ()


@dataclass(frozen=True)
class WedgeVerdict:
    """What a declared geometry is to a spectrum, with a sentence for the user.

    ``kind`` is ``"agrees"``, ``"unclear"`` if the spectrum does not tell, or what is wrong: ``"axes"``, ``"sign"``
    or ``"range"``.
    """

    kind: Literal["agrees", "unclear", "axes", "sign", "range"]
    message: str

    @property
    def is_wrong(self) -> bool:
        """Whether the declared geometry is surely not that of the data."""
        return self.kind in ("axes", "sign", "range")


def estimate_wedge(first: Volume, second: Volume | None = None) -> WedgeEstimate:
    r"""Find tilt axis, beam axis and tilt range from the power spectrum of a volume, or of two halves.

    A single-axis tilt series leaves a sector of the planes across the tilt axis empty: the same sector in every ring,
    at every frequency along the axis and every distance from it. Low-pass filters, thin slabs and interpolation also
    empty parts of a spectrum, but no sector of all rings. For each of the three axes the sector is sought whose mean
    of :math:`\log |F(k)|^2` lies the furthest below that of the rest of its rings (the largest between-class variance,
    :cite:t:`otsu1979threshold`), and the axis is taken whose sector explains most. An edge of the sector is where the
    power has fallen to half of what it is beside it, which blurring by the window does not move.

    It looks at the middle of the volume, at most 192 voxels along each axis, under a Hann window: the faces of a
    cropped volume would put a cross over the wedge.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of one shape, also memory maps; of two the power is added.

    Raises
    ------
    ValueError
        If the volumes are not three-dimensional or differ in shape.

    Examples
    --------
    >>> from equitomo import MissingWedgeOperator
    >>> physics = MissingWedgeOperator((48, 48, 48), (-50.0, 60.0))
    >>> estimate = estimate_wedge(physics.A(torch.randn(1, 1, 48, 48, 48))[0, 0])
    >>> estimate.tilt_axis, estimate.beam_axis, [round(tilt, -1) for tilt in estimate.tilt_range]
    ('y', 'z', [-50.0, 60.0])
    >>> estimate_wedge(torch.randn(48, 48, 48)).reason
    'no sector of the spectrum is emptier than the rest'
    """
    volumes = [first] if second is None else [first, second]
    if len(first.shape) != 3 or any(tuple(volume.shape) != tuple(first.shape) for volume in volumes):
        raise ValueError(f"volumes (z, y, x) of one shape are needed, got {[tuple(v.shape) for v in volumes]}")
    if min(first.shape) < _LEAST:
        return WedgeEstimate(reason=f"fewer than {_LEAST} voxels along an axis do not resolve a wedge")
    middles = [middle_of(volume, _MOST) for volume in volumes]
    if not all(torch.isfinite(middle.sum(dtype=torch.float64)) for middle in middles):
        return WedgeEstimate(reason="the volume holds voxels that are NaN or infinite")
    spectrum = _Spectrum.of(middles)
    if spectrum.blur > _BLUR:
        return WedgeEstimate(reason="what frequencies there are do not resolve a wedge (small, filtered or constant?)")
    return _judged(spectrum, max((_best_sector(spectrum, axis) for axis in _PLANES), key=lambda fit: fit.explained))


def judge_geometry(
    estimate: WedgeEstimate, geometry: TiltGeometry | tuple[float, float], *, tolerance: float = 8.0
) -> WedgeVerdict:
    """Hold a declared geometry against the spectrum.

    Parameters
    ----------
    estimate
        What :func:`estimate_wedge` found.
    geometry
        What was declared.
    tolerance
        Degrees that an end of the range may be off. Excluded views, tilt offsets and the blur of small volumes are
        worth a few; the error of a wrong sign is twice what the range is off centre.

    Examples
    --------
    >>> estimate = WedgeEstimate("y", "z", (-60.0, 41.0), contrast=200.0, explained=0.8)
    >>> judge_geometry(estimate, (-60.0, 40.0)).kind
    'agrees'
    >>> print(judge_geometry(estimate, (-40.0, 60.0)).message)
    the tilts seem to have the opposite sign: the spectrum is filled from -60 to 41 degrees, declared are -40 to 60;
    use --tilts=-60,40
    """
    geometry = as_geometry(geometry)
    if estimate.tilt_range is None or estimate.tilt_axis is None:
        return WedgeVerdict("unclear", f"the spectrum does not tell the missing wedge: {estimate.reason}")
    (low, high), (declared_low, declared_high) = estimate.tilt_range, geometry.tilt_range

    as_declared = max(abs(low - declared_low), abs(high - declared_high))
    opposite = max(abs(low + declared_high), abs(high + declared_low))
    if (estimate.tilt_axis, estimate.beam_axis) != (geometry.tilt_axis, "z"):
        return WedgeVerdict("axes", _misplaced(estimate, geometry))
    found = f"the spectrum is filled from {low:.0f} to {high:.0f} degrees"
    declared = f"declared are {declared_low:g} to {declared_high:g}"
    # A wrong sign of a range that is little off centre lies within the tolerance; a right one never fits so badly.
    if as_declared <= tolerance and as_declared < opposite + _SIGN:
        return WedgeVerdict("agrees", f"{found} about {estimate.tilt_axis}, {declared}")
    if opposite <= tolerance:
        remedy = f"use --tilts={-declared_high:g},{-declared_low:g}"
        return WedgeVerdict("sign", f"the tilts seem to have the opposite sign: {found}, {declared}; {remedy}")
    remedy = (
        f"give the tilts of this tomogram or, if it was turned about its tilt axis or views were left out, "
        f"--tilts={low:.0f},{high:.0f}"
    )
    return WedgeVerdict("range", f"the empty sector is not where the tilts put it: {found}, {declared}; {remedy}")


def _misplaced(estimate: WedgeEstimate, geometry: TiltGeometry) -> str:
    """What to do about a tilt axis or a beam along another axis than was said."""
    tilt_axis, beam_axis = estimate.tilt_axis, estimate.beam_axis
    found = (
        f"your file looks rotated: the empty sector lies around k{beam_axis} and is constant along {tilt_axis}, so "
        f"the beam is along {beam_axis} and the tilt axis is {tilt_axis}; declared are z and {geometry.tilt_axis}"
    )
    if beam_axis == "z":
        return f"{found}. Use --tilt-axis {tilt_axis}"
    turn = next(axis for axis in "xy" if axis not in (beam_axis, "z"))
    left = tilt_axis if tilt_axis != "z" else beam_axis
    return (
        f"{found}. Turn both halves by 90 degrees about {turn} so that the beam comes to lie along z (IMOD: clip "
        f"rot{turn} IN OUT), use --tilt-axis {left}, and check again"
    )


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Power of the coefficients that count, flat, with their frequencies and the logarithm relative to their shell."""

    power: Tensor
    log: Tensor
    frequency: dict[Axis, Tensor]
    lowest: float
    blur: float

    @classmethod
    def of(cls, volumes: list[Tensor]) -> _Spectrum:
        power, shape = _windowed_power(volumes)
        kz, ky, kx = (k.expand(power.shape) for k in frequencies(shape, dtype=torch.float32))
        radius = (kz**2 + ky**2 + kx**2).sqrt()
        # Next to zero a window is wider than any sector, and gradients of the background prevail.
        lowest = max(0.06, 3 / min(shape))
        kept = (radius > lowest) & (radius <= 0.5)
        shell = ((radius[kept] - lowest) / (0.5 - lowest) * _SHELLS).long().clamp_max(_SHELLS - 1)
        power = power[kept]
        level = torch.stack([_high_level(power[shell == number]) for number in range(_SHELLS)])
        # Beyond the cut of a low-pass filter there is rounding, which has no wedge.
        counts = (level > 1e-6 * level.max())[shell]
        power, shell = power[counts], shell[counts]
        log = (power / level[shell]).log().clamp_min(_EMPTY)
        z, y, x = (k[kept][counts] for k in (kz, ky, kx))
        # Degrees that half the main lobe of the window, two coefficients, takes at the frequencies there are.
        middle = float(radius[kept][counts].median()) if len(power) else 0.0
        blur = math.degrees(2 / (min(shape) * middle)) if middle else math.inf
        return cls(power, log, {"z": z, "y": y, "x": x}, lowest, blur)

    def rings(self, axis: Axis) -> tuple[Tensor, Tensor, Tensor]:
        """Which coefficients lie far enough from a tilt axis, and their rings and angles in degrees."""
        down, across = (self.frequency[other] for other in _PLANES[axis])
        radius = (down**2 + across**2).sqrt()
        far = radius > self.lowest
        ring = (radius[far] * (2 * _RADII)).long().clamp_max(_RADII - 1)
        along = (self.frequency[axis][far].abs() * (2 * _ALONG)).long().clamp_max(_ALONG - 1)
        angle = torch.rad2deg(torch.atan2(down[far], across[far])).remainder(180.0)
        return far, along * _RADII + ring, angle


def _windowed_power(volumes: list[Tensor]) -> tuple[Tensor, tuple[int, int, int]]:
    window = hann(volumes[0].shape)
    # Without its mean under the window, or the zero frequency would leak into those around it.
    tapered = ((volume - (volume * window).sum() / window.sum()) * window for volume in volumes)
    return sum((rfftn(volume).abs().square() for volume in tapered), torch.zeros(())), spatial_shape(window.shape)


def _high_level(power: Tensor) -> Tensor:
    """What nine tenths of a shell's coefficients stay below: a level of the measured part, whatever is empty."""
    return power.kthvalue(1 + int(0.9 * (len(power) - 1))).values if len(power) else power.new_zeros(())


@dataclass(frozen=True)
class _Fit:
    """A sector of the planes across an axis: first and last angle, the variance it explains, its contrast."""

    axis: Axis
    first: float
    last: float
    explained: float
    contrast: float


def _best_sector(spectrum: _Spectrum, axis: Axis) -> _Fit:
    """The sector with the largest variance between it and the rest, within rings."""
    far, ring, angle = spectrum.rings(axis)
    log = spectrum.log[far].double()
    count, total = (_table(ring, angle, values) for values in (torch.ones_like(log), log))
    variance = (_table(ring, angle, log**2).sum() - (total.sum(1) ** 2 / count.sum(1).clamp_min(1)).sum()).item()
    best = (0.0, 0, 0)
    # A tilt range of 40 to 165 degrees; all starts of one width at once.
    for width in range(15 // _STEP, 140 // _STEP):
        gain = _between(count, total, width)[0].sum(0)
        best = max(best, (float(gain.max()), int(gain.argmax()), width))
    gained, start, width = best
    if not gained:
        return _Fit(axis, 0.0, 0.0, 0.0, 1.0)
    _, steps, weights = _between(count, total, width)
    step, weight = steps[:, start], weights[:, start]
    return _Fit(
        axis,
        first=float(start * _STEP),
        last=float((start + width) * _STEP),
        explained=gained / max(variance, 1e-30),
        contrast=math.exp(float((weight * step).sum() / weight.sum())),
    )


def _between(count: Tensor, total: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Variance between a sector and the rest, their difference, and its weight: (ring, start of the sector)."""

    def within(table: Tensor) -> Tensor:
        sums = torch.cat((torch.zeros_like(table[:, :1]), torch.cat((table, table), 1).cumsum(1)), 1)
        return sums[:, width : width + table.shape[1]] - sums[:, : table.shape[1]]

    inside, outside = within(count), count.sum(1, keepdim=True) - within(count)
    mean_inside = within(total) / inside.clamp_min(1)
    mean_outside = (total.sum(1, keepdim=True) - within(total)) / outside.clamp_min(1)
    weight = inside * outside / count.sum(1, keepdim=True).clamp_min(1)
    step = mean_outside - mean_inside
    return weight * step.clamp_min(0) ** 2, step, weight


def _table(ring: Tensor, angle: Tensor, values: Tensor) -> Tensor:
    """Sums over the sectors of the rings, (ring, sector)."""
    n = 180 // _STEP
    sector = (angle / _STEP).long().clamp_max(n - 1)
    flat = torch.bincount(ring * n + sector, values.double(), minlength=_ALONG * _RADII * n)
    return flat.reshape(-1, n)


def _judged(spectrum: _Spectrum, fit: _Fit) -> WedgeEstimate:
    """A wedge, or why it is none."""

    def unclear(reason: str) -> WedgeEstimate:
        return WedgeEstimate(contrast=fit.contrast, explained=fit.explained, reason=reason)

    if fit.explained < _EXPLAINED:
        return unclear("no sector of the spectrum is emptier than the rest")
    inner, outer = (_edges(_profile(spectrum, fit, outer=half), fit) for half in (False, True))
    drift = max(abs(one - other) for one, other in zip(inner, outer, strict=True))
    if drift > _DRIFT:
        return unclear("what is empty is no sector of all frequencies (filtered along an axis, or interpolated?)")
    power = _profile(spectrum, fit)
    first, last = _edges(power, fit)
    if 180 - (last - first) < _NARROWEST:
        return unclear(f"what is left of the spectrum is less than {_NARROWEST:g} degrees of tilt")
    angle = (torch.arange(len(power)) + 0.5) * _STEP
    beam, across = _PLANES[fit.axis]
    if abs((first + last) / 2 % 180 - 90) > 45:
        # Angles run from the axis across to the beam: the two change places.
        beam, first, last, angle = across, 90 - last, 90 - first, (90 - angle).remainder(180)
    turns = 180 * round(((first + last) / 2 - 90) / 180)
    order = angle.argsort()
    return WedgeEstimate(
        tilt_axis=fit.axis,
        beam_axis=beam,
        tilt_range=(last - turns - 180, first - turns),
        contrast=fit.contrast,
        explained=fit.explained,
        angle=tuple(angle[order].tolist()),
        power=tuple(power[order].tolist()),
    )


def _profile(spectrum: _Spectrum, fit: _Fit, *, outer: bool | None = None) -> Tensor:
    """Power per coefficient over the angle, relative to what each ring holds outside the sector.

    Of all rings, or only of the half that lies further out or in.
    """
    far, ring, angle = spectrum.rings(fit.axis)
    power = spectrum.power[far].double()
    # Power beside the sector may leak from it or into it.
    outside = (angle - fit.first + 10).remainder(180) > fit.last - fit.first + 20
    n_rings = _ALONG * _RADII
    level = torch.bincount(ring[outside], power[outside], minlength=n_rings)
    level = level / torch.bincount(ring[outside], minlength=n_rings).clamp_min(1)
    used = level[ring] > 0
    if outer is not None:
        distance = ring % _RADII
        used &= (distance > distance.median()) == outer
    # A single bright coefficient, of a crystal or a layer line, must not be taken for a level.
    relative = (power[used] / level[ring[used]]).clamp_max(5.0)
    total, count = (_table(ring[used], angle[used], values).sum(0) for values in (relative, torch.ones_like(relative)))
    # In thin volumes no coefficient lies in some of the directions.
    centres, seen = (np.arange(len(count)) + 0.5) * _STEP, count.numpy() > 0
    known = (total / count).numpy()[seen]
    return torch.from_numpy(np.interp(centres, centres[seen], known, period=180.0))


def _edges(power: Tensor, fit: _Fit) -> tuple[float, float]:
    """Angles where the power has fallen to half of what it is beside the sector, from inside the sector."""
    n = len(power)
    middle = (fit.first + fit.last) / 2

    def at(degrees: float) -> float:
        """Interpolated between the centres of two sectors."""
        position = degrees / _STEP - 0.5
        left = math.floor(position)
        share = position - left
        return float((1 - share) * power[left % n] + share * power[(left + 1) % n])

    def edge(coarse: float, outward: int) -> float:
        beside = [at(coarse + outward * (4 + degrees)) for degrees in range(10)]
        half = 0.5 * sum(beside) / len(beside)
        return next((angle for angle in _walk(middle, outward) if at(angle) >= half), coarse)

    return edge(fit.first, -1), edge(fit.last, 1)


def _walk(start: float, direction: int) -> Iterator[float]:
    return (start + direction * 0.25 * step for step in range(4 * 90))
