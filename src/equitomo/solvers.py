"""Reconstruction from a tilt series without training: filtered backprojection and deepinv's iterative solvers.

Each function takes the measurement ``y`` and the operator, and returns volumes ``(batch, C, z, y, x)``. But for
:func:`filtered_backprojection` any linear operator of deepinv serves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from deepinv.optim import L2, PDCP, PGD, DataFidelity, Prior, TVPrior
from deepinv.optim.utils import conjugate_gradient as solve_normal_equations
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from equitomo.physics import RampWindow, TiltSeriesPhysics


def filtered_backprojection(y: Tensor, physics: TiltSeriesPhysics, *, window: RampWindow = "shepp-logan") -> Tensor:
    """Return the filtered backprojection of a measured series; see :func:`equitomo.physics.filtered_backprojection`.

    :meth:`TiltSeriesPhysics.A_dagger` expects series that the operator itself made, and puts back its gain as well.

    Parameters
    ----------
    y
        The series ``(batch, C, tilt, along, t)``.
    physics
        The operator of the series.
    window
        See :func:`equitomo.physics.ramp_response`. The default leaves about as much noise as the linear interpolation
        of most programs does with a plain ramp.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> physics = TiltSeriesPhysics((16, 12, 16), TiltGeometry(range(-60, 61, 3)))
    >>> y = physics.A(torch.ones(1, 1, 16, 12, 16))
    >>> filtered_backprojection(y, physics, window="hann").shape
    torch.Size([1, 1, 16, 12, 16])
    """
    return physics.filtered_backprojection(y, window)


def sirt(
    y: Tensor,
    physics: LinearPhysics,
    *,
    iterations: int = 50,
    positive: bool = False,
    relaxation: float = 1.0,
    init: Tensor | None = None,
) -> Tensor:
    r"""Reconstruct by the simultaneous iterative technique (SIRT), from zero or from a volume.

    .. math:: x \leftarrow \bigl[x + \tau\, V A^\top W (y - A x)\bigr]_+

    where :math:`W` divides by the sum of each row of :math:`A`, the length of its path through the volume, and
    :math:`V` by the sum of each column. :math:`[\cdot]_+` sets negative values to zero if ``positive``. This is
    deepinv's proximal gradient descent for :math:`W^{1/2} A V^{1/2}`. The number of iterations regularises: few
    leave fine detail out, many fit the noise.

    Parameters
    ----------
    y, physics
        The measurement and its operator.
    iterations
        Number of iterations.
    positive
        Whether values below zero are set to zero.
    relaxation
        The step :math:`\tau`, between 0 and 2.
    init
        The volumes to start from; ``None`` for zero.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> physics = TiltSeriesPhysics((16, 4, 16), TiltGeometry(range(-60, 61, 3)))
    >>> x = torch.zeros(1, 1, 16, 4, 16)
    >>> x[..., 6:10, :, 6:10] = 1.0
    >>> found = sirt(physics.A(x), physics, positive=True)
    >>> bool(found.min() >= 0), bool((found - x).norm() < 0.5 * x.norm())
    (True, True)
    """
    if not 0 < relaxation < 2:
        raise ValueError(f"`relaxation` must lie between 0 and 2, or the iteration diverges, got {relaxation}")
    with torch.no_grad():
        columns = physics.A_adjoint(torch.ones_like(y))
        rows = physics.A(torch.ones_like(columns))
        # A row that hardly meets the volume, or only with negative weights, must not be divided by next to nothing.
        down, right = rows.clamp(min=1.0).rsqrt(), columns.clamp(min=1e-3 * columns.amax()).rsqrt()
        scaled = LinearPhysics(
            A=lambda u: down * physics.A(right * u), A_adjoint=lambda v: right * physics.A_adjoint(down * v)
        )
        start = torch.zeros_like(columns) if init is None else init / right
        solver = PGD(
            data_fidelity=L2(),
            prior=_LowestValue(0.0 if positive else -math.inf),
            stepsize=relaxation,
            max_iter=iterations,
        )
        found: Tensor = right * solver(down * y, scaled, init=start)
    return found


def conjugate_gradient(
    y: Tensor,
    physics: LinearPhysics,
    *,
    iterations: int = 20,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    init: Tensor | None = None,
) -> Tensor:
    r"""Return the least-squares volume by conjugate gradients on the normal equations, from zero or from a volume.

    .. math:: \min_x \|A x - y\|^2 + \mu\, s\, \|x\|^2

    Parameters
    ----------
    y, physics
        The measurement and its operator.
    iterations
        The largest number of iterations, which regularises as in :func:`sirt` but takes effect much sooner.
    damping
        :math:`\mu`, as a part of the largest eigenvalue :math:`s` of :math:`A^\top A` (an estimate of it).
    tolerance
        The residual of the normal equations, relative to :math:`\|A^\top y\|`, that ends the iteration.
    init
        The volumes to start from; ``None`` for zero.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> physics = TiltSeriesPhysics((16, 4, 16), TiltGeometry(range(-60, 61, 3)))
    >>> y = physics.A(torch.rand(1, 1, 16, 4, 16))
    >>> bool((physics.A(conjugate_gradient(y, physics)) - y).norm() < 0.02 * y.norm())
    True
    """
    with torch.no_grad():
        target = physics.A_adjoint(y)
        shift = damping * _squared_norm(physics, target) if damping else 0.0
        found: Tensor = solve_normal_equations(
            lambda x: physics.A_adjoint(physics.A(x)) + shift * x,
            target,
            max_iter=iterations,
            tol=tolerance,
            parallel_dim=0,
            init=init,
        )
    return found


def total_variation(
    y: Tensor,
    physics: LinearPhysics,
    *,
    weight: float,
    iterations: int = 200,
    positive: bool = False,
    init: Tensor | None = None,
) -> Tensor:
    r"""Return the volume of least total variation that fits the measurement, by the algorithm of Chambolle and Pock.

    .. math:: \min_x \tfrac12 \|A x - y\|^2 + \lambda\, \sum_i \|(\nabla x)_i\|_2 \quad (x \ge 0)

    This is deepinv's primal-dual solver with :math:`(A, \nabla)` as its linear operator.

    Parameters
    ----------
    y, physics
        The measurement and its operator.
    weight
        :math:`\lambda`. It grows with the variance of the noise in ``y`` and falls with the contrast of the specimen.
    iterations
        Number of iterations.
    positive
        Whether the volume must not be negative.
    init
        The volumes to start from; ``None`` for zero.

    Examples
    --------
    >>> from equitomo import TiltGeometry
    >>> physics = TiltSeriesPhysics((16, 4, 16), TiltGeometry(range(-60, 61, 3)))
    >>> x = torch.zeros(1, 1, 16, 4, 16)
    >>> x[..., 6:10, :, 6:10] = 1.0
    >>> found = total_variation(physics.A(x), physics, weight=0.1, positive=True)
    >>> bool((found - x).norm() < 0.1 * x.norm())
    True
    """
    if not weight >= 0:
        raise ValueError(f"`weight` must not be negative, got {weight}")
    with torch.no_grad():
        start = torch.zeros_like(physics.A_adjoint(y)) if init is None else init
        norm = math.sqrt(_squared_norm(physics, start))
        gradient = TVPrior()
        # Both parts of the operator have norms of at most one, so that one pair of steps serves both.
        slope = math.sqrt(4 * (start.ndim - 2))

        def forward(x: Tensor) -> TensorList:
            return TensorList([physics.A(x) / norm, gradient.nabla(x) / slope])

        def backward(u: TensorList) -> Tensor:
            adjoint: Tensor = physics.A_adjoint(u[0]) / norm + gradient.nabla_adjoint(u[1]) / slope
            return adjoint

        solver = PDCP(
            K=forward,
            K_adjoint=backward,
            data_fidelity=_MisfitAndVariation(weight * slope / norm**2),
            prior=_LowestValue(0.0 if positive else -math.inf),
            # Their product must not exceed one half. Of ratios between powers of ten this was about the best.
            stepsize=10.0,
            stepsize_dual=0.05,
            max_iter=iterations,
        )
        dual = forward(torch.zeros_like(start))
        found: Tensor = solver(y / norm, physics, init=(start, start, dual))
    return found


class _LowestValue(Prior):  # type: ignore[misc]
    """Zero for volumes that have no lower value, and infinite for others."""

    def __init__(self, lowest: float) -> None:
        super().__init__()
        self.explicit_prior = False
        self._lowest = lowest

    def prox(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.clamp(min=self._lowest)


class _MisfitAndVariation(DataFidelity):  # type: ignore[misc]
    """Half of the squared distance of the views to ``y``, and a multiple of the length of all gradients."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self._weight = weight

    def prox_conjugate(self, u: TensorList, y: Tensor, *args: Any, gamma: float = 1.0, **kwargs: Any) -> TensorList:
        length = torch.linalg.vector_norm(u[1], dim=-1, keepdim=True)
        shrunk = u[1] * (self._weight / length.clamp(min=max(self._weight, 1e-30)))
        return TensorList([(u[0] - gamma * y) / (1 + gamma), shrunk])


def _squared_norm(physics: LinearPhysics, like: Tensor) -> float:
    """Return a bound of the largest eigenvalue of A^T A, which is exact for weights that are not negative."""
    # For such weights it is no larger than the largest row sum. The cubic weights are slightly negative in places.
    return 1.05 * float(physics.A_adjoint(physics.A(torch.ones_like(like[:1]))).amax())
