"""Refusals of work that the memory does not hold, before it begins."""

from __future__ import annotations

import warnings

from equitomo import resources
from equitomo.training import Trainer
from equitomo.training.memory import bytes_of_step

LESS_MEMORY = "`micro_batch=1`, `checkpointing=True` or a smaller `side` or `width` needs less"


def require_memory(n_bytes: float, task: str, remedy: str) -> None:
    """Refuse work that takes more of the host's memory than is free: the operating system would kill it halfway."""
    free = resources.free_memory()
    if free is not None and n_bytes > free:
        raise ValueError(f"{task} takes about {readable(n_bytes)} of memory and {readable(free)} are free: {remedy}")


def require_memory_of_step(trainer: Trainer) -> None:
    """Refuse a training whose steps do not fit, and warn if fewer cubes than configured will be processed at once.

    On the host a step must fit as configured, on a GPU at least one cube must.
    """
    config, device = trainer.config, trainer.device
    n_cubes, free = trainer.plan.n_at_once, resources.free_memory(device)
    if free is None:
        return
    side = " x ".join(map(str, dict.fromkeys(config.cube_shape)))
    cubes = f"a step with {n_cubes} {'cube' if n_cubes == 1 else 'cubes'} of {side} voxels at once"
    needed = bytes_of_step(config, trainer.dtype, n_cubes)
    if device.type == "cpu":
        require_memory(needed, cubes, LESS_MEMORY)
    elif (least := bytes_of_step(config, trainer.dtype, 1, checkpointing=True)) > free:
        raise ValueError(
            f"one cube of {side} voxels takes about {readable(least)} of {device} even with activation checkpointing, "
            f"and {readable(free)} are free: take a smaller `side` or `width`"
        )
    elif needed > free:
        warnings.warn(
            f"{cubes} takes about {readable(needed)} of {device} and {readable(free)} are free: training will continue "
            f"with fewer, for the same result; {LESS_MEMORY}",
            stacklevel=2,
        )


def readable(n_bytes: float) -> str:
    """Return a number of bytes in the unit that fits.

    Examples
    --------
    >>> readable(3.2e9), readable(2e6), readable(1500)
    ('3.2 GB', '2 MB', '1.5 kB')
    """
    unit, name = (1e9, "GB") if n_bytes >= 1e8 else (1e6, "MB") if n_bytes >= 1e5 else (1e3, "kB")
    return f"{n_bytes / unit:.3g} {name}"


def duration(seconds: float) -> str:
    """Return a time in the unit that fits.

    Examples
    --------
    >>> duration(0.234), duration(150)
    ('0.23 s', '2 minutes')
    """
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
