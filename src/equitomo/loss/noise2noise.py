"""Noise2Noise where the tilt series measures."""

from __future__ import annotations

from typing import Any

from deepinv.loss import Loss
from deepinv.physics import Physics
from torch import Tensor, nn

from equitomo.checks import require_volumes
from equitomo.loss._window import check_margin, inside, mean_square, measured_inside, measured_mean_square


class Noise2NoiseLoss(Loss):  # type: ignore[misc]
    r"""Let the reconstruction of one half predict the other half, in the measured part of Fourier space.

    .. math:: \mathcal{L}_{\text{data}} = \tfrac12 \sum_{v}
        \lVert y_{\bar v} - A f(y_v) \rVert^2

    Equation (4) of :cite:t:`kishore2026icecream`, after :cite:t:`lehtinen2018noise2noise`; :math:`\bar v`
    is the other view. The norm is the mean over voxels, so with two views the value is the mean over all.

    Parameters
    ----------
    weight
        Factor of the loss.
    margin
        Voxels left out at every face of the cube, where a reconstruction lacks context. The paper's cubes
        are judged on their central half: a margin of a quarter of the side.
    mask_target
        Compare with :math:`A y_{\bar v}` in place of :math:`y_{\bar v}`, as the reference program does. For
        a projection the two differ by a constant; with a padded operator they differ in what they ask for
        near the faces.

    Raises
    ------
    ValueError
        If ``y`` does not hold two views, or the margin leaves nothing.

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
        """One value per sample.

        Parameters
        ----------
        x_net
            Reconstruction of each view, ``(batch, 2, z, y, x)``.
        y
            The two half tomograms, of the same shape.
        physics
            The measurement operator :math:`A`.
        model
            Not used.
        """
        require_volumes(y, "y")
        if y.shape[1] != 2 or x_net.shape != y.shape:
            raise ValueError(
                f"Noise2Noise needs two views, y and x_net of shape (batch, 2, z, y, x): got y {tuple(y.shape)} and "
                f"x_net {tuple(x_net.shape)}"
            )
        other = y.flip(1)
        if self.mask_target:
            return self.weight * measured_mean_square(physics, x_net - other, self.margin)
        return self.weight * mean_square(measured_inside(physics, x_net, self.margin) - inside(other, self.margin))
