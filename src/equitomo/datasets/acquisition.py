"""The order in which the views of a tilt series were taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Turn = Literal["up", "down"]

# By how many standard errors the neighbours of a scheme must be more alike than those of any other.
_CLEAR = 3.0
_SIDE = 64  # pixels along each axis on which views are compared


def acquisition_order(projections: Tensor, angles: Sequence[float], first_turn: Turn = "up") -> tuple[int, ...]:
    """Return the place of each image's angle among the sorted angles, for images in the order of acquisition.

    The usual schemes are tried: ascending, from the middle to one end and then to the other, and from the middle to
    both ends in turns of one to five views. In the right one, neighbouring views are most alike, up to a shift. Images
    do not tell which direction came first: the other one mirrors the tilts, which leaves all neighbours as they are.

    Parameters
    ----------
    projections
        The images in the order of acquisition, ``(tilt, along, across)``.
    angles
        The angles in any order.
    first_turn
        Whether the first turn went to larger angles or to smaller ones.

    Raises
    ------
    ValueError
        If no scheme makes neighbours clearly more alike than all others do.

    Examples
    --------
    >>> angle = torch.linspace(-1, 1, 21)[:, None, None]
    >>> place = torch.linspace(-2, 2, 64).expand(21, 64, 64)
    >>> views = torch.exp(-8 * (place - angle) ** 2) + torch.exp(-8 * (place + angle / 2 + 0.5) ** 2)
    >>> turns = schemes(range(-40, 44, 4))["from the middle in turns of 2"]
    >>> acquisition_order(views[list(turns)], range(-40, 44, 4)) == turns
    True
    """
    distance = _distances(projections)
    neighbours: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for places in schemes(angles, first_turn).values():
        image = sorted(range(len(places)), key=places.__getitem__)
        neighbours.setdefault(places, {(min(pair), max(pair)) for pair in pairwise(image)})
    total = {places: sum(float(distance[pair]) for pair in pairs) for places, pairs in neighbours.items()}
    best = min(total, key=total.__getitem__)
    for other in neighbours:
        if other != best and _excess(distance, neighbours[other], neighbours[best]) < _CLEAR:
            raise ValueError(
                "no order of acquisition makes neighbouring views clearly more alike than all others do; give the "
                "angles in the order of the images, as in the .mdoc of the series"
            )
    return best


def schemes(angles: Sequence[float], first_turn: Turn = "up") -> dict[str, tuple[int, ...]]:
    """Return the usual orders of acquisition: for each the places, among the sorted angles, of the views in turn.

    Examples
    --------
    >>> schemes([-20, -10, 0, 10, 20])["from the middle in turns of 1"]
    (2, 3, 1, 4, 0)
    """
    n = len(angles)
    ordered = sorted(angles)
    middle = min(range(n), key=lambda place: (abs(ordered[place]), ordered[place]))
    up, down = range(middle + 1, n), range(middle - 1, -1, -1)
    first, second = (up, down) if first_turn == "up" else (down, up)
    found = {
        "ascending": tuple(range(n)),
        "from the middle to one end, then to the other": (middle, *first, *second),
    }
    for size in range(1, 6):
        turns = [middle]
        for start in range(0, max(len(up), len(down)), size):
            turns += [*first[start : start + size], *second[start : start + size]]
        found[f"from the middle in turns of {size}"] = tuple(turns)
    return found


def _excess(distance: Tensor, pairs: set[tuple[int, int]], best: set[tuple[int, int]]) -> float:
    """Return by how many standard errors pairs of views are less alike than the best ones, where the two differ."""
    ours, theirs = (torch.tensor([float(distance[pair]) for pair in own]) for own in (best - pairs, pairs - best))
    if min(len(ours), len(theirs)) < 2:
        return math.inf if len(theirs) == 0 or theirs.mean() > distance.diagonal(1).mean() else 0.0
    error = float((ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt())
    return float(theirs.mean() - ours.mean()) / max(error, 1e-12)


def _distances(projections: Tensor) -> Tensor:
    """Return how unlike two views are, for all pairs; 0 for equal ones up to a shift, 1 for unrelated ones."""
    step = [max(n // _SIDE, 1) for n in projections.shape[-2:]]
    views = torch.nn.functional.avg_pool2d(projections[:, None].float(), step)[:, 0]
    views = views - views.mean((-2, -1), keepdim=True)
    views = views / views.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(1e-30)
    spectrum = torch.fft.rfft2(views)
    rows = []
    for one in spectrum:
        # The highest value of the correlation: views that are not aligned yet can be compared too.
        correlation = torch.fft.irfft2(one * spectrum.conj(), s=tuple(views.shape[-2:]))
        rows.append(1 - correlation.amax((-2, -1)))
    return torch.stack(rows).clamp_min(0)
