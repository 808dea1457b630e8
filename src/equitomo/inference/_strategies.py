"""Where the missing wedge is emptied between the passes of the network: one function for each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equitomo.inference._layout import TileLayout
from equitomo.inference._passes import VolumePasses
from equitomo.inference._voxels import Source, Target
from equitomo.io import release
from equitomo.volumes import Shape

Wedge = Literal["local", "global", "tile"]
Strategy = Callable[[VolumePasses, Source, Target, int], None]


def strategy_of(wedge: Wedge, passes: int) -> Strategy:
    """Return the function that reconstructs one volume from a source into a target in so many passes."""
    if passes == 1:
        return one_pass
    return {"local": wedge_in_small_tiles, "global": wedge_of_volume, "tile": wedge_in_tiles}[wedge]


def one_pass(volume: VolumePasses, source: Source, target: Target, passes: int) -> None:
    """Write f(y)."""
    volume.in_large_tiles(source, target)


def wedge_in_tiles(volume: VolumePasses, source: Source, target: Target, passes: int) -> None:
    """Write f(A f(y)), with the network and the operator applied to each tile on its own."""
    volume.in_large_tiles(source, target, passes)


def wedge_of_volume(volume: VolumePasses, source: Source, target: Target, passes: int) -> None:
    """Write f(A f(y)), with the operator applied to the whole volume between two tiled passes."""
    for _ in range(passes - 1):
        between = volume.scratch_volume(source.shape)
        volume.in_large_tiles(source, Target.of(between))
        volume.empty_wedge(between)
        source = Source([between])
    volume.in_large_tiles(source, target)


def wedge_in_small_tiles(volume: VolumePasses, source: Source, target: Target, passes: int) -> None:
    """Write A x + (I - A) f(A_tile x) for x = f(y), with the second pass in small tiles."""
    estimate = volume.scratch_volume(source.shape)
    volume.in_large_tiles(source, Target.of(estimate))
    for _ in range(passes - 1):
        second = volume.scratch_volume(source.shape)
        volume.in_small_tiles(Source([estimate]), Target.of(second))
        # A x + (I - A) x' = x' + A (x - x') needs one copy of the volume less.
        _combine(np.subtract, estimate, second)
        volume.empty_wedge(estimate)
        _combine(np.add, estimate, second)
    target.add_volume(estimate)


def tile_count(wedge: Wedge, passes: int, layout: TileLayout, shape: Shape) -> int:
    """Return the number of tiles that the strategy computes for one volume."""
    n_large = len(layout.large(shape))
    if passes == 1 or wedge == "tile":
        return n_large
    return n_large * passes if wedge == "global" else n_large + len(layout.small(shape)) * (passes - 1)


def _combine(operation: np.ufunc, volume: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    """Replace the first volume by its sum or difference with the second, section by section."""
    for section, second in zip(volume, other, strict=True):
        operation(section, second, out=section)
        release(volume, other)
