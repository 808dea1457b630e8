"""The gradient of a batch, with as many of its cubes at once as fit into the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.datasets import SubtomogramDataset, SubtomogramPool
from equitomo.draws import Draws
from equitomo.precision import autocast
from equitomo.resources import Retry, is_out_of_memory
from equitomo.training.config import TrainingConfig
from equitomo.training.cubes import drawn_cubes
from equitomo.training.learner import Learner
from equitomo.training.memory import MemoryPlan
from equitomo.training.method import Method, Tilts
from equitomo.training.step import Objective
from equitomo.training.stopping import freed_on_failure


class BatchGradient:
    """The gradient of the mean losses of a batch, which is added up over groups of its cubes.

    Parameters
    ----------
    dataset
        The cubes.
    tilts
        The tilts of each tomogram.
    method
        The augmentations of the cubes.
    learner
        The network whose gradient is computed.
    objective
        The losses.
    config
        The settings.
    device
        Where the network is.
    plan
        How the batch is divided at first.
    """

    def __init__(
        self,
        dataset: SubtomogramDataset | SubtomogramPool,
        tilts: Sequence[Tilts],
        method: Method,
        learner: Learner,
        objective: Objective,
        config: TrainingConfig,
        device: torch.device,
        plan: MemoryPlan,
    ) -> None:
        self._dataset, self._tilts, self._method = dataset, tilts, method
        self._learner, self._objective, self._config, self._device = learner, objective, config, device
        self._within_memory = Retry(plan, lambda plan: plan.smaller(learner.network), str)

    @property
    def plan(self) -> MemoryPlan:
        """How many cubes go through the network at once, and whether activations are recomputed."""
        return self._within_memory.plan

    def fitting(self, indices: range) -> Tensor:
        """Return the losses as :meth:`gradient` does, with as many cubes at once as fit."""
        try:
            return self._within_memory(lambda plan: self._planned(indices, plan))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"out of memory with {self.plan}. One cube is too large for this device: lower `side` or `width`, or "
                "pass `precision='bfloat16'` if the device has it. A smaller `batch` does not help, as cubes go one by "
                "one already"
            ) from error

    def gradient(self, indices: range, n_at_once: int) -> Tensor:
        """Compute the gradient of the batch's mean losses, ``n_at_once`` cubes at a time, and return the losses.

        Everything drawn depends on a cube's own index, and every cube has the same weight, so the grouping of the
        cubes changes the order of the sums only.
        """
        self._learner.network.zero_grad()
        # An attempt that failed may have changed the buffers.
        self._learner.rewind_buffers()
        parts = [indices[first : first + n_at_once] for first in range(0, len(indices), n_at_once)]
        with freed_on_failure():
            return torch.stack([self._backward(part) for part in parts]).sum(0)

    def bytes_kept(self, n_cubes: int) -> int:
        """Return the bytes that ``n_cubes`` cubes at once keep for the backward pass, counting each storage once."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.gradient(range(n_cubes), n_cubes)
        self._learner.rewind_buffers()
        return sum(kept.values())

    def _planned(self, indices: range, plan: MemoryPlan) -> Tensor:
        """Return the losses as :meth:`gradient` does, with the batch divided by a plan."""
        if plan.checkpointing and hasattr(self._learner.network, "checkpointing"):
            vars(self._learner.network)["checkpointing"] = True
        return self.gradient(indices, plan.n_at_once)

    def _backward(self, indices: range) -> Tensor:
        """Add the gradient of what some cubes contribute to the mean losses, and return the contribution."""
        draws = Draws(self._config.seed, indices)
        y, tilts = drawn_cubes(self._dataset, self._method, self._tilts, indices, draws, self._device)
        with autocast(self._learner.dtype, self._device):
            losses: Tensor = self._objective(y, tilts, draws).sum(1) / self._config.batch
        self._learner.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
        return losses.detach()
