"""The work of each of several processes in ``test_distributed.py``: ``python together.py JOB FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from making import noisy_pair
from torch.nn.parallel import DistributedDataParallel

from equitomo import IcecreamTrainer, TrainingConfig
from equitomo.draws import Draws
from equitomo.training import TrainingDivergedError, TrainingInterruptedError
from equitomo.training.distributed import leave

SETTINGS = {
    "side": 16,
    "batch": 4,
    "width": 4,
    "levels": 2,
    "steps": 10,
    "margin": 4,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "checkpoint_every": 4,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}
# Trained by one process and by two.
VARIANTS = {
    "adam": {},
    "muon": {"optimizer": "muon"},
    "uneven": {"batch": 3},
    "parts": {"batch": 5, "micro_batch": 2},
    "float16": {"precision": "float16"},
    "judged": {"side": 8, "margin": 2, "held_out": 8, "judge_every": 2, "stop_when_stable": True},
    "one_geometry": {"geometries": [(-60.0, 60.0)] * 2},
}


def trainer(
    folder: Path | None,
    *,
    seed: int = 0,
    resume: bool = False,
    geometries: Sequence[tuple[float, float]] = ((-60.0, 60.0), (-40.0, 55.0)),
    **changes,
) -> IcecreamTrainer:
    """Return a trainer over two tomograms, which have different tilts unless ``geometries`` says otherwise."""
    pairs = [noisy_pair((20, 20, 20), seed=seed + k, geometry=geometry) for k, geometry in enumerate(geometries)]
    return IcecreamTrainer(pairs, TrainingConfig(**SETTINGS | changes), out=folder, resume=resume)


def spoil(trained: IcecreamTrainer, rank: int, step: int, act, last: int | None = None) -> IcecreamTrainer:
    """Let one process change its cubes of one step, or of all steps up to a last one."""
    draw = trained.dataset.batch

    def spoilt(indices):
        cubes, sources = draw(indices)
        if trained.world.rank == rank and step <= trained.step <= (step if last is None else last):
            cubes = act(cubes)
        return cubes, sources

    trained.dataset.batch = spoilt
    return trained


def once(act):
    """Return a function that acts the first time only."""
    left = [act]
    return lambda cubes: left.pop()(cubes) if left else cubes


def run_out(cubes):
    raise torch.OutOfMemoryError("CUDA out of memory")


def terminate(cubes):
    os.kill(os.getpid(), signal.SIGTERM)
    return cubes


def kill(cubes):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(cubes):
    raise ArithmeticError("this process has a fault of its own")


def refused(act) -> str:
    try:
        act()
    except (ValueError, TrainingInterruptedError, TrainingDivergedError) as error:
        return str(error)
    return ""


def train_with_torchs_own(folder: Path) -> None:
    """Train on the cubes and losses of "one_geometry" in a loop whose gradients torch exchanges."""
    made = trainer(None, **VARIANTS["one_geometry"])
    losses = DistributedDataParallel(made.objective)
    optimizer = torch.optim.Adam(losses.parameters(), lr=SETTINGS["learning_rate"])
    for step in range(SETTINGS["steps"]):
        own = made.world.share(range(step * SETTINGS["batch"], (step + 1) * SETTINGS["batch"]))
        y, sources = made.dataset.batch(own)
        geometries = [made.dataset.pairs[source].geometries for source in sources]
        optimizer.zero_grad()
        # Torch takes the mean over the processes, whose shares are equal here.
        losses(y, geometries, Draws(made.config.seed, own)).sum(0).mean().backward()
        optimizer.step()
    if made.world.is_first:
        weights = made.learner.network.state_dict().items()
        safetensors.torch.save_file({k: w.contiguous() for k, w in weights}, folder / "torchs_own.safetensors")


def train_all(folder: Path) -> None:
    """Run everything that ends well, one run after the other."""
    environment = dict(os.environ)
    for name, changes in VARIANTS.items():
        trainer(folder / name, **changes).train()
    train_with_torchs_own(folder)
    trainer(folder / "from_one", resume=True).train()
    trainer(folder / "to_one").train(until=5)
    spoil(trainer(folder / "memory"), 1, 3, once(run_out)).train()
    spoil(trainer(folder / "not_finite"), 1, 3, lambda cubes: cubes * float("nan")).train()
    stopped = spoil(trainer(folder / "stopped"), 1, 6, terminate)
    diverged = spoil(trainer(folder / "diverged"), 1, 5, lambda cubes: cubes * float("nan"), last=9)
    rank = stopped.world.rank
    said = [
        refused(stopped.train),
        refused(lambda: trainer(None, batch=1)),
        refused(lambda: trainer(None, seed=10 * rank)),
        str(dict(os.environ) == environment),
        refused(diverged.train),
        refused(lambda: trainer(None, learning_rate=1e-3 * (1 + rank))),
        refused(lambda: trainer(folder / f"apart_{rank}", resume=True)),
    ]
    (folder / f"said_{rank}.txt").write_text("\n".join(said))
    leave()
    # This process is alone again, and no other answers.
    stopped.world.share(range(3))


def train_plainly(folder: Path) -> None:
    trainer(folder).train()
    # As the commands do: threads that still serve the other process may abort this one when it ends.
    leave()


def train_and_fail(folder: Path) -> None:
    spoil(trainer(folder), 1, 6, fail).train()


def train_and_be_killed(folder: Path) -> None:
    spoil(trainer(folder), 1, 6, kill).train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
