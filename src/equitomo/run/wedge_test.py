"""The wedge test: what the filling of a missing wedge is worth on the user's own tomogram."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from equitomo.datasets import HeldOutSector, TomogramPair, hold_out_sector
from equitomo.geometry import Ends
from equitomo.metrics import held_out_correlation
from equitomo.run.initial import shipped_network
from equitomo.run.pictures import StepProgress
from equitomo.run.prediction import Progress, common_geometry, predictor_for, require_one_wedge
from equitomo.run.recorded_pair import recorded_init, recorded_pair
from equitomo.run.settings import ReconstructionSettings
from equitomo.run.wedge_result import FoldResult, WedgeTestResult
from equitomo.run.wedge_settings import WedgeTestSettings
from equitomo.training import Method, Trainer, TrainingConfig, TrainingInterruptedError, load_network
from equitomo.training.method import Operator
from equitomo.training.presets import SHIPPED

if TYPE_CHECKING:
    from equitomo.run.run import Run

_ENDS: dict[int, tuple[Ends, ...]] = {1: ("both",), 2: ("low", "high"), 3: ("both", "low", "high")}
# With weights that know the specimen already so much less training suffices.
_WARM_SHARE = 10


@dataclass(frozen=True)
class Fold:
    """One held-out sector, with the trainer that never sees it.

    Parameters
    ----------
    held_out
        The narrower pair, and what was measured in the sector.
    trainer
        Trains on the narrower pair.
    physics
        Makes the operator of the prediction; ``None`` for that of the geometry.
    """

    held_out: HeldOutSector
    trainer: Trainer
    physics: Operator | None = None

    def train(self, progress: StepProgress | None = None) -> None:
        """Train to the last step; a test that is stopped has nothing to be resumed from.

        ``progress`` is called with the number of steps done and the latest losses.
        """
        try:
            self.trainer.train(progress=progress)
        except TrainingInterruptedError as error:
            steps = f"step {self.trainer.step}"
            raise TrainingInterruptedError(f"the wedge test was stopped after {steps}, and nothing was kept") from error

    def predict(self, progress: Progress | None = None) -> Tensor:
        """Return what the trained network makes of the narrower halves, on the scale of what was measured."""
        pair, device = self.held_out.pair, self.trainer.device
        predictor = predictor_for(
            self.trainer.network.to(device).to(memory_format=torch.channels_last_3d),
            common_geometry(pair),
            ReconstructionSettings(),
            self.trainer.config,
            physics=self.physics,
            devices=[device],
        )
        return pair.restore(predictor(*pair.volumes, progress=progress))

    def judge(self, filled: Tensor) -> FoldResult:
        """Return what a prediction scores in the sector."""
        held_out = self.held_out
        first, second = held_out.measured
        found = held_out_correlation(filled, first, second, held_out.sector)
        return FoldResult(held_out.ends, held_out.pair.geometry, self.trainer.step, found)

    def score(self, progress: Progress | None = None) -> FoldResult:
        """Predict with the trained network, and compare what it filled into the sector with what was measured."""
        return self.judge(self.predict(progress))


class WedgeTest:
    """The wedge test of a tomogram: a sector that was measured is emptied, filled and compared.

    The sectors of the outermost tilts are emptied in both halves, a network is trained on what is left, and what it
    fills into the sector is compared with what had been measured there. Its noise was never seen, so that the
    correlation with the truth can be estimated; see :func:`equitomo.metrics.held_out_correlation`.

    Parameters
    ----------
    pair
        Two half tomograms, which are read into memory.
    method
        The method that is tested.
    config
        The settings of the training.
    settings
        The sectors and the length of the training.
    physics
        Makes the operator of the predictions, where it is not that of the geometry.
    init
        The weights to start from; ``None`` draws them from the seed of ``config``.
    done
        The steps of the training that is imitated; ``None`` for those of ``config``.

    Raises
    ------
    ValueError
        If there is only one volume, the tilts cannot be narrowed, or the halves have clearly different tilts.
    """

    def __init__(
        self,
        pair: TomogramPair,
        method: Method,
        config: TrainingConfig,
        settings: WedgeTestSettings | None = None,
        *,
        physics: Operator | None = None,
        init: nn.Module | None = None,
        done: int | None = None,
    ) -> None:
        self.settings = settings or WedgeTestSettings()
        self._pair, self._method, self._physics, self._init = pair, method, physics, init
        self._config = _training_of(config, self.settings, done or config.steps)
        require_one_wedge(pair, config)
        # What cannot be narrowed or trained on is found before the work; the other folds are like the first.
        self._first = self._fold(_ENDS[self.settings.folds][0])

    @classmethod
    def of(cls, run: Run, pair: TomogramPair | None = None, settings: WedgeTestSettings | None = None) -> Self:
        """Return the wedge test of a run, with its method and its settings.

        Parameters
        ----------
        run
            A run that was trained.
        pair
            Two half tomograms; ``None`` for the only tomogram of the run, which is read from the files that its record
            names if the run was merely opened.
        settings
            As for the class.

        Raises
        ------
        ValueError, OSError
            As the class; or if no ``pair`` is given, and the run has several tomograms or its files are not those of
            its record.
        """
        settings = settings or WedgeTestSettings()
        if pair is None:
            pair = recorded_pair(run.path, run.config) if run.is_opened else run.pairs[0]
            if not run.is_opened and len(run.pairs) > 1:
                raise ValueError(f"the run has {len(run.pairs)} tomograms: pass one of them as `pair`")
        pair, init = _start(settings.start, run, run.in_contrast(pair))
        return cls(pair, run.method, run.config, settings, physics=run.physics, init=init, done=run.step)

    def folds(self) -> Iterator[Fold]:
        """Yield the folds, each made when it is asked for."""
        for number, ends in enumerate(_ENDS[self.settings.folds]):
            yield self._first if number == 0 else self._fold(ends)

    def result(self, results: Sequence[FoldResult]) -> WedgeTestResult:
        """Return the result of all folds."""
        size = self._pair.voxel_size
        return WedgeTestResult(tuple(results), self.settings.start, None if size is None else min(size))

    def run(self, *, step_progress: StepProgress | None = None, progress: Progress | None = None) -> WedgeTestResult:
        """Train and score all folds.

        Parameters
        ----------
        step_progress
            Called with the number of steps done and the latest losses, in every fold.
        progress
            Called with the number of tiles done and their total, in every fold.
        """
        results = []
        for fold in self.folds():
            fold.train(step_progress)
            results.append(fold.score(progress))
        return self.result(results)

    def _fold(self, ends: Ends) -> Fold:
        held_out = hold_out_sector(self._pair, self.settings.keep, ends)
        return Fold(held_out, Trainer(held_out.pair, self._method, self._config, init=self._init), self._physics)


def _start(start: str, run: Run, pair: TomogramPair) -> tuple[TomogramPair, nn.Module | None]:
    """Return the tomogram as the starting weights know it, and these weights; ``None`` for those of the seed."""
    if start == "run":
        return pair, run.network
    init = recorded_init(run.path) if start == "same" else None
    if isinstance(init, dict) and "path" in init:
        warnings.warn(
            f"the run had started from the weights of {init['path']}, the wedge test starts from the seed: "
            f"pass `start='{init['path']}'` to test what the run did",
            stacklevel=4,
        )
        init = None
    name = init["network"] if isinstance(init, dict) else start
    if name in SHIPPED:
        # It knows specimens that are brighter than their background.
        return pair.with_contrast("bright"), shipped_network(name, [pair])
    return pair, None if name in ("same", "seed") else load_network(name)


def _training_of(config: TrainingConfig, settings: WedgeTestSettings, done: int) -> TrainingConfig:
    """Return the settings of the training of a fold, which starts as it was decided for the run."""
    config = replace(config, restart_steps=0)
    if settings.minutes is not None:
        return replace(config, minutes=settings.minutes)
    share = 1 if settings.start in ("same", "seed") else _WARM_SHARE
    steps = settings.steps or max(1, done // share)
    # A shorter training warms up in the same share of its steps.
    warmup = config.warmup if steps >= done else round(config.warmup * steps / done)
    return replace(config, steps=steps, minutes=None, warmup=warmup)
