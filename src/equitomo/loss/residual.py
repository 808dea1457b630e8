"""The part of a residual that a loss looks at, and its mean square."""

from __future__ import annotations

from deepinv.physics import Physics
from torch import Tensor

from equitomo.fourier import filtered_mean_square
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator


def check_margin(margin: int) -> int:
    """Return a margin that is a whole number of voxels, or refuse it."""
    if margin < 0 or margin != int(margin):
        raise ValueError(f"`margin` must be a whole number of voxels, zero or more, got {margin}")
    return int(margin)


def inside(u: Tensor, margin: int) -> Tensor:
    """Return volumes ``(..., z, y, x)`` without their outermost ``margin`` voxels."""
    if 2 * margin >= min(u.shape[-3:]):
        raise ValueError(f"a `margin` of {margin} voxels leaves nothing of {tuple(u.shape[-3:])} voxels (z, y, x)")
    z, y, x = (slice(margin, n - margin) for n in u.shape[-3:])
    return u[..., z, y, x]


def measured_inside(physics: Physics, u: Tensor, margin: int) -> Tensor:
    """Return ``physics.A(u)`` without its outermost ``margin`` voxels, computed the cheaper way if there is one."""
    if margin and isinstance(physics, PaddedMissingWedgeOperator) and 2 * margin < min(u.shape[-3:]):
        return physics.A_inside(u, margin)
    return inside(physics.A(u), margin)


def measured_mean_square(physics: Physics, u: Tensor, margin: int = 0) -> Tensor:
    """Return the mean square of :func:`measured_inside`, one value per sample.

    Examples
    --------
    >>> import torch
    >>> physics, u = MissingWedgeOperator((8, 8, 8), (-60.0, 60.0)), torch.randn(2, 1, 8, 8, 8)
    >>> torch.allclose(measured_mean_square(physics, u), mean_square(physics.A(u)))
    True
    """
    # Without padding and without a margin nothing is cut off, and the spectrum alone gives the value.
    whole = isinstance(physics, MissingWedgeOperator | PaddedMissingWedgeOperator) and not margin
    if whole and physics.grid_shape == tuple(u.shape[-3:]):
        return filtered_mean_square(u, physics.mask)
    return mean_square(measured_inside(physics, u, margin))


def mean_square(residual: Tensor) -> Tensor:
    """Return the mean of the squared residual over views and voxels, one value per sample."""
    # Sixteen bits would lose the mean of many small squares.
    residual = residual.float() if residual.dtype.itemsize < 4 else residual
    return residual.square().mean(dim=(1, 2, 3, 4))
