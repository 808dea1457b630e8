"""Tests that pictures are drawn and show what they claim."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from making import noisy_halves
from matplotlib.figure import Figure
from matplotlib.image import imread

from equitomo import MissingWedgeOperator, TiltGeometry, estimate_wedge, fourier_shell_correlation, report
from equitomo.fourier import cosine_taper
from equitomo.geometry import TiltAxes
from equitomo.io import slabs_of

RANGES = [(-60.0, 60.0), (-30.0, 60.0), (-65.0, 20.0)]
DUAL_AXIS = TiltGeometry([-50, 40]) | TiltGeometry([-60, 60], "x") | TiltGeometry([-20, 45], "x")


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Return the list of the figures that are saved."""
    saved, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def assert_picture(path):
    """Assert that the file is a picture with some content, and the only file in its folder."""
    pixels = imread(path)
    assert pixels.ndim == 3
    assert pixels[..., :3].std() > 0.01
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("geometry", [None, TiltGeometry([-50, 40], "y"), TiltGeometry([-50, 40], "x"), DUAL_AXIS])
@pytest.mark.parametrize("voxel_size", [None, (10.0, 12.0, 14.0)])
def test_slices_and_spectra_of_volumes_are_drawn(tmp_path, geometry, voxel_size):
    first, second = noisy_halves((15, 20, 26))
    path = tmp_path / "new folder" / "slices.png"
    drawn = report.draw_slices(path, {"one": first, "other": second}, geometry=geometry, voxel_size=voxel_size)
    assert drawn == path
    assert_picture(path)


def test_a_dual_axis_geometry_has_a_spectrum_with_all_lines_for_each_tilt_axis(tmp_path, figures):
    report.draw_slices(tmp_path / "slices.png", {"one": noisy_halves((15, 20, 26))[0]}, geometry=DUAL_AXIS)
    about_y, about_x = figures[0].axes[3:]
    assert (about_y.images[0].get_array().shape, len(about_y.lines)) == ((15, 26), 2)
    assert (about_x.images[0].get_array().shape, len(about_x.lines)) == ((15, 20), 4)
    assert "kx across" in about_y.get_title() and "ky across" in about_x.get_title()


class Watched:
    """Voxels that remember how many of them were read at once."""

    dtype = np.dtype(np.float32)

    def __init__(self, volume):
        self.volume, self.shape, self.most = volume, tuple(volume.shape), 0

    def __getitem__(self, index):
        cut = self.volume[index]
        self.most = max(self.most, cut.numel())
        return cut.numpy()

    def slabs(self, n_bytes=1 << 22):
        return slabs_of(self, n_bytes)


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
def test_no_more_than_a_few_planes_of_a_volume_are_read_at_once(tmp_path, tilt_axis):
    volume = Watched(noisy_halves((20, 40, 40))[0])
    report.draw_slices(tmp_path / "slices.png", {"one": volume}, geometry=TiltGeometry([-50, 40], tilt_axis))
    assert volume.most == 8 * 20 * 40
    assert_picture(tmp_path / "slices.png")


def test_a_preview_is_drawn(tmp_path):
    assert_picture(report.draw_preview(tmp_path / "a.png", *noisy_halves(), "step 3"))


HEAD = "step,data,equivariance,learning_rate,skipped\n"


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param("".join(f"{step},{1 / step},{2 / step},0.001,0\n" for step in range(1, 200)), id="many"),
        pytest.param("1,0.5,0.25,0.001,0\n", id="one"),
        pytest.param("1,0.5,nan,0.001,1\n2,nan,0.5,0.001,1\n", id="not finite"),
        pytest.param("1,0.0,0.0,0.001,0\n2,0.0,0.0,0.001,0\n", id="zero"),
        pytest.param("1,0.0,0.5,0.001,0\n2,0.0,0.2,0.001,0\n", id="no data loss"),
        pytest.param("", id="none"),
    ],
)
def test_the_losses_of_a_run_are_drawn(tmp_path, rows):
    (tmp_path / "losses.csv").write_text(HEAD + rows)
    assert_picture(report.draw_losses(tmp_path / "drawn" / "losses.png", tmp_path / "losses.csv"))


def drawn(tmp_path, figures, table):
    """Return the axes with the losses of a table."""
    (tmp_path / "losses.csv").write_text(table)
    report.draw_losses(tmp_path / "losses.png", tmp_path / "losses.csv")
    return figures[-1].axes[0]


def test_every_loss_of_a_run_is_drawn_under_its_name(tmp_path, figures):
    axes = drawn(tmp_path, figures, "step,n2n,mine,unused,learning_rate,skipped\n1,0.5,3,0,0.1,0\n2,0.4,2,0,0.1,0\n")
    assert [line.get_label() for line in axes.lines[1::2]] == ["n2n", "mine"]
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [3, 2])
    assert axes.get_yscale() == "log"


def test_losses_that_may_be_negative_have_a_linear_scale(tmp_path, figures):
    axes = drawn(tmp_path, figures, "step,ssim,learning_rate,skipped\n1,-0.5,0.1,0\n2,-0.6,0.1,0\n")
    assert axes.get_yscale() == "linear"
    assert drawn(tmp_path, figures, "step,learning_rate,skipped\n").get_legend() is None


def test_the_running_mean_looks_back_over_its_window_and_skips_what_is_not_finite(tmp_path, figures):
    losses = [4.0, 2.0, float("nan"), 8.0] + [1.0] * 96
    rows = "".join(f"{step},{loss},0.1,0\n" for step, loss in enumerate(losses, 1))
    axes = drawn(tmp_path, figures, f"step,mine,learning_rate,skipped\n{rows}")
    np.testing.assert_allclose(axes.lines[1].get_ydata()[:6], [4.0, 3.0, 2.0, 8.0, 4.5, 1.0])


@pytest.mark.parametrize("voxel_size", [None, 13.5])
def test_correlation_curves_are_drawn(tmp_path, voxel_size):
    curves = {"whole": fourier_shell_correlation(*noisy_halves(), voxel_size=voxel_size)}
    assert_picture(report.draw_correlations(tmp_path / "fsc.png", curves, voxel_size=voxel_size))


def test_curves_of_less_weight_are_drawn_thin(tmp_path, figures):
    curve = fourier_shell_correlation(*noisy_halves())
    report.draw_correlations(tmp_path / "fsc.png", {"whole": curve, "along z": curve}, thin=["along z"])
    whole, along = figures[-1].axes[0].lines[:2]
    assert (whole.get_linestyle(), along.get_linestyle()) == ("-", "--")
    assert along.get_linewidth() < whole.get_linewidth()


def test_a_picture_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def fail(self, file, **kwargs):
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        report.draw_preview(tmp_path / "a.png", *noisy_halves(), "step 3")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path = report.draw_preview(tmp_path / "a.png", *noisy_halves(), "step 3")
    before = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.draw_preview(path, *noisy_halves(), "step 4")
    assert path.read_bytes() == before


@pytest.mark.slow
def test_pyplot_and_its_global_figures_are_not_used(tmp_path):
    code = (
        "import sys, torch; from equitomo import report; "
        f"report.draw_preview({str(tmp_path / 'a.png')!r}, torch.randn(8, 8, 8), torch.randn(8, 8, 8), 'a'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The spectrum ----------------------------------------------------------------------------------------


def noise_in(geometry, shape):
    """Return white noise in the measured part of Fourier space, with an empty missing wedge."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    return MissingWedgeOperator(shape, geometry, support="box").A(noise)[0, 0]


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
@pytest.mark.parametrize("tilt_range", RANGES)
def test_the_spectrum_is_empty_where_the_tilts_do_not_reach(tilt_range, tilt_axis):
    geometry = TiltGeometry.from_range(*tilt_range, tilt_axis)
    spectrum = report.log_power(noise_in(geometry, (40, 32, 36)), geometry.axes)
    kz, k_across = (torch.fft.fftshift(torch.fft.fftfreq(n)) for n in spectrum.shape)
    direction = torch.rad2deg(torch.atan2(kz[:, None], k_across[None, :]))
    low, high = tilt_range
    ring = ((kz[:, None] ** 2 + k_across[None, :] ** 2).sqrt() - 0.3).abs() < 0.12
    measured = torch.remainder(direction - low - 12, 180) < high - low - 24
    missing = torch.remainder(direction - high - 12, 180) < 180 - (high - low) - 24
    assert spectrum[ring & measured].min() > spectrum[ring & missing].max() + 1


@pytest.mark.parametrize("shape", [(18, 20, 22), (15, 20, 27)])
@pytest.mark.parametrize("tilt_axis", ["y", "x"])
def test_the_spectrum_is_the_mean_over_the_frequencies_along_the_tilt_axis(shape, tilt_axis):
    volume = noisy_halves(shape)[0].double()
    along = "zyx".index(tilt_axis)
    tapered = (volume - volume.mean()) * cosine_taper(shape)
    power = torch.fft.fftn(tapered, norm="ortho").abs().square().mean(along)
    spectrum = report.log_power(volume, TiltAxes.about(tilt_axis))
    torch.testing.assert_close(spectrum.double(), torch.fft.fftshift(power).log10(), rtol=0, atol=1e-3)


def test_the_spectrum_of_a_long_volume_is_that_of_the_planes_in_its_middle():
    volume = noisy_halves((18, 40, 22))[0]
    assert torch.equal(report.log_power(volume, n_planes=20), report.log_power(volume[:, 10:30]))


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
@pytest.mark.parametrize("tilt_range", RANGES)
def test_the_lines_run_along_the_edges_of_the_empty_wedge(tilt_range, tilt_axis, tmp_path, figures):
    geometry = TiltGeometry.from_range(*tilt_range, tilt_axis)
    report.draw_slices(tmp_path / "slices.png", {"one": noise_in(geometry, (40, 40, 40))}, geometry=geometry)
    axes = figures[0].axes[3]
    spectrum = axes.images[0].get_array()
    left, right, bottom, top = axes.images[0].get_extent()

    def seen(direction):
        """Return the mean of two pixels along a direction from the middle, in the coordinates of the axes."""
        x, y = 0.3 * np.array(direction)
        columns = [int((sign * x - left) / (right - left) * 40) for sign in (-1, 1)]
        rows = [int((sign * y - top) / (bottom - top) * 40) for sign in (-1, 1)]
        return spectrum[rows, columns].mean()

    for line, inwards in zip(axes.lines, (1, -1), strict=True):
        (x0, y0), (x1, y1) = line.get_xydata()
        angle = np.arctan2(y1 - y0, x1 - x0)
        inside, outside = (angle + sign * inwards * np.radians(14) for sign in (1, -1))
        assert seen((np.cos(inside), np.sin(inside))) > seen((np.cos(outside), np.sin(outside))) + 1


def test_the_wedge_is_drawn_with_the_outermost_tilts_of_every_part(tmp_path, figures):
    estimate = estimate_wedge(noise_in(TiltGeometry.from_range(-60, 60), (64, 64, 64)))
    report.draw_wedge(tmp_path / "wedge.png", estimate, DUAL_AXIS)
    lines = [line.get_xdata()[0] for line in figures[0].axes[0].lines[1:]]
    assert lines[:2] == pytest.approx([120, 60], abs=4)
    assert sorted(lines[2:]) == sorted(tilt % 180 for part in DUAL_AXIS.parts for tilt in part.tilt_range)


def test_the_spectrum_of_a_plane_wave_peaks_at_its_frequency():
    z, x = torch.arange(32)[:, None, None], torch.arange(32)
    volume = torch.cos(2 * torch.pi * (6 * z / 32 + 3 * x / 32)).expand(32, 20, 32)
    spectrum = report.log_power(volume)
    peaks = {tuple(place) for place in (spectrum > spectrum.max() - 0.5).nonzero().tolist()}
    assert {(22, 19), (10, 13)} <= peaks


@pytest.mark.fault(56)
def test_a_link_under_the_name_of_a_picture_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "picture.png").symlink_to("victim")
    report.draw_preview(tmp_path / "picture.png", torch.rand(8, 8, 8), torch.rand(8, 8, 8), "title")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
