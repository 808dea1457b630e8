"""The share of a volume's energy that lies in the missing wedge."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from equitomo.geometry import Geometry
from equitomo.metrics.regions import Array, as_batch, region_masks, region_sums


@dataclass(frozen=True)
class WedgeEnergy:
    """Energy in the missing wedge, as a share of the energy in the Nyquist ball without zero frequency.

    Parameters
    ----------
    fraction
        The wedge's share of the energy.
    coefficient_fraction
        The wedge's share of the coefficients.
    relative
        The ratio of both, which is 1 if the wedge holds as much energy per coefficient as the whole.
    """

    fraction: float
    coefficient_fraction: float
    relative: float


def wedge_energy_fraction(volume: Array, geometry: Geometry | tuple[float, float]) -> WedgeEnergy:
    """Return how much of the energy of a volume ``(z, y, x)`` lies in the missing wedge.

    Parameters
    ----------
    volume
        The volume.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.

    Examples
    --------
    >>> energy = wedge_energy_fraction(torch.randn(32, 32, 32), (-60.0, 60.0))
    >>> bool(abs(energy.relative - 1) < 0.1)  # white noise has the same energy everywhere
    True
    """
    power, count = energy_in_parts(as_batch(volume), geometry)
    fraction, coefficients = float(power[0, 1] / power.sum()), float(count[1] / count.sum())
    return WedgeEnergy(fraction, coefficients, fraction / coefficients)


def energy_in_parts(x: Tensor, geometry: Geometry | tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the energy ``(batch, 2)`` of the measured part and of the wedge, and their numbers of coefficients."""
    regions = region_masks(x.shape[-3:], geometry, device=x.device)
    sums = region_sums(x, x, lambda section: regions.overall[section].long() + regions.wedge[section], 2)
    return sums.first, sums.n_coefficients
