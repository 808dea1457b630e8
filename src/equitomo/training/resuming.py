"""The rules by which a run may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

from equitomo.training.checkpoint import Checkpoint, CheckpointError
from equitomo.training.config import PredictionSettings, RuntimeSettings, TrainingConfig
from equitomo.training.fingerprint import differences

# Settings that a resumed run may change without becoming another run; the numbers of steps and "minutes" with
# conditions.
_FREE = {field.name for group in (RuntimeSettings, PredictionSettings) for field in fields(group)}
_FREE |= {"steps", "restart_steps", "stop_when_stable"}


def require_same_run(
    checkpoint: Checkpoint, config: TrainingConfig, geometries: list[dict[str, Any]], fingerprint: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of another run, or of no training at all; the error names both values that differ."""
    if "optimizer" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.path} holds a network and no training to resume: start from it")
    begun = checkpoint.state.get("restart", {}).get("step", 0)
    require_same_settings(checkpoint.state["config"], config, checkpoint.state["step"], checkpoint.path, begun=begun)
    require_same_tilts(checkpoint.state["geometries"], geometries, checkpoint.path)
    require_same_parts(checkpoint.state["fingerprint"], fingerprint, checkpoint.path)


def require_same_settings(
    before: Mapping[str, Any], config: TrainingConfig, done: int, source: object, *, begun: int = 0
) -> None:
    """Refuse settings with which the ``done`` steps of a run with the settings ``before`` would have been different.

    The run began again after step ``begun``, if that is not 0. The error names every setting that differs, and the file
    ``source`` from which the earlier ones were read.
    """
    # A setting that was introduced after the run has a default that does what was done before.
    saved, mine = TrainingConfig().as_dict() | dict(before), config.as_dict()
    free = _FREE if None in (config.minutes, saved["minutes"]) else _FREE | {"minutes"}
    differing = sorted(k for k in saved.keys() | mine.keys() if k not in free and saved.get(k) != mine.get(k))
    if differing:
        shown = ", ".join(f"`{key}` was {saved.get(key)}, now {mine.get(key)}" for key in differing)
        raise CheckpointError(f"{source} is of a run with other settings: {shown}. Give those of the run")
    # With another time the number of steps is chosen anew.
    name = "restart_steps" if begun else "steps"
    steps: int = mine[name]
    if steps == saved[name] or config.minutes is not None:
        return
    done -= begun
    changed = f"{source} is at step {done} of a run of {saved[name]}, which is now to have"
    if steps < done:
        raise CheckpointError(f"{changed} {steps}: give at least the number of steps that are done")
    # Only the learning rate after the warm-up depends on the total number of steps.
    if config.schedule != "constant" and done > config.warmup:
        raise CheckpointError(
            f"{changed} {steps}: with the schedule {config.schedule} the learning rates of the steps that are "
            f"done depend on `{name}`. Resume it with `{name}={saved[name]}`, or start another run in another folder "
            "with this one as `init`"
        )


def require_same_tilts(before: list[dict[str, Any]], geometries: list[dict[str, Any]], source: object) -> None:
    """Refuse other tilts than those of the run, naming both."""
    if before != geometries:
        raise CheckpointError(
            f"{source} is of a run with other tilts: they were {before}, now {geometries}. Give those of the run, or "
            "start another one with it as `init`"
        )


def require_same_parts(before: Mapping[str, Any], now: Mapping[str, Any], source: object) -> None:
    """Refuse another network, loss, operator or augmentation than that of the run, naming both."""
    found = list(islice(differences(before, now), 4))
    if found:
        more = ", ..." if len(found) > 3 else ""
        raise CheckpointError(
            f"{source} is of a run with another network, loss or operator: {', '.join(found[:3])}{more}. Give those of "
            "the run, or start another one with it as `init`"
        )
