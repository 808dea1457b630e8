"""Check arguments that several modules take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Shape = tuple[int, int, int]


def spatial_shape(shape: Sequence[int], name: str = "shape") -> Shape:
    """Return three positive lengths ``(z, y, x)``; a leading number of channels is dropped."""
    lengths = tuple(int(n) for n in shape)
    if len(lengths) not in (3, 4) or min(lengths) < 1:
        raise ValueError(f"{name} must be (z, y, x) or (C, z, y, x) with positive lengths, got {tuple(shape)}")
    z, y, x = lengths[-3:]
    return z, y, x


def require_volumes(x: Tensor, name: str = "x") -> None:
    """Raise an error for anything but a non-empty floating-point batch ``(B, C, z, y, x)``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}: use torch.as_tensor first")
    if not torch.is_floating_point(x):
        raise TypeError(f"{name} must be of a floating-point type, got {x.dtype}: call {name}.float() first")
    if x.ndim != 5 or x.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty batch of volumes (batch, channel, z, y, x), got shape {tuple(x.shape)}"
        )


def require_spatial(x: Tensor, shape: Shape, name: str = "x") -> None:
    """Raise an error for a batch whose last three lengths are not ``shape``."""
    require_volumes(x, name)
    if tuple(x.shape[-3:]) != shape:
        raise ValueError(
            f"{name} has {tuple(x.shape[-3:])} voxels (z, y, x), this operator was made for {shape}: "
            "make an operator for that shape, or cut the volume to it"
        )
