"""The weights that a training begins with: drawn from the seed, or those of another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from equitomo.run.record import NOT_RECORDED
from equitomo.training.checkpoint import load_checkpoint


def initial_network(
    init: str | Path | nn.Module | None, *, restored: bool, network: Callable[[], nn.Module] | None = None
) -> tuple[nn.Module | None, Any]:
    """Return the network to start from, ``None`` for weights drawn from the seed, and what the record says of it.

    If the weights are ``restored`` from a checkpoint of the run itself, nothing is read: its record describes them.
    ``network`` makes the network, where that is one of the user's own.
    """
    if restored:
        return None, NOT_RECORDED
    if init is None or isinstance(init, nn.Module):
        return init, None if init is None else NOT_RECORDED
    if Path(init).is_file():
        raise ValueError(
            f"`init` {init} is a file, not a run or a checkpoint folder. A file that torch.save wrote becomes "
            "a checkpoint with `equitomo convert`"
        )
    checkpoint = load_checkpoint(Path(init))
    state = checkpoint.state
    description = {"path": str(checkpoint.path.absolute()), "step": state["step"]}
    description["sha256"] = state["sha256"][checkpoint.group()]
    if "converted_from" in state:
        description["converted_from"] = state["converted_from"]
    return checkpoint.network(network), description
