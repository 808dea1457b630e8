"""The training engine: steps, resuming, processes and memory, for any method."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.training.checkpoint import load_network
    from equitomo.training.config import TrainingConfig
    from equitomo.training.distributed import LostProcessError
    from equitomo.training.engine import Trainer, TrainingDivergedError, TrainingInterruptedError
    from equitomo.training.method import Method
    from equitomo.training.optimizer import KernelMuon

_HOMES = {
    "KernelMuon": "optimizer",
    "LostProcessError": "distributed",
    "Method": "method",
    "Trainer": "engine",
    "TrainingConfig": "config",
    "TrainingDivergedError": "engine",
    "TrainingInterruptedError": "engine",
    "load_network": "checkpoint",
}

__all__ = [
    "KernelMuon",
    "LostProcessError",
    "Method",
    "Trainer",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingInterruptedError",
    "load_network",
]


def __getattr__(name: str) -> Any:
    # The configuration must be at hand without torch: the command line parses before it imports.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
