"""Equivariant imaging, compared only where the turned measurement looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from deepinv.transform import Transform
from torch import Tensor, nn

from equitomo.checks import require_volumes
from equitomo.loss._window import check_margin, inside, mean_square, measured_mean_square
from equitomo.transform import CubeRotationGroup

Term = Literal["estimate", "data"]
Stop = Literal["none", "source", "target", "both"]
_Move = Callable[[Tensor], Tensor]


class MaskedEquivarianceLoss(Loss):  # type: ignore[misc]
    r"""Ask a reconstruction to survive being turned and measured again.

    .. math:: \mathcal{L}_{\text{equi}} = \tfrac12 \sum_v \mathbb{E}_g
        \lVert A_g \{ f(A R_g f(y_v)) - R_g f(y_{\bar v}) \} \rVert^2, \qquad A_g = R_g A R_g^{-1}

    Equation (5) of :cite:t:`kishore2026icecream`: :math:`A_g` keeps the part of the turned reconstruction
    that was measured. As :math:`R_g` permutes voxels, :math:`\lVert A_g u\rVert = \lVert A R_g^{-1} u\rVert`
    and no turned mask is needed,

    .. math:: \lVert A \{ R_g^{-1} f(A R_g f(y_v)) - f(y_{\bar v}) \} \rVert^2 ,

    one call of the network for all views and one transform of a difference. The norm is the mean over
    voxels, so with two views the value is the mean over all.

    In place of two of the three estimates the data themselves can stand, as in the training of DeepDeWedge
    (:cite:t:`wiedemann2024deep`): with ``source`` and ``target`` both ``"data"``

    .. math:: \lVert A \{ R_g^{-1} f(A R_g z_v) - y_{\bar v} \} \rVert^2 ,
        \qquad z_v = y_v + (1 - A) f(y_v) .

    Parameters
    ----------
    transform
        The transformations to draw from: any deepinv transform with an inverse. A
        :class:`~equitomo.transform.CubeRotationGroup` gives every sample its own element, as the reference
        program does; others give the whole batch the same. ``n_trans`` draws are averaged, of a chain of
        transforms all their combinations.
    weight
        Factor of the loss; 2 is the paper's.
    masked
        ``False`` compares all of Fourier space, :math:`\lVert f(A R_g f(y_v)) - R_g f(y_{\bar v})\rVert^2`: with
        one view the original loss of :cite:t:`chen2021equivariant`.
    margin
        Voxels left out at every face; see :class:`~equitomo.loss.Noise2NoiseLoss`.
    stop_gradient
        Whether estimates count as data, without a gradient through them: ``"none"`` as in the paper, those in the
        ``"target"``, those in the ``"source"``, or ``"both"``.
    source
        What is turned and measured again: ``"estimate"``, the paper's :math:`f(y_v)`, which has hardly any noise; or
        ``"data"``, the measurement with the estimate where nothing was measured, so that the network learns to fill
        the wedge of what it is given, noise and all.
    target
        What the result is compared with: ``"estimate"``, the paper's :math:`f(y_{\bar v})`, or ``"data"``,
        :math:`y_{\bar v}`, whose noise is independent.

    Raises
    ------
    ValueError
        If the margin leaves nothing, an element does not fit the shape, elements are given for another transform, data
        are no volumes like ``x_net``, or the whole of Fourier space is to be compared with data.

    Examples
    --------
    >>> from equitomo.models import TwoViewReconstructor
    >>> from equitomo.physics import MissingWedgeOperator
    >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> model = TwoViewReconstructor(torch.nn.Identity())
    >>> y = physics.A(torch.randn(3, 2, 16, 16, 16))
    >>> loss = MaskedEquivarianceLoss(CubeRotationGroup.moving(physics))
    >>> loss(x_net=model(y, physics), y=y, physics=physics, model=model).shape
    torch.Size([3])
    """

    def __init__(
        self,
        transform: Transform,
        weight: float = 2.0,
        masked: bool = True,
        *,
        margin: int = 0,
        stop_gradient: Stop = "none",
        source: Term = "estimate",
        target: Term = "estimate",
    ) -> None:
        super().__init__()
        given = {"source": (source, Term), "target": (target, Term), "stop_gradient": (stop_gradient, Stop)}
        for name, (value, kind) in given.items():
            if value not in get_args(kind):
                raise ValueError(f"{name} is one of {', '.join(get_args(kind))}, got {value!r}")
        if target == "data" and not masked:
            raise ValueError("target 'data' needs masked=True: data say nothing where they were not measured")
        self.transform = transform
        self.weight = weight
        self.masked = masked
        self.margin = check_margin(margin)
        self.stop_gradient = stop_gradient
        self.source, self.target = source, target

    @property
    def teaches_first_call(self) -> bool:
        """Whether the loss has a gradient with respect to ``x_net``."""
        through_target = self.target == "estimate" and self.stop_gradient not in ("target", "both")
        return through_target or self.stop_gradient not in ("source", "both")

    def forward(
        self,
        x_net: Tensor,
        y: Tensor,
        physics: Physics,
        model: nn.Module,
        elements: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One value per sample.

        Parameters
        ----------
        x_net
            Reconstruction of each view, ``(batch, views, z, y, x)``; it is not computed again.
        y
            The measurements, of the same shape; not used where estimates stand for them.
        physics
            The measurement operator :math:`A`.
        model
            The reconstructor, called as ``model(y, physics)``.
        elements
            The element of a ``CubeRotationGroup`` for each sample, integers of shape (batch,); ``None`` draws them.
        """
        require_volumes(x_net, "x_net")
        if "data" in (self.source, self.target) and y.shape != x_net.shape:
            raise ValueError(
                f"data must be volumes like the reconstructions {tuple(x_net.shape)}, got y {tuple(y.shape)}"
            )
        source = x_net if self.source == "estimate" else y + x_net - physics.A(x_net)
        target = (x_net if self.target == "estimate" else y).flip(1)
        if self.stop_gradient in ("source", "both"):
            source = source.detach()
        if self.stop_gradient in ("target", "both"):
            target = target.detach()
        values = [
            self._compare(forth, back, source, target, physics, model) for forth, back in self._moves(x_net, elements)
        ]
        return self.weight * torch.stack(values).mean(0)

    def _compare(
        self, forth: _Move, back: _Move, source: Tensor, target: Tensor, physics: Physics, model: nn.Module
    ) -> Tensor:
        again = model(physics.A(forth(source)), physics)
        residual = back(again) - target
        if self.masked:
            return measured_mean_square(physics, residual, self.margin)
        return mean_square(inside(residual, self.margin))

    def _moves(self, x: Tensor, elements: Tensor | None) -> list[tuple[_Move, _Move]]:
        """Pairs of a drawn transformation and its inverse, one for each of ``n_trans``."""
        transform = self.transform
        if not isinstance(transform, CubeRotationGroup):
            if elements is not None:
                raise ValueError(
                    f"elements belong to a CubeRotationGroup, the transform is a {type(transform).__name__}"
                )
            params = transform.get_params(x)
            # One at a time, so that an operator with a mask per sample still fits the batch.
            drawn = [params] if transform.n_trans == 1 else transform.iterate_params(params)
            return [_deepinv_pair(transform, each) for each in drawn]
        if elements is not None:
            return [_element_pair(transform, elements)]
        return [_element_pair(transform, transform.draw(len(x))) for _ in range(transform.n_trans)]


def _deepinv_pair(transform: Transform, params: dict[str, Any]) -> tuple[_Move, _Move]:
    return lambda u: transform.transform(u, **params), lambda u: transform.inverse(u, **params)


def _element_pair(group: CubeRotationGroup, elements: Tensor) -> tuple[_Move, _Move]:
    return lambda u: group.apply(u, elements), lambda u: group.apply(u, elements, inverse=True)
