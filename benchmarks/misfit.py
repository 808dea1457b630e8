"""Study whether the halves tell that a specimen is unlike what the network of the package has seen.

``python -m benchmarks.misfit SPECIMEN ... --out FILE``. A SPECIMEN is a folder as for ``benchmarks.quality``,
``cryo-N`` or ``materials-N`` for number -N of ``benchmarks.pretrain``, which no training has seen, or the name of one
that is unlike these: gyroid, porous, shells, smooth, stripes, letters, lattice, voronoi or boxes, with a
signal-to-noise ratio after a colon. A line of JSON is added to FILE for each: the power of the error of the untrained
network's results for the halves, relative to that of the signal; the same for the best filter that depends on the
radius in Fourier space alone; and the same after each of ``--steps`` of the training with the preset fast. Specimens
that FILE holds are skipped. A Markdown table of all is printed at the end. One thread is used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pretrain import Simulation
from benchmarks.quality import Scorer
from equitomo import IcecreamTrainer, TomogramPair, TrainingConfig
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.geometry import TiltGeometry
from equitomo.metrics import CrossHalfError, relative_error
from equitomo.run.initial import shipped_network
from equitomo.simulate import simulate_halves
from equitomo.training.judging import StartJudge

_SIZE = 64
_SHAPE = (_SIZE, _SIZE, _SIZE)
_GEOMETRY = TiltGeometry(range(-60, 61, 3))


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specimens", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", type=int, default=[50])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.specimens:
        if name not in {line["specimen"] for line in _read(given.out)}:
            found = {"specimen": name} | measured(pair_of(name), given.steps)
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(found, flush=True)
    print("\n".join(["", *table(_read(given.out))]))


def pair_of(name: str) -> TomogramPair:
    """Return the tomogram of a name."""
    if Path(name).is_dir():
        return Scorer(Path(name)).pair
    world, _, number = name.partition("-")
    if world in ("cryo", "materials"):
        simulation = Simulation(-int(number), 0, _SIZE, world)  # type: ignore[arg-type]
        return TomogramPair(*simulation.volumes, simulation.geometry)
    kind, _, snr = name.partition(":")
    generator = torch.Generator().manual_seed(77)
    specimen = UNLIKE[kind](generator)
    halves = simulate_halves(_SHAPE, _GEOMETRY, specimen=specimen, snr=float(snr or 0.5), generator=generator)
    return TomogramPair(halves.first, halves.second, _GEOMETRY)


def measured(pair: TomogramPair, steps: Sequence[int]) -> dict[str, Any]:
    """Return what the halves say before the training and after each number of steps."""
    pair = pair.with_contrast("bright")
    config = TrainingConfig.preset("fast", start="cryo", restart_steps=0)
    network = shipped_network("cryo", [pair])
    judge = StartJudge([pair], config.precision)
    trainer = IcecreamTrainer(pair, config, init=network)
    found: dict[str, Any] = {"network": judge.error(network), "filter": filter_error(pair)}
    for step in sorted(steps):
        found[f"after {step}"] = judge.error(trainer.train(until=step).learner.with_share(0.0))
    return found


def filter_error(pair: TomogramPair) -> float:
    """Return the error of the halves after the best filter by shells, relative to the power of the signal."""
    place = tuple(slice((n - min(n, _SIZE)) // 2, (n + min(n, _SIZE)) // 2) for n in pair.shape)
    halves = pair.volumes[(slice(None), *place)].float()
    shape = (halves.shape[1], halves.shape[2], halves.shape[3])
    metric = CrossHalfError(pair.geometries[0], second_geometry=pair.geometries[-1], taper=8)
    spectra = rfftn(halves)
    shells = (frequency_radius(shape) * max(shape)).round().long()
    both = (spectra[0] * spectra[1].conj()).real.double()
    power = spectra.abs().square().mean(0).double()
    sums = [
        torch.zeros(int(shells.max()) + 1).double().index_add_(0, shells.flatten(), x.flatten()) for x in (both, power)
    ]
    gain = (sums[0] / sums[1]).clamp(0, 1).float()
    filtered = irfftn(spectra * gain[shells], shape)
    nothing = float(metric(torch.zeros_like(halves)[None], halves[None]))
    return relative_error(float(metric(filtered[None], halves[None])), nothing)


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table, by how much the last step lowered the error."""
    columns = [key for key in found[0] if key != "specimen"]
    lines = [
        f"| specimen | {' | '.join(columns)} | network / filter | lowered by |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for line in sorted(found, key=lambda line: line[columns[-1]] - line["network"]):
        shown = " | ".join(f"{line[column]:.3f}" for column in columns)
        lowered = line["network"] - line[columns[-1]]
        lines.append(f"| {line['specimen']} | {shown} | {line['network'] / line['filter']:.2f} | {lowered:.3f} |")
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Specimens ----------------------------------------------------------------------------------------------


def _grid() -> Tensor:
    """Return the positions of voxels from the centre, ``(z, y, x, 3)``."""
    axis = torch.arange(_SIZE) - (_SIZE - 1) / 2
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def _turned(generator: torch.Generator) -> Tensor:
    """Return the positions of voxels along three random orthogonal directions."""
    return _grid() @ torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q


def _field(generator: torch.Generator, sigma: float) -> Tensor:
    """Return a smooth random field with a standard deviation of 1."""
    smooth = torch.exp(-2 * (math.pi * sigma * frequency_radius(_SHAPE, dtype=torch.float32)) ** 2)
    field = irfftn(rfftn(torch.randn(_SHAPE, generator=generator)) * smooth, _SHAPE)
    return field / field.std()


def _cut(field: Tensor, level: float) -> Tensor:
    """Return 1 where a field is above a level and 0 below, with edges of about a voxel."""
    return ((field - level) / field.diff(dim=0).abs().mean() + 0.5).clamp(0, 1)


def _gyroid(generator: torch.Generator) -> Tensor:
    u, v, w = (2 * math.pi / 17 * _turned(generator)).unbind(-1)
    return (1 - (u.sin() * v.cos() + v.sin() * w.cos() + w.sin() * u.cos()).abs() / 0.35).clamp(0, 1)


def _stripes(generator: torch.Generator) -> Tensor:
    """Return balls of lamellae, each with a direction and a period of its own."""
    volume = torch.zeros(_SHAPE)
    for _ in range(5):
        waves = (2 * math.pi / (7 + 5 * torch.rand(1, generator=generator)) * _turned(generator)[..., 0]).sin()
        distance = (_grid() - 40 * (torch.rand(3, generator=generator) - 0.5)).norm(dim=-1)
        radius = 14 + 6 * torch.rand(1, generator=generator)
        volume = torch.where(distance < radius, (2 * waves).clamp(-0.5, 0.5) + 0.5, volume)
    return volume


def _blocks(positions: Tensor, blocks: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Tensor:
    """Return blocks with given centres and half lengths of their sides."""
    inside = [(torch.tensor(half) - (positions - torch.tensor(centre)).abs() + 0.5) for centre, half in blocks]
    return torch.stack(inside).clamp(0, 1).amin(-1).amax(0)


def _letters(generator: torch.Generator) -> Tensor:
    """Return letters E, H, L and O, cut from plates that lie in all directions."""
    stem, beam = (1.5, 8.0, 1.3), (1.5, 1.3, 5.0)
    bars = {
        "top": ((0, -7, 0), beam),
        "middle": ((0, 0, 0), beam),
        "foot": ((0, 7, 0), beam),
        "right": ((0, 0, 5), stem),
    }
    letters = (("top", "middle", "foot"), ("middle", "right"), ("foot",), ("top", "foot", "right"))
    volume = torch.zeros(_SHAPE)
    for number in range(14):
        positions = _turned(generator) - 48 * (torch.rand(3, generator=generator) - 0.5)
        parts = [((0, 0, -5), stem), *(bars[name] for name in letters[number % 4])]
        volume = torch.maximum(volume, _blocks(positions, parts))
    return volume


def _lattice(generator: torch.Generator) -> Tensor:
    return (2 * math.pi / 8 * _turned(generator)).cos().sum(-1).clamp(min=0.3) - 0.3


def _voronoi(generator: torch.Generator) -> Tensor:
    """Return the edges between cells around random points."""
    points = 70 * (torch.rand(60, 3, generator=generator) - 0.5)
    nearest = torch.cdist(_grid().reshape(-1, 3), points).topk(3, largest=False).values
    return (2.1 - nearest[:, 2] + nearest[:, 0]).clamp(0, 1).reshape(_SHAPE)


def _boxes(generator: torch.Generator) -> Tensor:
    def drawn() -> tuple[list[float], list[float]]:
        centre, half = torch.rand(2, 3, generator=generator)
        return (54 * (centre - 0.5)).tolist(), (2 + 5 * half).tolist()

    return _blocks(_grid(), [drawn() for _ in range(25)])


UNLIKE: dict[str, Callable[[torch.Generator], Tensor]] = {
    "gyroid": _gyroid,
    "porous": lambda generator: _cut(_field(generator, 2.0), 0.3),
    "shells": lambda generator: _cut(-_field(generator, 3.0).abs(), -0.25),
    "smooth": lambda generator: _field(generator, 2.0),
    "stripes": _stripes,
    "letters": _letters,
    "lattice": _lattice,
    "voronoi": _voronoi,
    "boxes": _boxes,
}


if __name__ == "__main__":
    main()
