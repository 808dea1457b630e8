"""The result of a wedge test: numbers, sentences, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from equitomo import report
from equitomo.geometry import Ends, Geometry
from equitomo.metrics import HeldOutCorrelation
from equitomo.run.folder import WEDGE_TEST
from equitomo.run.held_out_result import HeldOutResult


@dataclass(frozen=True)
class FoldResult:
    """The result of one held-out sector.

    Parameters
    ----------
    ends
        The ends of the tilt range that were held out.
    geometry
        The tilts that were kept.
    steps
        The steps of the training.
    correlation
        The estimated correlation with the noise-free tomogram in the sector.
    """

    ends: Ends
    geometry: Geometry
    steps: int
    correlation: HeldOutCorrelation


@dataclass(frozen=True)
class WedgeTestResult(HeldOutResult):
    """The result of the wedge test.

    Parameters
    ----------
    folds
        The results of the single sectors.
    start
        The weights that the trainings started from.
    voxel_size
        Å per voxel, ``None`` if it is not known.

    Examples
    --------
    >>> WedgeTestResult((), "seed").estimate
    nan
    """

    file_name: ClassVar[str] = WEDGE_TEST

    folds: tuple[FoldResult, ...]
    start: str
    voxel_size: float | None = None

    def _correlations(self) -> Iterator[HeldOutCorrelation]:
        return (fold.correlation for fold in self.folds)

    def __str__(self) -> str:
        lines = [line for fold in self.folds for line in _lines(fold, self.voxel_size)]
        if len(self._found) > 1:
            lines.append(f"All sectors together: {self.estimate:.3f} ± {self.error:.3f}.")
        if self.start == "run" and self._found:
            lines.append(
                "The training started from weights that had seen the noise of the held-out sector: the estimate may be "
                "too high."
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it, with ``None`` in place of NaN."""
        return {
            **self._numbers(),
            "empty": 0.0,
            "start": self.start,
            "voxel_size": self.voxel_size,
            "folds": [
                {
                    "ends": fold.ends,
                    "kept_tilts": fold.geometry.as_dict(),
                    "steps": fold.steps,
                    **fold.correlation.as_dict(),
                }
                for fold in self.folds
            ],
        }

    def draw(self, path: str | Path) -> Path:
        """Draw the estimate in each shell, and return the path of the picture."""
        curves = {_title(fold): fold.correlation for fold in self.folds}
        return report.draw_held_out(path, curves, voxel_size=self.voxel_size)


def _title(fold: FoldResult) -> str:
    return f"trained on {fold.geometry}"


def _lines(fold: FoldResult, voxel_size: float | None) -> list[str]:
    """Return what one fold has found, in sentences."""
    found = fold.correlation
    title = f"A network that was trained for {fold.steps} steps on the tilts {fold.geometry} alone filled the rest."
    if math.isnan(found.estimate):
        return [
            title,
            "The halves do not agree in the sector that was held out, so that nothing can be said about what the "
            "network filled in there. More dose, larger voxels or a smaller `keep` would help.",
        ]
    low, high = found.interval
    limit = f"{found.limit:.2f} cycles per voxel"
    limit += "" if voxel_size is None else f" ({voxel_size / found.limit:.0f} Å)"
    lines = [
        title,
        f"Its correlation with the noise-free tomogram there is estimated as {found.estimate:.3f} ± {found.error:.3f} "
        f"(95 %: {low:.2f} to {high:.2f}).",
        f"An empty sector scores 0, and the measured, noisy mean of the halves {math.sqrt(found.reliability):.3f}.",
        f"This holds up to {limit}.",
    ]
    if found.n_left_out:
        total = found.n_left_out + found.n_coefficients
        lines[-1] += (
            f" Beyond it lie {found.n_left_out / total:.0%} of the sector's coefficients, about which nothing is known "
            "because the halves do not agree there."
        )
    return lines
