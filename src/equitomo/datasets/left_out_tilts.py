"""A tilt series without some of its tilts, so that what was measured there can be held against a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equitomo.datasets.splits import SAME_TILT
from equitomo.datasets.tilt_series import TiltSeries
from equitomo.geometry import Ends, TiltGeometry, narrowed

Surroundings = Literal["empty", "filled"]

# The share of the width at each end of the images that tells what lies beside the tomogram, and the share of the power
# there, relative to the whole image, below which this counts as nothing.
_RIM = 0.05
_NOTHING = 0.1


@dataclass(frozen=True)
class LeftOutTilt:
    """The images of a tilt that was left out.

    Parameters
    ----------
    angle
        Its tilt in degrees.
    first, second
        The image ``(along the tilt axis, across it)`` in each half, on one scale; ``None`` where a half has none. Of
        several scans in one half it is the mean.
    """

    angle: float
    first: Tensor | None
    second: Tensor | None

    @property
    def mean(self) -> Tensor:
        """The mean of the images."""
        return torch.stack([image for image in (self.first, self.second) if image is not None]).mean(0)


@dataclass(frozen=True)
class LeftOutTilts:
    """The halves of a series without some of their tilts, and these.

    Parameters
    ----------
    halves
        What is left of each half.
    tilts
        The tilts that were left out, in ascending order.
    """

    halves: tuple[TiltSeries, TiltSeries]
    tilts: tuple[LeftOutTilt, ...]

    @property
    def kept(self) -> tuple[float, ...]:
        """The tilts that are left in any of the halves, in ascending order."""
        return tuple(sorted({angle for half in self.halves for angle in half.angles}))


def leave_out_tilts(
    halves: tuple[TiltSeries, TiltSeries], share: float = 0.8, ends: Ends = "both", *, every: int | None = None
) -> LeftOutTilts:
    """Leave the same tilts out of both halves of a tilt series.

    Parameters
    ----------
    halves
        Two series with independent noise, of the same tilts or of others.
    share, ends
        As for :func:`equitomo.geometry.narrowed`.
    every
        Leave out every so many tilts inside the range, in place of those at the ends.

    Raises
    ------
    ValueError
        If no tilt would be left out, or fewer than two different ones left in a half.

    Examples
    --------
    >>> even, odd = (TiltSeries(torch.randn(5, 8, 8), [-60, -30, 0, 30, 60]) for _ in range(2))
    >>> out = leave_out_tilts((even, odd), 0.5)
    >>> [tilt.angle for tilt in out.tilts], out.kept
    ([-60.0, 60.0], (-30.0, 0.0, 30.0))
    """
    angles = _tilts_of(halves)
    if every is None:
        kept = narrowed(TiltGeometry(angles, halves[0].tilt_axis), share, ends)
        low, high = kept.parts[0].tilt_range
        chosen = [angle for angle in angles if not low - SAME_TILT / 2 <= angle <= high + SAME_TILT / 2]
    else:
        chosen = _inner(angles, every, halves[0].name)
    tilts = []
    for angle in chosen:
        tilts.append(LeftOutTilt(angle, *(_image(half, angle) for half in halves)))
    first, second = (
        half.select([n for n, own in enumerate(half.angles) if not any(_are_one(own, angle) for angle in chosen)])
        for half in halves
    )
    return LeftOutTilts((first, second), tuple(tilts))


def surroundings_of(halves: Sequence[TiltSeries]) -> Surroundings:
    """Return whether images show matter at both ends across the tilt axis, beside the tomogram, or nothing.

    The power is that of the differences along the tilt axis, because the level of an image is no matter. Noise counts
    as matter unless both halves show the same.

    Examples
    --------
    >>> particle = torch.zeros(3, 64, 64)
    >>> particle[:, 24:40, 24:40] = torch.rand(16, 16)
    >>> surroundings_of([TiltSeries(particle, [-60, 0, 60])])
    'empty'
    >>> surroundings_of([TiltSeries(torch.rand(3, 64, 64), [-60, 0, 60])])
    'filled'
    """
    total, rims = 0.0, [0.0, 0.0]
    first, second = halves[0], halves[-1]
    n = max(1, round(_RIM * first.shape[1]))
    for number, angle in enumerate(first.angles):
        other = _image(second, angle)
        one = first.projections[number].double()
        other = one if other is None else other.double()
        power = ((one - one.mean(0)) * (other - other.mean(0))).mean(0)
        total += float(power.mean())
        rims = [rims[0] + float(power[:n].mean()), rims[1] + float(power[-n:].mean())]
    return "empty" if max(rims) < _NOTHING * total else "filled"


def pixels_inside(
    detector: int, tilt: float, extent: tuple[float, float], *, offset: float = 0.0
) -> tuple[int, int] | None:
    r"""Return the first pixel whose ray meets no side of the tomogram and the one after the last, if there are any.

    In a specimen that goes on beyond the tomogram, these rays see nothing else before they leave it through its top and
    its bottom, if the tomogram is as thick as the specimen:

    .. math:: |t - t_0| \le \tfrac12 \bigl(X \cos\theta - Z\, |\sin\theta|\bigr)

    Parameters
    ----------
    detector
        The number of pixels.
    tilt
        The tilt in degrees.
    extent
        Voxels of the tomogram along the beam, :math:`Z`, and across the tilt axis, :math:`X`.
    offset
        The place :math:`t_0` of the tomogram's middle, in pixels from that of the detector.

    Examples
    --------
    >>> pixels_inside(100, 0.0, (30, 100)), pixels_inside(100, 60.0, (30, 100)), pixels_inside(100, 60.0, (100, 100))
    ((0, 100), (38, 62), None)
    """
    z, x = extent
    radians = math.radians(tilt)
    half = (x * math.cos(radians) - z * abs(math.sin(radians))) / 2
    middle = (detector - 1) / 2 + offset
    start, stop = max(0, math.ceil(middle - half)), min(detector, math.floor(middle + half) + 1)
    return (start, stop) if stop > start else None


def _tilts_of(halves: Sequence[TiltSeries]) -> list[float]:
    """Return the different tilts of both halves, in ascending order."""
    tilts: list[float] = []
    for angle in sorted(angle for half in halves for angle in half.angles):
        if not tilts or not _are_one(angle, tilts[-1]):
            tilts.append(angle)
    return tilts


def _inner(angles: Sequence[float], every: int, name: str) -> list[float]:
    """Return every so many tilts; those at the ends are kept."""
    chosen = [angle for angle in angles[every // 2 :: every] if angle not in (angles[0], angles[-1])]
    if every < 2 or not chosen:
        raise ValueError(
            f"{name}: `every` {every} of {len(angles)} tilts leaves out {len(chosen)}, expected a number from 2 to "
            f"{len(angles) - 1}"
        )
    return chosen


def _image(half: TiltSeries, angle: float) -> Tensor | None:
    """Return the mean of the images at a tilt, ``None`` if there are none."""
    own = [n for n, other in enumerate(half.angles) if _are_one(other, angle)]
    return half.projections[own].mean(0) if own else None


def _are_one(angle: float, other: float) -> bool:
    return abs(angle - other) <= SAME_TILT
