"""Reconstruction of whole tomograms with a trained network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equitomo.geometry import Geometry
from equitomo.inference._layout import TileLayout, suitable_tile, tile_shape
from equitomo.inference._network import copies, evaluating, normalization_layers
from equitomo.inference._operators import Resizable, operator_for_all_shapes
from equitomo.inference._passes import VolumePasses
from equitomo.inference._replica import Replica
from equitomo.inference._strategies import Wedge, strategy_of, tile_count
from equitomo.inference._voxels import Result, Source, Target, array_behind
from equitomo.io import ZarrVoxels
from equitomo.models import TwoViewReconstructor
from equitomo.precision import Precision
from equitomo.resources import FreedMemoryKept
from equitomo.tiling import Border, Tiling
from equitomo.volumes import Shape, VolumeLike, Voxels

Progress = Callable[[int, int], None]
# What comes in decides whether a tensor or an array goes out.
Given = TypeVar("Given", Tensor, NDArray[np.generic] | Voxels)

# Chunks so many times as large as a tile are decoded so often that a warning is issued.
_LARGE_CHUNK = 16


class TiledPredictor:
    r"""Apply a trained network to volumes of any size, once or twice, without seams.

    .. math:: \hat x = \tfrac12 \bigl( f(A f(y_0)) + f(A f(y_1)) \bigr)

    This is equation (7) of :cite:t:`kishore2026icecream`. The first pass fills the wedge, :math:`A` empties it again,
    and the second pass sees a denoised volume with an empty wedge. With ``wedge="tile"`` both passes and :math:`A` are
    done inside each tile, as in training and in the reference program. With ``"global"``, :math:`A` acts on the whole
    volume between two tiled passes. ``"local"`` is ours, and was the best in our benchmarks. Its first pass
    :math:`x_1 = f(y)` is that of one pass alone; for the second one :math:`A_\text{tile}` empties the wedge inside
    small tiles, and only the wedge is taken from the result:

    .. math:: \hat x = A x_1 + (I - A) f(A_\text{tile} x_1)

    Volumes may be larger than the memory. With the volumes, ``out`` and ``scratch`` in files, everything is read
    and written in tiles, and :math:`A` is applied plane by plane, see :mod:`equitomo.physics.streamed`. The same is
    computed in memory. :meth:`equitomo.inference.Footprint.of` states beforehand what a prediction takes.

    When the memory of a GPU or of the host runs out, fewer tiles go into one network call, and then parts of a tile;
    a warning is logged. Parts overlap by the margin, so the result changes by no more than rounding where the margin
    is as wide as the network's reach, and otherwise by what such a margin leaves out anyway. Fewer planes at a time
    are taken for :math:`A` of a whole volume, down to one. A tile cannot be cut for :math:`A`: if a device has no room
    for it, or for one plane, the CPU computes it, and if the host has no room either, torch's error is raised.

    Parameters
    ----------
    model
        Maps ``(batch, 1, z, y, x)`` to ``(batch, C, z, y, x)``; of a :class:`~equitomo.TwoViewReconstructor` the
        network is taken. It is used on the device and in the type of its parameters, unless ``devices`` are given.
        More than one pass needs ``C = 1``. If it normalises by the statistics of its input, as instance and group
        normalisation do, its result depends on the tiles, and a warning is issued where there are several.
    physics_or_geometry
        The operator :math:`A`, which more than one pass needs: a :class:`~equitomo.geometry.TiltGeometry` or a pair
        ``(low, high)`` of degrees, which stand for a :class:`~equitomo.physics.PaddedMissingWedgeOperator`; a
        missing-wedge operator of any size, from which that of another size is made by its method ``resized``; or a
        function ``(shape) -> operator`` that makes a deepinv physics whose ``A`` keeps the shape ``(z, y, x)``. Such a
        physics is applied to a whole volume in memory.
    tile
        The largest side of a tile in voxels, a multiple of ``stride``. Shorter tiles are taken where just as many
        cover the volume, unless the wedge is emptied within tiles. ``None`` takes what the memory of the device holds
        comfortably, from 112 to 240: the larger the tiles, the less is computed and thrown away.
    margin
        Voxels computed and thrown away at every face of a tile; see :func:`equitomo.inference.measured_margin`.
    passes
        How often the network is applied. 2 is the paper's; 1 gives :math:`f(y)`.
    wedge
        Where :math:`A` acts between the passes.
    local_tile
        The side of a tile of the second pass with ``wedge="local"``, a multiple of ``stride``. Margins are an eighth
        of it, and neighbours fade into each other over a quarter. ``None`` takes two strides and at least 16 voxels,
        which did best.
    blend
        Voxels over which neighbouring tiles fade into each other at least. ``None`` takes 8 where a tile without its
        margins has 64 or more, and 0 for smaller ones. Margins of 24 and a blend of 8 leave no seam with trained
        networks, margins of 16 without a blend do; see the benchmarks.
    batch
        Tiles in one network call.
    stride
        Tiles start on multiples of it; ``None`` takes the network's attribute ``stride``, or 1.
    average_first
        Average two halves before the network, not after it as equation (7) does. That means less noise and half the
        work, but no longer two independent reconstructions.
    border
        Whether tiles read the volume's reflection beyond its border, or zeros as in the reference program.
    precision
        The number format of the network; ``"auto"`` takes 16 bits where the hardware computes in them.
    devices
        Devices of one kind that share the tiles, each tile going to the one that is free next; ``None`` takes the
        model's. Copies of the model, with its weights at the time of a call, work on the other devices. Tiles are
        added up in their order, so the result is that of one device. A global wedge is emptied on the first device.
    exact_tile
        Give the network tiles with exactly the side ``tile``, which must be given, for networks that take no other
        size. A smaller volume is padded by its reflection, and a tile is never cut.

    Raises
    ------
    ValueError
        For passes below 1, more than one pass without an operator, an operator that fits only its own size, no
        devices, or a tile, margin and stride that leave no core; see :class:`~equitomo.tiling.Tiling`.

    Examples
    --------
    >>> predictor = TiledPredictor(torch.nn.Identity(), tile=32, margin=4, passes=1)
    >>> x = torch.randn(33, 40, 50)
    >>> torch.allclose(predictor(x), x, atol=1e-6)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        physics_or_geometry: Resizable | Geometry | tuple[float, float] | None = None,
        *,
        tile: int | None = None,
        margin: int = 24,
        passes: int = 2,
        wedge: Wedge = "local",
        local_tile: int | None = None,
        blend: int | None = None,
        batch: int = 1,
        stride: int | None = None,
        average_first: bool = False,
        border: Border = "reflect",
        precision: Precision = "auto",
        devices: Sequence[str | torch.device] | None = None,
        exact_tile: bool = False,
    ) -> None:
        if devices is not None and not devices:
            raise ValueError("`devices` must name at least one; None takes that of the model")
        if passes < 1 or batch < 1:
            raise ValueError(f"`passes` and `batch` must be at least 1, got {passes} and {batch}")
        if wedge not in get_args(Wedge):
            raise ValueError(f"`wedge` is 'local', 'global' or 'tile', got {wedge!r}")
        if physics_or_geometry is None and passes > 1:
            raise ValueError(f"{passes} passes need an operator: pass `physics_or_geometry`, or `passes=1`")
        if exact_tile and (tile is None or (wedge == "local" and local_tile not in (None, tile))):
            raise ValueError("`exact_tile=True` needs the `tile` that the network takes, and no other `local_tile`")
        self.network = model.network if isinstance(model, TwoViewReconstructor) else model
        self.passes, self.wedge, self.average_first = passes, wedge, average_first
        own = getattr(self.network, "stride", 1)
        # The stride of a bare convolution is a triple, and 1 if it keeps the volume's size.
        stride = stride if stride is not None else own if isinstance(own, int) else 1
        operator = None if physics_or_geometry is None else operator_for_all_shapes(physics_or_geometry)
        # "cuda" is one of "cuda:0", "cuda:1" and so on; an array there knows which one.
        wanted = None if devices is None else [torch.empty(0, device=device).device for device in devices]
        networks = [self.network] if wanted is None else copies(self.network, wanted)
        overlap = None if exact_tile else -(-margin // stride) * stride
        self.replicas = [
            Replica(network, None if passes == 1 else operator, precision, overlap, stride) for network in networks
        ]
        # The device that empties the wedge of a whole volume.
        self.device = self.replicas[0].device
        if tile is None:
            tile = suitable_tile(self.network, self.device, self.replicas[0].dtype, stride, margin)
        if blend is None:
            blend = 8 if tile - 2 * margin >= 64 else 0
        if local_tile is None:
            local_tile = tile if exact_tile else max(2 * stride, 16)
        shortened = passes == 1 or wedge != "tile"
        self.layout = TileLayout(tile, margin, blend, batch, stride, border, local_tile, shortened, exact_tile)
        # A volume too large for one tile, so that what cannot work is refused here and not at the first call.
        Tiling((tile + 1,) * 3, tile, margin, stride, blend, border)
        if passes > 1 and wedge == "local":
            try:
                self.layout.small((local_tile + 1,) * 3)
            except ValueError as error:
                raise ValueError(f"`local_tile`: {error}") from None

    def __call__(
        self,
        first: Given,
        second: Given | None = None,
        *,
        out: NDArray[np.floating] | None = None,
        scratch: str | Path | None = None,
        intensities: tuple[float, float] = (0.0, 1.0),
        progress: Progress | None = None,
    ) -> Given:
        """Reconstruct a volume, or the mean of the reconstructions of two halves.

        Parameters
        ----------
        first, second
            Volumes ``(..., z, y, x)`` on the intensity scale that the network was trained on: tensors, arrays (also
            memory maps), or what :func:`equitomo.read_volume` returns. Leading axes hold separate volumes.
        out
            An array to write into, as :func:`equitomo.io.creating_volume` gives; ``None`` makes one in memory. It has
            the volumes' shape, with an axis for the channels before ``(z, y, x)`` if the network gives several.
        scratch
            A folder for intermediate results; ``None`` keeps them in memory.
        intensities
            Mean and deviation, if the volumes are not on that scale: a voxel ``v`` enters the network as
            ``(v - mean) / deviation``, and the result is put back on the scale of the volumes.
        progress
            Called with the number of tiles that are done and their total.

        Returns
        -------
        Tensor or numpy.ndarray
            The result as float32: a tensor on the same device if ``first`` is a tensor, otherwise an array; or
            ``out``. Its shape is that described for ``out``.

        Raises
        ------
        ValueError
            If the volumes differ in shape or have less than three axes, ``out`` does not fit, or the network does not
            keep the shape of a tile.
        OSError
            If the scratch folder is missing, not writable or too full.
        """
        if second is not None and tuple(second.shape) != tuple(first.shape):
            raise ValueError(f"the halves differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
        halves = [half for half in (first, second) if half is not None]
        shape = tuple(first.shape)
        if len(shape) < 3 or not math.prod(shape):
            raise ValueError(f"a volume (..., z, y, x) is needed, got shape {shape}")
        spatial = cast(Shape, shape[-3:])
        result = Result(shape, out, halves)
        groups = [halves] if self.average_first else [[half] for half in halves]
        n_tiles = tile_count(self.wedge, self.passes, self.layout, spatial)
        report = _counter(progress, len(groups) * math.prod(shape[:-3]) * n_tiles)
        passes = VolumePasses(self.replicas, self.layout, scratch, report)
        reconstruct = strategy_of(self.wedge, self.passes)
        mean, deviation = intensities
        with self.evaluating(), FreedMemoryKept():
            for message in self._warnings(halves, spatial):
                warnings.warn(message, stacklevel=2)
            for group in groups:
                for index in np.ndindex(shape[:-3]):
                    source = Source([half[index] if index else half for half in group], mean, deviation)
                    target = Target(result.part(index), mean, deviation, 1 / len(groups))
                    reconstruct(passes, source, target, self.passes)
        if out is None and isinstance(first, Tensor):
            return torch.from_numpy(result.array).to(first.device)
        return cast(Given, result.array)

    @property
    def tile(self) -> int:
        """The largest side of a tile in voxels."""
        return self.layout.tile

    @property
    def stride(self) -> int:
        """The number of voxels of which the places of tiles are multiples."""
        return self.layout.stride

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put all replicas into evaluation mode, with the weights that the model has now."""
        with ExitStack() as stack:
            for replica in self.replicas:
                if replica.network is not self.network:
                    replica.network.load_state_dict(self.network.state_dict())
                stack.enter_context(evaluating(replica.network))
            stack.enter_context(torch.inference_mode())
            yield

    def _warnings(self, halves: Sequence[VolumeLike], shape: Shape) -> Iterator[str]:
        """Yield warnings about chunks that are far larger than a tile, and about a result that depends on the tiles."""
        tiling = self.layout.large(shape)
        tile = tile_shape(tiling)
        n_tiles = max(len(tiling), len(self.layout.small(shape)) if self.passes > 1 and self.wedge == "local" else 1)
        if n_tiles > 1 and (layers := normalization_layers(self.network)):
            others = f" and {len(layers) - 1} others" if len(layers) > 1 else ""
            yield (
                f"the network normalises by the statistics of its input in layer {layers[0]}{others}, so its result "
                f"depends on the tiles, of which there are {n_tiles}: pass a `tile` that holds the volume and its "
                "margins, with `wedge='global'` or one pass, or a larger `margin` for a smaller difference"
            )
        for half in map(array_behind, halves):
            if isinstance(half, ZarrVoxels) and math.prod(half.chunks) > _LARGE_CHUNK * math.prod(tile):
                yield (
                    f"{half.path}: whole chunks of {half.chunks} voxels are decoded anew for each tile of {tile}, "
                    "which is slow: save it with chunks of 64 to 128, as write_volume does, or as an MRC file"
                )
                return


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Return a function that takes the number of tiles just finished and reports the sum."""
    done = 0

    def report(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    return report
