"""Tests of the scores against brute force over the full complex spectrum, closed forms and other programs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch_fourier_shell_correlation
from making import DATA, NO_DATA
from torch import Tensor

from equitomo.fourier import cosine_taper, frequencies, full_spectrum, irfftn, rfftn
from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.metrics import (
    FourierCorrelation,
    FourierShellCorrelation,
    FSCResolution,
    HeldOutSectorCorrelation,
    MeanFSC,
    WedgeEnergyFraction,
    conical_fsc,
    fourier_correlation,
    fourier_shell_correlation,
    held_out_correlation,
    region_masks,
    wedge_energy_fraction,
)

SHAPES = [(16, 16, 16), (15, 15, 15), (12, 17, 20), (20, 9, 15)]
GEOMETRIES = [
    TiltGeometry.from_range(-60, 60),
    TiltGeometry.from_range(-60, 20, tilt_axis="x"),
    TiltGeometry.from_range(-50, 50) | TiltGeometry.from_range(-40, 60, tilt_axis="x"),
]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_radius(shape: tuple[int, int, int]) -> Tensor:
    kz, ky, kx = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in shape), indexing="ij")
    return (kz**2 + ky**2 + kx**2).sqrt()


def full_correlation(first: Tensor, second: Tensor, region: Tensor) -> float:
    one, other = torch.fft.fftn(first)[region], torch.fft.fftn(second)[region]
    return ((one * other.conj()).sum().real / (one.abs().square().sum() * other.abs().square().sum()).sqrt()).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_volume_correlates_perfectly_with_a_positive_multiple_of_itself(shape, generator):
    x = noise(*shape, generator=generator)
    curve = fourier_shell_correlation(x, 3 * x + 5)
    torch.testing.assert_close(curve.correlation, torch.ones(min(shape) // 2, dtype=torch.float64))


def test_independent_noise_does_not_correlate(generator):
    first, second = noise(2, 32, 32, 32, generator=generator)
    curve = fourier_shell_correlation(first, second)
    # Only half of the coefficients of a shell are independent, so the standard deviation is sqrt(2 / count).
    assert ((curve.correlation * (curve.count / 2).sqrt()).abs() < 4).all()


@pytest.mark.parametrize("snr", [0.25, 1.0, 4.0])
def test_two_noisy_copies_have_the_correlation_snr_over_snr_plus_one(snr, generator):
    x, first, second = noise(3, 32, 32, 32, generator=generator)
    curve = fourier_shell_correlation(math.sqrt(snr) * x + first, math.sqrt(snr) * x + second)
    deviation = (curve.correlation - snr / (snr + 1)) * (curve.count / 2).sqrt()
    assert (deviation.abs() < 4).all()


# The spectrum of the largest shape is summed in more than one piece.
@pytest.mark.parametrize("geometry", [None, *GEOMETRIES])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 48, 50)])
def test_shells_of_the_half_spectrum_count_like_those_of_the_full_one(shape, geometry, generator):
    x, other = noise(2, *shape, generator=generator)
    mask = None if geometry is None else wedge_mask(shape, geometry)
    curve = fourier_shell_correlation(x + other, x - 0.3 * other, mask=mask)
    measured = torch.ones(shape) if mask is None else full_spectrum(mask, shape[2]).expand(shape)
    radius, n = full_radius(shape), min(shape) // 2
    for i in range(1, n + 1):
        region = ((2 * n * radius).round() == i) & (radius <= 0.5) & (measured > 0)
        assert curve.count[i - 1] == region.sum()
        if region.any():
            expected = full_correlation(x + other, x - 0.3 * other, region)
            assert curve.correlation[i - 1].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_over_a_region_is_that_of_the_full_spectrum(shape, generator):
    x, other = noise(2, *shape, generator=generator)
    radius = full_radius(shape)
    expected = full_correlation(x, x + other, (radius > 0) & (radius <= 0.5 + 1e-9))
    assert fourier_correlation(x, x + other) == pytest.approx(expected, abs=1e-12)


def test_correlation_over_all_coefficients_is_the_normalised_inner_product(generator):
    x, other = noise(2, 12, 17, 20, generator=generator)
    expected = (x * other).sum() / (x.norm() * other.norm())  # Parseval
    assert fourier_correlation(x, other, torch.ones(1)) == pytest.approx(expected.item(), abs=1e-12)


def test_shells_are_centred_on_equal_steps_up_to_nyquist(generator):
    curve = fourier_shell_correlation(*noise(2, 16, 20, 24, generator=generator), n_shells=4)
    assert curve.frequency.tolist() == [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize("side", [32, 48])
def test_curve_agrees_with_torch_fourier_shell_correlation(side, generator):
    x, first, second = noise(3, side, side, side, generator=generator)
    blur = torch.exp(-4 * full_radius((side,) * 3)[..., : side // 2 + 1])
    x = 3 * irfftn(rfftn(x) * blur, (side,) * 3)
    ours = fourier_shell_correlation(x + first, x + second)
    theirs = torch_fourier_shell_correlation.fourier_shell_correlation(x + first, x + second)
    # The other program blends neighbouring shells and counts every coefficient of the half spectrum once. Therefore
    # only shells with a few hundred coefficients or more agree, and not exactly.
    assert (ours.correlation[4:-1] - theirs[5:-1]).abs().max() < 0.05
    assert (ours.correlation[4:-1] - theirs[5:-1]).abs().mean() < 0.015


@pytest.mark.parametrize("shape", [(64, 64, 64), (64, 32, 64)])
def test_curve_is_that_of_torch_fourier_shell_correlation_where_shells_are_not_blended(shape, generator):
    """The other program divides a coefficient among the two nearest shells, and gives the plane kx = 0 double weight.

    Neither matters for coefficients off this plane whose radius is that of a shell. If the sides are powers of two,
    such a radius is exact in float32, in which the other program computes it.
    """
    x, first, second = noise(3, *shape, generator=generator)
    kz, ky, kx = (min(shape) * k for k in frequencies(shape))
    radius = (kz**2 + ky**2 + kx**2).sqrt()
    mask = ((radius - radius.round()).abs() < 1e-9) & (radius > 0) & (kx > 0) & (kx < kx.max())
    ours = fourier_shell_correlation(x + first, x + second, mask=mask)
    theirs = torch_fourier_shell_correlation.fourier_shell_correlation(x + first, x + second, mask)
    shells = ours.count > 0
    assert shells.sum() > 10
    assert (ours.correlation - theirs[1:])[shells].abs().max() < 1e-12


@pytest.mark.parametrize("voxel_size, expected", [(None, 1 / 0.325), (8.0, 8 / 0.325)])
def test_resolution_is_interpolated_between_the_shells_around_the_crossing(voxel_size, expected):
    curve = make_curve([1.0, 0.9, 0.6, 0.2, 0.8], voxel_size)
    assert curve.resolution(0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    "correlation, expected",
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6], 2.0),
        ([0.1, 0.9, 0.8, 0.7, 0.6], 10.0),
        ([math.nan, 1.0, math.nan, 0.0, 0.6], 1 / 0.3),
        ([math.nan] * 5, math.nan),
    ],
    ids=["never below: Nyquist", "below at once: first shell", "empty shells: skipped", "no shell: nan"],
)
def test_resolution_is_defined_for_every_curve(correlation, expected):
    assert make_curve(correlation).resolution(0.5) == pytest.approx(expected, nan_ok=True)


def make_curve(correlation: list[float], voxel_size: float | None = None) -> FourierShellCorrelation:
    frequency = torch.arange(1, 6, dtype=torch.float64) / 10
    return FourierShellCorrelation(frequency, torch.tensor(correlation, dtype=torch.float64), torch.ones(5), voxel_size)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_measured_part_and_wedge_partition_the_nyquist_ball(shape, geometry):
    regions = region_masks(shape, geometry)
    radius = full_radius(shape)[..., : shape[2] // 2 + 1]
    assert torch.equal(regions.overall, (radius > 0) & (radius <= 0.5 + 1e-9))
    assert torch.equal(regions.measured | regions.wedge, regions.overall)
    assert not (regions.measured & regions.wedge).any()
    assert torch.equal(regions.measured, regions.overall & (wedge_mask(shape, geometry) > 0))


def test_the_wedge_of_a_dual_axis_series_is_what_neither_part_measures():
    first, second = TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-50, 40, "x")
    one, other, both = (region_masks((16, 17, 18), g).wedge for g in (first, second, first | second))
    assert torch.equal(both, one & other)
    assert both.sum() < 0.7 * one.sum()


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 13, 17), (12, 16, 20)])
def test_two_volumes_have_measured_what_both_have_and_miss_what_neither_has(shape):
    first, second = (-60.0, 40.0), (-40.0, 60.0)
    regions = region_masks(shape, first, second_geometry=second)
    assert torch.equal(regions.measured, region_masks(shape, (-40.0, 40.0)).measured)
    assert torch.equal(regions.wedge, region_masks(shape, (-60.0, 60.0)).wedge)
    assert not bool((regions.measured | regions.wedge == regions.overall).all())
    other = region_masks(shape, second, second_geometry=first)
    assert torch.equal(regions.measured, other.measured)
    assert torch.equal(regions.wedge, other.wedge)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_emptied_wedge_has_no_energy(geometry, generator):
    x = noise(12, 17, 20, generator=generator)
    emptied = irfftn(rfftn(x) * wedge_mask(x.shape, geometry), tuple(x.shape))
    assert wedge_energy_fraction(emptied, geometry).fraction < 1e-12
    assert wedge_energy_fraction(x, geometry).relative == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_wedge_energy_counts_coefficients_of_the_full_spectrum(geometry, generator):
    shape = (12, 17, 20)
    x, radius = noise(*shape, generator=generator), full_radius(shape)
    ball = (radius > 0) & (radius <= 0.5)
    wedge = ball & (full_spectrum(wedge_mask(shape, geometry), shape[2]).expand(shape) == 0)
    power = torch.fft.fftn(x).abs() ** 2
    energy = wedge_energy_fraction(x, geometry)
    assert energy.fraction == pytest.approx((power[wedge].sum() / power[ball].sum()).item())
    assert energy.coefficient_fraction == pytest.approx((wedge.sum() / ball.sum()).item())
    assert energy.relative == pytest.approx(energy.fraction / energy.coefficient_fraction)


def test_cones_show_in_which_directions_two_volumes_agree(generator):
    shape = (32, 32, 32)
    x, first, second = noise(3, *shape, generator=generator)
    wedge = region_masks(shape, (-60.0, 60.0)).wedge
    first, second = (irfftn(rfftn(part).where(wedge, rfftn(x)), shape) for part in (first, second))
    curves = conical_fsc(first, second, half_angle=20.0)
    assert curves["x"].correlation.nanmean() == pytest.approx(1, abs=1e-9)
    assert curves["z"].correlation[8:].mean() == pytest.approx(0, abs=0.1)
    # One third of the cone about the tilt axis lies in the wedge of 60 degrees, and two thirds in the measured part.
    assert curves["y"].correlation[8:].mean() == pytest.approx(2 / 3, abs=0.1)


def test_cones_of_90_degrees_are_the_whole_of_fourier_space(generator):
    x, other = noise(2, 12, 17, 20, generator=generator)
    expected = fourier_shell_correlation(x, other).correlation
    for curve in conical_fsc(x, other, half_angle=90.0).values():
        torch.testing.assert_close(curve.correlation, expected)


@pytest.mark.parametrize("shape", [(16, 20, 33), (40, 40, 40)])
def test_taper_is_symmetric_and_one_inside(shape):
    window = cosine_taper(shape, width=4)
    for axis in range(3):
        torch.testing.assert_close(window, window.flip(axis), rtol=0, atol=0)
    assert (window[4:-4, 4:-4, 4:-4] == 1).all()
    assert window.min() > 0
    assert window[0].max() == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 8))


def test_taper_of_width_zero_is_no_taper():
    assert torch.equal(cosine_taper((4, 5, 6), 0), torch.ones(4, 5, 6))


@pytest.mark.fault(72)
def test_arrays_and_read_only_arrays_score_like_tensors(generator):
    x, other = noise(2, 12, 17, 20, generator=generator).float()
    first, second = x.numpy().copy(), other.numpy()
    first.flags.writeable = False
    curve, expected = fourier_shell_correlation(first, second), fourier_shell_correlation(x, other)
    assert torch.equal(curve.correlation, expected.correlation)
    assert fourier_correlation(first, second) == fourier_correlation(x, other)


@pytest.mark.fault(73)
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: fourier_shell_correlation(x, x[1:]), "the same shape"),
        (lambda x: fourier_correlation(x[None], x[None]), r"\(z, y, x\)"),
        (lambda x: fourier_shell_correlation(x, x, n_shells=0), "n_shells"),
        (lambda x: conical_fsc(x, x, half_angle=0), "half_angle"),
        (lambda x: cosine_taper(x.shape, -1), "width"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(8, 8, 8))


# As metrics of deepinv


def batch(*shape: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch with noise of another strength in each sample, and the same without noise."""
    x, other = noise(2, *shape, generator=generator)
    return x + torch.linspace(0.3, 3, len(x), dtype=x.dtype)[:, None, None, None, None] * other, x


@pytest.mark.parametrize("region", ["overall", "measured", "wedge"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_metrics_give_the_score_of_each_sample(region, shape, geometry, generator):
    x_net, x = batch(3, 1, *shape, generator=generator)
    mask = getattr(region_masks(shape, geometry), region)
    correlation = FourierCorrelation(geometry, region=region)(x_net, x)
    mean = MeanFSC(geometry, region=region, n_shells=5)(x_net, x)
    energy = WedgeEnergyFraction(geometry)(x_net)
    for i, (one, other) in enumerate(zip(x_net[:, 0], x[:, 0], strict=True)):
        assert correlation[i].item() == pytest.approx(fourier_correlation(one, other, mask), abs=1e-12)
        curve = fourier_shell_correlation(one, other, mask=mask, n_shells=5)
        assert mean[i].item() == pytest.approx(curve.correlation.nanmean().item(), abs=1e-12)
        assert energy[i].item() == pytest.approx(wedge_energy_fraction(one, geometry).fraction, abs=1e-12)
    assert correlation.shape == mean.shape == energy.shape == (3,)


METRICS = {
    "correlation": FourierCorrelation((-60.0, 60.0)),
    "correlation in the wedge": FourierCorrelation((-60.0, 60.0), region="wedge"),
    "correlation, tapered": FourierCorrelation((-60.0, 60.0), region="measured", taper=2),
    "mean FSC": MeanFSC(),
    "mean FSC in the wedge": MeanFSC((-60.0, 60.0), region="wedge", n_shells=3),
    "wedge energy": WedgeEnergyFraction((-60.0, 60.0)),
    "wedge energy, tapered": WedgeEnergyFraction((-60.0, 60.0), taper=2),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_metrics_are_differentiable(metric, generator):
    x_net, x = batch(2, 2, 4, 5, 6, generator=generator)
    assert torch.autograd.gradcheck(metric, (x_net.requires_grad_(), x.requires_grad_()))


def test_shells_without_coefficients_leave_the_gradient_finite(generator):
    x_net, x = batch(2, 1, 6, 5, 8, generator=generator)
    # With so many shells the wedge has no coefficient in the first ones.
    metric = MeanFSC((-80.0, 80.0), region="wedge", n_shells=20)
    (gradient,) = torch.autograd.grad(metric(x_net.requires_grad_(), x).sum(), x_net)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_the_channels_of_a_sample_are_compared_together(generator):
    shape = (12, 9, 10)
    x_net, x = batch(1, 2, *shape, generator=generator)
    x_net[:, 1] *= 3
    ball = (full_radius(shape) > 0) & (full_radius(shape) <= 0.5)
    one, other = (torch.fft.fftn(v, dim=(-3, -2, -1))[:, :, ball] for v in (x_net, x))
    expected = (one * other.conj()).sum().real / (one.norm() * other.norm())
    assert FourierCorrelation()(x_net, x).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("metric", [FourierCorrelation, MeanFSC])
def test_the_taper_removes_the_mean_and_fades_towards_the_faces(metric, generator):
    x_net, x = batch(2, 1, 16, 18, 20, generator=generator)
    window = cosine_taper((16, 18, 20), 4).double()
    expected = metric()(*((v - v.mean((-3, -2, -1), keepdim=True)) * window for v in (x_net, x)))
    torch.testing.assert_close(metric(taper=4)(x_net + 100, x), expected)


@pytest.mark.parametrize("kind", [FourierCorrelation, MeanFSC])
def test_as_a_training_loss_the_best_value_is_zero(kind, generator):
    x_net, x = batch(2, 1, 8, 8, 8, generator=generator)
    metric, loss = kind(), kind(train_loss=True)
    assert not metric.lower_better
    torch.testing.assert_close(loss(x_net, x), 1 - metric(x_net, x))
    torch.testing.assert_close(loss(2 * x, x), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)])
def test_values_have_the_precision_of_the_volumes_or_float32(dtype, expected, generator):
    x_net, x = (v.to(dtype) for v in batch(2, 1, 8, 8, 8, generator=generator))
    assert all(metric(x_net, x).dtype == expected for metric in METRICS.values())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: MeanFSC(region="wedge"), "pass `geometry`"),
        (lambda x: MeanFSC((-60, 60), region="cone"), "`region` must be"),
        (lambda x: MeanFSC(n_shells=0)(x, x), "n_shells"),
        (lambda x: FourierCorrelation()(x, x[..., 1:]), "`x_net` and `x` must have the same shape"),
        (lambda x: FourierCorrelation()(x[0], x[0]), "x_net must be a non-empty batch"),
        (lambda x: WedgeEnergyFraction((-60, 60), taper=-1)(x), "width"),
    ],
)
def test_what_a_metric_cannot_compare_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 1, 8, 8, 8))


@pytest.mark.parametrize("region", ["overall", "measured", "wedge"])
@pytest.mark.parametrize("threshold", [0.143, 0.5])
def test_the_resolution_as_a_metric_is_that_of_the_curve_of_each_sample(region, threshold, generator):
    geometry, shape = TiltGeometry.from_range(-60, 60), (24, 25, 26)
    falling = torch.exp(-6 * full_radius(shape)[..., : shape[-1] // 2 + 1])
    x = irfftn(8 * rfftn(noise(3, 1, *shape, generator=generator)) * falling, shape)
    x_net = x + torch.tensor([3.0, 6.0, 12.0])[:, None, None, None, None] * noise(3, 1, *shape, generator=generator)
    mask = None if region == "overall" else getattr(region_masks(shape, geometry), region)
    metric = FSCResolution(geometry, region=region, threshold=threshold, voxel_size=8.0)
    curves = [
        fourier_shell_correlation(*two, mask=mask, voxel_size=8.0) for two in zip(x_net[:, 0], x[:, 0], strict=True)
    ]
    expected = torch.tensor([curve.resolution(threshold) for curve in curves], dtype=torch.float64)
    torch.testing.assert_close(metric(x_net, x), expected)
    assert metric.lower_better
    assert len(expected.unique()) > 1
    mean = FSCResolution(geometry, region=region, threshold=threshold, voxel_size=8.0, reduction="mean")
    assert mean(x_net, x).item() == pytest.approx(expected.mean().item())


def test_the_held_out_sector_as_a_metric_gives_the_estimate_of_each_sample(generator):
    shape = (20, 21, 22)
    x, mistake, *others = noise(4, 3, 1, *shape, generator=generator)
    halves, sector = torch.cat([x + one for one in others], 1), region_masks(shape, (-60.0, 60.0)).wedge
    predictions = x + torch.tensor([0.0, 1.0, 2.0])[:, None, None, None, None] * mistake
    expected = [held_out_correlation(p[0], *y, sector).estimate for p, y in zip(predictions, halves, strict=True)]
    metric = HeldOutSectorCorrelation(sector)
    torch.testing.assert_close(metric(predictions, halves), torch.tensor(expected, dtype=torch.float64))
    assert not metric.lower_better
    total = HeldOutSectorCorrelation(sector, reduction="sum")(predictions, halves)
    assert total.item() == pytest.approx(sum(expected))
    with pytest.raises(ValueError, match=r"two halves \(batch, 2, z, y, x\) are needed"):
        metric(predictions, predictions)


@pytest.mark.parametrize("kind", [FSCResolution, lambda **given: HeldOutSectorCorrelation(torch.ones(1), **given)])
def test_what_is_not_differentiable_is_refused_as_a_loss(kind):
    with pytest.raises(ValueError, match="is not differentiable and cannot be a loss"):
        kind(train_loss=True)


def test_a_missing_reference_is_refused():
    with pytest.raises(TypeError, match="x must be a torch tensor, got NoneType"):
        FourierCorrelation()(torch.ones(1, 1, 8, 8, 8), None)


@pytest.fixture(scope="module")
def data_set() -> Path:
    """Return the folder of a simulated cryo-ET data set with its own scoring script, kept outside the repository."""
    if not (DATA / "evaluate.py").exists():
        pytest.skip(NO_DATA)
    return DATA


def load_evaluate(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", folder / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_correlations_are_those_of_the_data_sets_own_script(data_set):
    evaluate = load_evaluate(data_set)
    even, odd, truth = (evaluate.read(data_set / "cryo_tiny_mid" / f"{n}.mrc") for n in ("even", "odd", "gt"))
    window = cosine_taper(truth.shape).numpy()
    np.testing.assert_allclose(window, evaluate.window(truth.shape), atol=1e-6)
    first, second = ((volume - volume.mean()) * window for volume in ((even + odd) / 2, truth))
    measured, radius = (torch.from_numpy(array) for array in evaluate.measured(truth.shape, -60.0, 60.0))
    ball = (radius > 0) & (radius <= 0.5)
    for region in (ball, ball & measured, ball & ~measured):
        # The script applies its formula to half spectra, which gives the plane kx = 0 twice its weight. Here the same
        # formula is applied to full spectra.
        full = full_spectrum(region, truth.shape[2]).numpy()
        expected = evaluate.cc(np.fft.fftn(first), np.fft.fftn(second), full)
        assert fourier_correlation(first, second, region) == pytest.approx(expected, abs=1e-5)
