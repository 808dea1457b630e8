"""The wedge that a spectrum shows: found where it is, not found where there is none, held against what is declared."""

import dataclasses
import re
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from making import DATA, real_data

from equitomo import MissingWedgeOperator, TiltGeometry, estimate_wedge, judge_geometry, read_tilts, read_volume
from equitomo.diagnosis import WedgeEstimate
from equitomo.report import draw_wedge
from equitomo.simulate import simulate_halves

# A tilt fills half a step more on either side, and small volumes blur the edge.
CLOSE = 4.5


def simulated(shape=(32, 32, 32), low=-60, high=40, step=4, axis="y", seed=1):
    generator = torch.Generator().manual_seed(seed)
    return simulate_halves(shape, TiltGeometry(range(low, high + 1, step), axis), snr=0.5, generator=generator)


@pytest.fixture(scope="module")
def lopsided():
    """Halves tilted from -60 to 40 degrees about y."""
    halves = simulated((32, 36, 40))
    return halves.first, halves.second


@pytest.fixture(scope="module")
def specimen():
    return simulated((40, 64, 64), step=20).truth


def assert_found(estimate, tilt_axis, beam_axis, low, high, within=CLOSE):
    assert (estimate.tilt_axis, estimate.beam_axis, estimate.reason) == (tilt_axis, beam_axis, "")
    assert estimate.tilt_range == pytest.approx((low, high), abs=within)


# What is found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "step"), [(-60, 60, 3), (-60, 40, 2), (-40, 60, 4), (-48, 66, 6), (-70, 70, 2), (-30, 30, 3)]
)
@pytest.mark.parametrize(("shape", "axis"), [((32, 32, 32), "y"), ((24, 48, 33), "x")])
def test_the_tilt_axis_and_the_range_are_found(shape, axis, low, high, step):
    halves = simulated(shape, low, high, step, axis)
    estimate = estimate_wedge(halves.first, halves.second)
    assert_found(estimate, axis, "z", low, high)
    assert estimate.explained > 0.6
    assert judge_geometry(estimate, halves.geometry).kind == "agrees"


def test_one_volume_is_enough(lopsided):
    assert_found(estimate_wedge(lopsided[0]), "y", "z", -60, 40)


def test_memory_maps_are_read_as_they_are(lopsided, tmp_path):
    np.save(tmp_path / "a.npy", lopsided[0].numpy())
    found = estimate_wedge(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert found.tilt_range == estimate_wedge(lopsided[0]).tilt_range


@pytest.mark.parametrize("order", list(permutations("zyx")), ids="".join)
def test_axes_in_another_order_are_named(lopsided, order):
    halves = [half.permute(["zyx".index(axis) for axis in order]) for half in lopsided]
    estimate = estimate_wedge(*halves)
    # Where the axes that were y, the tilt axis, and z, the beam, are now; the sign of tilts stays.
    assert_found(estimate, "zyx"[order.index("y")], "zyx"[order.index("z")], -60, 40)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_mirror_across_the_tilt_axis_turns_the_sign(lopsided, axis):
    assert_found(estimate_wedge(*(half.flip(axis) for half in lopsided)), "y", "z", -40, 60)


def test_a_mirror_along_the_tilt_axis_does_not(lopsided):
    assert_found(estimate_wedge(*(half.flip(1) for half in lopsided)), "y", "z", -60, 40)


def box_blurred(volume, *widths):
    return F.avg_pool3d(volume[None, None], widths, 1, [n // 2 for n in widths])[0, 0]


@pytest.mark.parametrize("widths", [(3, 1, 1), (1, 5, 1), (3, 3, 3)])
def test_filters_do_not_hide_a_wedge(lopsided, widths):
    assert_found(estimate_wedge(*(box_blurred(half, *widths) for half in lopsided)), "y", "z", -60, 40, within=6)


def test_eight_bits_do_not_hide_a_wedge(lopsided):
    halves = [(20 * half / half.std()).round().clamp(-128, 127) for half in lopsided]
    assert_found(estimate_wedge(*halves), "y", "z", -60, 40)


def test_a_steep_background_does_not_hide_a_wedge(lopsided):
    halves = [half / half.std() for half in lopsided]
    halves = [half + torch.linspace(0, 100, half.shape[0])[:, None, None] + 1000 for half in halves]
    assert_found(estimate_wedge(*halves), "y", "z", -60, 40)


def test_an_intensity_scale_does_not_matter(lopsided):
    scaled = estimate_wedge(*(1e-6 * half for half in lopsided))
    assert scaled.tilt_range == pytest.approx(estimate_wedge(*lopsided).tilt_range, abs=0.5)


# What is not -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32, 32), (24, 64, 48)])
def test_a_volume_without_a_wedge_has_none(shape):
    for volume in (simulated(shape).truth, torch.randn(shape, generator=torch.Generator().manual_seed(0))):
        estimate = estimate_wedge(volume)
        assert estimate.tilt_axis is estimate.beam_axis is estimate.tilt_range is None
        assert estimate.reason == "no sector of the spectrum is emptier than the rest"
        assert estimate.explained < 0.3


def smoothed(volume, z, y, x):
    """Gaussian low-pass filters of their own along each axis: emptier around an axis, but in no sector."""
    shape = volume.shape
    exponent = (torch.fft.fftfreq(shape[0])[:, None, None] * z) ** 2 + (torch.fft.fftfreq(shape[1])[:, None] * y) ** 2
    exponent = exponent + (torch.fft.rfftfreq(shape[2]) * x) ** 2
    return torch.fft.irfftn(torch.fft.rfftn(volume) * torch.exp(-exponent), s=shape)


@pytest.mark.parametrize("widths", [(5, 0, 0), (5, 2, 1), (8, 3, 0), (0, 8, 3), (20, 10, 0), (3, 2, 0)])
@pytest.mark.parametrize("kind", ["noise", "specimen"])
def test_resolution_that_differs_between_the_axes_is_no_wedge(specimen, kind, widths):
    noise = torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(0))
    volume = noise if kind == "noise" else specimen
    assert estimate_wedge(smoothed(volume, *widths)).reason


def test_a_volume_interpolated_along_two_axes_has_no_wedge():
    noise = torch.randn(1, 1, 32, 48, 64, generator=torch.Generator().manual_seed(0))
    assert estimate_wedge(F.interpolate(noise, size=(64, 64, 64), mode="trilinear")[0, 0]).reason


def test_a_filled_wedge_is_not_seen(lopsided):
    noise = [torch.randn(half.shape, generator=torch.Generator().manual_seed(3)) for half in lopsided]
    filled = [half + 0.8 * half.std() * more for half, more in zip(lopsided, noise, strict=True)]
    assert estimate_wedge(*filled).tilt_axis is None


def test_a_small_volume_is_not_judged():
    assert "fewer than 24 voxels" in estimate_wedge(torch.randn(23, 64, 64)).reason


def filtered(volume, low, high, low_pass=None):
    return MissingWedgeOperator(volume.shape, (low, high), support="box", low_pass=low_pass).A(volume[None, None])[0, 0]


def test_the_rounding_beyond_a_low_pass_filter_does_not_hide_a_wedge(lopsided):
    halves = [filtered(half, -89, 90, low_pass=0.3) for half in lopsided]
    assert_found(estimate_wedge(*halves), "y", "z", -60, 40, within=6)


@pytest.mark.parametrize("low_pass", [0.2, 0.1])
def test_frequencies_too_low_to_resolve_a_wedge_are_not_judged(lopsided, low_pass):
    halves = [filtered(half, -89, 90, low_pass=low_pass) for half in lopsided]
    assert "do not resolve a wedge" in estimate_wedge(*halves).reason


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_volume_is_not_judged(value):
    assert estimate_wedge(torch.full((32, 32, 32), value)).reason


def test_less_than_fifty_degrees_are_no_tilt_range():
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    assert "less than 50 degrees" in estimate_wedge(filtered(noise, -20, 20)).reason
    assert_found(estimate_wedge(filtered(noise, -30, 30)), "y", "z", -30, 30)


def test_a_sector_that_was_emptied_to_nothing_counts_as_a_thousandth():
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    assert 100 < estimate_wedge(filtered(noise, -60, 60)).contrast < 1000


@pytest.mark.parametrize("shapes", [[(32, 32)], [(32, 32, 32), (32, 32, 31)]])
def test_anything_but_volumes_of_one_shape_is_refused(shapes):
    with pytest.raises(ValueError, match="of one shape are needed"):
        estimate_wedge(*(torch.zeros(shape) for shape in shapes))


# What is declared ------------------------------------------------------------------------------------

FOUND = WedgeEstimate("y", "z", (-61.0, 41.0), contrast=200.0, explained=0.8)


@pytest.mark.parametrize(
    ("changes", "declared", "kind", "message"),
    [
        ({}, (-60, 40), "agrees", r"from -61 to 41 degrees about y, declared are -60 to 40"),
        ({}, (-54, 48), "agrees", ""),
        ({}, (-40, 60), "sign", r"the opposite sign.*pass `tilts='-60,40'`"),
        ({}, (-60, 60), "range", r"declared are -60 to 60.*`tilts='-61,41'`"),
        ({}, (-60, 50), "range", ""),
        ({}, (-50, 40), "range", ""),
        ({"tilt_axis": "x"}, (-60, 40), "axes", r"file looks rotated.*around kz .*pass `tilt_axis='x'`$"),
        ({"tilt_axis": "z", "beam_axis": "y"}, (-60, 40), "axes", r"around ky .*about x .*rotx.*`tilt_axis='y'`"),
        ({"tilt_axis": "x", "beam_axis": "y"}, (-60, 40), "axes", r"around ky .*about x .*rotx.*`tilt_axis='x'`"),
        ({"beam_axis": "x"}, (-60, 40), "axes", r"around kx .*about y .*`tilt_axis='y'`"),
        ({"tilt_axis": "z", "beam_axis": "x"}, (-60, 40), "axes", r"around kx .*about y .*`tilt_axis='x'`"),
        (
            {"tilt_axis": None, "tilt_range": None, "reason": "too small"},
            (-60, 40),
            "unclear",
            "does not show.*too small",
        ),
    ],
)
def test_a_declared_geometry_is_judged_with_its_remedy(changes, declared, kind, message):
    verdict = judge_geometry(dataclasses.replace(FOUND, **changes), declared)
    assert verdict.kind == kind
    text = f"{verdict.message}: {verdict.remedy}"
    assert re.search(message, text), text
    assert verdict.is_wrong == (kind in ("axes", "sign", "range"))


def test_what_the_message_about_axes_says_mends_them(lopsided):
    """A file with sections along y, as IMOD's tilt writes it, turned by 90 degrees about x."""
    sections = [half.permute(1, 0, 2) for half in lopsided]
    verdict = judge_geometry(estimate_wedge(*sections), (-60, 40))
    assert (verdict.kind, "about x" in verdict.remedy, "`tilt_axis='y'`" in verdict.remedy) == ("axes", True, True)
    turned = [torch.rot90(half, 1, (0, 1)) for half in sections]
    assert judge_geometry(estimate_wedge(*turned), (-60, 40)).kind in ("agrees", "sign")


@pytest.mark.parametrize(
    ("found", "declared", "kind"),
    [
        # Both within the tolerance: which of the two it is then decides.
        ((-52.0, 59.8), (-60, 52), "sign"),
        ((-52.0, 59.8), (-52, 60), "agrees"),
        # As far off as a right one is found at most.
        ((-56.0, 56.0), (-60, 52), "agrees"),
        ((-58.0, 62.0), (-60, 60), "agrees"),
    ],
)
def test_a_wrong_sign_is_told_from_a_range_a_little_off_centre(found, declared, kind):
    verdict = judge_geometry(dataclasses.replace(FOUND, tilt_range=found), declared)
    assert verdict.kind == kind


def test_the_axis_is_that_of_the_geometry():
    declared = TiltGeometry.from_range(-60, 40, "x")
    assert judge_geometry(FOUND, declared).kind == "axes"
    assert judge_geometry(dataclasses.replace(FOUND, tilt_axis="x"), declared).kind == "agrees"


def test_a_union_of_tilt_series_is_not_judged():
    declared = TiltGeometry.from_range(-60, 40) | TiltGeometry.from_range(-60, 60, "x")
    verdict = judge_geometry(FOUND, declared)
    assert (verdict.kind, "several tilt series" in verdict.message) == ("unclear", True)


def test_the_tolerance_can_be_chosen():
    assert judge_geometry(FOUND, (-60, 50), tolerance=10).kind == "agrees"
    assert judge_geometry(FOUND, (-60, 43), tolerance=1).kind == "range"


def test_the_profile_is_full_between_the_tilts_and_empty_beyond(lopsided):
    estimate = estimate_wedge(*lopsided)
    tilt = np.array(estimate.angle)
    tilt = np.where(tilt > 90, tilt - 180, tilt)
    inside, beyond = (tilt > -55) & (tilt < 35), (tilt < -68) | (tilt > 48)
    power = np.array(estimate.power)
    assert np.all(np.diff(estimate.angle) > 0)
    assert power[inside].min() > 0.4
    assert power[beyond].max() < 0.1


def test_the_profile_is_drawn_with_both_ranges(lopsided, tmp_path):
    path = draw_wedge(tmp_path / "wedge.png", estimate_wedge(*lopsided), TiltGeometry.from_range(-40, 60))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="cannot be drawn: too small"):
        draw_wedge(tmp_path / "none.png", WedgeEstimate(reason="too small"), TiltGeometry.from_range(-40, 60))


# Real and realistic tomograms ------------------------------------------------------------------------


SETS = ["cryo_tiny_mid", "cryo_dose_mid", "real_mt13pf"]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=real_data) for name in SETS])
def tomogram(request):
    folder = DATA / request.param
    # A part is enough, and quicker.
    halves = [np.array(read_volume(folder / f"{name}.mrc")[:, :96, :96], np.float32) for name in ("even", "odd")]
    return halves, TiltGeometry(read_tilts(folder / f"{request.param}.tlt"))


def test_a_correct_declaration_raises_no_alarm(tomogram):
    halves, geometry = tomogram
    assert judge_geometry(estimate_wedge(*halves), geometry).kind == "agrees"


@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)], ids=str)
def test_swapped_axes_raise_one(tomogram, order):
    halves, geometry = tomogram
    verdict = judge_geometry(estimate_wedge(*(half.transpose(order) for half in halves)), geometry)
    assert verdict.kind == "axes"
    beam = "zyx"[order.index(0)]
    assert f"around k{beam} " in verdict.message


def test_a_part_taken_out_of_the_range_raises_the_alarm_until_its_sign_is_right(tomogram):
    halves, _ = tomogram
    # Empty the directions beyond 40 degrees, as if they had not been recorded.
    lopsided = [filtered(torch.from_numpy(half), -80, 40) for half in halves]
    estimate = estimate_wedge(*lopsided)
    low, high = estimate.tilt_range
    assert (low, high) == pytest.approx((-61.5, 40), abs=6)
    assert judge_geometry(estimate, (-60, 60)).kind == "range"
    assert judge_geometry(estimate, (-40, 60)).kind == "sign"
    assert judge_geometry(estimate, (-60, 40)).kind == "agrees"
    mirrored = estimate_wedge(*(half.flip(0) for half in lopsided))
    assert judge_geometry(mirrored, (-60, 40)).kind == "sign"


@real_data
@pytest.mark.parametrize("name", ["cryo_tiny_mid/gt.mrc", "cryo_dose_mid/gt.mrc", "files/EMD-3001.map"])
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
def test_volumes_without_a_wedge_raise_none(name):
    assert judge_geometry(estimate_wedge(read_volume(DATA / name)), (-60, 60)).kind == "unclear"
