"""Going on with a training that does not fit into the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from equitomo.models import ScaleEquivariantUNet3D
from equitomo.resources import is_out_of_memory
from equitomo.training.config import TrainingConfig

_log = logging.getLogger(__name__)

# Values of the network's maps at full resolution, of one call, beyond which a CPU gains nothing by more cubes. It works
# on one operation at a time, and a signal waits for it: the eight cubes of the paper's settings together took 20 s.
_MAPS_ON_CPU = 1 << 24
# Bytes that are kept for the gradient, per voxel of every cube, half and call and per map of full resolution; measured
# for widths from 4 to 16. Sixteen bits keep copies of the weights' products too.
_KEPT = {torch.float32: 22, torch.bfloat16: 17, torch.float16: 17}
# Gradients and workspaces of the backward pass on top of what is kept for it: 1.18 times with the paper's settings.
IN_BACKWARD = 1.2
# What is left of it with activation checkpointing, less for wide networks.
_CHECKPOINTED = 0.5


def cubes_at_once(config: TrainingConfig, device: torch.device) -> int:
    """Cubes that go through the network together, as configured or else as many as make sense on the device."""
    if config.micro_batch:
        return config.micro_batch
    if device.type != "cpu":
        return config.batch
    return max(1, _MAPS_ON_CPU // (config.width * config.side**3))


def bytes_of_step(config: TrainingConfig, dtype: torch.dtype, n_cubes: int, *, checkpointing: bool = False) -> float:
    """About how much a step takes beside the weights, with so many cubes at once."""
    kept = n_cubes * config.side**3 * 2 * 2 * config.width * _KEPT[dtype]
    return kept * IN_BACKWARD * (_CHECKPOINTED if checkpointing or config.checkpointing else 1.0)


class MemoryLadder:
    """Attempt something with as many cubes at once as memory holds.

    When memory runs out the attempt is repeated with half the cubes at once, down to a single one, and then with
    activation checkpointing. What did not fit is not tried again. Each rung is a warning in the log.

    Parameters
    ----------
    network
        Whose ``checkpointing`` is switched on as the last resort.
    n_at_once
        Cubes to begin with.

    Attributes
    ----------
    n_at_once : int
        Cubes that fitted last.

    Raises
    ------
    torch.OutOfMemoryError
        If a single cube does not fit with activation checkpointing; the message says what needs less.
    """

    def __init__(self, network: ScaleEquivariantUNet3D, n_at_once: int) -> None:
        self._network, self.n_at_once = network, n_at_once
        self._tried: list[str] = []

    def __call__(self, attempt: Callable[[int], Tensor]) -> Tensor:
        """What ``attempt`` gives for a number of cubes at once; it must leave no trace where it fails."""
        while True:
            try:
                return attempt(self.n_at_once)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._step_down(error)
            # Out of the handler, which would keep what the failed attempt had allocated.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _step_down(self, error: BaseException) -> None:
        checkpointed = self._network.checkpointing
        self._tried.append(_described(self.n_at_once, checkpointed))
        if self.n_at_once == 1 and checkpointed:
            raise torch.OutOfMemoryError(
                f"out of memory, tried {', then '.join(self._tried)}. One cube is too large for this device: a smaller "
                "--side or --width needs less, or --precision bfloat16 where the device has it; a smaller --batch "
                "does not, since cubes go one by one already"
            ) from error
        if self.n_at_once > 1:
            self.n_at_once = (self.n_at_once + 1) // 2
        else:
            self._network.checkpointing = True
        _log.warning(
            "out of memory with %s: going on with %s; the result is the same up to rounding",
            self._tried[-1],
            _described(self.n_at_once, self._network.checkpointing),
        )


def _described(n_at_once: int, checkpointed: bool) -> str:
    cubes = "1 cube" if n_at_once == 1 else f"{n_at_once} cubes"
    return f"{cubes} at once" + (" and activation checkpointing" if checkpointed else "")
