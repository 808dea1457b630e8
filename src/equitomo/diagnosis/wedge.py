"""The missing wedge in a volume's own power spectrum, and how it compares with the declared tilts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.datasets.statistics import MIDDLE
from equitomo.fourier import frequencies, frequency_radius, hann, rfftn
from equitomo.geometry import Geometry, TiltGeometry, TiltUnion, as_geometry
from equitomo.volumes import VolumeLike, middle_of

Axis = Literal["z", "y", "x"]

# The plane across each tilt axis, its two axes in the order (z, y, x).
_PLANES: dict[Axis, tuple[Axis, Axis]] = {"y": ("z", "x"), "x": ("z", "y"), "z": ("y", "x")}
_LEAST = 24  # voxels of a side; with fewer the edges of a wedge blur by more than they may be off
# A ring holds the coefficients with similar frequencies along the tilt axis and similar distances from it.
_ALONG, _RADII, _SHELLS = 12, 10, 24
_STEP = 2  # degrees that one sector of a ring spans
# In logarithms of power: a coefficient with a thousandth of its shell's power, or less, counts as empty.
_EMPTY = math.log(1e-3)
# A wedge is accepted if it explains more than this share of the variance and its edges differ by less than so many
# degrees between the inner and the outer half of the rings. Without a wedge the share stays below 0.3; filters along an
# axis reach 0.8, but move the edges by 8 degrees and more, wedges by less than 4.
_EXPLAINED, _DRIFT = 0.4, 6.0
_BLUR = 15.0  # degrees by which the window may blur an edge; at 20 the edge moves by 9
# The ends of a range are found to within 4 degrees: a range that fits the opposite sign better by more has that sign.
_SIGN = 4.0
_NARROWEST = 50.0  # the least degrees of tilt that a series spans


@dataclass(frozen=True, eq=False)
class WedgeEstimate:
    """The empty sector that :func:`estimate_wedge` found in a spectrum, or the reason why it found none.

    Parameters
    ----------
    tilt_axis
        The axis along which the sector is constant; ``None`` if no sector was found.
    beam_axis
        The axis that is nearest to the middle of the sector.
    tilt_range
        Lowest and highest measured tilt in degrees, in the convention of :class:`~equitomo.TiltGeometry`.
    contrast
        Ratio of the power per coefficient outside the sector to that inside.
    explained
        Share of the variance of the logarithm of power, within rings about the tilt axis, that the sector explains:
        near 0 without a wedge, from 0.5 to 0.9 with one. It measures how sure the result is.
    reason
        Why no sector was found, empty if one was.
    angle, power
        The power per coefficient over the angle in the plane across the tilt axis, relative to the power outside the
        sector. The angle is in degrees from the axis across to the beam axis. For :func:`equitomo.report.draw_wedge`.
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
    """The result of comparing a declared geometry with a spectrum.

    Parameters
    ----------
    kind
        ``"agrees"``, ``"unclear"`` if the spectrum does not show the wedge, or what is wrong: ``"axes"``, ``"sign"``
        or ``"range"``.
    message
        What was found.
    remedy
        How to mend what is wrong.
    """

    kind: Literal["agrees", "unclear", "axes", "sign", "range"]
    message: str
    remedy: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the declared geometry is surely not that of the data."""
        return self.kind in ("axes", "sign", "range")


def estimate_wedge(first: VolumeLike, second: VolumeLike | None = None) -> WedgeEstimate:
    r"""Estimate tilt axis, beam axis and tilt range from the power spectrum of a volume, or of two halves.

    A single-axis tilt series leaves a sector of the planes across the tilt axis empty: the same sector in every ring,
    at every frequency along the axis and every distance from it. Low-pass filters, thin slabs and interpolation also
    empty parts of a spectrum, but not one sector of all rings. For each of the three axes, the function looks for the
    sector whose mean of :math:`\log |F(k)|^2` lies furthest below that of the rest of its rings (the largest
    between-class variance, :cite:t:`otsu1979threshold`), and takes the axis whose sector explains most. An edge of the
    sector is where the power has fallen to half of its value outside, which blurring by the window does not move.

    The middle of the volume is used, at most 192 voxels along each axis, under a Hann window: the faces of a cropped
    volume would put a cross over the wedge.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of one shape, in memory or in files. The power of two volumes is added.

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
    middles = [middle_of(volume, MIDDLE) for volume in volumes]
    if not all(torch.isfinite(middle.sum(dtype=torch.float64)) for middle in middles):
        return WedgeEstimate(reason="the volume holds voxels that are NaN or infinite")
    spectrum = _Spectrum.of(middles)
    if spectrum.blur > _BLUR:
        return WedgeEstimate(reason="the frequencies it holds do not resolve a wedge (small, filtered or constant?)")
    return _judged(spectrum, max((_best_sector(spectrum, axis) for axis in _PLANES), key=lambda fit: fit.explained))


def judge_geometry(
    estimate: WedgeEstimate, geometry: Geometry | tuple[float, float], *, tolerance: float = 8.0
) -> WedgeVerdict:
    """Compare a declared geometry with the wedge found in the spectrum.

    Parameters
    ----------
    estimate
        The result of :func:`estimate_wedge`.
    geometry
        The declared tilts.
    tolerance
        Degrees by which an end of the range may be off. Excluded views, tilt offsets and the blur of small volumes
        amount to a few; a wrong sign moves the ends by twice the distance of the range from the centre.

    Examples
    --------
    >>> estimate = WedgeEstimate("y", "z", (-60.0, 41.0), contrast=200.0, explained=0.8)
    >>> judge_geometry(estimate, (-60.0, 40.0)).kind
    'agrees'
    >>> print(judge_geometry(estimate, (-40.0, 60.0)).remedy)
    pass `tilts='-60,40'`
    """
    geometry = as_geometry(geometry)
    if isinstance(geometry, TiltUnion):
        return WedgeVerdict(
            "unclear", "the missing wedge cannot be checked: several tilt series leave a gap that is not one sector"
        )
    if estimate.tilt_range is None or estimate.tilt_axis is None:
        return WedgeVerdict("unclear", f"the spectrum does not show the missing wedge: {estimate.reason}")
    (low, high), (declared_low, declared_high) = estimate.tilt_range, geometry.tilt_range

    as_declared = max(abs(low - declared_low), abs(high - declared_high))
    opposite = max(abs(low + declared_high), abs(high + declared_low))
    if (estimate.tilt_axis, estimate.beam_axis) != (geometry.tilt_axis, "z"):
        return WedgeVerdict("axes", *_misplaced(estimate, geometry))
    found = f"the spectrum is filled from {low:.0f} to {high:.0f} degrees"
    declared = f"declared are {declared_low:g} to {declared_high:g}"
    # A range close to the centre fits within the tolerance with either sign; with the right one it never fits so badly.
    if as_declared <= tolerance and as_declared < opposite + _SIGN:
        return WedgeVerdict("agrees", f"{found} about {estimate.tilt_axis}, {declared}")
    if opposite <= tolerance:
        message = f"the tilts seem to have the opposite sign: {found}, {declared}"
        return WedgeVerdict("sign", message, f"pass `tilts='{-declared_high:g},{-declared_low:g}'`")
    return WedgeVerdict(
        "range",
        f"the empty sector is not where the tilts put it: {found}, {declared}",
        "give the tilts of this tomogram or, if it was turned about its tilt axis or views were left out, pass "
        f"`tilts='{low:.0f},{high:.0f}'`",
    )


def _misplaced(estimate: WedgeEstimate, geometry: TiltGeometry) -> tuple[str, str]:
    """Return what is wrong where tilt axis or beam lie along another axis than declared, and the remedy."""
    tilt_axis, beam_axis = estimate.tilt_axis, estimate.beam_axis
    found = (
        f"your file looks rotated: the empty sector lies around k{beam_axis} and is constant along {tilt_axis}, so "
        f"the beam is along {beam_axis} and the tilt axis is {tilt_axis}; declared are z and {geometry.tilt_axis}"
    )
    if beam_axis == "z":
        return found, f"pass `tilt_axis='{tilt_axis}'`"
    turn = next(axis for axis in "xy" if axis not in (beam_axis, "z"))
    left = tilt_axis if tilt_axis != "z" else beam_axis
    return found, (
        f"turn both halves by 90 degrees about {turn} so that the beam comes to lie along z (IMOD: clip rot{turn} IN "
        f"OUT), pass `tilt_axis='{left}'`, and check again"
    )


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """The power of the coefficients that are used, flat, its logarithm relative to the shell, and the frequencies."""

    power: Tensor
    log: Tensor
    frequency: dict[Axis, Tensor]
    lowest: float
    blur: float

    @classmethod
    def of(cls, volumes: list[Tensor]) -> _Spectrum:
        window, shape = hann(volumes[0].shape), spatial_shape(volumes[0].shape)
        # The mean under the window is subtracted, or the zero frequency would leak into its neighbours.
        tapered = ((volume - (volume * window).sum() / window.sum()) * window for volume in volumes)
        power = sum((rfftn(volume).abs().square() for volume in tapered), torch.zeros(()))
        kz, ky, kx = (k.expand(power.shape) for k in frequencies(shape, dtype=torch.float32))
        radius = frequency_radius(shape, dtype=torch.float32)
        # Close to zero frequency the window is wider than any sector, and gradients of the background prevail.
        lowest = max(0.06, 3 / min(shape))
        kept = (radius > lowest) & (radius <= 0.5)
        shell = ((radius[kept] - lowest) / (0.5 - lowest) * _SHELLS).long().clamp_max(_SHELLS - 1)
        power = power[kept]
        level = torch.stack([_high_level(power[shell == number]) for number in range(_SHELLS)])
        # Beyond the cut-off of a low-pass filter there are only rounding errors, which have no wedge.
        counts = (level > 1e-6 * level.max())[shell]
        power, shell = power[counts], shell[counts]
        log = (power / level[shell]).log().clamp_min(_EMPTY)
        z, y, x = (k[kept][counts] for k in (kz, ky, kx))
        # The angle that half the main lobe of the window, two coefficients, subtends at the median frequency.
        middle = float(radius[kept][counts].median()) if len(power) else 0.0
        blur = math.degrees(2 / (min(shape) * middle)) if middle else math.inf
        return cls(power, log, {"z": z, "y": y, "x": x}, lowest, blur)

    def rings(self, axis: Axis) -> tuple[Tensor, Tensor, Tensor]:
        """Return which coefficients lie far enough from a tilt axis, and their rings and angles in degrees."""
        down, across = (self.frequency[other] for other in _PLANES[axis])
        radius = (down**2 + across**2).sqrt()
        far = radius > self.lowest
        ring = (radius[far] * (2 * _RADII)).long().clamp_max(_RADII - 1)
        along = (self.frequency[axis][far].abs() * (2 * _ALONG)).long().clamp_max(_ALONG - 1)
        angle = torch.rad2deg(torch.atan2(down[far], across[far])).remainder(180.0)
        return far, along * _RADII + ring, angle


def _high_level(power: Tensor) -> Tensor:
    """Return the level that nine tenths of a shell's power stay below: that of its measured part, whatever is empty."""
    return power.kthvalue(1 + int(0.9 * (len(power) - 1))).values if len(power) else power.new_zeros(())


@dataclass(frozen=True)
class _Fit:
    """A sector of the planes across an axis: its first and last angle, the variance it explains, and its contrast."""

    axis: Axis
    first: float
    last: float
    explained: float
    contrast: float


def _best_sector(spectrum: _Spectrum, axis: Axis) -> _Fit:
    """Return the sector with the largest variance between it and the rest, within rings."""
    far, ring, angle = spectrum.rings(axis)
    log = spectrum.log[far].double()
    count, total = (_table(ring, angle, values) for values in (torch.ones_like(log), log))
    variance = (_table(ring, angle, log**2).sum() - (total.sum(1) ** 2 / count.sum(1).clamp_min(1)).sum()).item()
    best = (0.0, 0, 0)
    # Sectors that leave a tilt range of 40 to 165 degrees; all starts of one width at once.
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
    """Return the variance between a sector and the rest, their difference and its weight: (ring, start of sector)."""

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
    """Return the sums over the sectors of the rings, (ring, sector)."""
    n = 180 // _STEP
    sector = (angle / _STEP).long().clamp_max(n - 1)
    flat = torch.bincount(ring * n + sector, values.double(), minlength=_ALONG * _RADII * n)
    return flat.reshape(-1, n)


def _judged(spectrum: _Spectrum, fit: _Fit) -> WedgeEstimate:
    """Return the wedge that a sector stands for, or the reason why it is not a wedge."""

    def unclear(reason: str) -> WedgeEstimate:
        return WedgeEstimate(contrast=fit.contrast, explained=fit.explained, reason=reason)

    if fit.explained < _EXPLAINED:
        return unclear("no sector of the spectrum is emptier than the rest")
    inner, outer = (_edges(_profile(spectrum, fit, outer=half), fit) for half in (False, True))
    drift = max(abs(one - other) for one, other in zip(inner, outer, strict=True))
    if drift > _DRIFT:
        return unclear("the empty part is not a sector at all frequencies (filtered along an axis, or interpolated?)")
    power = _profile(spectrum, fit)
    first, last = _edges(power, fit)
    if 180 - (last - first) < _NARROWEST:
        return unclear(f"the rest of the spectrum spans less than {_NARROWEST:g} degrees of tilt")
    angle = (torch.arange(len(power)) + 0.5) * _STEP
    beam, across = _PLANES[fit.axis]
    if abs((first + last) / 2 % 180 - 90) > 45:
        # Angles run from the axis across to the beam, and here the two axes change places.
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
    """Return the power per coefficient over the angle, relative to each ring's power outside the sector.

    ``outer`` takes only the outer half of the rings, or only the inner half.
    """
    far, ring, angle = spectrum.rings(fit.axis)
    power = spectrum.power[far].double()
    # Directions close to the sector are left out: power leaks across its edges.
    outside = (angle - fit.first + 10).remainder(180) > fit.last - fit.first + 20
    n_rings = _ALONG * _RADII
    level = torch.bincount(ring[outside], power[outside], minlength=n_rings)
    level = level / torch.bincount(ring[outside], minlength=n_rings).clamp_min(1)
    used = level[ring] > 0
    if outer is not None:
        distance = ring % _RADII
        used &= (distance > distance.median()) == outer
    # A single bright coefficient, of a crystal or a layer line, must not dominate the mean.
    relative = (power[used] / level[ring[used]]).clamp_max(5.0)
    total, count = (_table(ring[used], angle[used], values).sum(0) for values in (relative, torch.ones_like(relative)))
    # In thin volumes some directions hold no coefficient.
    centres, seen = (np.arange(len(count)) + 0.5) * _STEP, count.numpy() > 0
    known = (total / count).numpy()[seen]
    return torch.from_numpy(np.interp(centres, centres[seen], known, period=180.0))


def _edges(power: Tensor, fit: _Fit) -> tuple[float, float]:
    """Return the angles, seen from inside the sector, where the power reaches half of its value outside."""
    n = len(power)
    middle = (fit.first + fit.last) / 2

    def at(degrees: float) -> float:
        """Interpolate between the centres of two sectors."""
        position = degrees / _STEP - 0.5
        left = math.floor(position)
        share = position - left
        return float((1 - share) * power[left % n] + share * power[(left + 1) % n])

    def edge(coarse: float, outward: int) -> float:
        outside = [at(coarse + outward * (4 + degrees)) for degrees in range(10)]
        half = 0.5 * sum(outside) / len(outside)
        angles = (middle + outward * 0.25 * step for step in range(4 * 90))
        return next((angle for angle in angles if at(angle) >= half), coarse)

    return edge(fit.first, -1), edge(fit.last, 1)
