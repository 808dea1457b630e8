"""One protocol for volumes that can be sliced, whether they lie in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.checks import Shape
from equitomo.io import SLAB_BYTES, Index, slabs_of

__all__ = ["Filled", "Index", "Shape", "VolumeLike", "Voxels", "as_voxels", "blurred", "middle_of"]


@runtime_checkable
class Voxels(Protocol):
    """Voxels ``(z, y, x)`` that can be sliced.

    :class:`equitomo.io.Volume` and the voxels of MRC files and Zarr stores satisfy the protocol by themselves;
    :func:`as_voxels` wraps tensors and arrays.
    """

    @property
    def shape(self) -> Shape:
        """Voxels along ``(z, y, x)``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read."""

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        """Return the voxels at an index, which consists of integers and slices without steps, as an array."""

    def slabs(self, n_bytes: int = ...) -> Iterator[tuple[Index, NDArray[Any]]]:
        """Yield the whole volume in pieces of about ``n_bytes``, each with its place, in the fastest order.

        A piece must be copied before the next one is asked for and must not be written to.
        """


VolumeLike = Tensor | NDArray[Any] | Voxels


def as_voxels(volume: VolumeLike) -> Voxels:
    """Return the volume itself if it satisfies :class:`Voxels`, else a view of the tensor or array that does.

    Slices of a tensor are arrays on the CPU, with float32 in place of bfloat16. The volume is not copied.

    Parameters
    ----------
    volume
        A volume ``(z, y, x)``.

    Raises
    ------
    TypeError
        If it is neither a tensor nor an array nor satisfies the protocol.
    ValueError
        If it does not have three axes.

    Examples
    --------
    >>> voxels = as_voxels(torch.ones(4, 5, 6))
    >>> voxels.shape, voxels.dtype, voxels[0, 1:3].shape
    ((4, 5, 6), dtype('float32'), (2, 6))
    >>> sum(float(block.sum()) for _, block in voxels.slabs())
    120.0
    """
    if not isinstance(volume, Tensor | np.ndarray | Voxels):
        raise TypeError(f"a volume must be a tensor, an array or voxels in a file, got {type(volume).__name__}")
    if len(volume.shape) != 3:
        raise ValueError(f"a volume must have the axes (z, y, x), got shape {tuple(volume.shape)}")
    return _InMemory(volume) if isinstance(volume, Tensor | np.ndarray) else volume


def middle_of(volume: VolumeLike, most: int) -> Tensor:
    """Return at most the middle ``most`` voxels along each axis as float32 on the CPU; only these are read."""
    voxels = as_voxels(volume)
    z, y, x = (slice((n - min(n, most)) // 2, (n + min(n, most)) // 2) for n in voxels.shape)
    return torch.from_numpy(np.array(voxels[z, y, x], np.float32))


def blurred(volume: Tensor, deviation: float) -> Tensor:
    """Return a volume ``(z, y, x)`` after a Gaussian, whose faces are continued by their values.

    Parameters
    ----------
    volume
        The volume.
    deviation
        The standard deviation of the Gaussian in voxels, which ends after three of them.

    Examples
    --------
    >>> blurred(torch.ones(4, 5, 6), 1.5).sum()
    tensor(120.)
    """
    n = math.ceil(3 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-n, n + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for axis in range(3):
        # torch's own convolution takes twice the time and more memory.
        length = volume.shape[axis]
        ends = [
            volume.narrow(axis, place, 1).expand(*volume.shape[:axis], n, *volume.shape[axis + 1 :])
            for place in (0, length - 1)
        ]
        padded = torch.cat((ends[0], volume, ends[1]), axis)
        total = torch.zeros_like(volume)
        for k, weight in enumerate(kernel.tolist()):
            total.add_(padded.narrow(axis, k, length), alpha=weight)
        volume = total
    return volume


@dataclass(frozen=True, eq=False)
class Filled:
    """Voxels with ``value`` in place of those that are NaN or infinite.

    Parameters
    ----------
    voxels
        The voxels to read.
    value
        The value that replaces voxels that are NaN or infinite.

    Examples
    --------
    >>> Filled(as_voxels(np.full((2, 2, 2), np.nan, np.float32)), 0.5)[0, 0]
    array([0.5, 0.5], dtype=float32)
    """

    voxels: Voxels
    value: float

    @property
    def shape(self) -> Shape:
        """Voxels along ``(z, y, x)``."""
        return self.voxels.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read."""
        return self.voxels.dtype

    @property
    def mapped(self) -> Any:
        """The array whose memory :func:`equitomo.io.release` releases."""
        return getattr(self.voxels, "mapped", None)

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        return self._filled(self.voxels[index])

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, NDArray[Any]]]:
        """Yield the pieces of ``voxels`` with their values replaced."""
        for place, block in self.voxels.slabs(n_bytes):
            yield place, self._filled(block)

    def _filled(self, block: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.isfinite(block), block, block.dtype.type(self.value))


class _InMemory:
    """Voxels in a tensor or an array, which satisfy :class:`Voxels`."""

    def __init__(self, volume: Tensor | NDArray[Any]) -> None:
        if isinstance(volume, Tensor):
            volume = volume.detach()
        self.mapped = self._volume = volume
        self.dtype = self[:0, :0, :0].dtype

    @property
    def shape(self) -> Shape:
        z, y, x = self._volume.shape
        return z, y, x

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        block = self._volume[index]
        if not isinstance(block, Tensor):
            return np.asarray(block)
        array: NDArray[Any] = (block.float() if block.dtype == torch.bfloat16 else block).cpu().numpy()
        return array

    def slabs(self, n_bytes: int = SLAB_BYTES) -> Iterator[tuple[Index, NDArray[Any]]]:
        if isinstance(self._volume, np.ndarray):
            return slabs_of(self._volume, n_bytes)
        return slabs_of(self, n_bytes)
