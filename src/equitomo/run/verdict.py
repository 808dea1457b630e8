"""What the record of a training says about its length and its result, as sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from equitomo.metrics import relative_error
from equitomo.training import Trainer
from equitomo.training.loss_table import HeldOutTable, LossTable
from equitomo.training.stability import TOLERANCE, Stability


def advice(trainer: Trainer) -> str:
    """Return what the tables in the folder of a training say, a sentence a line; nothing if there is nothing to say.

    The first lines give the error on the held-out block, if there is one. The last one says since which step nothing
    changed, or what still improves; not if the learning rate fell to zero, because every training is stable then.
    """
    if trainer.out is None:
        return ""
    held_out = HeldOutTable(trainer.out).read() if trainer.config.held_out else None
    lines = []
    if held_out is not None and len(held_out["step"]):
        lines += _of_held_out(held_out)
    if trainer.config.schedule == "constant":
        found = Stability.of(LossTable(trainer.out, trainer.objective.names).losses(), held_out)
        lines += _of_length(found, trainer.step, trainer.steps)
    return "\n".join(lines)


def _of_held_out(columns: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Return what ``held_out.csv`` says about the last step and the best one."""
    step, network, gaussian, sigma, nothing = (
        float(columns[name][-1]) for name in ("step", "network", "gaussian", "sigma", "nothing")
    )
    best = int(np.nanargmin(columns["network"])) if np.isfinite(columns["network"]).any() else -1
    lowest = float(columns["network"][best])
    lines = [
        f"On the held-out block the error against the other half is {network:.4f} at step {step:.0f}; 0.5 would be the "
        f"truth, 1 no denoising. The best Gaussian filter, of {sigma:.1f} voxels, reaches {gaussian:.4f}",
    ]
    if nothing > 0.5:
        wrong, filtered = (max(relative_error(error, nothing), 0) for error in (network, gaussian))
        lines.append(
            f"By this, {wrong:.0%} of the signal's power in the measured part are wrong there; {filtered:.0%} with the "
            "filter"
        )
        least = relative_error(lowest, nothing)
        if relative_error(network, nothing) - least > TOLERANCE:
            lines.append(
                f"It was lowest at step {columns['step'][best]:.0f}, with {least:.0%}, and has risen since: the "
                "network has begun to learn the noise"
            )
    if network >= gaussian:
        lines.append("The network is not better than this filter: train it for more steps")
    return lines


def _of_length(found: Stability, step: int, planned: int | None) -> list[str]:
    """Return what the curves say about the number of steps."""
    if found.step is not None:
        before = f", before the {planned} that were planned" if planned is not None and step < planned else ""
        return [f"Since step {found.step} nothing improved by more than {TOLERANCE:.0%}; this is step {step}{before}"]
    if found.improving:
        return [f"Still improving, or too few steps to tell: {', '.join(found.improving)}. More steps may help"]
    return []
