"""Noise2Noise where the tilt series measures."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor, nn

from equitomo.checks import require_volumes
from equitomo.loss.residual import check_margin, inside, mean_square, measured_inside, measured_mean_square


class Noise2NoiseLoss(Loss):  # type: ignore[misc]
    r"""Let the reconstruction of one half predict the other half, in the measured part of Fourier space.

    .. math:: \mathcal{L}_{\text{data}} = \tfrac12 \sum_{v} \lVert A_{\bar v} f(y_v) - y_{\bar v} \rVert^2

    This is equation (4) of :cite:t:`kishore2026icecream`, after :cite:t:`lehtinen2018noise2noise`; :math:`\bar v`
    is the other view. The norm is the mean over voxels, so with two views the value is the mean over all. Of more views
    each predicts each other one, and the value is the mean over the ordered pairs.

    If the operator has one mask per view, a residual is masked by that of the view it is compared with: where that view
    was not measured it says nothing.

    Parameters
    ----------
    weight
        The factor of the loss.
    margin
        Voxels left out at every face of the cube, where a reconstruction lacks context. The paper's cubes
        are judged on their central half, with a margin of a quarter of the side.
    mask_target
        Compare with :math:`A_{\bar v} y_{\bar v}` in place of :math:`y_{\bar v}`, as the reference program does. For
        a projection the two losses differ by a constant; for a padded operator they differ in what they ask for
        near the faces.

    Raises
    ------
    ValueError
        If ``y`` holds fewer than two views, or the margin leaves nothing.

    Examples
    --------
    >>> from equitomo.physics import MissingWedgeOperator
    >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> y = physics.A(torch.randn(3, 2, 16, 16, 16))
    >>> loss = Noise2NoiseLoss()
    >>> loss(x_net=y.flip(1), y=y, physics=physics).shape
    torch.Size([3])
    """

    def __init__(self, weight: float = 1.0, *, margin: int = 0, mask_target: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.margin = check_margin(margin)
        self.mask_target = mask_target

    def forward(
        self, x_net: Tensor, y: Tensor, physics: Physics, model: nn.Module | None = None, **kwargs: Any
    ) -> Tensor:
        """Return one value per sample.

        Parameters
        ----------
        x_net
            The reconstruction of each view, ``(batch, views, z, y, x)``.
        y
            The half tomograms, of the same shape.
        physics
            The measurement operator :math:`A`.
        model
            Not used.
        """
        require_volumes(y, "y")
        n_views = y.shape[1]
        if n_views < 2 or x_net.shape != y.shape:
            raise ValueError(
                f"Noise2Noise needs two views or more, `y` and `x_net` of shape (batch, views, z, y, x): got y "
                f"{tuple(y.shape)} and x_net {tuple(x_net.shape)}"
            )
        # In the place of each view the reconstruction of another one, so that the masks per view are the target's.
        values = [self._compare(physics, x_net.roll(shift, 1), y) for shift in range(1, n_views)]
        return self.weight * torch.stack(values).mean(0)

    def _compare(self, physics: Physics, estimate: Tensor, target: Tensor) -> Tensor:
        if self.mask_target:
            return measured_mean_square(physics, estimate - target, self.margin)
        return mean_square(measured_inside(physics, estimate, self.margin) - inside(target, self.margin))
