"""Compare reconstructions of simulated nanoparticles: ``python -m benchmarks.materials COUNTS [VARIANT ...]``.

COUNTS are the electrons in the brightest pixel of the series. There are 64^3 voxels, 71 tilts from -70 to 70 degrees
and Poisson noise, and each half has half of the counts. One Markdown row is printed per way, with the error relative to
the norm of the truth and the mean relative to that of the truth. VARIANTS are trainings: ``tiny`` and ``fast`` are
presets, ``positive`` is ``tiny`` with a network whose output is cut off at zero. One thread.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from equitomo import (
    IcecreamTrainer,
    MirrorAveraged,
    ScaleEquivariantUNet3D,
    TiledPredictor,
    TiltGeometry,
    TiltSeriesPhysics,
    TomogramPair,
    TrainingConfig,
)
from equitomo.refinement import MeasuredSeries, Measurement, ReprojectedHalves, refine
from equitomo.simulate import simulate_particles
from equitomo.solvers import filtered_backprojection, sirt, total_variation

SHAPE = (64, 64, 64)
WEIGHTS = (2.0, 4.0, 8.0, 11.0, 16.0, 22.0, 32.0, 45.0, 64.0)
_VARIATION = {"positive": True, "iterations": 150}


class Positive(nn.Module):
    """A network whose output is cut off at zero, in training too."""

    def __init__(self, network: ScaleEquivariantUNet3D) -> None:
        super().__init__()
        self.network, self.stride = network, network.stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the output without its negative values."""
        positive: Tensor = self.network(x).relu()
        return positive


class Study:
    """Particles, their noisy series and the halves made of it."""

    def __init__(self, counts: float) -> None:
        self.truth = simulate_particles(SHAPE, generator=torch.Generator().manual_seed(0))
        self.geometry = TiltGeometry(range(-70, 71, 2))
        self.physics = TiltSeriesPhysics(SHAPE, self.geometry)
        clean = self.physics.A(self.truth[None, None]).clamp(min=0)
        dose = counts / 2 / clean.max()
        generator = torch.Generator().manual_seed(1)
        series = [torch.poisson(clean * dose, generator=generator) / dose for _ in range(2)]
        self.y = (series[0] + series[1]) / 2
        halves = [filtered_backprojection(one, self.physics)[0, 0] for one in series]
        self.pair = TomogramPair(*halves, self.geometry, normalization="scale")

    def show(self, name: str, found: Tensor, since: float | None = None) -> float:
        """Print a row and return the error."""
        found = torch.as_tensor(found).reshape(SHAPE)
        error = float((found - self.truth).norm() / self.truth.norm())
        seconds = "" if since is None else f"{time.process_time() - since:.1f}"
        print(f"| {name} | {error:.3f} | {float(found.mean() / self.truth.mean()):.2f} | {seconds} |", flush=True)
        return error

    def trained(self, variant: str) -> Tensor:
        """Return the result of a training, in the intensities of the halves."""
        config = TrainingConfig.preset("fast" if variant == "fast" else "tiny", normalization="scale")
        network = None
        if variant == "positive":
            network = lambda: Positive(ScaleEquivariantUNet3D(width=config.width, levels=config.levels))  # noqa: E731
        trainer = IcecreamTrainer(self.pair, config, network=network)
        trainer.train()
        predictor = TiledPredictor(MirrorAveraged(trainer.network, self.geometry), passes=1, average_first=True)
        return self.pair.scale.restore(predictor(*self.pair.volumes))


def main(counts: str = "260", *variants: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    study = Study(float(counts))
    physics, y = study.physics, study.y
    print(f"{counts} counts, torch {torch.__version__}, one thread")
    print("| way | error | mean | seconds |\n| --- | --- | --- | --- |")
    start = time.process_time()
    fbp = filtered_backprojection(y, physics)
    study.show("filtered backprojection", fbp, start)
    study.show("the same, negative values set to zero", fbp.clamp(min=0))
    for positive in (False, True):
        for iterations in (20, 50, 100):
            start = time.process_time()
            found = sirt(y, physics, iterations=iterations, positive=positive)
            study.show(f"SIRT, {iterations} iterations{', positive' if positive else ''}", found, start)
    errors = {}
    for weight in WEIGHTS:
        start = time.process_time()
        found = total_variation(y, physics, weight=weight, **_VARIATION)
        errors[weight] = study.show(f"total variation, weight {weight:g}, positive", found, start)
    best = min(errors, key=errors.__getitem__)
    measured = MeasuredSeries(y[0, 0], study.geometry)
    halves = ReprojectedHalves(study.pair.halves, study.pair.geometries)
    for variant in variants or ("tiny",):
        start = time.process_time()
        x = study.trained(variant)
        study.show(f"`{variant}`", x, start)
        study.show("+ negative values set to zero", x.clamp(min=0))

        def refined(name: str, measurement: Measurement, iterations: int, positive: bool, x: Tensor = x) -> None:
            start = time.process_time()
            found = refine(x, measurement, iterations=iterations, positive=positive)
            what = f"{iterations} iterations of SIRT against {name}" if iterations else f"scaled to {name}"
            study.show(f"+ {what}{', positive' if positive else ''}", torch.from_numpy(found), start)

        for iterations in (0, 2, 5, 10, 20, 50):
            refined("the series", measured, iterations, True)
        for iterations in (5, 20):
            refined("the series", measured, iterations, False)
        for iterations in (0, 2, 5, 10, 20, 50):
            refined("the halves", halves, iterations, True)
        start = time.process_time()
        found = total_variation(y, physics, weight=best, init=x[None, None], **_VARIATION)
        study.show(f"+ total variation from it, weight {best:g}", found, start)


if __name__ == "__main__":
    main(*sys.argv[1:])
