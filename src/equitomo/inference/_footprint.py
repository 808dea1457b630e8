"""The memory and the disk space that a prediction takes, computed before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from equitomo.checks import spatial_shape
from equitomo.inference._layout import tile_shape
from equitomo.io import ZarrVoxels
from equitomo.tiling import Tiling
from equitomo.volumes import VolumeLike

if TYPE_CHECKING:
    from equitomo.inference.predictor import TiledPredictor

# Copies of a batch of tiles, of one tile, and of a tile's padded grid that are held at once. Of grids there are five;
# how the allocator joins the pieces differs from run to run, by more than twice, and once took more than five.
_BATCHES, _TILES, _GRIDS = 4, 6, 7
# The bytes that the system maps on both sides of a row that is read.
_MAPPED_AROUND = 2 << 16
# Memory that was freed in pieces of a tile's size is neither given back at once nor always of use for the next pieces.
_FRAGMENTATION = 2


@dataclass(frozen=True)
class Footprint:
    """The resources of a prediction, without those of the program itself and of the network's computation.

    Parameters
    ----------
    memory
        Bytes of the host's memory at the peak.
    disk
        Bytes of intermediate files at the peak.
    """

    memory: int
    disk: int

    def __str__(self) -> str:
        return f"{self.memory / 2**30:.2f} GiB of memory and {self.disk / 2**30:.2f} GiB of intermediate files"

    @classmethod
    def of(
        cls,
        predictor: TiledPredictor,
        shape: Sequence[int],
        *,
        halves: int = 2,
        channels: int = 1,
        streamed: bool = True,
        sources: Sequence[VolumeLike] = (),
    ) -> Self:
        """Return an upper bound of what a prediction of a volume of ``shape`` takes.

        Parameters
        ----------
        predictor
            The predictor.
        shape
            Voxels ``(z, y, x)``.
        halves
            1 or 2 volumes.
        channels
            Output channels of the network.
        streamed
            Whether the volumes, ``out`` and ``scratch`` are in files. Otherwise the result and intermediate results are
            counted as memory; the volumes themselves are not.
        sources
            The volumes, where some may lie in Zarr stores: then the chunks that are decoded for a tile are counted.

        Returns
        -------
        Footprint
            Not counted are the program itself (torch's libraries take some 400 MiB), ``out``, and what the network
            computes with, which is the device's memory unless the device is the host. Of an operator that cannot be
            applied plane by plane only input and output are counted.

        Examples
        --------
        >>> from equitomo import TiledPredictor
        >>> predictor = TiledPredictor(torch.nn.Identity(), (-60.0, 60.0), tile=160, margin=24, wedge="global")
        >>> print(Footprint.of(predictor, (464, 928, 928)))
        0.68 GiB of memory and 4.47 GiB of intermediate files
        """
        lengths = spatial_shape(shape)
        layout, n_devices = predictor.layout, len(predictor.replicas)
        large = layout.large(lengths)
        batch = min(layout.batch, len(large))
        arrays = channels * 4 * math.prod(tile_shape(large)) * (_BATCHES * batch + _TILES)
        mapped = _mapped_bytes(large, batch, halves if predictor.average_first else 1, channels)
        transforms, planes, n_between = 0, 0, 0
        if predictor.passes > 1 and predictor.wedge == "tile":
            transforms = _transform_bytes(predictor, large, batch)
        elif predictor.passes > 1:
            transforms, planes = predictor.replicas[0].operators.volume_needs(lengths)
            n_between = min(predictor.passes - 1, 2)
        if predictor.passes > 1 and predictor.wedge == "local":
            small, n_between = layout.small(lengths), 2
            mapped = max(mapped, _mapped_bytes(small, layout.small_batch, 1, 1))
            transforms = max(transforms, _transform_bytes(predictor, small, layout.small_batch))
        decoded = max(
            (source.bytes_to_read(tile_shape(large)) for source in sources if isinstance(source, ZarrVoxels)), default=0
        )
        kept = planes + 4 * math.prod(lengths) * n_between
        # With several devices one batch more is held than they work on.
        n_held = 1 if n_devices == 1 else n_devices + 1
        memory = _FRAGMENTATION * (n_held * arrays + transforms)
        if not streamed:
            return cls(memory + n_held * mapped + n_devices * decoded + 4 * channels * math.prod(lengths) + kept, 0)
        return cls(memory + n_held * mapped + n_devices * decoded, kept)


def _mapped_bytes(tiling: Tiling, batch: int, n_sources: int, n_channels: int) -> int:
    """Return the bytes of the pages of files that a batch of tiles touches."""
    # All rows of the sections that the tiles lie in, in each source and in the target.
    z, y, _ = tile_shape(tiling)
    touched = batch * z * (4 * min(y, tiling.shape[1]) * tiling.shape[2] + _MAPPED_AROUND)
    return (n_sources + n_channels) * min(touched, 4 * math.prod(tiling.shape) + _MAPPED_AROUND)


def _transform_bytes(predictor: TiledPredictor, tiling: Tiling, batch: int) -> int:
    """Return the bytes of the transforms of a batch of tiles, where the host computes them."""
    if predictor.device.type != "cpu":
        return 0
    grid = predictor.replicas[0].operators.grid(tile_shape(tiling))
    return len(predictor.replicas) * 4 * math.prod(grid) * _GRIDS * batch
