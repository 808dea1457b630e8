"""Halves that are made of a series without some tilts, and what volumes score at these."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets import TiltSeries, TomogramPair
from equitomo.datasets.left_out_tilts import (
    LeftOutTilt,
    LeftOutTilts,
    Surroundings,
    leave_out_tilts,
    pixels_inside,
    surroundings_of,
)
from equitomo.geometry import Ends
from equitomo.io import read_volume
from equitomo.metrics import held_out_tilt_correlation, raw_tilt_correlation, unseen
from equitomo.physics import Projector, keys_gain
from equitomo.run.halves.preparing import Prepared, offsets
from equitomo.run.halves.reconstructing import planes_at_once, reconstruct_half
from equitomo.run.settings import HalvesSettings
from equitomo.run.tilt_result import ProjectionScore, TiltScores

# A projection of fewer pixels across the tilt axis has too few frequencies.
_LEAST_PIXELS = 16


@dataclass(frozen=True)
class SeenTilt:
    """A tilt that was left out, and the part of its images that sees nothing but the tomogram.

    Parameters
    ----------
    images
        What was measured.
    start, stop
        The pixels across the tilt axis that count, and the weight of each.
    window
        The weight of each of them.
    region
        The coefficients ``(along, (stop - start) // 2 + 1)`` of this part that count.
    """

    images: LeftOutTilt
    start: int
    stop: int
    window: Tensor
    region: Tensor

    def of(self, view: Tensor) -> Tensor:
        """Return the part of an image ``(along, across)`` that counts."""
        return view[:, self.start : self.stop] * self.window


@dataclass(frozen=True)
class HeldOutTilts:
    """Halves that were made of a series without some tilts, and what was measured at these.

    Parameters
    ----------
    pair
        The halves.
    prepared
        The series, with the shape and the place of the tomogram.
    tilts
        The tilts that were left out, apart from those of which no pixels see nothing but the tomogram.
    kept
        The tilts of the halves.
    surroundings
        What lies beside the tomogram across the tilt axis.
    ends
        The ends of the tilt range that were left out; ``None`` for tilts inside the range.
    """

    pair: TomogramPair
    prepared: Prepared
    tilts: tuple[SeenTilt, ...]
    kept: tuple[float, ...]
    surroundings: Surroundings
    ends: Ends | None

    def projections(self, volume: Tensor) -> list[Tensor]:
        """Return the projections ``(along, across)`` of a volume, as if they were images of the tilts left out."""
        half = self.prepared.halves[0]
        angles, detector = [tilt.images.angle for tilt in self.tilts], half.shape[1]
        projector = Projector(
            self.prepared.shape,
            torch.tensor(angles),
            tilt_axis=half.tilt_axis,
            detector=detector,
            offsets=torch.tensor(offsets(half, self.prepared.centre, angles)),
        )
        with torch.no_grad():
            views = projector.project(volume[None, None].float())[0, 0]
        # The interpolation of the projector lowers high frequencies, which the microscope did not do.
        gain = keys_gain(torch.fft.rfftfreq(detector))
        return list(torch.fft.irfft(torch.fft.rfft(views) / gain, n=detector))

    def scores(self, views: Sequence[Tensor]) -> TiltScores:
        """Return what projections, such as those of :meth:`projections`, score at all tilts together and at each."""
        indices = range(len(self.tilts))
        return TiltScores(self._score(views, indices), tuple(self._score(views, [n]) for n in indices))

    def _score(self, views: Sequence[Tensor], indices: Sequence[int]) -> ProjectionScore:
        """Return what projections score at some tilts together."""
        tilts = [self.tilts[n] for n in indices]
        n_rings = min(min(tilt.region.shape[0], tilt.stop - tilt.start) for tilt in self.tilts) // 2
        predicted = [tilt.of(views[n]) for n, tilt in zip(indices, tilts, strict=True)]
        measured = [tilt.of(tilt.images.mean) for tilt in tilts]
        raw = raw_tilt_correlation(predicted, measured, [tilt.region for tilt in tilts], n_rings=n_rings)
        twice = [
            (view, tilt.of(tilt.images.first), tilt.of(tilt.images.second), tilt.region)
            for view, tilt in zip(predicted, tilts, strict=True)
            if tilt.images.first is not None and tilt.images.second is not None
        ]
        found = held_out_tilt_correlation(*zip(*twice, strict=True), n_rings=n_rings) if twice else None
        return ProjectionScore(raw, found)


def hold_out_tilts(
    prepared: Prepared,
    settings: HalvesSettings,
    like: TomogramPair,
    *,
    share: float = 0.8,
    ends: Ends = "both",
    every: int | None = None,
    surroundings: Surroundings | None = None,
) -> HeldOutTilts:
    """Make halves of a series without some tilts.

    The halves are as wide as the images across the tilt axis, however small the tomogram, because rays of tilted views
    leave a small one through its sides.

    Parameters
    ----------
    prepared, settings
        The series, and how halves are made of it.
    like
        The tomogram, whose mask, normalisation and contrast the halves get.
    share, ends, every
        As for :func:`equitomo.datasets.left_out_tilts.leave_out_tilts`.
    surroundings
        What lies beside the tomogram; ``None`` looks at the images.

    Raises
    ------
    ValueError
        If the tilts cannot be left out, or none of them has enough pixels that see nothing but the tomogram.
    """
    out = leave_out_tilts(prepared.halves, share, ends, every=every)
    prepared = prepared._replace(shape=_whole_width(prepared))
    found = surroundings or surroundings_of(prepared.halves)
    tilts = _seen(out, prepared, found, is_inner=every is not None)
    pair = _pair_of(out, prepared, settings, like)
    return HeldOutTilts(pair, prepared, tilts, out.kept, found, None if every else ends)


def _whole_width(prepared: Prepared) -> tuple[int, int, int]:
    """Return the shape of a tomogram that is at least as wide as the images."""
    shape, half = list(prepared.shape), prepared.halves[0]
    shape[half.geometry.axes.across] = max(shape[half.geometry.axes.across], half.shape[1])
    return shape[0], shape[1], shape[2]


def _seen(out: LeftOutTilts, prepared: Prepared, surroundings: Surroundings, *, is_inner: bool) -> tuple[SeenTilt, ...]:
    """Return the tilts that were left out, with the pixels and the coefficients that count."""
    half = prepared.halves[0]
    axes, detector = half.geometry.axes, half.shape[1]
    extent, n_along = (prepared.shape[axes.beam], prepared.shape[axes.across]), prepared.shape[axes.along]
    skip = (half.shape[0] - n_along) // 2
    tilts = []
    for tilt in out.tilts:
        (offset,) = offsets(half, prepared.centre, [tilt.angle])
        pixels = (
            (0, detector) if surroundings == "empty" else pixels_inside(detector, tilt.angle, extent, offset=offset)
        )
        if pixels is None or (width := pixels[1] - pixels[0]) < _LEAST_PIXELS:
            continue
        # A smooth window: the edges of a hard one would spread the low frequencies, which are strong, over all others.
        window = torch.ones(width)
        if surroundings == "filled":
            window = torch.sin(torch.pi * (torch.arange(width) + 0.5) / width) ** 2
        # Tilts inside the range are hardly missing, so that all coefficients count there.
        kept, blurred = ((), None) if is_inner else (out.kept, width if surroundings == "filled" else None)
        region = unseen((n_along, width), tilt.angle, kept, extent, width=blurred)
        images = (None if one is None else one[skip : skip + n_along] for one in (tilt.first, tilt.second))
        tilts.append(SeenTilt(LeftOutTilt(tilt.angle, *images), *pixels, window, region))
    if not any(bool(tilt.region.any()) for tilt in tilts):
        raise ValueError(
            f"{prepared.name}: at none of the tilts that would be left out, such as {out.tilts[-1].angle:g} degrees, "
            f"{_LEAST_PIXELS} pixels see nothing but the tomogram of {extent[0]} sections and {extent[1]} voxels "
            "across the tilt axis: make halves of fewer sections, or pass `surroundings='empty'` if nothing lies "
            "beside the tomogram"
        )
    return tuple(tilts)


def _pair_of(out: LeftOutTilts, prepared: Prepared, settings: HalvesSettings, like: TomogramPair) -> TomogramPair:
    """Make the halves of the tilts that are left, with the mask, the normalisation and the contrast of a tomogram."""
    shape, mask = prepared.shape, like.mask
    if mask is not None and tuple(mask.shape) != shape:
        warnings.warn(
            f"{prepared.name}: its mask is not used, because the halves of the test are wider than the tomogram",
            stacklevel=4,
        )
        mask = None
    first, second = (_volume(prepared, half, settings) for half in out.halves)
    pair = TomogramPair(
        first,
        second,
        out.halves[0].geometry,
        second_geometry=out.halves[1].geometry,
        voxel_size=like.voxel_size,
        mask=None if mask is None else mask.float(),
        normalization=like.normalization,
        name=f"{prepared.name} without {len(out.tilts)} tilts",
    )
    return pair.with_contrast("inverted") if like.is_inverted else pair


def _volume(prepared: Prepared, half: TiltSeries, settings: HalvesSettings) -> Tensor:
    """Return the tomogram of one half."""
    prepared = prepared._replace(halves=(half, half))
    n_planes, _ = planes_at_once(prepared, settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.mrc"
        reconstruct_half(
            path,
            prepared,
            half,
            settings,
            n_planes=n_planes,
            label="equitomo wedge-test",
            overwrite=True,
            progress=lambda done: None,
        )
        return torch.from_numpy(np.array(read_volume(path).data, np.float32))
