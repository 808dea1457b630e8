"""Tests of the simulator against closed forms, the sign convention and the projector of scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from equitomo.fourier import frequencies, rfftn
from equitomo.geometry import TiltAxis, TiltGeometry, wedge_mask
from equitomo.metrics import fourier_correlation
from equitomo.simulate import filtered_backprojection, project, simulate_halves, simulate_specimen

SHAPES = [(24, 24, 24), (25, 25, 25), (20, 25, 31)]
TILT_AXES: list[TiltAxis] = ["y", "x"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Return positions relative to the centre along z, y and x."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    return torch.meshgrid(*axes, indexing="ij")


def blob(shape: tuple[int, int, int], centre: tuple[float, float, float], width: float = 1.5) -> Tensor:
    squares = [(axis - c) ** 2 for axis, c in zip(coordinates(shape), centre, strict=True)]
    return torch.exp(-sum(squares) / (2 * width**2))


def compact_specimen(shape: tuple[int, int, int], width: float = 8.0) -> Tensor:
    """Return noise that fades away from the centre, so that no face of the volume cuts it."""
    noise = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    return noise * blob(shape, (0.0, 0.0, 0.0), width)


def energy(volume: Tensor) -> Tensor:
    """Return the energy of the half spectrum, counting mirror images and leaving out zero frequency."""
    power = rfftn(volume).abs() ** 2
    power[..., 1 : (volume.shape[-1] + 1) // 2] *= 2
    power[0, 0, 0] = 0
    return power


def outside(power: Tensor, mask: Tensor) -> float:
    return 1 - ((power * mask).sum() / power.sum()).item()


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


# The projections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_point_is_projected_to_x_cos_plus_z_sin(shape, tilt_axis):
    z, y, x = 5.0, -3.0, 4.0
    geometry = TiltGeometry([-70, -35, 0, 20, 60], tilt_axis=tilt_axis)
    series = project(blob(shape, (z, y, x)), geometry)
    along, across = (y, x) if tilt_axis == "y" else (x, y)
    for view, angle in zip(series, geometry.angles, strict=True):
        positions = [torch.arange(n, dtype=view.dtype) - (n - 1) / 2 for n in view.shape]
        tilt = math.radians(angle)
        t = across * math.cos(tilt) + z * math.sin(tilt)
        centre = ((view.sum(1) @ positions[0]) / view.sum(), (view.sum(0) @ positions[1]) / view.sum())
        torch.testing.assert_close(torch.stack(centre), view.new_tensor([along, t]), atol=0.02, rtol=0)


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_untilted_projection_is_the_sum_along_the_beam(shape, tilt_axis):
    volume = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    untilted = project(volume, TiltGeometry([-10, 0], tilt_axis=tilt_axis))[1]
    # Half of the samples may lie between two voxels, but the cubic weights of every voxel add up to one.
    torch.testing.assert_close(untilted, volume.sum(0) if tilt_axis == "y" else volume.sum(0).T)


def test_a_narrower_detector_records_the_middle_of_a_wider_one():
    volume = torch.randn(12, 4, 16, generator=seeded())
    geometry = TiltGeometry(range(-60, 61, 20))
    wide = project(volume, geometry, width=20)
    torch.testing.assert_close(project(volume, geometry), wide[..., 2:-2])


def test_every_projection_on_a_wide_detector_shows_the_whole_specimen():
    volume = compact_specimen((25, 4, 25), width=3.0).abs()
    series = project(volume, TiltGeometry(range(-80, 81, 20)), width=40)
    torch.testing.assert_close(series.sum((1, 2)), volume.sum().expand(9), rtol=0.01, atol=0)


def test_projections_are_those_of_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    shape = (41, 1, 41)
    volume = blob(shape, (4.0, 0.0, -6.0), 2.0) + blob(shape, (-7.0, 0.0, 3.0), 2.0)
    volume[volume < 1e-5] = 0  # radon wants zero outside the circle
    geometry = TiltGeometry(range(-60, 61, 15))
    # radon rotates in the other direction about pixel n // 2, which is the centre of an odd image.
    angles = -np.array(geometry.angles)
    expected = transform.radon(volume[:, 0].numpy(), theta=angles, circle=True, preserve_range=True)
    ours = project(volume, geometry)[:, 0].numpy().T
    # radon interpolates linearly.
    assert np.abs(ours - expected).max() < 0.03 * expected.max()


# The backprojection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize(
    "angles",
    [range(-60, 61, 2), range(-60, 21, 2), range(-45, 46, 3), [*range(-60, -20, 4), *range(-20, 61, 2)]],
    ids=["symmetric", "asymmetric", "narrow", "uneven steps"],
)
def test_backprojection_has_gain_one_in_measured_directions(angles, tilt_axis):
    shape = (48, 44, 48) if tilt_axis == "y" else (48, 48, 44)
    geometry = TiltGeometry(angles, tilt_axis=tilt_axis)
    specimen = compact_specimen(shape)
    reconstruction = filtered_backprojection(project(specimen, geometry), geometry, shape)
    kz, ky, kx = frequencies(shape)
    radius = (kz**2 + ky**2 + kx**2).sqrt()
    band = (wedge_mask(shape, geometry) > 0) & (radius > 0.06) & (radius < 0.3)
    truth, found = rfftn(specimen)[band], rfftn(reconstruction)[band]
    gain = (truth.conj() * found).real.sum() / (truth.abs() ** 2).sum()
    assert gain.item() == pytest.approx(1, abs=0.05)
    assert fourier_correlation(specimen, reconstruction, band) > 0.98


@pytest.mark.parametrize(("low", "high"), [(-60, 60), (-60, 20), (-45, 45)])
def test_on_the_line_of_the_tilt_axis_the_gain_is_little_more_than_the_share_of_covered_directions(low, high):
    shape, geometry = (48, 44, 48), TiltGeometry(range(low, high + 1, 2))
    specimen = compact_specimen(shape)
    reconstruction = filtered_backprojection(project(specimen, geometry), geometry, shape)
    truth, found = (rfftn(volume)[0, 1:14, 0] for volume in (specimen, reconstruction))
    gain = (truth.conj() * found).real.sum() / (truth.abs() ** 2).sum()
    assert 0 < gain - (high - low) / 180 < 0.15


def test_backprojection_of_all_directions_returns_the_specimen():
    shape = (41, 2, 41)
    specimen = blob(shape, (6.0, 0.0, -9.0), 2.5) + blob(shape, (-8.0, 0.0, 3.0), 2.0)
    geometry = TiltGeometry(range(-90, 88, 3))
    reconstruction = filtered_backprojection(project(specimen, geometry, width=61), geometry, shape)
    assert (reconstruction - specimen).abs().max() < 0.03


@pytest.mark.parametrize("shape", [(48, 48, 48), (40, 45, 51)])
@pytest.mark.parametrize("tilt_axis", TILT_AXES)
def test_backprojection_fills_the_wedge_mask_of_the_same_sign_and_axes(tilt_axis, shape):
    geometry = TiltGeometry(range(-60, 21, 2), tilt_axis=tilt_axis)
    flipped = TiltGeometry(range(-20, 61, 2), tilt_axis=tilt_axis)
    specimen = compact_specimen(shape)
    power = energy(filtered_backprojection(project(specimen, geometry), geometry, shape))
    assert outside(energy(specimen), wedge_mask(shape, geometry)) > 0.5
    assert outside(power, wedge_mask(shape, geometry)) < 0.04
    assert outside(power, wedge_mask(shape, flipped)) > 0.4
    # With beam and detector axis swapped the measured directions run from 70 to 150 degrees, all but -30 to 70.
    swapped = 1 - wedge_mask(shape, TiltGeometry.from_range(-30, 70, tilt_axis=tilt_axis))
    assert outside(power, swapped) > 0.5
    other_axis = TiltGeometry(geometry.angles, tilt_axis="x" if tilt_axis == "y" else "y")
    assert outside(power, wedge_mask(shape, other_axis)) > 0.3


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
    expected = filtered_backprojection(project(halves.truth, geometry, width=60), geometry, SHAPE)
    assert torch.equal(halves.first, halves.second)
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
    expected = filtered_backprojection(noise, halves.geometry, SHAPE)
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
        (lambda g: project(torch.ones(1, 8, 8, 8), g), r"\(z, y, x\)"),
        (lambda g: project(torch.ones(8, 8, 8), TiltGeometry.from_range(-60, 60)), "list of tilts"),
        (lambda g: filtered_backprojection(torch.ones(4, 8, 8), g, (8, 8, 8)), "3 tilts"),
        (lambda g: filtered_backprojection(torch.ones(3, 8, 8), g, (8, 9, 8)), "9 along the y axis"),
    ],
)
def test_what_cannot_be_simulated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(TiltGeometry([-60, 0, 60]))
