"""Pictures: that they are drawn, and that they show what they say."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from making import noisy_halves
from matplotlib.figure import Figure
from matplotlib.image import imread

from equitomo import MissingWedgeOperator, TiltGeometry, fourier_shell_correlation, report
from equitomo.fourier import cosine_taper

RANGES = [(-60.0, 60.0), (-30.0, 60.0), (-65.0, 20.0)]


def assert_picture(path):
    """The file is a picture with something in it, and nothing else was left beside it."""
    pixels = imread(path)
    assert pixels.ndim == 3
    assert pixels[..., :3].std() > 0.01
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("geometry", [None, TiltGeometry([-50, 40], "y"), TiltGeometry([-50, 40], "x")])
@pytest.mark.parametrize("voxel_size", [None, (10.0, 12.0, 14.0)])
def test_slices_and_spectra_of_volumes_are_drawn(tmp_path, geometry, voxel_size):
    first, second = noisy_halves((15, 20, 26))
    path = tmp_path / "new folder" / "slices.png"
    drawn = report.draw_slices(path, {"one": first, "other": second}, geometry=geometry, voxel_size=voxel_size)
    assert drawn == path
    assert_picture(path)


class Watched:
    """A volume that knows how many voxels were asked for at once."""

    def __init__(self, volume):
        self.volume, self.shape, self.most = volume, tuple(volume.shape), 0

    def __getitem__(self, index):
        cut = self.volume[index]
        self.most = max(self.most, cut.numel())
        return cut.numpy()


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
def test_no_more_than_a_few_planes_of_a_volume_are_looked_at_together(tmp_path, tilt_axis):
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


@pytest.mark.parametrize("voxel_size", [None, 13.5])
def test_correlation_curves_are_drawn(tmp_path, voxel_size):
    curves = {"whole": fourier_shell_correlation(*noisy_halves(), voxel_size=voxel_size)}
    assert_picture(report.draw_correlations(tmp_path / "fsc.png", curves, voxel_size=voxel_size))


def test_the_running_mean_looks_back_over_its_window():
    values = np.array([4.0, 2.0, 6.0, 8.0])
    np.testing.assert_allclose(report._running_mean(values, 2), [4.0, 3.0, 4.0, 7.0])


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


def test_pyplot_and_its_global_figures_are_not_used(tmp_path):
    code = (
        "import sys, torch; from equitomo import report; "
        f"report.draw_preview({str(tmp_path / 'a.png')!r}, torch.randn(8, 8, 8), torch.randn(8, 8, 8), 'a'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The spectrum ----------------------------------------------------------------------------------------


def noise_in(geometry, shape):
    """White noise in the measured part of Fourier space, nothing in the missing wedge."""
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    return MissingWedgeOperator(shape, geometry, support="box").A(noise)[0, 0]


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
@pytest.mark.parametrize("tilt_range", RANGES)
def test_the_spectrum_is_empty_where_the_tilts_do_not_reach(tilt_range, tilt_axis):
    geometry = TiltGeometry.from_range(*tilt_range, tilt_axis)
    spectrum = report.log_power(noise_in(geometry, (40, 32, 32) if tilt_axis == "y" else (40, 32, 36)), geometry)
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
    spectrum = report.log_power(volume, TiltGeometry([-50, 40], tilt_axis))
    torch.testing.assert_close(spectrum.double(), torch.fft.fftshift(power).log10(), rtol=0, atol=1e-3)


def test_the_spectrum_of_a_long_volume_is_that_of_the_planes_in_its_middle(monkeypatch):
    volume = noisy_halves((18, 40, 22))[0]
    monkeypatch.setattr(report, "_MOST_PLANES", 20)
    assert torch.equal(report.log_power(volume), report.log_power(volume[:, 10:30]))


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
@pytest.mark.parametrize("tilt_range", RANGES)
def test_the_lines_run_along_the_edges_of_the_empty_wedge(tilt_range, tilt_axis):
    geometry = TiltGeometry.from_range(*tilt_range, tilt_axis)
    spectrum = report.log_power(noise_in(geometry, (40, 40, 40)), geometry)
    axes = Figure().subplots()
    report._show_spectrum(axes, spectrum, geometry, (0.0, 1.0))
    left, right, bottom, top = axes.images[0].get_extent()

    def seen(direction):
        """Mean of the picture along a direction from its middle, in the coordinates of its axes."""
        x, y = 0.3 * np.array(direction)
        columns = [int((sign * x - left) / (right - left) * 40) for sign in (-1, 1)]
        rows = [int((sign * y - top) / (bottom - top) * 40) for sign in (-1, 1)]
        return spectrum[rows, columns].mean().item()

    for line, inwards in zip(axes.lines, (1, -1), strict=True):
        (x0, y0), (x1, y1) = line.get_xydata()
        angle = np.arctan2(y1 - y0, x1 - x0)
        inside, outside = (angle + sign * inwards * np.radians(14) for sign in (1, -1))
        assert seen((np.cos(inside), np.sin(inside))) > seen((np.cos(outside), np.sin(outside))) + 1


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
