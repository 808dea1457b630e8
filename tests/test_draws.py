"""Random draws that depend on a seed and a counter alone."""

import numpy as np
import pytest
import torch

from equitomo.draws import CUBES, ELEMENTS, Draws, draw_integers


@pytest.mark.parametrize("begin", [0, 1, 17, 40])
def test_a_draw_does_not_depend_on_the_draws_before_it(begin):
    whole = draw_integers(3, range(50), 10**6, CUBES)
    assert draw_integers(3, range(begin, 50), 10**6, CUBES) == whole[begin:]


def test_the_streams_of_one_seed_differ():
    assert draw_integers(3, range(50), 10**6, CUBES) != draw_integers(3, range(50), 10**6, ELEMENTS)


def test_two_seeds_give_different_draws():
    assert draw_integers(3, range(50), 10**6, CUBES) != draw_integers(4, range(50), 10**6, CUBES)


def test_the_largest_seeds_are_told_apart():
    assert draw_integers(2**64 - 1, range(50), 10**6, CUBES) != draw_integers(2**64 - 2, range(50), 10**6, CUBES)


def test_draws_are_uniform_over_all_numbers_below_the_bound():
    counts = np.bincount(draw_integers(5, range(6000), 12, CUBES))
    # The 99.99 % quantile of chi-square with 11 degrees of freedom is 37.4.
    assert len(counts) == 12
    assert ((counts - 500) ** 2 / 500).sum() < 37.4


def test_a_draw_may_exceed_32_bits():
    assert max(draw_integers(0, range(20), 2**40, CUBES)) > 2**32


def test_the_samples_of_a_batch_draw_alike_however_they_are_batched():
    whole = Draws(3, range(50)).integers(10**6, CUBES)
    assert whole == draw_integers(3, range(50), 10**6, CUBES)
    assert [*Draws(3, range(7)).integers(10**6, CUBES), *Draws(3, range(7, 50)).integers(10**6, CUBES)] == whole


def test_a_generator_repeats_with_the_seed_the_first_index_and_the_stream():
    def values(seed=3, first=8, stream=CUBES):
        return torch.rand(5, generator=Draws(seed, range(first, first + 4)).generator(stream)).tolist()

    assert values() == values()
    assert len({tuple(v) for v in (values(), values(seed=4), values(first=9), values(stream=ELEMENTS))}) == 4


DRAWN = set()


@pytest.mark.parametrize("n_more", [1, 2])
def test_every_test_draws_the_same_numbers_whatever_ran_before(n_more):
    DRAWN.add(tuple(torch.randn(3).tolist()))
    torch.randn(n_more)
    assert len(DRAWN) == 1
