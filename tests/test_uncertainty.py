"""Estimates of how sure a reconstruction is."""

from __future__ import annotations

import pytest
import torch
from deepinv.models import Reconstructor
from deepinv.physics import Denoising, GaussianNoise, Inpainting
from deepinv.transform import Shift

from equitomo import CubeRotationGroup, MissingWedgeOperator
from equitomo.fourier import rfftn
from equitomo.geometry import TiltGeometry
from equitomo.simulate import simulate_halves
from equitomo.uncertainty import EquivariantBootstrap, HalvesNoise, OrbitDeviation, halves_variance

SHAPE = (12, 12, 12)
RANGE = (-60.0, 60.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_model(seed=0, shape=SHAPE):
    first, second = torch.randn(2, *shape, generator=seeded(5))
    return first, second, HalvesNoise(first, second, RANGE, seeded(seed))


# The noise of halves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, (9, 10, 11)])
def test_the_mean_of_made_halves_has_the_noise_power_of_the_mean_at_every_frequency(shape):
    first, second, noise = noise_model(shape=shape)
    made = noise(torch.zeros(1, 1, *shape)).mean(1)[0]
    torch.testing.assert_close(rfftn(made).abs(), rfftn((first - second) / 2).abs(), atol=1e-5, rtol=1e-4)


def test_made_halves_have_independent_noise_of_the_power_of_the_given_ones():
    first, second, noise = noise_model()
    made = torch.cat([noise(torch.zeros(1, 1, *SHAPE)) for _ in range(60)]).flatten(2)
    # Independent halves of variance s have a difference of variance 2 s.
    assert made.square().mean().item() == pytest.approx(float((first - second).square().mean()) / 2, rel=0.02)
    covariance = (made[:, 0] * made[:, 1]).mean() / made.square().mean()
    assert abs(covariance) < 0.05


def test_other_draws_are_other_noise_and_a_seed_repeats_one():
    *_, noise = noise_model()
    x = torch.zeros(1, 1, *SHAPE)
    assert not torch.equal(noise(x), noise(x))
    assert torch.equal(noise(x, seed=3), noise(x, seed=3))


def test_every_volume_of_a_batch_has_its_own_noise():
    *_, noise = noise_model()
    made = noise(torch.zeros(3, 1, *SHAPE))
    assert made.shape == (3, 2, *SHAPE)
    assert not torch.equal(made[0], made[1])


def test_halves_of_different_shapes_make_no_noise():
    with pytest.raises(ValueError, match=r"`first` and `second` must be \(z, y, x\) and of one shape"):
        HalvesNoise(torch.zeros(4, 4, 4), torch.zeros(4, 4, 5), RANGE)


# The bootstrap, also of deepinv's own pictures ---------------------------------------------------------


class Scaled(Reconstructor):
    """The estimate ``factor * y``, whose error is known in closed form."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, y, physics, **kwargs):
        return self.factor * y


@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_the_bootstrap_of_a_linear_denoiser_is_its_error_at_the_estimate(factor):
    physics = Denoising(GaussianNoise(0.3, rng=seeded(1)))
    y = physics(torch.linspace(-1, 1, 16 * 16).view(1, 1, 16, 16))
    bootstrap = EquivariantBootstrap(Scaled(factor), Shift(rng=seeded(2)), n_samples=400)
    x, variance = bootstrap(y, physics)
    torch.testing.assert_close(x, factor * y)
    # x_b - x* = (factor - 1) x* + factor n.
    expected = ((factor - 1) * x).square() + (0.3 * factor) ** 2
    torch.testing.assert_close(variance, expected, atol=0.04, rtol=0.25)
    assert variance.mean().item() == pytest.approx(expected.mean().item(), rel=0.02)


def test_the_bootstrap_sees_errors_where_nothing_was_measured():
    mask = torch.ones(1, 16, 16)
    mask[:, :, 8:] = 0
    physics = Inpainting((1, 16, 16), mask=mask)
    y = physics(torch.rand(1, 1, 16, 16, generator=seeded()))
    x, variance = EquivariantBootstrap(Scaled(1.0), Shift(rng=seeded()), n_samples=64)(y, physics)
    # Shifted pixels fall into the part that is not measured: they come back as zeros.
    assert variance[..., :8].mean() > 0.1 * x[..., :8].square().mean()
    assert variance[..., 8:].max() == 0


def test_a_seed_repeats_a_bootstrap():
    *_, noise = noise_model()
    physics = MissingWedgeOperator(SHAPE, RANGE, noise_model=noise)
    bootstrap = EquivariantBootstrap(lambda y, physics: y.mean(1, keepdim=True), CubeRotationGroup(), n_samples=3)
    y = torch.randn(1, 2, *SHAPE)
    torch.testing.assert_close(bootstrap(y, physics, seed=4), bootstrap(y, physics, seed=4))
    assert not torch.equal(bootstrap(y, physics, seed=5)[1], bootstrap(y, physics, seed=4)[1])


def test_all_elements_that_are_drawn_at_once_are_used_before_others_are_drawn():
    seen = []

    class Recorded(CubeRotationGroup):
        def transform(self, x, **params):
            seen.append(int(params["element"]))
            return super().transform(x, **params)

    group = Recorded(n_trans=48, rng=seeded())
    bootstrap = EquivariantBootstrap(Scaled(1.0), group, n_samples=48)
    bootstrap(torch.randn(1, 1, 4, 4, 4), MissingWedgeOperator((4, 4, 4), RANGE))
    # Each is seen twice: as an element, and as the inverse of another one.
    assert sorted(seen) == sorted([*range(48)] * 2)


def test_the_orbit_of_an_equivariant_reconstruction_of_everything_has_no_deviation():
    physics = Denoising(GaussianNoise(0.3))
    orbit = OrbitDeviation(Scaled(1.0), CubeRotationGroup(), n_samples=5)
    _, variance = orbit(torch.randn(1, 1, 6, 6, 6), physics)
    assert variance.abs().max() < 1e-10


def test_the_orbit_has_the_variance_of_the_samples_about_their_mean():
    physics, x = MissingWedgeOperator(SHAPE, RANGE), torch.randn(1, 1, *SHAPE)
    orbit = OrbitDeviation(Scaled(1.0), CubeRotationGroup(rng=seeded(3)), n_samples=6)
    samples = torch.stack(list(orbit.deviations(x, physics)))
    torch.testing.assert_close(orbit.variance(iter(samples)), samples.var(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "n"), [(EquivariantBootstrap, 0), (OrbitDeviation, 1)])
def test_too_few_samples_are_refused(kind, n):
    with pytest.raises(ValueError, match=f"`n_samples` must be at least {n + 1}, got {n}"):
        kind(Scaled(1.0), CubeRotationGroup(), n_samples=n)


def test_the_variance_of_halves_is_the_error_of_their_mean():
    first, second = torch.randn(2, 40, 40, 40, generator=seeded())
    mean_error = ((first + second) / 2).square().mean()
    assert halves_variance(first, second).mean().item() == pytest.approx(mean_error.item(), rel=0.02)


def test_noise_made_of_simulated_halves_has_the_power_of_their_true_noise():
    halves = simulate_halves((24, 24, 24), TiltGeometry(range(-60, 61, 6)), snr=0.2, generator=seeded())
    clean = simulate_halves(
        (24, 24, 24), TiltGeometry(range(-60, 61, 6)), snr=float("inf"), specimen=halves.truth, generator=seeded()
    )
    noise = HalvesNoise(halves.first, halves.second, RANGE, seeded())
    made = noise(torch.zeros(4, 1, 24, 24, 24))
    true = halves.first - clean.first
    assert made.square().mean().item() == pytest.approx(true.square().mean().item(), rel=0.1)
