"""Application of a function to a batch of tiles in pieces, as small as the memory requires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from equitomo.resources import Retry


class Division(NamedTuple):
    """How a batch is divided: tiles in one call, how often each is cut into two parts, and the device."""

    n_tiles: int
    n_cuts: int
    device: torch.device


class SplittingFunction:
    """Apply a function to batches of tiles. When memory runs out, use fewer tiles, parts of a tile, or the next device.

    A tile is cut across its longest axis into two parts that overlap by ``overlap`` voxels on either side of the cut
    and start on multiples of ``stride``. Each part gives its own half, so every voxel is computed from at least
    ``overlap`` voxels around it, except at the tile's faces, where nothing changes. If the overlap is as wide as the
    function's reach, the result is the same up to rounding, otherwise it is as good as that of tiles with such a
    margin. An overlap of ``None`` forbids the cut.

    The function maps ``(batch, channel, z, y, x)`` on the host to a result there, and transfers data to the device and
    back itself, so that a transfer for which there is no room is repeated too.
    """

    def __init__(
        self,
        apply: Callable[[Tensor, torch.device], Tensor],
        devices: Sequence[torch.device],
        overlap: int | None = None,
        stride: int = 1,
    ) -> None:
        self._apply, self._devices, self._overlap, self._stride = apply, devices, overlap, stride
        # For each shape of a tile the first plan, and the retries, which remember what has fitted.
        self._retries: dict[tuple[int, ...], tuple[Division, Retry[Division]]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function's values for all of ``x``."""
        shape, whole = tuple(x.shape[-3:]), Division(len(x), 0, self._devices[0])
        first, retry = self._retries.get(shape, (None, None))
        # A batch that is longer than any before is tried as a whole, unless a shorter one did not fit.
        if first is None or retry is None or (retry.plan == first and len(x) > first.n_tiles):
            retry = Retry(whole, partial(self._smaller, shape), partial(_description, shape))
            self._retries[shape] = whole, retry
        return retry(partial(self._divided, x))

    def _divided(self, x: Tensor, division: Division) -> Tensor:
        parts = [self._cut(part, division.n_cuts, division.device) for part in torch.split(x, division.n_tiles)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _cut(self, x: Tensor, n_cuts: int, device: torch.device) -> Tensor:
        place = self._place(x.shape[-3:]) if n_cuts else None
        if place is None:
            return self._apply(x, device)
        (axis, middle), overlap, n = place, self._overlap or 0, x.shape[place[0]]
        first = self._cut(x.narrow(axis, 0, middle + overlap), n_cuts - 1, device)
        second = self._cut(x.narrow(axis, middle - overlap, n - middle + overlap), n_cuts - 1, device)
        return torch.cat((first.narrow(axis, 0, middle), second.narrow(axis, overlap, n - middle)), dim=axis)

    def _place(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the axis and the index where a tile is cut, if both parts are smaller than the whole."""
        n, axis = max((n, -axis) for axis, n in zip((-3, -2, -1), shape, strict=True))
        middle = n // 2 // self._stride * self._stride
        return None if self._overlap is None or middle <= self._overlap else (-axis, middle)

    def _smaller(self, shape: Sequence[int], division: Division) -> Division | None:
        n_tiles, n_cuts, device = division
        if n_tiles > 1:
            return Division((n_tiles + 1) // 2, 0, device)
        part = list(shape)
        for _ in range(n_cuts + 1):
            if (place := self._place(part)) is None:
                break
            # The second part is the larger one.
            part[place[0]] += (self._overlap or 0) - place[1]
        else:
            return Division(1, n_cuts + 1, device)
        others = self._devices[self._devices.index(device) + 1 :]
        return Division(1, n_cuts, others[0]) if others else None


def _description(shape: Sequence[int], division: Division) -> str:
    n_tiles, n_cuts, device = division
    tiles = f"{n_tiles} {'tile' if n_tiles == 1 else 'tiles'} of {' x '.join(map(str, shape))} voxels"
    return f"{tiles}{f' in {2**n_cuts} overlapping parts' if n_cuts else ''} on {device}"
