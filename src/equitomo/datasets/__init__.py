"""Tomograms as data: pairs of halves, the cubes cut from them, and where the specimen is."""

from equitomo.datasets.agreement import HalvesAgreement, compare_halves
from equitomo.datasets.cubes import Cubes, SubtomogramDataset
from equitomo.datasets.pair import IntensityScale, Normalization, TomogramPair, require_usable
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
    "require_two_halves",
    "require_usable",
    "specimen_mask",
]
