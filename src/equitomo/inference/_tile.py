"""How large a tile is, where nobody says."""

from __future__ import annotations

import os

import torch
from torch import nn

# Smaller tiles are mostly margin. Larger ones gain little, and the host holds several copies of one.
_SMALLEST, _LARGEST, _LEAST_CORE = 112, 240, 64
# Of a network that does not say what it takes.
_USUAL = 128
# Shares of all the memory that a device has: what is free would give another result tomorrow.
_OF_GPU, _OF_HOST = 4, 8


def suitable_tile(network: nn.Module, device: torch.device, dtype: torch.dtype, stride: int, margin: int) -> int:
    """The side of the largest tile that the memory of a device holds comfortably, from 112 to 240 voxels.

    It is larger only where wide margins would leave less than 64 voxels of it.
    """
    maps = getattr(network, "maps_at_once", None)
    side = _USUAL if maps is None else int((_budget(device) / (maps * dtype.itemsize)) ** (1 / 3))
    side = max(min(side, _LARGEST), _SMALLEST) // stride * stride
    return max(side, -(-(2 * margin + _LEAST_CORE) // stride) * stride)


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // _OF_GPU
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _OF_HOST
