"""Bars while a command works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from equitomo.run import Outcome
from equitomo.run.memory import duration
from equitomo.training import Trainer


@contextmanager
def tile_bar(title: str, unit: str = "tile") -> Iterator[Callable[[int, int], None]]:
    """Show a bar, and yield a function of the tiles done and their total that moves it."""
    with tqdm(desc=title, unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def step_bar(trainer: Trainer) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Show the steps of a training, and yield a function of the steps done and their losses that moves the bar."""
    first, clock, minutes = trainer.step, 0.0, trainer.config.minutes
    on_cpu = trainer.device.type == "cpu"
    # The number of steps that was announced.
    announced: list[int] = []
    begun = trainer.restart
    with tqdm(total=trainer.steps, initial=first, desc="training", unit="step", smoothing=0.05) as bar:

        def show(step: int, losses: dict[str, float]) -> None:
            nonlocal begun, clock
            steps = trainer.steps
            bar.total = steps
            shown = {name: f"{value:.4f}" for name, value in losses.items() if name not in ("skipped", "change")}
            shown |= {"change": f"{losses['change']:.1%}"} if "change" in losses else {}
            bar.set_postfix(shown, refresh=False)
            bar.update(step - bar.n)
            if minutes is not None and steps is not None and not announced:
                announced.append(steps)
                tqdm.write(f"{minutes:g} minutes hold about {steps:,} steps; the number follows the clock")
            if trainer.restart is not begun:
                begun = trainer.restart
                tqdm.write(str(begun))
            if on_cpu and step == first + 1:
                # The first step also sets things up.
                clock = time.perf_counter()
            elif on_cpu and steps is not None and step == first + 2:
                took = time.perf_counter() - clock
                remaining = duration((steps - step) * took)
                tqdm.write(f"No GPU is used: a step takes {duration(took)}, all that are left {remaining}")

        yield show


class TableBar:
    """A bar for the tomograms of a table, which moves with the tiles of each."""

    def __init__(self, n_tomograms: int) -> None:
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total} [{elapsed}<{remaining}{postfix}]"
        self.bar: tqdm[Any] = tqdm(total=n_tomograms, desc="tomograms", smoothing=0, bar_format=form)
        self._lock = threading.Lock()
        self._finished = 0
        # The share of its tiles of each tomogram that is being made.
        self._shares: dict[Path, float] = {}

    def tiles(self, result: Path, done: int, total: int) -> None:
        """Advance the bar by the tiles of one tomogram."""
        with self._lock:
            self._shares[result] = done / total
            self._show()

    def finish(self, outcome: Outcome) -> None:
        """Count a tomogram; one that took no time, or failed, does not change the estimate of the remaining time."""
        with self._lock:
            self._shares.pop(outcome.result, None)
            self._finished += 1
            self.bar.initial += outcome.status != "done"
            self._show()
        tqdm.write(str(outcome))

    def _show(self) -> None:
        self.bar.set_postfix_str(", ".join(result.stem for result in self._shares), refresh=False)
        self.bar.n = self._finished + sum(self._shares.values())
        self.bar.update(0)
