"""Pictures that a run leaves while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from equitomo import report

StepProgress = Callable[[int, dict[str, float]], None]


class TrainingWatch:
    """Passes the losses of a training on, and draws a fixed cube with how much it changed.

    Parameters
    ----------
    folder
        The folder for the pictures.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Tensor | None = None
        self._change: float | None = None
        self._progress: StepProgress | None = None

    def pass_on_to(self, progress: StepProgress | None) -> None:
        """Call ``progress`` with the losses from now on."""
        self._progress = progress

    def losses(self, step: int, losses: dict[str, float]) -> None:
        """Pass on the losses of a step, with the relative change of the cube in the last picture."""
        if self._progress is not None:
            self._progress(step, losses if self._change is None else losses | {"change": self._change})

    def preview(self, step: int, cube: Tensor, seen: Tensor) -> None:
        """Draw a cube and the network's result for it."""
        if self._before is not None:
            self._change = float((seen - self._before).norm() / seen.norm().clamp_min(1e-12))
        self._before = seen
        changed = "" if self._change is None else f", changed by {self._change:.1%} since the last picture"
        report.draw_preview(self._folder / f"step_{step:07d}.png", cube, seen, f"step {step}{changed}")
