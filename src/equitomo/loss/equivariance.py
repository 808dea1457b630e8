"""Equivariant imaging, compared only in the measured region of the rotated reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from deepinv.transform import Transform
from torch import Tensor, nn

from equitomo.checks import require_volumes
from equitomo.draws import ELEMENTS, Draws
from equitomo.loss.residual import check_margin, inside, mean_square, measured_mean_square
from equitomo.transform import CubeRotationGroup

Term = Literal["estimate", "data"]
Stop = Literal["none", "source", "target", "both"]
_Move = Callable[[Tensor], Tensor]
# The difference between the numbers of the streams of successive draws in one loss.
_APART = 1 << 8


class MaskedEquivarianceLoss(Loss):  # type: ignore[misc]
    r"""Compare a reconstruction with the one after rotating it, measuring it again and reconstructing it again.

    .. math:: \mathcal{L}_{\text{equi}} = \tfrac12 \sum_v \mathbb{E}_g
        \lVert A_g \{ f(A R_g f(y_v)) - R_g f(y_{\bar v}) \} \rVert^2, \qquad A_g = R_g A R_g^{-1}

    This is equation (5) of :cite:t:`kishore2026icecream`: :math:`A_g` keeps the part of the rotated reconstruction
    that was measured. As :math:`R_g` permutes voxels, :math:`\lVert A_g u\rVert = \lVert A R_g^{-1} u\rVert`,
    and no rotated mask is needed:

    .. math:: \lVert A \{ R_g^{-1} f(A R_g f(y_v)) - f(y_{\bar v}) \} \rVert^2

    takes one call of the network for all views and one transform of a difference. The norm is the mean over
    voxels, so with two views the value is the mean over all. A single view is compared with itself,
    :math:`\bar v = v`; of more than two views each is compared with each other one, and the value is the mean over the
    ordered pairs.

    If the operator has one mask per view, view :math:`v` is measured again with its own, and a residual is masked by
    that of :math:`\bar v`, the view it is compared with.

    The data themselves can take the place of two of the three estimates, as in the training of DeepDeWedge
    (:cite:t:`wiedemann2024deep`): with ``source`` and ``target`` both ``"data"`` the loss is

    .. math:: \lVert A \{ R_g^{-1} f(A R_g z_v) - y_{\bar v} \} \rVert^2 ,
        \qquad z_v = y_v + (1 - A) f(y_v) .

    Parameters
    ----------
    transform
        The transformations to draw from: any deepinv transform with an inverse. Of a
        :class:`~equitomo.transform.CubeRotationGroup` every sample draws its own element, as in the reference
        program; of others the whole batch draws the same. The loss is averaged over ``n_trans`` draws, and for a chain
        of transforms over all combinations of theirs.
    weight
        The factor of the loss; 2 is the paper's.
    masked
        ``False`` compares all of Fourier space, :math:`\lVert f(A R_g f(y_v)) - R_g f(y_{\bar v})\rVert^2`. With
        one view this is the original loss of :cite:t:`chen2021equivariant`.
    margin
        Voxels left out at every face; see :class:`~equitomo.loss.Noise2NoiseLoss`.
    stop_gradient
        The estimates through which no gradient passes, so that they count as data: ``"none"`` as in the paper, those in
        the ``"target"``, those in the ``"source"``, or ``"both"``.
    source
        The volume that is rotated and measured again: ``"estimate"`` is the paper's :math:`f(y_v)`, which has hardly
        any noise. ``"data"`` is the measurement, with the estimate where nothing was measured, so that the network
        learns to fill the wedge of a noisy volume.
    target
        The volume that the result is compared with: ``"estimate"`` is the paper's :math:`f(y_{\bar v})`, and ``"data"``
        is :math:`y_{\bar v}`, whose noise is independent.

    Raises
    ------
    ValueError
        If the margin leaves nothing, an element does not fit the shape, elements are given for another transform, the
        data do not have the shape of ``x_net``, or the whole of Fourier space is to be compared with data.

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
                raise ValueError(f"`{name}` is one of {', '.join(get_args(kind))}, got {value!r}")
        if target == "data" and not masked:
            raise ValueError("`target='data'` needs `masked=True`: data contain nothing where nothing was measured")
        self.transform = transform
        self.weight = weight
        self.masked = masked
        self.margin = check_margin(margin)
        self.stop_gradient = stop_gradient
        self.source, self.target = source, target

    @property
    def needs_estimate_gradient(self) -> bool:
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
        draws: Draws | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return one value per sample.

        Parameters
        ----------
        x_net
            The reconstruction of each view, ``(batch, views, z, y, x)``; it is not computed again.
        y
            The measurements, of the same shape; not used if both ``source`` and ``target`` are estimates.
        physics
            The measurement operator :math:`A`.
        model
            The reconstructor, called as ``model(y, physics)``.
        elements
            The element of a ``CubeRotationGroup`` for each sample, integers of shape (batch,); ``None`` draws them.
        draws
            The random numbers to draw with, which depend on the seed of a run and the index of each sample; those of
            other transforms than the group depend on the first index of the batch. ``None`` draws from the
            transform's generator.
        """
        require_volumes(x_net, "x_net")
        if "data" in (self.source, self.target) and y.shape != x_net.shape:
            raise ValueError(
                f"data must have the shape of the reconstructions, {tuple(x_net.shape)}, got y {tuple(y.shape)}"
            )
        source = x_net if self.source == "estimate" else y + x_net - physics.A(x_net)
        target = x_net if self.target == "estimate" else y
        if self.stop_gradient in ("source", "both"):
            source = source.detach()
        if self.stop_gradient in ("target", "both"):
            target = target.detach()
        moves = self._moves(x_net, elements, draws)
        values = [self._compare(forth, back, source, target, physics, model) for forth, back in moves]
        return self.weight * torch.stack(values).mean(0)

    def _compare(
        self, forth: _Move, back: _Move, source: Tensor, target: Tensor, physics: Physics, model: nn.Module
    ) -> Tensor:
        again = back(model(physics.A(forth(source)), physics))
        # In the place of each view the result of another one, so that the masks per view are the target's.
        shifts = range(1, again.shape[1]) if again.shape[1] > 1 else (0,)
        residuals = [again.roll(shift, 1) - target for shift in shifts]
        if self.masked:
            values = [measured_mean_square(physics, residual, self.margin) for residual in residuals]
        else:
            values = [mean_square(inside(residual, self.margin)) for residual in residuals]
        return torch.stack(values).mean(0)

    def _moves(self, x: Tensor, elements: Tensor | None, draws: Draws | None) -> list[tuple[_Move, _Move]]:
        """Return pairs of a drawn transformation and its inverse, one for each of ``n_trans``."""
        transform = self.transform
        if not isinstance(transform, CubeRotationGroup):
            if elements is not None:
                raise ValueError(
                    f"`elements` belong to a CubeRotationGroup, the transform is a {type(transform).__name__}"
                )
            with _drawing_with(draws, transform):
                params = transform.get_params(x)
            # One at a time, so that an operator with a mask per sample still fits the batch.
            drawn = [params] if transform.n_trans == 1 else transform.iterate_params(params)
            return [_deepinv_pair(transform, each) for each in drawn]
        if elements is not None:
            return [_element_pair(transform, elements)]
        if draws is not None:
            table = torch.tensor(transform.elements)
            streams = range(ELEMENTS, ELEMENTS + _APART * transform.n_trans, _APART)
            drawn = [draws.integers(len(table), stream) for stream in streams]
            return [_element_pair(transform, table[numbers]) for numbers in drawn]
        return [_element_pair(transform, transform.draw(len(x))) for _ in range(transform.n_trans)]


@contextmanager
def _drawing_with(draws: Draws | None, transform: Transform) -> Iterator[None]:
    """Let a transform, and those it is a chain of, draw from the generator of ``draws`` in place of their own."""
    parts = [] if draws is None else [part for part in transform.modules() if isinstance(part, Transform)]
    own = [part.rng for part in parts]
    # One generator for all parts: with one each, of the same seed, their draws would depend on each other.
    shared = {rng.device: draws.generator(ELEMENTS, rng.device) for rng in own if draws is not None}
    for part in parts:
        part.rng = shared[part.rng.device]
    try:
        yield
    finally:
        for part, rng in zip(parts, own, strict=True):
            part.rng = rng


def _deepinv_pair(transform: Transform, params: dict[str, Any]) -> tuple[_Move, _Move]:
    return lambda u: transform.transform(u, **params), lambda u: transform.inverse(u, **params)


def _element_pair(group: CubeRotationGroup, elements: Tensor) -> tuple[_Move, _Move]:
    return lambda u: group.apply(u, elements), lambda u: group.apply(u, elements, inverse=True)
