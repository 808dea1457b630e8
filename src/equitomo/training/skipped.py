"""Skipped steps: how many had no finite gradient, how many in a row, and when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_log = logging.getLogger(__name__)
# After the first 50 steps, a larger share of skipped steps than this is worth a warning.
_FEW, _SHARE = 50, 0.1


class SkippedSteps:
    """The counts of the steps that were skipped, as far as they were read from the device."""

    def __init__(self, patience: int) -> None:
        # So many skipped steps in a row end a run.
        self._patience = patience
        # All skipped steps of the run, those since the last good step, and the longest row of them so far.
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
        """Whether so many steps in a row were skipped that the run is to end, even if a good step followed."""
        return self.longest >= self._patience

    def reset_patience(self) -> None:
        """Start the count of skipped steps in a row anew."""
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
