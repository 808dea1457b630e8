"""Compare confidence maps with the true error: ``python -m benchmarks.calibration [--steps N] [--kinds KIND ...]``.

Specimens of several kinds are simulated and reconstructed by the network that comes with the package, or with
``--steps`` by a network that is trained on each of them with preset ``tiny``. The error of the result, and its parts in
the measured part of Fourier space and in the wedge, are compared with the intervals of plus and minus a standard
deviation times the quantile of the normal distribution. For each estimate of the variance and each width over which it
is averaged, one Markdown row is printed per part, everywhere and in the specimen alone: the share of voxels within the
50, 80, 90 and 95 % intervals, as estimated and with one scale that is learned on the other specimens, and the largest
deviation of any specimen at 90 % with it.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equitomo import CubeRotationGroup, MissingWedgeOperator, TomogramPair, TrainingConfig, load_network
from equitomo.confidence import TiledReconstructor
from equitomo.filled import measured_operator
from equitomo.geometry import TiltGeometry
from equitomo.methods import method_of
from equitomo.run.prediction import predictor_for
from equitomo.run.settings import ReconstructionSettings
from equitomo.simulate import simulate_halves, simulate_specimen
from equitomo.training import Trainer
from equitomo.uncertainty import EquivariantBootstrap, HalvesNoise, OrbitDeviation, halves_variance
from equitomo.volumes import blurred

# Kinds of the training of the shipped network too, whose specimens were others.
_KINDS: dict[str, tuple[dict[str, Any], float, tuple[float, float]]] = {
    "cell": ({}, 0.5, (-60, 60)),
    "cell, noisy": ({}, 0.1, (-60, 60)),
    "sparse particles": ({"contents": ("particles",), "crowding": 0.05}, 0.5, (-60, 60)),
    "membranes": ({"contents": ("vesicles",), "n_large": 6.0}, 0.5, (-54, 54)),
    "filaments": ({"contents": ("microtubules", "actin"), "n_large": 3.0}, 0.5, (-60, 60)),
    "cell, asymmetric": ({}, 0.5, (-40, 60)),
}
_SIZE, _BORDER = 64, 8
_LEVELS = {0.5: 0.6745, 0.8: 1.2816, 0.9: 1.6449, 0.95: 1.96}
_WIDTHS = (0.0, 1.0, 2.0, 4.0)
_PARTS = ("result", "measured", "wedge")
# The same for the voxels of the specimen alone, where the density is above a tenth of that of protein.
_SPECIMEN = " in the specimen"
_ESTIMATES = ("bootstrap", "orbit", "halves")
# Absolute errors divided by the standard deviation, by estimate, width and part.
Ratios = dict[tuple[str, float, str], NDArray[np.float64]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=list(_KINDS), default=list(_KINDS))
    given = parser.parse_args()
    found = {name: _ratios(name, given.steps, given.samples) for name in given.kinds}
    if len(found) < 2:
        return  # there is no other specimen to learn a scale on
    levels = " | ".join(f"{100 * level:.0f} %" for level in _LEVELS)
    print(f"| estimate | averaged over | part | {levels} | learned scale | {levels} | worst at 90 % |")
    print(f"| --- | --- | --- |{' --- |' * (2 * len(_LEVELS) + 2)}")
    for key in next(iter(found.values())):
        print(_row(key, {name: ratios[key] for name, ratios in found.items()}), flush=True)


def _row(key: tuple[str, float, str], ratios: dict[str, NDArray[np.float64]]) -> str:
    """Return the coverage of one estimate in one part."""
    before = [_coverage(one) for one in ratios.values()]
    scales = [_scale([other for name, other in ratios.items() if name != own]) for own in ratios]
    after = [_coverage(one, scale) for one, scale in zip(ratios.values(), scales, strict=True)]
    worst = max(abs(coverage[2] - 90.0) for coverage in after)
    words = [" | ".join(f"{value:.0f}" for value in np.mean(rows, axis=0)) for rows in (before, after)]
    scale = f"{min(scales):.2f} to {max(scales):.2f}"
    return f"| {key[0]} | {key[1]:g} | {key[2]} | {words[0]} | {scale} | {words[1]} | {worst:.0f} |"


def _coverage(ratio: NDArray[np.float64], scale: float = 1.0) -> list[float]:
    """Return the percentages of the sorted ratios that lie within the intervals, for deviations times a scale."""
    quantiles = scale * np.array(list(_LEVELS.values()))
    return list(100 * np.searchsorted(ratio, quantiles, side="right") / len(ratio))


def _scale(ratios: list[NDArray[np.float64]]) -> float:
    """Return the scale with the least deviation of the coverage, averaged over specimens and levels."""
    candidates = np.geomspace(0.2, 50, 200)
    wanted = 100 * np.array(list(_LEVELS))
    costs = [np.mean([np.abs(_coverage(ratio, c) - wanted).mean() for ratio in ratios]) for c in candidates]
    return float(candidates[int(np.argmin(costs))])


def _ratios(name: str, steps: int, samples: int) -> Ratios:
    """Return the absolute errors of one specimen, divided by each standard deviation."""
    content, snr, (low, high) = _KINDS[name]
    generator = torch.Generator().manual_seed(1000 + list(_KINDS).index(name))
    geometry, shape = TiltGeometry(range(int(low), int(high) + 1, 3)), (_SIZE,) * 3
    truth = simulate_specimen(shape, generator=generator, **content)
    halves = simulate_halves(shape, geometry, snr=snr, specimen=truth, generator=generator)
    pair = TomogramPair(halves.first, halves.second, geometry)
    model = _model(pair, steps)
    y = torch.stack((halves.first, halves.second))[None]
    project = measured_operator(geometry, shape).A
    with torch.no_grad():
        x = model(y, None)
        error = x - _on_the_scale_of(halves.first + halves.second, truth, project)
        error = error - error.mean()
        parts = dict(zip(_PARTS, _split(error, project), strict=True))
        variances = {kind: _averaged(kind, model, y, x, geometry, samples, project) for kind in _ESTIMATES}
    power = ", ".join(f"{part} {float(_inside(parts[part]).std()):.3f}" for part in _PARTS)
    print(f"{name}: root mean square error of the {power}", flush=True)
    inside = (_inside(blurred(truth, 1.0)) > 0.1).ravel()
    found: Ratios = {}
    for kind, by_part in variances.items():
        for width in _WIDTHS:
            for part in _PARTS:
                variance = by_part[part][0, 0]
                deviation = (blurred(variance, width) if width else variance).clamp(min=1e-20).sqrt()
                ratio = (_inside(parts[part]).abs() / _inside(deviation[None, None])).double().ravel()
                found[kind, width, part] = np.sort(ratio.numpy())
                found[kind, width, part + _SPECIMEN] = np.sort(ratio[inside].numpy())
    for kind in _ESTIMATES:
        shares = (f"{part} {_coverage(found[kind, 1.0, part])[2]:.0f} %" for part in (*_PARTS, "result" + _SPECIMEN))
        print(f"  within the 90 % intervals of {kind}, averaged over 1 voxel: {', '.join(shares)}", flush=True)
    return found


def _model(pair: TomogramPair, steps: int) -> TiledReconstructor:
    """Return the network that comes with the package, or one trained on the pair, as it predicts by default."""
    network: nn.Module
    if steps:
        config = TrainingConfig.preset("tiny", steps=steps, device="cpu")
        trainer = Trainer(pair, method_of(config), config)
        trainer.train()
        network = trainer.network
    else:
        config, network = TrainingConfig.preset("fast"), load_network("cryo")
    predictor = predictor_for(network.eval(), pair.geometry, ReconstructionSettings(), config)
    return TiledReconstructor(predictor, (pair.scale.mean, pair.scale.scale))


def _on_the_scale_of(twice: Tensor, truth: Tensor, project: Any) -> Tensor:
    """Return the truth with the contrast that the halves give it."""
    data, shown = twice[None, None] / 2, project(truth[None, None])
    shown = shown - shown.mean()
    return (data * shown).sum() / shown.square().sum() * truth[None, None]


def _split(volume: Tensor, project: Any) -> tuple[Tensor, Tensor, Tensor]:
    measured = project(volume)
    return volume, measured, volume - measured


def _inside(volume: Tensor) -> Tensor:
    cut = slice(_BORDER, -_BORDER)
    return volume[..., cut, cut, cut]


def _averaged(
    kind: str,
    model: TiledReconstructor,
    y: Tensor,
    x: Tensor,
    geometry: TiltGeometry,
    samples: int,
    project: Any,
) -> dict[str, Tensor]:
    """Return the variance of the result and of its parts by one estimate."""
    if kind == "halves":
        first, second = (_split(model(y[:, n : n + 1], None), project) for n in range(2))
        return {part: halves_variance(a, b) for part, a, b in zip(_PARTS, first, second, strict=True)}
    generator = torch.Generator().manual_seed(0)
    shape = (_SIZE,) * 3
    physics = MissingWedgeOperator(shape, geometry, support="box")
    physics.set_noise_model(HalvesNoise(y[0, 0], y[0, 1], geometry, generator))
    group = CubeRotationGroup.moving(physics, rng=generator, n_trans=min(samples, 40))
    sampling = (EquivariantBootstrap if kind == "bootstrap" else OrbitDeviation)(model, group, n_samples=samples)
    deviations = [_split(deviation, project) for deviation in sampling.deviations(x, physics)]
    return {part: sampling.variance(iter(own)) for part, own in zip(_PARTS, zip(*deviations, strict=True), strict=True)}


if __name__ == "__main__":
    main()
