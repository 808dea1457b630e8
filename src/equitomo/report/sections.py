"""Sections through volumes as small pictures that fit into one page, all on one grey scale."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from equitomo.volumes import VolumeLike, as_voxels

Grey = Literal["shared", "shared about zero", "own"]
Pixels = NDArray[np.float32]

# All sections of a volume with so few are shown. Of others, sections across the beam and across the tilt axis at most,
# and how many there should be at least where pixels and quality can be given up for them.
_FEW = 64
_MOST_SECTIONS, _WANTED_SECTIONS = (33, 17), (13, 7)
# Pixels along the longer side of a picture, and the quality of WebP: the first that fit are taken.
_FORMATS = ((512, 80), (512, 60), (448, 50), (384, 40), (320, 30))
# The range of grey values is at least this part of the range of the noisiest volume.
_NARROWEST = 0.27
# Base64 takes four characters for three bytes.
_EXPANSION = 4 / 3


@dataclass(frozen=True)
class Shown:
    """A volume that the page shows.

    Parameters
    ----------
    name
        Its title.
    volume
        The voxels ``(z, y, x)``, in memory or in a file.
    note
        A sentence about what it is.
    grey
        ``"shared"`` shows it on the grey scale that all shared volumes have, ``"shared about zero"`` moves that scale
        so that zero is as bright as the background of the others, ``"own"`` goes from zero to its own largest values.
    """

    name: str
    volume: VolumeLike
    note: str = ""
    grey: Grey = "shared"


@dataclass(frozen=True)
class Panel:
    """The pictures of one volume: a data URI for each section of a cut."""

    name: str
    note: str
    pictures: Sequence[str]


@dataclass(frozen=True)
class Cut:
    """Sections through volumes at the same places.

    Parameters
    ----------
    axis
        The axis that the sections are perpendicular to, ``"z"``, ``"y"`` or ``"x"``.
    across, down
        The axes of the pictures.
    numbers
        The index of each section.
    heights
        The place of each section along the axis with its unit, empty where no voxel size is known.
    n_sections
        How many sections the volumes have along the axis.
    aspect
        Width of a picture over its height.
    panels
        The pictures of each volume.
    """

    axis: str
    across: str
    down: str
    numbers: Sequence[int]
    heights: Sequence[str]
    n_sections: int
    aspect: float
    panels: Sequence[Panel]

    @property
    def middle(self) -> int:
        """The number of the picture that is shown first."""
        return len(self.numbers) // 2


def cut_volumes(
    volumes: Sequence[Shown],
    *,
    voxel_size: Sequence[float] | None = None,
    along: int = 1,
    n_bytes: int = 4_000_000,
) -> list[Cut]:
    """Return sections across the beam and across the tilt axis as pictures that take at most ``n_bytes`` in a page.

    The sections are evenly spaced: all of a small volume, fewer of a large one, whose pictures are also scaled down.
    Each volume is read once, in pieces.

    Parameters
    ----------
    volumes
        Volumes of one shape.
    voxel_size
        Å along ``(z, y, x)``.
    along
        The axis of the volume along the tilt axis: 1 for y, 2 for x.
    n_bytes
        The characters that the pictures may take.

    Raises
    ------
    ValueError
        If there is no volume, or the shapes differ.

    Examples
    --------
    >>> cut = cut_volumes([Shown("noise", np.random.default_rng(0).standard_normal((8, 9, 10)))])[0]
    >>> cut.axis, list(cut.numbers) == list(range(8)), cut.panels[0].pictures[0][:23]
    ('z', True, 'data:image/webp;base64,')
    """
    shapes = {tuple(shown.volume.shape) for shown in volumes}
    if len(shapes) != 1:
        raise ValueError(f"the volumes of a page must have one shape, got {sorted(shapes)}")
    shape = shapes.pop()
    size = (1.0, 1.0, 1.0) if voxel_size is None else tuple(voxel_size)
    places = {
        axis: _places(shape[axis], _FEW if shape[axis] <= _FEW else most)
        for axis, most in zip((0, along), _MOST_SECTIONS, strict=True)
    }
    planes = [_planes(shown.volume, places, size) for shown in volumes]
    encoded = _fitting(planes, _limits(volumes, [one[0] for one in planes]), n_bytes / _EXPANSION)
    cuts = []
    for axis, (numbers, pictures) in encoded.items():
        down, across = (other for other in range(3) if other != axis)
        panels = [
            Panel(shown.name, shown.note, [_uri(content) for content in one])
            for shown, one in zip(volumes, pictures, strict=True)
        ]
        indices = [places[axis][n] for n in numbers]
        heights = ["" if voxel_size is None else f"{index * size[axis]:,.0f} Å" for index in indices]
        aspect = shape[across] * size[across] / (shape[down] * size[down])
        cut = Cut("zyx"[axis], "zyx"[across], "zyx"[down], indices, heights, shape[axis], aspect, panels)
        cuts.append(cut)
    return cuts


def webp_uri(pixels: NDArray[np.uint8]) -> str:
    """Return a picture of grey values ``(down, across)`` or colours ``(down, across, 3)`` as a data URI."""
    return _uri(_bytes(pixels, 80))


def shrunk(plane: Pixels, width: int, height: int) -> Pixels:
    """Return a plane with this many pixels, each a weighted mean of those it stands for."""
    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    if picture.size == (width, height):
        return plane
    return np.asarray(picture.resize((width, height), Image.Resampling.HAMMING), np.float32)


def _places(n: int, most: int) -> list[int]:
    """Return the indices of ``most`` evenly spaced sections, or of all."""
    k = min(n, most)
    return [int((i + 0.5) * n / k) for i in range(k)]


def _planes(volume: VolumeLike, places: Mapping[int, Sequence[int]], size: Sequence[float]) -> dict[int, list[Pixels]]:
    """Return the sections of a volume at places along its axes, scaled down, from one pass over it."""
    voxels = as_voxels(volume)
    shape = voxels.shape
    planes = {
        axis: np.empty((len(indices), *(n for other, n in enumerate(shape) if other != axis)), np.float32)
        for axis, indices in places.items()
    }
    for place, block in voxels.slabs():
        for axis, indices in places.items():
            for number, index in enumerate(indices):
                if place[axis].start <= index < place[axis].stop:
                    within = tuple(cut for other, cut in enumerate(place) if other != axis)
                    planes[axis][number][within] = np.take(block, index - place[axis].start, axis)
    return {axis: [_scaled(plane, axis, size) for plane in found] for axis, found in planes.items()}


def _scaled(plane: Pixels, axis: int, size: Sequence[float]) -> Pixels:
    """Return a section with square pixels where the voxels are not cubes, and no longer than a picture may be."""
    down, across = (length for other, length in enumerate(size) if other != axis)
    height, width = (n * length / min(down, across) for n, length in zip(plane.shape, (down, across), strict=True))
    factor = min(1.0, _FORMATS[0][0] / max(width, height))
    filled = np.nan_to_num(plane, posinf=0.0, neginf=0.0)
    return shrunk(filled, max(round(width * factor), 1), max(round(height * factor), 1))


def _limits(volumes: Sequence[Shown], planes: Sequence[Sequence[Pixels]]) -> list[tuple[float, float]]:
    """Return the values that are black and white in each volume."""
    found = [np.percentile(_sample(one), [0.5, 50, 99.2]) for one in planes]
    shared = [ends for shown, ends in zip(volumes, found, strict=True) if shown.grey == "shared"]
    # The range of the least noisy volume, so that the noise of an input does not leave the result without contrast, but
    # not so narrow that of a noisy one only black and white are left.
    narrow = min(shared, key=lambda ends: float(ends[2] - ends[0]), default=np.array([-1.0, 0.0, 1.0]))
    wide = max((float(ends[2] - ends[0]) for ends in shared), default=2.0)
    below, above = float(narrow[1] - narrow[0]), float(narrow[2] - narrow[1])
    # The contrast of the page turns about the middle grey, from which the background must not be far.
    below, above = max(below, 0.65 * above), max(above, 0.65 * below)
    stretch = max(1.0, _NARROWEST * wide / (below + above)) if below + above > 0 else 1.0
    below, above = stretch * below or 1.0, stretch * above or 1.0
    centres = {"shared": float(narrow[1]), "shared about zero": 0.0}
    return [
        (0.0, float(ends[2]) or 1.0)
        if shown.grey == "own"
        else (centres[shown.grey] - below, centres[shown.grey] + above)
        for shown, ends in zip(volumes, found, strict=True)
    ]


def _sample(planes: Sequence[Pixels]) -> Pixels:
    """Return some of the values of sections."""
    return np.concatenate([plane[::2, ::2].ravel() for plane in planes])


def _fitting(
    planes: Sequence[Mapping[int, Sequence[Pixels]]], limits: Sequence[tuple[float, float]], n_bytes: float
) -> dict[int, tuple[list[int], list[list[bytes]]]]:
    """Return for each axis the numbers of the sections that are kept, and their pictures, volume by volume."""
    most = {axis: len(found) for axis, found in planes[0].items()}
    wanted = {axis: min(most[axis], n) for axis, n in zip(most, _WANTED_SECTIONS, strict=True)}
    for side, quality in _FORMATS:
        middles = {
            axis: sum(
                len(_webp(one[axis][n // 2], *ends, side, quality)) for one, ends in zip(planes, limits, strict=True)
            )
            for axis, n in most.items()
        }
        if sum(middles[axis] * n for axis, n in wanted.items()) <= 0.8 * n_bytes:
            break
    share = n_bytes / sum(middles[axis] * n for axis, n in most.items())
    counts = {axis: min(n, max(math.ceil(n * share), 1)) for axis, n in most.items()}
    while True:
        kept = {axis: _places(most[axis], n) for axis, n in counts.items()}
        pictures = {
            axis: [
                [_webp(one[axis][n], *ends, side, quality) for n in numbers]
                for one, ends in zip(planes, limits, strict=True)
            ]
            for axis, numbers in kept.items()
        }
        total = sum(len(content) for panels in pictures.values() for panel in panels for content in panel)
        if total <= n_bytes or max(counts.values()) == 1:
            return {axis: (kept[axis], pictures[axis]) for axis in kept}
        counts = {axis: max(min(n - 1, int(n * n_bytes / total)), 1) for axis, n in counts.items()}


def _webp(plane: Pixels, low: float, high: float, side: int, quality: int) -> bytes:
    height, width = plane.shape
    factor = min(1.0, side / max(plane.shape))
    small = shrunk(plane, max(round(width * factor), 1), max(round(height * factor), 1))
    return _bytes(np.clip((small - low) * (255 / (high - low)), 0, 255).astype(np.uint8), quality)


def _bytes(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def _uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
