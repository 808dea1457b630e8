"""Reconstructing whole tomograms with a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.models import TwoViewReconstructor
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.precision import Precision, autocast, trusted
from equitomo.tiling import Border, Placement, Tiling

Wedge = Literal["global", "tile"]
WedgeOperator = MissingWedgeOperator | PaddedMissingWedgeOperator
Progress = Callable[[int, int], None]
Array = NDArray[np.float32]
AnyVolume = TypeVar("AnyVolume", Tensor, NDArray[np.generic])


class TiledPredictor:
    r"""Apply a trained network to volumes of any size, once or twice, without seams.

    .. math:: \hat x = \tfrac12 \bigl( f(A f(y_0)) + f(A f(y_1)) \bigr)

    Equation (7) of :cite:t:`kishore2026icecream`: the first pass fills the wedge, :math:`A` empties it again,
    and the second pass sees a denoised volume with an empty wedge. With ``wedge="global"`` :math:`A` acts on
    the whole volume between two tiled passes; with ``"tile"`` both passes and :math:`A` are done inside each
    tile, as in training and in the reference program. :math:`A` has a long range, so the second differs
    from tile to tile and depends on the tile's size.

    Parameters
    ----------
    model
        Maps ``(batch, 1, z, y, x)`` to the same shape; a :class:`~equitomo.TwoViewReconstructor` gives its
        network. It is used where it is: on the device and in the type of its parameters.
    physics_or_geometry
        A missing-wedge operator of any size: for another size the same is made. A
        :class:`~equitomo.geometry.TiltGeometry` or a pair ``(low, high)`` of degrees stands for a
        :class:`~equitomo.physics.PaddedMissingWedgeOperator`. Not used with one pass.
    tile
        Voxels per side of a tile, a multiple of ``stride``; smaller volumes take smaller tiles.
    margin
        Voxels computed and thrown away at every face of a tile.
    passes
        2 is the paper's; 1 gives :math:`f(y)`.
    wedge
        Where :math:`A` acts between the passes.
    blend
        Voxels over which neighbouring tiles fade into each other at least; ``None`` takes a fifth of a tile without its
        margins where that is 64 voxels or more, and nothing of smaller ones. Margins of 24 and a blend of 16 leave no
        seam with trained networks, margins of 16 without a blend do; see the benchmarks.
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
    progress
        Called with the tiles done and their total.

    Raises
    ------
    ValueError
        For passes below 1, or a tile, margin and stride that leave no core; see
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
        tile: int = 128,
        margin: int = 24,
        passes: int = 2,
        wedge: Wedge = "tile",
        blend: int | None = None,
        batch: int = 1,
        stride: int | None = None,
        average_first: bool = False,
        border: Border = "reflect",
        precision: Precision = "auto",
        progress: Progress | None = None,
    ) -> None:
        if passes < 1 or batch < 1:
            raise ValueError(f"passes and batch must be at least 1, got {passes} and {batch}")
        if wedge not in ("global", "tile"):
            raise ValueError(f"wedge is 'global' or 'tile', got {wedge!r}")
        self.network = model.network if isinstance(model, TwoViewReconstructor) else model
        self.operator = _as_operator(physics_or_geometry)
        core = tile - 2 * margin
        if blend is None:
            blend = core // 5 if core >= 64 else 0
        self.tile, self.margin, self.blend, self.batch, self.border = tile, margin, blend, batch, border
        self.passes, self.wedge, self.average_first = passes, wedge, average_first
        self.stride = int(getattr(self.network, "stride", 1)) if stride is None else stride
        parameter = next(self.network.parameters(), torch.zeros(()))
        self.device, self._input_dtype = parameter.device, parameter.dtype
        self._dtype = trusted(precision, self.device)
        self.progress = progress
        # A volume too large for one tile, so that what cannot work is told here and not at the first call.
        self._tiling((tile + 1,) * 3)

    def __call__(self, first: AnyVolume, second: AnyVolume | None = None) -> AnyVolume:
        """Reconstruct a volume, or the mean of the reconstructions of two halves.

        Parameters
        ----------
        first, second
            Volumes ``(..., z, y, x)``, tensors or arrays (also memory maps), on the intensity scale that the
            network was trained on. Leading axes hold separate volumes.

        Returns
        -------
        Tensor or numpy.ndarray
            float32, of the same kind and shape as ``first``, a tensor on the same device.
        """
        if second is not None and tuple(second.shape) != tuple(first.shape):
            raise ValueError(f"the halves differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
        halves = [_as_array(half) for half in (first, second) if half is not None]
        if halves[0].ndim < 3 or not halves[0].size:
            raise ValueError(f"a volume (..., z, y, x) is needed, got shape {tuple(first.shape)}")
        spatial = halves[0].shape[-3:]
        if self.average_first and second is not None:
            halves = [np.mean(halves, axis=0, dtype=np.float32)]
        volumes = [half.reshape(-1, *spatial) for half in halves]
        n_runs = sum(map(len, volumes)) * (self.passes if self.wedge == "global" else 1)
        report = _Report(self.progress, n_runs * len(self._tiling(spatial)))
        out = np.zeros(volumes[0].shape, np.float32)
        with _evaluating(self.network), torch.inference_mode():
            for half in volumes:
                for index, volume in enumerate(half):
                    out[index] += self._reconstruct(volume, report) / len(volumes)
        out = out.reshape(halves[0].shape)
        if isinstance(first, Tensor):
            return torch.from_numpy(out).to(first.device)
        return cast(AnyVolume, out)

    def _reconstruct(self, volume: Array, report: _Report) -> Array:
        if self.wedge == "tile":
            return self._run(volume, self._all_passes, report)
        result = self._run(volume, self._network, report)
        for _ in range(self.passes - 1):
            emptied = self._operator_for(volume.shape).A(torch.from_numpy(result)[None, None].to(self.device))
            result = self._run(emptied[0, 0].cpu().numpy(), self._network, report)
        return result

    def _run(self, volume: Array, process: Callable[[Tensor], Tensor], report: _Report) -> Array:
        """Process a volume tile by tile and join the cores."""
        out = np.zeros(volume.shape, np.float32)
        for placements in _in_batches(self._tiling(volume.shape), self.batch):
            tiles = np.stack([placement.read(volume) for placement in placements])
            done = process(torch.from_numpy(tiles)[:, None].to(self.device))[:, 0].cpu().numpy()
            for placement, tile in zip(placements, done, strict=True):
                out[placement.target] += placement.weight * tile[placement.core]
            report(len(placements))
        return out

    def _network(self, x: Tensor) -> Tensor:
        with autocast(self._dtype, self.device):
            return cast(Tensor, self.network(x.to(self._input_dtype))).float()

    def _all_passes(self, x: Tensor) -> Tensor:
        """Every pass within the tiles."""
        result = self._network(x)
        for _ in range(self.passes - 1):
            result = self._network(self._operator_for(tuple(x.shape[-3:])).A(result))
        return result

    def _operator_for(self, shape: tuple[int, ...]) -> WedgeOperator:
        if self.operator.volume_shape != shape:
            self.operator = self.operator.resized(shape)
        if self.operator.mask.device != self.device:
            # A copy: the caller's operator stays where it is.
            self.operator = cast(WedgeOperator, self.operator.clone().to(self.device))
        return self.operator

    def _tiling(self, shape: tuple[int, ...]) -> Tiling:
        z, y, x = shape
        first = -(-self.margin // self.stride) * self.stride
        # No larger than one tile that holds the whole axis and both its margins.
        needed = (-(-(first + n + self.margin) // self.stride) * self.stride for n in (z, y, x))
        tz, ty, tx = (min(self.tile, n) for n in needed)
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


def _as_array(volume: Tensor | NDArray[np.generic]) -> Array:
    if isinstance(volume, Tensor):
        return volume.detach().float().cpu().numpy()
    # A memory map of native float32 stays one.
    return volume.astype(np.float32, copy=False)


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
