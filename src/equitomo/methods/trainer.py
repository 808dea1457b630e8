"""The trainer of the library's methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deepinv.loss import Loss
from torch import nn

from equitomo.datasets import TomogramPair
from equitomo.methods import method_of
from equitomo.training import Trainer, TrainingConfig
from equitomo.training.engine import Preview, Progress
from equitomo.training.method import Operator


class IcecreamTrainer(Trainer):
    r"""Train a network on half tomograms by ICECREAM, or by another method of the library.

    .. math:: \mathcal{L} = \mathcal{L}_{\text{data}} + \lambda \mathcal{L}_{\text{equi}}

    Equation (6) of :cite:t:`kishore2026icecream`. The setting ``method`` names the method. The network, the losses and
    the operator may be replaced by others; everything else is as in :class:`~equitomo.training.Trainer`.

    Parameters
    ----------
    pairs
        One pair of half tomograms or several, in memory or in files.
    config
        The settings; ``None`` for the paper's.
    network
        A function that makes another network, which maps ``(batch, 1, z, y, x)`` to the same shape. Biases,
        normalisations and buffers are allowed.
    losses
        Other deepinv losses, by their names in ``losses.csv``. They replace all losses of the method.
    physics
        A function that makes another operator for a shape ``(z, y, x)`` and a geometry.
    out, resume, overwrite, init, progress, preview, clock
        See :class:`~equitomo.training.Trainer`.

    Examples
    --------
    >>> from equitomo import Noise2NoiseLoss, TomogramPair
    >>> specimen = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> pair = TomogramPair(specimen, specimen + torch.randn(16, 16, 16), (-60.0, 60.0))
    >>> config = TrainingConfig(side=16, batch=1, width=2, levels=2, steps=2, margin=4, device="cpu")
    >>> IcecreamTrainer(pair, config).train().step
    2
    >>> other = IcecreamTrainer(
    ...     pair,
    ...     config,
    ...     network=lambda: torch.nn.Conv3d(1, 1, 3, padding=1),
    ...     losses={"n2n": Noise2NoiseLoss(margin=4)},
    ... )
    >>> other.train().step
    2
    """

    def __init__(
        self,
        pairs: TomogramPair | Sequence[TomogramPair],
        config: TrainingConfig | None = None,
        *,
        network: Callable[[], nn.Module] | None = None,
        losses: Mapping[str, Loss] | None = None,
        physics: Operator | None = None,
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        init: nn.Module | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        pairs = (pairs,) if isinstance(pairs, TomogramPair) else tuple(pairs)
        config = (TrainingConfig() if config is None else config).fitted(pair.shape for pair in pairs)
        method = method_of(config)
        if network is not None:
            method = replace(method, network=network)
        if losses is not None:
            method = replace(method, losses=lambda physics: losses)
        if physics is not None:
            method = replace(method, physics=physics)
        super().__init__(
            pairs,
            method,
            config,
            out=out,
            resume=resume,
            overwrite=overwrite,
            init=init,
            progress=progress,
            preview=preview,
            clock=clock,
        )
