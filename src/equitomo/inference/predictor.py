"""Reconstructing whole tomograms with a trained network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equitomo.checks import spatial_shape
from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.inference._footprint import Footprint, tile_bytes, transform_bytes
from equitomo.inference._margins import core_errors, smallest_margin
from equitomo.inference._replica import Replica, WedgeOperator, copies, spread
from equitomo.inference._tile import suitable_tile
from equitomo.inference._voxels import Source, Target
from equitomo.io import ZarrVoxels, release, scratch_array
from equitomo.models import TwoViewReconstructor
from equitomo.physics import PaddedMissingWedgeOperator
from equitomo.physics.streamed import apply_by_planes, streaming_needs
from equitomo.precision import Precision
from equitomo.tiling import Border, Placement, Tiling, shortest_tile
from equitomo.volumes import VolumeLike as Volume
from equitomo.volumes import Voxels

Wedge = Literal["local", "global", "tile"]
Progress = Callable[[int, int], None]
Array = NDArray[np.float32]
AnyVolume = TypeVar("AnyVolume", Tensor, NDArray[np.generic], Voxels)

Shape = tuple[int, int, int]

# Small tiles in one network call: more of them gain nothing, and touch more rows of a file than there is memory for.
_MOST_LOCAL = 64

# Chunks so many times as large as a tile are decoded so often that it is to be told.
_LARGE_CHUNK = 16


class TiledPredictor:
    r"""Apply a trained network to volumes of any size, once or twice, without seams.

    .. math:: \hat x = \tfrac12 \bigl( f(A f(y_0)) + f(A f(y_1)) \bigr)

    Equation (7) of :cite:t:`kishore2026icecream`: the first pass fills the wedge, :math:`A` empties it again,
    and the second pass sees a denoised volume with an empty wedge. With ``wedge="tile"`` both passes and :math:`A` are
    done inside each tile, as in training and in the reference program; with ``"global"`` :math:`A` acts on the whole
    volume between two tiled passes. ``"local"`` is ours, and the best in our benchmarks. The first pass
    :math:`x_1 = f(y)` is that of one pass alone, in the second one :math:`A_\text{tile}` empties the wedge inside
    small tiles, and of its result only the wedge is taken:

    .. math:: \hat x = A x_1 + (I - A) f(A_\text{tile} x_1)

    Volumes may be larger than the memory: with memory maps in, and ``out`` and ``scratch`` in files, everything is read
    and written in tiles, and :math:`A` is applied plane by plane, see :mod:`equitomo.physics.streamed`.
    :meth:`footprint` says beforehand what that takes. In memory the same is computed.

    When memory runs out, of a GPU or of the host, fewer tiles go into one network call, then parts of a tile. Parts
    overlap by the margin, so that the result changes by no more than rounding where the margin is as wide as the
    network's reach, and otherwise by what such a margin leaves out anyhow; a warning is logged. :math:`A` of a whole
    volume then takes fewer planes at a time, down to one. A tile cannot be cut for :math:`A`: if a device has no room
    for that of one tile, or one plane, the CPU does it, and if the host has none either, torch's error is raised.

    Parameters
    ----------
    model
        Maps ``(batch, 1, z, y, x)`` to the same shape; a :class:`~equitomo.TwoViewReconstructor` gives its
        network. It is used where it is, on the device and in the type of its parameters, unless ``devices`` are given.
    physics_or_geometry
        A missing-wedge operator of any size: for another size the same is made. A
        :class:`~equitomo.geometry.TiltGeometry` or a pair ``(low, high)`` of degrees stands for a
        :class:`~equitomo.physics.PaddedMissingWedgeOperator`. Not used with one pass.
    tile
        Voxels per side of a tile at most, a multiple of ``stride``. Shorter ones are taken where just as many cover
        the volume, unless the wedge is emptied within tiles. ``None`` takes what the memory of the device holds
        comfortably, from 112 to 240: large tiles compute less that is thrown away.
    margin
        Voxels computed and thrown away at every face of a tile; see :meth:`measured_margin`.
    passes
        2 is the paper's; 1 gives :math:`f(y)`.
    wedge
        Where :math:`A` acts between the passes.
    local_tile
        Voxels per side of a tile of the second pass with ``wedge="local"``, a multiple of ``stride``. Margins are
        an eighth of it, and neighbours fade into each other over a quarter. ``None`` takes two strides and 16 voxels
        at least, which did best.
    blend
        Voxels over which neighbouring tiles fade into each other at least; ``None`` takes 8 where a tile without its
        margins has 64 or more, and 0 for smaller ones. Margins of 24 and a blend of 8 leave no seam with trained
        networks, margins of 16 without a blend do; see the benchmarks.
    batch
        Tiles in one network call.
    stride
        Tiles start on multiples of it; ``None`` takes the network's attribute ``stride``, or 1.
    average_first
        Average two halves before the network, not after it as equation (7) does: less noise and half the work, but
        no longer two independent reconstructions.
    border
        What tiles read beyond the volume: its reflection, or zeros as in the reference program.
    precision
        Of the network; ``"auto"`` takes 16 bits where the hardware computes in them.
    devices
        Devices of one kind that the tiles are spread over, each tile to the one that is free next; ``None`` takes the
        model's. Where the model is not, a copy of it works, with its weights of the moment of the call. Tiles are
        added up in their order, so the result is that of one device. A global wedge is emptied on the first.
    progress
        Called with the tiles done and their total.

    Raises
    ------
    ValueError
        For passes below 1, no devices, or a tile, margin and stride that leave no core; see
        :class:`~equitomo.tiling.Tiling`.

    Examples
    --------
    >>> predictor = TiledPredictor(torch.nn.Identity(), (-60.0, 60.0), tile=32, margin=4, passes=1)
    >>> x = torch.randn(33, 40, 50)
    >>> torch.allclose(predictor(x), x, atol=1e-6)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        physics_or_geometry: WedgeOperator | TiltGeometry | tuple[float, float],
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
        progress: Progress | None = None,
    ) -> None:
        if devices is not None and not devices:
            raise ValueError("devices must name at least one; None takes that of the model")
        if passes < 1 or batch < 1:
            raise ValueError(f"passes and batch must be at least 1, got {passes} and {batch}")
        if wedge not in get_args(Wedge):
            raise ValueError(f"wedge is 'local', 'global' or 'tile', got {wedge!r}")
        self.network = model.network if isinstance(model, TwoViewReconstructor) else model
        self.operator = _as_operator(physics_or_geometry)
        self.passes, self.wedge, self.average_first = passes, wedge, average_first
        self.margin, self.batch, self.border = margin, batch, border
        own = getattr(self.network, "stride", 1)
        # That of a bare convolution is a triple, and 1 if it keeps the volume's size.
        self.stride = stride if stride is not None else own if isinstance(own, int) else 1
        self.local_tile = max(2 * self.stride, 16) if local_tile is None else local_tile
        # "cuda" is one of "cuda:0", "cuda:1" and so on: which one, an array there knows.
        wanted = None if devices is None else [torch.empty(0, device=device).device for device in devices]
        networks = [self.network] if wanted is None else copies(self.network, wanted)
        self._replicas = [Replica(network, self.operator, precision, self._first, self.stride) for network in networks]
        # Where the wedge is emptied that acts on the whole volume.
        self.device = self._replicas[0].device
        self.progress = progress
        if tile is None:
            tile = suitable_tile(self.network, self.device, self._replicas[0].dtype, self.stride, margin)
        if blend is None:
            blend = 8 if tile - 2 * margin >= 64 else 0
        self.tile, self.blend = tile, blend
        # A volume too large for one tile, so that what cannot work is told here and not at the first call.
        Tiling((tile + 1,) * 3, tile, margin, self.stride, blend, border)
        if self._is_local:
            try:
                self._local_tiling((self.local_tile + 1,) * 3)
            except ValueError as error:
                raise ValueError(f"local_tile: {error}") from None

    def __call__(
        self,
        first: AnyVolume,
        second: AnyVolume | None = None,
        *,
        out: NDArray[np.floating] | None = None,
        scratch: str | Path | None = None,
        intensities: tuple[float, float] = (0.0, 1.0),
    ) -> AnyVolume:
        """Reconstruct a volume, or the mean of the reconstructions of two halves.

        Parameters
        ----------
        first, second
            Volumes ``(..., z, y, x)``, tensors, arrays (also memory maps) or what :func:`equitomo.read_volume` gives
            of a Zarr store, on the intensity scale that the
            network was trained on. Leading axes hold separate volumes.
        out
            An array of the volumes' shape to write into, as :func:`equitomo.io.creating_volume` gives; ``None``
            makes one in memory.
        scratch
            A folder for intermediate results; ``None`` keeps them in memory.
        intensities
            Mean and deviation, if the volumes are not on that scale: a voxel ``v`` enters the network as
            ``(v - mean) / deviation``, and the result is put back.

        Returns
        -------
        Tensor or numpy.ndarray
            float32, of the same kind and shape as ``first``, a tensor on the same device; or ``out``.

        Raises
        ------
        ValueError
            If the volumes differ in shape or have less than three axes, or ``out`` does not fit.
        OSError
            If the scratch folder is missing, not writable or too full.
        """
        if second is not None and tuple(second.shape) != tuple(first.shape):
            raise ValueError(f"the halves differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
        halves = [_as_array(half) for half in (first, second) if half is not None]
        shape = halves[0].shape
        if len(shape) < 3 or not math.prod(shape):
            raise ValueError(f"a volume (..., z, y, x) is needed, got shape {tuple(first.shape)}")
        if slow := self._slow_to_read(halves):
            warnings.warn(slow, stacklevel=2)
        result = np.zeros(shape, np.float32) if out is None else _emptied(out, halves)
        groups = [halves] if self.average_first else [[half] for half in halves]
        n_volumes = len(groups) * math.prod(shape[:-3])
        n_tiles = len(self._tiling(shape[-3:])) * (self.passes if self.wedge == "global" else 1)
        if self._is_local:
            n_tiles += len(self._local_tiling(shape[-3:])) * (self.passes - 1)
        report = _Report(self.progress, n_volumes * n_tiles)
        mean, deviation = intensities
        with self._evaluating(), torch.inference_mode():
            for group in groups:
                for index in np.ndindex(shape[:-3]):
                    source = Source([half[index] for half in group], mean, deviation)
                    target = Target(result[index], mean, deviation, 1 / len(groups))
                    self._reconstruct(source, target, scratch, report)
        if out is None and isinstance(first, Tensor):
            return torch.from_numpy(result).to(first.device)
        return cast(AnyVolume, result)

    def footprint(
        self, shape: Sequence[int], *, halves: int = 2, streamed: bool = True, sources: Sequence[Volume] = ()
    ) -> Footprint:
        """What a prediction of a volume of ``shape`` takes, as an upper bound.

        Parameters
        ----------
        shape
            Voxels ``(z, y, x)``.
        halves
            1 or 2 volumes.
        streamed
            With memory maps in, and ``out`` and ``scratch`` in files. Otherwise result and intermediate results are
            counted as memory; the volumes themselves are not.
        sources
            The volumes, where some may lie in Zarr stores: then the chunks that are decoded for a tile are counted.

        Returns
        -------
        Footprint
            Not counted are the program itself (torch's libraries take some 400 MiB), ``out``, and what the network
            computes with: that is the device's memory, unless the device is the host.

        Examples
        --------
        >>> predictor = TiledPredictor(torch.nn.Identity(), (-60.0, 60.0), tile=160, margin=24, wedge="global")
        >>> print(predictor.footprint((464, 928, 928)))
        0.67 GiB of memory and 4.47 GiB of intermediate files
        """
        lengths = spatial_shape(shape)
        tiling = self._tiling(lengths)
        tile = cast(Shape, tiling.tile)
        batch, n_devices = min(self.batch, len(tiling)), len(self._replicas)
        wedge, planes, n_between = 0, 0, 0
        if self.passes > 1 and self.wedge != "tile":
            wedge, planes = streaming_needs(self.operator, lengths)
            n_between = 2 if self._is_local else min(self.passes - 1, 2)
        elif self.passes > 1 and self.device.type == "cpu":
            wedge = n_devices * transform_bytes(self._replicas[0].operator_for(tile).grid_shape, batch)
        n_sources = halves if self.average_first else 1
        arrays, mapped = tile_bytes(lengths, tile, batch, n_sources)
        if self._is_local:
            small = cast(Shape, self._local_tiling(lengths).tile)
            _, mapped_then = tile_bytes(lengths, small, self._n_local, 1)
            mapped = max(mapped, mapped_then)
            if self.device.type == "cpu":
                grid = self._replicas[0].operator_for(small).grid_shape
                wedge = max(wedge, n_devices * transform_bytes(grid, self._n_local))
        decoded = max((half.bytes_to_read(tile) for half in sources if isinstance(half, ZarrVoxels)), default=0)
        kept = planes + 4 * math.prod(lengths) * n_between
        # Of several devices one batch more is held than they work on.
        n_held = 1 if n_devices == 1 else n_devices + 1
        return Footprint.of(n_held * arrays + wedge, n_held * mapped + n_devices * decoded, kept, lengths, streamed)

    def margin_errors(
        self,
        volume: Volume,
        *,
        largest: int = 64,
        core: int = 32,
        centre: Shape | None = None,
        intensities: tuple[float, float] = (0.0, 1.0),
    ) -> dict[int, float]:
        """How much the network's values in a core change with the margin that is computed around it.

        Parameters
        ----------
        volume
            A volume ``(z, y, x)`` as the network is applied to, or with ``intensities`` as a call takes it.
        largest
            The margin whose values count as exact.
        core
            Voxels per side of the core.
        centre
            Where the core lies, ``(z, y, x)``; ``None`` takes the middle. Choose a place with specimen.
        intensities
            Mean and deviation, if the volume is not on the network's scale.

        Returns
        -------
        dict
            For every margin below the largest that is a multiple of the stride, the norm of the difference to the
            largest one's values over their norm.

        Raises
        ------
        ValueError
            If the network gives nothing but zeros there.
        """
        with self._evaluating(), torch.inference_mode():
            return core_errors(
                self._replicas[0],
                Source([_as_array(volume)], *intensities),
                stride=self.stride,
                largest=largest,
                core=core,
                centre=centre,
            )

    def measured_margin(
        self,
        volume: Volume,
        tolerance: float = 0.01,
        *,
        largest: int = 64,
        core: int = 32,
        centre: Shape | None = None,
        intensities: tuple[float, float] = (0.0, 1.0),
    ) -> int:
        """The smallest margin that this network needs, measured on one core of a volume.

        Parameters
        ----------
        volume, largest, core, centre, intensities
            As for :meth:`margin_errors`.
        tolerance
            The relative error allowed in the core. Sixteen bits alone make up to 0.01.

        Raises
        ------
        ValueError
            If no margin below the largest is enough.

        Examples
        --------
        >>> network = torch.nn.Conv3d(1, 1, 5, padding=2, bias=False)
        >>> predictor = TiledPredictor(network, (-60.0, 60.0), tile=32, margin=4, precision="float32")
        >>> predictor.measured_margin(torch.randn(40, 40, 40), 1e-5, largest=8, core=8)
        2
        """
        errors = self.margin_errors(volume, largest=largest, core=core, centre=centre, intensities=intensities)
        return smallest_margin(errors, tolerance)

    def _slow_to_read(self, halves: Sequence[NDArray[np.generic] | Voxels]) -> str:
        """What is to be told of chunks that are far larger than a tile, if there are such."""
        for half in halves:
            if isinstance(half, ZarrVoxels):
                tile = cast(Shape, self._tiling(half.shape).tile)
                if math.prod(half.chunks) > _LARGE_CHUNK * math.prod(tile):
                    return (
                        f"{half.path}: whole chunks of {half.chunks} voxels are decoded anew for each tile of {tile}, "
                        "which is slow: save it with chunks of 64 to 128, as write_volume does, or as an MRC file"
                    )
        return ""

    def _reconstruct(self, source: Source, target: Target, scratch: str | Path | None, report: _Report) -> None:
        if self.passes == 1 or self.wedge == "tile":
            self._pass(source, target, report, self.passes)
        elif self.wedge == "global":
            for _ in range(self.passes - 1):
                between = scratch_array(scratch, source.shape)
                self._pass(source, Target(between), report)
                self._empty(between, scratch)
                source = Source([between])
            self._pass(source, target, report)
        else:
            estimate = scratch_array(scratch, source.shape)
            self._pass(source, Target(estimate), report)
            for _ in range(self.passes - 1):
                second = scratch_array(scratch, source.shape)
                self._local_pass(Source([estimate]), Target(second), report)
                # A x + (I - A) x' = x' + A (x - x'), which needs one copy of the volume less.
                _combine(np.subtract, estimate, second)
                self._empty(estimate, scratch)
                _combine(np.add, estimate, second)
            target.add_all(estimate)

    def _empty(self, volume: Array, scratch: str | Path | None) -> None:
        """Empty the wedge of a whole volume, in place."""
        apply_by_planes(self.operator, volume, volume, scratch=scratch, device=self.device)

    def _pass(self, source: Source, target: Target, report: _Report, passes: int = 1) -> None:
        """The network, once or more often within each tile."""
        network = partial(Replica.__call__, passes=passes)
        self._run(network, _in_batches(self._tiling(source.shape), self.batch), source, target, report)

    def _local_pass(self, source: Source, target: Target, report: _Report) -> None:
        """The network on small tiles, within which the wedge was emptied."""
        batches = _in_batches(self._local_tiling(source.shape), self._n_local)
        self._run(Replica.emptied, batches, source, target, report)

    def _run(
        self,
        network: Callable[[Replica, Tensor], Tensor],
        batches: Iterable[list[Placement]],
        source: Source,
        target: Target,
        report: _Report,
    ) -> None:
        """Process a volume tile by tile and join the cores."""

        def work(replica: Replica, placements: list[Placement]) -> Array:
            tiles = np.stack([placement.read(source) for placement in placements])
            return cast(Array, network(replica, torch.from_numpy(tiles)[:, None])[:, 0].numpy())

        for placements, done in spread(self._replicas, batches, work):
            for placement, tile in zip(placements, done, strict=True):
                target.add(placement, tile)
            source.release()
            target.release()
            report(len(placements))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """All replicas in evaluation mode, with the weights that the model has now."""
        with ExitStack() as stack:
            for replica in self._replicas:
                if replica.network is not self.network:
                    replica.network.load_state_dict(self.network.state_dict())
                stack.enter_context(_evaluating(replica.network))
            yield

    @property
    def _first(self) -> int:
        """The margin as a multiple of the stride."""
        return -(-self.margin // self.stride) * self.stride

    @property
    def _is_local(self) -> bool:
        return self.passes > 1 and self.wedge == "local"

    @property
    def _n_local(self) -> int:
        """Tiles of the second pass in one network call: with their padding no more than the large ones."""
        return self.batch * min(max(1, self.tile // (2 * self.local_tile)) ** 3, _MOST_LOCAL)

    def _local_tiling(self, shape: tuple[int, ...]) -> Tiling:
        z, y, x = shape
        return Tiling((z, y, x), self.local_tile, self.local_tile // 8, self.stride, self.local_tile // 4, self.border)

    def _tiling(self, shape: tuple[int, ...]) -> Tiling:
        z, y, x = shape
        # No larger than one tile that holds the whole axis and both its margins.
        needed = (-(-(self._first + n + self.margin) // self.stride) * self.stride for n in (z, y, x))
        tz, ty, tx = (min(self.tile, n) for n in needed)
        if self.passes == 1 or self.wedge != "tile":
            tz, ty, tx = (
                shortest_tile(n, tile, self.margin, self.stride, self.blend)
                for n, tile in zip((z, y, x), (tz, ty, tx), strict=True)
            )
        return Tiling((z, y, x), (tz, ty, tx), self.margin, self.stride, self.blend, self.border)


class _Report:
    """Counts tiles for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, n: int) -> None:
        self._done += n
        if self._progress is not None:
            self._progress(self._done, self._total)


def _as_operator(physics_or_geometry: WedgeOperator | TiltGeometry | tuple[float, float]) -> WedgeOperator:
    if isinstance(physics_or_geometry, WedgeOperator):
        return physics_or_geometry
    return PaddedMissingWedgeOperator((8, 8, 8), as_geometry(physics_or_geometry))


def _as_array(volume: Volume) -> NDArray[np.generic] | Voxels:
    if isinstance(volume, Tensor):
        return volume.detach().float().cpu().numpy()
    # Of any type: converted tile by tile.
    return volume


def _emptied(out: NDArray[np.floating], halves: Sequence[NDArray[np.generic] | Voxels]) -> NDArray[np.floating]:
    """The caller's array, checked, with zeros in it."""
    if out.shape != halves[0].shape or out.dtype.kind != "f" or out.dtype.itemsize < 4:
        raise ValueError(f"out must be float32 of shape {halves[0].shape}, got {out.dtype} of shape {out.shape}")
    if any(isinstance(half, np.ndarray) and np.may_share_memory(out, half) for half in halves):
        raise ValueError("out must not be the input: voxels are read several times")
    for index in np.ndindex(out.shape[:-2]):
        out[index] = 0
        release(out)
    return out


def _combine(operation: np.ufunc, volume: Array, other: Array) -> None:
    """Put the sum or the difference of two volumes in place of the first, section by section."""
    for section, second in zip(volume, other, strict=True):
        operation(section, second, out=section)
        release(volume, other)


def _in_batches(tiling: Tiling, size: int) -> Iterator[list[Placement]]:
    held: list[Placement] = []
    for placement in tiling:
        held.append(placement)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    # Module by module: a part that was frozen in evaluation mode stays so.
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
