"""Views of a tilt series made ready for reconstruction: filtered, split into halves, on one scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets import TiltSeries, paired, split, split_into_pairs
from equitomo.datasets.views import ViewNormalization, cropped, dose_filtered, filled, normalized, transformed
from equitomo.diagnosis import Finding
from equitomo.diagnosis.tilt_axis import fit_tilt_axis, judge_series
from equitomo.io import CtfState, SeriesMetadata, read_series, read_stack
from equitomo.physics import contrast_transfers, flip_phases
from equitomo.run.settings import HalvesSettings

# The median skewness of the views above which they are dark-field images. It is 2.3 and 3.3 in two such series, and 1.1
# in simulated views of proteins and gold whose contrast is inverted.
_SKEWED = 1.5


class Prepared(NamedTuple):
    """Two halves of a tilt series that are ready to be reconstructed.

    Parameters
    ----------
    name
        Name of the results.
    halves
        Their views, filtered and on one scale.
    shape
        Voxels of the result along ``(z, y, x)``.
    centre
        Position (x, z) in the specimen, relative to the tilt axis, that lies in the middle of the result, in voxels.
    ctf_state
        What was done about the contrast transfer function.
    findings
        What the images say about the tilt axis and the order.
    """

    name: str
    halves: tuple[TiltSeries, TiltSeries]
    shape: tuple[int, int, int]
    centre: tuple[float, float]
    ctf_state: CtfState
    findings: list[Finding]


class Source(NamedTuple):
    """Where the images of one series come from: a stack with its tilts, or what an alignment program wrote.

    Parameters
    ----------
    name
        Name of the series.
    stacks
        One stack, or those of both halves of the frames; empty if the ``metadata`` name the images.
    tilts
        A file of tilts for the stacks.
    metadata
        What the files of an alignment program tell.
    pair
        Which of two pairs of halves is meant; ``None`` if the series has one.
    """

    name: str
    stacks: tuple[Path, ...] = ()
    tilts: Path | None = None
    metadata: SeriesMetadata | None = None
    pair: int | None = None

    @property
    def result(self) -> str:
        """The name of the results."""
        return self.name if self.pair is None else f"{self.name}_pair{self.pair}"

    @property
    def files(self) -> dict[str, Path]:
        """The files that are read, by role."""
        found = dict(zip(("first stack", "second stack"), self.stacks, strict=False))
        if self.tilts is not None:
            found["tilts"] = self.tilts
        if self.metadata is not None:
            found |= {f"metadata {n}": path for n, path in enumerate(self.metadata.files, 1)}
            images = self._images(self.metadata)
            found |= {f"images {n}": path for n, path in enumerate(dict.fromkeys(images), 1)}
        return found

    @staticmethod
    def _images(metadata: SeriesMetadata) -> Sequence[Path]:
        if metadata.half_stacks is not None:
            return metadata.half_stacks
        if metadata.half_images is not None:
            return [path for half in metadata.half_images for path in half]
        return (metadata.stack,) if metadata.stack is not None else metadata.images or ()


def source_of(first: Path, second: Path | None, tilts: Path | None, alignment: Path | None) -> Source:
    """Return the source of a series that is given by its stacks, and refuse an alignment of other images."""
    stacks = (first,) if second is None else (first, second)
    name = _stem(first)
    if second is not None:
        name = name.removesuffix("_EVN").removesuffix("_even").removesuffix("_first") or name
    if alignment is None:
        return Source(name, stacks, tilts)
    metadata = read_series(alignment)
    for path in stacks:
        _require_same_images(path, alignment, metadata)
    return Source(
        name,
        metadata=replace(
            metadata,
            name=name,
            stack=first if second is None else None,
            half_stacks=None if second is None else (first, second),
            images=None,
            half_images=None,
            half_tomograms=None,
        ),
    )


def load(source: Source, settings: HalvesSettings, *, permissive: bool = False) -> list[TiltSeries]:
    """Read the series of a source, or those of both halves of the frames."""
    metadata = source.metadata
    if metadata is None:
        return [_read(stack, source, settings, permissive) for stack in source.stacks]
    if settings.tilt_axis == "x" or settings.order != "sections" or settings.align != "none":
        raise ValueError(
            f"{source.name}: the files of the alignment program state tilt axis and order: leave out `tilt_axis`, "
            "`order` and `align`"
        )
    if settings.tilt_axis_angle is not None:
        if metadata.transforms is not None:
            raise ValueError(f"{source.name}: its transforms turn the images already: leave out `tilt_axis_angle`")
        metadata = replace(metadata, tilt_axis_angle=(settings.tilt_axis_angle,) * metadata.n_views)
    if settings.tilt_axis_offset:
        metadata = replace(metadata, tilt_axis_offset=settings.tilt_axis_offset)
    if settings.pixel_size is not None:
        metadata = replace(metadata, pixel_size=settings.pixel_size)
    if metadata.x_tilt is not None and any(abs(metadata.x_tilt[n]) > 0.05 for n in metadata.kept):
        warnings.warn(f"{source.name}: the tilt about x in its files is not applied", stacklevel=2)
    has_halves = metadata.half_stacks is not None or metadata.half_images is not None
    loaded = []
    for half in ("first", "second") if has_halves else (None,):
        series = TiltSeries.from_metadata(
            metadata,
            half=half,
            exclude=settings.excluded,
            pretilt=settings.pretilt,
            binning=settings.bin,
            permissive=permissive,
        )
        loaded.append(_filtered(series, metadata, settings))
    return loaded


def prepare(source: Source, settings: HalvesSettings, *, permissive: bool = False) -> tuple[Prepared, ...]:
    """Read, judge, filter and split a series; return its halves, or its two pairs of halves.

    Raises
    ------
    ValueError, OSError
        If a file cannot be read, the series cannot be used, or its images contradict its tilt axis or their order.
    """
    loaded = [
        series.with_projections(filled(series.projections)) for series in load(source, settings, permissive=permissive)
    ]
    findings = [finding for finding in judge_series(loaded[0]) if finding.severity != "ok"]
    for finding in findings:
        if finding.severity == "error" and settings.strict and source.metadata is None:
            raise ValueError(f"{source.name}: {finding.text}; to continue nevertheless, pass `strict=False`")
        warnings.warn(f"{source.name}: {finding.text}", stacklevel=2)
    is_dark_field = _is_dark_field(loaded[0])
    pairs = _on_one_scale(_split(loaded, settings), settings, is_dark_field)
    shape, centre = _place(loaded[0], source, settings, is_dark_field)
    state: CtfState = "flipped" if settings.ctf == "flip" else "none"
    names = [source._replace(pair=pair).result for pair in ((None,) if settings.pairs == 1 else (1, 2))]
    return tuple(
        Prepared(name, halves, shape, centre, state, findings) for name, halves in zip(names, pairs, strict=True)
    )


def _read(stack: Path, source: Source, settings: HalvesSettings, permissive: bool) -> TiltSeries:
    """Read one stack with its list of tilts."""
    if settings.ctf == "flip" or settings.dose_filter:
        wanted = "the defocus of each view" if settings.ctf == "flip" else "the dose"
        option = "`ctf='flip'`" if settings.ctf == "flip" else "`dose_filter=True`"
        raise ValueError(
            f"{source.name}: {option} needs {wanted}, which a list of tilts does not hold: pass `alignment`, a file of "
            "the alignment program, in place of `tilts`"
        )
    is_turned = settings.tilt_axis_angle is not None
    if is_turned and settings.tilt_axis == "x":
        raise ValueError("`tilt_axis_angle` turns the tilt axis onto y: leave out `tilt_axis`")
    series = TiltSeries.read(
        stack,
        tilts=source.tilts,
        tilt_axis=settings.tilt_axis or "y",
        exclude=settings.excluded,
        pretilt=settings.pretilt,
        order=settings.order,
        binning=settings.bin,
        align="none" if is_turned else settings.align,
        pixel_size=settings.pixel_size,
        tilt_axis_offset=settings.tilt_axis_offset,
        permissive=permissive,
    )
    return series if settings.tilt_axis_angle is None else _turned(series, settings.tilt_axis_angle)


def _turned(series: TiltSeries, angle: float) -> TiltSeries:
    """Return a series whose images are turned until the tilt axis, at an angle to y, lies along y."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    transform = torch.tensor([[c, s, 0.0], [-s, c, 0.0]], dtype=torch.float64)
    rows, columns = series.projections.shape[-2:]
    shape = (columns, rows) if abs(s) > abs(c) else (rows, columns)
    turned = torch.stack([transformed(view[None], transform[None], shape)[0] for view in series.projections])
    return series.with_projections(turned)


def _filtered(series: TiltSeries, metadata: SeriesMetadata, settings: HalvesSettings) -> TiltSeries:
    """Return a series with its phases flipped and its dose weighted, as far as that is wanted."""
    excluded = {*metadata.excluded, *settings.excluded}
    kept = [n for n in range(metadata.n_views) if n not in excluded]
    # In the order of the series, which sorts images of equal angles as they came.
    views = sorted(kept, key=lambda n: metadata.angles[n])
    projections = series.projections
    if settings.ctf == "flip":
        if metadata.defocus is None or series.pixel_size is None:
            missing = "pixel size" if metadata.defocus else "defocus"
            raise ValueError(
                f"{series.name}: `ctf='flip'` needs the {missing}, which its files do not tell: estimate it with the "
                "program that aligned the series, or leave out `ctf`"
            )
        matrices = metadata.view_transforms()[views]
        ctfs = contrast_transfers(
            [metadata.defocus[n] for n in views],
            pixel_size=series.pixel_size,
            voltage=metadata.voltage,
            spherical_aberration=metadata.spherical_aberration,
            amplitude_contrast=metadata.amplitude_contrast,
            turned=[-math.degrees(math.atan2(matrix[0, 1], matrix[0, 0])) for matrix in matrices],
        )
        projections = flip_phases(projections, ctfs, series.angles, hand=metadata.defocus_handedness or -1)
    if settings.dose_filter:
        if series.dose is None or series.pixel_size is None:
            missing = "pixel size" if series.dose else "dose"
            raise ValueError(
                f"{series.name}: `dose_filter=True` needs the {missing} of the views, which its files do not tell: "
                "put the .mdoc beside them, or leave it out"
            )
        projections = dose_filtered(projections, series.dose, series.pixel_size, voltage=metadata.voltage or 300.0)
    return series if projections is series.projections else series.with_projections(projections)


def _is_dark_field(series: TiltSeries) -> bool:
    """Return whether a bright specimen is seen on a dark background, of which most of the image consists."""
    if fit_tilt_axis(series.projections, series.angles).is_compact:
        return True
    skewness = []
    for view in series.projections:
        deviation = view - view.mean()
        skewness.append(float((deviation**3).mean() / deviation.square().mean() ** 1.5))
    return median(skewness) > _SKEWED


def _split(loaded: Sequence[TiltSeries], settings: HalvesSettings) -> Sequence[tuple[TiltSeries, TiltSeries]]:
    """Return the pairs of halves of a series, or of both halves of its frames."""
    if settings.pairs == 2:
        return split_into_pairs(*loaded, by=settings.split)
    return [paired(*loaded) if len(loaded) == 2 else split(loaded[0], settings.split)]


def _on_one_scale(
    pairs: Sequence[tuple[TiltSeries, TiltSeries]], settings: HalvesSettings, is_dark_field: bool
) -> Sequence[tuple[TiltSeries, TiltSeries]]:
    """Return pairs of halves with the intensities of all their views brought to one scale."""
    chosen: ViewNormalization = "views"
    if settings.intensities != "auto":
        chosen = settings.intensities
    elif is_dark_field:
        chosen = "background"
    halves = [half for pair in pairs for half in pair]
    views = normalized(torch.cat([half.projections for half in halves]), chosen)
    scaled = iter(torch.split(views, [half.n_views for half in halves]))
    return [
        (one.with_projections(next(scaled).clone()), other.with_projections(next(scaled).clone()))
        for one, other in pairs
    ]


def _place(
    series: TiltSeries, source: Source, settings: HalvesSettings, is_dark_field: bool
) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """Return the voxels of the result, and the position in the specimen that its middle shows."""
    along, across = series.shape
    y_x = (along, across) if series.tilt_axis == "y" else (across, along)
    if settings.shape is not None:
        if any(own > given for own, given in zip(settings.shape, y_x, strict=True)):
            raise ValueError(f"`size` {settings.size} is more than the images have, {y_x[0]},{y_x[1]} after binning")
        y_x = settings.shape
    known = source.metadata
    thickness = settings.thickness
    if thickness is None and known is not None and known.thickness is not None:
        thickness = max(round(known.thickness / settings.bin), 1)
    if thickness is None and is_dark_field:
        thickness = across
    if thickness is None:
        raise ValueError(
            f"{source.name}: `thickness` is needed: sections of the result, each as high as a pixel after binning, "
            "enough for the specimen"
        )
    shift = (0.0, 0.0) if known is None else known.volume_shift
    return (thickness, *y_x), (-shift[0] / settings.bin, -shift[1] / settings.bin)


def middle_planes(series: TiltSeries, n_along: int) -> Tensor:
    """Return the views cut to the planes across the tilt axis that the result has."""
    return cropped(series.projections, (n_along, series.shape[1]))


def _require_same_images(stack: Path, alignment: Path, metadata: SeriesMetadata) -> None:
    """Refuse a stack that is not the one that was aligned."""
    volume = read_stack(stack)[0]
    n, rows, columns = volume.shape
    size = metadata.image_shape
    same_size = size is None or size == (rows, columns)
    if n == metadata.n_views and same_size:
        return
    expected = "" if size is None else f" of {size[1]} x {size[0]} pixels"
    raise ValueError(
        f"{alignment}: tells of {metadata.n_views} views{expected}, but {stack} has {n} of {columns} x {rows}: give "
        "the file that belongs to this series"
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".bz2"):
        name = name.removesuffix(ending)
    return Path(name).stem


def offsets(series: TiltSeries, centre: tuple[float, float], angles: Sequence[float] | None = None) -> list[float]:
    """Return where the middle of the result lies on the detector at each tilt, in pixels from its middle."""
    tilts = np.radians(series.angles if angles is None else angles)
    x, z = centre
    return [float(series.tilt_axis_offset + x * c + z * s) for c, s in zip(np.cos(tilts), np.sin(tilts), strict=True)]
