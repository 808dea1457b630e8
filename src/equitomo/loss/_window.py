"""The part of a cube that a loss looks at."""

from __future__ import annotations

from deepinv.physics import Physics
from torch import Tensor

from equitomo.fourier import filtered_mean_square
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator


def check_margin(margin: int) -> int:
    """A margin is a whole number of voxels."""
    if margin < 0 or margin != int(margin):
        raise ValueError(f"margin must be a whole number of voxels, zero or more, got {margin}")
    return int(margin)


def inside(u: Tensor, margin: int) -> Tensor:
    """What is left of volumes without the margin at each face."""
    if 2 * margin >= min(u.shape[-3:]):
        raise ValueError(f"a margin of {margin} voxels leaves nothing of {tuple(u.shape[-3:])} voxels (z, y, x)")
    z, y, x = (slice(margin, n - margin) for n in u.shape[-3:])
    return u[..., z, y, x]


def measured_inside(physics: Physics, u: Tensor, margin: int) -> Tensor:
    """``physics.A(u)`` inside the margin, the cheaper way where the operator has one."""
    if margin and isinstance(physics, PaddedMissingWedgeOperator) and 2 * margin < min(u.shape[-3:]):
        return physics.A_inside(u, margin)
    return inside(physics.A(u), margin)


def measured_mean_square(physics: Physics, u: Tensor, margin: int) -> Tensor:
    """Mean square of ``physics.A(u)`` inside the margin, one value per sample."""
    # Without padding and without a margin nothing is cut, and the spectrum tells.
    whole = isinstance(physics, MissingWedgeOperator | PaddedMissingWedgeOperator) and not margin
    if whole and physics.grid_shape == tuple(u.shape[-3:]):
        return filtered_mean_square(u, physics.mask)
    return mean_square(measured_inside(physics, u, margin))


def mean_square(residual: Tensor) -> Tensor:
    """Mean over views and voxels of the squared residual, one value per sample."""
    # Sixteen bits would lose the mean of many small squares.
    residual = residual.float() if residual.dtype.itemsize < 4 else residual
    return residual.square().mean(dim=(1, 2, 3, 4))
