"""Many training pairs from one: mirror images, and tilts that change sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.draws import EXCHANGES, MIRRORS, draw_integers
from equitomo.fourier import filtered, frequencies
from equitomo.geometry import TiltAxes, TiltAxis, TiltGeometry
from equitomo.symmetry import mirrors_of
from equitomo.training.config import TrainingConfig

# Sectors of 7.5 degrees: a few tilts each, and no narrower than what a cube of 32 voxels resolves at half of Nyquist.
SECTORS = 24
# Where the first sector begins, in parts of a sector.
_OFFSETS = 1 << 10


def augmented(y: Tensor, geometries: Sequence[TiltGeometry], indices: range, config: TrainingConfig) -> Tensor:
    """Cubes of both halves ``(batch, 2, z, y, x)``, changed as the configuration says; one index and geometry each."""
    if config.mirrored_cubes:
        images = [mirrors_of(geometry, config.flips) for geometry in geometries]
        # Their number, 8, 4 or 2, divides the bound.
        drawn = draw_integers(config.seed, indices, 8, MIRRORS)
        y = torch.stack([cube.flip(own[k % len(own)]) for cube, own, k in zip(y, images, drawn, strict=True)])
    if config.exchanged_tilts:
        drawn = draw_integers(config.seed, indices, _OFFSETS << SECTORS, EXCHANGES)
        axes = [geometry.tilt_axis for geometry in geometries]
        y = exchange_sectors(y, axes, [k >> SECTORS for k in drawn], [k % (1 << SECTORS) for k in drawn])
    return y


def exchange_sectors(y: Tensor, tilt_axes: Sequence[TiltAxis], offsets: Sequence[int], bits: Sequence[int]) -> Tensor:
    r"""Exchange sectors of Fourier space between two halves.

    .. math:: y_0' = y_1 + B (y_0 - y_1), \qquad y_1' = y_0 - B (y_0 - y_1)

    where the projection :math:`B` keeps sectors of the planes across the tilt axis. What a projection image measures
    lies in one of these planes' directions, and the noise of different images is independent: exchanging the images of
    some directions leaves the specimen, the power of the noise and its independence between the halves as they were,
    but makes other halves. A network that has learned the noise of one half by heart, as it does in a thousand steps on
    a small tomogram, gains nothing by it. The idea is ours.

    Parameters
    ----------
    y
        Cubes ``(batch, 2, z, y, x)``.
    tilt_axes
        The tilt axis of each cube.
    offsets
        Where the first sector begins, in parts of 1024 of a sector.
    bits
        Which sectors stay: bit ``i`` is for sector ``i`` of ``SECTORS``.
    """
    shape = (y.shape[-3], y.shape[-2], y.shape[-1])
    half = shape[0], shape[1], shape[2] // 2 + 1
    drawn = zip(tilt_axes, offsets, bits, strict=True)
    stays = [_kept(shape, axis, offset / _OFFSETS, kept, y.device) for axis, offset, kept in drawn]
    if len(set(tilt_axes)) > 1:
        stays = [mask.expand(half) for mask in stays]
    first, second = y[:, :1], y[:, 1:]
    moved = filtered(first - second, torch.stack(stays)[:, None], shape)
    return torch.cat([second + moved, first - moved], dim=1)


def _kept(shape: tuple[int, int, int], tilt_axis: TiltAxis, offset: float, bits: int, device: torch.device) -> Tensor:
    """1 in the sectors that stay, an even mask of length 1 along the tilt axis."""
    k = frequencies(shape, device=device, dtype=torch.float32)
    kz, across = k[0], k[TiltAxes.about(tilt_axis).across]
    turns = torch.atan2(kz, across) / torch.pi % 1.0
    sector = (turns * SECTORS + offset).long() % SECTORS
    table = torch.tensor([bits >> i & 1 for i in range(SECTORS)], dtype=torch.float32).to(device)
    # Opposite directions are one, but at Nyquist a frequency and its opposite stand in one place.
    return table[sector].masked_fill((kz.abs() == 0.5) | (across.abs() == 0.5), 1.0)
