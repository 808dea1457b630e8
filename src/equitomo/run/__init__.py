"""Runs: training in a folder with its record, prediction, tables of tomograms, and what all that needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.run.checks import check_training
    from equitomo.run.convert import Conversion
    from equitomo.run.demo import Demonstration
    from equitomo.run.many import Outcome, TablePrediction
    from equitomo.run.prediction import Plan
    from equitomo.run.run import Run
    from equitomo.run.settings import (
        Prediction,
        ReconstructionSettings,
        SpecimenSettings,
        TomogramFiles,
        TrainingFiles,
    )

_HOMES = {
    "Conversion": "convert",
    "Demonstration": "demo",
    "Outcome": "many",
    "Plan": "prediction",
    "Prediction": "settings",
    "ReconstructionSettings": "settings",
    "Run": "run",
    "SpecimenSettings": "settings",
    "TablePrediction": "many",
    "TomogramFiles": "settings",
    "TrainingFiles": "settings",
    "check_training": "checks",
}

__all__ = [
    "Conversion",
    "Demonstration",
    "Outcome",
    "Plan",
    "Prediction",
    "ReconstructionSettings",
    "Run",
    "SpecimenSettings",
    "TablePrediction",
    "TomogramFiles",
    "TrainingFiles",
    "check_training",
]


def __getattr__(name: str) -> Any:
    # The settings must be at hand without torch: the command line parses before it imports.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
