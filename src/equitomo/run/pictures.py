"""Pictures that a run leaves while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from equitomo import report

StepProgress = Callable[[int, dict[str, float]], None]


class TrainingWatch:
    """Draws a fixed cube into a folder while a network is trained, and measures how much it changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Tensor | None = None
        self._change: float | None = None

    def with_change(self, progress: StepProgress) -> StepProgress:
        """Return a function that calls ``progress`` with the losses and the relative change in the last picture."""

        def report(step: int, losses: dict[str, float]) -> None:
            progress(step, losses if self._change is None else losses | {"change": self._change})

        return report

    def preview(self, step: int, cube: Tensor, seen: Tensor) -> None:
        """Draw a cube and the network's result for it."""
        if self._before is not None:
            self._change = float((seen - self._before).norm() / seen.norm().clamp_min(1e-12))
        self._before = seen
        changed = "" if self._change is None else f", changed by {self._change:.1%} since the last picture"
        report.draw_preview(self._folder / f"step_{step:07d}.png", cube, seen, f"step {step}{changed}")
