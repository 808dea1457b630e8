"""The wedge test: what the filling of a missing wedge is worth on the user's own tomogram."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from equitomo.datasets import HeldOutSector, TomogramPair, hold_out_sector
from equitomo.geometry import Ends
from equitomo.metrics import held_out_correlation
from equitomo.run.initial import Init, Start, start_of
from equitomo.run.network import RunNetwork
from equitomo.run.pictures import StepProgress
from equitomo.run.prediction import Progress, common_geometry, predictor_for, require_one_wedge
from equitomo.run.recorded_pair import recorded_init, recorded_pair
from equitomo.run.settings import ReconstructionSettings
from equitomo.run.wedge_result import FoldResult, WedgeTestResult
from equitomo.run.wedge_settings import WedgeTestSettings
from equitomo.run.wedge_trainings import KeptTraining, WedgeTrainings
from equitomo.training import Method, Trainer, TrainingConfig, TrainingInterruptedError
from equitomo.training.checkpoint import network_settings
from equitomo.training.method import Operator

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
    kept
        The folder of the training, ``None`` if it has none.
    """

    held_out: HeldOutSector
    trainer: Trainer
    physics: Operator | None = None
    kept: KeptTraining | None = None

    def train(self, progress: StepProgress | None = None) -> None:
        """Train to the last step.

        ``progress`` is called with the number of steps done and the latest losses.

        Raises
        ------
        TrainingInterruptedError
            If a signal stopped it. A training that has a folder can then be continued.
        """
        if self.kept is not None:
            self.kept.record()
        try:
            self.trainer.train(progress=progress)
        except TrainingInterruptedError as error:
            raise TrainingInterruptedError(self._stopped(f"after step {self.trainer.step}")) from error

    def predict(
        self,
        progress: Progress | None = None,
        *,
        network: nn.Module | None = None,
        config: TrainingConfig | None = None,
    ) -> Tensor:
        """Return what the trained network makes of the narrower halves, on the scale of what was measured.

        Another ``network`` and another ``config`` of the prediction may be given.
        """
        pair, device = self.held_out.pair, self.trainer.device
        predictor = predictor_for(
            (network or self.trainer.network).to(device).to(memory_format=torch.channels_last_3d),
            common_geometry(pair),
            ReconstructionSettings(),
            config or self.trainer.config,
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
        with self.stoppable():
            return self.judge(self.predict(progress))

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Say how to continue if a signal stops the prediction."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise TrainingInterruptedError(self._stopped("while it predicted")) from error

    def __str__(self) -> str:
        done, steps = self.trainer.step, f"{self.trainer.step} of {self.trainer.steps}"
        words = "Continuing after step" if done else "Training"
        return f"{words}{f' {steps}' if done else ''} without {self._left_out}"

    @property
    def _left_out(self) -> str:
        """What the training never sees."""
        return f"what lies beyond the tilts {self.held_out.pair.geometry}"

    def _stopped(self, when: str) -> str:
        """Return what to say of a test that was stopped."""
        rest = ", and nothing was kept" if self.kept is None else "; repeat it as you began it to continue"
        return f"the wedge test was stopped {when}{rest}"


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
    trainings
        Where the trainings are kept until the test is done, so that it can be continued; ``None`` writes nothing. It
        must be held.

    Raises
    ------
    ValueError
        If there is only one volume, the tilts cannot be narrowed, the halves have clearly different tilts, or the
        trainings that were kept are those of another test.
    """

    _kind: ClassVar[type[Fold]] = Fold

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
        trainings: WedgeTrainings | None = None,
    ) -> None:
        self.settings = settings or WedgeTestSettings()
        self.pair, self._method, self._physics, self._init = pair, method, physics, init
        self._trainings = trainings
        self.config = _training_of(config, self.settings, done or config.steps)
        require_one_wedge(pair, config)
        # What cannot be narrowed or trained on is found before the work; the other folds are like the first.
        self._first = self.fold(_ENDS[self.settings.folds][0])

    @classmethod
    def of(
        cls,
        run: RunNetwork,
        pair: TomogramPair | None = None,
        settings: WedgeTestSettings | None = None,
        trainings: WedgeTrainings | None = None,
        *,
        keep_every: int | None = None,
    ) -> Self:
        """Return the wedge test of a run, with its method and its settings.

        Parameters
        ----------
        run
            A run that was trained.
        pair
            Two half tomograms; ``None`` for the only tomogram of the run, which is read from the files that its record
            names if the run was merely opened.
        settings, trainings
            As for the class.
        keep_every
            Steps between checkpoints that are kept for good, ``None`` for those of the run.

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
        start = _start(settings.start, run, pair)
        (pair,), init = start.pairs, start.network
        config = start.config if keep_every is None else replace(start.config, keep_every=keep_every)
        given = (pair, run.method, config, settings)
        return cls(*given, physics=run.physics, init=init, done=run.step, trainings=trainings)

    def folds(self) -> Iterator[Fold]:
        """Yield the folds, each made when it is asked for."""
        for number, ends in enumerate(_ENDS[self.settings.folds]):
            yield self._first if number == 0 else self.fold(ends)

    def result(self, results: Sequence[FoldResult]) -> WedgeTestResult:
        """Return the result of all folds."""
        size = self.pair.voxel_size
        return WedgeTestResult(tuple(results), self.settings.start, None if size is None else min(size))

    def run(self, *, step_progress: StepProgress | None = None, progress: Progress | None = None) -> WedgeTestResult:
        """Train and score all folds, and remove the trainings unless the settings keep them.

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
        self.finish()
        return self.result(results)

    def finish(self) -> None:
        """Remove the trainings when the result is written, unless the settings keep them."""
        if self._trainings is not None and not self.settings.keep_trained:
            self._trainings.remove()

    def fold(self, ends: Ends, steps: int | None = None) -> Fold:
        """Return the fold without the ``ends`` of the tilt range; with another number of ``steps`` of its training."""
        held_out = self._held_out(ends)
        config = self.config if steps is None else _of_length(self.config, steps)
        out = kept = None
        if self._trainings is not None:
            name = ends if steps is None else f"{ends}_{steps}"
            kept = self._trainings.kept(name, held_out, config, self.settings, self._init)
            out = kept.path
        trainer = Trainer(held_out.pair, self._method, config, out=out, resume=True, init=self._init)
        if self._trainings is not None:
            self._trainings.require_space(trainer.bytes_to_write)
        return self._kind(held_out, trainer, self._physics, kept)

    def _held_out(self, ends: Ends) -> HeldOutSector:
        """Return the tomogram without the ``ends`` of the tilt range, and what was measured there."""
        return hold_out_sector(self.pair, self.settings.keep, ends)


def _start(start: str, run: RunNetwork, pair: TomogramPair) -> Start:
    """Return how the trainings begin: the weights, and the tomogram and the settings in the contrast that they know."""
    init: Init = run.network if start == "run" else None if start in ("same", "seed") else start
    if start == "same" and isinstance(before := recorded_init(run.path), dict):
        init = before.get("network")
        if "path" in before:
            warnings.warn(
                f"the run had started from the weights of {before['path']}, the wedge test starts from the seed: "
                f"pass `start='{before['path']}'` to test what the run did",
                stacklevel=4,
            )
    own = run.method.network if network_settings(run.network) is None else None
    try:
        return start_of(init, [pair], run.config, network=own)
    except ValueError as error:
        # A run calls it by another name.
        text = str(error).replace("`init='none'`", "`start='seed'`").replace("`init", "`start")
        raise ValueError(text) from error


def _training_of(config: TrainingConfig, settings: WedgeTestSettings, done: int) -> TrainingConfig:
    """Return the settings of the training of a fold, which starts as it was decided for the run."""
    # The steps that were done are repeated, also where a training would have stopped by itself.
    config = replace(config, restart_steps=0, stop_when_stable=False)
    if settings.minutes is not None:
        return replace(config, minutes=settings.minutes)
    share = 1 if settings.start in ("same", "seed") else _WARM_SHARE
    steps = settings.steps or max(1, done // share)
    return _of_length(replace(config, minutes=None, steps=done), steps)


def _of_length(config: TrainingConfig, steps: int) -> TrainingConfig:
    """Return the settings of a training of so many steps, which warms up in the same share of them if it is shorter."""
    warmup = config.warmup if steps >= config.steps else round(config.warmup * steps / config.steps)
    return replace(config, steps=steps, warmup=warmup)
