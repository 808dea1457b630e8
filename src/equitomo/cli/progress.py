"""Bars and messages on the screen while a command works."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from equitomo.cli.wording import with_options
from equitomo.run import Outcome, Run
from equitomo.run.memory import duration
from equitomo.training.distributed import find_world


class _Handler(logging.Handler):
    """Prints what the library logs: news as they are, warnings as the program warns."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        message = with_options(record.getMessage(), self._names)
        if record.levelno >= logging.WARNING:
            tqdm.write(f"equitomo: warning: {message}", file=sys.stderr)
        else:
            tqdm.write(message)


@contextmanager
def logged(names: Collection[str]) -> Iterator[None]:
    """Print what the library logs until the block ends; of several processes only the first one prints news."""
    logger, handler = logging.getLogger("equitomo"), _Handler(names)
    level = logger.level
    logger.setLevel(logging.INFO if find_world().is_first else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def tile_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, and yield a function of the tiles done and their total that moves it."""
    with tqdm(desc=title, unit="tile") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextmanager
def step_bar(run: Run) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Show the steps of a training, and yield a function of the steps done and their losses that moves the bar."""
    first, clock, steps = run.step, 0.0, run.config.steps
    on_cpu = run.trainer.device.type == "cpu"
    with tqdm(total=steps, initial=first, desc="training", unit="step", smoothing=0.05) as bar:

        def show(step: int, losses: dict[str, float]) -> None:
            nonlocal clock
            shown = {name: f"{value:.4f}" for name, value in losses.items() if name not in ("skipped", "change")}
            if "change" in losses:
                shown["change"] = f"{losses['change']:.1%}"
            bar.set_postfix(shown, refresh=False)
            bar.update(step - bar.n)
            if on_cpu and step == first + 1:
                # The first step also sets things up.
                clock = time.perf_counter()
            elif on_cpu and step == first + 2:
                took = time.perf_counter() - clock
                remaining = duration((steps - step) * took)
                tqdm.write(f"No GPU is used: a step takes {duration(took)}, all that are left {remaining}")

        yield show


class TableBars:
    """A bar for all tomograms of a table, which moves with the tiles of each, and one for each that is being made.

    Parameters
    ----------
    n_tomograms
        Number of tomograms.
    """

    def __init__(self, n_tomograms: int) -> None:
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total} [{elapsed}<{remaining}]"
        self.all = tqdm(total=n_tomograms, desc="tomograms", smoothing=0, bar_format=form, position=0)
        self._lock = threading.Lock()
        self._bars: dict[Path, tqdm[Any]] = {}
        self._finished = 0

    def close(self) -> None:
        """Close all bars."""
        for bar in (*self._bars.values(), self.all):
            bar.close()

    def tiles(self, result: Path, done: int, total: int) -> None:
        """Advance the bar of one tomogram, and that of all."""
        with self._lock:
            if result not in self._bars:
                taken = {bar.pos for bar in self._bars.values()}
                position = next(n for n in range(1, len(taken) + 2) if -n not in taken)
                self._bars[result] = tqdm(desc=result.stem, unit="tile", position=position, leave=False)
            bar = self._bars[result]
            bar.total = total
            bar.update(done - bar.n)
            self._show()

    def finish(self, outcome: Outcome) -> None:
        """Count a tomogram; one that took no time, or failed, does not change the estimate of the remaining time."""
        with self._lock:
            if bar := self._bars.pop(outcome.result, None):
                bar.close()
            self._finished += 1
            if outcome.status != "done":
                self.all.initial += 1
            self._show()
        tqdm.write(str(outcome))

    def _show(self) -> None:
        self.all.n = self._finished + sum(bar.n / bar.total for bar in self._bars.values())
        self.all.update(0)
