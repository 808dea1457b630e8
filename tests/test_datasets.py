"""Pairs of halves, the cubes drawn from them and the specimen mask."""

import itertools
import re

import deepinv
import numpy as np
import pytest
import torch
from making import noisy_halves, noisy_pair
from torch.utils.data import DataLoader

from equitomo import (
    CubeRotationGroup,
    IntensityScale,
    MaskedEquivarianceLoss,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    SubtomogramDataset,
    TiltGeometry,
    TomogramPair,
    TwoViewReconstructor,
    specimen_mask,
)
from equitomo.datasets import HalfStatistics, require_usable
from equitomo.simulate import simulate_halves

TILTS = (-60.0, 60.0)


def particles(share=0.02, noise=0.0):
    """Two halves with balls that fill a share of an empty volume."""
    generator = torch.Generator().manual_seed(3)
    z, y, x = torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij")
    volume = torch.zeros(48, 48, 48)
    while (volume > 0).double().mean() < share:
        a, b, c = 4 + 40 * torch.rand(3, generator=generator)
        volume[(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 16] = float(0.8 + 0.4 * torch.rand(1, generator=generator))
    return volume + noise * torch.randn(2, 48, 48, 48, generator=generator)


# Normalisation ---------------------------------------------------------------------------------------


def test_a_pair_has_zero_mean_and_unit_deviation_over_both_halves():
    volumes = noisy_pair().volumes.double()
    assert abs(volumes.mean()) < 1e-6
    assert abs(volumes.std(correction=0) - 1) < 1e-6


def test_both_halves_are_put_on_one_scale():
    first, second = noisy_halves()
    second = 1.3 * second + 0.2
    pair = TomogramPair(first, second, TILTS)
    expected = (torch.stack([first, second]) - pair.scale.mean) / pair.scale.scale
    torch.testing.assert_close(pair.volumes, expected)


@pytest.mark.fault(21)
@pytest.mark.parametrize("value", [1e4, -1e6])
def test_a_few_gold_or_hot_voxels_do_not_move_the_scale(value):
    first, second = noisy_halves()
    clean = TomogramPair(first, second, TILTS).scale
    first[3, 4, 5], second[7, 7, 7] = value, value
    spoilt = TomogramPair(first, second, TILTS).scale
    assert abs(spoilt.mean - clean.mean) < 0.005 * clean.scale
    assert abs(spoilt.scale / clean.scale - 1) < 0.01


def test_restoring_undoes_the_normalisation():
    first, second = noisy_halves()
    pair = TomogramPair(40 * first - 300, 40 * second - 300, TILTS)
    torch.testing.assert_close(pair.restore(pair.volumes[0]), 40 * first - 300, rtol=1e-5, atol=1e-3)


def test_normalisation_by_scale_alone_keeps_zero():
    first, second = noisy_halves()
    first[0], second[0] = 0.0, 0.0
    pair = TomogramPair(first + 0.0, second, TILTS, normalization="scale")
    assert pair.scale.mean == 0.0
    assert bool((pair.volumes[:, 0] == 0).all())


def test_a_volume_that_is_mostly_empty_is_scaled_by_its_plain_deviation():
    volume = torch.zeros(10, 10, 10)
    volume[4:6, 4:6, 4:6] = 5.0
    assert IntensityScale.of(volume).scale == pytest.approx(volume.double().std(correction=0).item())


@pytest.mark.parametrize("normalization", ["robust", "scale"])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3, 0.05])
def test_sparse_particles_on_a_zero_background_are_brought_to_unit_power(noise, normalization):
    halves = particles(noise=noise)
    volumes = [IntensityScale.of(*halves, normalization=normalization).apply(half) for half in halves]
    power = torch.stack(volumes).square().mean()
    assert 0.9 < power < 1.5


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_hot_pixels_do_not_move_the_scale_of_sparse_particles(noise):
    halves = particles(noise=noise)
    clean = IntensityScale.of(*halves)
    for half in halves:
        half.view(-1)[::9973] = 1e6
    spoilt = IntensityScale.of(*halves)
    assert abs(spoilt.mean - clean.mean) < 0.03 * clean.scale
    assert abs(spoilt.scale / clean.scale - 1) < 0.1


def test_gold_that_fills_less_than_a_hundredth_does_not_move_the_scale():
    first, second = noisy_halves()
    clean = IntensityScale.of(first, second)
    for half in (first, second):
        half.view(-1)[: half.numel() // 110] = -40
    assert abs(IntensityScale.of(first, second).scale / clean.scale - 1) < 0.2


def test_the_scale_of_a_full_volume_is_that_within_six_robust_deviations_to_the_bit():
    first, second = noisy_halves()
    first.view(-1)[::500] = 300.0
    values = np.concatenate([first.numpy().ravel(), second.numpy().ravel()]).astype(np.float64)
    centre = np.median(values)
    reach = 6 * 1.4826 * np.median(np.abs(values - centre))
    expected = np.clip(values, centre - reach, centre + reach)
    scale = IntensityScale.of(first, second)
    assert (scale.mean, scale.scale) == (expected.mean(), expected.std())


@pytest.mark.fault(20)
def test_a_constant_volume_has_no_scale():
    with pytest.raises(ValueError, match=r"the volume is constant \(7 throughout\)"):
        IntensityScale.of(torch.full((4, 4, 4), 7.0))


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="`normalization` is 'robust' or 'scale', got 'minmax'"):
        noisy_pair(normalization="minmax")


# What a pair refuses and warns of --------------------------------------------------------------------


@pytest.mark.fault(19)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_voxels_that_are_not_finite_are_counted_and_placed(value):
    first, second = noisy_halves()
    second[2, 3, 4] = second[5, 0, 0] = value
    with pytest.raises(ValueError, match=r"the second half of ribosomes holds 2 voxels.*z 2, y 3, x 4"):
        TomogramPair(first, second, TILTS, name="ribosomes")


@pytest.mark.fault(20)
def test_two_constant_halves_are_refused():
    with pytest.raises(ValueError, match=r"ribosomes is constant \(3 throughout\)"):
        TomogramPair(torch.full((8, 8, 8), 3.0), torch.full((8, 8, 8), 3.0), TILTS, name="ribosomes")


@pytest.mark.fault(20)
@pytest.mark.parametrize("which", [0, 1])
def test_one_constant_half_is_refused_and_named(which):
    halves = list(noisy_halves())
    halves[which] = torch.zeros(16, 16, 16)
    label = ("first", "second")[which]
    with pytest.raises(ValueError, match=rf"the {label} half of ribosomes is constant"):
        TomogramPair(*halves, TILTS, name="ribosomes")


@pytest.mark.fault(22, 73)
@pytest.mark.parametrize("shapes", [((8, 8, 8), (8, 8, 9)), ((8, 8), (8, 8))])
def test_halves_of_other_shapes_are_refused_with_both_shapes(shapes):
    with pytest.raises(ValueError, match=re.escape(f"got {shapes[0]} and {shapes[1]}")):
        TomogramPair(torch.randn(shapes[0]), torch.randn(shapes[1]), TILTS)


@pytest.mark.fault(24)
def test_the_same_volume_twice_is_refused():
    first, _ = noisy_halves()
    with pytest.raises(ValueError, match=r"not independent.*1\.0000.*odd/even tilts"):
        TomogramPair(first, first.clone(), TILTS)


@pytest.mark.fault(24)
def test_halves_that_differ_by_hardly_anything_are_refused():
    first, second = noisy_halves()
    with pytest.raises(ValueError, match="not independent"):
        TomogramPair(first, first + 0.01 * second, TILTS)


@pytest.mark.fault(21)
def test_gold_in_both_halves_does_not_pass_for_dependence():
    first, second = noisy_halves()
    first[5, 5, 5:8] = second[5, 5, 5:8] = -1e4
    assert TomogramPair(first, second, TILTS).shape == (16, 16, 16)


@pytest.mark.fault(45)
def test_a_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"mask has shape \(16, 16, 15\), the tomogram \(16, 16, 16\)"):
        noisy_pair(mask=torch.ones(16, 16, 15))


@pytest.mark.fault(46)
def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="ribosomes: the mask is empty"):
        noisy_pair(mask=torch.zeros(16, 16, 16), name="ribosomes")


@pytest.mark.fault(47)
def test_a_mask_with_nan_is_refused():
    mask = torch.ones(16, 16, 16)
    mask[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"the mask of .* holds 1 voxels.*z 0, y 1, x 2"):
        noisy_pair(mask=mask)


@pytest.mark.fault(47)
def test_a_mask_that_is_not_binary_is_read_as_non_zero():
    mask = torch.zeros(16, 16, 16)
    mask[:, :, 4:] = 0.25
    pair = noisy_pair(mask=mask)
    assert torch.equal(pair.mask, mask > 0)
    assert pair.mask_is_binary is False


@pytest.mark.parametrize("voxel_size", [0.0, -1.0, (1.0, 2.0), (1.0, float("nan"), 1.0), float("inf")])
def test_a_voxel_size_that_is_no_length_is_refused(voxel_size):
    with pytest.raises(ValueError, match="`voxel_size` must be positive"):
        noisy_pair(voxel_size=voxel_size)


@pytest.mark.fault(39)
def test_a_full_tilt_range_is_refused():
    with pytest.raises(ValueError, match="span less than 180, got -90 to 90"):
        noisy_pair(geometry=(-90.0, 90.0))


# What a pair accepts ---------------------------------------------------------------------------------


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: a.astype(">f4"), id="byte-swapped"),
        pytest.param(lambda a: a.astype("f8"), id="float64"),
        pytest.param(lambda a: a[::-1].copy()[::-1], id="negative stride"),
        pytest.param(lambda a: np.asfortranarray(a), id="Fortran order"),
        pytest.param(lambda a: torch.tensor(a, requires_grad=True), id="with gradient"),
    ],
)
def test_arrays_of_every_kind_give_the_same_pair(change):
    halves = [half.numpy() for half in noisy_halves()]
    pair = TomogramPair(*(change(half) for half in halves), TILTS)
    torch.testing.assert_close(pair.volumes, TomogramPair(*halves, TILTS).volumes)


@pytest.mark.fault(7, 72)
@pytest.mark.parametrize("dtype", ["i2", "u2"])
def test_integers_are_read_as_numbers(dtype):
    halves = [(1000 + 100 * half.numpy()).astype(dtype) for half in noisy_halves()]
    pair = TomogramPair(*halves, TILTS)
    torch.testing.assert_close(pair.volumes, TomogramPair(*(half.astype("f4") for half in halves), TILTS).volumes)


@pytest.mark.fault(72)
def test_read_only_arrays_are_copied():
    halves = [half.numpy() for half in noisy_halves()]
    for half in halves:
        half.flags.writeable = False
    assert TomogramPair(*halves, TILTS).shape == (16, 16, 16)


@pytest.mark.fault(72)
def test_the_input_is_left_as_it_was():
    first, second = noisy_halves()
    before = first.clone(), second.clone()
    TomogramPair(first, second, TILTS)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_one_voxel_size_stands_for_three():
    assert noisy_pair(voxel_size=13.5).voxel_size == (13.5, 13.5, 13.5)


# Cubes -----------------------------------------------------------------------------------------------


def starts_of(dataset, n):
    """The starts (z, y, x) of the first n cubes, told by the voxels of both halves in the corner, which differ."""
    volumes = dataset.pairs[0].volumes
    place = dict(zip(map(tuple, volumes.flatten(1).T.tolist()), np.ndindex(*volumes.shape[1:]), strict=True))
    assert len(place) == volumes[0].numel()
    cubes, _ = dataset.batch(range(n))
    return [place[corner] for corner in map(tuple, cubes[:, :, 0, 0, 0].tolist())]


def possible_starts(shape, side):
    sides = (side,) * 3 if isinstance(side, int) else side
    return list(itertools.product(*(range(n - side + 1) for n, side in zip(shape, sides, strict=True))))


def chi_square(starts, possible):
    expected = len(starts) / len(possible)
    counts = [starts.count(start) for start in possible]
    return sum((count - expected) ** 2 / expected for count in counts)


def test_a_cube_is_cut_from_both_halves_at_one_place():
    shape = (6, 7, 8)
    pair = noisy_pair(shape)
    dataset = SubtomogramDataset(pair, 4, length=30, seed=1)
    for item, (z, y, x) in zip(map(dataset.__getitem__, range(30)), starts_of(dataset, 30), strict=True):
        assert torch.equal(item["y"], pair.volumes[:, z : z + 4, y : y + 4, x : x + 4])


def test_every_valid_start_is_drawn_the_last_ones_too():
    shape = (5, 6, 7)
    dataset = SubtomogramDataset(noisy_pair(shape), 4, length=2400)
    assert set(starts_of(dataset, 2400)) == set(possible_starts(shape, 4))
    assert dataset.n_starts == 24


def test_starts_are_drawn_uniformly():
    shape = (5, 6, 7)
    starts = starts_of(SubtomogramDataset(noisy_pair(shape), 4, length=2400), 2400)
    # The 99.99 % quantile of chi-square with 23 degrees of freedom.
    assert chi_square(starts, possible_starts(shape, 4)) < 56.0


@pytest.mark.fault(41)
@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 9, 10)])
def test_a_cube_may_be_as_large_as_the_volume_is_thin(shape):
    dataset = SubtomogramDataset(noisy_pair(shape), 8, length=100)
    assert set(starts_of(dataset, 100)) == set(possible_starts(shape, 8))


def random_mask(shape, share, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def starts_within(mask, side, fraction):
    return [
        (z, y, x)
        for z, y, x in possible_starts(mask.shape, side)
        if int(mask[z : z + side, y : y + side, x : x + side].sum()) >= fraction * side**3
    ]


@pytest.mark.parametrize(("shape", "side"), [((6, 8, 7), 3), ((9, 5, 6), 4), ((4, 4, 9), 4)])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.34])
def test_a_mask_restricts_starts_to_those_found_by_brute_force(shape, side, fraction):
    mask = random_mask(shape, 0.3)
    dataset = SubtomogramDataset(noisy_pair(shape, mask=mask), side, length=2500, min_fraction=fraction)
    expected = starts_within(mask, side, fraction)
    assert 0 < dataset.n_starts == len(expected)
    assert set(starts_of(dataset, 2500)) == set(expected)


def test_starts_under_a_mask_are_drawn_uniformly():
    shape = (6, 8, 7)
    mask = random_mask(shape, 0.3)
    expected = starts_within(mask, 3, 0.34)
    dataset = SubtomogramDataset(noisy_pair(shape, mask=mask), 3, length=3000, min_fraction=0.34)
    degrees = len(expected) - 1
    assert chi_square(starts_of(dataset, 3000), expected) < degrees + 5 * (2 * degrees) ** 0.5


def test_a_single_valid_start_is_found_every_time():
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[16:, 16:, 16:] = True
    dataset = SubtomogramDataset(noisy_pair((20, 20, 20), mask=mask), 4, length=50, min_fraction=1.0)
    assert set(starts_of(dataset, 50)) == {(16, 16, 16)}


@pytest.mark.fault(46)
def test_a_mask_without_a_valid_start_is_refused_with_a_fraction_that_would_do():
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[2, 2, 2:7] = True  # 5 / 64 = 0.078125, which must not be rounded up
    pair = noisy_pair((12, 12, 12), mask=mask, name="ribosomes")
    with pytest.raises(ValueError, match=r"no cube of 4 voxels in ribosomes.*lower `min_specimen`") as caught:
        SubtomogramDataset(pair, 4, length=1, min_fraction=0.3)
    fraction = float(re.search(r"fullest one holds ([\d.]+)", str(caught.value))[1])
    assert SubtomogramDataset(pair, 4, length=1, min_fraction=fraction).n_starts > 0


@pytest.mark.fault(40)
def test_a_cube_that_does_not_fit_is_refused_with_the_largest_that_does():
    with pytest.raises(ValueError, match=r"cubes of 16 voxels.*\(20, 12, 30\).*largest side that does is 12"):
        SubtomogramDataset(noisy_pair((20, 12, 30)), 16, length=1)


def test_a_cube_without_voxels_is_refused():
    with pytest.raises(ValueError, match="cubes of 0 voxels"):
        SubtomogramDataset(noisy_pair(), 0, length=1)


def test_no_pair_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        SubtomogramDataset([], 8, length=1)


def test_an_item_depends_on_the_seed_and_its_number_alone():
    pair = noisy_pair((20, 20, 20))
    short, long = (SubtomogramDataset(pair, 8, length=n, seed=4) for n in (30, 3000))
    for index in (29, 3, 17):
        assert torch.equal(short[index]["y"], long[index]["y"])


def test_another_seed_draws_other_cubes():
    pair = noisy_pair((20, 20, 20))
    one, other = (SubtomogramDataset(pair, 8, length=4, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.batch(range(4))[0], other.batch(range(4))[0])


def test_a_batch_holds_the_items_of_its_range():
    dataset = SubtomogramDataset(noisy_pair((20, 20, 20)), 8, length=10)
    cubes, _ = dataset.batch(range(3, 9))
    assert torch.equal(cubes, torch.stack([dataset[index]["y"] for index in range(3, 9)]))


def test_several_pairs_are_drawn_from_in_proportion_to_their_starts():
    mask = torch.zeros(8, 8, 20, dtype=torch.bool)
    mask[..., :10] = True
    pairs = [noisy_pair((8, 8, 13)), noisy_pair((8, 8, 8)), noisy_pair((8, 8, 20), mask=mask)]
    dataset = SubtomogramDataset(pairs, 8, length=4000, min_fraction=1.0)
    counts = np.bincount(dataset.batch(range(4000))[1], minlength=3)
    expected = 4000 * np.array([6, 1, 3]) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 18.4  # 99.99 % with 2 degrees of freedom


def test_a_cube_comes_from_the_pair_that_the_batch_names():
    pairs = [noisy_pair((8, 8, 8), seed=seed) for seed in range(3)]
    cubes, sources = SubtomogramDataset(pairs, 8, length=30).batch(range(30))
    assert set(sources) == {0, 1, 2}
    assert all(torch.equal(cube, pairs[source].volumes) for cube, source in zip(cubes, sources, strict=True))


def test_a_torch_data_loader_batches_the_items():
    dataset = SubtomogramDataset(noisy_pair((20, 20, 20)), 8, length=7)
    batches = list(DataLoader(dataset, batch_size=3, num_workers=0))
    assert [tuple(batch["y"].shape) for batch in batches] == [(3, 2, 8, 8, 8), (3, 2, 8, 8, 8), (1, 2, 8, 8, 8)]
    assert torch.equal(torch.cat([batch["y"] for batch in batches]), dataset.batch(range(7))[0])


@pytest.mark.parametrize("index", [-1, 7])
def test_an_item_beyond_the_length_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"item {index} of 7"):
        SubtomogramDataset(noisy_pair(), 8, length=7)[index]


# Cubes with unequal sides and with masks --------------------------------------------------------------


def test_cubes_may_have_unequal_sides():
    pair = noisy_pair((9, 12, 14))
    dataset = SubtomogramDataset(pair, (8, 10, 12), length=300, seed=2)
    assert (dataset.shape, dataset.n_starts) == ((8, 10, 12), 2 * 3 * 3)
    assert dataset[0]["y"].shape == (2, 8, 10, 12)
    assert dataset.example.shape == (2, 8, 10, 12)
    assert set(starts_of(dataset, 300)) == set(possible_starts((9, 12, 14), (8, 10, 12)))


def test_a_mask_restricts_cubes_with_unequal_sides_too():
    shape, cube = (7, 8, 9), (2, 5, 3)
    mask = random_mask(shape, 0.3)
    expected = [
        start
        for start in possible_starts(shape, cube)
        if int(mask[tuple(slice(a, a + n) for a, n in zip(start, cube, strict=True))].sum()) >= 0.3 * 30
    ]
    dataset = SubtomogramDataset(noisy_pair(shape, mask=mask), cube, length=4000)
    assert 0 < dataset.n_starts == len(expected)
    assert set(starts_of(dataset, 4000)) == set(expected)


@pytest.mark.fault(40)
def test_unequal_sides_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"cubes of \(8, 30, 8\) voxels.*sides up to \(20, 12, 30\) do"):
        SubtomogramDataset(noisy_pair((20, 12, 30)), (8, 30, 8), length=1)


def test_an_item_has_no_mask_where_one_operator_fits_all():
    physics = PaddedMissingWedgeOperator((8, 8, 8), TILTS)
    pairs = [noisy_pair((12, 12, 12), seed=seed) for seed in (0, 1)]
    assert set(SubtomogramDataset(pairs, 8, length=1, physics=physics)[0]) == {"y"}
    assert set(SubtomogramDataset(pairs, 8, length=1)[0]) == {"y"}


def test_an_item_has_the_mask_of_its_tomogram_where_tilts_differ():
    geometries = [TILTS, (-40.0, 60.0), TiltGeometry.from_range(-60, 60, "x")]
    pairs = [noisy_pair((9, 9, 9), seed=n, geometry=geometry) for n, geometry in enumerate(geometries)]
    physics = PaddedMissingWedgeOperator((8, 8, 8), pairs[0].geometry | pairs[2].geometry)
    dataset = SubtomogramDataset(pairs, 8, length=40, physics=physics)
    _, sources = dataset.batch(range(40))
    assert set(sources) == {0, 1, 2}
    for index, source in enumerate(sources):
        expected = physics.mask_for(pairs[source].geometry)[0]
        assert torch.equal(dataset[index]["params"]["mask"], expected)
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["params"]["mask"].shape == (4, 1, 16, 16, 9)


def test_an_operator_of_other_tilts_than_all_tomograms_gets_their_mask():
    physics = PaddedMissingWedgeOperator((8, 8, 8), (-40.0, 60.0))
    dataset = SubtomogramDataset(noisy_pair((9, 9, 9)), 8, length=1, physics=physics)
    assert torch.equal(dataset[0]["params"]["mask"], physics.mask_for(TILTS)[0])


def test_each_half_has_the_mask_of_its_own_tilts():
    first, second = noisy_halves((9, 9, 9))
    halves = TomogramPair(first, second, TILTS, second_geometry=(-40.0, 60.0))
    physics = PaddedMissingWedgeOperator((8, 8, 8), TILTS)
    dataset = SubtomogramDataset([halves, noisy_pair((9, 9, 9), seed=1)], 8, length=30, physics=physics)
    _, sources = dataset.batch(range(30))
    own, other = (physics.mask_for(geometry)[0] for geometry in halves.geometries)
    for index, source in enumerate(sources):
        expected = torch.cat([own, own if source else other])
        assert torch.equal(dataset[index]["params"]["mask"], expected)


def test_single_volumes_and_pairs_are_not_mixed():
    single = TomogramPair(noisy_halves()[0], None, TILTS)
    assert SubtomogramDataset(single, 8, length=1)[0]["y"].shape == (1, 8, 8, 8)
    with pytest.raises(ValueError, match="cannot be mixed"):
        SubtomogramDataset([single, noisy_pair()], 8, length=1)


def mixed_blocks():
    """Two tomograms about different axes, the second with different tilts for each half, and what trains on them."""
    torch.manual_seed(0)
    about_x = TiltGeometry.from_range(-50, 60, "x")
    first, second = noisy_halves((14, 20, 18), seed=1)
    pairs = [
        noisy_pair((14, 16, 18)),
        TomogramPair(first, second, about_x, second_geometry=TiltGeometry.from_range(-60, 50, "x")),
    ]
    physics = PaddedMissingWedgeOperator((12, 12, 12), pairs[0].geometry | about_x)
    model = TwoViewReconstructor(ScaleEquivariantUNet3D(width=4, levels=2))
    dataset = SubtomogramDataset(pairs, 12, length=90, physics=physics)
    losses = [Noise2NoiseLoss(), MaskedEquivarianceLoss(CubeRotationGroup(rng=torch.Generator().manual_seed(0)))]
    # The last batch has fewer cubes, and so fewer masks.
    loader = DataLoader(dataset, batch_size=4)
    return physics, model, losses, loader, torch.optim.Adam(model.parameters(), lr=3e-3)


def test_mixed_tilts_train_in_a_loop_of_ones_own():
    physics, model, losses, loader, optimizer = mixed_blocks()
    history = []
    for batch in loader:
        physics.update(**batch["params"])
        x_net = model(batch["y"], physics)
        loss = sum(term(x_net=x_net, y=batch["y"], physics=physics, model=model).mean() for term in losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-6:]) < 0.97 * sum(history[:6])


def test_mixed_tilts_train_in_the_trainer_of_deepinv():
    physics, model, losses, loader, optimizer = mixed_blocks()
    trainer = deepinv.Trainer(
        model=model,
        physics=physics,
        optimizer=optimizer,
        train_dataloader=loader,
        losses=losses,
        metrics=None,
        compute_train_metrics=False,
        epochs=2,
        device="cpu",
        save_path=None,
        show_progress_bar=False,
        verbose=False,
        non_blocking_transfers=False,
    )
    trainer.train()
    total = [sum(losses) for losses in zip(*trainer.loss_history.values(), strict=True)]
    assert total[1] < total[0]
    # What the operator holds is the mask of the last batch.
    assert physics.mask.shape[:2] == (2, 2)


# The specimen mask -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_filled():
    """A simulated tomogram whose right half is empty but for noise."""
    generator = torch.Generator().manual_seed(0)
    geometry = TiltGeometry(range(-60, 61, 6))
    halves = simulate_halves((32, 40, 40), geometry, snr=1.0, voxel_size=15.0, generator=generator)
    volume = (halves.first + halves.second) / 2
    deviation = (halves.first - halves.second).std() / 2
    volume[:, :, 20:] = deviation * torch.randn(32, 40, 20, generator=generator)
    return volume


@pytest.mark.parametrize("contrast", [1.0, -1.0], ids=["bright", "dark"])
def test_the_mask_finds_the_half_with_the_specimen(half_filled, contrast):
    mask = specimen_mask(contrast * half_filled)
    assert mask[:, :, :20].float().mean() > 4 * mask[:, :, 20:].float().mean()


def test_the_mask_does_not_depend_on_offset_and_scale(half_filled):
    moved = specimen_mask(1e-3 * half_filled.double() + 5.0)
    assert (moved == specimen_mask(half_filled)).float().mean() > 0.99


def test_each_criterion_keeps_its_percentage(half_filled):
    for settings in ({"density_percentage": 20}, {"deviation_percentage": 20}):
        mask = specimen_mask(half_filled, **{"density_percentage": 100, "deviation_percentage": 100} | settings)
        assert mask.float().mean() == pytest.approx(0.2, abs=0.03)


def test_a_volume_that_is_mostly_constant_is_mostly_dropped():
    volume = torch.zeros(24, 24, 24)
    volume[10:14, 10:14, 10:14] = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = specimen_mask(volume)
    assert mask[12, 12, 12]
    assert mask.float().mean() < 0.3


def test_a_mask_is_boolean_and_of_the_volume_s_shape():
    mask = specimen_mask(noisy_halves((9, 10, 11))[0])
    assert mask.shape == (9, 10, 11)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("window", [0, 8, -3])
def test_a_window_that_is_not_odd_is_refused(window):
    with pytest.raises(ValueError, match=f"`window` must be an odd number of voxels, got {window}"):
        specimen_mask(torch.randn(12, 12, 12), window=window)


@pytest.mark.parametrize("name", ["density_percentage", "deviation_percentage"])
@pytest.mark.parametrize("value", [0.0, 101.0, float("nan")])
def test_a_percentage_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=r"percentage` must lie in \(0, 100\]"):
        specimen_mask(torch.randn(12, 12, 12), **{name: value})


def test_a_mask_of_something_else_than_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"\(z, y, x\).*\(12, 12\)"):
        specimen_mask(torch.randn(12, 12))


@pytest.mark.fault(19)
def test_a_map_of_a_file_is_judged_section_by_section_as_the_volume_is(tmp_path):
    values = np.random.default_rng(0).normal(5, 2, (6, 7, 8)).astype(np.float32)
    values.tofile(tmp_path / "a.raw")
    mapped = np.memmap(tmp_path / "a.raw", np.float32, "r+", shape=values.shape)
    require_usable(mapped, "it")
    assert IntensityScale.of(mapped) == IntensityScale.of(torch.from_numpy(values))
    mapped[4, 2, 3] = mapped[5, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"it holds 2 voxels .* the first at z 4, y 2, x 3"):
        require_usable(mapped, "it")


def test_a_sample_takes_every_so_manieth_voxel_across_sections():
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    expected = values.reshape(-1)[::11].astype(np.float64)
    scale = IntensityScale.of(HalfStatistics.of(values, most_samples=20))
    spread = 1.4826 * np.median(np.abs(expected - np.median(expected)))
    assert np.abs(expected - np.median(expected)).max() < 6 * spread
    assert scale.mean == pytest.approx(expected.mean())
    assert scale.scale == pytest.approx(expected.std())
