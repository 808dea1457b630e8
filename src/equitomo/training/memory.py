"""How many cubes go through the network at once, and how much memory they take."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from equitomo.training.config import TrainingConfig

# Values of the network's maps at full resolution, in one call, beyond which a CPU gains nothing by more cubes. A signal
# waits for the current operation, which took 20 s with the eight cubes of the paper's settings together.
_MAPS_ON_CPU = 1 << 24
# Bytes that are kept for the gradient, per voxel of every cube, view and call and per map of full resolution; measured
# for widths from 4 to 16. With sixteen bits copies of the weights' products are kept too.
_KEPT = {torch.float32: 22, torch.bfloat16: 17, torch.float16: 17}
# The factor for gradients and workspaces of the backward pass: 1.18 with the paper's settings.
IN_BACKWARD = 1.2
# The share that activation checkpointing leaves, less for wide networks.
_CHECKPOINTED = 0.5


class MemoryPlan(NamedTuple):
    """How a step is divided: the number of cubes at once, and whether activation checkpointing is used."""

    n_at_once: int
    checkpointing: bool = False

    def smaller(self, network: nn.Module) -> MemoryPlan | None:
        """Return a plan that needs less memory, ``None`` if there is none for this network."""
        if self.n_at_once > 1:
            return self._replace(n_at_once=(self.n_at_once + 1) // 2)
        if hasattr(network, "checkpointing") and not self.checkpointing:
            return self._replace(checkpointing=True)
        return None

    def __str__(self) -> str:
        cubes = "1 cube" if self.n_at_once == 1 else f"{self.n_at_once} cubes"
        return f"{cubes} at once" + (" and activation checkpointing" if self.checkpointing else "")


def cubes_at_once(config: TrainingConfig, device: torch.device) -> int:
    """Return the number of cubes at once: the configured one, or as many as make sense on the device."""
    if config.micro_batch:
        return config.micro_batch
    if device.type != "cpu":
        return config.batch
    return max(1, int(_MAPS_ON_CPU / (config.maps_per_voxel * math.prod(config.cube_shape))))


def bytes_of_step(config: TrainingConfig, dtype: torch.dtype, n_cubes: int, *, checkpointing: bool = False) -> float:
    """Return about how many bytes a step of the library's network takes besides the weights, with ``n_cubes`` cubes."""
    views = 1 if config.method == "equivariant_imaging" else 2
    calls = 2 if config.equivariance_weight else 1
    kept = n_cubes * math.prod(config.cube_shape) * views * calls * config.maps_per_voxel * _KEPT[dtype]
    return kept * IN_BACKWARD * (_CHECKPOINTED if checkpointing or config.checkpointing else 1.0)
