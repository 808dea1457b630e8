"""Cubes cut at random from pairs of half tomograms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from equitomo.datasets.halves import differ_in_size
from equitomo.datasets.held_out_block import HeldOut, held_out_block
from equitomo.datasets.pair import TomogramPair
from equitomo.datasets.starts import ValidStarts, require_fit
from equitomo.draws import CUBES, draw_integers
from equitomo.geometry import Geometry
from equitomo.physics import WedgeOperator
from equitomo.volumes import Shape


class Cubes(Dataset[dict[str, Any]]):
    """Cubes for training, from pairs in memory or in files.

    Attributes
    ----------
    pairs : tuple of TomogramPair
        The tomograms.
    shape : tuple of int
        Voxels of a cube along (z, y, x).
    length : int
        Number of cubes the dataset counts.
    held_out : HeldOut or None
        The block of the first tomogram that no cube touches.
    """

    pairs: tuple[TomogramPair, ...]
    shape: Shape
    length: int

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        side: int | Shape,
        *,
        length: int,
        seed: int,
        mixed_voxel_sizes: bool,
        physics: WedgeOperator | None,
        held_out: int = 0,
        reach: int = 0,
    ) -> None:
        self.pairs = (pairs,) if isinstance(pairs, TomogramPair) else tuple(pairs)
        if not self.pairs:
            raise ValueError("at least one pair of half tomograms is needed")
        if len({pair.n_views for pair in self.pairs}) > 1:
            raise ValueError("pairs of halves and single volumes cannot be mixed: give two halves of each, or one")
        z, y, x = (int(side),) * 3 if isinstance(side, (int, np.integer)) else map(int, side)
        self.shape = z, y, x
        self.length, self.seed = int(length), int(seed)
        if not mixed_voxel_sizes:
            require_one_voxel_size(self.pairs)
        for pair in self.pairs:
            require_fit(pair.shape, self.shape, pair.name)
        self._masks = {} if physics is None else _masks_of(self.pairs, physics)
        self.held_out: HeldOut | None = None
        self._held_out_side, self._reach = held_out, reach
        self._starts: list[ValidStarts] = []
        # The number of valid starts of each pair and of those before it.
        self._ends: list[int] = []

    @property
    def n_starts(self) -> int:
        """Number of different cubes that can be drawn."""
        return self._ends[-1]

    @property
    @abstractmethod
    def example(self) -> Tensor:
        """The cube in the middle of the first pair, ``(views, z, y, x)``, always the same."""

    def batch(self, indices: range) -> tuple[Tensor, list[int]]:
        """Return the items ``indices`` as one tensor ``(len(indices), views, z, y, x)``.

        Returns
        -------
        tuple
            The cubes, on the device of the volumes, and for each the number of the pair it was cut from.
        """
        cubes, sources, _ = self.cut(indices)
        return cubes, sources

    @abstractmethod
    def cut(self, indices: range, margin: int = 0) -> tuple[Tensor, list[int], list[Shape]]:
        """Return the items ``indices`` as :meth:`batch` does, but cut larger by a margin at each face.

        Near the faces of a volume the larger cube is moved inside, so that the cubes in it are the same for every
        margin. If a volume is too short for the margin, all are cut shorter.

        Returns
        -------
        tuple
            The larger cubes, for each the number of its pair, and where in it the cube begins.
        """

    def _cut(self, drawn: Iterable[tuple[int, Shape, Tensor]], margin: int) -> tuple[Tensor, list[int], list[Shape]]:
        """Return what :meth:`cut` does for cubes that are given by their pair, their start and the pair's volumes."""
        if self.held_out is not None and margin > self._reach:
            raise ValueError(f"cubes with a margin of {margin} would touch the held-out block: pass `reach={margin}`")
        shape = np.array(self._larger(margin))
        cubes, sources, begins = [], [], []
        for source, start, volumes in drawn:
            room = np.array(volumes.shape[1:]) - shape
            first = np.clip(np.array(start) - (shape - self.shape) // 2, 0, room)
            z, y, x = (np.array(start) - first).tolist()
            cubes.append(cube_at(volumes, first.tolist(), shape.tolist()))
            sources.append(source)
            begins.append((z, y, x))
        return torch.stack(cubes), sources, begins

    def _larger(self, margin: int) -> Shape:
        """Return the shape of cubes that are cut with a margin."""
        shortest = np.min([pair.shape for pair in self.pairs], axis=0)
        z, y, x = np.minimum(np.array(self.shape) + 2 * margin, shortest).tolist()
        return z, y, x

    def _add_starts(self, pair: TomogramPair, volumes: Tensor, mask: Tensor | None, min_fraction: float) -> None:
        """Find the valid starts of the next pair, and hold out a block of the first one."""
        barred = None
        if self._held_out_side and not self._starts:
            if pair.n_views != 2:
                raise ValueError("`held_out` compares the results for two halves: give both, or pass `held_out=0`")
            block = held_out_block(pair.shape, self._held_out_side, self.seed, mask, min_fraction, pair.name)
            barred = block.barred(pair.shape, self.shape, self._larger(self._reach))
            self.held_out = HeldOut.of(volumes, block)
        self._starts.append(ValidStarts(pair.shape, mask, self.shape, min_fraction, pair.name, barred))
        self._ends.append((self._ends[-1] if self._ends else 0) + self._starts[-1].count)

    def close(self) -> None:
        """End reading in the background; :meth:`batch` begins it again."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one cube of all views, ``{"y": (views, z, y, x)}``, with its mask in ``"params"`` if there is one."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        cubes, (source,) = self.batch(range(index, index + 1))
        item: dict[str, Any] = {"y": cubes[0]}
        if self._masks:
            item["params"] = {"mask": self._masks[self.pairs[source].geometries].to(cubes.device)}
        return item


class SubtomogramDataset(Cubes):
    """Cubes of both halves, drawn uniformly over all places where enough specimen is.

    Item ``k`` depends on the seed and ``k`` alone: workers, ranks and resumed runs see the same cubes. Several
    tomograms are drawn from in proportion to their valid starts. As items are dicts with the key ``"y"``, the dataset
    serves :class:`deepinv.Trainer` as it is. Where the tilts differ between tomograms or between halves, an item also
    holds ``"params": {"mask": ...}``, the mask of its tomogram, which the trainer hands to the operator. In your own
    loop, call ``physics.update(**batch["params"])``.

    Parameters
    ----------
    pairs
        One pair or several.
    side
        Voxels per side of a cube; three numbers ``(z, y, x)`` for cubes with unequal sides.
    length
        Number of cubes the dataset counts, e.g. steps times batch size.
    seed
        Source of the draws.
    min_fraction
        Share of a cube's voxels that must lie inside the pair's mask, where it has one. 0.3 is
        DeepDeWedge's default (:cite:t:`wiedemann2024deep`).
    mixed_voxel_sizes
        Accept pairs whose voxel sizes differ.
    held_out
        Voxels along y and x of a block of the first tomogram that no cube touches, through its whole depth and in a
        corner that depends on the seed; 0 for none. See :func:`equitomo.datasets.held_out_block`.
    reach
        The largest margin that :meth:`cut` will be called with, which must not touch the block either.
    physics
        The operator of the training, whose mask is made for the tilts of each tomogram and half; for tilt axes that
        differ, make it for the union of the geometries. ``None`` leaves the masks out of the items.

    Raises
    ------
    ValueError
        If a volume is smaller than the cube (the largest side that fits is named), no cube holds enough specimen
        (the largest fraction that one holds is named), or voxel sizes differ by more than one part in a hundred.

    Examples
    --------
    >>> pair = TomogramPair(*torch.randn(2, 16, 20, 24) + torch.randn(16, 20, 24), (-60.0, 60.0))
    >>> dataset = SubtomogramDataset(pair, 16, length=100)
    >>> dataset[0]["y"].shape, dataset.n_starts
    (torch.Size([2, 16, 16, 16]), 45)
    >>> SubtomogramDataset(pair, (8, 16, 16), length=100)[0]["y"].shape
    torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        side: int | Shape,
        *,
        length: int,
        seed: int = 0,
        min_fraction: float = 0.3,
        mixed_voxel_sizes: bool = False,
        physics: WedgeOperator | None = None,
        held_out: int = 0,
        reach: int = 0,
    ) -> None:
        super().__init__(
            pairs,
            side,
            length=length,
            seed=seed,
            mixed_voxel_sizes=mixed_voxel_sizes,
            physics=physics,
            held_out=held_out,
            reach=reach,
        )
        for pair in self.pairs:
            # Read lazy pairs now: the mask may depend on the volumes, and what cannot be used is refused here.
            volumes = pair.volumes
            self._add_starts(pair, volumes, pair.mask, min_fraction)

    @property
    def example(self) -> Tensor:
        return central_cube(self.pairs[0].volumes, self.shape)

    def cut(self, indices: range, margin: int = 0) -> tuple[Tensor, list[int], list[Shape]]:
        ranks = draw_integers(self.seed, indices, self.n_starts, CUBES)
        return self._cut(map(self._located, ranks), margin)

    def _located(self, rank: int) -> tuple[int, Shape, Tensor]:
        """Return the pair, the start and the volumes of the valid start with the number ``rank`` among all pairs."""
        source = int(np.searchsorted(self._ends, rank, side="right"))
        before = self._ends[source - 1] if source else 0
        return source, self._starts[source].locate(rank - before), self.pairs[source].volumes


def _masks_of(pairs: Sequence[TomogramPair], physics: WedgeOperator) -> dict[tuple[Geometry, ...], Tensor]:
    """Return the mask ``(views or 1, z, y, x // 2 + 1)`` for the tilts of each pair; none if all are the operator's."""
    different = dict.fromkeys(pair.geometries for pair in pairs)
    if {geometry for views in different for geometry in views} == {physics.geometry}:
        return {}
    # Items of a batch are stacked: their masks need one shape.
    is_per_view = any(len(set(views)) > 1 for views in different)
    return {
        views: torch.cat([physics.mask_for(geometry)[0] for geometry in (views if is_per_view else views[:1])])
        for views in different
    }


def cube_at(volumes: Tensor, start: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the cube of all views that begins at ``start``, not copied."""
    z, y, x = (slice(first, first + side) for first, side in zip(start, shape, strict=True))
    return volumes[:, z, y, x]


def central_cube(volumes: Tensor, shape: Shape) -> Tensor:
    """Return the cube in the middle, not copied."""
    return cube_at(volumes, [(n - side) // 2 for n, side in zip(volumes.shape[1:], shape, strict=True)], shape)


def require_one_voxel_size(pairs: Sequence[TomogramPair]) -> None:
    """Refuse pairs whose known voxel sizes differ by more than one part in a hundred."""
    known = [(pair, pair.voxel_size) for pair in pairs if pair.voxel_size is not None]
    for pair, sizes in known[1:]:
        reference, expected = known[0]
        if differ_in_size(sizes, expected):
            raise ValueError(
                f"the voxel sizes of {reference.name} and {pair.name} differ, {expected} and {sizes} Å (z, y, x): "
                "bring them to one scale, correct the header that is wrong, or pass `mixed_voxel_sizes=True`"
            )
