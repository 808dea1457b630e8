"""Statistics of one half tomogram, collected in a single pass over its voxels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.volumes import Index, Shape, VolumeLike, as_voxels

# A few million evenly spread voxels are enough for the statistics of any volume.
_SAMPLES = 4_000_000
# Voxels along an axis of the middle part that a diagnosis looks at. More of them show nothing more.
MIDDLE = 192
_BLOCK = 4  # voxels per side of the blocks whose means are kept
# In robust standard deviations from the median: values beyond are clipped. A Gaussian loses nothing by it.
_CLIP = 6.0
# If a larger share of the values lies beyond, they are a sparse specimen in an empty volume. Gold beads and hot pixels
# take up less: in small, noise-free simulations with gold 0.9 %.
_SPARSE = 0.01
_Float = TypeVar("_Float", np.float32, np.float64)


class ReadingStoppedError(Exception):
    """Reading was stopped on request before the end of the file."""


@dataclass(frozen=True, eq=False)
class HalfStatistics:
    """Statistics of one volume, enough for its scale and for every judgement about it.

    Parameters
    ----------
    shape
        Voxels along ``(z, y, x)``.
    n_invalid
        Number of voxels that are NaN or infinite.
    first_invalid
        Index ``(z, y, x)`` of the first of them, or ``None``.
    mean
        Mean of all other voxels.
    extremes
        Lowest and highest of the other voxels.
    samples
        At most a few million voxels, evenly spread, in the order of the array.
    middle
        The middle of the volume, at most 192 voxels along each axis, float32 on the CPU.
    block_means
        Means of blocks of 4x4x4 voxels, flat; of large volumes evenly spread layers of blocks.

    In ``samples``, ``middle`` and ``block_means`` the mean of the other voxels takes the place of invalid ones.

    Examples
    --------
    >>> statistics = HalfStatistics.of(torch.arange(64.0).reshape(4, 4, 4))
    >>> statistics.mean, statistics.extremes, statistics.block_means
    (31.5, (0.0, 63.0), array([31.5]))
    """

    shape: Shape
    n_invalid: int
    first_invalid: Shape | None
    mean: float
    extremes: tuple[float, float]
    samples: NDArray[np.float32]
    middle: Tensor
    block_means: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        volume: VolumeLike,
        *,
        into: Tensor | None = None,
        stopped: Callable[[], bool] = lambda: False,
        most_samples: int = _SAMPLES,
    ) -> HalfStatistics:
        """Collect the statistics in one pass over the volume.

        Parameters
        ----------
        volume
            Voxels ``(z, y, x)``, in memory or in a file.
        into
            A tensor of the same shape to copy the voxels into, in the same pass.
        stopped
            A function that is called between pieces; reading stops when it returns True.
        most_samples
            Number of samples at most.

        Raises
        ------
        ReadingStoppedError
            If ``stopped`` returned True.
        OSError
            If a file cannot be read.
        """
        voxels = as_voxels(volume)
        collector = _Collector(voxels.shape, most_samples)
        for place, block in voxels.slabs():
            if stopped():
                raise ReadingStoppedError
            with np.errstate(over="ignore"):
                block = np.asarray(block, np.float32)
            collector.add(place, block)
            if into is not None:
                copy_block(into, place, block)
        return collector.finish()


def copy_block(target: Tensor, place: Index, block: NDArray[np.float32]) -> None:
    """Copy voxels into a tensor, without torch's threads where the tensor is on the CPU."""
    if target.device.type == "cpu":
        target.numpy()[place] = block
    else:
        # The block may be read-only, of any strides, and its memory is used again for the next one.
        target[place] = torch.from_numpy(np.array(block, order="C"))


class _Collector:
    """Sums and samples of the voxels seen so far."""

    def __init__(self, shape: Shape, most_samples: int) -> None:
        n_voxels = math.prod(shape)
        self.shape = shape
        # An odd step does not fall on the same column of every row.
        self.step = -(-n_voxels // most_samples) | 1
        self.samples = np.empty(-(-n_voxels // self.step), np.float32)
        self.corner = [(n - min(n, MIDDLE)) // 2 for n in shape]
        self.middle = np.empty([min(n, MIDDLE) for n in shape], np.float32)
        n_layers, *layer = (-(-n // _BLOCK) for n in shape)
        # One layer of blocks in so many is kept, or the means would take more memory than the samples.
        self.keep_every = -(-n_layers * math.prod(layer) // most_samples)
        self.sums = np.zeros((-(-n_layers // self.keep_every), *layer))
        # The number of invalid voxels of each block; the array is made when the first such voxel is found.
        self.n_invalid_in: NDArray[np.float64] | None = None
        self.n_invalid, self.first_invalid = 0, n_voxels
        self.total, self.low, self.high = 0.0, math.inf, -math.inf

    def add(self, place: Index, block: NDArray[np.float32]) -> None:
        """Add the voxels at a place."""
        box = [range(*part.indices(n)) for part, n in zip(place, self.shape, strict=True)]
        self._keep_middle(box, block)
        self._keep_samples(box, block)
        low, high = float(block.min()), float(block.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            valid = np.isfinite(block)
            self._count_invalid(box, ~valid)
            block = np.where(valid, block, np.float32(0))
            values = block[valid]
            low, high = (float(values.min()), float(values.max())) if len(values) else (math.inf, -math.inf)
        self.total += float(block.sum(dtype=np.float64))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._add_to_blocks(self.sums, box, block)

    def finish(self) -> HalfStatistics:
        """Return the statistics of all voxels."""
        n_valid = math.prod(self.shape) - self.n_invalid
        mean = self.total / n_valid if n_valid else math.nan
        if self.n_invalid:
            for array in (self.samples, self.middle):
                array[~np.isfinite(array)] = mean
            assert self.n_invalid_in is not None
            self.sums += mean * self.n_invalid_in
        per_block = np.ones(())
        for n in self.shape:
            per_block = np.multiply.outer(per_block, np.minimum(_BLOCK, n - np.arange(0, n, _BLOCK)))
        place = np.unravel_index(self.first_invalid, self.shape) if self.n_invalid else None
        return HalfStatistics(
            shape=self.shape,
            n_invalid=self.n_invalid,
            first_invalid=None if place is None else (int(place[0]), int(place[1]), int(place[2])),
            mean=mean,
            extremes=(self.low, self.high),
            samples=self.samples,
            middle=torch.from_numpy(self.middle),
            block_means=(self.sums / per_block[:: self.keep_every]).reshape(-1),
        )

    def _keep_middle(self, box: list[range], block: NDArray[np.float32]) -> None:
        source, target = [], []
        for part, first, n in zip(box, self.corner, self.middle.shape, strict=True):
            start, stop = max(part.start, first), min(part.stop, first + n)
            if start >= stop:
                return
            source.append(slice(start - part.start, stop - part.start))
            target.append(slice(start - first, stop - first))
        self.middle[tuple(target)] = block[tuple(source)]

    def _keep_samples(self, box: list[range], block: NDArray[np.float32]) -> None:
        """Keep every voxel whose index in the flat array is a multiple of the step."""
        sections, rows, columns = box
        _, height, width = self.shape
        starts = (np.add.outer(np.array(sections) * height, np.array(rows)) * width + columns.start).reshape(-1)
        first, last = -(-starts // self.step), -(-(starts + len(columns)) // self.step)
        counts = last - first
        # The numbers of the samples in each row of the box, one row after the other.
        row = np.repeat(np.arange(len(starts)), counts)
        number = np.arange(len(row)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        z, y = np.divmod(row, len(rows))
        self.samples[number] = block[z, y, number * self.step - starts[row]]

    def _count_invalid(self, box: list[range], invalid: NDArray[np.bool_]) -> None:
        if self.n_invalid_in is None:
            self.n_invalid_in = np.zeros_like(self.sums)
        self._add_to_blocks(self.n_invalid_in, box, invalid.astype(np.float32))
        self.n_invalid += int(invalid.sum())
        # Pieces may come in any order: the first voxel of the array counts.
        places = [np.array(part)[where] for part, where in zip(box, np.nonzero(invalid), strict=True)]
        self.first_invalid = min(self.first_invalid, int(np.ravel_multi_index(places, self.shape).min()))

    def _add_to_blocks(self, sums: NDArray[np.float64], box: list[range], block: NDArray[np.float32]) -> None:
        """Add the sums of a piece to those of the blocks that it touches."""
        layers = np.array(box[0]) // _BLOCK
        kept = layers % self.keep_every == 0
        if not kept.any():
            return
        if not kept.all():
            block = block[kept]
        numbers = [layers[kept] // self.keep_every, *(np.array(part) // _BLOCK for part in box[1:])]
        # Along z and y first, which sums whole rows at a time.
        for axis, number in enumerate(numbers):
            block = np.add.reduceat(block, np.flatnonzero(np.diff(number, prepend=-1)), axis=axis)
        # Pieces cover whole ranges of blocks, if not whole blocks.
        sums[tuple(slice(number[0], number[-1] + 1) for number in numbers)] += block


def clipped(values: NDArray[_Float]) -> NDArray[_Float]:
    """Return the values, none more than six robust standard deviations from the median."""
    centre = float(np.median(values))
    limit = _CLIP * _spread(np.abs(values - centre))
    # Where most voxels are equal, as in simulated vacuum, there is nothing to be robust about.
    return np.clip(values, centre - limit, centre + limit) if limit > 0 else values


def without_outliers(values: NDArray[_Float]) -> NDArray[_Float]:
    """Return the values that an intensity scale is taken of: hot pixels and gold are clipped, a sparse specimen is not.

    In a nearly empty volume :func:`clipped` would take the specimen for outliers and leave the scale of the background.
    """
    centre, limit, _ = _limit(values)
    return np.clip(values, centre - limit, centre + limit)


def has_zero_background(values: NDArray[_Float]) -> bool:
    """Return whether the values are those of a sparse specimen on a background that is zero, up to its noise."""
    centre, limit, is_sparse = _limit(values)
    # A volume of which the mean was subtracted is not taken for one: in it the background lies at minus the mean.
    return is_sparse and abs(centre) < 0.01 * limit


def _limit(values: NDArray[_Float]) -> tuple[float, float, bool]:
    """Return the median, the distance from it where outliers begin, and whether the values are a sparse specimen."""
    centre = float(np.median(values))
    distances = np.abs(values - centre)
    limit = _CLIP * _spread(distances)
    far = distances[distances > limit]
    if not len(far) or (limit > 0 and len(far) <= _SPARSE * len(values)):
        return centre, limit, False
    # Of the specimen's own values one in a hundred may be an outlier.
    return centre, float(np.quantile(far, 0.99)), True


def _spread(distances: NDArray[_Float]) -> float:
    """Return the standard deviation of a Gaussian with these distances from its median."""
    return 1.4826 * float(np.median(distances))
