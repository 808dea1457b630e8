"""Tests of filtered backprojection: its gain, the line of the tilt axis, the sign convention and the weights."""

from __future__ import annotations

import pytest
import torch
from projecting import backproject, blob, compact_specimen, energy, outside, project

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.fourier import frequencies, rfftn
from equitomo.geometry import TiltAxis, wedge_mask
from equitomo.metrics import fourier_correlation
from equitomo.physics import full_detector

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
