"""Steps without a finite gradient: how many there were, how many in a row, and when that is too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_log = logging.getLogger(__name__)
# Of so many steps or more a larger share than this is worth a warning.
_FEW, _SHARE = 50, 0.1


class SkippedSteps:
    """The steps that were skipped, as far as it was read from the device which they were.

    Parameters
    ----------
    patience
        So many in a row end a run.

    Attributes
    ----------
    total : int
        All of the run.
    consecutive : int
        Those since the last good step.
    longest : int
        The most in a row, also where good ones came after them.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.total = self.consecutive = self.longest = 0
        self._has_warned = False

    def count(self, flags: Iterable[float]) -> None:
        """Take in what became of the steps that followed; 1 is one that was skipped."""
        for flag in flags:
            self.total += int(flag)
            self.consecutive = self.consecutive + 1 if flag else 0
            self.longest = max(self.longest, self.consecutive)

    @property
    def are_too_many(self) -> bool:
        """Whether the run is to end."""
        return self.longest >= self._patience

    def forgive(self) -> None:
        """Be patient anew."""
        self.consecutive = self.longest = 0

    def warn_of_many(self, n_steps: int) -> None:
        """Say once in the log if they are a large share of all steps of the run so far."""
        if self._has_warned or n_steps < _FEW or self.total <= _SHARE * n_steps:
            return
        self._has_warned = True
        _log.warning(
            "%d of the %d steps so far had no finite gradient and were skipped: lower learning_rate or use precision "
            "float32, if this goes on",
            self.total,
            n_steps,
        )
