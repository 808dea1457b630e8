"""Runs: training in a folder with its record, prediction, tables of tomograms, and what all that needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.run.convert import Conversion
    from equitomo.run.forecast import count_cubes, forecast_training
    from equitomo.run.many import Outcome, TablePrediction
    from equitomo.run.prediction import Plan
    from equitomo.run.run import Run
    from equitomo.run.settings import Prediction, TileSettings

_HOMES = {
    "Conversion": "convert",
    "Outcome": "many",
    "Plan": "prediction",
    "Prediction": "settings",
    "Run": "run",
    "TablePrediction": "many",
    "TileSettings": "settings",
    "count_cubes": "forecast",
    "forecast_training": "forecast",
}

__all__ = [
    "Conversion",
    "Outcome",
    "Plan",
    "Prediction",
    "Run",
    "TablePrediction",
    "TileSettings",
    "count_cubes",
    "forecast_training",
]


def __getattr__(name: str) -> Any:
    # The settings must be at hand without torch: the command line parses before it imports.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
