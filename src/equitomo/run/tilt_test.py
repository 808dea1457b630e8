"""The wedge test with whole tilts left out of the series, scored against the projections that were measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equitomo.datasets import TomogramPair
from equitomo.filled import measured_part
from equitomo.geometry import Ends
from equitomo.run.halves.preparing import prepare
from equitomo.run.left_out import HeldOutTilts, hold_out_tilts
from equitomo.run.pictures import StepProgress
from equitomo.run.prediction import Progress, common_geometry
from equitomo.run.recorded_series import RecordedSeries
from equitomo.run.tilt_result import EMPTIED, INPUT, PREDICTION, TiltFoldResult, TiltTestResult, TiltViews
from equitomo.run.tilt_settings import RECORDED, TiltTestSettings
from equitomo.run.wedge_test import Fold, WedgeTest
from equitomo.training import Method, TrainingConfig


@dataclass(frozen=True)
class TiltFold(Fold):
    """Some tilts that were left out, with the trainer that never sees them."""

    held_out: HeldOutTilts  # type: ignore[assignment]

    def judge(self, filled: Tensor) -> TiltFoldResult:  # type: ignore[override]
        """Return what a prediction scores at the tilts that were left out."""
        held_out, pair = self.held_out, self.held_out.pair
        volumes = {
            PREDICTION: filled,
            INPUT: pair.restore(pair.volumes.mean(0)),
            EMPTIED: torch.from_numpy(measured_part(filled, common_geometry(pair))),
        }
        projected = {name: held_out.projections(volume) for name, volume in volumes.items()}
        views = [
            TiltViews(
                tilt.images.angle,
                tilt.start,
                tilt.stop,
                tilt.images.mean,
                {name: projected[name][n] for name in (INPUT, PREDICTION)},
            )
            for n, tilt in enumerate(held_out.tilts)
        ]
        scores = {name: held_out.scores(own) for name, own in projected.items()}
        return TiltFoldResult(
            held_out.ends, common_geometry(pair), self.trainer.step, held_out.surroundings, views, scores
        )

    def score(self, progress: Progress | None = None) -> TiltFoldResult:  # type: ignore[override]
        """Predict with the trained network, and compare its projections with those that were left out."""
        return super().score(progress)  # type: ignore[return-value]

    @property
    def _left_out(self) -> str:
        tilts = ", ".join(f"{tilt.images.angle:g}" for tilt in self.held_out.tilts)
        return f"the tilts {tilts}, on {self.held_out.pair.geometry}"


class TiltTest(WedgeTest):
    """The wedge test of a tomogram with whole tilts left out of its series.

    Halves are made of the tilts that are left, a network is trained on them, and the projections of its result are
    compared with those that were measured at the tilts left out. Nothing that was made of these tilts was ever seen;
    see :func:`equitomo.metrics.held_out_tilt_correlation`.

    Parameters
    ----------
    pair
        The tomogram, from files that ``equitomo halves`` has made, unless ``settings`` name a series.
    method, config, physics, init, done, trainings
        As for :class:`WedgeTest`.
    settings
        The series, the tilts to leave out, and the length of the training.

    Raises
    ------
    ValueError, OSError
        As :class:`WedgeTest`; or if the series is not known, cannot be used, or is that of another tomogram.
    """

    settings: TiltTestSettings
    _kind = TiltFold

    def __init__(
        self,
        pair: TomogramPair,
        method: Method,
        config: TrainingConfig,
        settings: TiltTestSettings | None = None,
        **given: Any,
    ) -> None:
        settings = settings or TiltTestSettings(series=RECORDED)
        self._series = RecordedSeries.of(_place(settings, pair), pair)
        (self._prepared,) = prepare(self._series.source, self._series.settings)
        super().__init__(pair, method, config, settings, **given)

    def result(self, results: Sequence[TiltFoldResult]) -> TiltTestResult:  # type: ignore[override]
        """Return the result of all folds."""
        size = self._prepared.halves[0].pixel_size
        return TiltTestResult(tuple(results), self.settings.start, size)

    def run(  # type: ignore[override]
        self, *, step_progress: StepProgress | None = None, progress: Progress | None = None
    ) -> TiltTestResult:
        """Train and score all folds; see :meth:`WedgeTest.run`."""
        return super().run(step_progress=step_progress, progress=progress)  # type: ignore[return-value]

    def _held_out(self, ends: Ends) -> HeldOutTilts:  # type: ignore[override]
        settings = self.settings
        return hold_out_tilts(
            self._prepared,
            self._series.settings,
            self.pair,
            share=settings.keep,
            ends=ends,
            every=settings.every,
            surroundings=None if settings.surroundings == "auto" else settings.surroundings,
        )


def _place(settings: TiltTestSettings, pair: TomogramPair) -> Any:
    """Return the folder of the halves of the series."""
    if settings.series not in (None, RECORDED):
        return settings.series
    first = pair.files.get("first")
    if first is None:
        raise ValueError(f"{pair.name} is of no files, so that its series is not known: pass the `series`")
    return getattr(first, "path", first)
