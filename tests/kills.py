"""Stop training at random moments, and compare the result with a run that was not interrupted.

    python tests/kills.py --kills 50

Each time, the command runs in a process of its own and is stopped after a random time, by ``kill -9``, which it cannot
notice, or by another signal. If the run had a checkpoint before, it must then have one that loads, of the same or a
later step. When a run comes to its end, its weights, averages, optimiser, counters and losses must equal those of the
uninterrupted run bit by bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.figure  # noqa: F401
import torch
from making import noisy_halves

# Imported here once, and not again in every process that is stopped.
import equitomo.cli.commands  # noqa: F401
from equitomo import write_volume
from equitomo.cli import main
from equitomo.run.folder import MANIFEST
from equitomo.training.checkpoint import has_checkpoint, load_checkpoint

# A checkpoint is written after every step, so that many stops happen while files are written.
SETTINGS = [
    *("--preset", "tiny", "--side", "16", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--margin", "4"),
    *("--batch", "1"),
    *("--checkpoint_every", "1", "--preview_every", "0", "--device", "cpu", "--precision", "float32"),
]


class Runs:
    """Trainings with the same configuration, each in a folder of its own."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        for name, half in zip(("even", "odd"), noisy_halves((20, 20, 20)), strict=True):
            write_volume(folder / f"{name}.mrc", half.numpy(), voxel_size=10.0)
        self._arguments = [str(folder / "even.mrc"), str(folder / "odd.mrc"), "--tilts", "-60,60", *SETTINGS]
        self._arguments += ["--steps", str(steps), "--warmup", "2", "--keep_every", "5"]

    def start(self, name: str) -> int:
        """Start or resume a run in a new process, and return the number of the process."""
        out = self.folder / name
        how = ["--resume"] if (out / MANIFEST).exists() else ["--overwrite"]
        # A forked process has torch imported already, so the random moments fall into the run and not before it.
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            log = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = main(["train", *self._arguments, "--out", str(out), *how])
        finally:
            os._exit(status)

    def finish(self, name: str) -> float:
        """Train to the end, and return the seconds that it took."""
        began = time.perf_counter()
        _, status = os.waitpid(self.start(name), 0)
        assert os.waitstatus_to_exitcode(status) == 0, (self.folder / f"{name}.log").read_text()
        return time.perf_counter() - began


def stop(runs: Runs, name: str, number: signal.Signals, wait: float) -> bool:
    """Start a run, stop it some seconds later, and return whether it was still running."""
    before = load_checkpoint(runs.folder / name).state["step"] if has_checkpoint(runs.folder / name) else None
    # The lock of a killed process does not show that the next one has begun.
    (runs.folder / name / "run.lock").unlink(missing_ok=True)
    child = runs.start(name)
    if number != signal.SIGKILL:
        _wait_for(runs.folder / name / "run.lock", child)
    time.sleep(wait)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    allowed = {-signal.SIGKILL, 0} if number == signal.SIGKILL else {130, 0}
    assert code in allowed, f"exit status {code}: {(runs.folder / f'{name}.log').read_text()}"
    if before is not None:
        after = load_checkpoint(runs.folder / name).state["step"]
        assert after >= before, f"stopped at step {before} or later, the last checkpoint is of step {after}"
    return code != 0


def _wait_for(lock: Path, child: int) -> None:
    """Wait until the run has begun, because it cannot react to a signal before."""
    while not lock.exists() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)


def assert_equal_runs(one: Path, other: Path) -> None:
    """Assert that weights, averages, optimiser, counters and losses of two runs are equal bit by bit."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.state == b.state, (a.state, b.state)
    assert a.tensors.keys() == b.tensors.keys()
    for group, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[group].keys()
        assert all(torch.equal(value, b.tensors[group][key]) for key, value in tensors.items()), group
    assert (one / "losses.csv").read_bytes() == (other / "losses.csv").read_bytes()
    checkpoints = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert checkpoints[0] == checkpoints[1], checkpoints


def survive(folder: Path, kills: int, *, steps: int, seed: int, numbers: list[signal.Signals]) -> str:
    """Stop runs ``kills`` times, and return a sentence that describes the result."""
    draw = random.Random(seed)
    runs = Runs(folder, steps)
    seconds = runs.finish("unbroken")
    stopped, finished, writing = 0, 0, 0
    while stopped < kills:
        name = f"run_{finished}"
        if stop(runs, name, draw.choice(numbers), draw.uniform(0, 0.7 * seconds)):
            stopped += 1
            writing += bool(list((folder / name).rglob("*.partial")))
        else:
            assert_equal_runs(folder / name, folder / "unbroken")
            finished += 1
    name = f"run_{finished}"
    runs.finish(name)
    assert_equal_runs(folder / name, folder / "unbroken")
    names = ", ".join(number.name for number in numbers)
    return (
        f"{stopped} stops by {names} at random moments in {finished + 1} runs of {steps} steps, {writing} of them "
        "while a file was being written: every checkpoint loaded, and every run ended as the unbroken one, to the bit"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--signals", nargs="+", default=["SIGKILL"], choices=["SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1"]
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="kills_"))
    try:
        numbers = [signal.Signals[name] for name in given.signals]
        print(survive(place, given.kills, steps=given.steps, seed=given.seed, numbers=numbers))
        sys.exit(0)
    finally:
        shutil.rmtree(place)
