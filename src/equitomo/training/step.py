"""What one training step computes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equitomo.datasets import TomogramPair
from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.loss import MaskedEquivarianceLoss, Noise2NoiseLoss
from equitomo.models import TwoViewReconstructor
from equitomo.physics import PaddedMissingWedgeOperator
from equitomo.training.config import TrainingConfig
from equitomo.transform import CubeRotationGroup


class StepLosses(nn.Module):
    """Both losses of some cubes in one forward pass, so that two network calls share one backward pass."""

    def __init__(
        self,
        model: TwoViewReconstructor,
        physics: PaddedMissingWedgeOperator,
        group: CubeRotationGroup,
        config: TrainingConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.physics = physics
        self.data = Noise2NoiseLoss(config.data_weight, margin=config.margin, mask_target=config.mask_target)
        self.equivariance = MaskedEquivarianceLoss(
            group,
            config.equivariance_weight,
            margin=config.margin,
            stop_gradient=config.stop_gradient,
            source=config.equivariance_source,
            target=config.equivariance_target,
        )

    def forward(self, y: Tensor, elements: Tensor) -> Tensor:
        """The data and the equivariance loss of each cube, ``(2, cubes)``; ``y`` is ``(cubes, 2, z, y, x)``."""
        # A weight of zero leaves a loss out, and a first call that nothing judges needs no gradient.
        judged = self.data.weight > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and (judged or self.equivariance.needs_estimate_gradient)):
            x_net = self.model(y, self.physics)
        data = self.data(x_net=x_net, y=y, physics=self.physics) if judged else y.new_zeros(len(y))
        equivariance = self.equivariance(x_net=x_net, y=y, physics=self.physics, model=self.model, elements=elements)
        return torch.stack([data, equivariance])


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Adam's step size at a step counted from 0: a linear rise, then constant or half a cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def operator_for(
    pairs: Sequence[TomogramPair], config: TrainingConfig, device: torch.device
) -> tuple[PaddedMissingWedgeOperator, dict[TiltGeometry, Tensor]]:
    """The operator of a cube; and the mask of each geometry where there are several."""
    geometries = list(dict.fromkeys(pair.geometry for pair in pairs))
    shape = (config.side,) * 3
    if len(geometries) == 1:
        operator = PaddedMissingWedgeOperator(
            shape, geometries[0], padding=config.padding, support=config.support, device=device
        )
        return operator, {}
    # Padded along every axis, as a ball needs it: for tilt axes along x and along y no axis can be left out.
    operator = PaddedMissingWedgeOperator(shape, geometries[0], padding=config.padding, support="ball", device=device)
    z, y, x = operator.grid_shape
    masks = {
        geometry: wedge_mask((z, y, x), geometry, support=config.support)
        .to(device)
        .expand(1, 1, z, y, x // 2 + 1)
        .contiguous()
        for geometry in geometries
    }
    operator.update(mask=torch.cat(list(masks.values())))
    return operator, masks
