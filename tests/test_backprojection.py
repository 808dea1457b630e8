"""Tests of filtered backprojection: its gain, the line of the tilt axis, the sign convention and the weights."""

from __future__ import annotations

import math

import pytest
import torch
from projecting import backproject, blob, compact_specimen, energy, outside, project

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.fourier import frequencies, rfftn
from equitomo.geometry import TiltAxis, wedge_mask
from equitomo.metrics import fourier_correlation
from equitomo.physics import full_detector, keys_gain, ramp_filtered, tilt_steps

TILT_AXES: list[TiltAxis] = ["y", "x"]


@pytest.mark.parametrize("n", [41, 24])
@pytest.mark.parametrize("tilt", [60, 70])
def test_filtered_backprojection_keeps_the_mean(n, tilt):
    x = torch.rand(1, 1, n, n, n, generator=torch.Generator().manual_seed(0))
    geometry = TiltGeometry(range(-tilt, tilt + 1, 2))
    for detector in (None, full_detector(x.shape[-3:], geometry)):
        physics = TiltSeriesPhysics((n, n, n), geometry, detector=detector)
        assert (physics.A_dagger(physics.A(x)).mean() / x.mean()).item() == pytest.approx(1, abs=0.02)


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
    reconstruction = backproject(project(specimen, geometry), geometry, shape)
    kz, ky, kx = frequencies(shape)
    radius = (kz**2 + ky**2 + kx**2).sqrt()
    band = (wedge_mask(shape, geometry) > 0) & (radius > 0.06) & (radius < 0.3)
    truth, found = rfftn(specimen)[band], rfftn(reconstruction)[band]
    gain = (truth.conj() * found).real.sum() / (truth.abs() ** 2).sum()
    assert gain.item() == pytest.approx(1, abs=0.05)
    assert fourier_correlation(specimen, reconstruction, band) > 0.98


@pytest.mark.parametrize("interpolations", [1, 2])
@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize(("low", "high"), [(-60, 60), (-60, 20), (-45, 45)])
def test_on_the_line_of_the_tilt_axis_the_gain_is_one(low, high, tilt_axis, interpolations):
    shape, geometry = (48, 44, 40), TiltGeometry(range(low, high + 1, 2), tilt_axis)
    specimen = compact_specimen(shape, width=5.0)
    series = project(specimen, geometry, detector=60)
    reconstruction = backproject(series, geometry, shape, interpolations=interpolations)
    across = (0, 2) if tilt_axis == "y" else (0, 1)
    torch.testing.assert_close(reconstruction.sum(across), specimen.sum(across), atol=0.03, rtol=0.01)


def test_backprojection_of_all_directions_returns_the_specimen():
    shape = (41, 2, 41)
    specimen = blob(shape, (6.0, 0.0, -9.0), 2.5) + blob(shape, (-8.0, 0.0, 3.0), 2.0)
    geometry = TiltGeometry(range(-90, 88, 3))
    reconstruction = backproject(project(specimen, geometry, detector=61), geometry, shape)
    assert (reconstruction - specimen).abs().max() < 0.03


@pytest.mark.parametrize("shape", [(48, 48, 48), (40, 45, 51)])
@pytest.mark.parametrize("tilt_axis", TILT_AXES)
def test_backprojection_fills_the_wedge_mask_of_the_same_sign_and_axes(tilt_axis, shape):
    geometry = TiltGeometry(range(-60, 21, 2), tilt_axis=tilt_axis)
    flipped = TiltGeometry(range(-20, 61, 2), tilt_axis=tilt_axis)
    specimen = compact_specimen(shape)
    power = energy(backproject(project(specimen, geometry), geometry, shape))
    assert outside(energy(specimen), wedge_mask(shape, geometry)) > 0.5
    assert outside(power, wedge_mask(shape, geometry)) < 0.04
    assert outside(power, wedge_mask(shape, flipped)) > 0.4
    # With beam and detector axis swapped the measured directions run from 70 to 150 degrees, all but -30 to 70.
    swapped = 1 - wedge_mask(shape, TiltGeometry.from_range(-30, 70, tilt_axis=tilt_axis))
    assert outside(power, swapped) > 0.5
    other_axis = TiltGeometry(geometry.angles, tilt_axis="x" if tilt_axis == "y" else "y")
    assert outside(power, wedge_mask(shape, other_axis)) > 0.3


@pytest.mark.parametrize("interpolations", [0, 1, 2])
def test_the_gain_is_one_up_to_high_frequencies_where_the_interpolations_are_put_back(interpolations):
    shape, geometry = (48, 8, 48), TiltGeometry(range(-60, 61, 2))
    specimen = compact_specimen(shape, width=5.0)
    found = backproject(project(specimen, geometry), geometry, shape, interpolations=interpolations)
    kz, _, kx = frequencies(shape)
    radius = (kz**2 + kx**2).sqrt().expand(shape[0], shape[1], -1)
    band = (wedge_mask(shape, geometry, support="box").expand_as(radius) > 0) & (radius > 0.35) & (radius < 0.4)
    truth, measured = rfftn(specimen)[band], rfftn(found)[band]
    gain = ((truth.conj() * measured).real.sum() / (truth.abs() ** 2).sum()).item()
    expected = keys_gain(torch.tensor(0.375)).item() ** (2 - interpolations)
    assert gain == pytest.approx(expected, abs=0.06)


def test_tilts_represent_the_directions_nearest_to_them_and_scans_share_them():
    steps = torch.rad2deg(tilt_steps(torch.tensor([10.0, -60.0, 0.0, 10.05, 40.0], dtype=torch.float64)))
    torch.testing.assert_close(steps, steps.new_tensor([10, 60, 35, 10, 29.975]), atol=0.05, rtol=0)
    full = tilt_steps(torch.arange(-90.0, 90.0, 3.0, dtype=torch.float64))
    assert full.sum().item() == pytest.approx(math.pi)


def test_repeated_scans_give_the_volume_of_one():
    geometry, twice = TiltGeometry(range(-60, 61, 4)), TiltGeometry([*range(-60, 61, 4), *range(-20, 21, 4)])
    shape = (20, 3, 24)
    specimen = compact_specimen(shape, width=4.0)
    found, expected = (backproject(project(specimen, g), g, shape) for g in (twice, geometry))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_views_that_end_in_nothing_are_filtered_by_the_ramp_alone():
    views = torch.zeros(2, 40, dtype=torch.float64)
    views[:, 20] = 1.0
    lag = torch.arange(40, dtype=torch.float64) - 20
    expected = torch.where(lag % 2 == 0, 0.0, -1 / (math.pi * lag) ** 2)
    expected[20] = 0.25
    torch.testing.assert_close(ramp_filtered(views, interpolations=0)[0], expected)
