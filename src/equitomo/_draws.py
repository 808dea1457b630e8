"""Random draws that depend on a seed and a counter alone, so that a resumed run repeats them."""

from __future__ import annotations

import numpy as np

# One stream per purpose: a change in how one is used leaves the others alone.
CUBES, ELEMENTS, SLOTS, TENANTS, MIRRORS, EXCHANGES = range(6)


def draw_integers(seed: int, indices: range, bound: int, stream: int) -> list[int]:
    """One uniform integer below ``bound`` for each index, the same whatever was drawn before.

    Examples
    --------
    >>> draw_integers(7, range(2, 5), 1000, CUBES) == draw_integers(7, range(0, 9), 1000, CUBES)[2:5]
    True
    """
    drawn = []
    # A list would be turned into floats where a seed needs all of its 64 bits.
    key = np.array([seed, stream], dtype=np.uint64)
    for index in indices:
        # A counter-based generator (Salmon et al. 2011); the high words keep the indices' sequences apart.
        bits = np.random.Philox(key=key, counter=[0, 0, 0, index])
        drawn.append(int(np.random.Generator(bits).integers(bound)))
    return drawn
