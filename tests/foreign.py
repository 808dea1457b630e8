"""A network, losses and an operator that are not the library's: ``python foreign.py FOLDER STEP`` trains and is killed.

The process kills itself as no signal handler can see, after the losses of that step were written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from deepinv.loss import Loss
from deepinv.physics import LinearPhysics
from making import noisy_pair
from torch import Tensor, nn

from equitomo import CubeRotationGroup, IcecreamTrainer, MaskedEquivarianceLoss, Noise2NoiseLoss, TrainingConfig
from equitomo.fourier import filtered, frequencies
from equitomo.geometry import wedge_mask

SETTINGS = {
    "side": 16,
    "batch": 3,
    "micro_batch": 2,
    "levels": 2,
    "steps": 12,
    "margin": 2,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "checkpoint_every": 5,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


class UNet(nn.Module):
    """Two levels, with biases and instance normalisation."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.fine = nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv3d(width, 2 * width, 3, 2, 1), nn.InstanceNorm3d(2 * width), nn.ReLU())
        self.up = nn.ConvTranspose3d(2 * width, width, 2, 2)
        self.last = nn.Conv3d(2 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        return x + self.last(torch.cat([fine, self.up(self.coarse(fine))], dim=1))


class BatchNormalised(nn.Module):
    """A network whose buffers change with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class CTFOperator(LinearPhysics):
    """The wedge, with weights that fall and swing with the frequency as a contrast transfer function does."""

    def __init__(self, shape: tuple[int, int, int], geometry, defocus: float = 40.0) -> None:
        super().__init__(img_size=(1, *shape))
        self.defocus = defocus
        k = torch.stack(torch.broadcast_tensors(*frequencies(shape))).square().sum(0)
        transfer = wedge_mask(shape, geometry) * torch.cos(defocus * k) * torch.exp(-4 * k)
        self.register_buffer("transfer", transfer.float())

    def A(self, x: Tensor, **kwargs) -> Tensor:
        return filtered(x, self.transfer, x.shape[-3:])

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        return self.A(y)


class NoisierLoss(Loss):
    """Draws from torch's own generator: the network must undo noise that is added to its input."""

    def __init__(self, sigma: float = 0.5, weight: float = 0.3) -> None:
        super().__init__()
        self.sigma, self.weight = sigma, weight

    def forward(self, x_net: Tensor, y: Tensor, physics, model, **kwargs) -> Tensor:
        noisy = y + self.sigma * torch.randn_like(y)
        return self.weight * (model(noisy, physics) - x_net.detach()).square().mean()


def losses() -> dict[str, Loss]:
    """Two of them random: one draws for each cube, the other from torch's own generator."""
    return {
        "n2n": Noise2NoiseLoss(margin=2),
        "rotated": MaskedEquivarianceLoss(CubeRotationGroup(), masked=False),
        "noisier": NoisierLoss(),
    }


def foreign_trainer(folder: Path | None = None, *, resume: bool = False, progress=None, **changes) -> IcecreamTrainer:
    """Over two tomograms of different tilts, each with an operator of its own."""
    parts = {"network": UNet, "losses": losses(), "physics": CTFOperator}
    parts |= {name: changes.pop(name) for name in parts if name in changes}
    pairs = [noisy_pair((20, 20, 20), seed=k, geometry=tilts) for k, tilts in enumerate([(-60.0, 60.0), (-40.0, 55.0)])]
    config = TrainingConfig(**SETTINGS | changes)
    return IcecreamTrainer(pairs, config, **parts, out=folder, resume=resume, progress=progress)


def killed_at(last: int):
    def progress(step: int, losses: dict[str, float]) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


if __name__ == "__main__":
    torch.set_num_threads(1)
    foreign_trainer(Path(sys.argv[1]), progress=killed_at(int(sys.argv[2]))).train()
