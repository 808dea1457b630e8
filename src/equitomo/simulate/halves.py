"""Two simulated half tomograms with a known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equitomo.geometry import TiltGeometry
from equitomo.physics import ContrastTransfer, TiltSeriesPhysics, flip_phases, transfer_contrast
from equitomo.physics.ctf import Hand
from equitomo.simulate.scene import normal
from equitomo.simulate.specimen import simulate_specimen


@dataclass(frozen=True)
class SimulatedHalves:
    """Two half tomograms of one specimen, and the specimen itself.

    Parameters
    ----------
    truth
        The specimen, ``(z, y, x)``.
    first, second
        Filtered backprojections of the two dose halves, ``(z, y, x)``. They have the same signal and independent noise.
    geometry
        The tilts of both halves.
    """

    truth: Tensor
    first: Tensor
    second: Tensor
    geometry: TiltGeometry


def simulate_halves(
    shape: Sequence[int],
    geometry: TiltGeometry,
    *,
    snr: float,
    voxel_size: float = 10.0,
    ctfs: ContrastTransfer | Sequence[ContrastTransfer] | None = None,
    hand: Hand | None = -1,
    phase_flipped: bool = False,
    specimen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SimulatedHalves:
    r"""Simulate two half tomograms of a specimen, as from a dose-split tilt series.

    Each half is reconstructed from the same noise-free projections :math:`p` with white Gaussian noise of its own. As
    each half has half of the electrons, its noise has twice the variance :math:`\sigma^2` of the full dose:

    .. math::

        y_i = \operatorname{FBP}(p + n_i), \qquad \operatorname{Var}(n_i) = 2\sigma^2, \qquad
        \mathrm{snr} = \operatorname{Var}(p) / \sigma^2.

    :math:`\operatorname{Var}(p)` is the variance over the pixels of a projection, averaged over the tilts. Only the
    pixels of a detector as wide as the volume count for it. The projections themselves are wide enough to show every
    voxel at every tilt. There is no matter outside the volume.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the specimen and the halves.
    geometry
        The list of tilts and the tilt axis.
    snr
        Signal-to-noise ratio of a projection with the full dose; ``inf`` for halves without noise.
    voxel_size
        Ångström per voxel; see :func:`simulate_specimen`.
    ctfs
        The contrast transfer function of each view, or one for all, which the projections are multiplied by before the
        noise is added. ``None`` for perfect contrast, as in HAADF-STEM.
    hand
        How the defocus changes across the tilt axis; see :func:`equitomo.physics.flip_phases`.
    phase_flipped
        Whether the phases of the noisy projections are flipped before the reconstruction.
    specimen
        The specimen ``(z, y, x)``, of the same shape; ``None`` for one of :func:`simulate_specimen` with its defaults.
    generator
        Source of randomness, on the device to compute on; ``None`` takes torch's default generator on the CPU.

    Raises
    ------
    ValueError
        If ``snr`` is not positive, the geometry is a continuous range, ``phase_flipped`` lacks ``ctfs``, or the
        ``specimen`` has another shape.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> geometry = TiltGeometry(range(-60, 61, 6))
    >>> halves = simulate_halves((24, 24, 24), geometry, snr=0.8, voxel_size=20.0, generator=generator)
    >>> halves.first.shape, torch.equal(halves.first, halves.second)
    (torch.Size([24, 24, 24]), False)
    """
    if not snr > 0:
        raise ValueError(f"`snr` must be positive (inf for no noise), got {snr}")
    if phase_flipped and ctfs is None:
        raise ValueError("`phase_flipped` needs the contrast transfer functions, `ctfs`")
    if specimen is not None and tuple(specimen.shape) != tuple(shape):
        raise ValueError(f"`shape` must be that of the `specimen`, {tuple(specimen.shape)}, got {tuple(shape)}")
    truth = simulate_specimen(shape, voxel_size=voxel_size, generator=generator) if specimen is None else specimen
    n_across = truth.shape[geometry.axes.across]
    n_spare = math.ceil((math.hypot(truth.shape[0], n_across) - n_across) / 2)
    detector = n_across + 2 * n_spare
    physics = TiltSeriesPhysics(truth.shape, geometry, detector=detector, device=truth.device)
    series = physics.A(truth[None, None])[0, 0]
    if ctfs is not None:
        series = transfer_contrast(series, ctfs, geometry.angles, hand=hand)
    power = series.narrow(-1, n_spare, n_across).var(dim=(1, 2)).mean()
    deviation = (2 * power / snr).sqrt()

    def half() -> Tensor:
        views = series + deviation * normal(series.shape, generator)
        if phase_flipped and ctfs is not None:
            views = flip_phases(views, ctfs, geometry.angles, hand=hand)
        # This window leaves as much noise as the linear interpolation of most programs does.
        return physics.filtered_backprojection(views[None, None], "shepp-logan")[0, 0]

    first, second = half(), half()
    return SimulatedHalves(truth=truth, first=first, second=second, geometry=geometry)
