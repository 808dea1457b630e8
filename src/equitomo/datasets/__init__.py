"""Tomograms as data: pairs of halves, the cubes cut from them, and masks of the specimen."""

from equitomo.datasets.contrast import Contrast, is_dark
from equitomo.datasets.cubes import Cubes, SubtomogramDataset, require_one_voxel_size
from equitomo.datasets.halves import require_one_grid
from equitomo.datasets.held_out_block import HeldOut, HeldOutBlock, held_out_block
from equitomo.datasets.held_out_sector import HeldOutSector, hold_out_sector
from equitomo.datasets.intensities import IntensityScale, Normalization, require_usable
from equitomo.datasets.pair import TomogramPair, read_geometry
from equitomo.datasets.pool import SubtomogramPool, cubes_of
from equitomo.datasets.registration import register
from equitomo.datasets.specimen import specimen_mask
from equitomo.datasets.splits import (
    paired,
    registered_scans,
    split,
    split_by_scan,
    split_by_tilt,
    split_into_pairs,
)
from equitomo.datasets.statistics import (
    HalfStatistics,
    ReadingStoppedError,
    clipped,
    has_zero_background,
    without_outliers,
)
from equitomo.datasets.tilt_series import TiltSeries

__all__ = [
    "Contrast",
    "Cubes",
    "HalfStatistics",
    "HeldOut",
    "HeldOutBlock",
    "HeldOutSector",
    "IntensityScale",
    "Normalization",
    "ReadingStoppedError",
    "SubtomogramDataset",
    "SubtomogramPool",
    "TiltSeries",
    "TomogramPair",
    "clipped",
    "cubes_of",
    "has_zero_background",
    "held_out_block",
    "hold_out_sector",
    "is_dark",
    "paired",
    "read_geometry",
    "register",
    "registered_scans",
    "require_one_grid",
    "require_one_voxel_size",
    "require_usable",
    "specimen_mask",
    "split",
    "split_by_scan",
    "split_by_tilt",
    "split_into_pairs",
    "without_outliers",
]
