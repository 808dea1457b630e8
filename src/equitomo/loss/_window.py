"""The part of a cube that a loss looks at."""

from __future__ import annotations

from torch import Tensor


def check_margin(margin: int) -> int:
    """A margin is a whole number of voxels."""
    if margin < 0:
        raise ValueError(f"margin must be zero or more voxels, got {margin}")
    return int(margin)


def mean_square(residual: Tensor, margin: int) -> Tensor:
    """Mean over views and voxels of the squared residual inside the margin, one value per sample."""
    if margin:
        if 2 * margin >= min(residual.shape[-3:]):
            raise ValueError(
                f"a margin of {margin} voxels leaves nothing of {tuple(residual.shape[-3:])} voxels (z, y, x)"
            )
        inside = slice(margin, -margin)
        residual = residual[..., inside, inside, inside]
    # Sixteen bits would lose the mean of many small squares.
    residual = residual.float() if residual.dtype.itemsize < 4 else residual
    return residual.square().mean(dim=(1, 2, 3, 4))
