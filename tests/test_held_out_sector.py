"""A sector of Fourier space that was measured and held out: what is emptied, and what is estimated there."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from equitomo import TiltGeometry, TomogramPair
from equitomo.datasets import hold_out_sector
from equitomo.fourier import frequency_radius, irfftn, multiplicity, rfftn
from equitomo.geometry import narrowed, wedge_mask
from equitomo.metrics import held_out_correlation, held_out_difference

SHAPES = [(24, 24, 24), (23, 25, 21), (16, 40, 31)]
RANGE = (-60.0, 60.0)
LISTED = TiltGeometry(range(-60, 58, 3), weights=[0.5 + i / 80 for i in range(40)])
DUAL = TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 55, "x")
GEOMETRIES = {"range": RANGE, "about x": TiltGeometry.from_range(-50, 60, "x"), "listed": LISTED, "dual": DUAL}


def noise(shape, n, seed=0):
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))


def coloured(shape, seed=0):
    """A volume whose spectrum falls with the frequency, as that of a specimen does."""
    spectrum = rfftn(noise(shape, 1, 1000 + seed)[0]) * torch.exp(-((4 * frequency_radius(shape)) ** 2))
    volume = irfftn(spectrum, shape)
    return volume / volume.std()


def sector_of(shape, geometry=RANGE):
    return (wedge_mask(shape, geometry) != 0) & (wedge_mask(shape, narrowed(geometry)) == 0)


def correlation(first, second, sector, limit=0.5):
    """The correlation in a sector up to the outer edge of the shell at ``limit``, computed in another way."""
    shape, n, radius = first.shape, min(first.shape) // 2, frequency_radius(first.shape)
    shell = (2 * n * radius).round()
    weight = multiplicity(shape[2]) * (sector & (shell > 0) & (shell <= round(2 * n * limit)) & (radius <= 0.5 + 1e-9))
    a, b = rfftn(first.double()), rfftn(second.double())

    def product(u, v):
        return float((weight * (u * v.conj()).real).sum())

    return product(a, b) / math.sqrt(product(a, a) * product(b, b))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("ends", ["both", "low", "high"])
def test_the_narrower_halves_hold_nothing_in_the_sector_and_the_rest_is_kept(shape, geometry, ends):
    pair = TomogramPair(*noise(shape, 2), geometry, normalization="scale")
    held_out = hold_out_sector(pair, 0.8, ends)
    before, after = rfftn(pair.volumes), rfftn(held_out.pair.volumes * held_out.pair.scale.scale)
    sector = held_out.sector.expand(before.shape[1:])
    assert sector.any()
    torch.testing.assert_close(after[:, sector], torch.zeros_like(after[:, sector]), atol=1e-5, rtol=0)
    rest = (wedge_mask(shape, held_out.pair.geometry) != 0).expand(before.shape[1:])
    torch.testing.assert_close(after[:, rest], before[:, rest], atol=1e-4, rtol=1e-4)
    assert not (sector & rest).any()
    torch.testing.assert_close(held_out.measured, pair.volumes)


def test_halves_of_different_tilts_share_the_sector_that_both_measured():
    even, odd = TiltGeometry(range(-60, 61, 6)), TiltGeometry(range(-57, 64, 6))
    pair = TomogramPair(*noise((24, 24, 24), 2), even, second_geometry=odd)
    held_out = hold_out_sector(pair, 0.75)
    kept = [wedge_mask(pair.shape, geometry) != 0 for geometry in held_out.pair.geometries]
    measured = [wedge_mask(pair.shape, geometry) != 0 for geometry in pair.geometries]
    assert torch.equal(held_out.sector, measured[0] & measured[1] & ~kept[0] & ~kept[1])
    empty = rfftn(held_out.pair.volumes)[:, held_out.sector.expand(24, 24, 13)]
    torch.testing.assert_close(empty, torch.zeros_like(empty), atol=1e-5, rtol=0)


def test_the_mask_of_the_specimen_stays():
    mask = torch.zeros(16, 16, 16)
    mask[4:12] = 1
    pair = TomogramPair(*noise((16, 16, 16), 2), RANGE, mask=mask, voxel_size=7.0)
    narrow = hold_out_sector(pair).pair
    assert torch.equal(narrow.mask, mask.bool())
    assert narrow.voxel_size == (7.0, 7.0, 7.0)


def test_a_single_volume_has_nothing_to_be_judged_by():
    with pytest.raises(ValueError, match="two halves with independent noise"):
        hold_out_sector(TomogramPair(noise((16, 16, 16), 1)[0], None, RANGE))


@pytest.mark.parametrize(("ends", "expected"), [("both", (-48, 48)), ("low", (-36, 60)), ("high", (-60, 36))])
def test_a_narrowed_range_keeps_its_share(ends, expected):
    assert narrowed(RANGE, 0.8, ends).tilt_range == pytest.approx(expected)
    assert narrowed(RANGE, 0.8, ends).continuous
    assert narrowed(TiltGeometry(range(-60, 61, 4)), 0.8, ends).tilt_range == pytest.approx(expected)


def test_tilts_keep_their_weights():
    narrow = narrowed(LISTED, 0.5)
    weights = dict(zip(LISTED.angles, LISTED.weights, strict=True))
    assert narrow.weights == tuple(weights[angle] for angle in narrow.angles)
    assert len(narrow.angles) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RANGE, 1.0), "more than 0 and less than 1, got 1"),
        ((RANGE, 0.0), "more than 0 and less than 1, got 0"),
        ((RANGE, 0.8, "middle"), "'both', 'low' or 'high', got 'middle'"),
        ((TiltGeometry([-60, 0, 60]), 0.8), "keeps 1 of 3"),
        ((TiltGeometry([-60, -59, 59, 60]), 0.999), "keeps 2 of 4"),
    ],
)
def test_a_range_that_cannot_be_narrowed_is_refused(arguments, message):
    if "2 of 4" in message:
        assert narrowed(*arguments).angles == (-59, 59)
        return
    with pytest.raises(ValueError, match=message):
        narrowed(*arguments)


@pytest.mark.parametrize("shape", [(32, 32, 32), (21, 40, 35)], ids=str)
@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("error", [0.5, 2.0])
def test_the_estimate_is_the_true_correlation_within_its_error(shape, deviation, error):
    sector, inside = sector_of(shape), 0
    for seed in range(20):
        truth, mistake = coloured(shape, seed), error * coloured(shape, 100 + seed)
        first, second = truth + deviation * noise(shape, 2, 200 + seed)
        found = held_out_correlation(truth + mistake, first, second, sector)
        true = correlation(truth + mistake, truth, sector, found.limit)
        low, high = found.interval
        inside += low < true < high
    assert inside >= 18


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_the_noise_causes_the_error_that_is_stated(deviation):
    """About the truth in one sector the deviations have the stated size, not more and not less."""
    shape, deviations = (32, 32, 32), []
    truth, sector = coloured(shape), sector_of(shape)
    prediction = truth + coloured(shape, 1)
    for seed in range(50):
        first, second = truth + deviation * noise(shape, 2, 300 + seed)
        found = held_out_correlation(prediction, first, second, sector)
        true = correlation(prediction, truth, sector, found.limit)
        deviations.append((found.estimate - true) / found.noise_error)
        assert found.error >= found.noise_error
    assert np.sqrt(np.mean(np.square(deviations))) == pytest.approx(1, abs=0.25)


def test_without_noise_the_estimate_is_the_correlation():
    truth, mistake = coloured((24, 24, 24)), coloured((24, 24, 24), 1)
    found = held_out_correlation(truth + mistake, truth, truth, sector_of(truth.shape))
    assert found.limit == 0.5
    assert found.estimate == pytest.approx(correlation(truth + mistake, truth, sector_of(truth.shape)), abs=1e-6)
    assert (found.raw, found.reliability) == pytest.approx((found.estimate, 1.0), abs=1e-6)
    assert found.noise_error == pytest.approx(0, abs=1e-4)


def test_the_estimate_is_the_raw_correlation_over_the_root_of_the_reliability():
    truth = coloured((24, 24, 24))
    first, second = truth + noise(truth.shape, 2)
    found = held_out_correlation(truth, first, second, sector_of(truth.shape))
    assert found.raw / math.sqrt(found.reliability) == pytest.approx(found.estimate, rel=1e-6)
    raw = correlation(truth, (first + second) / 2, sector_of(truth.shape), found.limit)
    assert found.raw == pytest.approx(raw, rel=1e-5)


def test_an_empty_sector_scores_zero():
    truth = coloured((24, 24, 24))
    pair = TomogramPair(*(truth + noise(truth.shape, 2)), RANGE)
    held_out = hold_out_sector(pair)
    found = held_out_correlation(held_out.pair.volumes.mean(0), *held_out.measured, held_out.sector)
    assert (found.estimate, found.raw, found.error) == (0.0, 0.0, 0.0)
    assert found.power == 0.0
    assert found.reliability > 0.3


def test_scale_and_sign_of_the_prediction_are_its_own():
    truth = coloured((24, 24, 24))
    halves, sector = truth + noise(truth.shape, 2), sector_of(truth.shape)
    found, scaled, inverted = (held_out_correlation(a * truth, *halves, sector) for a in (1, 1e3, -1e-3))
    assert scaled.estimate == pytest.approx(found.estimate, rel=1e-5)
    assert inverted.estimate == pytest.approx(-found.estimate, rel=1e-5)
    assert scaled.power == pytest.approx(1e6 * found.power, rel=1e-4)


def test_a_prediction_that_has_seen_the_noise_is_overrated():
    """The reason why the sector is emptied before the training and not after it."""
    truth = coloured((24, 24, 24))
    first, second = truth + noise(truth.shape, 2)
    found = held_out_correlation((first + second) / 2, first, second, sector_of(truth.shape))
    assert found.estimate > 1
    assert found.estimate == pytest.approx(found.reliability**-0.5, rel=1e-5)


def test_shells_in_which_the_halves_do_not_agree_are_left_out_and_counted():
    shape = (32, 32, 32)
    truth, sector = coloured(shape), sector_of(shape)
    first, second = truth + 2 * noise(shape, 2)
    found = held_out_correlation(truth, first, second, sector)
    used = found.correlation.isfinite()
    assert 0.1 < found.limit < 0.4
    assert not used[found.frequency > found.limit].any()
    assert found.n_coefficients == int(found.count[found.frequency <= found.limit].sum())
    assert found.n_coefficients + found.n_left_out == int(found.count.sum())
    # What lies beyond changes nothing.
    beyond = frequency_radius(shape) > found.limit + 1 / 32
    spoilt = irfftn(rfftn(truth) + 100 * beyond * rfftn(noise(shape, 1, 5)[0]), shape)
    assert held_out_correlation(spoilt, first, second, sector).estimate == pytest.approx(found.estimate, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_halves_with_nothing_in_common_give_no_estimate(seed):
    truth = coloured((24, 24, 24))
    found = held_out_correlation(truth, *noise(truth.shape, 2, seed), sector_of(truth.shape))
    assert math.isnan(found.estimate)
    assert math.isnan(found.error)
    assert (found.limit, found.n_coefficients) == (0.0, 0)


def test_the_result_is_plain_json():
    truth = coloured((16, 16, 16))
    found = held_out_correlation(truth, *(truth + noise(truth.shape, 2)), sector_of(truth.shape)).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["correlation"]) == 8


def test_volumes_of_different_shapes_are_refused():
    first, second = noise((16, 16, 16), 2)
    with pytest.raises(ValueError, match=r"must have one shape, got \(16, 16, 15\)"):
        held_out_correlation(first[..., :15], first, second, sector_of((16, 16, 16)))


# The difference of two predictions ---------------------------------------------------------------------


def two_predictions(shape, seed=0):
    """The truth, and two predictions of it whose errors have most in common."""
    truth, common = coloured(shape, seed), 0.6 * coloured(shape, seed + 1)
    return truth, truth + common, truth + common + 0.2 * coloured(shape, seed + 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_difference_is_that_of_the_estimates(shape):
    truth, one, other = two_predictions(shape)
    halves, sector = truth + 0.3 * noise(shape, 2), sector_of(shape)
    difference, error = held_out_difference(one, other, *halves, sector)
    estimates = [held_out_correlation(volume, *halves, sector).estimate for volume in (one, other)]
    assert difference == pytest.approx(estimates[0] - estimates[1], abs=1e-12)
    assert error > 0
    assert held_out_difference(other, one, *halves, sector) == pytest.approx((-difference, error))


def test_predictions_with_common_errors_are_told_apart_better_than_each_is_known():
    truth, one, other = two_predictions((32, 32, 32))
    halves, sector = truth + 0.3 * noise((32, 32, 32), 2), sector_of((32, 32, 32))
    _, error = held_out_difference(one, other, *halves, sector)
    assert error < held_out_correlation(one, *halves, sector).error / 2


def test_the_same_prediction_on_another_scale_differs_by_nothing():
    truth, one, _ = two_predictions((24, 24, 24))
    difference, error = held_out_difference(one, 3 * one, *(truth + 0.3 * noise((24, 24, 24), 2)), sector_of([24] * 3))
    assert difference == pytest.approx(0, abs=1e-12)
    assert error == pytest.approx(0, abs=1e-6)


def test_the_interval_of_a_difference_holds_the_true_one():
    shape = (32, 32, 32)
    truth, one, other = two_predictions(shape)
    sector = sector_of(shape)
    deviations = []
    for seed in range(40):
        halves = truth + 0.5 * noise(shape, 2, seed)
        difference, error = held_out_difference(one, other, *halves, sector)
        limit = held_out_correlation(one, *halves, sector).limit
        true = correlation(one, truth, sector, limit) - correlation(other, truth, sector, limit)
        deviations.append((difference - true) / error)
    assert np.mean(np.abs(deviations) < 1.96) >= 0.9
    # And it is not so wide that nothing could ever be told apart.
    assert np.sqrt(np.mean(np.square(deviations))) > 0.1


def test_against_an_empty_prediction_the_difference_is_the_estimate():
    truth, one, _ = two_predictions((24, 24, 24))
    halves, sector = truth + 0.3 * noise((24, 24, 24), 2), sector_of([24] * 3)
    spectrum = rfftn(truth)
    empty = irfftn(spectrum * ~sector, (24, 24, 24))
    difference, _ = held_out_difference(one, empty, *halves, sector)
    assert difference == pytest.approx(held_out_correlation(one, *halves, sector).estimate)


def test_halves_that_do_not_agree_tell_nothing_of_a_difference():
    _, one, other = two_predictions((24, 24, 24))
    difference, error = held_out_difference(one, other, *noise((24, 24, 24), 2), sector_of([24] * 3))
    assert math.isnan(difference)
    assert math.isnan(error)
