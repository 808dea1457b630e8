"""The cubes that the losses of a method see in a step, and the tilts of their views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.datasets import SubtomogramDataset, SubtomogramPool, TomogramPair
from equitomo.datasets.cubes import cube_at
from equitomo.draws import Draws
from equitomo.training.method import Method, Tilts


def drawn_cubes(
    dataset: SubtomogramDataset | SubtomogramPool,
    method: Method,
    tilts_of_pairs: Sequence[Tilts],
    indices: range,
    draws: Draws,
    device: torch.device,
) -> tuple[Tensor, list[Tilts]]:
    """Return the cubes of a range of indices, cut, augmented and cropped by a method, and the tilts of each."""
    if method.larger_augmentations:
        y, sources, begins = dataset.cut(indices, method.cut_margin)
    else:
        (y, sources), begins = dataset.batch(indices), []
    tilts = [tilts_of_pairs[source] for source in sources]
    geometries = [own[0] if len(set(own)) == 1 else own for own in tilts]
    y = y.to(device, non_blocking=True)
    if method.n_views == 1 and y.shape[1] > 1:
        y = y.mean(1, keepdim=True)
    for augment in method.larger_augmentations:
        y = augment(y, geometries, draws)
    if begins:
        y = torch.stack([cube_at(cube, begin, dataset.shape) for cube, begin in zip(y, begins, strict=True)])
    for augment in method.augmentations:
        y = augment(y, geometries, draws)
    return y, tilts


def seen_tilts(pair: TomogramPair, method: Method) -> Tilts:
    """Return the tilts of each view that the method sees of a tomogram, and refuse one with other views."""
    if method.n_views == 1:
        if len(set(pair.geometries)) > 1:
            raise ValueError(
                f"{pair.name}: the method {method.name} takes the mean of the halves, whose tilts differ: give one "
                "volume that was reconstructed from all tilts"
            )
        return pair.geometries[:1]
    if pair.n_views != method.n_views:
        raise ValueError(
            f"{pair.name}: the method {method.name} compares {method.n_views} half tomograms and got {pair.n_views}: "
            "give both halves, or take a method for one volume, such as `method='equivariant_imaging'`"
        )
    return pair.geometries
