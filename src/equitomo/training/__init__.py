"""Training on pairs of half tomograms."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equitomo.training.augmentation import exchange_sectors
    from equitomo.training.checkpoint import load_network
    from equitomo.training.config import TrainingConfig
    from equitomo.training.distributed import LostProcessError
    from equitomo.training.trainer import IcecreamTrainer, TrainingDivergedError, TrainingInterruptedError

__all__ = [
    "IcecreamTrainer",
    "LostProcessError",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingInterruptedError",
    "exchange_sectors",
    "load_network",
]

_HOMES = {
    "LostProcessError": "distributed",
    "TrainingConfig": "config",
    "exchange_sectors": "augmentation",
    "load_network": "checkpoint",
}


def __getattr__(name: str) -> Any:
    # The configuration must be at hand without torch: the command line parses before it imports.
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'trainer')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
