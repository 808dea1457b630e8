"""Going on with less at a time when the memory does not hold it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from equitomo.resources import is_out_of_memory

_log = logging.getLogger(__name__)


class Fitting:
    """Apply a function to a batch of tiles; when memory runs out, to half of it, then to parts of a tile.

    What did not fit once is not tried again. A tile is cut across its longest axis into two parts that overlap, each
    of which gives its own half, so every voxel is still computed from at least ``overlap`` voxels around it or, at the
    tile's faces, from what it was computed from before. With an overlap as wide as the function's reach the result is
    the same up to rounding, and with a smaller one as good as that of tiles with such a margin.

    Parameters
    ----------
    apply
        Maps ``(batch, channel, z, y, x)`` on the host to the same lengths there: the ways to a device and back are
        its own, so that what does not fit there is not tried outside of here.
    overlap
        A multiple of the stride of ``apply``; ``None`` for what may not be cut in space.
    stride
        Parts start on multiples of it.
    on_cpu
        What is done with that which cannot be divided further; ``None`` lets the error through.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        overlap: int | None = None,
        stride: int = 1,
        *,
        on_cpu: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._apply, self._overlap, self._stride, self._on_cpu = apply, overlap, stride, on_cpu
        self._too_large = math.inf

    def __call__(self, x: Tensor) -> Tensor:
        """The function's values for all of ``x``."""
        divisible = len(x) > 1 or self._middle(x) is not None
        last = not divisible and self._on_cpu is None
        if x.numel() < self._too_large or last:
            try:
                return self._apply(x)
            except (MemoryError, RuntimeError) as error:
                if last or not is_out_of_memory(error):
                    raise
                self._too_large = x.numel()
                self._tell(x, divisible)
        # Out of the handler, which would keep what the failed attempt had allocated. Does nothing without a GPU.
        torch.cuda.empty_cache()
        if len(x) > 1:
            return torch.cat([self(half) for half in x.tensor_split(2)])
        return self._in_two(x) if self._on_cpu is None or divisible else self._on_cpu(x)

    def _in_two(self, x: Tensor) -> Tensor:
        middle, overlap = self._middle(x), self._overlap
        assert middle is not None
        assert overlap is not None
        axis, n = _longest(x)
        first = self(x.narrow(axis, 0, middle + overlap)).narrow(axis, 0, middle)
        second = self(x.narrow(axis, middle - overlap, n - middle + overlap)).narrow(axis, overlap, n - middle)
        return torch.cat((first, second), dim=axis)

    def _middle(self, x: Tensor) -> int | None:
        """Where to cut, if both parts would be smaller than the whole."""
        if self._overlap is None:
            return None
        middle = _longest(x)[1] // 2 // self._stride * self._stride
        return middle if middle > self._overlap else None

    def _tell(self, x: Tensor, divisible: bool) -> None:
        shape = " x ".join(map(str, x.shape[-3:]))
        alone = "each in two overlapping parts" if divisible else "the CPU"
        remedy = f"{(len(x) + 1) // 2} at a time" if len(x) > 1 else alone
        tiles = "tile" if len(x) == 1 else "tiles"
        _log.warning("out of memory with %d %s of %s voxels: going on with %s", len(x), tiles, shape, remedy)


def _longest(x: Tensor) -> tuple[int, int]:
    n, axis = max((n, -axis) for axis, n in enumerate(x.shape) if axis >= x.ndim - 3)
    return -axis, n
