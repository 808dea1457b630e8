"""Augmentation of training pairs: mirror images of cubes, and tilts exchanged between the halves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.draws import EXCHANGES, MIRRORS, Draws
from equitomo.fourier import filtered, frequencies
from equitomo.geometry import Geometry, TiltAxes
from equitomo.symmetry import mirrors_of
from equitomo.training.method import Tilts

# Sectors of 7.5 degrees: a few tilts each, and no narrower than what a cube of 32 voxels resolves at half of Nyquist.
SECTORS = 24
# The number of places at which the first sector may begin.
_OFFSETS = 1 << 10


def mirror_cubes(
    y: Tensor,
    geometry: Geometry | Sequence[Geometry | Tilts],
    generator: Draws | torch.Generator | None = None,
    *,
    flips: bool = True,
) -> Tensor:
    """Return one of the mirror images of each cube that leave the missing wedge where it is.

    This gives up to eight times as many cubes, so the network memorises their noise less easily.

    Parameters
    ----------
    y
        Cubes ``(batch, views, z, y, x)``.
    geometry
        The tilts of all cubes, or of each; of a cube whose views have different tilts, a tuple with those of each view.
    generator
        The source of random numbers; ``None`` for torch's own. With a :class:`~equitomo.draws.Draws` a cube's image
        depends on the seed and on the cube's index alone.
    flips
        ``False`` draws only those images that are rotations too.
    """
    images = [_common_mirrors(tilts, flips) for tilts in _each(geometry, y)]
    # The number of images is 8, 4 or 2 and divides the bound.
    drawn = _integers(generator, len(y), 8, MIRRORS)
    return torch.stack([cube.flip(own[k % len(own)]) for cube, own, k in zip(y, images, drawn, strict=True)])


def exchange_tilts(
    y: Tensor, geometry: Geometry | Sequence[Geometry | Tilts], generator: Draws | torch.Generator | None = None
) -> Tensor:
    r"""Exchange random sectors of tilts between the two halves of each cube.

    .. math:: y_0' = y_1 + B (y_0 - y_1), \qquad y_1' = y_0 - B (y_0 - y_1)

    where the projection :math:`B` keeps sectors of the planes across the tilt axis. A projection image measures one
    direction of these planes, and the noise of different images is independent: exchanging the images of some
    directions leaves the specimen, the power of the noise and its independence between the halves as they were, but
    makes different halves. A network that has memorised the noise of one half, as it does in a thousand steps on a
    small tomogram, gains nothing by it. The idea is ours.

    The noise stays independent if the cube is a whole period of the Fourier transform. If the cube is cut from a
    larger volume, the cut spreads every coefficient over its neighbours, and one half then predicts a part of the
    other's noise: about 5 % of its power in a cube of 16 voxels, by the best linear prediction across the tilt axis.
    Cubes that are cut larger and cropped after the exchange leave less: 0.7 % for 24 voxels cropped to 16, 0.3 % for
    32. See ``larger_augmentations`` of :class:`equitomo.training.Method`. Do not reflect the volume beyond its faces
    to get larger cubes: reflected noise is the same noise, and as much of it is predicted as without a margin.

    Parameters
    ----------
    y
        Cubes ``(batch, 2, z, y, x)``.
    geometry
        The tilts of all cubes, or of each. Of a cube whose halves have different tilts, such as every second one, a
        tuple with those of each half: only directions between the ends of both ranges are exchanged, so that each half
        keeps its own missing wedge.
    generator
        The source of random numbers, as for :func:`mirror_cubes`.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> y = torch.randn(3, 2, 8, 8, 8)
    >>> exchanged = exchange_tilts(y, TiltGeometry.from_range(-60, 60), torch.Generator().manual_seed(0))
    >>> torch.allclose(exchanged.sum(1), y.sum(1), atol=1e-5)
    True
    """
    if y.shape[1] != 2:
        raise ValueError(f"tilts are exchanged between two halves, got cubes of shape {tuple(y.shape)}")
    drawn = _integers(generator, len(y), _OFFSETS << SECTORS, EXCHANGES)
    shape = (y.shape[-3], y.shape[-2], y.shape[-1])
    each = _each(geometry, y)
    # The noise of the halves stays independent for sectors about any axis, so those of one part of a union suffice.
    axes = [tilts[0].parts[0].axes for tilts in each]
    stays = [
        _kept(shape, own, (k >> SECTORS) / _OFFSETS, k % (1 << SECTORS), _common_range(tilts), y.device)
        for own, tilts, k in zip(axes, each, drawn, strict=True)
    ]
    if len(set(axes)) > 1:
        stays = [mask.expand(shape[0], shape[1], shape[2] // 2 + 1) for mask in stays]
    first, second = y[:, :1], y[:, 1:]
    moved = filtered(first - second, torch.stack(stays)[:, None], shape)
    return torch.cat([second + moved, first - moved], dim=1)


def _each(geometry: Geometry | Sequence[Geometry | Tilts], y: Tensor) -> list[Tilts]:
    """Return for each cube the tilts of its views, or one geometry if all views have the same."""
    each = geometry if isinstance(geometry, Sequence) else [geometry] * len(y)
    return [tuple(dict.fromkeys(own)) if isinstance(own, tuple) else (own,) for own in each]


def _common_mirrors(tilts: Tilts, flips: bool) -> list[tuple[int, ...]]:
    """Return the axes to reverse for each mirror image that leaves the wedge of every view where it is."""
    first, *others = (mirrors_of(own, flips) for own in tilts)
    return [image for image in first if all(image in images for images in others)]


def _common_range(tilts: Tilts) -> tuple[float, float] | None:
    """Return the directions in degrees that all views measure; ``None`` if the views have the same tilts."""
    if len(tilts) == 1:
        return None
    parts = [part for own in tilts for part in own.parts]
    if len(parts) > len(tilts) or len({part.tilt_axis for part in parts}) > 1:
        raise ValueError(
            "tilts are exchanged between halves of equal tilts, or of different ones about one axis, got dual-axis "
            "tilts that differ: give the tilts of the whole series for both halves"
        )
    lows, highs = zip(*(part.tilt_range for part in parts), strict=True)
    return max(lows), min(highs)


def _integers(generator: Draws | torch.Generator | None, n: int, bound: int, stream: int) -> list[int]:
    if isinstance(generator, Draws):
        return generator.integers(bound, stream)
    device = "cpu" if generator is None else generator.device
    drawn: list[int] = torch.randint(bound, (n,), generator=generator, device=device).tolist()
    return drawn


def _kept(
    shape: tuple[int, int, int],
    axes: TiltAxes,
    offset: float,
    bits: int,
    common: tuple[float, float] | None,
    device: torch.device,
) -> Tensor:
    """Return an even mask, of length 1 along the tilt axis, that is 1 in the sectors whose bit is set.

    It is also 1 outside of the range ``common``, where only one half was measured.
    """
    k = frequencies(shape, device=device, dtype=torch.float32)
    k_beam, k_across = k[axes.beam], k[axes.across]
    turns = torch.atan2(k_beam, k_across) / torch.pi % 1.0
    sector = (turns * SECTORS + offset).long() % SECTORS
    table = torch.tensor([bits >> i & 1 for i in range(SECTORS)], dtype=torch.float32).to(device)
    mask = table[sector]
    if common is not None:
        low, high = common
        # Directions are known modulo 180 degrees.
        angles = (180 * turns, 180 * turns - 180)
        mask = mask.masked_fill(~torch.stack([(low <= angle) & (angle <= high) for angle in angles]).any(0), 1.0)
    # The mask must be even. At Nyquist a frequency and its opposite share one index, so these are always kept.
    return mask.masked_fill((k_beam.abs() == 0.5) | (k_across.abs() == 0.5), 1.0)
