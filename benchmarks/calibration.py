"""Compare confidence maps with the true error: ``python -m benchmarks.calibration [--trained] [--apart N]``.

Specimens are reconstructed by the network that comes with the package, or with ``--trained`` by this network after it
was trained on each of them as the preset ``tiny`` does. They are six simulated kinds, ``--apart`` many of the specimens
that ``benchmarks.pretrain`` keeps apart, and the folders ``--sets`` as for ``benchmarks.quality``. The error of the
result, and its parts in the measured part of Fourier space and in the wedge, are compared with the intervals of each
estimate: plus and minus the standard deviation times the quantile of the normal distribution, or for ``learned`` times
its own factors. One Markdown row is printed per specimen, estimate and part with the share of voxels within the 50, 80,
90 and 95 % intervals. A row per group of specimens follows, with their mean and the largest deviation of a single
specimen at 90 % and at any level, and the same with one scale that is learned on all other specimens. The volume is
dense where the blurred truth is above a tenth of its largest values.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.deviation import errors_of, trained_network
from benchmarks.pretrain import Simulation
from equitomo import CubeRotationGroup, MissingWedgeOperator, TiledPredictor, TomogramPair, TrainingConfig, load_network
from equitomo.confidence import TiledReconstructor
from equitomo.deviation import NORMAL, PARTS, deviation_inputs, deviations, learned_deviation
from equitomo.filled import measured_operator
from equitomo.geometry import TiltGeometry
from equitomo.io import read_volume
from equitomo.run.prediction import predictor_for
from equitomo.run.settings import ReconstructionSettings
from equitomo.simulate import simulate_halves, simulate_specimen
from equitomo.uncertainty import EquivariantBootstrap, HalvesNoise, OrbitDeviation, halves_variance
from equitomo.volumes import blurred

_KINDS: dict[str, tuple[dict[str, Any], float, tuple[float, float]]] = {
    "cell": ({}, 0.5, (-60, 60)),
    "cell, noisy": ({}, 0.1, (-60, 60)),
    "sparse particles": ({"contents": ("particles",), "crowding": 0.05}, 0.5, (-60, 60)),
    "membranes": ({"contents": ("vesicles",), "n_large": 6.0}, 0.5, (-54, 54)),
    "filaments": ({"contents": ("microtubules", "actin"), "n_large": 3.0}, 0.5, (-60, 60)),
    "cell, asymmetric": ({}, 0.5, (-40, 60)),
}
_SIZE, _BORDER = 64, 8
_STEPS = 200
_ESTIMATES = ("learned", "bootstrap", "orbit", "halves")
_DENSE = "result where it is dense"
_LEVELS = 100 * np.array(list(NORMAL))
# Sorted absolute errors divided by the standard deviation, by estimate and part.
Ratios = dict[tuple[str, str], NDArray[np.float64]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", action="store_true", help="train on each specimen first")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--kinds", nargs="*", choices=list(_KINDS), default=list(_KINDS))
    parser.add_argument("--apart", type=int, default=0)
    parser.add_argument("--sets", nargs="*", type=Path, default=[])
    parser.add_argument("--estimates", nargs="+", choices=_ESTIMATES, default=list(_ESTIMATES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    levels = " | ".join(f"{level:.0f} %" for level in _LEVELS)
    print(f"| specimen | estimate | part | error | {levels} |")
    print("| --- | --- | --- | --- |" + " --- |" * len(_LEVELS))
    groups: dict[str, dict[str, Ratios]] = {}
    for group, name, pair, truth in _specimens(given):
        errors, found = _ratios(pair, truth, given)
        groups.setdefault(group, {})[name] = found
        for (estimate, part), ratio in found.items():
            shown = " | ".join(f"{share:.0f}" for share in _coverage(ratio, estimate, part))
            print(f"| {name} | {estimate} | {part} | {errors.get(part, ''):.3} | {shown} |", flush=True)
    everything = {name: found for group in groups.values() for name, found in group.items()}
    columns = f"{levels} | worst at 90 % | worst"
    print(f"\n| specimens | estimate | part | {columns} | scale | {columns} |")
    print("| --- | --- | --- |" + " --- |" * (2 * len(_LEVELS) + 5))
    for group, members in groups.items():
        for key in next(iter(members.values())):
            print(_row(group, key, members, everything), flush=True)


def _row(group: str, key: tuple[str, str], members: dict[str, Ratios], everything: dict[str, Ratios]) -> str:
    """Return the coverage of one estimate in one part of a group of specimens."""
    scales = [
        _scale([found[key] for other, found in everything.items() if other != own], *key)
        if len(everything) > 1
        else 1.0
        for own in members
    ]
    words = []
    for by in ([1.0] * len(members), scales):
        rows = np.array([_coverage(found[key], *key, scale) for found, scale in zip(members.values(), by, strict=True)])
        off = np.abs(rows - _LEVELS).max(axis=0)
        words.append(
            " | ".join([*(f"{value:.0f}" for value in rows.mean(axis=0)), f"{off[2]:.0f}", f"{off.max():.0f}"])
        )
    return f"| {group} | {key[0]} | {key[1]} | {words[0]} | {min(scales):.2f} to {max(scales):.2f} | {words[1]} |"


def _coverage(ratio: NDArray[np.float64], estimate: str, part: str, scale: float = 1.0) -> NDArray[np.float64]:
    """Return the percentages of the sorted ratios that lie within the intervals, for deviations times a scale."""
    quantiles = np.array(list(NORMAL.values()))
    if estimate == "learned":
        quantiles = learned_deviation().factors[PARTS.index(part.split()[0])].double().numpy()
    return 100 * np.searchsorted(ratio, scale * quantiles, side="right") / len(ratio)


def _scale(ratios: list[NDArray[np.float64]], estimate: str, part: str) -> float:
    """Return the scale with the least deviation of the coverage, averaged over specimens and levels, or 1."""
    if not ratios:
        return 1.0
    candidates = np.geomspace(0.2, 50, 200)
    costs = [np.mean([np.abs(_coverage(r, estimate, part, c) - _LEVELS).mean() for r in ratios]) for c in candidates]
    return float(candidates[int(np.argmin(costs))])


def _specimens(given: argparse.Namespace) -> Iterator[tuple[str, str, TomogramPair, Tensor]]:
    """Yield the group, the name, the halves and the truth of each specimen."""
    for name in given.kinds:
        content, snr, (low, high) = _KINDS[name]
        generator = torch.Generator().manual_seed(1000 + list(_KINDS).index(name))
        geometry, shape = TiltGeometry(range(int(low), int(high) + 1, 3)), (_SIZE,) * 3
        truth = simulate_specimen(shape, generator=generator, **content)
        halves = simulate_halves(shape, geometry, snr=snr, specimen=truth, generator=generator)
        yield "six kinds", name, TomogramPair(halves.first, halves.second, geometry), truth
    for number in range(1, given.apart + 1):
        simulation = Simulation(-number, 0, _SIZE, "both")
        yield "apart", f"apart {number}", TomogramPair(*simulation.volumes, simulation.geometry), simulation.truth
    for folder in given.sets:
        even, odd, truth = (_tensor(folder / f"{name}.mrc") for name in ("even", "odd", "gt"))
        tilts = [float(line) for line in (folder / f"{folder.name}.tlt").read_text().split()]
        yield folder.name, folder.name, TomogramPair(even, odd, TiltGeometry(tilts)), truth


def _tensor(path: Path) -> Tensor:
    return torch.from_numpy(np.array(read_volume(path)[:], np.float32))


def _ratios(pair: TomogramPair, truth: Tensor, given: argparse.Namespace) -> tuple[dict[str, float], Ratios]:
    """Return the root mean square of each part of the error, and the errors divided by each standard deviation."""
    geometry, y = pair.geometries[0], pair.volumes
    if given.trained:
        network, config = trained_network(pair, _STEPS)
    else:
        network, config = load_network("cryo").eval(), TrainingConfig.preset("fast")
    predictor = predictor_for(network, geometry, ReconstructionSettings(), config)
    inputs = deviation_inputs(predictor, y[0], y[1], geometry)
    errors = _inside(errors_of(inputs[2] - _on_the_scale_of(y.mean(0), truth, geometry), geometry))
    inside = _inside(blurred(truth, 1.0))
    dense = inside > 0.1 * torch.quantile(inside.flatten()[::7].double(), 0.999)
    found: Ratios = {}
    for estimate in given.estimates:
        if estimate == "learned":
            deviation = deviations(learned_deviation(), inputs, geometry)
        else:
            variances = _variances(estimate, predictor, inputs, y, geometry, given.samples)
            deviation = torch.stack([blurred(variance, 1.0) for variance in variances]).clamp(min=1e-20).sqrt()
        ratios = errors.abs().double() / _inside(deviation)
        found |= {(estimate, part): np.sort(ratio.ravel().numpy()) for part, ratio in zip(PARTS, ratios, strict=True)}
        found[estimate, _DENSE] = np.sort(ratios[0][dense].numpy())
    rms = {part: float(error.square().mean().sqrt()) for part, error in zip(PARTS, errors, strict=True)}
    return rms | {_DENSE: float(errors[0][dense].square().mean().sqrt())}, found


def _on_the_scale_of(data: Tensor, truth: Tensor, geometry: TiltGeometry) -> Tensor:
    """Return the truth with the contrast that the data give it."""
    truth = truth - truth.mean()
    shown = measured_operator(geometry, truth.shape).A(truth[None, None])[0, 0]
    return (data * shown).sum() / shown.square().sum() * truth


def _inside(volume: Tensor) -> Tensor:
    cut = slice(_BORDER, -_BORDER)
    return volume[..., cut, cut, cut]


def _variances(
    estimate: str,
    predictor: TiledPredictor,
    inputs: Tensor,
    y: Tensor,
    geometry: TiltGeometry,
    samples: int,
) -> Tensor:
    """Return the variance of the result and of its parts by one estimate, ``(3, z, y, x)``."""
    if estimate == "halves":
        difference, measured = inputs[3], inputs[5]
        return halves_variance(2 * torch.stack((difference, measured, difference - measured)), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    physics = MissingWedgeOperator(y.shape[1:], geometry, support="box")
    physics.set_noise_model(HalvesNoise(y[0], y[1], geometry, generator))
    group = CubeRotationGroup.moving(physics, rng=generator, n_trans=min(samples, 40))
    kind = EquivariantBootstrap if estimate == "bootstrap" else OrbitDeviation
    sampling = kind(TiledReconstructor(predictor), group, n_samples=samples)
    project = measured_operator(geometry, y.shape[1:]).A
    parts = []
    with torch.no_grad():
        for deviation in sampling.deviations(inputs[2][None, None], physics):
            measured = project(deviation)
            parts.append(torch.cat((deviation, measured, deviation - measured))[:, 0])
    return sampling.variance(iter(parts))


if __name__ == "__main__":
    main()
