"""Methods of training, each one a function that returns a :class:`equitomo.training.Method`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from equitomo.training.config import TrainingConfig

if TYPE_CHECKING:
    from equitomo.methods.augmentation import exchange_tilts, mirror_cubes
    from equitomo.methods.trainer import IcecreamTrainer
    from equitomo.training.method import Method

__all__ = ["IcecreamTrainer", "exchange_tilts", "method_of", "mirror_cubes"]

_HOMES = {"IcecreamTrainer": "trainer", "exchange_tilts": "augmentation", "mirror_cubes": "augmentation"}


def method_of(config: TrainingConfig) -> Method:
    """Return the method that a configuration names.

    Examples
    --------
    >>> method_of(TrainingConfig(method="equivariant_imaging")).name
    'equivariant_imaging'
    """
    method: Method = import_module(f"{__name__}.{config.method}").method(config)
    return method


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
