"""Runs: training in a folder with its record, prediction, tables of tomograms, and the checks before all that."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.run.checks import check_training
    from equitomo.run.convert import Conversion
    from equitomo.run.demo import Demonstration
    from equitomo.run.halves.making import Halves, HalvesOutcome, make_halves
    from equitomo.run.many import Outcome, TablePrediction
    from equitomo.run.prediction import Plan
    from equitomo.run.preview import Preview
    from equitomo.run.run import Run
    from equitomo.run.settings import (
        HalvesSettings,
        Prediction,
        PredictionTable,
        ReconstructionSettings,
        SeriesFiles,
        SpecimenSettings,
        TomogramFiles,
        TomogramTable,
        TrainingFiles,
        TrainingTable,
    )
    from equitomo.run.table import Tomogram, tomograms_of
    from equitomo.run.wedge_result import FoldResult, WedgeTestResult
    from equitomo.run.wedge_settings import WedgeTestSettings
    from equitomo.run.wedge_test import WedgeTest

__all__ = [
    "Conversion",
    "Demonstration",
    "FoldResult",
    "Halves",
    "HalvesOutcome",
    "HalvesSettings",
    "Outcome",
    "Plan",
    "Prediction",
    "PredictionTable",
    "Preview",
    "ReconstructionSettings",
    "Run",
    "SeriesFiles",
    "SpecimenSettings",
    "TablePrediction",
    "Tomogram",
    "TomogramFiles",
    "TomogramTable",
    "TrainingFiles",
    "TrainingTable",
    "WedgeTest",
    "WedgeTestResult",
    "WedgeTestSettings",
    "check_training",
    "make_halves",
    "tomograms_of",
]

_HOMES = {
    "Conversion": "convert",
    "Demonstration": "demo",
    "FoldResult": "wedge_result",
    "Halves": "halves.making",
    "HalvesOutcome": "halves.making",
    "Outcome": "many",
    "Plan": "prediction",
    "Preview": "preview",
    "Run": "run",
    "TablePrediction": "many",
    "Tomogram": "table",
    "WedgeTest": "wedge_test",
    "WedgeTestResult": "wedge_result",
    "WedgeTestSettings": "wedge_settings",
    "check_training": "checks",
    "make_halves": "halves.making",
    "tomograms_of": "table",
}


def __getattr__(name: str) -> Any:
    # The settings must be at hand without torch: the command line parses before it imports.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'settings')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
