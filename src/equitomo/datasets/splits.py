"""Split a tilt series into two with independent noise, or into two pairs of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from equitomo.datasets.registration import register, shifted
from equitomo.datasets.tilt_series import TiltSeries

# Angles of the stage scatter by a few hundredths of a degree when a tilt is visited again.
SAME_TILT = 0.2

SplitBy = Literal["auto", "scan", "tilt"]
Halves = tuple[TiltSeries, TiltSeries]


def split_by_tilt(series: TiltSeries) -> Halves:
    """Return the even and the odd views in ascending order of the angles; every view is in one of them.

    The halves measure different planes of the Fourier space, so each has its own geometry. Scans of one tilt stay
    together.

    Parameters
    ----------
    series
        The series, with at least four different tilts.

    Examples
    --------
    >>> first, second = split_by_tilt(TiltSeries(torch.randn(5, 8, 8), [-60, -30, 0, 30, 60]))
    >>> first.angles, second.angles
    ((-60.0, 0.0, 60.0), (-30.0, 30.0))
    """
    tilts = scans_of(series)
    if len(tilts) < 4:
        raise ValueError(f"{series.name}: {len(tilts)} different tilts cannot be split, expected at least 4")
    even, odd = ([view for views in tilts[start::2] for view in views] for start in (0, 1))
    return series.select(even), series.select(odd)


def split_by_scan(series: TiltSeries) -> Halves:
    """Return two series of the same tilts, each made of other scans.

    The scans of a tilt are dealt to the halves in turn, and those that one half gets are averaged. Where their number
    is odd, the halves take turns to get one more. A tilt with a single scan belongs to one half alone, since its noise
    would be common to both: the halves take turns there too, beginning with the first. So each half has its own tilts,
    and what it did not measure is missing from its own mask.

    The scans must lie on each other: see :func:`registered_scans`.

    Parameters
    ----------
    series
        The series. At least half of its tilts must have two scans or more.

    Examples
    --------
    >>> series = TiltSeries(torch.randn(7, 8, 8), [-30, -30, 0, 0, 0, 30, 30])
    >>> [half.angles for half in split_by_scan(series)]
    [(-30.0, 0.0, 30.0), (-30.0, 0.0, 30.0)]
    """
    tilts = scans_of(series)
    n_repeated = sum(len(views) > 1 for views in tilts)
    if 2 * n_repeated < len(tilts):
        raise ValueError(
            f"{series.name}: {n_repeated} of {len(tilts)} tilts have a second scan, expected at least half of them; "
            "split by tilt instead"
        )
    halves: tuple[list[list[int]], list[list[int]]] = ([], [])
    # Whose turn it is to get the scan without a counterpart, for single scans and for the third and fifth ones.
    turn = {True: 0, False: 0}
    for views in tilts:
        starts = 0
        if len(views) % 2:
            is_single = len(views) == 1
            starts, turn[is_single] = turn[is_single], 1 - turn[is_single]
        for half, own in ((starts, views[::2]), (1 - starts, views[1::2])):
            if own:
                halves[half].append(own)
    first, second = (_averaged(series, groups) for groups in halves)
    return first, second


def split(series: TiltSeries, by: SplitBy = "auto") -> Halves:
    """Return two series: by scan if at least half of the tilts have several scans, registered before; else by tilt.

    Parameters
    ----------
    series
        The series.
    by
        ``"scan"`` and ``"tilt"`` decide it: see :func:`split_by_scan` and :func:`split_by_tilt`.

    Examples
    --------
    >>> [half.n_views for half in split(TiltSeries(torch.randn(5, 8, 8), [-60, -30, 0, 30, 60]))]
    [3, 2]
    """
    if by == "scan" or (by == "auto" and has_scans(series)):
        return split_by_scan(registered_scans(series))
    return split_by_tilt(series)


def split_into_pairs(
    series: TiltSeries, second: TiltSeries | None = None, *, by: SplitBy = "auto"
) -> tuple[Halves, Halves]:
    """Return two pairs of halves, all four with independent noise, for two networks that are trained apart.

    Each pair gets every second tilt with all that was recorded there, so that the pairs share no image: neither noise
    nor the alignment of an image. The halves of a pair are made of the frames or scans of the same tilts if there are
    some, because a network learns from a pair only where both halves measured. Otherwise each of them has every second
    tilt of its pair. Tilts at equal steps then remain so in each pair and in each half.

    Parameters
    ----------
    series
        The series, or that of one half of the frames.
    second
        That of the other half of the frames.
    by
        How a series without ``second`` is split, as for :func:`split`; ``"auto"`` takes scans if both pairs have them.

    Raises
    ------
    ValueError
        If there are fewer than four different tilts, or eight where there are neither frames nor scans; or as
        :func:`paired` and :func:`split_by_scan`.

    Examples
    --------
    >>> pairs = split_into_pairs(TiltSeries(torch.randn(8, 8, 8), range(-40, 40, 10)))
    >>> [[half.angles for half in pair] for pair in pairs]
    [[(-40.0, 0.0), (-20.0, 20.0)], [(-30.0, 10.0), (-10.0, 30.0)]]
    """
    given = (series,) if second is None else (series, second)
    tilts = _tilts_of(angle for one in given for angle in one.angles)
    if len(tilts) < 4:
        raise ValueError(
            f"{series.name}: {len(tilts)} different tilts make no two pairs of halves, expected at least 4"
        )
    parts = [[one.select(_every_second(one, tilts, start)) for one in given] for start in (0, 1)]
    if second is not None:
        one, other = (paired(*part) for part in parts)
        return one, other
    if by == "auto":
        by = "scan" if all(has_scans(part) for (part,) in parts) else "tilt"
    if by == "tilt" and len(tilts) < 8:
        raise ValueError(
            f"{series.name}: {len(tilts)} different tilts make no two pairs of halves, expected at least 8, or 4 with "
            "two halves of frames or two scans of each"
        )
    one, other = (split(part, by) for (part,) in parts)
    return one, other


def paired(first: TiltSeries, second: TiltSeries) -> Halves:
    """Return two series that were given as halves, such as those of the even and of the odd frames, once checked.

    Raises
    ------
    ValueError
        If they differ in size, axis or pixel size, have no tilt in common, or hold the same images.

    Examples
    --------
    >>> even, odd = (TiltSeries(torch.randn(3, 8, 8), [-60, 0, 60]) for _ in range(2))
    >>> paired(even, odd) == (even, odd)
    True
    """
    names = f"{first.name} and {second.name}"
    if (first.shape, first.tilt_axis) != (second.shape, second.tilt_axis):
        both = " and ".join(f"{half.shape} about {half.tilt_axis}" for half in (first, second))
        raise ValueError(f"{names}: images of {both}, expected the same in both; give the two halves of one series")
    if first.pixel_size and second.pixel_size and not math.isclose(first.pixel_size, second.pixel_size, rel_tol=0.01):
        raise ValueError(
            f"{names}: pixels of {first.pixel_size:g} and {second.pixel_size:g} Å, expected the same in both; give the "
            "two halves of one series"
        )
    common = [
        (n, m)
        for n, angle in enumerate(first.angles)
        for m, other in enumerate(second.angles)
        if abs(angle - other) <= SAME_TILT
    ]
    if not common:
        raise ValueError(f"{names}: no tilt is in both; give the two halves of one series, with their angles")
    for n, m in common:
        if _are_equal(first.projections[n], second.projections[m]):
            raise ValueError(
                f"{names}: the views at {first.angles[n]:g} degrees are equal, so the halves are not independent; give "
                "different files"
            )
    return first, second


def scans_of(series: TiltSeries) -> list[list[int]]:
    """Return for each tilt the views that were taken there, in ascending order of the tilts.

    Angles within 0.2 degrees of the first one of a tilt are the same tilt.
    """
    tilts: list[list[int]] = []
    for view, angle in enumerate(series.angles):
        if tilts and angle - series.angles[tilts[-1][0]] <= SAME_TILT:
            tilts[-1].append(view)
        else:
            tilts.append([view])
    return tilts


def has_scans(series: TiltSeries) -> bool:
    """Return whether at least half of the tilts have several scans, so that the series can be split by scan."""
    tilts = scans_of(series)
    return 2 * sum(len(views) > 1 for views in tilts) >= len(tilts)


def registered_scans(series: TiltSeries, *, max_shift: float | None = None) -> TiltSeries:
    """Return the series with the scans of each tilt moved onto each other.

    The scans of a tilt are moved to their common mean by the shifts between all of them, so that none is preferred and
    the tilt as a whole stays where it was aligned. See :func:`scan_shifts` for the shifts alone.

    Parameters
    ----------
    series
        The series.
    max_shift
        As for :func:`~equitomo.datasets.registration.register`.

    Examples
    --------
    >>> view = torch.randn(2, 32, 32)
    >>> series = TiltSeries(torch.cat((view, view.roll(2, 2))), [0, 30, 0, 30])
    >>> scan_shifts(series)[:, 1].round().tolist()
    [1.0, -1.0, 1.0, -1.0]
    >>> scan_shifts(registered_scans(series)).abs().max() < 0.05
    tensor(True)
    """
    shifts = scan_shifts(series, max_shift=max_shift)
    moved = shifts.abs().amax(1) > 0
    projections = series.projections.clone()
    projections[moved] = shifted(projections[moved], shifts[moved])
    return series.with_projections(projections)


def scan_shifts(series: TiltSeries, *, max_shift: float | None = None) -> Tensor:
    """Return the pixels along and across the tilt axis, ``(view, 2)``, that move the scans of a tilt to their mean."""
    shifts = torch.zeros(series.n_views, 2, dtype=torch.float64)
    for views in scans_of(series):
        images = series.projections[views]
        pairs = [(a, b) for a in range(len(views)) for b in range(a)]
        for a, b in pairs:
            # Each scan moves by the mean of its shifts to all scans, of which that to itself is zero.
            between = register(images[a : a + 1], images[b : b + 1], max_shift=max_shift)[0] / len(views)
            shifts[views[a]] += between
            shifts[views[b]] -= between
    return shifts


def _tilts_of(angles: Iterable[float]) -> list[float]:
    """Return the lowest angle of each tilt in ascending order."""
    tilts: list[float] = []
    for angle in sorted(angles):
        if not tilts or angle - tilts[-1] > SAME_TILT:
            tilts.append(angle)
    return tilts


def _every_second(series: TiltSeries, tilts: Sequence[float], start: int) -> list[int]:
    """Return the views at every second one of the tilts."""
    return [view for view, angle in enumerate(series.angles) if (bisect_right(tilts, angle) - 1) % 2 == start]


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two images are equal up to their scale."""
    a, b = ((image - image.mean()).flatten().double() for image in (one, other))
    return float(a @ b) > (1 - 1e-6) * float(a.norm() * b.norm())


def _averaged(series: TiltSeries, groups: Sequence[Sequence[int]]) -> TiltSeries:
    """Return the series with the mean of each group of views as one view."""
    order = series.acquisition_order
    return series.with_projections(
        torch.stack([series.projections[list(views)].mean(0) for views in groups]),
        angles=[sum(series.angles[n] for n in views) / len(views) for views in groups],
        dose=None if series.dose is None else [sum(series.dose[n] for n in v) / len(v) for v in groups],
        acquisition_order=None if order is None else [min(order[n] for n in views) for views in groups],
    )
