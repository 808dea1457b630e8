"""Study what the halves tell of a training that starts from the network of the package, and what is true.

``python -m benchmarks.misfit SPECIMEN ... --out FILE``. A SPECIMEN is a folder as for ``benchmarks.quality``,
``cryo-N`` or ``materials-N`` for number -N of ``benchmarks.pretrain``, which no training has seen, or the name of one
that is unlike these: gyroid, porous, shells, smooth, stripes, letters, lattice, voronoi or boxes, with a
signal-to-noise ratio after a colon. Each is trained from the network with ``--preset``, without beginning again.

Of the results for the halves, the power of the error relative to that of the signal is measured with the best filter
that depends on the radius in Fourier space alone, with the untrained network, after ``--judged`` steps, and at the end
with every share of the starting weights: on the voxels of the training, as the program does, and with ``--held-out``
also on a block that it did not see. The results at the end and, with ``--scratch``, that of a training from scratch are
scored by the truth. A line of JSON is added to FILE for each; specimens that FILE holds are skipped. Markdown tables of
all are printed at the end. One thread is used.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.pretrain import Simulation
from benchmarks.quality import Scorer
from equitomo import IcecreamTrainer, TomogramPair, TrainingConfig
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.geometry import TiltGeometry, TiltUnion
from equitomo.metrics import CrossHalfError, fourier_correlation, region_masks, relative_error
from equitomo.run import ReconstructionSettings
from equitomo.run.initial import shipped_network
from equitomo.run.prediction import predictor_for
from equitomo.simulate import simulate_halves
from equitomo.training.checkpoint import blended
from equitomo.training.judging import JUDGED_AT, HeldOutJudge, StartJudge

_SIZE = 64
_SHAPE = (_SIZE, _SIZE, _SIZE)
_GEOMETRY = TiltGeometry(range(-60, 61, 3))
_SHARES = tuple(tenths / 10 for tenths in range(11))


@dataclass(frozen=True)
class Specimen:
    """A tomogram and the scores of a volume by its truth: overall, in the measured part, and in the wedge."""

    pair: TomogramPair
    scores: Callable[[NDArray[np.float32]], list[float]]

    @classmethod
    def of(cls, name: str) -> Specimen:
        """Return the specimen of a name."""
        if Path(name).is_dir():
            scorer = Scorer(Path(name))
            return cls(scorer.pair, scorer.values)
        world, _, number = name.partition("-")
        if world in ("cryo", "materials"):
            simulation = Simulation(-int(number), 0, _SIZE, world)  # type: ignore[arg-type]
            pair = TomogramPair(*simulation.volumes, simulation.geometry)
            return cls(pair, partial(_scores, simulation.truth, simulation.geometry))
        kind, _, snr = name.partition(":")
        generator = torch.Generator().manual_seed(77)
        truth = UNLIKE[kind](generator)
        halves = simulate_halves(_SHAPE, _GEOMETRY, specimen=truth, snr=float(snr or 0.5), generator=generator)
        return cls(TomogramPair(halves.first, halves.second, _GEOMETRY), partial(_scores, truth, _GEOMETRY))


def _scores(truth: Tensor, geometry: TiltGeometry | TiltUnion, volume: NDArray[np.float32]) -> list[float]:
    """Return the correlations of a volume with the truth: overall, in the measured part, and in the wedge."""
    regions = region_masks(truth.shape, geometry)
    masks = (regions.overall, regions.measured, regions.wedge)
    return [fourier_correlation(torch.from_numpy(volume), truth, mask) for mask in masks]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specimens", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--steps", type=int, help="of the training, in place of those of the preset")
    parser.add_argument("--judged", type=int, default=JUDGED_AT)
    parser.add_argument("--held-out", type=int, default=0, help="side of a block that the training does not see")
    parser.add_argument("--scratch", action="store_true", help="train from scratch too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in given.specimens:
        if name not in {line["specimen"] for line in _read(given.out)}:
            change = {"steps": given.steps} if given.steps else {}
            settings = change | {"held_out": given.held_out}
            specimen = Specimen.of(name)
            found = {"specimen": name} | measured(specimen, given.preset, settings, given.judged)
            if given.scratch:
                found["scratch"] = from_scratch(specimen, given.preset, change)
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(found, flush=True)
    done = _read(given.out)
    print("\n".join(["", *table(done), "", *shares(done)]))


def measured(specimen: Specimen, preset: str, change: Mapping[str, Any], judged: int) -> dict[str, Any]:
    """Return what the halves and the truth say of a training that starts from the network."""
    pair = specimen.pair.with_contrast("bright")
    config = TrainingConfig.preset(preset, start="cryo", **({"restart_steps": 0, "start_share": 0.0} | change))
    trainer = IcecreamTrainer(pair, config, init=shipped_network("cryo", [pair]))
    seen, block = StartJudge([pair], config.precision), trainer.dataset.held_out
    unseen = [] if block is None else [HeldOutJudge(block, pair.geometries, Path(), ())]

    def errors(network: nn.Module) -> list[float]:
        on_block = [relative_error(one.error(network, config.precision), one.rows.nothing) for one in unseen]
        return [seen.error(network), *on_block]

    found: dict[str, Any] = {"filter": filter_error(pair), "network": errors(trainer.network)}
    found["after"] = errors(trainer.train(until=judged).network)
    start = shipped_network("cryo", [pair]).state_dict()
    network = trainer.train().network
    end = {key: value.clone() for key, value in network.state_dict().items()}
    found["shares"] = {}
    for share in _SHARES:
        network.load_state_dict(blended(end, start, share))
        found["shares"][str(share)] = [*errors(network), *_score(network, specimen, pair, config)]
    return found


def from_scratch(specimen: Specimen, preset: str, change: Mapping[str, Any]) -> list[float]:
    """Return the scores of a training from scratch."""
    pair = specimen.pair.with_contrast("bright")
    config = TrainingConfig.preset(preset, **change)
    return _score(IcecreamTrainer(pair, config).train().network, specimen, pair, config)


def _score(network: nn.Module, specimen: Specimen, pair: TomogramPair, config: TrainingConfig) -> list[float]:
    """Return the scores of the result of a network."""
    predictor = predictor_for(network.eval(), pair.geometry, ReconstructionSettings(), config)
    result = pair.restore(predictor(*pair.volumes)).numpy()
    return [round(float(value), 4) for value in specimen.scores(result)]


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
    """Return the lines of a table, by how much the first steps lowered the error; second errors are of the block."""
    lines = [
        "| specimen | filter | network | first steps | lowered by | without training | best share | from scratch |",
        "| --- " * 8 + "|",
    ]
    for line in sorted(found, key=lambda line: line["after"][0] - line["network"][0]):
        lowered = [before - after for before, after in zip(line["network"], line["after"], strict=True)]
        errors = " | ".join(_pair(line[name]) for name in ("network", "after"))
        share = max(line["shares"], key=lambda share: line["shares"][share][-3])
        best = f"{share}: {_slashed(line['shares'][share][-3:])}"
        scratch = _slashed(line["scratch"]) if "scratch" in line else ""
        untrained = _slashed(line["shares"]["1.0"][-3:])
        row = (line["specimen"], f"{line['filter']:.3f}", errors, _pair(lowered), untrained, best, scratch)
        lines.append(f"| {' | '.join(row)} |")
    return lines


def shares(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of rules for the share: the means of what they choose, and of its scores."""
    head = ("judged on", "largest share", "within", "mean share", "mean score", "worst, against the best share")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    best = [max(values[-3] for values in line["shares"].values()) for line in found]
    for judged, place in enumerate(("its voxels", "the block")[: len(found[0]["network"])]):
        for largest in (0.6, 0.8, 1.0):
            for within in (0.0, 0.0025, 0.005, 0.01, 0.02):
                chosen = [_chosen(line["shares"], judged, largest, within) for line in found]
                scores = [line["shares"][share][-3:] for line, share in zip(found, chosen, strict=True)]
                worst = min(score[0] - top for score, top in zip(scores, best, strict=True))
                mean, means = sum(map(float, chosen)) / len(chosen), np.mean(scores, axis=0).tolist()
                row = (place, f"{largest}", f"{within:.2%}", f"{mean:.2f}", _slashed(means), f"{worst:.3f}")
                lines.append(f"| {' | '.join(row)} |")
    return lines


def _chosen(shares: Mapping[str, Sequence[float]], judged: int, largest: float, within: float) -> str:
    """Return the largest share whose error is hardly above the least; a half if an error has less power than none."""
    allowed = {share: values[judged] for share, values in shares.items() if float(share) <= largest}
    least = min(allowed.values())
    return "0.5" if least < 0 else max(share for share, error in allowed.items() if error <= least + within)


def _pair(errors: Sequence[float]) -> str:
    return ", ".join(f"{error:.3f}".replace("0.", ".", 1) for error in errors)


def _slashed(scores: Sequence[float]) -> str:
    return " / ".join(f"{score:.3f}".replace("0.", ".", 1) for score in scores)


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
