"""The result of a wedge test with tilts left out: numbers, sentences, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from equitomo import report
from equitomo.datasets.left_out_tilts import Surroundings
from equitomo.geometry import Ends, Geometry
from equitomo.metrics import HeldOutCorrelation, RawCorrelation
from equitomo.run.folder import TILT_CONTROL, TILT_TEST
from equitomo.run.held_out_result import HeldOutResult

# The volumes that are scored, as the result names them.
PREDICTION, INPUT, EMPTIED = "prediction", "input", "emptied"


@dataclass(frozen=True)
class ProjectionScore:
    """What projections of a volume score against those that were measured.

    Parameters
    ----------
    raw
        The correlation with the noisy projections.
    found
        The estimated correlation with noise-free projections, at the tilts that were measured twice; ``None`` if there
        are none.
    """

    raw: RawCorrelation
    found: HeldOutCorrelation | None

    @property
    def estimate(self) -> float:
        """The estimated correlation with noise-free projections, NaN if it is not known."""
        return math.nan if self.found is None else self.found.estimate

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON can hold them, with ``None`` in place of NaN."""
        curve = {"frequency": self.raw.frequency, "raw_correlation": self.raw.correlation}
        numbers = {"raw": self.raw.raw, "raw_error": self.raw.error, **curve}
        found = None if self.found is None else self.found.as_dict()
        return {**{name: _plain(value) for name, value in numbers.items()}, "found": found}


@dataclass(frozen=True)
class TiltScores:
    """What projections of a volume score at all tilts that were left out, together and one by one.

    Parameters
    ----------
    together
        At all tilts.
    each
        At each, in their order.
    """

    together: ProjectionScore
    each: tuple[ProjectionScore, ...]


@dataclass(frozen=True)
class TiltViews:
    """The images of a tilt that was left out.

    Parameters
    ----------
    angle
        The tilt in degrees.
    start, stop
        The pixels across the tilt axis that see nothing but the tomogram.
    measured
        The mean of what was measured, ``(along, across)``.
    projected
        The projections of the input and of the prediction, by the name of the volume.
    """

    angle: float
    start: int
    stop: int
    measured: Tensor
    projected: Mapping[str, Tensor]


@dataclass(frozen=True)
class TiltFoldResult:
    """The result for some tilts that were left out together.

    Parameters
    ----------
    ends
        The ends of the tilt range that were left out, ``None`` for tilts inside the range.
    geometry
        The tilts that were kept.
    steps
        The steps of the training.
    surroundings
        What lies beside the tomogram across the tilt axis.
    views
        The images of each tilt that was left out and could be judged.
    scores
        The scores of the prediction; of the input, the tomogram of the tilts that were kept; and of the prediction with
        its wedge emptied: "prediction", "input" and "emptied".
    """

    ends: Ends | None
    geometry: Geometry
    steps: int
    surroundings: Surroundings
    views: Sequence[TiltViews]
    scores: Mapping[str, TiltScores]

    @property
    def correlation(self) -> HeldOutCorrelation | None:
        """The estimated correlation of the prediction; ``None`` if no tilt was measured twice."""
        return self.scores[PREDICTION].together.found

    @property
    def n_twice(self) -> int:
        """The number of tilts that were measured twice."""
        return sum(score.found is not None for score in self.scores[PREDICTION].each)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it, with ``None`` in place of NaN."""
        each = {name: scores.each for name, scores in self.scores.items()}
        return {
            "ends": self.ends,
            "kept_tilts": self.geometry.as_dict(),
            "steps": self.steps,
            "surroundings": self.surroundings,
            "volumes": {name: scores.together.as_dict() for name, scores in self.scores.items()},
            "tilts": [
                {
                    "tilt": view.angle,
                    "pixels": [view.start, view.stop],
                    **{name: of_each[n].as_dict() for name, of_each in each.items()},
                }
                for n, view in enumerate(self.views)
            ],
        }


@dataclass(frozen=True)
class TiltTestResult(HeldOutResult):
    """The result of the wedge test with tilts left out.

    Parameters
    ----------
    folds
        The results of the single sets of tilts.
    start
        The weights that the trainings started from.
    voxel_size
        Å per voxel, ``None`` if it is not known.

    Examples
    --------
    >>> TiltTestResult((), "seed").estimate
    nan
    """

    folds: tuple[TiltFoldResult, ...]
    start: str
    voxel_size: float | None = None

    @property
    def file_name(self) -> str:
        """The name of its file in the folder of a run, another one for tilts inside the range, which are a control."""
        return TILT_CONTROL if any(fold.ends is None for fold in self.folds) else TILT_TEST

    def _correlations(self) -> Iterator[HeldOutCorrelation | None]:
        return (fold.correlation for fold in self.folds)

    def __str__(self) -> str:
        lines = [line for fold in self.folds for line in _lines(fold, self.voxel_size)]
        if len(self._found) > 1:
            lines.append(f"All together: {self.estimate:.3f} ± {self.error:.3f}.")
        if self.start == "run":
            lines.append(
                "The training started from weights that had seen the noise of these projections: all of this may be "
                "too high."
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it, with ``None`` in place of NaN."""
        return {
            **self._numbers(),
            "start": self.start,
            "voxel_size": self.voxel_size,
            "folds": [fold.as_dict() for fold in self.folds],
        }

    def draw(self, path: str | Path) -> Path:
        """Draw the projections of each tilt and the correlations in its rings, and return the path of the picture."""
        rows = [row for fold in self.folds for row in _rows(fold)]
        return report.draw_left_out(path, rows, voxel_size=self.voxel_size)


def _rows(fold: TiltFoldResult) -> list[report.LeftOutRow]:
    """Return the rows of the picture, one for each tilt."""
    names = {INPUT: "input", PREDICTION: "prediction"}
    rows = []
    for n, view in enumerate(fold.views):
        curves = {label: fold.scores[name].each[n] for name, label in names.items()}
        rows.append(
            report.LeftOutRow(
                f"{view.angle:.1f}°",
                {"measured": view.measured, **{label: view.projected[name] for name, label in names.items()}},
                (view.start, view.stop),
                {label: score.found or score.raw for label, score in curves.items()},
            )
        )
    return rows


def _lines(fold: TiltFoldResult, voxel_size: float | None) -> list[str]:
    """Return what one fold has found, in sentences."""
    angles = ", ".join(f"{view.angle:g}" for view in fold.views)
    lines = [
        f"A network was trained for {fold.steps} steps without the tilts {angles}, on {fold.geometry}, and what it "
        "made was projected at these tilts."
    ]
    widths = [view.stop - view.start for view in fold.views]
    if fold.surroundings == "filled":
        lines.append(
            f"Only the middle {min(widths)} to {max(widths)} of {fold.views[0].measured.shape[1]} pixels across the "
            "tilt axis count, whose rays see nothing but the tomogram."
        )
    prediction, given, emptied = (fold.scores[name].together for name in (PREDICTION, INPUT, EMPTIED))
    if prediction.found is None:
        raw = [f"{score.raw.raw:.3f} ± {score.raw.error:.3f}" for score in (prediction, given, emptied)]
        return [
            *lines,
            "Each of these tilts was measured once, so that the reliability of the projections is not known, and no "
            "estimate of the correlation with noise-free ones is possible.",
            f"The correlation with the noisy projections is {raw[0]}; that of the input, a tomogram of the other "
            f"tilts, is {raw[1]}, and that of the result with its wedge emptied {raw[2]}.",
        ]
    found = prediction.found
    if math.isnan(found.estimate):
        return [*lines, "The two measurements of these tilts do not agree, so that nothing can be said about them."]
    low, high = found.interval
    where = "in what the other tilts do not tell of them" if fold.ends else "with all that they show"
    lines.append(
        f"The correlation with noise-free projections, {where}, is estimated as {found.estimate:.3f} ± "
        f"{found.error:.3f} (95 %: {low:.2f} to {high:.2f})."
    )
    if fold.n_twice < len(fold.views):
        lines[-1] += f" {fold.n_twice} of the {len(fold.views)} tilts were measured twice, and count."
    others = [f"{one.found.estimate:.3f} with {one.found.power:.0%}" for one in (given, emptied) if one.found]
    lines.append(
        f"The measured, noisy projections score {math.sqrt(found.reliability):.3f}, the input, a tomogram of the other "
        f"tilts, {others[0]} of the power of the truth there, and the result with its wedge emptied {others[1]}."
    )
    limit = "" if voxel_size is None else f" ({voxel_size / found.limit:.0f} Å)"
    lines.append(f"This holds up to {found.limit:.2f} cycles per pixel{limit}.")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [_plain(one) for one in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value
