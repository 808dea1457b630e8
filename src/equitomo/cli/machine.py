"""What the machine has, and whether that is enough."""

from __future__ import annotations

import warnings

import torch

from equitomo import resources
from equitomo.training import IcecreamTrainer
from equitomo.training.memory import bytes_of_step

LESS_MEMORY = "--micro_batch 1, --checkpointing true or a smaller --side or --width needs less"


def free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system says so."""
    return resources.free_memory()


def free_on(device: torch.device) -> int | None:
    """Bytes that can be had on a device, where it says so."""
    return free_memory() if device.type == "cpu" else resources.free_memory(device)


def require_memory(n_bytes: float, what: str, remedy: str) -> None:
    """Refuse work that takes more of the host's memory than it has: the system would kill it halfway.

    Raises
    ------
    ValueError
        If that is so.
    """
    free = free_memory()
    if free is not None and n_bytes > free:
        raise ValueError(f"{what} takes about {readable(n_bytes)} of memory and {readable(free)} are free: {remedy}")


def require_memory_of_step(trainer: IcecreamTrainer) -> None:
    """Refuse a training whose steps cannot fit, and say if fewer cubes than configured will go through at once.

    Raises
    ------
    ValueError
        If the host's memory does not hold a step as configured, or a GPU's not even one cube.
    """
    config, device = trainer.config, trainer.device
    n_cubes, free = trainer.n_at_once, free_on(device)
    if free is None:
        return
    cubes = f"a step with {n_cubes} {'cube' if n_cubes == 1 else 'cubes'} of {config.side} voxels at once"
    needed = bytes_of_step(config, trainer.dtype, n_cubes)
    if device.type == "cpu":
        require_memory(needed, cubes, LESS_MEMORY)
    elif (least := bytes_of_step(config, trainer.dtype, 1, checkpointing=True)) > free:
        raise ValueError(
            f"one cube of {config.side} voxels takes about {readable(least)} of {device} even with activation "
            f"checkpointing, and {readable(free)} are free: take a smaller --side or --width"
        )
    elif needed > free:
        warnings.warn(
            f"{cubes} takes about {readable(needed)} of {device} and {readable(free)} are free: training will go on "
            f"with fewer, for the same result; {LESS_MEMORY}",
            stacklevel=2,
        )


def readable(n_bytes: float) -> str:
    """A number of bytes."""
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.3g} MB"


def duration(seconds: float) -> str:
    """A time in the unit that fits."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
