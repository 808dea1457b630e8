"""Random tilt ranges: masks of wedges within the intervals, repeated by their seed, fit for the operator."""

from __future__ import annotations

import pytest
import torch
from asserting import SHAPES, assert_close, normal

from equitomo import MissingWedgeOperator, PaddedMissingWedgeOperator, TiltGeometry, TiltRangeGenerator
from equitomo.geometry import wedge_mask

each_kind = pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
UNION = TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-60, 60, "x")
GEOMETRIES = [TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-60, 60, "x"), UNION]


@each_kind
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("support", ["ball", "box"])
def test_a_mask_of_one_range_is_that_of_the_operator(kind, shape, geometry, support):
    """Intervals without width leave one range."""
    physics = kind(shape, geometry, support=support)
    params = TiltRangeGenerator(physics, low=(-50, -50), high=(20, 20)).step(batch_size=2)
    parts = [TiltGeometry.from_range(-50, 20, part.tilt_axis) for part in geometry.parts]
    expected = kind(shape, parts[0] if len(parts) == 1 else parts[0] | parts[1], support=support)
    x = normal(2, 1, *shape, dtype=torch.float32)
    assert_close(physics.A(x, **params), expected.A(x), 1e-6)


@each_kind
@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=str)
def test_ranges_lie_between_the_smallest_and_the_largest_and_fill_the_space_between(kind, geometry):
    physics = kind((16, 16, 16), geometry)
    masks = TiltRangeGenerator(physics, low=(-70, -40), high=(30, 60)).step(batch_size=40, seed=0)["mask"]
    smallest, largest = (
        wedge_mask(physics.grid_shape, TiltGeometry.from_range(*limits, geometry.tilt_axis), support="ball")
        for limits in ((-40, 30), (-70, 60))
    )
    assert (masks[:, 0] >= smallest).all()
    assert (masks[:, 0] <= largest).all()
    varies = masks.amin((0, 1)) != masks.amax((0, 1))
    assert varies.sum() > 0.9 * (smallest != largest).sum()
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 30


def test_draws_go_on_from_a_seed_and_repeat_with_it():
    generator = TiltRangeGenerator(MissingWedgeOperator((16, 16, 16), (-60, 60)))
    first, second = generator.step(2, seed=5)["mask"], generator.step(2)["mask"]
    assert not torch.equal(first, second)
    assert torch.equal(generator.step(4, seed=5)["mask"], torch.cat([first, second]))
    text = generator.step(2, seed="a string")["mask"]
    assert torch.equal(generator.step(2, seed="a string")["mask"], text)
    state = torch.get_rng_state()
    generator.step(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_operator_that_was_given_masks_is_still_drawn_for():
    physics = MissingWedgeOperator((8, 8, 8), (-60, 60))
    generator = TiltRangeGenerator(physics)
    x = normal(3, 1, 8, 8, 8, dtype=torch.float32)
    for _ in range(2):
        params = generator.step(len(x))
        y = physics(x, **params)
        assert_close(physics.A(y), y, 1e-6)
    assert not list(generator.children())


def test_masks_have_the_type_that_was_asked_for():
    physics = MissingWedgeOperator((8, 8, 8), (-60, 60))
    assert TiltRangeGenerator(physics, dtype=torch.float64).step()["mask"].dtype == torch.float64
    assert TiltRangeGenerator(physics).step()["mask"].dtype == torch.float32


@pytest.mark.parametrize(
    "intervals",
    [
        {"low": (-95, -40)},
        {"high": (40, 91)},
        {"low": (-40, -60)},
        {"low": (-60, 50)},
        {"low": (-90, 0), "high": (1, 90)},
    ],
)
def test_intervals_that_give_no_range_are_refused(intervals):
    with pytest.raises(ValueError, match="`low` and `high` must be intervals of degrees"):
        TiltRangeGenerator(MissingWedgeOperator((8, 8, 8), (-60, 60)), **intervals)


def test_an_operator_of_a_mask_has_no_tilt_axis():
    with pytest.raises(ValueError, match="`physics` must be made from a geometry"):
        TiltRangeGenerator(MissingWedgeOperator((8, 8, 8), mask=torch.ones(8, 8, 5)))
