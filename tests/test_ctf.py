"""The contrast transfer function against its closed form, phase flipping in strips, and deconvolution."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from equitomo import ContrastTransfer, TiltGeometry, deconvolve, flip_phases
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.metrics import fourier_shell_correlation
from equitomo.physics import contrast_transfers, transfer_contrast
from equitomo.simulate import simulate_halves, simulate_specimen

TILTS = list(range(-60, 61, 6))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wavelength(voltage: float) -> float:
    """Return the relativistic wavelength in ångström, from the constants of nature."""
    energy, rest = 1.602176634e-19 * 1e3 * voltage, 9.1093837015e-31 * 299792458.0**2
    return 1e10 * 6.62607015e-34 * 299792458.0 / math.sqrt(energy * (energy + 2 * rest))


def closed_form(ctf: ContrastTransfer, ky: Tensor, kx: Tensor, added: float = 0.0) -> Tensor:
    """Return the function at spatial frequencies in 1/Å, in float64."""
    length = wavelength(ctf.voltage)
    k2, angle = ky**2 + kx**2, torch.atan2(ky, kx) - math.radians(ctf.astigmatism_angle)
    u, v = ctf.defocus_u, ctf.defocus_v
    defocus = (u + v) / 2 + (u - v) / 2 * torch.cos(2 * angle) + added
    phase = math.pi * length * defocus * k2 - math.pi / 2 * 1e7 * ctf.spherical_aberration * length**3 * k2**2
    return torch.sin(phase + math.radians(ctf.phase_shift) + math.asin(ctf.amplitude_contrast))


def grid(shape: tuple[int, int], pixel_size: float) -> tuple[Tensor, Tensor]:
    ky = torch.fft.fftfreq(shape[0], pixel_size, dtype=torch.float64)[:, None]
    return torch.broadcast_tensors(ky, torch.fft.rfftfreq(shape[1], pixel_size, dtype=torch.float64))


def first_zero(ctf: ContrastTransfer) -> float:
    """Return the frequency of the first zero in cycles per pixel."""
    curve = ctf.radial(4096)
    return 0.5 * int((curve[1:] < 0).nonzero()[0]) / 4095


def filtered(view: Tensor, transfer: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(view) * transfer, s=view.shape)


# The function ----------------------------------------------------------------------------------------

CTFS = [
    ContrastTransfer(30000, pixel_size=10.0),
    ContrastTransfer(30000, 28000, 25.0, pixel_size=4.0),
    ContrastTransfer(28000, 30000, -70.0, pixel_size=4.0),
    ContrastTransfer(-15000, voltage=200, spherical_aberration=2.0, amplitude_contrast=0.1, pixel_size=6.0),
    ContrastTransfer(5000, phase_shift=80, pixel_size=2.0),
    ContrastTransfer(0, pixel_size=2.0),
]


@pytest.mark.parametrize("ctf", CTFS)
@pytest.mark.parametrize("shape", [(64, 64), (63, 49), (40, 66)])
def test_function_of_an_image_has_its_closed_form(ctf, shape):
    ky, kx = grid(shape, ctf.pixel_size)
    wanted, image = closed_form(ctf, ky, kx), ctf.image(shape, added_defocus=300.0)
    assert image.shape == (shape[0], shape[1] // 2 + 1) and image.dtype == torch.float32
    # The phase reaches 40 at Nyquist, which float32 holds to 1e-5; torch-ctf's direction of the lowest frequencies is
    # not exact.
    torch.testing.assert_close(image.double(), closed_form(ctf, ky, kx, 300.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(ctf.image(shape).double(), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("ctf", CTFS)
def test_radial_function_has_its_closed_form_for_the_mean_defocus(ctf):
    round_one = ContrastTransfer(
        ctf.defocus, None, 0.0, ctf.phase_shift, ctf.voltage, ctf.spherical_aberration, ctf.amplitude_contrast,
        pixel_size=ctf.pixel_size,
    )  # fmt: skip
    k = torch.linspace(0, 0.5 / ctf.pixel_size, 100, dtype=torch.float64)
    wanted = closed_form(round_one, torch.zeros_like(k), k)
    torch.testing.assert_close(ctf.radial(100).double(), wanted, atol=1e-4, rtol=0)


def test_exchanging_both_defocus_values_turns_the_axis_by_90_degrees():
    one, other = CTFS[1], ContrastTransfer(28000, 30000, 115.0, pixel_size=4.0)
    torch.testing.assert_close(one.image((32, 32)), other.image((32, 32)), atol=1e-4, rtol=0)


def test_defocus_u_lies_along_the_last_axis_at_an_angle_of_zero():
    image = ContrastTransfer(30000, 20000, 0.0, pixel_size=4.0).image((64, 64))
    along_last = ContrastTransfer(30000, pixel_size=4.0).image((64, 64))[0]
    along_first = ContrastTransfer(20000, pixel_size=4.0).image((64, 64))[:, 0]
    torch.testing.assert_close(image[0], along_last, atol=1e-3, rtol=0)
    torch.testing.assert_close(image[:, 0], along_first, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"defocus_u": 3.0}, r"must be in ångström, got a mean of 3: multiply nanometres by 10"),
        ({"defocus_u": 30000, "pixel_size": 0.0}, "`pixel_size` must be a positive number"),
        ({"defocus_u": 30000, "voltage": 300000}, "`voltage` must be from 20 to 3000 kilovolts"),
        ({"defocus_u": 30000, "spherical_aberration": 2.7e7}, "`spherical_aberration` must be from 0 to 20 mm"),
        ({"defocus_u": 30000, "amplitude_contrast": 7}, "`amplitude_contrast` must be from 0 to less than 1"),
        ({"defocus_u": 30000, "phase_shift": math.nan}, "finite numbers of degrees"),
    ],
)
def test_values_in_other_units_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ContrastTransfer(**{"pixel_size": 10.0, **settings})


def test_functions_of_a_series_are_made_from_the_values_in_files():
    ctfs = contrast_transfers(
        [(30000, 29000, 10, 0), (31000, 30000, 12, 5)], pixel_size=8, voltage=200, turned=[-84] * 2
    )
    assert [ctf.defocus for ctf in ctfs] == [29500, 30500]
    assert [ctf.astigmatism_angle for ctf in ctfs] == [-74, -72]
    assert {(ctf.voltage, ctf.spherical_aberration, ctf.pixel_size) for ctf in ctfs} == {(200, 2.7, 8)}
    with pytest.raises(ValueError, match="1 `turned` for 2 `defocus`"):
        contrast_transfers([(30000, 29000, 10, 0)] * 2, pixel_size=8, turned=[0])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_ctf", None)
    with pytest.raises(ImportError, match=r'torch-ctf: pip install "equitomo\[series\]"'):
        CTFS[0].image((8, 8))


# Strips along the tilt axis ----------------------------------------------------------------------------


def test_an_untilted_view_is_filtered_as_a_whole():
    ctf, view = CTFS[0], torch.zeros(1, 96, 96, dtype=torch.float64)
    view[0, 40:56, 40:56] = torch.randn(16, 16, generator=seeded(), dtype=torch.float64)
    seen = transfer_contrast(view, ctf, [0.0])
    wanted = filtered(view[0], ctf.image((96, 96)))
    assert seen.dtype == torch.float64
    assert (seen[0] - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("hand", [1, -1, None])
@pytest.mark.parametrize("tilt", [55.0, -55.0])
@pytest.mark.parametrize("column", [60, 128, 190])
def test_a_point_is_filtered_with_the_defocus_at_its_place(hand, tilt, column):
    """A point of the plane z = 0 lies at s = -x sin(tilt) along the beam and projects to t = x cos(tilt)."""
    ctf, view = ContrastTransfer(40000, pixel_size=6.0), torch.zeros(1, 128, 256)
    # A smooth point, as no image is sharp to the last frequency.
    y, t = torch.meshgrid(torch.arange(128) - 64.0, torch.arange(256.0) - column, indexing="ij")
    view[0] = torch.exp(-(y**2 + t**2) / 2)
    x = (column - 127.5) / math.cos(math.radians(tilt))
    depth = -x * math.sin(math.radians(tilt)) * 6.0
    seen = transfer_contrast(view, ctf, [tilt], hand=hand)[0]

    def error(added: float) -> float:
        wanted = filtered(view[0], ctf.image((128, 256), added_defocus=added))
        return float((seen - wanted).norm() / wanted.norm())

    assert error((hand or 0) * depth) < 0.01
    if abs(depth) > 100 and hand:
        assert error(-hand * depth) > 0.05


def test_flipping_makes_every_frequency_positive():
    """A series is filtered by the absolute value of its function, where its defocus changes with the tilt."""
    ctf, tilts = ContrastTransfer(40000, 38000, 30.0, pixel_size=6.0), [-50.0, 0.0, 50.0]
    views = torch.randn(3, 128, 128, generator=seeded())
    seen = transfer_contrast(views, ctf, tilts)
    power = torch.fft.rfft2(views).abs().square().sum()
    for series, low, high in ((seen, -0.2, 0.2), (flip_phases(seen, ctf, tilts), 0.5, 0.7)):
        agreement = (torch.fft.rfft2(series) * torch.fft.rfft2(views).conj()).real.sum() / power
        assert low < agreement < high  # the mean of |sin| is 0.64


def test_the_mean_is_kept_by_flipping_and_damped_by_the_microscope():
    views = torch.full((2, 40, 48), 3.0)
    torch.testing.assert_close(flip_phases(views, CTFS[0], [-60, 60]), views)
    torch.testing.assert_close(transfer_contrast(views, CTFS[0], [-60, 60]), 0.07 * views)
    in_focus = ContrastTransfer(20000, amplitude_contrast=0.0, pixel_size=10.0)
    torch.testing.assert_close(flip_phases(views, in_focus, [-60, 60]), views)


@pytest.mark.parametrize("shape", [(5, 7), (33, 2), (1, 1), (31, 200)])
def test_views_of_any_size_keep_their_size(shape):
    views = torch.randn(2, *shape, generator=seeded())
    flipped = flip_phases(views.half(), CTFS[1], [-70, 70])
    assert flipped.shape == views.shape and flipped.dtype == torch.float32 and flipped.isfinite().all()


@pytest.mark.parametrize(
    ("views", "ctfs", "tilts", "hand", "message"),
    [
        (torch.ones(2, 8, 8), CTFS[0], [0.0], 1, "1 `angles` and 1 `ctfs` for 2 `views`"),
        (torch.ones(2, 8, 8), CTFS[:1], [0.0, 1.0], 1, "2 `angles` and 1 `ctfs` for 2 `views`"),
        (torch.ones(2, 8, 8), CTFS[0], [0.0, 90.0], 1, "`angles` must lie between -90 and 90"),
        (torch.ones(2, 8, 8), CTFS[0], [0.0, 1.0], 2, "`hand` must be 1, -1 or None"),
        (torch.ones(8, 8), CTFS[0], [0.0], 1, r"`views` must be real numbers \(tilt, along"),
        (torch.ones(1, 8, 8, dtype=torch.int16), CTFS[0], [0.0], 1, "torch.int16"),
    ],
)
def test_series_that_do_not_fit_are_refused(views, ctfs, tilts, hand, message):
    with pytest.raises(ValueError, match=message):
        flip_phases(views, ctfs, tilts, hand=hand)


# The simulated series --------------------------------------------------------------------------------

# Pixels of 6 Å with zeros at 0.24 and 0.19 cycles per voxel, one after the other view.
TWO_DEFOCI = [ContrastTransfer(30000 if i % 2 else 48000, pixel_size=6.0) for i in range(len(TILTS))]


def correlation_between_zeros(phase_flipped: bool) -> Tensor:
    """Return the shell correlations with the truth from beyond the last first zero to before the first second one."""
    made = simulate_halves(
        (48, 48, 48),
        TiltGeometry(TILTS),
        snr=math.inf,
        voxel_size=6.0,
        ctfs=TWO_DEFOCI,
        phase_flipped=phase_flipped,
        generator=seeded(),
    )
    curve = fourier_shell_correlation(made.first, made.truth)
    # The second zeros lie at sqrt(2) times the frequency of the first, and at 0.27 and higher.
    beyond = (curve.frequency > 1.02 * first_zero(TWO_DEFOCI[1])) & (curve.frequency < 1.38 * first_zero(TWO_DEFOCI[0]))
    assert beyond.sum() > 0
    return curve.correlation[beyond]


def test_correlation_with_the_truth_stays_positive_past_the_first_zero_when_phases_are_flipped():
    assert (correlation_between_zeros(phase_flipped=True) > 0.1).all()


def test_correlation_with_the_truth_is_negative_past_the_first_zero_without_flipping():
    assert (correlation_between_zeros(phase_flipped=False) < -0.1).all()


def test_no_transfer_function_is_applied_unless_it_is_given():
    """As for HAADF-STEM, where the contrast is that of the projections."""
    made = simulate_halves((24, 24, 24), TiltGeometry(TILTS), snr=math.inf, generator=seeded())
    specimen = simulate_specimen((24, 24, 24), generator=seeded())
    torch.testing.assert_close(made.truth, specimen)
    curve = fourier_shell_correlation(made.first, made.truth)
    assert (curve.correlation > 0.3).all()
    with pytest.raises(ValueError, match="`phase_flipped` needs the contrast transfer functions"):
        simulate_halves((24, 24, 24), TiltGeometry(TILTS), snr=1, phase_flipped=True)


def test_each_view_of_a_series_has_its_own_function():
    views = torch.randn(len(TILTS), 24, 24, generator=seeded())
    together = transfer_contrast(views, TWO_DEFOCI, TILTS)
    for number in (0, 1, 7):
        alone = transfer_contrast(views[number : number + 1], TWO_DEFOCI[number], TILTS[number : number + 1])
        torch.testing.assert_close(together[number : number + 1], alone)


# Deconvolution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("convention", "decades"), [("isonet", 1.0), ("warp", 3.0)])
@pytest.mark.parametrize("phase_flipped", [True, False])
@pytest.mark.parametrize("shape", [(24, 24, 24), (17, 20, 31)])
def test_deconvolution_multiplies_the_spectrum_by_the_filter_of_its_convention(
    convention, decades, phase_flipped, shape
):
    ctf, volume = CTFS[3], torch.randn(shape, generator=seeded())
    r = (2 * frequency_radius(shape)).clamp_max(1)
    k = r / (2 * ctf.pixel_size)
    c = closed_form(ctf, torch.zeros_like(k), k)
    c = c.abs() if phase_flipped else c
    snr = torch.exp(-100 * 1.2 * r / ctf.pixel_size) * 10 ** (0.8 * decades)
    snr = (snr * (1 - torch.cos(math.pi * (r / 0.1).clamp_max(1)))).clamp_min(1e-15)
    wanted = irfftn(rfftn(volume.double()) * c / (c**2 + 1 / snr), shape)
    settings = {"convention": convention, "strength": 0.8, "falloff": 1.2, "highpass": 0.1}
    found = deconvolve(volume, ctf, phase_flipped=phase_flipped, **settings)
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_deconvolution_leaves_its_input_alone_and_removes_the_mean():
    volume = torch.randn(16, 16, 16, generator=seeded()) + 5
    before = volume.clone()
    assert abs(float(deconvolve(volume, CTFS[0], convention="warp").mean())) < 1e-4
    assert torch.equal(volume, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convention": "imod"}, "`convention` must be 'isonet' or 'warp', got 'imod'"),
        ({"convention": "warp", "highpass": 0.0}, "`highpass` must be positive"),
        ({"convention": "warp", "falloff": -1.0}, "`falloff` not negative"),
        ({"convention": "warp", "strength": math.nan}, "`strength` finite"),
    ],
)
def test_settings_of_a_deconvolution_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        deconvolve(torch.ones(8, 8, 8), CTFS[0], **settings)
    with pytest.raises(ValueError, match=r"`volume` must be \(z, y, x\)"):
        deconvolve(torch.ones(1, 8, 8, 8), CTFS[0], convention="warp")
