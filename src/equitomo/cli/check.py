"""``equitomo check``: the findings on tomograms and on the machine, as lines of status, subject and text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from equitomo import report
from equitomo.cli.wording import with_options
from equitomo.datasets import TomogramPair
from equitomo.diagnosis import Finding, diagnose, estimate_wedge
from equitomo.geometry import TiltGeometry
from equitomo.run import count_cubes
from equitomo.run.table import Tomogram
from equitomo.training import TrainingConfig

Found = TypeVar("Found")


class Listing:
    """Prints findings as they come, and counts those that must be mended.

    Parameters
    ----------
    names
        Names of the command's options.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._to_mend = names, 0
        self._line, self._is_clean = "", True

    def show(self, finding: Finding) -> None:
        """Print one finding; of a line of the user's table only what is not in order."""
        must_mend, subject, text = finding.severity in ("warning", "error"), finding.subject, finding.text
        self._to_mend += must_mend
        if self._line:
            if finding.severity == "ok":
                return
            self._is_clean, subject, text = False, self._line, f"{subject}: {text}"
        status = "MEND" if must_mend else finding.severity
        print(f"{status:<6}{subject:<10}{with_options(text, self._names)}", flush=True)

    @contextmanager
    def line(self, line: str, files: str) -> Iterator[None]:
        """Show findings as those of a line of the user's table, or that there are none with the names of its files."""
        self._line, self._is_clean = line, True
        yield
        self._line = ""
        if self._is_clean:
            self.show(Finding("ok", line, files))

    def attempt(self, subject: str, act: Callable[[], Found]) -> Found | None:
        """Return the result, with warnings as notes; or ``None``, with an error as a finding."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return act()
            except (ValueError, OSError) as error:
                self.show(Finding("error", subject, str(error)))
                return None
            finally:
                for warning in caught:
                    self.show(Finding("note", subject, str(warning.message)))

    def close(self) -> int:
        """Print how much must be mended; return the exit status."""
        print("\nNothing to mend." if not self._to_mend else f"\n{self._to_mend} to mend before a reconstruction.")
        return 1 if self._to_mend else 0


def look_at(
    listing: Listing, tomogram: Tomogram, reading: dict[str, Any], config: TrainingConfig, picture: Path | None = None
) -> TomogramPair | None:
    """Show the findings on one tomogram; return it if it can be used."""
    geometry = listing.attempt("tilts", tomogram.geometry)
    # Without tilts the files can be looked at all the same.
    tilts = geometry or TiltGeometry.from_range(-60, 60)
    pair = listing.attempt("files", lambda: tomogram.read(tilts, **reading | {"lazy": True}))
    if pair is None:
        return None
    for finding in listing.attempt("files", lambda: diagnose(pair)) or ():
        if geometry is not None or finding.subject not in ("tilts", "wedge", "axes"):
            listing.show(finding)
    if geometry is None or not _is_usable(pair):
        return None
    if picture is not None:
        estimate = estimate_wedge(pair.statistics[0].middle)
        if estimate.tilt_range is not None:
            listing.show(Finding("ok", "wedge", f"drawn in {report.draw_wedge(picture, estimate, geometry)}"))
    listing.show(count_cubes(pair, config))
    return pair


def _is_usable(pair: TomogramPair) -> bool:
    """Return whether a pair can be trained on; if not, it has been said why."""
    try:
        _ = pair.scale, pair.mask
    except (ValueError, OSError):
        return False
    return True
