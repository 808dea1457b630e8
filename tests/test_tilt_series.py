"""Tilt series: reading, order, preparation and splits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from making import DATA, real_data

from equitomo import TiltSeries, TomogramPair, register, split_by_scan, split_by_tilt, split_into_pairs, write_volume
from equitomo.cli import main
from equitomo.datasets import paired, read_geometry, registered_scans
from equitomo.datasets.acquisition import acquisition_order, schemes
from equitomo.datasets.registration import shifted
from equitomo.datasets.splits import scan_shifts
from equitomo.datasets.views import binned, dose_filtered, extended, filled, normalized, transformed
from equitomo.io import SeriesMetadata
from equitomo.physics import TiltSeriesPhysics
from equitomo.solvers import filtered_backprojection

ANGLES = tuple(range(-60, 61, 6))


def smooth_image(rows: int = 40, columns: int = 48, *, shift: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """Return three blobs, moved by rows and columns."""
    y = torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2 - shift[0]
    x = torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2 - shift[1]
    blobs = ((0, 0, 1.0), (6, -4, 0.7), (-5, 7, 0.5))
    return sum(h * torch.exp(-((y - r) ** 2 + (x - c) ** 2) / 18) for r, c, h in blobs)


def rocking(angles=ANGLES, side: int = 64) -> torch.Tensor:
    """Return projections of points in three dimensions, which move with the tilt."""
    tilt = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))[:, None, None]
    y = torch.arange(side)[:, None] - (side - 1) / 2
    x = torch.arange(side) - (side - 1) / 2
    points = ((12.0, -10.0, 5.0), (-9.0, 6.0, -14.0), (3.0, 14.0, 10.0), (-15.0, -3.0, 2.0))
    total = torch.zeros(len(angles), side, side, dtype=torch.float64)
    for pz, py, px in points:
        t = px * torch.cos(tilt) + pz * torch.sin(tilt)
        total += torch.exp(-((y - py) ** 2 + (x - t) ** 2) / 12)
    return total.float()


def write_stack(path, images, voxel_size=5.0):
    return write_volume(path, np.asarray(images, np.float32), voxel_size=voxel_size)


# Order


def test_shuffled_images_with_their_angles_give_the_sorted_series(generator):
    images = rocking()
    shuffle = torch.randperm(len(ANGLES), generator=generator).tolist()
    series = TiltSeries(
        images[shuffle],
        [ANGLES[n] for n in shuffle],
        dose=[float(n) for n in shuffle],
        acquisition_order=range(len(shuffle)),
    )
    assert series.angles == ANGLES
    torch.testing.assert_close(series.projections, images, atol=1e-6, rtol=0)
    assert series.dose == tuple(map(float, range(len(ANGLES))))
    assert [shuffle[n] for n in series.acquisition_order] == list(range(len(ANGLES)))


def test_a_shuffled_file_is_read_as_the_sorted_one(tmp_path, generator):
    images = rocking()
    shuffle = torch.randperm(len(ANGLES), generator=generator).tolist()
    stack = write_stack(tmp_path / "shuffled.mrc", images[shuffle])
    (tmp_path / "shuffled.tlt").write_text("\n".join(str(ANGLES[n]) for n in shuffle))
    series = TiltSeries.read(stack, tilts=tmp_path / "shuffled.tlt")
    torch.testing.assert_close(series.projections, images, atol=1e-6, rtol=0)
    assert series.pixel_size == 5.0


def test_a_shuffled_series_gives_the_reconstruction_of_the_sorted_one(generator):
    images = rocking()
    shuffle = torch.randperm(len(ANGLES), generator=generator).tolist()
    series = [TiltSeries(images, ANGLES), TiltSeries(images[shuffle], [ANGLES[n] for n in shuffle])]
    shape = (16, 64, 64)
    physics = TiltSeriesPhysics(shape, series[0].geometry)
    assert series[1].geometry == series[0].geometry
    first, second = (filtered_backprojection(one.projections[None, None], physics) for one in series)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    unsorted = filtered_backprojection(images[shuffle][None, None], physics)
    assert float((unsorted - first).abs().max()) > 0.1 * float(first.abs().max())


@pytest.mark.parametrize("scheme", [name for name in schemes(ANGLES) if name != "ascending"])
@pytest.mark.parametrize("first_turn", ["up", "down"])
def test_images_in_the_order_of_acquisition_find_their_sorted_angles(tmp_path, scheme, first_turn):
    images, places = rocking(), list(schemes(ANGLES, first_turn)[scheme])
    stack = write_stack(tmp_path / "acquired.mrc", images[places])
    series = TiltSeries.read(stack, tilts=ANGLES, order="acquisition", first_turn=first_turn)
    torch.testing.assert_close(series.projections, images, atol=1e-6, rtol=0)
    assert series.acquisition_order == tuple(places.index(n) for n in range(len(ANGLES)))


def test_unrelated_images_have_no_order_of_acquisition(generator):
    with pytest.raises(ValueError, match="no order of acquisition makes neighbouring views clearly more alike"):
        acquisition_order(torch.randn(21, 32, 32, generator=generator), ANGLES)


# Bad input


@pytest.mark.fault(76)
def test_another_number_of_angles_than_images_is_refused(tmp_path):
    stack = write_stack(tmp_path / "series.mrc", rocking())
    with pytest.raises(
        ValueError, match=r"series\.mrc: 21 images but 3 tilt angles, expected one angle for each image"
    ):
        TiltSeries.read(stack, tilts=[-60, 0, 60])


@pytest.mark.fault(36)
def test_radians_are_refused_wherever_they_come_from():
    radians = [math.radians(angle) for angle in ANGLES]
    for make in (lambda: TiltSeries(rocking(), radians), lambda: read_geometry("-1.05,1.05")):
        with pytest.raises(ValueError, match=r"seem to be radians, expected degrees: multiply each by 57\.29578"):
            make()


@pytest.mark.fault(77)
def test_a_tomogram_is_no_series(tmp_path):
    tomogram = write_stack(tmp_path / "tomogram.mrc", rocking())
    with pytest.raises(ValueError, match=r"tomogram\.mrc: the file has no tilt angles of its own; pass `tilts`"):
        TiltSeries.read(tomogram)


@pytest.mark.fault(78)
def test_excluding_all_views_is_refused(tmp_path):
    stack = write_stack(tmp_path / "series.mrc", rocking())
    with pytest.raises(ValueError, match="`exclude` leaves 0 of 21 views; leave out fewer"):
        TiltSeries.read(stack, tilts=ANGLES, exclude=range(21))
    with pytest.raises(
        ValueError, match=r"`exclude` has \[21\], expected sections from 0 to 20; they are counted from 0"
    ):
        TiltSeries.read(stack, tilts=ANGLES, exclude=[21])


@pytest.mark.fault(79)
@pytest.mark.parametrize(("value", "message"), [(0.0, "is empty, all of its pixels are 0"), (math.nan, "NaN or infin")])
def test_a_missing_view_is_refused_until_it_is_left_out(tmp_path, value, message):
    images = rocking()
    images[4] = value
    stack = write_stack(tmp_path / "series.mrc", images)
    with pytest.raises(ValueError, match=f"the view at -36 degrees .*{message}"):
        TiltSeries.read(stack, tilts=ANGLES)
    series = TiltSeries.read(stack, tilts=ANGLES, exclude=[4])
    assert series.angles == tuple(angle for angle in ANGLES if angle != -36)
    torch.testing.assert_close(series.projections[4], images[5])


# A stack is never taken for a tomogram


@pytest.mark.fault(81)
def test_a_stack_with_one_section_for_each_tilt_is_no_tomogram_unless_it_is_said_to_be_one(tmp_path):
    halves = [write_stack(tmp_path / f"{name}.mrc", rocking() + n) for n, name in enumerate(("even", "odd"))]
    (tmp_path / "series.tlt").write_text("\n".join(map(str, ANGLES)))
    given = {"tilts": tmp_path / "series.tlt", "lazy": True}
    with pytest.raises(ValueError, match=r"even.mrc: 21 sections, 21 angles: a tilt series\? .*`is_tomogram=True`"):
        TomogramPair.read(*halves, **given)
    assert TomogramPair.read(*halves, **given, is_tomogram=True).shape == (21, 64, 64)
    assert TomogramPair.read(*halves, tilts="-60,60", lazy=True).shape == (21, 64, 64)


@real_data
@pytest.mark.fault(81)
@pytest.mark.filterwarnings("ignore:.*(HAADF|odd).mrc:equitomo.io.FileFormatWarning")
@pytest.mark.parametrize("tilts", ["HAADF.rawtlt", "-76,76"])
@pytest.mark.parametrize("command", ["check", "train", "reconstruct"])
def test_no_command_takes_a_stack_of_a_microscope_for_a_tomogram(tmp_path, capsys, command, tilts):
    stack = DATA / "etspy_needle" / "HAADF.mrc"
    other = tmp_path / "odd.mrc"
    other.write_bytes(stack.read_bytes())
    tilts = tilts if "," in tilts else str(stack.with_name(tilts))
    out = [] if command == "check" else ["--preset", "tiny"]
    arguments = [command, str(stack), str(other), f"--tilts={tilts}", "--out", str(tmp_path / "run"), *out]
    assert main(arguments) == (1 if command == "check" else 2)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "77 sections, 77 angles" in said
    assert "a tilt series?" in said
    assert "--is-tomogram" in said


# Reading


def test_detectors_that_are_not_square_keep_their_sides_and_the_axis_turns_them(tmp_path):
    images = rocking()[:, :, 8:56]
    stack = write_stack(tmp_path / "series.mrc", images)
    assert TiltSeries.read(stack, tilts=ANGLES).shape == (64, 48)
    about_x = TiltSeries.read(stack, tilts=ANGLES, tilt_axis="x", size=(40, 60))
    assert about_x.shape == (40, 60)
    torch.testing.assert_close(about_x.projections, images.mT[:, 4:44, 2:62])
    assert about_x.geometry.tilt_axis == "x"


def test_pretilt_binning_and_offset_are_applied(tmp_path):
    stack = write_stack(tmp_path / "series.mrc", rocking())
    series = TiltSeries.read(stack, tilts=ANGLES, pretilt=7.5, binning=2, tilt_axis_offset=3.0)
    assert series.angles[0] == -52.5
    assert (series.shape, series.pixel_size, series.tilt_axis_offset) == ((32, 32), 10.0, 1.5)


@real_data
@pytest.mark.filterwarnings("ignore:.*HAADF.mrc:equitomo.io.FileFormatWarning")
def test_a_series_of_fei_has_its_angles_and_pixel_size_in_its_file():
    series = TiltSeries.read(DATA / "etspy_needle" / "HAADF.mrc", tilt_axis="x")
    assert (series.n_views, series.shape, series.angles[0]) == (77, (256, 256), -76.0)
    assert series.pixel_size == pytest.approx(33.6, abs=0.01)


def test_metadata_select_order_and_align_the_images(tmp_path):
    """Images in another order, with the tilt axis 90 degrees from the columns, one shifted, and one left out."""
    images = rocking()[:, 4:52]
    turned = images.rot90(-1, (1, 2))
    stack = write_stack(tmp_path / "series.mrc", turned.roll(3, 2).flip(0))
    metadata = SeriesMetadata(
        "TS",
        tuple(map(float, ANGLES)),
        stack=stack,
        sections=tuple(range(20, -1, -1)),
        tilt_axis_angle=(90.0,) * 21,
        shifts=((-3.0, 0.0),) * 21,
        dose=tuple(map(float, range(21))),
        excluded=(3,),
    )
    series = TiltSeries.from_metadata(metadata)
    assert series.shape == (48, 64)
    assert series.angles == tuple(angle for angle in ANGLES if angle != ANGLES[3])
    assert series.dose == tuple(float(n) for n in range(21) if n != 3)
    expected = torch.cat((images[:3], images[4:]))
    inside = (slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(series.projections[inside], expected[inside], atol=1e-3, rtol=0)


@pytest.mark.fault(85)
def test_images_of_mixed_sizes_are_refused(tmp_path):
    files = [write_stack(tmp_path / f"{n}.mrc", rocking()[n : n + 1, : 64 - 8 * (n == 2)]) for n in range(3)]
    metadata = SeriesMetadata("TS", (-60.0, 0.0, 60.0), images=tuple(files))
    with pytest.raises(ValueError, match=r"2.mrc: an image of \(56, 64\) pixels .*, expected \(64, 64\)"):
        TiltSeries.from_metadata(metadata)
    assert TiltSeries.from_metadata(metadata, size=(48, 48)).shape == (48, 48)
    with pytest.raises(ValueError, match="no images of the first half"):
        TiltSeries.from_metadata(metadata, half="first")


# Preparation


def test_a_shift_and_a_turn_move_points_where_the_equation_says():
    turn = math.radians(20)
    matrix = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    transform = torch.cat((matrix, torch.tensor([[1.3], [-2.6]])), 1)[None]
    y, x = torch.arange(40.0)[:, None] - 19.5, torch.arange(48.0) - 23.5
    px, py = 6.0, 3.0
    view = torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8)[None]
    qx, qy = (matrix @ torch.tensor([px, py]) + torch.tensor([1.3, -2.6])).tolist()
    expected = torch.exp(-((x - qx) ** 2 + (y - qy) ** 2) / 8)[None]
    torch.testing.assert_close(transformed(view, transform), expected, atol=2e-3, rtol=0)


def test_what_comes_in_from_outside_has_the_value_of_the_edge():
    view = torch.arange(6.0).expand(1, 6, 6)
    moved = shifted(view, torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(moved[0, 0], torch.tensor([0.0, 0, 0, 1, 2, 3]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("method", ["fourier", "mean"])
def test_binning_keeps_the_middle_in_the_middle(method, factor):
    small = binned(smooth_image(48, 60)[None], factor, method)[0]
    y = torch.arange(48 // factor) - (48 // factor - 1) / 2
    x = torch.arange(60 // factor) - (60 // factor - 1) / 2
    large = smooth_image(48, 60)
    middle = [
        float((large.sum(axis) * (torch.arange(n) - (n - 1) / 2)).sum() / large.sum()) for axis, n in ((1, 48), (0, 60))
    ]
    found = [float((small.sum(axis) * place).sum() / small.sum()) * factor for axis, place in ((1, y), (0, x))]
    assert found == pytest.approx(middle, abs=0.02)
    assert float(small.mean()) == pytest.approx(float(large.mean()), rel=1e-3)


def test_views_of_different_brightness_come_to_one_scale():
    images = rocking() + 0.05 * torch.randn(21, 64, 64, generator=torch.Generator().manual_seed(0))
    brightness = torch.linspace(1, 3, 21)[:, None, None]
    torch.testing.assert_close(
        normalized(images * brightness + 10 * brightness, "views") / normalized(images, "views").std(),
        normalized(images, "views") / normalized(images, "views").std() * 2.0,
        atol=0.35,
        rtol=0.1,
    )


def test_the_background_of_a_dark_field_view_becomes_zero_and_amounts_are_kept():
    images = 100 * rocking()
    offset = torch.linspace(-500, 500, 21)[:, None, None]
    noise = torch.randn(21, 64, 64, generator=torch.Generator().manual_seed(0))
    result = normalized(images + offset + noise, "background")
    assert float((result - images).mean((1, 2)).abs().max()) < 1.0


def test_a_continued_view_fades_to_its_level_without_a_step():
    view = (torch.ones(1, 20, 30) * torch.linspace(1, 2, 30)).requires_grad_(False)
    wide = extended(view, 16)
    assert wide.shape == (1, 20, 62)
    torch.testing.assert_close(wide[..., 16:-16], view)
    assert float(wide.diff(dim=-1).abs().max()) < 0.15
    torch.testing.assert_close(wide[..., 0], view.mean().expand(1, 20), atol=0.01, rtol=0)


def test_the_dose_filter_weights_frequencies_as_the_equation_says():
    rows, k = 64, 8  # 8 / 64 cycles per pixel of 2.5 Å: 20 Å
    wave = torch.cos(2 * math.pi * k * torch.arange(rows) / rows).expand(1, rows, rows)
    critical = 0.245 * (k / rows / 2.5) ** -1.665 + 2.81
    filtered = dose_filtered(wave, [40.0], 2.5)
    torch.testing.assert_close(filtered, wave * math.exp(-40 / (2 * critical)), atol=1e-5, rtol=0)
    at_200 = dose_filtered(wave, [40.0], 2.5, voltage=200)
    torch.testing.assert_close(at_200, wave * math.exp(-40 / (1.6 * critical)), atol=1e-5, rtol=0)


# Registration and splits


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -1.7), (5.25, 3.0)])
def test_registration_finds_a_shift_to_a_twentieth_of_a_pixel(shift):
    generator = torch.Generator().manual_seed(0)
    fixed, moving = smooth_image(), smooth_image(shift=shift)
    noise = 0.02 * torch.randn(2, *fixed.shape, generator=generator, dtype=torch.float64)
    found = register((moving + noise[0])[None], (fixed + noise[1])[None])[0]
    assert found.tolist() == pytest.approx([-shift[0], -shift[1]], abs=0.05)


def test_scans_are_moved_to_their_mean():
    views = torch.stack([smooth_image(shift=(0.0, s)) for s in (0.0, 0.0, 0.9, -0.6, 0.9)])
    series = TiltSeries(views, [0, 30, 0, 30, 0])
    moved = registered_scans(series)
    assert float(scan_shifts(moved).abs().max()) < 0.05
    expected = torch.stack([smooth_image(shift=(0.0, s)) for s in (0.6, 0.6, 0.6, -0.3, -0.3)]).float()
    torch.testing.assert_close(moved.projections, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("n", [20, 21])
def test_a_split_by_tilt_keeps_every_view_once(n):
    series = TiltSeries(rocking()[:n], ANGLES[:n])
    first, second = split_by_tilt(series)
    assert first.angles == ANGLES[:n:2]
    assert second.angles == ANGLES[1:n:2]
    torch.testing.assert_close(first.projections, series.projections[::2])
    torch.testing.assert_close(second.projections, series.projections[1::2])


def test_a_split_by_scan_deals_every_scan_to_one_half():
    """Three scans, two, one, three and one: each half gets one single tilt, and one third scan."""
    angles = [-40, -40, -40, -20, -20, 0, 20, 20, 20, 40]
    marks = torch.tensor([2.0**n for n in range(10)])[:, None, None]
    series = TiltSeries(marks + torch.zeros(10, 4, 4).index_fill(2, torch.tensor(0), 0.5), angles)
    halves = split_by_scan(series)
    assert [half.angles for half in halves] == [(-40.0, -20.0, 0.0, 20.0), (-40.0, -20.0, 20.0, 40.0)]
    counts = [[2, 1, 1, 1], [1, 1, 2, 1]]
    means = torch.stack([half.projections[:, 0, -1] for half in halves])
    assert float((means * torch.tensor(counts)).sum()) == 2**10 - 1


def test_a_split_by_scan_needs_scans():
    with pytest.raises(ValueError, match="0 of 21 tilts have a second scan, expected at least half of them"):
        split_by_scan(TiltSeries(rocking(), ANGLES))


@pytest.mark.fault(80)
def test_halves_that_are_not_halves_of_one_series_are_refused(generator):
    even, odd = (TiltSeries(rocking() + torch.randn(21, 64, 64, generator=generator), ANGLES) for _ in range(2))
    assert paired(even, odd) == (even, odd)
    with pytest.raises(ValueError, match="the views at -60 degrees are equal, so the halves are not independent"):
        paired(even, even.with_projections(even.projections * 2))
    with pytest.raises(ValueError, match=r"images of \(64, 64\) about y and \(64, 60\) about y, expected"):
        paired(even, odd.with_projections(odd.projections[..., :60]))
    with pytest.raises(ValueError, match="no tilt is in both"):
        paired(even, odd.with_projections(odd.projections, angles=[angle + 1 for angle in ANGLES]))


# Two pairs of halves


def marked(angles, first: int = 0) -> TiltSeries:
    """Return views of which each has a power of two as its last column, so that sums tell which views they are of."""
    marks = torch.tensor([2.0 ** (first + n) for n in range(len(angles))])[:, None, None]
    return TiltSeries(marks + torch.zeros(len(angles), 4, 4).index_fill(2, torch.tensor(0), 0.5), angles)


@pytest.mark.parametrize("n", [8, 9, 10, 11, 21])
def test_two_pairs_of_a_series_share_the_tilts_evenly(n):
    pairs = split_into_pairs(marked(ANGLES[:n]))
    halves = [half for pair in pairs for half in pair]
    assert [half.angles for half in halves] == [ANGLES[start:n:4] for start in (0, 2, 1, 3)]
    assert max(half.n_views for half in halves) - min(half.n_views for half in halves) <= 1
    assert sum(float(half.projections[:, 0, -1].sum()) for half in halves) == 2**n - 1


def test_two_pairs_of_frames_have_the_same_tilts_in_both_halves_and_others_in_the_other_pair(generator):
    even, odd = (TiltSeries(rocking() + torch.randn(21, 64, 64, generator=generator), ANGLES) for _ in range(2))
    for start, (first, second) in enumerate(split_into_pairs(even, odd)):
        assert first.angles == second.angles == ANGLES[start::2]
        torch.testing.assert_close(first.projections, even.projections[start::2])
        torch.testing.assert_close(second.projections, odd.projections[start::2])


def test_pairs_of_frames_share_no_tilt_where_one_half_lacks_a_view(generator):
    even, odd = (TiltSeries(rocking() + torch.randn(21, 64, 64, generator=generator), ANGLES) for _ in range(2))
    pairs = split_into_pairs(even, odd.select([n for n in range(21) if n != 6]))
    assert [half.angles for half in pairs[0]] == [ANGLES[::2], tuple(a for a in ANGLES[::2] if a != ANGLES[6])]
    assert [half.angles for half in pairs[1]] == [ANGLES[1::2]] * 2


def test_two_pairs_of_scans_have_all_scans_of_their_own_tilts(generator):
    angles = [angle + jitter for angle in (-60, -20, 20, 60) for jitter in (0.0, 0.1)]
    images = torch.stack([smooth_image() for _ in angles]) + 0.01 * torch.randn(8, 40, 48, generator=generator)
    pairs = split_into_pairs(TiltSeries(images, angles))
    found = [[[round(angle, 1) for angle in half.angles] for half in pair] for pair in pairs]
    assert found == [[[-60, 20], [-59.9, 20.1]], [[-20, 60], [-19.9, 60.1]]]


def test_scans_of_every_second_tilt_do_not_make_two_pairs_of_scans():
    """The first pair has two scans of each tilt and the second one has none."""
    angles = [angle for n, angle in enumerate(ANGLES[:10]) for _ in range(2 - n % 2)]
    pairs = split_into_pairs(marked(angles))
    halves = [half for pair in pairs for half in pair]
    assert [half.n_views for half in halves] == [6, 4, 3, 2]
    assert sum(float(half.projections[:, 0, -1].sum()) for half in halves) == 2**15 - 1


@pytest.mark.fault(87)
def test_two_pairs_need_enough_tilts():
    with pytest.raises(ValueError, match="7 different tilts make no two pairs of halves, expected at least 8, or 4"):
        split_into_pairs(marked(ANGLES[:7]))
    with pytest.raises(ValueError, match="3 different tilts make no two pairs of halves, expected at least 4"):
        split_into_pairs(marked(ANGLES[:3]), marked(ANGLES[:3], 3))
    with pytest.raises(ValueError, match="0 of 10 tilts have a second scan"):
        split_into_pairs(marked(ANGLES[:20]), by="scan")


@real_data
@pytest.mark.filterwarnings("ignore:.*all_scans.mrc:equitomo.io.FileFormatWarning")
def test_the_scans_of_a_real_series_become_halves_that_lie_on_each_other():
    folder = DATA / "liquid_n6"
    series = TiltSeries.read(folder / "all_scans.mrc", tilts=folder / "all_scans.tlt", size=(128, 128))
    before = scan_shifts(series)
    moved = registered_scans(series)
    assert float(scan_shifts(moved).square().mean().sqrt()) < 0.5 * float(before.square().mean().sqrt())
    first, second = split_by_scan(moved)
    # At 12 degrees there is a single scan.
    assert (first.n_views, second.n_views) == (46, 45)
    assert set(first.angles) - set(second.angles) == {12.0}


# Empty borders


def test_empty_borders_are_filled_from_beside_them(generator):
    inside = 9 + torch.randn(2, 40, 40, generator=generator)
    views = torch.nn.functional.pad(inside, (5, 0, 0, 3))
    whole = filled(views)
    assert float(whole.min()) > 3
    torch.testing.assert_close(whole[:, :-5, 7:], views[:, :-5, 7:], rtol=0, atol=0)
    torch.testing.assert_close(whole[:, :-5, 0], views[:, :-5, 7], rtol=0, atol=0)


def test_a_dark_background_is_no_border(generator):
    views = smooth_image(64, 64)[None].float() * 100
    torch.testing.assert_close(filled(views), views, rtol=0, atol=0)
    noisy = views + torch.randn(1, 64, 64, generator=generator)
    torch.testing.assert_close(filled(noisy), noisy, rtol=0, atol=0)
