"""The middle of a volume, for what its spectrum tells."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class InFile(Protocol):
    """Voxels in a file that are indexed like an array, and then read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""

    def __getitem__(self, index: Any, /) -> Any:
        """An array."""


Volume = npt.NDArray[np.generic] | Tensor | InFile


def middle_of(volume: Volume, most: int) -> Tensor:
    """At most so many voxels along each axis, float32 on the CPU; of a file no more is read."""
    cut = volume[tuple(slice((n - min(n, most)) // 2, (n + min(n, most)) // 2) for n in volume.shape)]
    return cut.detach().cpu().float() if isinstance(cut, Tensor) else torch.from_numpy(np.array(cut, np.float32))


def hann(shape: tuple[int, ...]) -> Tensor:
    """A Hann window ``(z, y, x)`` that is zero just outside the faces, which would put a cross over the spectrum."""
    z, y, x = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in shape)
    return z[:, None, None] * y[:, None] * x
