"""Laws shared by operators, groups, networks and predictors; a new one joins by a line in a case list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from equitomo.geometry import TiltGeometry
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator

WedgeOperator = MissingWedgeOperator | PaddedMissingWedgeOperator

# An even, an odd and an oblong grid; a range symmetric about zero and one that is not.
SHAPES = [(8, 8, 8), (7, 7, 7), (6, 9, 8)]
RANGES = [(-60.0, 60.0), (-50.0, 20.0)]
CASES = list(itertools.product(SHAPES, RANGES, ("y", "x"), ("ball", "box")))
# A non-linear shift-invariant stand-in for a network, as in many tests below, has these weights.
_STENCIL = torch.arange(27.0, dtype=torch.float64).reshape(1, 1, 3, 3, 3).sin() / 5


def operator(kind: type[WedgeOperator], case: tuple, **settings) -> WedgeOperator:
    """The operator of a case in float64."""
    shape, (low, high), axis, support = case
    return kind(shape, TiltGeometry.from_range(low, high, axis), support=support, **settings).double()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(apply: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> Tensor:
    """The matrix of a linear map of volumes, column by column."""
    n = shape[0] * shape[1] * shape[2]
    units = torch.eye(n, dtype=torch.float64).reshape(n, 1, *shape)
    return apply(units).reshape(n, -1).T


def small_network(seed: int = 0) -> nn.Module:
    """One convolution and a leaky rectifier, in float64: non-linear, without symmetry, quick."""
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1, bias=False), nn.LeakyReLU(0.2)).double()
    with torch.no_grad():
        network[0].weight.copy_(_STENCIL + seed / 10)
    return network


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Agreement to ``tolerance`` of the largest value expected."""
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-30))


def assert_differs(actual: Tensor, other: Tensor, by: float = 1e-3) -> None:
    """A control: the two differ by more than ``by`` of their size, so that agreement elsewhere means something."""
    difference = float((actual - other).detach().abs().max())
    assert difference > by * float(other.detach().abs().max()), f"they differ by {difference} only"


def assert_self_adjoint(physics: WedgeOperator) -> None:
    u, v = normal(2, 2, *physics.volume_shape), normal(2, 2, *physics.volume_shape, seed=1)
    assert_close((physics.A(u) * v).sum(), (u * physics.A_adjoint(v)).sum())
    assert_close(physics.A_adjoint(u), physics.A(u))


def assert_projection(physics: MissingWedgeOperator) -> None:
    assert_self_adjoint(physics)
    y = physics.A(normal(2, 2, *physics.volume_shape))
    assert_close(physics.A(y), y)
    assert_close(physics.A_dagger(y), y)


def assert_contraction(physics: WedgeOperator) -> None:
    singular = torch.linalg.svdvals(dense(physics.A, physics.volume_shape))
    assert singular.max() <= 1 + 1e-12


def assert_real_operator(physics: WedgeOperator) -> None:
    """What the half spectrum computes is what the full complex one computes, with nothing imaginary in it."""
    from equitomo.fourier import full_spectrum

    x = normal(1, 1, *physics.volume_shape)
    grid = physics.grid_shape
    mask = full_spectrum(physics.mask, grid[2])
    expected = torch.fft.ifftn(mask * torch.fft.fftn(x, s=grid, dim=(-3, -2, -1)), dim=(-3, -2, -1))
    assert expected.imag.abs().max() < 1e-13
    z, y, n = physics.volume_shape
    assert_close(physics.A(x), expected.real[..., :z, :y, :n])


def assert_scale_equivariant(network: nn.Module, x: Tensor, tolerance: float = 1e-12) -> None:
    with torch.no_grad():
        for factor in (1e-3, 0.7, 512.0, 7e5):
            assert_close(network(factor * x), factor * network(x), tolerance)


def boxes(*lengths: int) -> Iterator[tuple[int, ...]]:
    """Every index of a small grid."""
    return itertools.product(*map(range, lengths))
