"""Equivariant imaging for limited-angle tomography: building blocks for deepinv, and ICECREAM made of them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.datasets import (
        IntensityScale,
        SubtomogramDataset,
        SubtomogramPool,
        TiltSeries,
        TomogramPair,
        register,
        specimen_mask,
        split_by_scan,
        split_by_tilt,
        split_into_pairs,
    )
    from equitomo.diagnosis import Finding, diagnose, estimate_wedge, judge_geometry
    from equitomo.geometry import TiltGeometry, TiltUnion, wedge_mask
    from equitomo.inference import TiledPredictor
    from equitomo.io import (
        SeriesMetadata,
        Volume,
        find_series,
        read_series,
        read_stack,
        read_tilts,
        read_volume,
        write_volume,
    )
    from equitomo.loss import MaskedEquivarianceLoss, Noise2NoiseLoss
    from equitomo.methods import IcecreamTrainer
    from equitomo.metrics import fourier_shell_correlation
    from equitomo.models import ScaleEquivariantUNet3D, TwoViewReconstructor, load_icecream_checkpoint
    from equitomo.physics import (
        ContrastTransfer,
        MissingWedgeOperator,
        PaddedMissingWedgeOperator,
        TiltRangeGenerator,
        TiltSeriesPhysics,
        deconvolve,
        flip_phases,
    )
    from equitomo.run import Run, make_halves
    from equitomo.symmetry import MirrorAveraged
    from equitomo.training import TrainingConfig, load_network
    from equitomo.transform import CubeRotationGroup

__all__ = [
    "ContrastTransfer",
    "CubeRotationGroup",
    "Finding",
    "IcecreamTrainer",
    "IntensityScale",
    "MaskedEquivarianceLoss",
    "MirrorAveraged",
    "MissingWedgeOperator",
    "Noise2NoiseLoss",
    "PaddedMissingWedgeOperator",
    "Run",
    "ScaleEquivariantUNet3D",
    "SeriesMetadata",
    "SubtomogramDataset",
    "SubtomogramPool",
    "TiledPredictor",
    "TiltGeometry",
    "TiltRangeGenerator",
    "TiltSeries",
    "TiltSeriesPhysics",
    "TiltUnion",
    "TomogramPair",
    "TrainingConfig",
    "TwoViewReconstructor",
    "Volume",
    "__version__",
    "deconvolve",
    "diagnose",
    "estimate_wedge",
    "find_series",
    "flip_phases",
    "fourier_shell_correlation",
    "judge_geometry",
    "load_icecream_checkpoint",
    "load_network",
    "make_halves",
    "read_series",
    "read_stack",
    "read_tilts",
    "read_volume",
    "register",
    "specimen_mask",
    "split_by_scan",
    "split_by_tilt",
    "split_into_pairs",
    "wedge_mask",
    "write_volume",
]

# Where each public name lives. They are imported when first used: the command line answers --help and
# checks its arguments without waiting for torch.
_HOMES = {
    "ContrastTransfer": "physics",
    "CubeRotationGroup": "transform",
    "Finding": "diagnosis",
    "IcecreamTrainer": "methods",
    "IntensityScale": "datasets",
    "MaskedEquivarianceLoss": "loss",
    "MirrorAveraged": "symmetry",
    "MissingWedgeOperator": "physics",
    "Noise2NoiseLoss": "loss",
    "PaddedMissingWedgeOperator": "physics",
    "Run": "run",
    "ScaleEquivariantUNet3D": "models",
    "SeriesMetadata": "io",
    "SubtomogramDataset": "datasets",
    "SubtomogramPool": "datasets",
    "TiledPredictor": "inference",
    "TiltGeometry": "geometry",
    "TiltRangeGenerator": "physics",
    "TiltSeries": "datasets",
    "TiltSeriesPhysics": "physics",
    "TiltUnion": "geometry",
    "TomogramPair": "datasets",
    "TrainingConfig": "training",
    "TwoViewReconstructor": "models",
    "Volume": "io",
    "deconvolve": "physics",
    "diagnose": "diagnosis",
    "estimate_wedge": "diagnosis",
    "find_series": "io",
    "flip_phases": "physics",
    "fourier_shell_correlation": "metrics",
    "judge_geometry": "diagnosis",
    "load_icecream_checkpoint": "models",
    "load_network": "training",
    "make_halves": "run",
    "read_series": "io",
    "read_stack": "io",
    "read_tilts": "io",
    "read_volume": "io",
    "register": "datasets",
    "specimen_mask": "datasets",
    "split_by_scan": "datasets",
    "split_by_tilt": "datasets",
    "split_into_pairs": "datasets",
    "wedge_mask": "geometry",
    "write_volume": "io",
}

__all__ = [*_HOMES, "__version__"]
__version__ = version("equitomo")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
