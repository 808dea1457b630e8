"""A network and everything that changes while it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equitomo.precision import checked_dtype
from equitomo.training.checkpoint import Checkpoint, blended, load_weights
from equitomo.training.config import TrainingConfig
from equitomo.training.optimizer import load_optimizer_tensors, optimizer_for, optimizer_tensors
from equitomo.training.step import forked_generators, seed_generators


class Learner:
    """The weights of a network, their exponential moving average, the optimiser and the loss scale of float16.

    Training starts from the weights of ``init``, or from weights that ``make`` draws from the seed. Those of ``init``
    keep a share in the weights of predictions if the configuration says so.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        config: TrainingConfig,
        device: torch.device,
        init: nn.Module | None = None,
    ) -> None:
        if isinstance(make, nn.Module):
            raise TypeError(
                "`network` must be a function that makes the network, got a network: pass `network=lambda: ...`, or "
                "pass the network as `init` if training is to start from its weights"
            )
        self._make, self._config, self._device = make, config, device
        self.network = self._made()
        if init is not None:
            load_weights(self.network, init.state_dict(), "the given network")
            self.network.to(device)
        if config.compile:
            self.network.compile()
        self.dtype = checked_dtype(config.precision, device)
        self._begin()
        # While the share is not chosen, predictions show what was learned.
        self.start_share = config.start_share or 0.0
        keeps_start = init is not None and (config.start_share != 0 or config.restart_steps > 0)
        self.start = {name: value.clone() for name, value in self.ema.items()} if keeps_start else {}

    def _begin(self) -> None:
        """Make the optimiser, the loss scale and the average of a network that has learned nothing yet."""
        self.optimizer = optimizer_for(self.network, self._config)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=self.dtype == torch.float16)
        state = self.network.state_dict() if self._config.ema_decay else {}
        self.ema = {name: value.detach().clone() for name, value in state.items()}
        self._keep_buffers()

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter that has one."""
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]

    @property
    def running_statistics(self) -> list[Tensor]:
        """The buffers with real values, which processes that train together average after each step."""
        return [buffer for buffer in self.network.buffers() if torch.is_floating_point(buffer)]

    def rewind_buffers(self) -> None:
        """Put the buffers, such as running means of normalisations, back to their values after the last step."""
        for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(before)

    def update(self, total: Tensor, step: int, rate: float) -> Tensor:
        """Do one step of the optimiser with the learning rate ``rate``.

        The step is skipped if the loss ``total`` or one of its gradients is not finite. Return 1 if it was skipped and
        0 otherwise, as a tensor on the device, which is not waited for.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self.gradients) + total
        bad = (~torch.isfinite(norm)).float()
        if not self.scaler.is_enabled():
            # The optimiser itself skips the step if this is one, as it does for a gradient scaler.
            vars(self.optimizer).update(grad_scale=None, found_inf=bad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(torch.where(bad > 0, before, buffer))
        self._average(bad, step)
        self._keep_buffers()
        return bad

    def begin_again(self) -> None:
        """Go back to weights that are drawn from the seed, and forget the start and all that was learned."""
        # In place, because the network may be compiled.
        load_weights(self.network, self._made().state_dict(), "the seed")
        self._begin()
        self.start = {}

    def for_prediction(self) -> nn.Module:
        """Return a copy of the network, with the averaged weights if there are any, and their share of the start."""
        return self.with_share(self.start_share)

    def with_share(self, share: float) -> nn.Module:
        """Return a copy of the network for prediction in which the weights of the start have a share."""
        network = self._made()
        weights = blended(self.ema, self.start, share) if self.ema else self.network.state_dict()
        load_weights(network, weights, "this run")
        return network.eval()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors that a checkpoint stores for the learner."""
        groups = {"weights": self.network.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.network)}
        kept = {"ema": self.ema, "start": self.start}
        return groups | {name: tensors for name, tensors in kept.items() if tensors}

    def state(self) -> dict[str, Any]:
        """Return everything else that a checkpoint stores for the learner."""
        return {"scaler": self.scaler.state_dict(), "start_share": self.start_share}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore what :meth:`tensors` and :meth:`state` returned."""
        load_weights(self.network, checkpoint.tensors["weights"], checkpoint.path)
        for name, value in self.ema.items():
            value.copy_(checkpoint.tensors["ema"][name])
        keeps_start = self._config.start_share != 0 or self._config.restart_steps > 0
        start = checkpoint.tensors.get("start", {}) if keeps_start else {}
        self.start = {name: torch.empty_like(self.ema[name]).copy_(value) for name, value in start.items()}
        if self._config.start_share is None:
            self.start_share = float(checkpoint.state.get("start_share", 0.0))
        load_optimizer_tensors(self.optimizer, self.network, checkpoint.tensors["optimizer"])
        # The state is empty if the run had another precision until now.
        if self.scaler.is_enabled() and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self._keep_buffers()

    def _made(self) -> nn.Module:
        """Return a new network on the device, with weights drawn from the seed."""
        with forked_generators(self._device):
            # torch draws initial weights from its global generators.
            seed_generators(self._config.seed, self._device)
            network = self._make().to(self._device)
        # The layout is for volumes only; torch refuses it for kernels of images.
        if not any(value.ndim == 4 for value in network.state_dict().values()):
            network.to(memory_format=torch.channels_last_3d)
        return network

    @torch.no_grad()
    def _average(self, bad: Tensor, step: int) -> None:
        # Early on the average must forget the initial weights faster than its decay says.
        decay = min(self._config.ema_decay, (1 + step) / (10 + step))
        share = (1 - decay) * (1 - bad)
        values = self.network.state_dict() if self.ema else {}
        for name, average in self.ema.items():
            if torch.is_floating_point(average):
                average.lerp_(values[name].detach(), share)
            else:
                average.copy_(values[name])

    def _keep_buffers(self) -> None:
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]
