r"""Spots of a reconstruction that only its filled part shows: where to doubt first.

A spot is a maximum of the reconstruction :math:`f` after a band-pass filter, the difference of two Gaussians

.. math:: K = G_s - G_{2.5 s} .

Of a compact structure the measured part :math:`A f` shows a known share,

.. math:: e = \sum_k m(k)\, \hat K(k) \Big/ \sum_k \hat K(k),

two thirds for tilts from -60 to 60 degrees, because the wedge takes the rest from its contrast. A spot for which
:math:`K * A f` next to it reaches less than a part of :math:`e\, (K * f)`, by default four fifths, owes more to the
network than others do. That does not make it wrong: a membrane that lies flat in the section has almost all of its
contrast in the wedge, and may be filled rightly.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from equitomo.checks import Shape
from equitomo.fourier import frequency_radius, multiplicity
from equitomo.geometry import Geometry, MeasuredMask
from equitomo.io import release, write_atomically
from equitomo.volumes import VolumeLike, as_voxels, blurred

# The wide Gaussian is so many times as wide as the narrow one, and both end after three standard deviations.
_WIDER = 2.5
_REACH = 3.0
# The bytes of the sections that are filtered at a time, and how many arrays of their size are held at once.
SLAB_BYTES = 1 << 26
HELD = 20
# The grid on which the measured share of a spot is computed.
_GRID = 48


@dataclass(frozen=True)
class FilledSpot:
    """A spot of a reconstruction that its measured part does not show.

    Parameters
    ----------
    position
        The voxel ``(z, y, x)``, counted from 0.
    contrast
        The contrast of the reconstruction there, in its unit, negative for a dark spot.
    measured
        The largest contrast of the measured part there or in a voxel next to it.
    """

    position: Shape
    contrast: float
    measured: float

    @property
    def filled(self) -> float:
        """The contrast that was filled in."""
        return self.contrast - self.measured


def filled_spots(
    volume: VolumeLike,
    measured: VolumeLike,
    geometry: Geometry | tuple[float, float],
    *,
    radius: float = 1.5,
    contrast: float = 1.0,
    share: float = 0.8,
    dark: bool | None = None,
) -> list[FilledSpot]:
    """Return the spots of a reconstruction that its measured part does not show, those with most filled contrast first.

    Parameters
    ----------
    volume
        The reconstruction ``(z, y, x)``.
    measured
        Its measured part, see :func:`equitomo.filled.measured_part`.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    radius
        The standard deviation of the narrow Gaussian in voxels. Spots are at least twice as far apart, and three times
        as far from the faces, where the parts of a volume depend on its opposite face.
    contrast
        The contrast that a spot has at least, in standard deviations of the filtered reconstruction.
    share
        A spot counts as shown if the measured part has this part of what a compact structure would have there.
    dark
        Whether spots are darker than their surroundings; ``None`` takes the side on which the values reach farther.

    Raises
    ------
    ValueError
        If the volumes differ in shape, or a setting is not positive.

    Examples
    --------
    >>> from equitomo.filled import measured_part
    >>> z, y, x = torch.meshgrid(*(torch.arange(32.0),) * 3, indexing="ij")
    >>> blob = torch.exp(-((z - 10) ** 2 + (y - 12) ** 2 + (x - 20) ** 2) / 8).numpy()
    >>> invented = blob - measured_part(blob, (-60.0, 60.0))
    >>> [spot.position for spot in filled_spots(invented, torch.zeros(32, 32, 32), (-60.0, 60.0))][0]
    (10, 12, 20)
    >>> filled_spots(blob, measured_part(blob, (-60.0, 60.0)), (-60.0, 60.0))
    []
    """
    for name, value in (("radius", radius), ("contrast", contrast), ("share", share)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}")
    slabs = _Slabs(volume, measured, radius)
    count = total = square = cube = 0.0
    for f, _ in slabs.filtered(1):
        values = f.double()
        count, total, square = count + values.numel(), total + float(values.sum()), square + float((values**2).sum())
        cube += float((values**3).sum())
    sign = -1.0 if (cube < 0 if dark is None else dark) else 1.0
    least = contrast * math.sqrt(max(square / count - (total / count) ** 2, 0.0))
    limit = share * measured_share(geometry, radius)
    found = list(slabs.spots(sign, max(least, torch.finfo(torch.float32).tiny), limit))
    return sorted(found, key=lambda spot: -abs(spot.filled))


def measured_share(geometry: Geometry | tuple[float, float], radius: float = 1.5) -> float:
    """Return the part of the contrast of a compact structure that the tilts measure.

    Examples
    --------
    >>> round(measured_share((-60.0, 60.0)), 2)
    0.67
    """
    shape = (_GRID,) * 3
    frequency = frequency_radius(shape)
    narrow, wide = (torch.exp(-2 * (math.pi * s * frequency) ** 2) for s in (radius, _WIDER * radius))
    kernel = (narrow - wide) * multiplicity(_GRID)
    return float((kernel * MeasuredMask(geometry)(shape)).sum() / kernel.sum())


def bytes_to_find_spots(shape: Sequence[int], radius: float = 1.5) -> int:
    """Return about how many bytes of memory :func:`filled_spots` takes, beside the volumes."""
    around = _halo(radius) + _apart(radius)
    return HELD * max(SLAB_BYTES, 4 * math.prod(shape[1:]) * 4 * around)


def write_spots(
    path: str | Path,
    spots: Sequence[FilledSpot],
    *,
    voxel_size: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a table of spots as CSV and return its path.

    The columns are the voxel counted from 0, its distance from the first voxel in ångström where the voxel size is
    known, the contrast of the reconstruction and of its measured part, and what is left for the filled part.

    Parameters
    ----------
    path
        The file to write.
    spots
        The spots, in the order of the lines.
    voxel_size
        Å along ``(z, y, x)``.
    overwrite
        Replace the file if it exists.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lengths = [] if voxel_size is None else ["z_angstrom", "y_angstrom", "x_angstrom"]
    writer.writerow(["z", "y", "x", *lengths, "contrast", "measured", "filled"])
    for spot in spots:
        places = [] if voxel_size is None else [n * size for n, size in zip(spot.position, voxel_size, strict=True)]
        values = (*places, spot.contrast, spot.measured, spot.filled)
        writer.writerow([*spot.position, *(f"{value:.6g}" for value in values)])
    write_atomically(path, text.getvalue().encode(), overwrite=overwrite)
    return Path(path)


class _Slabs:
    """Two volumes after the band-pass filter, a few sections at a time."""

    def __init__(self, volume: VolumeLike, measured: VolumeLike, radius: float) -> None:
        self._volumes = as_voxels(volume), as_voxels(measured)
        shape = self._volumes[0].shape
        if self._volumes[1].shape != shape:
            raise ValueError(f"`measured` must have the shape of `volume`, {shape}, got {self._volumes[1].shape}")
        self._radius, self._shape, self._halo = radius, shape, _halo(radius)
        self._apart, self._border = _apart(radius), math.ceil(_REACH * radius)
        # Of large sections no more are read twice than are needed once.
        around = self._halo + self._apart
        self._step = max(2 * around, SLAB_BYTES // (4 * shape[1] * shape[2]) - 2 * around)

    def filtered(self, n: int, around: int = 0) -> Iterator[tuple[Tensor, int]]:
        """Yield sections of the first ``n`` volumes with up to ``around`` sections on both sides, and their number."""
        for start in range(0, self._shape[0], self._step):
            stop = min(start + self._step, self._shape[0])
            first, last = max(start - around, 0), min(stop + around, self._shape[0])
            low, high = max(first - self._halo, 0), min(last + self._halo, self._shape[0])
            cuts = [torch.from_numpy(np.array(one[low:high], np.float32)) for one in self._volumes[:n]]
            release(*self._volumes)
            found = [_band(cut, self._radius)[first - low : last - low] for cut in cuts]
            yield (found[0] if n == 1 else torch.stack(found)), start

    def spots(self, sign: float, least: float, limit: float) -> Iterator[FilledSpot]:
        """Yield the maxima of the first volume that the second one does not show."""
        apart = self._apart
        for both, start in self.filtered(2, around=apart):
            f, m = (sign * both).unbind()
            highest = F.max_pool3d(f[None, None], 2 * apart + 1, 1, apart)[0, 0]
            near = F.max_pool3d(m[None, None], 3, 1, 1)[0, 0]
            is_spot = (f == highest) & (f >= least) & (near < limit * f)
            begin = start - max(start - apart, 0)
            inside = is_spot[begin : begin + min(self._step, self._shape[0] - start)]
            for z, y, x in inside.nonzero().tolist():
                at, position = (z + begin, y, x), (z + start, y, x)
                if all(
                    self._border <= n < length - self._border for n, length in zip(position, self._shape, strict=True)
                ):
                    yield FilledSpot(position, sign * float(f[at]), sign * float(near[at]))


def _apart(radius: float) -> int:
    """Return the least distance of two spots in voxels."""
    return max(1, round(2 * radius))


def _halo(radius: float) -> int:
    """Return the voxels that the wide Gaussian reaches."""
    return math.ceil(_REACH * _WIDER * radius)


def _band(volume: Tensor, radius: float) -> Tensor:
    """Return a volume ``(z, y, x)`` after the difference of two Gaussians; faces are continued by their values."""
    return blurred(volume, radius) - blurred(volume, _WIDER * radius)
