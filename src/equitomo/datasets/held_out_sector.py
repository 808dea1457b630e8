"""A pair of which one more sector of Fourier space was emptied, so that what was measured there can be held against
what a method fills in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from equitomo.datasets.pair import TomogramPair
from equitomo.fourier import filtered
from equitomo.geometry import Ends, MeasuredMask, narrowed


@dataclass(frozen=True)
class HeldOutSector:
    """A narrower pair, and what was measured in the sector that it lacks.

    Parameters
    ----------
    pair
        The halves without the sector, with the tilts that are left.
    measured
        The halves with it, on the intensity scale of their own pair: (2, z, y, x).
    sector
        True for the coefficients of the sector: boolean, on the half spectrum (z, y, x // 2 + 1) with length 1 where
        it is constant. Both halves had measured them.
    ends
        The ends of the tilt range that were left out.
    """

    pair: TomogramPair
    measured: Tensor
    sector: Tensor
    ends: Ends


def hold_out_sector(pair: TomogramPair, share: float = 0.8, ends: Ends = "both") -> HeldOutSector:
    r"""Empty the sectors of the outermost tilts in both halves, as if these tilts had not been taken.

    .. math:: z_i = F^{-1} \operatorname{diag}(m_1)\, F y_i, \qquad S = m_0 \wedge \neg m_1

    :math:`m_0` is the mask of the measured coefficients and :math:`m_1` that of the narrower range. The volume is
    transformed as it is, without a window and without padding: a window would mix measured coefficients, with their
    noise, into the sector, and an empty sector would not look empty.

    Parameters
    ----------
    pair
        Two half tomograms, which are read into memory.
    share, ends
        As for :func:`equitomo.geometry.narrowed`.

    Raises
    ------
    ValueError
        If there is only one volume, or the tilts cannot be narrowed.

    Examples
    --------
    >>> halves = torch.randn(16, 16, 16) + torch.randn(2, 16, 16, 16)
    >>> held_out = hold_out_sector(TomogramPair(*halves, (-60.0, 60.0)), 0.75)
    >>> held_out.pair.geometry.tilt_range
    (-45.0, 45.0)
    """
    if pair.n_views != 2:
        raise ValueError(
            f"{pair.name}: a held-out sector is judged by two halves with independent noise, got one volume"
        )
    geometries = [narrowed(geometry, share, ends) for geometry in pair.geometries]
    measured = pair.load_volumes() if pair.is_lazy else pair.volumes
    # What any of the narrower halves holds is emptied in none of them, and the sector is what both had measured.
    kept = reduce(torch.maximum, (MeasuredMask(geometry)(pair.shape) for geometry in geometries))
    before = reduce(torch.minimum, (MeasuredMask(geometry)(pair.shape) for geometry in pair.geometries))
    first, second = filtered(measured, kept.to(measured), pair.shape)
    mask = pair.mask
    narrow = TomogramPair(
        first,
        second,
        geometries[0],
        second_geometry=geometries[1],
        voxel_size=pair.voxel_size,
        mask=None if mask is None else mask.float(),
        normalization=pair.normalization,
        name=f"{pair.name} without a sector",
    )
    return HeldOutSector(narrow, measured, (before != 0) & (kept == 0), ends)
