"""The choice between settings by the wedge test, without truth."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self

from torch import Tensor, nn

from equitomo.datasets import TomogramPair
from equitomo.geometry import Ends
from equitomo.metrics import held_out_difference
from equitomo.run.network import RunNetwork
from equitomo.run.pictures import StepProgress
from equitomo.run.prediction import Progress, require_one_wedge
from equitomo.run.wedge_candidates import Candidate, candidates_of
from equitomo.run.wedge_choice_result import CandidateScore, ChoiceRow, WedgeChoiceResult
from equitomo.run.wedge_settings import WedgeChoiceSettings
from equitomo.run.wedge_test import Fold, WedgeTest
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training import Trainer
from equitomo.training.checkpoint import kept_steps, load_checkpoint, network_settings


@dataclass(frozen=True)
class ChoiceFold:
    """One held-out sector, with the trainer that never sees it and the candidates that predict with its network.

    Parameters
    ----------
    fold
        The sector and its trainer.
    candidates
        The candidates.
    present
        What the present setting filled into each sector, which the first of all candidates adds.
    """

    fold: Fold
    candidates: Sequence[Candidate]
    present: dict[Ends, Tensor]

    @property
    def trainer(self) -> Trainer:
        """The trainer that never sees the sector."""
        return self.fold.trainer

    def __str__(self) -> str:
        return str(self.fold)

    def train(self, progress: StepProgress | None = None) -> None:
        """Train to the last step, as :meth:`equitomo.run.wedge_test.Fold.train` does."""
        self.fold.train(progress)

    def score(self, progress: Progress | None = None) -> list[CandidateScore]:
        """Predict as all candidates do, and compare what they filled into the sector with what was measured."""
        with self.fold.stoppable():
            return [self._score(candidate, progress) for candidate in self.candidates]

    def _score(self, candidate: Candidate, progress: Progress | None) -> CandidateScore:
        held_out, started = self.fold.held_out, time.perf_counter()
        config = replace(self.trainer.config, **candidate.changes)
        filled = self.fold.predict(progress, network=self._network(candidate), config=config)
        seconds = time.perf_counter() - started
        before = self.present.setdefault(held_out.ends, filled)
        difference = 0.0, 0.0
        if filled is not before:
            first, second = held_out.measured
            difference = held_out_difference(filled, before, first, second, held_out.sector)
        return CandidateScore(candidate, self.fold.judge(filled), *difference, seconds)

    def _network(self, candidate: Candidate) -> nn.Module:
        """Return the network by which a candidate predicts."""
        learner, kept = self.trainer.learner, self.fold.kept
        if candidate.share is not None:
            return learner.with_share(candidate.share)
        if candidate.checkpoint is None or kept is None:
            return self.trainer.network
        own = self.trainer.method.network if network_settings(learner.network) is None else None
        return load_checkpoint(kept.path / "checkpoints" / f"step_{candidate.checkpoint:08d}").network(own)


class WedgeChoice:
    """The choice between settings by the wedge test.

    What differs in the prediction only is compared with one training for each held-out sector; numbers of steps take a
    training each.

    Parameters
    ----------
    test
        The wedge test.
    candidates
        The candidates, the present setting first.
    """

    def __init__(self, test: WedgeTest, candidates: Sequence[Candidate]) -> None:
        self._test, self._candidates = test, candidates

    @classmethod
    def of(
        cls,
        run: RunNetwork,
        pair: TomogramPair | None = None,
        settings: WedgeChoiceSettings | None = None,
        trainings: WedgeTrainings | None = None,
    ) -> Self:
        """Return the choice for a run.

        Parameters
        ----------
        run, pair, trainings
            As for :meth:`equitomo.run.WedgeTest.of`. A choice between checkpoints needs ``trainings``.
        settings
            What is to be chosen, by default the number of passes.

        Raises
        ------
        ValueError, OSError
            As :meth:`equitomo.run.WedgeTest.of`; or if the run leaves nothing to choose from.
        """
        settings = settings or WedgeChoiceSettings(choose="passes")
        keep_every = None
        if settings.choose == "checkpoints":
            if trainings is None:
                raise ValueError("`choose='checkpoints'` needs a folder that keeps them: pass `trainings`")
            keep_every = reduce(math.gcd, kept_steps(run.path), 0)
        test = WedgeTest.of(run, pair, settings, trainings, keep_every=keep_every)
        candidates = candidates_of(run, test.pair, settings, test.config.steps)
        for candidate in candidates:
            require_one_wedge(test.pair, replace(test.config, **candidate.changes))
        return cls(test, candidates)

    def folds(self) -> Iterator[ChoiceFold]:
        """Yield the trainings of all sectors, each made when it is asked for."""
        present: dict[Ends, Tensor] = {}
        for fold in self._test.folds():
            if self._candidates[0].steps is None:
                yield ChoiceFold(fold, self._candidates, present)
                continue
            first, *others = self._candidates
            yield ChoiceFold(fold, [first], present)
            for candidate in others:
                yield ChoiceFold(self._test.fold(fold.held_out.ends, candidate.steps), [candidate], present)

    def result(self, results: Sequence[Sequence[CandidateScore]]) -> WedgeChoiceResult:
        """Return the result of all sectors."""
        scores = [score for fold in results for score in fold]
        rows = [ChoiceRow(one, tuple(s for s in scores if s.candidate == one)) for one in self._candidates]
        size = self._test.pair.voxel_size
        return WedgeChoiceResult(tuple(rows), self._test.settings.start, None if size is None else min(size))

    def run(self, *, step_progress: StepProgress | None = None, progress: Progress | None = None) -> WedgeChoiceResult:
        """Train and compare, and remove the trainings unless the settings keep them.

        ``step_progress`` and ``progress`` are called as by :meth:`equitomo.run.WedgeTest.run`.
        """
        results = []
        for fold in self.folds():
            fold.train(step_progress)
            results.append(fold.score(progress))
        self.finish()
        return self.result(results)

    def finish(self) -> None:
        """Remove the trainings when the result is written, unless the settings keep them."""
        self._test.finish()
