"""What a tilt series tells about its axis, its alignment and the order of its images."""

from __future__ import annotations

import pytest
import torch
from making import DATA, real_data
from test_tilt_series import ANGLES, rocking

from equitomo import TiltSeries
from equitomo.datasets.acquisition import schemes
from equitomo.datasets.registration import mass_shifts, shifted
from equitomo.diagnosis import fit_tilt_axis, judge_series


def findings(series: TiltSeries) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.subject, finding.remedy) for finding in judge_series(series)]


def test_the_centre_of_mass_follows_the_curve_of_a_rotation():
    fit = fit_tilt_axis(rocking(), ANGLES)
    assert fit.along < 0.01
    assert fit.across < 0.01
    assert fit.is_compact
    assert findings(TiltSeries(rocking(), ANGLES)) == [("ok", "axes", "")]


@pytest.mark.fault(82)
@pytest.mark.parametrize(("given", "right"), [("y", "x"), ("x", "y")])
def test_a_wrong_tilt_axis_is_an_error_that_names_the_right_one(given, right):
    series = TiltSeries(rocking().mT, ANGLES, given)
    assert findings(series)[0] == ("error", "axes", f"pass `tilt_axis='{right}'`")


@pytest.mark.fault(83)
@pytest.mark.parametrize("offset", [-2.0, 0.8])
def test_an_axis_off_the_middle_is_told_with_its_offset(offset):
    images = shifted(rocking(), torch.tensor([[0.0, offset]]).expand(len(ANGLES), 2))
    assert findings(TiltSeries(images, ANGLES)) == [("warning", "axes", f"pass `tilt_axis_offset={offset:.1f}`")]


@pytest.mark.fault(83)
def test_views_that_are_not_aligned_are_told_and_their_mass_aligns_them(generator):
    images = shifted(rocking(), 2 * torch.randn(len(ANGLES), 2, generator=generator))
    ((severity, _, remedy),) = findings(TiltSeries(images, ANGLES))
    assert (severity, remedy) == ("warning", "align the series, or pass `align='mass'`")
    aligned = shifted(images, mass_shifts(images, ANGLES))
    fit = fit_tilt_axis(aligned, ANGLES)
    assert max(fit.along, fit.across, abs(fit.offset)) < 0.05


@pytest.mark.fault(84)
@pytest.mark.parametrize("scheme", [name for name in schemes(ANGLES) if name != "ascending"])
def test_sorted_angles_of_images_in_the_order_of_acquisition_are_an_error(scheme):
    series = TiltSeries(rocking()[list(schemes(ANGLES)[scheme])], ANGLES)
    assert ("error", "tilts") in [found[:2] for found in findings(series)]
    (message,) = [finding.message for finding in judge_series(series) if finding.subject == "tilts"]
    assert scheme in message


@real_data
@pytest.mark.fault(82)
@pytest.mark.filterwarnings("ignore:.*(HAADF|all_scans).mrc:equitomo.io.FileFormatWarning")
@pytest.mark.parametrize(
    ("file", "tilts", "right"),
    [("etspy_needle/HAADF.mrc", None, "x"), ("liquid_n6/all_scans.mrc", "liquid_n6/all_scans.tlt", "y")],
)
def test_the_axis_of_real_series_is_found(file, tilts, right):
    """The needle's is horizontal in its images, and that of the particles is their first axis."""
    tilts = None if tilts is None else DATA / tilts
    wrong = "y" if right == "x" else "x"
    found = {axis: findings(TiltSeries.read(DATA / file, tilts=tilts, tilt_axis=axis)) for axis in (right, wrong)}
    assert found[wrong][0] == ("error", "axes", f"pass `tilt_axis='{right}'`")
    assert "error" not in [severity for severity, _, _ in found[right]]
