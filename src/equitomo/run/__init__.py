"""Runs: training in a folder with its record, prediction, tables of tomograms, and the checks before all that."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.run.checks import check_training
    from equitomo.run.comparison import Comparison, correlations
    from equitomo.run.convert import Conversion
    from equitomo.run.demo import Demonstration
    from equitomo.run.halves.making import Halves, HalvesOutcome, make_halves
    from equitomo.run.independent import independent_settings
    from equitomo.run.many import Outcome, TablePrediction
    from equitomo.run.places import Picture, SecondNetwork
    from equitomo.run.prediction import Plan
    from equitomo.run.preview import Preview
    from equitomo.run.reporting import RunReport, VolumeReport, report_of
    from equitomo.run.run import Run
    from equitomo.run.settings import (
        ComparedFiles,
        HalvesSettings,
        Prediction,
        PredictionTable,
        ReconstructionSettings,
        ReportFiles,
        SeriesFiles,
        SpecimenSettings,
        TomogramFiles,
        TomogramTable,
        TrainingFiles,
        TrainingTable,
    )
    from equitomo.run.table import Tomogram, tomograms_of
    from equitomo.run.tilt_result import ProjectionScore, TiltFoldResult, TiltScores, TiltTestResult, TiltViews
    from equitomo.run.tilt_settings import TiltTestSettings
    from equitomo.run.tilt_test import TiltTest
    from equitomo.run.verdict import advice
    from equitomo.run.wedge_choice import WedgeChoice
    from equitomo.run.wedge_choice_result import WedgeChoiceResult
    from equitomo.run.wedge_result import FoldResult, WedgeTestResult
    from equitomo.run.wedge_settings import WedgeChoiceSettings, WedgeTestSettings
    from equitomo.run.wedge_test import WedgeTest

__all__ = [
    "ComparedFiles",
    "Comparison",
    "Conversion",
    "Demonstration",
    "FoldResult",
    "Halves",
    "HalvesOutcome",
    "HalvesSettings",
    "Outcome",
    "Picture",
    "Plan",
    "Prediction",
    "PredictionTable",
    "Preview",
    "ProjectionScore",
    "ReconstructionSettings",
    "ReportFiles",
    "Run",
    "RunReport",
    "SecondNetwork",
    "SeriesFiles",
    "SpecimenSettings",
    "TablePrediction",
    "TiltFoldResult",
    "TiltScores",
    "TiltTest",
    "TiltTestResult",
    "TiltTestSettings",
    "TiltViews",
    "Tomogram",
    "TomogramFiles",
    "TomogramTable",
    "TrainingFiles",
    "TrainingTable",
    "VolumeReport",
    "WedgeChoice",
    "WedgeChoiceResult",
    "WedgeChoiceSettings",
    "WedgeTest",
    "WedgeTestResult",
    "WedgeTestSettings",
    "advice",
    "check_training",
    "correlations",
    "independent_settings",
    "make_halves",
    "report_of",
    "tomograms_of",
]

_HOMES = {
    "Comparison": "comparison",
    "Conversion": "convert",
    "Demonstration": "demo",
    "FoldResult": "wedge_result",
    "Halves": "halves.making",
    "HalvesOutcome": "halves.making",
    "Outcome": "many",
    "Picture": "places",
    "Plan": "prediction",
    "Preview": "preview",
    "ProjectionScore": "tilt_result",
    "Run": "run",
    "RunReport": "reporting",
    "SecondNetwork": "places",
    "TablePrediction": "many",
    "TiltFoldResult": "tilt_result",
    "TiltScores": "tilt_result",
    "TiltTest": "tilt_test",
    "TiltTestResult": "tilt_result",
    "TiltTestSettings": "tilt_settings",
    "TiltViews": "tilt_result",
    "Tomogram": "table",
    "VolumeReport": "reporting",
    "WedgeChoice": "wedge_choice",
    "WedgeChoiceResult": "wedge_choice_result",
    "WedgeChoiceSettings": "wedge_settings",
    "WedgeTest": "wedge_test",
    "WedgeTestResult": "wedge_result",
    "WedgeTestSettings": "wedge_settings",
    "advice": "verdict",
    "check_training": "checks",
    "correlations": "comparison",
    "independent_settings": "independent",
    "make_halves": "halves.making",
    "report_of": "reporting",
    "tomograms_of": "table",
}


def __getattr__(name: str) -> Any:
    # The settings must be at hand without torch: the command line parses before it imports.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'settings')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
