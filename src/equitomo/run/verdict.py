"""What the record of a training says about its length and its result, as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equitomo.metrics import relative_error
from equitomo.training import Trainer
from equitomo.training.loss_table import HeldOutTable, LossTable
from equitomo.training.stability import TOLERANCE, Stability


def advice(trainer: Trainer) -> str:
    """Return what the record of a training says, a sentence a line; nothing if there is nothing to say."""
    if trainer.out is None:
        return ""
    losses = LossTable(trainer.out, trainer.objective.names).losses()
    constant = trainer.config.schedule == "constant"
    lines = verdict(trainer.out, losses, constant=constant, planned=trainer.steps)
    if trainer.restart is not None:
        lines.append(str(trainer.restart))
    if trainer.learner.start and trainer.is_finished:
        share = f"{trainer.learner.start_share:.0%}"
        lines.append(f"In predictions the weights that the training started from keep a share of {share}")
    return "\n".join(lines)


def verdict(
    folder: Path, losses: Mapping[str, Sequence[float] | NDArray[Any]], *, constant: bool, planned: int | None
) -> list[str]:
    """Return what the tables in the folder of a run say, as sentences.

    The first ones give the error on the held-out block, if there is one. The last one says since which step nothing
    changed, or what still improves; not if the learning rate fell to zero, because every training is stable then.

    Parameters
    ----------
    folder
        The folder of the run, for ``held_out.csv``.
    losses
        The column ``step`` of ``losses.csv``, and each loss by name.
    constant
        Whether the learning rate was constant.
    planned
        The number of steps that were planned, if there is one.
    """
    held_out = HeldOutTable(folder).read()
    lines = _of_held_out(held_out) if len(held_out["step"]) else []
    if constant and len(losses["step"]):
        found = Stability.of(losses, held_out)
        lines += _of_length(found, int(losses["step"][-1]), planned)
    return lines


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
