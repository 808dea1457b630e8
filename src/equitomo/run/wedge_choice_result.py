"""The result of a choice between settings: a table, the choice, and the command that uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from equitomo import report
from equitomo.run.folder import WEDGE_CHOICE
from equitomo.run.held_out_result import WrittenResult
from equitomo.run.wedge_candidates import Candidate
from equitomo.run.wedge_result import FoldResult, WedgeTestResult

# A difference counts if it is larger than so many of its standard errors.
_SIGNIFICANT = 1.96
_TIMES = f"{_SIGNIFICANT} standard errors"


@dataclass(frozen=True)
class CandidateScore:
    """What one candidate scores in one held-out sector.

    Parameters
    ----------
    candidate
        The candidate.
    result
        Its result.
    difference, error
        By how much it is better than the present setting there, and the standard error of that.
    seconds
        The time of its prediction.
    """

    candidate: Candidate
    result: FoldResult
    difference: float
    error: float
    seconds: float


@dataclass(frozen=True)
class ChoiceRow:
    """What one candidate scores in all held-out sectors.

    Parameters
    ----------
    candidate
        The candidate.
    scores
        Its scores in the single sectors.
    """

    candidate: Candidate
    scores: tuple[CandidateScore, ...]

    @property
    def total(self) -> WedgeTestResult:
        """The result in all sectors."""
        return WedgeTestResult(tuple(score.result for score in self.scores), "")

    @property
    def difference(self) -> float:
        """By how much the candidate is better than the present setting; the mean of all sectors where that is known."""
        found = self._found
        return sum(score.difference for score in found) / len(found) if found else math.nan

    @property
    def error(self) -> float:
        """The standard error of the difference."""
        found = self._found
        return math.sqrt(sum(score.error**2 for score in found)) / len(found) if found else math.nan

    @property
    def seconds(self) -> float:
        """The time of a prediction."""
        return sum(score.seconds for score in self.scores) / len(self.scores)

    @property
    def is_better(self) -> bool:
        """Whether the candidate is better than the present setting by more than its uncertainty."""
        return self.difference > _SIGNIFICANT * self.error

    @property
    def _found(self) -> list[CandidateScore]:
        return [score for score in self.scores if not math.isnan(score.difference)]


@dataclass(frozen=True)
class WedgeChoiceResult(WrittenResult):
    """The result of a choice by the wedge test.

    Parameters
    ----------
    rows
        The candidates with their scores, the present setting first.
    start
        The weights that the trainings started from.
    voxel_size
        Å per voxel, ``None`` if it is not known.
    """

    file_name: ClassVar[str] = WEDGE_CHOICE

    rows: tuple[ChoiceRow, ...]
    start: str
    voxel_size: float | None = None

    @property
    def chosen(self) -> ChoiceRow:
        """The best candidate that is better than the present setting by more than its uncertainty, or the present."""
        better = [row for row in self.rows[1:] if row.is_better]
        return max(better, key=lambda row: row.difference, default=self.rows[0])

    def __str__(self) -> str:
        present, chosen = self.rows[0], self.chosen
        kept = present.scores[0].result.geometry
        lines = [f"Estimated correlation with the noise-free tomogram beyond the tilts {kept}:", "", *self._table(), ""]
        if math.isnan(present.total.estimate):
            lines.append("The halves do not agree in the sector that was held out, so that nothing can be chosen.")
        elif chosen is present:
            lines.append(
                f"Keep {present.candidate.name}: nothing else is better by more than {_TIMES} of the difference."
            )
        else:
            lines.append(
                f"Choose {chosen.candidate.name}: it is better than {present.candidate.name} by "
                f"{chosen.difference:.3f}, more than {_TIMES} of the difference. The test judges what is filled alone."
            )
            lines.append(f"  {chosen.candidate.command}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Return the lines of the table."""
        rows = [("", "estimate", "better by", "prediction")]
        for row in self.rows:
            total = row.total
            better = "present" if row is self.rows[0] else f"{row.difference:+.3f} ± {row.error:.3f}"
            rows.append(
                (row.candidate.name, f"{total.estimate:.3f} ± {total.error:.3f}", better, f"{row.seconds:.1f} s")
            )
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it, with ``None`` in place of NaN."""
        rows = []
        for row in self.rows:
            total = row.total
            numbers = {"estimate": total.estimate, "error": total.error}
            numbers |= {"difference": row.difference, "difference_error": row.error, "seconds": row.seconds}
            plain = {name: None if math.isnan(value) else value for name, value in numbers.items()}
            rows.append({"candidate": row.candidate.name, **plain, "command": row.candidate.command})
        return {"chosen": self.chosen.candidate.name, "start": self.start, "candidates": rows}

    def draw(self, path: str | Path) -> Path:
        """Draw the estimates in each shell of the first sector, and return the path of the picture."""
        curves = {row.candidate.name: row.scores[0].result.correlation for row in self.rows}
        return report.draw_held_out(path, curves, voxel_size=self.voxel_size)
