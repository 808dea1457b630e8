"""Skipped steps: how many had no finite gradient, how many in a row, and when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_log = logging.getLogger(__name__)
# Of so many steps or more a larger share than this is worth a warning.
_FEW, _SHARE = 50, 0.1


class SkippedSteps:
    """The counts of the steps that were skipped, as far as they were read from the device.

    Parameters
    ----------
    patience
        The number of skipped steps in a row that ends a run.

    Attributes
    ----------
    total : int
        The skipped steps of the whole run.
    consecutive : int
        The skipped steps since the last good one.
    longest : int
        The longest row of skipped steps, also where good ones came after it.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.total = self.consecutive = self.longest = 0
        self._has_warned = False

    def count(self, flags: Iterable[float]) -> None:
        """Add the next steps, each as 1 if it was skipped and 0 if not."""
        for flag in flags:
            self.total += int(flag)
            self.consecutive = self.consecutive + 1 if flag else 0
            self.longest = max(self.longest, self.consecutive)

    @property
    def are_too_many(self) -> bool:
        """Whether so many steps in a row were skipped that the run is to end."""
        return self.longest >= self._patience

    def reset_patience(self) -> None:
        """Count anew how many steps in a row were skipped."""
        self.consecutive = self.longest = 0

    def warn_of_many(self, n_steps: int) -> None:
        """Log a warning, once, if a large share of all steps of the run so far was skipped."""
        if self._has_warned or n_steps < _FEW or self.total <= _SHARE * n_steps:
            return
        self._has_warned = True
        _log.warning(
            "%d of the %d steps so far had no finite gradient and were skipped: lower `learning_rate` or pass "
            "`precision='float32'` if this continues",
            self.total,
            n_steps,
        )
