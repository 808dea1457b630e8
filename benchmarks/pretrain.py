"""Train the network that comes with the package on simulated specimens: ``python -m benchmarks.pretrain --out FOLDER``.

The specimens are a stream: number ``i`` depends on the seed and on ``i`` only. Their truth is known, so the network can
learn from it (``--loss truth``). It can also learn as from real data: by Noise2Noise in the measured part of Fourier
space (``--loss halves``), or by both losses of the preset ``fast``, whose rotations teach it the wedge (``--loss
rotations``). With ``--loss both`` half of the steps learn from the truth and half by the losses of ``fast``. The score
is taken on specimens with negative numbers, which are never trained on. A run that was stopped continues by itself.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from benchmarks.dying import centre_gradients
from equitomo.datasets import TomogramPair
from equitomo.draws import Draws
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.geometry import TiltGeometry, TiltUnion, wedge_mask
from equitomo.methods import method_of
from equitomo.models import ScaleEquivariantUNet3D, TwoViewReconstructor
from equitomo.physics import ContrastTransfer
from equitomo.precision import autocast, dtype_of
from equitomo.simulate import simulate_halves, simulate_particles, simulate_specimen
from equitomo.simulate.specimen import Content
from equitomo.symmetry import mirrors_of
from equitomo.training import TrainingConfig
from equitomo.training.optimizer import load_optimizer_tensors, optimizer_for, optimizer_tensors

# How often a specimen has each of its contents.
_SHARES: dict[Content, float] = {
    "complexes": 0.7,
    "particles": 0.35,
    "vesicles": 0.35,
    "sheets": 0.25,
    "microtubules": 0.3,
    "actin": 0.3,
    "threads": 0.25,
    "gold": 0.35,
    "support": 0.08,
}
_N_HELD = 24  # specimens in memory
_STEPS_PER_SPECIMEN = 8

World = Literal["cryo", "materials", "both"]
Loss = Literal["truth", "halves", "rotations", "both"]


class Simulation:
    """One simulated pair on the scale of training, its truth on that scale, and its geometry."""

    def __init__(self, number: int, seed: int, size: int, world: World = "cryo") -> None:
        draw = random.Random(f"{seed} {number}")
        generator = torch.Generator().manual_seed(draw.randrange(2**62))
        if world == "both":
            world = "materials" if draw.random() < 0.15 else "cryo"
        voxel_size = draw.uniform(6.0, 16.0)
        # Some have next to no signal: of empty ice the network shall make nothing.
        faint, strong = (-1.7, 0.4) if world == "cryo" else (-0.7, 2.0)
        snr = 1e-3 if draw.random() < 0.04 else 10 ** draw.uniform(faint, strong)
        self.geometry = _geometry(draw)
        ctf, flipped = None, False
        if world == "cryo" and draw.random() < 0.35:
            ctf = ContrastTransfer(draw.uniform(15000, 50000), pixel_size=voxel_size, amplitude_contrast=0.1)
            flipped = draw.random() < 0.8
        shape = (size, size, size)
        cryo = world == "cryo"
        truth = _specimen(shape, voxel_size, draw, generator) if cryo else _material(shape, draw, generator)
        while truth.std() == 0:
            # Pores can take away all there is, and noise has no size then.
            truth = _material(shape, draw, generator)
        options = {"snr": snr, "ctfs": ctf, "phase_flipped": flipped, "specimen": truth, "generator": generator}
        halves = _halves(self.geometry, options, by_tilt=draw.random() < 0.2)
        # Programs and microscopes damp high frequencies differently; the network restores none of it.
        radius = frequency_radius(shape, dtype=torch.float32)
        damping = torch.exp(-draw.choice((0.0, draw.uniform(0, 8))) * radius**2)
        first, second, truth = (irfftn(rfftn(v) * damping, shape) for v in (*halves, truth - truth.mean()))
        pair = TomogramPair(first, second, self.geometry)
        # The contrast transfer changes how strong the specimen is: fit it to the measured part.
        measured = irfftn(rfftn(truth) * wedge_mask(shape, self.geometry), shape)
        gain = (pair.volumes.mean(0) * measured).sum() / measured.square().sum().clamp(min=1e-9)
        # The network knows bright specimens.
        self.volumes = (1 if gain >= 0 else -1) * pair.volumes
        self.truth = gain.abs() * truth


def _geometry(draw: random.Random) -> TiltGeometry | TiltUnion:
    """Draw tilts: symmetric or not, and sometimes about two axes."""
    low, high = -draw.uniform(40, 75), draw.uniform(40, 75)
    if draw.random() < 0.6:
        low = -high
    n_tilts = draw.choice((21, 31, 41, 61))
    angles = [low + (high - low) * i / (n_tilts - 1) for i in range(n_tilts)]
    one = TiltGeometry(angles)
    return one | TiltGeometry(angles, tilt_axis="x") if draw.random() < 0.08 else one


def _specimen(
    shape: tuple[int, int, int], voxel_size: float, draw: random.Random, generator: torch.Generator
) -> Tensor:
    """Simulate a specimen of a random kind."""
    if draw.random() < 0.05:
        radii = (min(draw.uniform(2, 4), _largest_radius(shape)), min(draw.uniform(4, 8), _largest_radius(shape)))
        n_particles = draw.randrange(3, 20)
        return simulate_particles(shape, radii=radii, n_particles=n_particles, generator=generator)
    contents = [name for name, share in _SHARES.items() if draw.random() < share] or ["particles"]
    return simulate_specimen(
        shape,
        thickness=draw.uniform(0.5, 1.0),
        voxel_size=voxel_size,
        crowding=10 ** draw.uniform(-1.7, -0.53),
        contents=contents,
        n_large=draw.uniform(1, 4),
        generator=generator,
    )


def _material(shape: tuple[int, int, int], draw: random.Random, generator: torch.Generator) -> Tensor:
    """Simulate particles of one or two materials, porous in some specimens, with a film under them in others."""
    truth = torch.zeros(shape)
    for _ in range(draw.choice((1, 1, 2))):
        largest = min(draw.uniform(3, 18), _largest_radius(shape))
        radii = (max(1.5, largest * draw.uniform(0.3, 1)), largest)
        n_particles = max(1, min(60, round(draw.uniform(0.1, 1) * (18 / largest) ** 3)))
        density = 10 ** draw.uniform(-0.7, 0.3)
        new = simulate_particles(shape, n_particles=n_particles, radii=radii, density=density, generator=generator)
        if draw.random() < 0.3:
            new = new * _pores(shape, draw, generator)
        truth = torch.maximum(truth, new)
    if draw.random() < 0.3:
        film = simulate_specimen(shape, contents=["support"], thickness=draw.uniform(0.3, 1), generator=generator)
        truth = truth + draw.uniform(0.05, 0.3) * film
    return truth


def _largest_radius(shape: tuple[int, int, int]) -> float:
    """Return the radius of the largest particles that fit into a volume with room to be anywhere."""
    return (min(shape) - 3) / 3


def _pores(shape: tuple[int, int, int], draw: random.Random, generator: torch.Generator) -> Tensor:
    """Return a smooth random field cut at a level: 1 in the material and 0 in its pores, with edges of a voxel."""
    radius = frequency_radius(shape, dtype=torch.float32)
    smooth = torch.exp(-2 * (math.pi * draw.uniform(1.5, 4) * radius) ** 2)
    field = irfftn(rfftn(torch.randn(shape, generator=generator)) * smooth, shape)
    field = field / field.std()
    slope = field.diff(dim=0).abs().mean()
    return ((field + draw.uniform(0, 1)) / slope + 0.5).clamp(0, 1)


def _halves(
    geometry: TiltGeometry | TiltUnion, options: dict[str, Any], *, by_tilt: bool = False
) -> tuple[Tensor, Tensor]:
    """Simulate halves by dose or by tilt; those of two tilt axes are averaged where both axes measure."""
    if by_tilt and isinstance(geometry, TiltGeometry):
        # Each tilt has its full dose in one of the halves, so its noise has half of the power.
        options = options | {"snr": 2 * options["snr"]}
        interleaved = [TiltGeometry(geometry.angles[k::2], tilt_axis=geometry.tilt_axis) for k in (0, 1)]
        first, second = (simulate_halves(options["specimen"].shape, part, **options).first for part in interleaved)
        return first, second
    parts = [geometry] if isinstance(geometry, TiltGeometry) else list(geometry.parts)
    shape = options["specimen"].shape
    series = [simulate_halves(shape, part, **options) for part in parts]
    if len(series) == 1:
        return series[0].first, series[0].second
    masks = torch.stack(torch.broadcast_tensors(*[wedge_mask(shape, part) for part in parts]))
    count = masks.sum(0).clamp(min=1)

    def united(volumes: list[Tensor]) -> Tensor:
        return irfftn((rfftn(torch.stack(volumes)) * masks).sum(0) / count, shape)

    return united([one.first for one in series]), united([one.second for one in series])


@dataclass(frozen=True)
class Cube:
    """A cube of each half and of the truth, each ``(1, 1, z, y, x)``, and the tilts."""

    first: Tensor
    second: Tensor
    truth: Tensor
    geometry: TiltGeometry | TiltUnion

    @property
    def scale(self) -> Tensor:
        """The standard deviation of the specimen, in units of which errors count."""
        # Gold must not decide, neither by the scale of its cube nor by its error; nor must cubes of mere noise.
        return self.truth.clamp(-4, 4).std().clamp(min=0.1)


def _cube(simulation: Simulation, side: int, draw: random.Random) -> Cube:
    """Return a cube that is mirrored at random so that the wedge stays where it is."""
    starts = [draw.randrange(size - side + 1) for size in simulation.truth.shape]
    place = tuple(slice(start, start + side) for start in starts)
    axes = draw.choice(mirrors_of(simulation.geometry))
    volumes = (v[place].flip(axes)[None, None] for v in (*simulation.volumes, simulation.truth))
    return Cube(*volumes, simulation.geometry)


def _loss(network: nn.Module, cubes: list[Cube], config: TrainingConfig, kind: Loss, draw: random.Random) -> Tensor:
    if kind == "both":
        kind = draw.choice(("truth", "rotations"))
    if kind != "truth":
        return torch.cat([_loss_as_of_data(network, cube, config, kind, draw) for cube in cubes]).mean()
    scale = torch.stack([cube.scale for cube in cubes]).view(-1, 1, 1, 1, 1)
    halves = draw.random() < 0.75
    given = torch.cat([(cube.first + cube.second) / 2 if halves else cube.first for cube in cubes])
    return huber_loss(network(given).float() / scale, torch.cat([cube.truth for cube in cubes]) / scale, delta=2.0)


def _loss_as_of_data(network: nn.Module, cube: Cube, config: TrainingConfig, kind: Loss, draw: random.Random) -> Tensor:
    """Return a loss that does not look at the truth; only its scale is taken from there, as for the other losses."""
    method = method_of(config)
    physics = method.physics(config.cube_shape, cube.geometry)
    y = torch.cat((cube.first, cube.second), dim=1) / cube.scale
    model = TwoViewReconstructor(network)
    given = {"x_net": model(y), "y": y, "physics": physics, "model": model, "draws": Draws(draw.getrandbits(32), [0])}
    names = ("data", "equivariance") if kind == "rotations" else ("data",)
    losses = method.losses(physics)
    return torch.stack([losses[name](**given) for name in names]).sum(0)


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
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt and the weights")
    parser.add_argument("--specimens", choices=get_args(World), default="cryo")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="processor time after which to end sooner")
    parser.add_argument("--loss", choices=get_args(Loss), default="truth")
    parser.add_argument("--centred", action="store_true", help="take the mean out of the gradients of kernels")
    parser.add_argument("--size", type=int, default=64, help="voxels per side of a specimen")
    parser.add_argument("--side", type=int, default=32, help="voxels per side of a training cube")
    parser.add_argument("--batch", type=int, default=2, help="cubes of a step")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--unshuffle", type=int, default=1, help="side of the blocks that become channels")
    parser.add_argument("--negative-slope", type=float, default=0.0, help="slope of the rectifiers below zero")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest step size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)
    size = {name: getattr(given, name) for name in ("width", "levels", "unshuffle", "negative_slope")}
    network, average = ScaleEquivariantUNet3D(**size), ScaleEquivariantUNet3D(**size)
    if given.centred:
        centre_gradients(network)
    average.load_state_dict(network.state_dict())
    config = TrainingConfig.preset("fast", **size, learning_rate=given.rate, side=given.side, batch=given.batch)
    optimizer = optimizer_for(network, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    step, spent = 0, 0.0
    state_file = given.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        load_optimizer_tensors(optimizer, network, state["optimizer"])
        step, spent = state["step"], state["spent"]
    kept_apart = [Simulation(-1 - i, given.seed, given.size, given.specimens) for i in range(16)]
    held: dict[int, Simulation] = {}
    began = time.process_time()
    dtype = dtype_of("auto", torch.device("cpu"))
    while True:
        elapsed = spent + time.process_time() - began
        done = max(step / given.steps, elapsed / 60 / given.minutes)
        if step % given.save_every == 0 or done >= 1:
            state = {"network": network.state_dict(), "average": average.state_dict(), "step": step, "spent": elapsed}
            torch.save(state | {"optimizer": optimizer_tensors(optimizer, network)}, state_file.with_suffix(".partial"))
            state_file.with_suffix(".partial").replace(state_file)
            half = {name: value.half().contiguous() for name, value in average.state_dict().items()}
            save_file(half, given.out / f"{given.specimens}.safetensors")
            overall, measured, wedge = score(average, kept_apart)
            print(f"{step} {elapsed:.0f} s all {overall:.3f} measured {measured:.3f} wedge {wedge:.3f}", flush=True)
        if done >= 1:
            return
        newest = step // _STEPS_PER_SPECIMEN + 3
        wanted = range(max(0, newest - _N_HELD), newest + 1)
        held = {i: held.get(i) or Simulation(i, given.seed, given.size, given.specimens) for i in wanted}
        draw = random.Random(f"step {given.seed} {step}")
        cubes = [_cube(draw.choice(list(held.values())), given.side, draw) for _ in range(config.batch)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / config.warmup) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        optimizer.zero_grad()
        with autocast(dtype, torch.device("cpu")):
            loss = _loss(network, cubes, config, given.loss, draw)
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
