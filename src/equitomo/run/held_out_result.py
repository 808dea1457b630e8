"""What the results of the wedge tests have in common: one estimate of all folds, and a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from equitomo.io import write_atomically
from equitomo.metrics import HeldOutCorrelation


class WrittenResult:
    """A result that is kept in a file of JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it, with ``None`` in place of NaN."""
        raise NotImplementedError

    def write(self, path: str | Path) -> Path:
        """Write the result as JSON, in the place of an earlier one, and return the path."""
        path = Path(path)
        write_atomically(path, json.dumps(self.as_dict(), indent=1, allow_nan=False).encode() + b"\n", overwrite=True)
        return path


class HeldOutResult(WrittenResult):
    """A result of folds, each of which may have found an estimate."""

    @property
    def estimate(self) -> float:
        """The estimated correlation of what was filled with the noise-free truth; the mean of those found."""
        found = self._found
        return sum(one.estimate for one in found) / len(found) if found else math.nan

    @property
    def error(self) -> float:
        """The standard error of the estimate."""
        found = self._found
        return math.sqrt(sum(one.error**2 for one in found)) / len(found) if found else math.nan

    @property
    def measured(self) -> float:
        """What the noisy measurement itself scores, which was held out: the root of its reliability."""
        found = self._found
        return sum(math.sqrt(one.reliability) for one in found) / len(found) if found else math.nan

    @property
    def _found(self) -> list[HeldOutCorrelation]:
        """The estimates that there are."""
        return [one for one in self._correlations() if one is not None and not math.isnan(one.estimate)]

    def _correlations(self) -> Iterable[HeldOutCorrelation | None]:
        """Return what each fold has found, ``None`` where no estimate is possible."""
        raise NotImplementedError

    def _numbers(self) -> dict[str, float | None]:
        """Return the numbers of all folds together as JSON can hold them."""
        numbers = {"estimate": self.estimate, "error": self.error, "measured": self.measured}
        return {name: None if math.isnan(value) else value for name, value in numbers.items()}
