"""How far a network looks, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from equitomo.inference._voxels import Source
from equitomo.tiling import reflected


def core_errors(
    network: Callable[[Tensor], Tensor],
    source: Source,
    *,
    stride: int,
    largest: int,
    core: int,
    centre: tuple[int, int, int] | None,
) -> dict[int, float]:
    """For every margin below the largest: the relative difference in a core to what the largest one gives there."""
    n, largest = (-(-length // stride) * stride for length in (core, largest))
    z, y, x = source.shape
    at = (z // 2, y // 2, x // 2) if centre is None else centre
    # Pooling falls on the same voxels as in a tile.
    origin = [(c - n // 2) // stride * stride for c in at]

    def values(margin: int) -> Tensor:
        inner = slice(margin, margin + n)
        return network(_cube(source, origin, n, margin))[0, 0, inner, inner, inner]

    exact = values(largest)
    if not exact.norm() > 0:
        raise ValueError(f"the network gives zeros around voxel {at} (z, y, x): choose a centre with specimen")
    return {margin: float((values(margin) - exact).norm() / exact.norm()) for margin in range(0, largest, stride)}


def smallest_margin(errors: dict[int, float], tolerance: float) -> int:
    """The smallest margin that is within the tolerance together with all larger ones."""
    too_small = [margin for margin, error in errors.items() if not error <= tolerance]
    enough = [margin for margin in errors if margin > max(too_small, default=-1)]
    if not enough:
        last = max(errors)
        raise ValueError(
            f"no margin up to {last} is within {tolerance:g}: that one leaves an error of {errors[last]:.2g}. Look "
            "further with a larger value of largest, or allow more"
        )
    return min(enough)


def _cube(source: Source, origin: Sequence[int], n: int, margin: int) -> Tensor:
    """A core with a margin, reflected beyond the borders of the volume."""
    places = [
        reflected(np.arange(o - margin, o + n + margin), length) for o, length in zip(origin, source.shape, strict=True)
    ]
    box = tuple(slice(place.min(), place.max() + 1) for place in places)
    return torch.from_numpy(source[box][np.ix_(*(place - place.min() for place in places))])[None, None]
