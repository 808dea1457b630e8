"""What diagnose() finds in a pair, and how severe it is."""

import re

import numpy as np
import pytest
import torch
from making import DATA, noisy_halves, real_data

from equitomo import Finding, TiltGeometry, TomogramPair, diagnose, read_volume
from equitomo.simulate import simulate_halves

LOPSIDED = (-60.0, 40.0)


@pytest.fixture(scope="module")
def made():
    """Halves tilted from -60 to 40 degrees about y."""
    geometry = TiltGeometry(range(-60, 41, 4))
    return simulate_halves((32, 36, 40), geometry, snr=1.5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def halves(made):
    return made.first.clone(), made.second.clone()


def found(first, second, geometry=LOPSIDED, **settings):
    """The findings of a pair that stays where it is until it is looked at."""
    return diagnose(TomogramPair(first, second, geometry, lazy=True, **settings))


def wrong(findings):
    return [finding for finding in findings if finding.severity != "ok"]


def assert_only(findings, severity, subject, message, remedy=""):
    (finding,) = wrong(findings)
    assert (finding.severity, finding.subject) == (severity, subject), finding
    assert re.search(message, finding.message), finding.message
    assert re.search(remedy, finding.remedy), finding.remedy
    assert bool(finding.remedy) or not remedy


def test_good_halves_are_found_in_order_in_every_respect(halves):
    findings = found(*halves, voxel_size=10.0, name="tomo")
    assert not wrong(findings)
    messages = {finding.subject: finding.message for finding in findings}
    assert set(messages) == {"files", "tilts", "voxels", "scale", "halves", "wedge"}
    assert messages["files"] == "two volumes of 32 x 36 x 40 voxels (z, y, x) of 10 Å, float32"
    assert messages["tilts"] == "-60 to 40 degrees about y"
    assert re.search(r"independent and in place; they agree down to \d+\.\d Å", messages["halves"])
    assert re.search(r"filled from -\d+ to \d+ degrees about y.*\d+% of the spectrum", messages["wedge"])


def test_a_pair_in_memory_is_judged_as_one_in_files(halves, tmp_path):
    unrelated = noisy_halves(halves[0].shape)[1]
    for second in (halves[1], -halves[1], unrelated):
        for path, half in zip(("a.npy", "b.npy"), (halves[0], second), strict=True):
            np.save(tmp_path / path, half.numpy())
        mapped = [np.load(tmp_path / path, mmap_mode="r") for path in ("a.npy", "b.npy")]
        in_memory = diagnose(TomogramPair(halves[0], second, LOPSIDED))
        assert found(*mapped) == found(halves[0], second) == in_memory


def test_a_finding_is_one_line():
    finding = Finding("warning", "halves", "they are mirrored", "turn one back")
    assert str(finding) == "warning: halves: they are mirrored: turn one back"
    assert str(Finding("ok", "voxels", "finite")) == "ok: voxels: finite"


# What cannot be used ---------------------------------------------------------------------------------


@pytest.mark.fault(19)
def test_invalid_voxels_are_an_error_unless_they_are_replaced(halves):
    halves[1][3, 4, 5] = torch.nan
    message = r"the second half of tomo holds 1 voxels .*z 3, y 4, x 5.*`nan='mean'`"
    assert_only(found(*halves, name="tomo"), "error", "voxels", message)
    assert_only(found(*halves, nan="mean"), "note", "voxels", "1 voxels that are NaN.*replaced by its mean")


@pytest.mark.fault(20)
def test_a_constant_half_is_an_error(halves):
    assert_only(found(torch.ones_like(halves[0]), halves[1]), "error", "voxels", "first half .* is constant")


@pytest.mark.fault(24)
def test_equal_halves_are_an_error(halves):
    assert_only(found(halves[0], halves[0].clone()), "error", "halves", "not independent")


@pytest.mark.fault(46)
def test_an_empty_mask_is_an_error(halves):
    assert_only(found(*halves, mask=torch.zeros_like(halves[0])), "error", "mask", "the mask is empty")


def test_every_half_that_cannot_be_used_is_named(halves):
    halves[0][0, 0, 0], halves[1][3, 4, 5] = torch.nan, torch.inf
    (first, second) = wrong(found(*halves, name="tomo"))
    assert first.message.startswith("the first half of tomo holds 1 voxels")
    assert second.message.startswith("the second half of tomo holds 1 voxels")


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 3, 4), (8, 8, 8), (64, 5, 40)])
def test_small_and_thin_volumes_are_judged_without_an_error(shape):
    findings = found(*noisy_halves(shape))
    assert not [finding for finding in findings if finding.severity == "error"]
    assert any(finding.subject == "halves" for finding in findings)


# What makes a reconstruction worse -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (lambda half: half.roll(3, 2), r"shifted against the first by \(0, 0, 3\) voxels", "align them"),
        pytest.param(
            lambda half: 2 * half.mean() - half,
            "anticorrelated: the contrast of one is inverted",
            "by -1",
            marks=pytest.mark.fault(25),
        ),
        pytest.param(
            lambda half: 10 * half, r"differ in scale, .* \+- ", "bring the second", marks=pytest.mark.fault(25)
        ),
    ],
)
def test_halves_that_do_not_fit_each_other_are_a_warning(halves, change, message, remedy):
    assert_only(found(halves[0], change(halves[1])), "warning", "halves", message, remedy)


def test_a_mirrored_half_is_a_warning_and_has_the_wedge_of_the_opposite_sign(halves):
    one, other = wrong(found(halves[0], halves[1].flip(0)))
    assert (one.severity, one.subject) == ("warning", "halves")
    assert "mirrored along z " in one.message
    assert (other.severity, other.subject) == ("error", "wedge")
    assert other.message.startswith("of the second half: the tilts seem to have the opposite sign")


@pytest.mark.fault(25)
def test_another_specimen_is_a_warning(halves):
    geometry = TiltGeometry(range(-60, 41, 4))
    other = simulate_halves(halves[0].shape, geometry, snr=1.5, generator=torch.Generator().manual_seed(9)).second
    findings = found(halves[0], other * (halves[0].std() / other.std()))
    assert_only(findings, "warning", "halves", "hardly correlate .*averaging", "the same specimen")


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda half: 1.4 * half, ""),
        (lambda half: 1.6 * half, r"differ in scale, .* \+- .* and "),
        (lambda half: half + 0.4 * half.std(), ""),
        (lambda half: half - 0.6 * half.std(), "differ in their mean, "),
    ],
)
def test_a_little_difference_in_intensities_is_none(halves, change, message):
    first = halves[0] * (halves[1].std() / halves[0].std())
    findings = found(first, change(halves[1]))
    if message:
        assert_only(findings, "warning", "halves", message, "bring the second to the mean and the deviation")
    else:
        assert not wrong(findings)


# What makes a reconstruction wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "geometry", "message", "remedy"),
    [
        (lambda half: half, (-40, 60), "opposite sign", r"`tilts='-60,40'`"),
        (lambda half: half, (-60, 60), "not where the tilts put it", r"`tilts='-6\d,4\d'`"),
        (lambda half: half, TiltGeometry.from_range(-60, 40, "x"), "constant along y", "`tilt_axis='y'`"),
        (lambda half: half.permute(1, 0, 2), (-60, 40), "lies around ky", r"clip rotx .*`tilt_axis='y'`"),
    ],
)
def test_a_wedge_that_is_not_the_declared_one_is_an_error(halves, change, geometry, message, remedy):
    assert_only(found(*map(change, halves), geometry), "error", "wedge", message, remedy)


def test_each_half_is_held_against_its_own_tilts(halves):
    mirrored = halves[1].flip(0)
    assert not any(f.subject == "wedge" for f in wrong(found(halves[0], mirrored, second_geometry=(-40, 60))))
    (wedge,) = (f for f in wrong(found(*halves, second_geometry=(-40, 60))) if f.subject == "wedge")
    assert wedge.message.startswith("of the second half: the tilts seem to have the opposite sign")


def test_a_single_volume_is_judged_by_its_wedge_alone(halves):
    findings = found(halves[0], None)
    assert {finding.subject for finding in findings} == {"files", "tilts", "voxels", "scale", "wedge"}
    assert not wrong(findings)
    assert_only(found(halves[0], None, (-40, 60)), "error", "wedge", "^the tilts seem to have the opposite sign")


# What may surprise -----------------------------------------------------------------------------------


@pytest.mark.fault(21)
def test_an_outlier_is_a_note_with_the_name_of_its_half(halves):
    halves[0][2, 2, 2] = 1e5 * float(halves[0].std())
    message = r"the first half of tomo holds values \d+ standard deviations from the mean \(hot pixels"
    findings = [finding for finding in found(*halves, name="tomo") if finding.subject == "voxels"]
    assert_only(findings, "note", "voxels", message)


@pytest.mark.parametrize("noise", [1e-4, 0.05])
@pytest.mark.parametrize(
    ("background", "normalization", "is_noted"), [(0, "robust", 1), (0, "scale", 0), (1, "robust", 0)]
)
def test_a_background_that_is_a_true_zero_is_a_note_that_proposes_to_keep_it(
    noise, background, normalization, is_noted
):
    generator = torch.Generator().manual_seed(0)
    specimen = torch.full((40, 40, 40), float(background))
    for z, y, x in torch.randint(0, 34, (6, 3), generator=generator):
        specimen[z : z + 6, y : y + 6, x : x + 6] += 1
    # Noise in the specimen keeps the halves apart where the background has hardly any.
    halves = specimen + 0.1 * specimen * torch.randn(2, 40, 40, 40, generator=generator)
    halves += noise * torch.randn(2, 40, 40, 40, generator=generator)
    findings = found(*halves, normalization=normalization)
    notes = [one for one in findings if (one.severity, one.subject) == ("note", "scale")]
    assert len(notes) == is_noted
    assert all("`normalization='scale'`" in note.remedy for note in notes)


@pytest.mark.fault(47)
def test_a_grey_mask_is_a_note(halves):
    assert_only(found(*halves, mask=torch.full_like(halves[0], 0.5)), "note", "mask", "mask is not binary")
    assert not wrong(found(*halves, mask=halves[0] > -1e9))


def test_voxels_that_are_no_cubes_are_a_note(halves):
    message = r"not cubes, \(20\.0, 10\.0, 10\.0\) Å"
    assert_only(found(*halves, voxel_size=(20.0, 10.0, 10.0)), "note", "files", message, "resample")


@pytest.mark.fault(29)
def test_a_wedge_that_does_not_show_is_a_note_and_so_is_a_volume_thin_along_another_axis(halves):
    generator = torch.Generator().manual_seed(7)
    noisy = [half + half.std() * torch.randn(half.shape, generator=generator) for half in halves]
    assert_only(found(*noisy), "note", "wedge", "does not show the missing wedge")
    thin = [half.permute(2, 0, 1)[:, :16, :].contiguous() for half in noisy]
    wedge, axes = wrong(found(*thin))
    assert (wedge.severity, wedge.subject) == ("note", "wedge")
    assert (axes.severity, axes.subject) == ("note", "axes")
    assert re.search("thinnest along y, .*must be along z", axes.message)
    assert "clip rotx" in axes.remedy


# Real and realistic tomograms ------------------------------------------------------------------------


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("cryo_dose_mid", "real_mt13pf")]


@real_data
@pytest.mark.parametrize("name", ["cryo_tiny_mid", *LONG])
def test_real_and_realistic_halves_are_judged_right(name):
    first, second = (torch.tensor(read_volume(DATA / name / f"{half}.mrc")[:]).float() for half in ("even", "odd"))

    def warned(second):
        return [finding.message for finding in found(first, second) if finding.subject == "halves" and wrong([finding])]

    assert warned(second) == []
    # Beside the peak of the opposite contrast there are lobes, which are those of no shift.
    (inverted,) = warned(-second)
    assert inverted.startswith("the halves are anticorrelated")
    (scaled,) = warned(10 * second)
    assert scaled.startswith("the intensities of the halves differ in scale")
    (other,) = warned(second.flip(1).transpose(1, 2).contiguous().reshape(first.shape))
    assert other.startswith(("the halves hardly correlate", "the halves are anticorrelated"))
