"""Pairs of half tomograms that stay in their files until they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets.intensities import IntensityScale, Normalization
from equitomo.datasets.pair import TomogramPair
from equitomo.datasets.specimen import specimen_mask
from equitomo.geometry import TiltGeometry, as_geometry
from equitomo.io import Volume
from equitomo.volumes import Filled, Voxels


class ReadingStoppedError(Exception):
    """The reading was told to end before it was through."""


class StoredTomogramPair:
    """Two half tomograms in files, read when they are needed and not kept.

    Parameters
    ----------
    first, second
        The halves, as :func:`~equitomo.read_volume` returns them. What is remembered is where they are.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    mask
        Where the specimen is, a volume that is non-zero inside; ``"auto"`` finds it with
        :func:`~equitomo.datasets.specimen_mask`, ``None`` is for everywhere.
    normalization
        ``"robust"`` or ``"scale"``; see :class:`~equitomo.TomogramPair`.
    nan
        ``"mean"`` puts the mean of a file where its voxels are NaN or infinite, ``"refuse"`` refuses the file.
    name
        What messages call the pair; its files if not given.

    Attributes
    ----------
    shape : tuple of int
        Voxels along (z, y, x).
    n_bytes : int
        What both halves take in memory as float32.
    scale : IntensityScale or None
        The map to the common scale, once :meth:`load` has found it.

    Raises
    ------
    ValueError
        If the halves are one file, or differ in shape or, by more than one part in a hundred, in voxel size.

    Examples
    --------
    >>> from equitomo import read_volume, write_volume
    >>> folder, specimen = getfixture("tmp_path"), np.random.default_rng(0).standard_normal((16, 16, 16))
    >>> for name in ("even", "odd"):
    ...     half = specimen + np.random.default_rng(len(name)).standard_normal((16, 16, 16))
    ...     _ = write_volume(folder / f"{name}.mrc", half.astype("f4"), voxel_size=10.0)
    >>> pair = StoredTomogramPair(
    ...     read_volume(folder / "even.mrc"), read_volume(folder / "odd.mrc"), (-60.0, 60.0)
    ... )
    >>> pair.load().volumes.shape, pair.n_bytes
    (torch.Size([2, 16, 16, 16]), 32768)
    """

    def __init__(
        self,
        first: Volume,
        second: Volume,
        geometry: TiltGeometry | tuple[float, float],
        *,
        mask: Volume | Literal["auto"] | None = None,
        normalization: Normalization = "robust",
        nan: Literal["refuse", "mean"] = "refuse",
        name: str | None = None,
    ) -> None:
        require_two_halves(first, second)
        self.geometry = as_geometry(geometry)
        self.shape = first.shape
        self.n_bytes = 8 * int(np.prod(self.shape))
        self.voxel_size = first.voxel_size if min(first.voxel_size) > 0 else None
        self.name = f"{first.path} and {second.path}" if name is None else name
        self.scale: IntensityScale | None = None
        self._halves: list[Voxels] = [_stored(first), _stored(second)]
        self._mask = _stored(mask) if isinstance(mask, Volume) else mask
        self._normalization: Normalization = normalization
        self._nan = nan

    def load(self) -> TomogramPair:
        """The pair in memory, checked, with its mask; the scale is found and remembered.

        Raises
        ------
        ValueError
            As :class:`~equitomo.TomogramPair` does.
        OSError
            If a file cannot be read.
        """
        if self._nan == "mean":
            self._halves = [_filled(half) if isinstance(half, Volume) else half for half in self._halves]
        pair = TomogramPair(
            self._halves[0],
            self._halves[1],
            self.geometry,
            voxel_size=self.voxel_size,
            mask=self._mask if isinstance(self._mask, Volume) else None,
            normalization=self._normalization,
            name=self.name,
        )
        if self._mask == "auto":
            pair.mask = specimen_mask(pair.volumes.mean(0))
        self.scale = pair.scale
        return pair

    def read(self, stopped: Callable[[], bool] = lambda: False) -> Tensor:
        """The volumes of :meth:`load` once more, on the remembered scale and without its checks.

        Parameters
        ----------
        stopped
            Asked between pieces of the files whether to leave off.

        Raises
        ------
        ReadingStoppedError
            If that was so.
        RuntimeError
            If the pair was never loaded.
        OSError
            If a file cannot be read.
        """
        if self.scale is None:
            raise RuntimeError(f"{self.name} was never loaded, its scale is not known: call load() before read()")
        mean, scale = np.float32(self.scale.mean), np.float32(self.scale.scale)
        volumes = torch.empty((2, *self.shape))
        for target, half in zip(volumes.numpy(), self._halves, strict=True):
            for place, block in half.slabs():
                if stopped():
                    raise ReadingStoppedError(self.name)
                # Numpy and not torch: a second team of threads would take the training's cores.
                target[place] = block
                target[place] -= mean
                target[place] /= scale
        return volumes


def require_two_halves(first: Volume, second: Volume) -> None:
    """Refuse one file for both halves, and volumes that do not lie on one grid."""
    if first.path.exists() and second.path.exists() and first.path.samefile(second.path):
        raise ValueError(f"{first.path} and {second.path} are the same file: give the two half tomograms")
    if first.shape != second.shape:
        raise ValueError(
            f"the two volumes differ in shape: {first.path} has {first.shape} and {second.path} "
            f"{second.shape} voxels (z, y, x); give the halves of one tomogram, reconstructed alike"
        )
    for one, other in zip(first.voxel_size, second.voxel_size, strict=True):
        if abs(one - other) > 0.01 * max(one, other):
            raise ValueError(
                f"the two volumes differ in voxel size: {first.path} has {first.voxel_size} and {second.path} "
                f"{second.voxel_size} Å (z, y, x); correct the header that is wrong"
            )


def _stored(volume: Volume) -> Volume:
    if isinstance(volume.voxels, np.ndarray):
        raise ValueError(
            f"the voxels given for {volume.path} are not those of the file: use TomogramPair, or write them"
        )
    return volume


def _filled(voxels: Volume) -> Voxels:
    """The volume with the mean of its finite voxels in the place of others, if there are such."""
    total, finite = 0.0, 0
    for _, block in voxels.slabs():
        good = block[np.isfinite(block)]
        total, finite = total + float(good.sum(dtype=np.float64)), finite + good.size
    missing = int(np.prod(voxels.shape)) - finite
    if not missing or not finite:
        return voxels
    warnings.warn(f"{voxels.path}: {missing} voxels that are NaN or infinite now hold the file's mean", stacklevel=3)
    return Filled(voxels, total / finite)
