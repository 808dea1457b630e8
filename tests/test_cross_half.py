"""Tests of the error against the other half, and of the block that no training cube touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from equitomo import SubtomogramDataset, SubtomogramPool, TiltGeometry, TomogramPair
from equitomo.datasets import HeldOutBlock, held_out_block
from equitomo.fourier import irfftn, rfftn
from equitomo.metrics import CrossHalfError, region_masks, relative_error, rows_to_beat

GEOMETRIES = [None, (-60.0, 60.0), TiltGeometry.from_range(-60, 20, "x")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The metric


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 17, 20)])
def test_halves_that_are_returned_as_they_are_have_an_error_of_one(geometry, shape):
    y = noise(3, 2, *shape)
    torch.testing.assert_close(CrossHalfError(geometry)(y, y), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, 2.0)], ids=["equal noise", "unequal noise"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_truth_has_an_error_of_one_half(geometry, strengths):
    x = 3 * noise(1, 1, 32, 32, 32)
    y = x + torch.tensor(strengths)[None, :, None, None, None] * noise(1, 2, 32, 32, 32, seed=1)
    assert CrossHalfError(geometry)(x.expand_as(y), y).item() == pytest.approx(0.5, abs=0.02)


def test_the_error_of_a_result_is_that_to_the_truth_in_units_of_the_noise():
    x, y = noise(1, 1, 32, 32, 32), noise(1, 2, 32, 32, 32, seed=1)
    mistake = 0.7 * noise(1, 2, 32, 32, 32, seed=2)
    error = CrossHalfError()(x + mistake, x + y)
    assert error.item() == pytest.approx(0.5 + 0.7**2 / 2, abs=0.02)


def test_the_wedge_does_not_count():
    shape, geometry = (16, 17, 20), (-60.0, 60.0)
    y, filled = noise(1, 2, *shape), noise(1, 2, *shape, seed=1)
    wedge = region_masks(shape, geometry).wedge
    result = irfftn(torch.where(wedge, rfftn(filled), rfftn(y)), shape)
    assert CrossHalfError(geometry)(result, y).item() == pytest.approx(1, abs=1e-12)
    assert CrossHalfError()(result, y).item() != pytest.approx(1, abs=0.01)


def test_only_what_both_halves_measure_counts():
    shape, first, second = (16, 17, 20), TiltGeometry.from_range(-60, 30), TiltGeometry.from_range(-30, 60)
    y, other = noise(1, 2, *shape), noise(1, 2, *shape, seed=1)
    both = region_masks(shape, first).measured & region_masks(shape, second).measured
    result = irfftn(torch.where(both, rfftn(y), rfftn(other)), shape)
    metric = CrossHalfError(first, second_geometry=second)
    assert metric(result, y).item() == pytest.approx(1, abs=1e-12)
    assert CrossHalfError(first)(result, y).item() != pytest.approx(1, abs=0.01)


def test_a_result_that_saw_the_other_half_s_noise_is_caught():
    """The same network for both halves cannot pass by copying: its noise is that of the half it saw."""
    x, y = noise(1, 1, 32, 32, 32), noise(1, 2, 32, 32, 32, seed=1)
    assert CrossHalfError()((x + y).flip(1), x + y) < 1e-6  # what the training would reach by heart
    assert CrossHalfError()(x + y, x + y).item() == pytest.approx(1)


def test_it_is_a_metric_of_deepinv_of_which_less_is_better():
    metric = CrossHalfError(train_loss=True, reduction="mean")
    y = noise(4, 2, 12, 12, 12)
    assert metric.lower_better
    result = (0.5 * y).requires_grad_()
    value = metric(result, y)
    value.backward()
    assert value.shape == () and result.grad.abs().sum() > 0


def test_halves_of_which_there_is_one_are_refused():
    x = noise(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match="two halves"):
        CrossHalfError()(x, x)


def test_the_rows_to_beat_are_the_best_gaussian_filter_and_nothing_at_all():
    shape = (32, 32, 32)
    coarse, *others = noise(3, *shape)
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in shape]
    radius = sum(k**2 for k in torch.meshgrid(*axes, indexing="ij")).sqrt()
    x = torch.fft.ifftn(torch.fft.fftn(coarse) * torch.exp(-2 * (torch.pi * 1.5 * radius) ** 2)).real
    x = x / x.std()
    y = x + torch.stack(others)
    metric = CrossHalfError()
    rows = rows_to_beat(y, metric)
    others = rows_to_beat(y, metric, [0.0, 0.3, rows.sigma - 0.1, rows.sigma + 0.1, 4.0])
    assert 0.5 < rows.gaussian < others.gaussian < 1
    assert 0.5 < rows.sigma < 2
    # The signal has the power of the noise of one half, of which a share is beyond Nyquist.
    within = (radius <= 0.5).double().mean().item()
    assert rows.nothing == pytest.approx(0.5 + 0.5 / within, abs=0.03)
    assert relative_error(rows.nothing, rows.nothing) == 1
    assert relative_error(float(metric(x.expand_as(y)[None], y[None])), rows.nothing) == pytest.approx(0, abs=0.05)


# The block


def pair(shape=(20, 40, 44), seed: int = 0, **settings) -> TomogramPair:
    x, first, second = noise(3, *shape, seed=seed).float()
    return TomogramPair(x + first, x + second, (-60.0, 60.0), **settings)


def marked(dataset: SubtomogramDataset | SubtomogramPool, block: HeldOutBlock) -> SubtomogramDataset:
    """Set the voxels of the block to a value that no other voxel has."""
    dataset.pairs[0].volumes[(slice(None), *block.slices)] = 1e6
    return dataset


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [0, 3, 5])
def test_no_cube_touches_the_block_however_much_larger_it_is_cut(seed, margin):
    made = pair()
    dataset = SubtomogramDataset(made, (8, 12, 16), length=300, seed=seed, held_out=12, reach=margin)
    marked(dataset, held_out_block(made.shape, 12, seed))
    cubes, *_ = dataset.cut(range(300), margin)
    assert cubes.abs().max() < 1e5


def test_cubes_elsewhere_are_all_still_drawn():
    made, block = pair((8, 20, 22)), held_out_block((8, 20, 22), 6, seed=3)
    dataset = SubtomogramDataset(made, 8, length=10**6, seed=3, held_out=6)
    (_, y, x) = block.slices
    overlapping = sum(
        start_y < y.stop and start_y + 8 > y.start and start_x < x.stop and start_x + 8 > x.start
        for start_y in range(13)
        for start_x in range(15)
    )
    assert 0 < overlapping < 100
    assert dataset.n_starts == 13 * 15 - overlapping


def test_the_block_lies_in_a_corner_that_depends_on_the_seed():
    blocks = {held_out_block((20, 40, 44), 12, seed).start for seed in range(40)}
    assert blocks == {(0, y, x) for y in (0, 28) for x in (0, 32)}
    assert held_out_block((20, 40, 44), 12, 0).stop[0] == 20


def test_a_corner_without_specimen_is_passed_over():
    mask = torch.zeros(20, 40, 44)
    mask[:, -12:, :12] = 1
    for seed in range(8):
        assert held_out_block((20, 40, 44), 12, seed, mask, 0.5).start == (0, 28, 0)


def test_the_block_is_kept_with_its_surroundings():
    made = pair((20, 60, 64))
    dataset = SubtomogramDataset(made, 8, length=1, held_out=12)
    block, held_out = held_out_block(made.shape, 12, 0), dataset.held_out
    assert torch.equal(held_out.volumes[(slice(None), *held_out.inner)], made.volumes[(slice(None), *block.slices)])
    assert held_out.volumes.shape == (2, 20, 36, 36)
    assert SubtomogramDataset(made, 8, length=1).held_out is None


def test_tomograms_that_take_turns_in_memory_hold_out_the_same_block():
    pairs = [pair(seed=seed, lazy=True) for seed in range(3)]
    made = {"side": 8, "length": 400, "held_out": 12, "seed": 1}
    pool = SubtomogramPool(pairs, memory=2 * pairs[0].n_bytes, exchange_every=20, **made)
    together = SubtomogramDataset(pairs, **made)
    assert torch.equal(pool.held_out.volumes, together.held_out.volumes)
    pairs[0]._volumes[(slice(None), *held_out_block(pairs[0].shape, 12, 1).slices)] = 1e6
    for dataset in (pool, together):
        cubes, sources = dataset.batch(range(400))
        assert set(sources) == {0, 1, 2}
        assert cubes.abs().max() < 1e5
    pool.close()


@pytest.mark.parametrize(
    "settings, mask, message",
    [
        ({"held_out": 21}, None, "at most half of the tomogram.*use at most 20"),
        ({"held_out": 20, "side": (8, 24, 24)}, None, "overlaps the block"),
        ({"held_out": 8}, "middle", "no corner of .* share of 0.3 of specimen.*fullest one holds 0.000"),
    ],
)
def test_a_block_that_leaves_nothing_is_refused(settings, mask, message):
    if mask is not None:
        mask = torch.zeros(20, 40, 40)
        mask[:, 10:30, 10:30] = 1
    made = pair((20, 40, 40), mask=mask)
    with pytest.raises(ValueError, match=message):
        SubtomogramDataset(made, **{"side": 8, "length": 1, **settings})


def test_a_block_of_a_single_volume_is_refused():
    single = TomogramPair(noise(20, 20, 20).float(), None, (-60.0, 60.0))
    with pytest.raises(ValueError, match="`held_out` compares the results for two halves"):
        SubtomogramDataset(single, 8, length=1, held_out=6)


def test_a_larger_margin_than_was_declared_is_refused():
    dataset = SubtomogramDataset(pair(), 8, length=1, held_out=6, reach=2)
    with pytest.raises(ValueError, match="pass `reach=3`"):
        dataset.cut(range(1), 3)
    assert np.all(dataset.cut(range(1), 2)[0].shape[2:] == np.array([12, 12, 12]))
