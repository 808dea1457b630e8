"""Tomograms as data: pairs of halves, the cubes cut from them, and where the specimen is."""

from equitomo.datasets.agreement import HalvesAgreement, compare_halves
from equitomo.datasets.cubes import SubtomogramDataset
from equitomo.datasets.pair import IntensityScale, Normalization, TomogramPair, require_usable
from equitomo.datasets.specimen import specimen_mask

__all__ = [
    "HalvesAgreement",
    "IntensityScale",
    "Normalization",
    "SubtomogramDataset",
    "TomogramPair",
    "compare_halves",
    "require_usable",
    "specimen_mask",
]
