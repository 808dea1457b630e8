"""Specimens in closed form and at random, their tilt series and what is reconstructed from them."""

from __future__ import annotations

import torch
from torch import Tensor

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.fourier import rfftn


def project(volume: Tensor, geometry: TiltGeometry, **settings) -> Tensor:
    """Return the series ``(tilt, along, t)`` of a volume ``(z, y, x)``."""
    return TiltSeriesPhysics(volume.shape, geometry, **settings).A(volume[None, None])[0, 0]


def backproject(series: Tensor, geometry: TiltGeometry, shape: tuple[int, int, int], **settings) -> Tensor:
    """Return the filtered backprojection ``(z, y, x)`` of a series that the projector made."""
    physics = TiltSeriesPhysics(shape, geometry, detector=series.shape[-1])
    return physics.filtered_backprojection(series[None, None], **{"interpolations": 2, **settings})[0, 0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Return positions relative to the centre along z, y and x."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    return torch.meshgrid(*axes, indexing="ij")


def blob(shape: tuple[int, int, int], centre: tuple[float, float, float], width: float = 1.5) -> Tensor:
    squares = [(axis - c) ** 2 for axis, c in zip(coordinates(shape), centre, strict=True)]
    return torch.exp(-sum(squares) / (2 * width**2))


def compact_specimen(shape: tuple[int, int, int], width: float = 8.0) -> Tensor:
    """Return noise that fades away from the centre, so that no face of the volume cuts it."""
    noise = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    return noise * blob(shape, (0.0, 0.0, 0.0), width)


def energy(volume: Tensor) -> Tensor:
    """Return the energy of the half spectrum, counting mirror images and leaving out zero frequency."""
    power = rfftn(volume).abs() ** 2
    power[..., 1 : (volume.shape[-1] + 1) // 2] *= 2
    power[0, 0, 0] = 0
    return power


def outside(power: Tensor, mask: Tensor) -> float:
    return 1 - ((power * mask).sum() / power.sum()).item()
