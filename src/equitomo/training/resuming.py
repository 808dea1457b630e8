"""Whether a run may go on from a checkpoint."""

from __future__ import annotations

from typing import Any

from equitomo.training.checkpoint import Checkpoint, CheckpointError
from equitomo.training.config import TrainingConfig

# Settings that a resumed run may change without becoming another run.
_FREE = {
    "micro_batch",
    "device",
    "precision",
    "checkpointing",
    "compile",
    "checkpoint_every",
    "keep_every",
    "preview_every",
    "passes",
    "average_first",
    "mirrors",
}


def require_same_run(checkpoint: Checkpoint, config: TrainingConfig, geometries: list[dict[str, Any]]) -> None:
    """Refuse a checkpoint of a run with other settings or tilts, or of no training at all.

    Raises
    ------
    CheckpointError
        Naming every setting that differs, or both lists of tilts.
    """
    # A setting that is younger than the checkpoint has a default that does what was done before it.
    saved, mine = TrainingConfig().as_dict() | checkpoint.state["config"], config.as_dict()
    differing = sorted(k for k in saved.keys() | mine.keys() if k not in _FREE and saved.get(k) != mine.get(k))
    if differing:
        shown = ", ".join(f"{key} was {saved.get(key)}, now {mine.get(key)}" for key in differing)
        raise CheckpointError(f"{checkpoint.path} is of a run with other settings: {shown}")
    if checkpoint.state["geometries"] != geometries:
        raise CheckpointError(
            f"{checkpoint.path} is of a run with other tilts: they were {checkpoint.state['geometries']}, now "
            f"{geometries}. Give those of the run, or start another one with it as init"
        )
    if "optimizer" not in checkpoint.tensors:
        raise CheckpointError(f"{checkpoint.path} holds a network and no training to go on with: start from it")
