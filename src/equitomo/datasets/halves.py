"""Which volumes can be the halves of one tomogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equitomo.datasets.intensities import Nan, require_usable
from equitomo.datasets.statistics import HalfStatistics, clipped
from equitomo.io import Volume

# Halves whose voxels correlate to more than this have no independent noise.
_EQUAL = 0.999


def require_one_grid(first: Volume, second: Volume) -> None:
    """Refuse one file for both halves, and volumes that differ in shape or voxel size.

    Raises
    ------
    ValueError
        If that is so.
    """
    if first.path.exists() and second.path.exists() and first.path.samefile(second.path):
        raise ValueError(f"{first.path} and {second.path} are the same file: give the two half tomograms")
    if first.shape != second.shape:
        raise ValueError(
            f"the two volumes differ in shape: {first.path} has {first.shape} and {second.path} {second.shape} voxels "
            "(z, y, x); give the halves of one tomogram, reconstructed alike"
        )
    for one, other in zip(first.voxel_size, second.voxel_size, strict=True):
        if abs(one - other) > 0.01 * max(one, other):
            raise ValueError(
                f"the two volumes differ in voxel size: {first.path} has {first.voxel_size} and {second.path} "
                f"{second.voxel_size} Å (z, y, x); correct the header that is wrong"
            )


def require_usable_halves(
    statistics: Sequence[HalfStatistics], labels: Sequence[str], name: str, *, nan: Nan = "refuse"
) -> None:
    """Refuse halves that are constant, hold invalid voxels or have no independent noise.

    Parameters
    ----------
    statistics
        The statistics of both halves, or of a single volume.
    labels
        The name of each in errors.
    name
        The name of the pair in errors.
    nan
        ``"mean"`` allows voxels that are NaN or infinite, unless all are.

    Raises
    ------
    ValueError
        If that is so.
    """
    for label, one in zip(labels, statistics, strict=True):
        require_usable(one, label, nan=nan)
    if len(statistics) == 1:
        return
    # A few hot voxels must neither hide what the halves share nor pass for it.
    first, second = (clipped(one.samples.astype(np.float64)) for one in statistics)
    correlation = float(np.corrcoef(first, second)[0, 1])
    if correlation > _EQUAL:
        raise ValueError(
            f"{name}: the halves are not independent, their voxels correlate to {correlation:.4f}: give the two half "
            "tomograms (odd/even tilts or frames), not the same volume twice"
        )
