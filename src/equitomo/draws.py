"""Draw random numbers that depend only on a seed and a counter, so that a resumed run draws the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Each purpose has its own stream, so that a change in the use of one does not change the others.
CUBES, ELEMENTS, SLOTS, TOMOGRAMS, MIRRORS, EXCHANGES, HELD_OUT = range(7)


@dataclass(frozen=True)
class Draws:
    """Random numbers for the samples of a batch, which depend only on the seed and on the index of each sample.

    A sample gets the same numbers in whatever batches a run divides its samples, and wherever it is resumed.

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
    """Return one uniform integer from 0 to ``bound - 1`` for each index, independent of earlier draws.

    Examples
    --------
    >>> draw_integers(7, range(2, 5), 1000, CUBES) == draw_integers(7, range(0, 9), 1000, CUBES)[2:5]
    True
    """
    drawn = []
    # Without the type numpy would convert integers of 64 bits to floats, which have fewer digits.
    key = np.array([seed, stream], dtype=np.uint64)
    for index in indices:
        # In a counter-based generator (Salmon et al. 2011) the highest word keeps the sequences of the indices apart.
        bits = np.random.Philox(key=key, counter=[0, 0, 0, index])
        drawn.append(int(np.random.Generator(bits).integers(bound)))
    return drawn
