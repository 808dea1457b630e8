"""Study networks of fewer operations: ``python -m benchmarks.networks COMMAND --out FILE ...``.

``make FOLDER --scorer SCRIPT`` simulates porous particles as a data set for ``benchmarks.quality``. ``profile`` prints
where the time of a step goes. ``time`` measures a training step of each network, interleaved, with preset ``fast`` on
one thread. ``quality SET ...`` trains the networks from scratch for equal times, which are the ``--steps`` of today's
network, and scores them; the numbers of steps follow from the times that FILE holds for float32. ``table`` prints what
FILE holds. Trainings that it holds are skipped, so that a study which was stopped continues.

``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`` before the command emulates an ordinary processor.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pretrain import _pores
from benchmarks.quality import Scorer
from equitomo import IcecreamTrainer, ScaleEquivariantUNet3D, TomogramPair, TrainingConfig, write_volume
from equitomo.geometry import TiltGeometry
from equitomo.models import _Convolution, _Level, _upsampling_kernel
from equitomo.run import ReconstructionSettings
from equitomo.run.prediction import predictor_for
from equitomo.simulate import simulate_halves, simulate_particles

REGIONS = ("all", "measured", "wedge")
ROUNDS, STEPS_PER_ROUND = 7, 2


class Strided(nn.Module):
    """A U-Net at half resolution, between a strided convolution and a transposed one of 4 voxels per side.

    Parameters
    ----------
    maps
        Maps at full resolution after the transposed convolution: 1 for the result, more for :class:`Refined`.
    """

    def __init__(self, maps: int = 1) -> None:
        super().__init__()
        self.network = ScaleEquivariantUNet3D(32, 32, width=32, levels=3)
        self.stem = nn.Conv3d(1, 32, 4, stride=2, padding=1, bias=False)
        self.head = nn.ConvTranspose3d(32, maps, 4, stride=2, padding=1, bias=False)
        self.stride, self.maps_at_once = 8, 24

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes ``(batch, 1, z, y, x)`` of any size to maps of the same size."""
        padding = [m for n in x.shape[:1:-1] for m in (0, n % 2)]
        maps = self.head(self.network(self.stem(F.pad(x, padding, mode="replicate"))))
        return cast(Tensor, maps[..., : x.shape[2], : x.shape[3], : x.shape[4]])


class Refined(nn.Module):
    """Two small convolutions at full resolution, of the input and a few maps of another network."""

    def __init__(self, network: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.network = network(4)
        self.first, self.second = _Convolution(5, 8), _Convolution(8, 1)
        self.stride, self.maps_at_once = 8, 40

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes ``(batch, 1, z, y, x)`` to volumes of the same size."""
        maps = self.network(x)
        return cast(Tensor, self.second(self.first(torch.cat((x.to(maps.dtype), maps), dim=1)).relu_()))


class _OneConvolution(_Level):
    """A level with its first convolution only."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, n_out)
        self.basic_module["SingleConv2"] = nn.Identity()


class _Factorised(_Level):
    """A level whose kernels between many maps are products of one across z and one along z."""

    def __init__(self, n_in: int, n_between: int, n_out: int, *, n_skip: int = 0) -> None:
        super().__init__(n_in, n_between, n_out)
        self.basic_module["SingleConv2"] = _planes_and_lines(n_between, n_out)
        self.skip = _planes_and_lines(n_skip, n_between) if n_skip else None
        if n_skip:
            self.basic_module["SingleConv1"] = _Convolution(n_in - n_skip, n_between)

    def join(self, skip: Tensor, coarse: Tensor, *, fused: bool) -> Tensor:
        """Do what a level does, with the kernels of this one."""
        first, second = self.basic_module.values()
        assert self.skip is not None
        kernel = _upsampling_kernel(first.conv.weight)
        x = self.skip(skip) + F.conv_transpose3d(coarse, kernel, stride=2, padding=1)
        return cast(Tensor, second(x.relu_()).relu_())


def _planes_and_lines(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(n_in, n_out, (1, 3, 3), padding=(0, 1, 1), bias=False),
        nn.Conv3d(n_out, n_out, (3, 1, 1), padding=(1, 0, 0), bias=False),
    )


def _narrow() -> nn.Module:
    network = ScaleEquivariantUNet3D(width=16)
    network.encoders[0], network.encoders[1] = _Level(1, 4, 8), _Level(8, 16, 32)
    network.decoders[-1], network.final_conv = _Level(40, 8, 8), nn.Conv3d(8, 1, 1, bias=False)
    return network


def _single() -> nn.Module:
    network = ScaleEquivariantUNet3D(width=16)
    network.encoders[0], network.decoders[-1] = _OneConvolution(1, 16), _OneConvolution(48, 16)
    return network


def _factorised() -> nn.Module:
    network = ScaleEquivariantUNet3D(width=16)
    network.encoders[0], network.decoders[-1] = _Factorised(1, 8, 16), _Factorised(48, 16, 16, n_skip=16)
    return network


def _blocks(width: int = 32, maps: int = 1, **settings: Any) -> nn.Module:
    return ScaleEquivariantUNet3D(1, maps, width=width, levels=3, unshuffle=2, **settings)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "today": partial(ScaleEquivariantUNet3D, width=16),
    "blocks, 32 maps": _blocks,
    "blocks, 32 maps, residual": partial(_blocks, residual=True),
    "blocks, 32 maps, refined": partial(Refined, lambda maps: _blocks(maps=maps)),
    "blocks, 24 maps": partial(_blocks, 24),
    "blocks, 48 maps": partial(_blocks, 48),
    "strided, 32 maps": Strided,
    "strided, 32 maps, refined": partial(Refined, Strided),
    "8 maps": _narrow,
    "one convolution": _single,
    "factorised": _factorised,
}


def trainer_of(name: str, pair: TomogramPair, **changes: Any) -> IcecreamTrainer:
    """Return the training of one of the networks with preset ``fast``, from scratch."""
    return IcecreamTrainer(pair, TrainingConfig.preset("fast", **changes), network=NETWORKS[name])


def step_times(names: Sequence[str], precision: str) -> Iterator[dict[str, Any]]:
    """Yield the seconds of a step of each network, and the ratio to today's network, as medians of interleaved runs."""
    volumes = torch.randn(2, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    pair = TomogramPair(*volumes, (-60.0, 60.0))
    names = list(dict.fromkeys(["today", *names]))
    trainers = {name: trainer_of(name, pair, precision=precision) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS + 1):
        for name, trainer in trainers.items():
            start = time.process_time()
            trainer.train(until=trainer.step + STEPS_PER_ROUND)
            seconds[name].append((time.process_time() - start) / STEPS_PER_ROUND)
    for name in names:
        ratios = [one / other for one, other in zip(seconds[name][1:], seconds["today"][1:], strict=True)]
        yield {
            "network": name,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "precision": precision,
            "step": statistics.median(seconds[name][1:]),
            "ratio": statistics.median(ratios),
            "spread": (min(ratios), max(ratios)),
            "parameters": sum(p.numel() for p in NETWORKS[name]().parameters()),
        }


def make_set(folder: Path, scorer: Path) -> None:
    """Write halves of simulated particles with pores and their truth, and put the scoring script beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    shape = (64, 64, 64)
    truth = simulate_particles(shape, n_particles=14, radii=(6.0, 14.0), generator=generator)
    truth = truth * _pores(shape, random.Random(3), generator)
    halves = simulate_halves(shape, TiltGeometry(range(-60, 61, 3)), snr=0.5, specimen=truth, generator=generator)
    for name, volume in (("even", halves.first), ("odd", halves.second), ("gt", halves.truth)):
        write_volume(folder / f"{name}.mrc", np.asarray(volume), voxel_size=10.0, overwrite=True)
    (folder / "meta.json").write_text(json.dumps({"tilt_min": -60, "tilt_max": 60}))
    shutil.copy(scorer, folder.parent / "evaluate.py")


def trained(name: str, scorer: Scorer, steps: int, seed: int) -> dict[str, Any]:
    """Train a network and return its scores and the seconds of the training."""
    trainer = trainer_of(name, scorer.pair, steps=steps, seed=seed)
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    config = trainer.config
    predictor = predictor_for(trainer.network.eval(), scorer.pair.geometry, ReconstructionSettings(), config)
    found = predictor(*scorer.pair.volumes)
    return dict(zip(REGIONS, scorer.values(found.numpy()), strict=True)) | {"seconds": round(seconds, 1)}


def steps_for(name: str, steps: int, results: Sequence[dict[str, Any]]) -> int:
    """Return the steps of a network in the time that today's network takes for ``steps``, by the times in float32."""
    ratios = [row["ratio"] for row in results if row.get("network") == name and row.get("precision") == "float32"]
    if not ratios:
        raise ValueError(f"no time of {name!r} in float32: run the command `time` first")
    return round(steps / ratios[-1])


def profile(name: str, precision: str) -> Iterator[str]:
    """Yield the lines of a table of where the time of a step of a network goes."""
    volumes = torch.randn(2, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    trainer = trainer_of(name, TomogramPair(*volumes, (-60.0, 60.0)), precision=precision)
    # Four volumes of 32 voxels per side go through the network twice.
    parts = _parts_of_today(trainer) if name == "today" else _parts_of_blocks(trainer)
    x = torch.randn(4, 1, 32, 32, 32)
    parts["the whole network"] = partial(trainer.learner.network, x)
    trainer.train(until=1)
    whole = _median_seconds(lambda: trainer.train(until=trainer.step + 1))
    yield f"| {name}, {torch.backends.cpu.get_cpu_capability()}, {precision} | forward | backward | share | GFLOP/s |"
    yield "| --- | --- | --- | --- | --- |"
    rest = whole
    for part, run in parts.items():
        forward, backward, operations = _forward_and_backward(run, precision)
        rest = whole - 2 * (forward + backward)
        share, rate = 2 * (forward + backward) / whole, operations / (forward + backward) / 1e9
        yield f"| {part} | {2e3 * forward:.0f} ms | {2e3 * backward:.0f} ms | {share:.2f} | {rate:.0f} |"
    seconds = _median_seconds(lambda: trainer.learner.update(torch.zeros(()), 0, 0.0))
    yield f"| optimiser and average of the weights | {1e3 * seconds:.0f} ms | | {seconds / whole:.2f} | |"
    rest -= seconds
    yield f"| cubes, losses, the rest | {1e3 * rest:.0f} ms | | {rest / whole:.2f} | |"
    yield f"| **whole step** | {1e3 * whole:.0f} ms | | 1 | |"


def _parts_of_today(trainer: IcecreamTrainer) -> dict[str, Callable[[], Tensor]]:
    network = cast(ScaleEquivariantUNet3D, trainer.learner.network)
    encoders, decoders = cast(Sequence[_Level], network.encoders), cast(Sequence[_Level], network.decoders)
    x, skip, coarse = torch.randn(4, 1, 32, 32, 32), _maps(16, 32), _maps(32, 16)

    def below() -> Tensor:
        maps = [skip]
        for level in encoders[1:]:
            maps.append(level.descend(maps[-1]))
        result = maps.pop()
        for level, fine in zip(decoders[:-1], maps[:0:-1], strict=True):
            result = level.join(fine, result, fused=True)
        return result

    return {
        "full resolution, encoder": partial(encoders[0], x),
        "full resolution, decoder": lambda: network.final_conv(decoders[-1].join(skip, coarse, fused=True)),
        "lower levels": below,
    }


def _parts_of_blocks(trainer: IcecreamTrainer) -> dict[str, Callable[[], Tensor]]:
    network = trainer.learner.network
    inner = ScaleEquivariantUNet3D(8, 8, width=32, levels=3).to(memory_format=torch.channels_last_3d)
    inner.load_state_dict(network.state_dict())
    return {"half resolution and below": partial(inner, _maps(8, 16))}


def _maps(n: int, side: int) -> Tensor:
    maps = torch.randn(4, n, side, side, side).contiguous(memory_format=torch.channels_last_3d)
    return maps.requires_grad_()


def _forward_and_backward(run: Callable[[], Tensor], precision: str) -> tuple[float, float, int]:
    """Return the seconds of a forward and of a backward pass, and the floating-point operations of both."""
    times: list[tuple[float, float]] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        with FlopCounterMode(display=False) as counter:
            run().float().square().mean().backward()
        for _ in range(ROUNDS):
            start = time.process_time()
            output = run()
            middle = time.process_time()
            output.float().square().mean().backward()
            times.append((middle - start, time.process_time() - middle))
    forward, backward = (statistics.median(column) for column in zip(*times, strict=True))
    return forward, backward, counter.get_total_flops()


def _median_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield "| network | parameters | processor | step | relative to today's | lowest to highest |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in (row for row in results if "ratio" in row):
        low, high = row["spread"]
        yield (
            f"| {row['network']} | {row['parameters'] / 1e6:.2f} million | {row['processor']}, {row['precision']} | "
            f"{1e3 * row['step']:.0f} ms | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |"
        )
    scored = [row for row in results if "seed" in row]
    names = list(dict.fromkeys(row["set"] for row in scored))
    yield ""
    yield f"| network | seed | steps | {' | '.join(names)} | mean |"
    yield f"| --- | --- | --- |{' --- |' * (len(names) + 1)}"
    for key in dict.fromkeys((row["network"], row["seed"], row["steps"]) for row in scored):
        own = {row["set"]: row for row in scored if (row["network"], row["seed"], row["steps"]) == key}
        mean = {region: statistics.fmean(row[region] for row in own.values()) for region in REGIONS}
        shown = [_shown(own[name]) if name in own else "" for name in names]
        yield f"| {' | '.join([*map(str, key), *shown])} | {_shown(mean) if len(own) == len(names) else ''} |"


def _shown(values: dict[str, Any]) -> str:
    return " / ".join(f"{values[region]:.3f}".replace("0.", ".", 1) for region in REGIONS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "profile", "time", "quality", "table"))
    parser.add_argument("folders", nargs="*", type=Path, help="data sets, as for benchmarks.quality")
    parser.add_argument("--out", type=Path, help="file for results, with one JSON object per line")
    parser.add_argument("--scorer", type=Path, help="the scoring script that is put beside a simulated set")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=["today", "blocks, 32 maps"])
    parser.add_argument("--precision", default="float32", help="of `profile` and `time`")
    parser.add_argument("--steps", type=int, default=600, help="steps of today's network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.command == "make":
        for folder in given.folders:
            make_set(folder, given.scorer)
    elif given.command == "profile":
        for name in given.networks:
            print("\n".join(["", *profile(name, given.precision)]), flush=True)
    elif given.command == "time":
        for row in step_times(given.networks, given.precision):
            _add(given.out, row)
    elif given.command == "quality":
        for folder in given.folders:
            _score(folder, given)
    elif given.command == "table":
        print("\n".join(table(read(given.out))))


def _score(folder: Path, given: argparse.Namespace) -> None:
    """Train and score the networks on one set, except those that the file holds."""
    scorer = Scorer(folder)
    for seed in given.seeds:
        for name in given.networks:
            steps = steps_for(name, given.steps, read(given.out))
            case = {"set": folder.name, "network": name, "time": given.steps, "steps": steps, "seed": seed}
            if not any(case.items() <= row.items() for row in read(given.out)):
                _add(given.out, case | trained(name, scorer, steps, seed))


def read(path: Path) -> list[dict[str, Any]]:
    """Return what a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _add(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


if __name__ == "__main__":
    main()
