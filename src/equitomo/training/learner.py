"""A network and all that changes while it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equitomo.models import ScaleEquivariantUNet3D
from equitomo.precision import checked_dtype
from equitomo.training.checkpoint import Checkpoint, load_weights, rebuilt_network
from equitomo.training.config import TrainingConfig
from equitomo.training.optimizer import load_optimizer_tensors, optimizer_for, optimizer_tensors
from equitomo.training.step import learning_rate


class Learner:
    """Weights, their average, the optimiser and the loss scale of float16.

    Parameters
    ----------
    config
        The settings of the run.
    device
        Where the network is trained.
    init
        A network whose weights to start from; ``None`` draws them from the seed.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, init: nn.Module | None = None) -> None:
        self._config = config
        self.network = _initial_network(config)
        if init is not None:
            load_weights(self.network, init.state_dict(), "the given network")
        self.network.to(device).to(memory_format=torch.channels_last_3d)
        if config.compile:
            self.network.compile()
        self.dtype = checked_dtype(config.precision, device)
        self.optimizer = optimizer_for(self.network, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        weights = self.network.state_dict() if config.averaging else {}
        self.averaged = {name: value.detach().clone() for name, value in weights.items()}
        self._device = device

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter that has one."""
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]

    def update(self, total: Tensor, step: int) -> Tensor:
        """Let the optimiser step unless loss or gradient is not finite; 1 if it was skipped, without asking the device.

        Parameters
        ----------
        total
            The loss whose gradient the parameters have; they have it times the loss scale.
        step
            Steps done before this one.
        """
        self.optimizer.param_groups[0]["lr"] = learning_rate(self._config, step)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self.gradients) + total
        bad = (~torch.isfinite(norm)).float()
        if not self.scaler.is_enabled():
            # The optimiser skips by itself where this is one, as it does for a gradient scaler.
            vars(self.optimizer).update(grad_scale=None, found_inf=bad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average(bad, step)
        return bad

    def _average(self, bad: Tensor, step: int) -> None:
        # Early on the average must forget the initial weights faster than its decay says.
        decay = min(self._config.averaging, (1 + step) / (10 + step))
        share = (1 - decay) * (1 - bad)
        for name, average in self.averaged.items():
            average.lerp_(self.network.get_parameter(name).detach(), share)

    def for_prediction(self) -> ScaleEquivariantUNet3D:
        """A copy of the network, with the averaged weights if there are any."""
        weights = self.averaged or self.network.state_dict()
        network = rebuilt_network(network_settings(self._config), weights, "this run").to(self._device)
        return network.to(memory_format=torch.channels_last_3d).eval()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of this, as tensors."""
        groups = {"weights": self.network.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.network)}
        return groups | ({"averaged": self.averaged} if self.averaged else {})

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this besides."""
        return {"scaler": self.scaler.state_dict()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what :meth:`tensors` and :meth:`state` gave."""
        load_weights(self.network, checkpoint.tensors["weights"], checkpoint.path)
        for name, value in self.averaged.items():
            value.copy_(checkpoint.tensors["averaged"][name])
        load_optimizer_tensors(self.optimizer, self.network, checkpoint.tensors["optimizer"])
        # Empty where the run had another precision until now.
        if self.scaler.is_enabled() and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])


def network_settings(config: TrainingConfig) -> dict[str, Any]:
    """What a network must be built with to take the weights of a run."""
    return {"width": config.width, "levels": config.levels}


def _initial_network(config: TrainingConfig) -> ScaleEquivariantUNet3D:
    with torch.random.fork_rng(devices=[]):
        # torch draws initial weights from its global generator: seed it here, and give it back. Unlike
        # torch.manual_seed this leaves the generators of GPUs alone.
        torch.default_generator.manual_seed(config.seed)
        return ScaleEquivariantUNet3D(**network_settings(config), checkpointing=config.checkpointing)
