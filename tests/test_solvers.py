"""Tests of the reconstructions without training, on particles with a true zero around them."""

from __future__ import annotations

import math

import mrcfile
import pytest
import torch
from deepinv.optim import TVPrior
from making import DATA, real_data
from torch import Tensor

from equitomo import TiltGeometry, TiltSeriesPhysics, read_tilts
from equitomo.solvers import conjugate_gradient, filtered_backprojection, sirt, total_variation

SHAPE = (24, 20, 28)


@pytest.fixture(scope="module")
def physics() -> TiltSeriesPhysics:
    return TiltSeriesPhysics(SHAPE, TiltGeometry(range(-70, 71, 5)), detector=40)


@pytest.fixture(scope="module")
def particles() -> Tensor:
    z, y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    places = ((0, 0, 0, 5), (-6, 4, 8, 3), (6, -5, -8, 3))
    return sum((((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2).sqrt() < r).float() for a, b, c, r in places)[None, None]


@pytest.fixture(scope="module")
def noisy(physics, particles) -> Tensor:
    y = physics.A(particles)
    return y + 0.5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))


def error(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


def test_sirt_is_the_weighted_iteration_of_its_formula(physics, noisy):
    columns = physics.A_adjoint(torch.ones_like(noisy))
    rows = physics.A(torch.ones_like(columns)).clamp(min=1)
    x = torch.zeros_like(columns)
    for _ in range(4):
        x = (x + 0.9 * physics.A_adjoint((noisy - physics.A(x)) / rows) / columns).clamp(min=0)
    found = sirt(noisy, physics, iterations=4, positive=True, relaxation=0.9)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positive", [False, True])
def test_iterations_go_on_from_where_they_are_started(physics, noisy, positive):
    whole = sirt(noisy, physics, iterations=8, positive=positive)
    half = sirt(noisy, physics, iterations=4, positive=positive)
    torch.testing.assert_close(sirt(noisy, physics, iterations=4, positive=positive, init=half), whole)


def test_positivity_helps_sirt(physics, noisy, particles):
    free, positive = (sirt(noisy, physics, positive=p) for p in (False, True))
    assert free.min() < -0.1 and positive.min() == 0
    assert error(positive, particles) < 0.8 * error(free, particles)


def test_conjugate_gradients_find_the_damped_least_squares_volume(noisy, physics):
    exact, y = TiltSeriesPhysics(SHAPE, TiltGeometry(range(-70, 71, 5)), detector=40).double(), noisy.double()
    x = conjugate_gradient(y, exact, iterations=200, damping=0.01, tolerance=1e-10)
    shift = (exact.A_adjoint(y - exact.A(x)) * x).sum() / (x * x).sum()
    torch.testing.assert_close(exact.A_adjoint(y - exact.A(x)), shift * x, atol=1e-6, rtol=1e-6)


def test_conjugate_gradients_start_from_a_volume(physics, particles):
    assert error(conjugate_gradient(physics.A(particles), physics, iterations=1, init=particles), particles) < 1e-4


def test_total_variation_minimises_its_objective(physics, noisy, particles):
    def objective(x: Tensor) -> float:
        return (0.5 * (physics.A(x) - noisy).square().sum() + TVPrior().fn(x).sum()).item()

    found = total_variation(noisy, physics, weight=1.0, iterations=300, positive=True)
    lowest = objective(found)
    assert lowest < objective(particles) and found.min() >= 0
    for seed in range(3):
        change = 0.01 * torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        assert lowest < objective((found + change).clamp(min=0))
        assert lowest < objective((1 + 0.01 * (seed - 1.5)) * found)


def test_total_variation_is_better_than_sirt_for_particles(physics, noisy, particles):
    found = total_variation(noisy, physics, weight=3.0, positive=True)
    assert error(found, particles) < 0.8 * error(sirt(noisy, physics, positive=True), particles)


def test_without_weight_total_variation_is_least_squares(physics, particles):
    y = physics.A(particles)
    found = total_variation(y, physics, weight=0.0, iterations=100)
    assert error(physics.A(found), y) < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, physics: sirt(y, physics, relaxation=2.0), "`relaxation`"),
        (lambda y, physics: total_variation(y, physics, weight=-1.0), "`weight`"),
        (lambda y, physics: total_variation(y, physics, weight=math.nan), "`weight`"),
        (lambda y, physics: filtered_backprojection(y, physics, window="hanning"), "`window`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, message, physics, noisy):
    with pytest.raises(ValueError, match=message):
        call(noisy, physics)


@real_data
def test_a_series_is_reconstructed_as_another_program_did():
    """That program interpolates linearly. Here views go on beyond their ends, and scale and mean are not compared."""
    folder = DATA / "cryo_tiny_mid"
    series, expected = (torch.from_numpy(mrcfile.read(folder / f"{name}.mrc")) for name in ("tilts_even", "even"))
    geometry = TiltGeometry(read_tilts(folder / "cryo_tiny_mid.tlt"))
    physics = TiltSeriesPhysics(expected.shape, geometry, detector=series.shape[-1])
    found = filtered_backprojection(series[None, None].float(), physics)[0, 0]
    assert torch.corrcoef(torch.stack((found.flatten(), expected.flatten().float())))[0, 1] > 0.98
