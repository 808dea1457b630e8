"""Tests of the simulated specimens and halves."""

from __future__ import annotations

import math

import pytest
import torch
from projecting import backproject, energy, project, seeded
from torch import Tensor

from equitomo.fourier import frequencies, irfftn, rfftn
from equitomo.geometry import TiltAxis, TiltGeometry
from equitomo.metrics import fourier_correlation
from equitomo.physics import TiltSeriesPhysics
from equitomo.simulate import simulate_halves, simulate_particles, simulate_specimen

TILT_AXES: list[TiltAxis] = ["y", "x"]


# The specimen ----------------------------------------------------------------------------------------


def test_specimen_is_dense_matter_on_an_empty_background():
    specimen = simulate_specimen((40, 48, 56), generator=seeded())
    assert specimen.dtype == torch.float32 and specimen.min() >= 0
    assert (specimen < 1e-3).float().mean() > 0.3
    assert 1 < specimen.max() < 4


def test_specimen_stays_inside_its_slab_and_reaches_the_other_faces():
    specimen = simulate_specimen((40, 48, 56), thickness=0.5, generator=seeded())
    assert specimen[:6].max() < 1e-3 and specimen[-6:].max() < 1e-3
    faces = specimen[:, 0], specimen[:, -1], specimen[..., 0], specimen[..., -1]
    assert min(face.max() for face in faces) > 0.5


def test_specimen_has_smooth_edges():
    specimen = simulate_specimen((40, 40, 40), generator=seeded()).double()
    kz, ky, kx = frequencies((40, 40, 40))
    power = energy(specimen)
    assert power[(kz**2 + ky**2 + kx**2) > 0.4**2].sum() < 0.01 * power.sum()


def test_more_crowding_is_more_matter():
    sparse, crowded = (simulate_specimen((40, 40, 40), crowding=c, generator=seeded()) for c in (0.0, 0.25))
    assert crowded.sum() > 1.1 * sparse.sum()


def test_specimen_is_drawn_from_its_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (simulate_specimen((24, 24, 24), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert fourier_correlation(first, other) < 0.5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("content", ["complexes", "threads", "sheets", "support"])
def test_each_kind_of_content_alone_lies_inside_the_slab(content):
    specimen = simulate_specimen((40, 48, 56), thickness=0.5, contents=[content], generator=seeded(3))
    assert 0.5 < specimen.max() < 6
    assert specimen[:6].max() < 5e-3 and specimen[-6:].max() < 5e-3


def test_a_sheet_is_two_leaflets_36_angstrom_apart():
    specimen = simulate_specimen((64, 64, 64), voxel_size=6.0, contents=["sheets"], generator=seeded(5))
    correlation = irfftn(rfftn(specimen).abs().square(), specimen.shape).roll((32, 32, 32), (0, 1, 2))
    offsets = torch.cartesian_prod(*[torch.arange(-3, 4)] * 3)
    near = offsets[((offsets**2).sum(1) - 9).abs() <= 1]

    def at(offset):
        return correlation[tuple(32 + offset)].item()

    # Half way to the other leaflet, along the normal, a shifted sheet meets itself least.
    normal = min(near, key=at)
    assert at(2 * normal) > 1.5 * at(normal) and at(2 * normal) > 1.2 * at(3 * normal)


def test_a_support_film_ends_at_a_straight_edge():
    specimen = simulate_specimen((32, 48, 48), contents=["support"], generator=seeded(1))
    film = specimen[-8] > 0.3
    assert 0.05 < film.float().mean() < 0.95
    # Whatever crosses it, a line meets a half plane once.
    assert all((line[1:] ^ line[:-1]).sum() <= 1 for plane in (film, film.T) for line in plane)


# The halves ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TILT_AXES)
def geometry(request) -> TiltGeometry:
    return TiltGeometry(range(-60, 61, 4), tilt_axis=request.param)


SHAPE = (28, 36, 32)


@pytest.fixture(scope="module")
def clean(geometry) -> Tensor:
    return simulate_halves(SHAPE, geometry, snr=math.inf, generator=seeded()).first


@pytest.fixture(scope="module")
def halves(geometry):
    return simulate_halves(SHAPE, geometry, snr=0.5, generator=seeded())


def test_halves_without_noise_are_the_backprojection_of_the_truth(geometry):
    halves = simulate_halves(SHAPE, geometry, snr=math.inf, generator=seeded())
    series = project(halves.truth, geometry, detector=60)
    expected = backproject(series, geometry, SHAPE, window="shepp-logan", interpolations=1)
    assert torch.equal(halves.first, halves.second)
    # The views of the halves are as wide as need be.
    assert (halves.first - expected).norm() < 0.02 * expected.norm()


def test_noise_of_the_halves_is_independent(halves, clean):
    first, second = halves.first - clean, halves.second - clean
    assert abs(fourier_correlation(first, second)) < 0.03
    assert abs(fourier_correlation(first, clean)) < 0.1


def test_halves_are_equal_in_expectation(halves, clean):
    first, second = halves.first - clean, halves.second - clean
    assert (first.std() / second.std()).item() == pytest.approx(1, abs=0.03)
    assert abs(first.mean()) < 0.03 * first.std() and abs(second.mean()) < 0.03 * second.std()


def test_noise_of_each_half_is_that_of_half_the_dose(halves, clean):
    n_across = SHAPE[2] if halves.geometry.tilt_axis == "y" else SHAPE[1]
    series = project(halves.truth, halves.geometry)
    assert series.shape[-1] == n_across
    full_dose = series.var(dim=(1, 2)).mean() / 0.5
    noise = (2 * full_dose).sqrt() * torch.randn(*series.shape, generator=seeded(3))
    expected = backproject(noise, halves.geometry, SHAPE, window="shepp-logan", interpolations=1)
    # The narrower detector ends near the faces, so only the inside is compared.
    inner = (slice(8, -8),) * 3
    assert ((halves.first - clean)[inner].std() / expected[inner].std()).item() == pytest.approx(1, abs=0.05)


def test_halves_are_drawn_from_their_generator_alone(halves):
    again = simulate_halves(SHAPE, halves.geometry, snr=0.5, generator=seeded())
    other = simulate_halves(SHAPE, halves.geometry, snr=0.5, generator=seeded(1))
    for name in ("truth", "first", "second"):
        assert torch.equal(getattr(halves, name), getattr(again, name))
        assert not torch.equal(getattr(halves, name), getattr(other, name))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: simulate_specimen((8, 8, 8), voxel_size=0), "voxel_size"),
        (lambda g: simulate_specimen((8, 8, 8), crowding=0.7), "crowding"),
        (lambda g: simulate_specimen((8, 8, 8), thickness=1.5), "thickness"),
        (lambda g: simulate_halves((8, 8, 8), g, snr=0), "snr"),
        (lambda g: simulate_halves((8, 8, 8), TiltGeometry.from_range(-60, 60), snr=1), "list of tilts"),
    ],
)
def test_what_cannot_be_simulated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(TiltGeometry([-60, 0, 60]))


# Particles -------------------------------------------------------------------------------------------


def test_particles_have_one_density_on_a_background_of_zero():
    particles = simulate_particles((48, 50, 52), density=3.0, generator=torch.Generator().manual_seed(0))
    inside, outside = (particles == 3).double().mean(), (particles == 0).double().mean()
    assert 0.02 < inside < 0.2
    # The rest are the voxels at the surfaces.
    assert 0.85 < inside + outside < 1


def test_a_detector_as_wide_as_the_volume_sees_all_particles_at_every_tilt():
    particles = simulate_particles((40, 40, 40), generator=torch.Generator().manual_seed(0))
    series = TiltSeriesPhysics((40, 40, 40), TiltGeometry(range(-80, 81, 8))).A(particles[None, None])
    masses = series.sum(dim=(-2, -1)).flatten()
    torch.testing.assert_close(masses, particles.sum().expand_as(masses), rtol=1e-5, atol=0)


def test_particles_do_not_touch():
    particles = simulate_particles(
        (48, 48, 48), n_particles=5, radii=(3, 6), generator=torch.Generator().manual_seed(0)
    )
    inside = (particles > 0).float()[None]
    labels = inside * torch.arange(1.0, inside.numel() + 1).reshape(inside.shape)
    # The largest number spreads through each connected piece.
    for _ in range(48):
        labels = torch.nn.functional.max_pool3d(labels, 3, 1, 1) * inside
    assert len(labels[inside > 0].unique()) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_particles": 0}, "n_particles"), ({"radii": (4, 30)}, "radii"), ({"density": 0}, "density")],
)
def test_particles_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        simulate_particles((32, 32, 32), **settings)
