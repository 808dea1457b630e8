"""Train the network that comes with the package on simulated specimens: ``python -m benchmarks.pretrain --out FOLDER``.

The specimens are a stream: number ``i`` depends on the seed and on ``i`` only. Their truth is known, so the network
learns from it (``--loss truth``), from the other half as with real data (``--loss halves``), or from both. The score is
taken on specimens with negative numbers, which are never trained on. A run that was stopped continues by itself.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from equitomo.datasets import TomogramPair
from equitomo.fourier import irfftn, rfftn
from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.physics import ContrastTransfer
from equitomo.precision import autocast, dtype_of
from equitomo.simulate import simulate_halves, simulate_specimen
from equitomo.symmetry import mirrors_of
from equitomo.training import TrainingConfig
from equitomo.training.optimizer import load_optimizer_tensors, optimizer_for, optimizer_tensors

_KINDS: dict[str, dict[str, object]] = {
    "cell": {"contents": ("microtubules", "vesicles", "actin", "particles")},
    "cell with gold": {"contents": ("microtubules", "vesicles", "actin", "particles", "gold")},
    "particles": {"contents": ("particles",)},
    "sparse particles": {"contents": ("particles", "gold"), "crowding": 0.04},
    "membranes": {"contents": ("vesicles",), "n_large": 6.0},
    "filaments": {"contents": ("microtubules", "actin"), "n_large": 3.0},
    "ice with gold": {"contents": ("gold",)},
}
_N_HELD = 24  # specimens in memory
_STEPS_PER_SPECIMEN = 8


class Simulation:
    """One simulated pair on the scale of training, its truth on that scale, and its geometry."""

    def __init__(self, number: int, seed: int, size: int) -> None:
        draw = random.Random(f"{seed} {number}")
        generator = torch.Generator().manual_seed(draw.randrange(2**62))
        self.kind = draw.choice(list(_KINDS))
        voxel_size = draw.uniform(6.0, 16.0)
        self.snr = 10 ** draw.uniform(-1.3, 0.7)
        low, high = -draw.uniform(40, 75), draw.uniform(40, 75)
        if draw.random() < 0.6:
            low = -high
        n_tilts = draw.choice((31, 41, 61))
        self.geometry = TiltGeometry([low + (high - low) * i / (n_tilts - 1) for i in range(n_tilts)])
        ctf, flipped = None, False
        if draw.random() < 0.4:
            ctf = ContrastTransfer(draw.uniform(15000, 50000), pixel_size=voxel_size, amplitude_contrast=0.1)
            flipped = draw.random() < 0.7
        shape = (size, size, size)
        thickness = draw.uniform(0.5, 1.0)
        options = {"thickness": thickness, "voxel_size": voxel_size, "generator": generator, **_KINDS[self.kind]}
        truth = simulate_specimen(shape, **options)  # type: ignore[arg-type]
        halves = simulate_halves(
            shape,
            self.geometry,
            snr=self.snr,
            ctfs=ctf,
            phase_flipped=flipped,
            specimen=truth,
            generator=generator,
        )
        pair = TomogramPair(halves.first, halves.second, self.geometry)
        # The contrast transfer changes how strong the specimen is: fit it to the measured part.
        centred = truth - truth.mean()
        measured = irfftn(rfftn(centred) * wedge_mask(shape, self.geometry), shape)
        gain = (pair.volumes.mean(0) * measured).sum() / measured.square().sum()
        # The network knows bright specimens.
        self.volumes = gain.sign() * pair.volumes
        self.truth = gain.abs() * centred


def _cubes(simulation: Simulation, side: int, draw: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Return a cube of each half and of the truth, mirrored at random so that the wedge stays where it is."""
    starts = [draw.randrange(size - side + 1) for size in simulation.truth.shape]
    place = tuple(slice(start, start + side) for start in starts)
    axes = draw.choice(mirrors_of(simulation.geometry))
    return tuple(v[place].flip(axes)[None, None] for v in (*simulation.volumes, simulation.truth))  # type: ignore[return-value]


def _loss(network: nn.Module, cubes: list[tuple[Tensor, Tensor, Tensor]], kind: str, draw: random.Random) -> Tensor:
    first, second, truth = (torch.cat(group) for group in zip(*cubes, strict=True))
    # Gold must not decide, neither by the scale of its cube nor by its error; nor must cubes of mere noise.
    scale = truth.clamp(-4, 4).std(dim=(1, 2, 3, 4), keepdim=True).clamp(min=0.2)
    if kind == "truth" or (kind == "both" and draw.random() < 0.5):
        given = (first + second) / 2 if draw.random() < 0.75 else first
        return huber_loss(network(given).float() / scale, truth / scale, delta=2.0)
    return huber_loss(network(first).float() / scale, second / scale, delta=2.0)


def score(network: nn.Module, simulations: list[Simulation]) -> tuple[float, float, float]:
    """Return the mean Fourier correlation with the truth: overall, in the measured part, and in the wedge."""
    sums = torch.zeros(3)
    for one in simulations:
        with torch.no_grad(), autocast(dtype_of("auto", torch.device("cpu")), torch.device("cpu")):
            found = network(one.volumes.mean(0)[None, None]).float()[0, 0]
        a, b = rfftn(found - found.mean()), rfftn(one.truth)
        mask = wedge_mask(one.truth.shape, one.geometry).bool().expand(b.shape)
        for i, kept in enumerate((torch.ones_like(mask), mask, ~mask)):
            x, y = a[kept], b[kept]
            sums[i] += (x * y.conj()).real.sum() / (x.abs().square().sum() * y.abs().square().sum()).sqrt()
    overall, measured, wedge = (sums / len(simulations)).tolist()
    return overall, measured, wedge


def main(arguments: list[str] | None = None) -> None:
    """Train, print the scores, and write the averaged weights in 16 bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and cryo.safetensors")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end sooner, in a schedule by time")
    parser.add_argument("--loss", choices=("truth", "halves", "both"), default="truth")
    parser.add_argument("--size", type=int, default=64, help="voxels per side of a specimen")
    parser.add_argument("--side", type=int, default=32, help="voxels per side of a training cube")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    network = ScaleEquivariantUNet3D(width=given.width)
    average = ScaleEquivariantUNet3D(width=given.width)
    average.load_state_dict(network.state_dict())
    config = TrainingConfig.preset("fast", width=given.width, side=given.side)
    optimizer = optimizer_for(network, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    step, spent, began = 0, 0.0, time.monotonic()
    state_file = given.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        load_optimizer_tensors(optimizer, network, state["optimizer"])
        step, spent = state["step"], state["spent"]
    kept_apart = [Simulation(-1 - i, given.seed, given.size) for i in range(8)]
    held: dict[int, Simulation] = {}
    dtype = dtype_of("auto", torch.device("cpu"))
    while True:
        elapsed = spent + time.monotonic() - began
        done = max(step / given.steps, elapsed / 60 / given.minutes)
        if step % given.save_every == 0 or done >= 1:
            state = {"network": network.state_dict(), "average": average.state_dict(), "step": step, "spent": elapsed}
            torch.save(state | {"optimizer": optimizer_tensors(optimizer, network)}, state_file.with_suffix(".partial"))
            state_file.with_suffix(".partial").replace(state_file)
            half = {name: value.half().contiguous() for name, value in average.state_dict().items()}
            save_file(half, given.out / "cryo.safetensors")
            overall, measured, wedge = score(average, kept_apart)
            print(f"{step} {elapsed:.0f} s all {overall:.3f} measured {measured:.3f} wedge {wedge:.3f}", flush=True)
        if done >= 1:
            return
        newest = step // _STEPS_PER_SPECIMEN + 3
        wanted = range(max(0, newest - _N_HELD), newest + 1)
        held = {i: held.get(i) or Simulation(i, given.seed, given.size) for i in wanted}
        draw = random.Random(f"step {given.seed} {step}")
        cubes = [_cubes(draw.choice(list(held.values())), given.side, draw) for _ in range(config.batch)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        optimizer.zero_grad()
        with autocast(dtype, torch.device("cpu")):
            loss = _loss(network, cubes, given.loss, draw)
        loss.backward()
        if torch.isfinite(loss):
            optimizer.step()
        step += 1
        decay = min(0.995, step / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)


if __name__ == "__main__":
    main()
