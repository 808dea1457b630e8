"""What a training begins with: weights drawn from the seed, or those of ``--init``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from equitomo.cli.manifest import NOT_RECORDED
from equitomo.cli.options import RunFolder, TrainingInput
from equitomo.training.checkpoint import has_checkpoint, load_checkpoint


@dataclass(frozen=True)
class Initial:
    """A network to start from, ``None`` for weights drawn from the seed, and what the run's record says of it."""

    network: nn.Module | None = None
    described: Any = None

    @classmethod
    def read(cls, folder: RunFolder, given: TrainingInput) -> Self:
        """Read what ``--init`` names, unless the run goes on: then nothing is read, and the record says it already."""
        if folder.resume and has_checkpoint(Path(folder.out)):
            return cls(described=NOT_RECORDED)
        if given.init is None:
            return cls()
        if Path(given.init).is_file():
            raise ValueError(
                f"--init {given.init} is a file, not a run or a checkpoint folder. Nothing else is read here; a "
                "checkpoint that torch.save wrote becomes one by `equitomo convert FILE --out CHECKPOINT`"
            )
        checkpoint = load_checkpoint(Path(given.init))
        state = checkpoint.state
        described = {"path": str(checkpoint.path.absolute()), "step": state["step"]}
        described["sha256"] = state["sha256"][checkpoint.group()]
        if "converted_from" in state:
            described["converted_from"] = state["converted_from"]
        return cls(checkpoint.network(), described)
