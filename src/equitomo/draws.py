"""Random numbers that depend on a seed and a counter alone, so that a resumed run repeats them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# One stream per purpose: a change in how one is used leaves the others alone.
CUBES, ELEMENTS, SLOTS, TOMOGRAMS, MIRRORS, EXCHANGES = range(6)


@dataclass(frozen=True)
class Draws:
    """Random numbers for the samples of a batch, which depend on the seed and on each sample's index alone.

    However a run divides its samples into batches, and wherever it is resumed, a sample gets the same numbers.

    Parameters
    ----------
    seed
        The seed of the run, from 0 to 2^64 - 1.
    indices
        The index of each sample of the batch among all samples of the run.

    Examples
    --------
    >>> Draws(7, range(2, 5)).integers(1000, CUBES) == Draws(7, range(9)).integers(1000, CUBES)[2:5]
    True
    """

    seed: int
    indices: Sequence[int]

    def integers(self, bound: int, stream: int) -> list[int]:
        """Return one uniform integer from 0 to ``bound - 1`` for each sample."""
        return draw_integers(self.seed, self.indices, bound, stream)

    def generator(self, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a generator that is seeded by the seed and the index of the first sample."""
        (seed,) = draw_integers(self.seed, self.indices[:1], 2**63, stream)
        return torch.Generator(device).manual_seed(seed)


def draw_integers(seed: int, indices: Sequence[int], bound: int, stream: int) -> list[int]:
    """Return one uniform integer from 0 to ``bound - 1`` for each index, whatever was drawn before.

    Examples
    --------
    >>> draw_integers(7, range(2, 5), 1000, CUBES) == draw_integers(7, range(0, 9), 1000, CUBES)[2:5]
    True
    """
    drawn = []
    # numpy would turn a list of such integers into floats, but a seed needs all of its 64 bits.
    key = np.array([seed, stream], dtype=np.uint64)
    for index in indices:
        # A counter-based generator (Salmon et al. 2011); the high words keep the indices' sequences apart.
        bits = np.random.Philox(key=key, counter=[0, 0, 0, index])
        drawn.append(int(np.random.Generator(bits).integers(bound)))
    return drawn
