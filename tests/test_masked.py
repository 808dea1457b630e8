"""Tests of the correlation inside a mask: it must not count what the mask itself makes correlate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from equitomo.fourier import cosine_taper, frequency_radius, irfftn, rfftn
from equitomo.metrics import (
    conical_fsc,
    fourier_shell_correlation,
    masked_correlations,
    masked_fsc,
    region_masks,
    soft_mask,
)

SIDE = 48
SHAPE = (SIDE,) * 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ball(shape: tuple[int, int, int] = SHAPE, radius: float = 12.0, width: float = 1e-6) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(n) - n / 2 for n in shape), indexing="ij")
    return ((radius - sum(axis**2 for axis in axes).sqrt()) / width + 0.5).clamp(0, 1)


def coarse_and_noisy() -> list[Tensor]:
    """Return two volumes that share only frequencies below 0.1, on which the noise is weak."""
    coarse, *others = noise(3, *SHAPE)
    coarse = 100 * irfftn(rfftn(coarse) * (frequency_radius(SHAPE) < 0.1), SHAPE)
    return [coarse + other for other in others]


def test_what_a_mask_makes_of_noise_is_corrected_to_nothing():
    curves = masked_fsc(*coarse_and_noisy(), ball(), generator=torch.Generator().manual_seed(1))
    assert curves.cutoff == 0.125
    noisy = slice(11, None)
    assert curves.unmasked.correlation[noisy].abs().max() < 0.1
    assert curves.masked.correlation[noisy].min() > 0.4
    assert curves.corrected.correlation[noisy].abs().max() < 0.3
    assert curves.corrected.correlation[noisy].mean().abs() < 0.1


def test_frequencies_below_the_cutoff_keep_the_correlation_inside_the_mask():
    volumes, window = coarse_and_noisy(), ball()
    curves = masked_fsc(*volumes, window)
    below = curves.corrected.frequency < curves.cutoff
    means = [(volume * window).sum() / window.sum() for volume in volumes]
    masked = [(volume - mean) * window for volume, mean in zip(volumes, means, strict=True)]
    expected = fourier_shell_correlation(*masked).correlation
    torch.testing.assert_close(curves.masked.correlation, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(curves.corrected.correlation[below], expected[below], atol=1e-5, rtol=0)
    assert below.sum() == 5


def test_the_correction_is_the_equation_of_chen_and_colleagues():
    curves = masked_fsc(*coarse_and_noisy(), ball(), generator=torch.Generator().manual_seed(1))
    t, n = curves.masked.correlation[11:], curves.randomized.correlation[11:]
    torch.testing.assert_close(curves.corrected.correlation[11:], (t - n) / (1 - n))


def test_where_a_mask_hides_everything_nothing_is_claimed():
    curves = masked_fsc(*coarse_and_noisy(), ball())
    hidden = curves.randomized.correlation > 0.95
    assert hidden[5:8].all()
    beyond = curves.corrected.frequency >= curves.cutoff
    assert torch.equal(curves.corrected.correlation.isnan(), hidden & beyond)


def test_a_mask_of_noise_around_a_specimen_raises_the_correlation_to_that_of_the_specimen():
    signal, *others = noise(3, *SHAPE)
    # Soft, so that the mask blends few frequencies. Signal and noise are white and of equal power inside.
    window = ball(radius=14, width=6)
    first, second = (signal * window + other for other in others)
    curves = masked_fsc(first, second, window, generator=torch.Generator().manual_seed(1))
    assert curves.unmasked.correlation[8:].mean() < 0.2
    # The window counts twice for the signal and once for the noise.
    expected = (window**4).sum() / ((window**4).sum() + (window**2).sum())
    assert curves.corrected.correlation[8:].mean() == pytest.approx(expected.item(), abs=0.06)


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 15, 15), (12, 17, 20)])
@pytest.mark.parametrize("value", [1.0, 0.5])
def test_a_mask_of_everything_changes_nothing(shape, value):
    signal, *others = noise(3, *shape)
    first, second = (signal + other + 100 for other in others)
    plain = fourier_shell_correlation(first, second).correlation
    curves = masked_fsc(first, second, torch.full(shape, value))
    assert torch.equal(curves.corrected.correlation, plain)
    assert torch.equal(curves.masked.correlation, plain)
    assert not curves.randomized.correlation.any()
    assert curves.cutoff == math.inf


def test_a_mask_does_not_carry_the_agreement_of_the_measured_part_into_the_wedge():
    signal, *others = noise(3, *SHAPE)
    wedge = region_masks(SHAPE, (-60.0, 60.0)).wedge
    # They share the measured part only, which is stronger than what is in the wedge.
    halves = [irfftn(torch.where(wedge, rfftn(other), 10 * rfftn(signal)), SHAPE) for other in others]
    curves = masked_fsc(*halves, ball(width=4), mask=wedge, generator=torch.Generator().manual_seed(1))
    assert curves.masked.correlation[8:].min() > 0.8
    assert curves.corrected.correlation.nanmean().abs() < 0.15


def test_equal_volumes_correlate_perfectly_inside_every_mask():
    x = noise(*SHAPE)
    curve = masked_fsc(x, x.clone(), ball()).corrected
    torch.testing.assert_close(curve.correlation, torch.ones(SIDE // 2, dtype=torch.float64))


def test_random_phases_repeat_with_their_generator_and_need_none():
    volumes = coarse_and_noisy()
    curves = [masked_fsc(*volumes, ball(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    first, second, third = (curve.randomized.correlation for curve in curves)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_parts_that_are_compared_together_are_those_compared_one_by_one():
    volumes, wedge = coarse_and_noisy(), region_masks(SHAPE, (-60.0, 60.0)).wedge
    together = masked_correlations(*volumes, ball(), {"wedge": wedge}, generator=torch.Generator().manual_seed(3))
    alone = masked_fsc(*volumes, ball(), mask=wedge, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(together["wedge"].corrected.correlation, alone.corrected.correlation, equal_nan=True)


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 12, 20)])
def test_a_soft_mask_is_one_inside_zero_outside_and_symmetric(shape):
    inside = torch.zeros(shape)
    inside[4:-4, :, :] = 1
    soft = soft_mask(inside, 3)
    assert torch.equal(soft, soft.flip(0))
    assert (soft[:3] == 0).all()
    assert soft[5:-5].min() == pytest.approx(1, abs=1e-6)
    # It has half of its height at the edge, and does not fall at the faces of the volume.
    assert soft[3, 0, 0] + soft[4, 0, 0] == pytest.approx(1, abs=1e-6)
    assert (soft == soft[:, :1, :1]).all()
    assert torch.equal(soft_mask(torch.ones(shape), 6), soft_mask(torch.ones(shape), 1))


def test_a_soft_edge_blends_less_than_a_sharp_one():
    volumes = coarse_and_noisy()
    sharp, soft = (masked_fsc(*volumes, window).masked.correlation[14:] for window in (ball(), soft_mask(ball())))
    assert soft.mean() < 0.5 * sharp.mean()


@pytest.mark.parametrize(
    "window, message",
    [(torch.ones(8, 8, 9), "the same shape"), (torch.zeros(8, 8, 8), "zero everywhere")],
)
def test_a_mask_that_cannot_be_used_is_refused(window, message):
    x = noise(8, 8, 8)
    with pytest.raises(ValueError, match=message):
        masked_fsc(x, x, window)


def test_a_soft_edge_needs_a_width():
    with pytest.raises(ValueError, match="width"):
        soft_mask(torch.ones(8, 8, 8), 0)


def test_cones_are_compared_as_before_with_shared_transforms():
    first, second = noise(2, 12, 17, 20)
    taper = cosine_taper((12, 17, 20), 3)
    curves = conical_fsc(first * taper, second * taper, half_angle=40.0)
    assert list(curves) == ["z", "y", "x"]
    assert all(curve.count.sum() > 0 for curve in curves.values())
