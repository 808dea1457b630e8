"""Time a training step beside busy processes: ``python -m benchmarks.threads [SIDE BATCH ROUNDS STEPS]``.

For every number of threads up to the cores, and for every way in which OpenMP threads may wait, a process of its own
times steps of the preset ``tiny`` alone, beside one and beside two processes that only count. The three loads take
turns. The table has the medians over the rounds, in seconds, and what a step costs beside two others relative to a step
alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOADS = (0, 1, 2)
# An OpenMP thread that has nothing to do spins, or gives the core back. GNU's library and LLVM's read this.
WAITING = {
    "as it is": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "active": {"OMP_WAIT_POLICY": "active"},
}
_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def main(side: int = 32, batch: int = 2, rounds: int = 5, steps: int = 4) -> None:
    """Print the table."""
    cores = len(os.sched_getaffinity(0))
    print(f"preset tiny, side {side}, batch {batch}, {cores} cores, {rounds} rounds of {steps} steps")
    print("| threads | waiting | alone | beside one | beside two | beside two / alone |\n|" + " --- |" * 6)
    for threads in range(1, cores + 1):
        for name, variables in WAITING.items():
            own = {key: value for key, value in os.environ.items() if key not in _NAMES}
            command = [sys.executable, "-m", "benchmarks.threads", "--child", *map(str, (side, batch, rounds, steps))]
            environment = own | variables | {"OMP_NUM_THREADS": str(threads)}
            answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
            alone, one, two = json.loads(answer.splitlines()[-1])
            print(f"| {threads} | {name} | {alone:.2f} | {one:.2f} | {two:.2f} | {two / alone:.1f} |", flush=True)


def child(side: int, batch: int, rounds: int, steps: int) -> None:
    """Print the median seconds of a step for each load, as JSON."""
    import torch

    from equitomo import IcecreamTrainer, TomogramPair, TrainingConfig

    generator = torch.Generator().manual_seed(0)
    specimen = torch.randn(side + 8, side + 8, side + 8, generator=generator)
    pair = TomogramPair(*(specimen + torch.randn(2, *specimen.shape, generator=generator)), (-60.0, 60.0))
    config = TrainingConfig.preset("tiny", side=side, batch=batch, steps=10_000, device="cpu")
    trainer = IcecreamTrainer(pair, config).train(until=2)
    seconds: dict[int, list[float]] = {n: [] for n in LOADS}
    for _ in range(rounds):
        for n in LOADS:
            with busy(n):
                started = time.perf_counter()
                trainer.train(until=trainer.step + steps)
                seconds[n].append((time.perf_counter() - started) / steps)
    print(json.dumps([statistics.median(own) for own in seconds.values()]))


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Let ``n`` processes count until the block ends."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(n)]
    try:
        # They must be at work before the clock runs.
        time.sleep(0.2 if others else 0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:]))
    else:
        main(*map(int, sys.argv[1:]))
