"""The weights that a training begins with: drawn from the seed, or those of another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from equitomo.run.record import NOT_RECORDED
from equitomo.training.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Initial:
    """A network to start from, ``None`` for weights drawn from the seed, and its description in the run's record."""

    network: nn.Module | None = None
    description: Any = None

    @classmethod
    def of(
        cls, init: str | Path | nn.Module | None, *, restored: bool, network: Callable[[], nn.Module] | None = None
    ) -> Self:
        """Read a run or a checkpoint.

        Parameters
        ----------
        init
            The folder, a network, or ``None``.
        restored
            The weights come from a checkpoint of the run itself: nothing is read, and its record describes them.
        network
            The function that makes the network, where that is one of the user's own.
        """
        if restored:
            return cls(description=NOT_RECORDED)
        if init is None or isinstance(init, nn.Module):
            return cls(init, None if init is None else NOT_RECORDED)
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
        return cls(checkpoint.network(network), description)
