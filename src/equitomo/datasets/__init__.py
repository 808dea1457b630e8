"""Tomograms as data: pairs of halves, the cubes cut from them, and where the specimen is."""

from equitomo.datasets.agreement import HalvesAgreement, compare_halves
from equitomo.datasets.cubes import Cubes, SubtomogramDataset
from equitomo.datasets.halves import judge_halves
from equitomo.datasets.intensities import IntensityScale, Normalization, require_usable, warn_of_outliers
from equitomo.datasets.pair import TomogramPair
from equitomo.datasets.pool import SubtomogramPool, cubes_of
from equitomo.datasets.specimen import specimen_mask
from equitomo.datasets.stored import StoredTomogramPair, require_two_halves

__all__ = [
    "Cubes",
    "HalvesAgreement",
    "IntensityScale",
    "Normalization",
    "StoredTomogramPair",
    "SubtomogramDataset",
    "SubtomogramPool",
    "TomogramPair",
    "compare_halves",
    "cubes_of",
    "judge_halves",
    "require_two_halves",
    "require_usable",
    "specimen_mask",
    "warn_of_outliers",
]
