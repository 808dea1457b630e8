"""Random draws that depend on a seed and a counter alone."""

import numpy as np
import pytest

from equitomo._draws import CUBES, ELEMENTS, draw_integers


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
