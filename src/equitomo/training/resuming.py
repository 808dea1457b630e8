"""The rules by which a run may be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

from equitomo.training.checkpoint import Checkpoint, CheckpointError
from equitomo.training.config import PredictionSettings, RuntimeSettings, TrainingConfig
from equitomo.training.fingerprint import differences

# Settings that a resumed run may change without becoming another run; with conditions "steps" and "minutes" too.
_FREE = {field.name for group in (RuntimeSettings, PredictionSettings) for field in fields(group)} | {"steps"}


def require_same_run(
    checkpoint: Checkpoint, config: TrainingConfig, geometries: list[dict[str, Any]], fingerprint: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of a run with other settings, tilts, network, losses or operator, or of no training at all.

    Raises
    ------
    CheckpointError
        If something differs. The message names both.
    """
    if "optimizer" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.path} holds a network and no training to resume: start from it")
    require_same_settings(checkpoint.state["config"], config, checkpoint.state["step"], checkpoint.path)
    require_same_tilts(checkpoint.state["geometries"], geometries, checkpoint.path)
    require_same_parts(checkpoint.state["fingerprint"], fingerprint, checkpoint.path)


def require_same_settings(before: Mapping[str, Any], config: TrainingConfig, done: int, source: object) -> None:
    """Refuse settings with which the steps that are done would have been others.

    Parameters
    ----------
    before
        The settings that the run had.
    config
        The settings with which it is to continue.
    done
        Its steps so far.
    source
        The file that the former were read from.

    Raises
    ------
    CheckpointError
        If a setting differs. The message names all that do.
    """
    # A setting that is younger than the run has a default that does what was done before it.
    saved, mine = TrainingConfig().as_dict() | dict(before), config.as_dict()
    free = _FREE if None in (config.minutes, saved["minutes"]) else _FREE | {"minutes"}
    differing = sorted(k for k in saved.keys() | mine.keys() if k not in free and saved.get(k) != mine.get(k))
    if differing:
        shown = ", ".join(f"`{key}` was {saved.get(key)}, now {mine.get(key)}" for key in differing)
        raise CheckpointError(f"{source} is of a run with other settings: {shown}. Give those of the run")
    # With another time the number of steps is chosen anew.
    if config.steps == saved["steps"] or config.minutes is not None:
        return
    changed = f"{source} is at step {done} of a run of {saved['steps']}, which now is to have"
    if config.steps < done:
        raise CheckpointError(f"{changed} {config.steps}: give no fewer than are done")
    # Nothing else that a step does depends on how many there will be, and its size not before the warm-up is over.
    if config.schedule != "constant" and done > config.warmup:
        raise CheckpointError(
            f"{changed} {config.steps}: with the schedule {config.schedule} the sizes of those done depend on `steps`. "
            f"Resume it with {saved['steps']}, or start another run in another folder with this one as `init`"
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
