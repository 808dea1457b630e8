"""Train the network that predicts standard deviations: ``python -m benchmarks.deviation --out FOLDER``.

The examples are specimens of ``benchmarks.pretrain`` from another seed, reconstructed by the network that comes with
the package, of which the error is known. ``--trained`` adds some that are reconstructed by this network after it was
trained on them as the preset ``tiny`` does. Examples are kept in FOLDER, and a command that was stopped continues with
them; the training itself begins anew. The weights are written to FOLDER/deviation.safetensors in 16 bits.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.pretrain import Simulation
from equitomo import IcecreamTrainer, TiledPredictor, TomogramPair, TrainingConfig, load_network
from equitomo.deviation import NORMAL, LearnedDeviation, deviation_inputs
from equitomo.filled import measured_operator
from equitomo.geometry import TiltGeometry, TiltUnion
from equitomo.precision import autocast, dtype_of
from equitomo.run.initial import shipped_network
from equitomo.run.prediction import predictor_for
from equitomo.run.settings import ReconstructionSettings
from equitomo.symmetry import mirrors_of
from equitomo.training.optimizer import optimizer_for

_SIZE, _SEED = 64, 1  # the network that comes with the package learned from the specimens of seed 0
# Errors below this fraction of the deviation of the volume count as equal.
_TINY = 1e-7
_TRAINED_STEPS = 200


@dataclass(frozen=True)
class Example:
    """What the network sees of a reconstruction, ``(6, z, y, x)``, and the errors of its parts, ``(3, z, y, x)``."""

    inputs: Tensor
    errors: Tensor
    geometry: TiltGeometry | TiltUnion

    @classmethod
    def of(cls, predictor: TiledPredictor, halves: Tensor, truth: Tensor, geometry: TiltGeometry | TiltUnion) -> Self:
        """Return the example of halves and a truth that are on the scale of training."""
        inputs = deviation_inputs(predictor, halves[0], halves[1], geometry)
        return cls(inputs, errors_of(inputs[2] - truth, geometry), geometry)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return an example from a file."""
        return cls(**torch.load(path, weights_only=False))

    def write(self, path: Path) -> None:
        """Write a file in 16 bits."""
        half = {"inputs": self.inputs.half(), "errors": self.errors.half(), "geometry": self.geometry}
        torch.save(half, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def cube(self, side: int, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Return a cube of both, mirrored at random so that the wedge stays where it is."""
        starts = [draw.randrange(size - side + 1) for size in self.errors.shape[1:]]
        place = (slice(None), *(slice(start, start + side) for start in starts))
        axes = draw.choice(mirrors_of(self.geometry))
        return self.inputs[place].flip(axes).float(), self.errors[place].flip(axes).float()


def errors_of(error: Tensor, geometry: TiltGeometry | TiltUnion) -> Tensor:
    """Return the error without its mean, and its measured and its filled part, ``(3, z, y, x)``."""
    error = error - error.mean()
    measured = measured_operator(geometry, error.shape).A(error[None, None])[0, 0]
    return torch.stack((error, measured, error - measured))


def trained_network(pair: TomogramPair, steps: int) -> tuple[nn.Module, TrainingConfig]:
    """Return the network of the package after it was trained on a tomogram, and its settings."""
    config = TrainingConfig.preset("tiny", start="cryo", steps=steps, restart_steps=0, device="cpu")
    trainer = IcecreamTrainer(pair.with_contrast("bright"), config, init=shipped_network("cryo", [pair]))
    trainer.train()
    return trainer.learner.for_prediction(), config


def quantile_loss(deviation: Tensor, errors: Tensor, factors: Tensor) -> Tensor:
    """Return the mean pinball loss of the logarithms of the intervals, ``factors`` in ``(parts, levels)``."""
    ratio = errors.abs().clamp(min=_TINY).log() - deviation.clamp(min=_TINY).log()
    total = torch.zeros(())
    for column, level in enumerate(NORMAL):
        r = ratio - factors[:, column].log().view(1, -1, 1, 1, 1)
        total = total + torch.maximum(level * r, (level - 1) * r).mean()
    return total / len(NORMAL)


def examples(folder: Path, n_specimens: int, n_trained: int) -> list[Example]:
    """Return the examples from their files, after making those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    network, preset = load_network("cryo").eval(), TrainingConfig.preset("fast")
    paths = []
    for number in range(n_specimens + n_trained):
        trained = number >= n_specimens
        paths.append(folder / (f"{number}_trained.pt" if trained else f"{number}.pt"))
        if paths[-1].exists():
            continue
        simulation = Simulation(number, _SEED, _SIZE, "both")
        model, config = network, preset
        if trained:
            model, config = trained_network(TomogramPair(*simulation.volumes, simulation.geometry), _TRAINED_STEPS)
        predictor = predictor_for(model, simulation.geometry, ReconstructionSettings(), config)
        Example.of(predictor, simulation.volumes, simulation.truth, simulation.geometry).write(paths[-1])
        print(paths[-1], flush=True)
    return [Example.read(path) for path in paths]


def main(arguments: list[str] | None = None) -> None:
    """Make the examples, train, and write the averaged weights in 16 bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the examples and the weights")
    parser.add_argument("--specimens", type=int, default=147, help="reconstructed by the network of the package")
    parser.add_argument("--trained", type=int, default=0, help="reconstructed by it after a training on each")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor time of the training")
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--side", type=int, default=48, help="voxels per side of a training cube")
    parser.add_argument("--batch", type=int, default=2, help="cubes of a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="largest step size")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    found = examples(given.out / "examples", given.specimens, given.trained)
    model, average = LearnedDeviation(width=given.width), LearnedDeviation(width=given.width)
    average.load_state_dict(model.state_dict())
    factors, mean_factors = nn.Parameter(model.factors.log()), model.factors.log()
    settings = {name: model.network.settings[name] for name in ("width", "levels", "unshuffle", "negative_slope")}
    optimizer = optimizer_for(model.network, TrainingConfig.preset("fast", **settings, learning_rate=given.rate))
    optimizer_of_factors = torch.optim.Adam([factors], lr=2e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    began, step, losses = time.process_time(), 0, []
    while (done := (time.process_time() - began) / 60 / given.minutes) < 1:
        draw = random.Random(f"step {given.seed} {step}")
        cubes = [draw.choice(found).cube(given.side, draw) for _ in range(given.batch)]
        inputs, errors = (torch.stack(parts) for parts in zip(*cubes, strict=True))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad()
        optimizer_of_factors.zero_grad()
        with autocast(dtype_of("auto", torch.device("cpu")), torch.device("cpu")):
            deviation = model(inputs)
        loss = quantile_loss(deviation, errors, factors.exp())
        loss.backward()
        if torch.isfinite(loss):
            optimizer.step()
            optimizer_of_factors.step()
        decay = min(0.99, step / (step + 10))
        with torch.no_grad():
            mean_factors.lerp_(factors, 1 - decay)
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        step += 1
        losses.append(float(loss.detach()))
        if step % 250 == 0:
            print(f"{step} {time.process_time() - began:.0f} s {np.mean(losses[-250:]):.4f}", flush=True)
    average.factors.copy_(mean_factors.exp())
    in_units_of_normal(average)
    half = {name: value.half().contiguous() for name, value in average.state_dict().items()}
    save_file(half, given.out / "deviation.safetensors")
    print(f"{step} steps, factors {average.factors.numpy().round(3).tolist()}")


@torch.no_grad()
def in_units_of_normal(model: LearnedDeviation) -> None:
    """Scale the outputs so that the 90 % intervals are as wide as those of a normal distribution."""
    ratios = model.factors[:, list(NORMAL).index(0.9)] / NORMAL[0.9]
    weight = model.network.final_conv.weight
    weight.mul_(ratios.repeat_interleave(len(weight) // len(ratios)).view(-1, 1, 1, 1, 1))
    model.factors.div_(ratios[:, None])


if __name__ == "__main__":
    main()
