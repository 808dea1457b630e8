"""Tomograms as data: pairs of halves, the cubes cut from them, and masks of the specimen."""

from equitomo.datasets.cubes import Cubes, SubtomogramDataset, require_one_voxel_size
from equitomo.datasets.halves import require_one_grid
from equitomo.datasets.intensities import IntensityScale, Normalization, require_usable
from equitomo.datasets.pair import TomogramPair, read_geometry
from equitomo.datasets.pool import SubtomogramPool, cubes_of
from equitomo.datasets.specimen import specimen_mask
from equitomo.datasets.statistics import (
    HalfStatistics,
    ReadingStoppedError,
    clipped,
    has_zero_background,
    without_outliers,
)

__all__ = [
    "Cubes",
    "HalfStatistics",
    "IntensityScale",
    "Normalization",
    "ReadingStoppedError",
    "SubtomogramDataset",
    "SubtomogramPool",
    "TomogramPair",
    "clipped",
    "cubes_of",
    "has_zero_background",
    "read_geometry",
    "require_one_grid",
    "require_one_voxel_size",
    "require_usable",
    "specimen_mask",
    "without_outliers",
]
