"""Measure the margin that a network needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from equitomo.inference._voxels import Source
from equitomo.tiling import reflected
from equitomo.volumes import Shape, VolumeLike

if TYPE_CHECKING:
    from equitomo.inference.predictor import TiledPredictor


def margin_errors(
    predictor: TiledPredictor,
    volume: VolumeLike,
    *,
    largest: int = 64,
    core: int = 32,
    centre: Shape | None = None,
    intensities: tuple[float, float] = (0.0, 1.0),
) -> dict[int, float]:
    """Return how much the network's values in a core change with the margin that is computed around it.

    Parameters
    ----------
    predictor
        The predictor whose network is measured.
    volume
        A volume ``(z, y, x)`` like those that the predictor is called with.
    largest
        The margin whose values count as exact.
    core
        Voxels per side of the core.
    centre
        The centre ``(z, y, x)`` of the core, which should lie in the specimen; ``None`` takes the volume's middle.
    intensities
        Mean and standard deviation of the volume, if it is not on the network's intensity scale.

    Returns
    -------
    dict
        For every margin below the largest that is a multiple of the stride, the norm of the difference to the
        values with the largest margin over their norm.

    Raises
    ------
    ValueError
        If the network gives nothing but zeros there, or takes tiles of one size only.
    """
    layout = predictor.layout
    if layout.exact:
        raise ValueError("margins cannot be measured with `exact_tile=True`: the network takes one tile size only")
    stride = layout.stride
    n, largest = (-(-length // stride) * stride for length in (core, largest))
    source = Source([volume], *intensities)
    z, y, x = source.shape
    at = (z // 2, y // 2, x // 2) if centre is None else centre
    # Pooling falls on the same voxels as in a tile.
    origin = [(c - n // 2) // stride * stride for c in at]

    def values(margin: int) -> Tensor:
        inner = slice(margin, margin + n)
        return predictor.replicas[0](_cube(source, origin, n, margin))[0, ..., inner, inner, inner]

    with predictor.evaluating():
        exact = values(largest)
        if not exact.norm() > 0:
            raise ValueError(f"the network gives zeros around voxel {at} (z, y, x): choose a `centre` with specimen")
        return {margin: float((values(margin) - exact).norm() / exact.norm()) for margin in range(0, largest, stride)}


def measured_margin(
    predictor: TiledPredictor,
    volume: VolumeLike,
    tolerance: float = 0.01,
    *,
    largest: int = 64,
    core: int = 32,
    centre: Shape | None = None,
    intensities: tuple[float, float] = (0.0, 1.0),
) -> int:
    """Return the smallest margin that the network needs, measured in one core of a volume.

    Parameters
    ----------
    predictor, volume, largest, core, centre, intensities
        As for :func:`margin_errors`.
    tolerance
        The relative error allowed in the core. Computing in 16 bits alone causes up to 0.01.

    Raises
    ------
    ValueError
        If no margin below the largest is within the tolerance together with all larger ones.

    Examples
    --------
    >>> from equitomo import TiledPredictor
    >>> network = torch.nn.Conv3d(1, 1, 5, padding=2, bias=False)
    >>> predictor = TiledPredictor(network, passes=1, tile=32, margin=4, precision="float32")
    >>> measured_margin(predictor, torch.randn(40, 40, 40), 1e-5, largest=8, core=8)
    2
    """
    errors = margin_errors(predictor, volume, largest=largest, core=core, centre=centre, intensities=intensities)
    too_small = [margin for margin, error in errors.items() if not error <= tolerance]
    enough = [margin for margin in errors if margin > max(too_small, default=-1)]
    if not enough:
        last = max(errors)
        raise ValueError(
            f"no margin up to {last} is within {tolerance:g}: that one leaves an error of {errors[last]:.2g}. Pass a "
            "larger `largest`, or allow more with `tolerance`"
        )
    return min(enough)


def _cube(source: Source, origin: Sequence[int], n: int, margin: int) -> Tensor:
    """Return a core with a margin, reflected beyond the borders of the volume."""
    places = [
        reflected(np.arange(o - margin, o + n + margin), length) for o, length in zip(origin, source.shape, strict=True)
    ]
    box = tuple(slice(place.min(), place.max() + 1) for place in places)
    return torch.from_numpy(source[box][np.ix_(*(place - place.min() for place in places))])[None, None]
