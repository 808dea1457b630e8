"""Defaults of a training that follow from what was chosen; importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equitomo.training.config import TrainingConfig
from equitomo.training.presets import SHIPPED, STARTED, unsuited

# The settings of the network, and all that the defaults depend on.
SIZES = ("width", "levels", "unshuffle", "negative_slope")
CHOICES = ("preset", "method", *SIZES, "normalization", "side", "init", "steps", "out", "resume")
# The presets that start from a network of the package by themselves, and that network.
_STARTING, _NETWORK = tuple(STARTED), "cryo"
# A demonstration ends within three minutes; training is most of it.
_DEMO_MINUTES = 2.0


def training_defaults(chosen: Mapping[str, Any], *, is_demo: bool = False) -> dict[str, Any]:
    """Return all settings of a training, and what it starts from, before those that the user changes besides.

    Parameters
    ----------
    chosen
        The choices among :data:`CHOICES` that the user made.
    is_demo
        Whether the defaults are those of a demonstration.

    Returns
    -------
    dict
        The settings by name, with ``preset`` and ``init``. ``init`` is ``"cryo"`` where the preset starts from that
        network by itself. A run that is resumed starts from the network of the package, or from scratch, if its record
        says so.

    Raises
    ------
    ValueError
        As :meth:`equitomo.TrainingConfig.preset`.

    Examples
    --------
    >>> [training_defaults(chosen)["init"] for chosen in ({"preset": "fast"}, {"preset": "fast", "width": 16}, {})]
    ['cryo', None, None]
    """
    preset: Any = chosen.get("preset", "tiny" if is_demo else "paper")
    changes: dict[str, Any] = {"method": chosen["method"]} if "method" in chosen else {}
    settings = TrainingConfig.preset(preset, **changes).as_dict() | {
        name: _number(chosen[name]) for name in (*SIZES, "normalization") if name in chosen
    }
    init: str | None = None
    if "init" in chosen:
        init = str(chosen["init"])
        # What was asked for is not left again.
        changes["restart_steps"] = 0
    elif chosen.get("resume", False) is not False and (record := _record(chosen.get("out"))) is not None:
        init = record.pop("init", None)
        changes |= record
    elif preset in _STARTING and unsuited(_NETWORK, settings) is None:
        init = _NETWORK
    if is_demo and "steps" not in chosen:
        changes["minutes"] = _DEMO_MINUTES
    if "side" in chosen:
        # As for a preset: cubes that are asked for do not shrink.
        changes["fit_cubes"] = False
    start = init if init in SHIPPED else None
    settings = TrainingConfig.preset(preset, start=start, **changes).as_dict()
    if settings["restart_steps"] and str(chosen.get("steps", "")).isdecimal() and int(chosen["steps"]):
        settings["restart_steps"] = int(chosen["steps"])
    return settings | {"preset": preset, "init": init}


def why_from_scratch(config: TrainingConfig) -> list[str]:
    """Return why a training whose preset would start from a network of the package does not, as sentences."""
    reason = unsuited(_NETWORK, config.as_dict()) if config.method == "fast" else None
    return [] if reason is None else [f"Training starts from scratch: {reason}"]


def _record(folder: object) -> dict[str, Any] | None:
    """Return the ``init`` of the run in a folder, none for the weights of another run; ``None`` without a record.

    Where the run could not begin again from scratch, the result has the setting for this.
    """
    # Only for a run that is resumed, because it imports torch.
    from equitomo.run.report_facts import RunRecord

    try:
        record = RunRecord.read(Path(str(folder)))
    except ValueError:
        return None
    begun = record.init
    if begun is None:
        return {"init": "none"}
    found = {"init": begun["network"]} if isinstance(begun, dict) and "network" in begun else {}
    return found if record.configuration.get("restart_steps") else found | {"restart_steps": 0}


def _number(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value
