"""A block of a tomogram that no cube of a training touches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from equitomo.draws import HELD_OUT, draw_integers
from equitomo.volumes import Shape

# Voxels around the block that a network sees besides, so that the block has no faces inside of the tomogram.
_CONTEXT = 24
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class HeldOutBlock:
    """The first voxel of a block, and the voxel after its last one, along (z, y, x)."""

    start: Shape
    stop: Shape

    @property
    def slices(self) -> Slices:
        """The place of the block."""
        z, y, x = (slice(first, end) for first, end in zip(self.start, self.stop, strict=True))
        return z, y, x

    def barred(self, shape: Shape, cube: Shape, reach: Shape) -> tuple[NDArray[np.bool_], ...]:
        """Return for each axis which starts of cubes overlap the block when they are cut with the shape ``reach``.

        Larger cubes are moved inside near the faces of the volume of shape ``shape``, as in :meth:`Cubes.cut`.
        """
        axes = []
        for n, side, cut, first, end in zip(shape, cube, reach, self.start, self.stop, strict=True):
            begin = np.clip(np.arange(n - side + 1) - (cut - side) // 2, 0, n - cut)
            axes.append((begin < end) & (begin + cut > first))
        return tuple(axes)


@dataclass(frozen=True)
class HeldOut:
    """What was held out of a training.

    Parameters
    ----------
    volumes
        The block with what surrounds it, ``(views, z, y, x)``, on the common scale of the halves.
    inner
        The place of the block in them.
    """

    volumes: Tensor
    inner: Slices

    @classmethod
    def of(cls, volumes: Tensor, block: HeldOutBlock) -> HeldOut:
        """Return the block and its surroundings in a tomogram, not copied."""
        outer, inner = [], []
        for n, first, end in zip(volumes.shape[1:], block.start, block.stop, strict=True):
            begin = max(first - _CONTEXT, 0)
            outer.append(slice(begin, min(end + _CONTEXT, n)))
            inner.append(slice(first - begin, end - begin))
        return cls(volumes[(slice(None), *outer)], (inner[0], inner[1], inner[2]))


def held_out_block(
    shape: Shape, side: int, seed: int, mask: Tensor | None = None, min_fraction: float = 0.0, name: str = "the volume"
) -> HeldOutBlock:
    """Return the block that is held out: a column through the whole depth, in a corner across the beam.

    In a corner the block takes the fewest cubes away from the training. Which of the four corners it is depends on the
    seed; those with too little specimen are passed over.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the tomogram.
    side
        Voxels of the block along y and x.
    seed
        The seed of the run.
    mask, min_fraction
        The specimen, and the share of the block that must be inside it.
    name
        The name of the tomogram, for errors.

    Raises
    ------
    ValueError
        If the block does not leave half of the tomogram, or no corner has enough specimen.

    Examples
    --------
    >>> block = held_out_block((20, 40, 60), 16, seed=0)
    >>> [len(range(*place.indices(60))) for place in block.slices]
    [20, 16, 16]
    """
    z, y, x = shape
    if not 1 <= side <= min(y, x) // 2:
        raise ValueError(
            f"`held_out` must be at most half of the tomogram along y and x, got {side} for {name} of {shape} (z, y, "
            f"x): use at most {min(y, x) // 2}"
        )
    (drawn,) = draw_integers(seed, range(1), 4, HELD_OUT)
    most = 0.0
    for number in range(4):
        at_end = divmod((drawn + number) % 4, 2)
        first_y, first_x = (n - side if end else 0 for n, end in zip((y, x), at_end, strict=True))
        block = HeldOutBlock((0, first_y, first_x), (z, first_y + side, first_x + side))
        share = 1.0 if mask is None else float(mask[block.slices].float().mean())
        if share >= min_fraction:
            return block
        most = max(most, share)
    raise ValueError(
        f"no corner of {name} holds a block of {side} voxels with a share of {min_fraction:g} of specimen by its mask, "
        f"the fullest one holds {most:.3f}: lower `min_specimen`, change `held_out`, or pass `held_out=0`"
    )
