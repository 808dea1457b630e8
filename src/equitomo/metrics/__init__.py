"""Fourier shell correlation and other scores over all of Fourier space, its measured part and the missing wedge.

All scores work on discrete Fourier transforms, which continue a volume periodically. A volume that was cut out of
something larger is not periodic: subtract its mean and multiply it by :func:`equitomo.fourier.cosine_taper` first, or
pass ``taper`` to a :class:`~equitomo.metrics.FourierMetric`.
"""

from equitomo.metrics.correlation import (
    FourierShellCorrelation,
    conical_fsc,
    fourier_correlation,
    fourier_shell_correlation,
    shell_correlations,
)
from equitomo.metrics.cross_half import CrossHalfError, RowsToBeat, relative_error, rows_to_beat
from equitomo.metrics.differentiable import FourierCorrelation, FourierMetric, MeanFSC, WedgeEnergyFraction
from equitomo.metrics.evaluation import FSCResolution, HeldOutSectorCorrelation
from equitomo.metrics.held_out_sector import HeldOutCorrelation, held_out_correlation, held_out_difference
from equitomo.metrics.held_out_tilts import RawCorrelation, held_out_tilt_correlation, raw_tilt_correlation, unseen
from equitomo.metrics.masked import MaskedCorrelation, masked_correlations, masked_fsc, soft_mask
from equitomo.metrics.regions import FourierRegions, cone_masks, region_masks
from equitomo.metrics.wedge_energy import WedgeEnergy, wedge_energy_fraction

__all__ = [
    "CrossHalfError",
    "FSCResolution",
    "FourierCorrelation",
    "FourierMetric",
    "FourierRegions",
    "FourierShellCorrelation",
    "HeldOutCorrelation",
    "HeldOutSectorCorrelation",
    "MaskedCorrelation",
    "MeanFSC",
    "RawCorrelation",
    "RowsToBeat",
    "WedgeEnergy",
    "WedgeEnergyFraction",
    "cone_masks",
    "conical_fsc",
    "fourier_correlation",
    "fourier_shell_correlation",
    "held_out_correlation",
    "held_out_difference",
    "held_out_tilt_correlation",
    "masked_correlations",
    "masked_fsc",
    "raw_tilt_correlation",
    "region_masks",
    "relative_error",
    "rows_to_beat",
    "shell_correlations",
    "soft_mask",
    "unseen",
    "wedge_energy_fraction",
]
