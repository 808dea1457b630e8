"""Tiles over volumes of any size: nothing is left out, nothing counts twice, and what is read is what it should be."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from equitomo.tiling import Tiling, reflected, shortest_tile

SHAPES = [(16, 16, 16), (15, 15, 15), (7, 20, 33)]


@st.composite
def tilings(draw) -> Tiling:
    stride = draw(st.sampled_from([1, 2, 3, 4, 8]))
    tile = stride * draw(st.integers(1, 40 // stride))
    margin, blend = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    shape = tuple(draw(st.integers(1, 60)) for _ in range(3))
    border = draw(st.sampled_from(["reflect", "zero"]))
    try:
        tiling = Tiling(shape, tile, margin, stride, blend, border)
    except ValueError:
        assume(False)
    assume(len(tiling) < 500)
    return tiling


any_tiling = given(tilings())
quietly = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def along(tiling: Tiling, axis: int) -> list[slice]:
    """Where the tiles along one axis write, in order."""
    targets = {placement.target[axis].start: placement.target[axis] for placement in tiling}
    return [targets[start] for start in sorted(targets)]


@quietly
@any_tiling
def test_the_weights_add_up_to_one_everywhere(tiling):
    total = np.zeros(tiling.shape)
    for placement in tiling:
        assert (placement.weight > 0).all()
        total[placement.target] += placement.weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@quietly
@any_tiling
def test_a_core_lies_within_its_tile_without_the_margin(tiling):
    for placement in tiling:
        for axis in range(3):
            core, target = placement.core[axis], placement.target[axis]
            assert tiling.margin <= core.start < core.stop <= tiling.tile[axis] - tiling.margin
            assert core.stop - core.start == target.stop - target.start == placement.weight.shape[axis]


@quietly
@any_tiling
def test_a_tile_starts_on_a_multiple_of_the_stride_and_reads_where_it_writes(tiling):
    for placement in tiling:
        for axis in range(3):
            core, target = placement.core[axis], placement.target[axis]
            assert (target.start - core.start) % tiling.stride == 0
            read = placement.source[axis]
            assert len(read) == tiling.tile[axis]
            np.testing.assert_array_equal(read[core], np.arange(target.start, target.stop))


@quietly
@any_tiling
def test_neighbouring_cores_overlap_by_the_blend(tiling):
    for axis in range(3):
        for one, other in itertools.pairwise(along(tiling, axis)):
            assert one.stop - other.start >= tiling.blend


@quietly
@any_tiling
def test_the_number_of_tiles_is_their_count_and_none_is_needless(tiling):
    assert len(list(tiling)) == len(tiling)
    for axis in range(3):
        assert all(target.stop < tiling.shape[axis] for target in along(tiling, axis)[:-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", ["reflect", "zero"])
# With a margin of one the first tile begins at index -1, which an array would take for its last.
@pytest.mark.parametrize(("margin", "stride"), [(4, 4), (1, 1)])
def test_beyond_the_border_a_tile_reads_what_padding_would_put_there(shape, border, margin, stride):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pad = 32
    padded = np.pad(volume, pad, mode="reflect" if border == "reflect" else "constant")
    for placement in Tiling(shape, 16, margin, stride, 0, border):
        origin = [t.start - c.start + pad for t, c in zip(placement.target, placement.core, strict=True)]
        expected = padded[tuple(slice(o, o + 16) for o in origin)]
        np.testing.assert_array_equal(placement.read(volume), expected)


def test_a_tile_inside_the_volume_is_read_as_a_contiguous_copy():
    volume = np.arange(20.0**3, dtype=np.float32).reshape(20, 20, 20)
    inside = [p for p in Tiling((20, 20, 20), 8, 2) if all(index[-1] - index[0] == 7 for index in p.source)]
    assert inside
    for placement in inside:
        tile = placement.read(volume)
        assert tile.flags.c_contiguous
        assert not np.shares_memory(tile, volume)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_reflections_repeat_as_often_as_needed(length):
    index = np.arange(-20, 25)
    expected = np.pad(np.arange(length), (20, 25 - length), mode="reflect")
    np.testing.assert_array_equal(reflected(index, length), expected)


def test_neighbours_are_blended_linearly():
    """Cores 0-9 and 6-15 share four voxels: the first falls by fifths while the second rises."""
    first, second = list(Tiling((1, 1, 16), (1, 1, 10), 0, 1, 4))
    np.testing.assert_allclose(first.weight[0, 0], [1] * 6 + [0.8, 0.6, 0.4, 0.2], atol=1e-6)
    np.testing.assert_allclose(second.weight[0, 0], [0.2, 0.4, 0.6, 0.8] + [1] * 6, atol=1e-6)


@pytest.mark.parametrize("length", [5, 33, 80, 128, 256, 300])
@pytest.mark.parametrize(
    ("tile", "margin", "stride", "blend"), [(64, 8, 8, 0), (96, 18, 8, 12), (128, 24, 8, 16), (40, 3, 1, 5)]
)
def test_a_tile_is_shortened_as_far_as_no_more_of_them_are_needed(length, tile, margin, stride, blend):
    def count(n: int) -> int:
        return len(along(Tiling((length, 1, 1), (n, 2 * tile, 2 * tile), margin, stride, blend), 0))

    short = shortest_tile(length, tile, margin, stride, blend)
    assert short % stride == 0
    assert count(short) == count(tile)
    # Or nothing would be left to write.
    with contextlib.suppress(ValueError):
        assert count(short - stride) > count(tile)


def test_an_axis_that_one_tile_holds_needs_no_room_for_blending():
    tiling = Tiling((4, 40, 40), (12, 32, 32), 4, 1, 8)
    assert along(tiling, 0) == [slice(0, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((9, 9, 9), 12, 2, 8), "a tile must be a multiple of the network's stride 8, got 12: use 8 or 16"),
        (((9, 9, 9), 4, 0, 8), "got 4: use 8$"),
        (((40, 40, 40), 16, 8, 1), "a tile of 16 voxels with margins of 8 and a blend of 0 leaves no core of 1 voxels"),
        (((40, 40, 40), 32, 8, 8, 9), "leaves no core of 8 voxels: use a larger tile or a smaller margin"),
        (((0, 9, 9), 8, 0), "`shape` and `stride` must be positive"),
        (((9, 9, 9), 8, -1), "`margin` and `blend` zero or more"),
        (((9, 9, 9), 8, 0, 1, -1), "`margin` and `blend` zero or more"),
        (((9, 9, 9), 8, 0, 0), "`shape` and `stride` must be positive"),
    ],
)
def test_tiles_that_cannot_cover_a_volume_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)
