"""Settings of the wedge test with whole tilts left out as plain values: importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equitomo.run.wedge_settings import WedgeChoiceSettings, WedgeTestSettings

# Stands for the series from which the halves of the run were made.
RECORDED = "auto"


@dataclass(frozen=True)
class TiltTestSettings(WedgeTestSettings):
    """Leaving whole tilts out of the series, in place of a sector of the halves.

    Parameters
    ----------
    series
        A folder that ``equitomo halves`` made, or one of its half tomograms: the tilts in the ends of the range are
        left out of their series, halves are made of the others, and what a network makes of these is compared with the
        projections that were left out. "auto" takes the folder of the halves that the run was trained on.
    every
        Leave out every so many tilts inside the range, in place of those at its ends; for comparison, because these
        are hardly missing.
    surroundings
        What lies beside the tomogram across the tilt axis: nothing ("empty"), so that all pixels of the projections
        count; or more of the specimen ("filled"), so that only those count whose rays leave the tomogram through its
        top and bottom. "auto" looks whether the images end in nothing.

    Raises
    ------
    ValueError
        As the class above; or if ``every`` is less than 2 or comes with several ``folds``, or something is said about a
        series, and none is given.
    """

    series: str | None = None
    every: int | None = None
    surroundings: Literal["auto", "empty", "filled"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.series is None and (self.every is not None or self.surroundings != "auto"):
            given = "surroundings" if self.every is None else "every"
            raise ValueError(f"`{given}` is about tilts of a series: pass `series='{RECORDED}'` too, or a folder")
        if self.every is not None and self.every < 2:
            raise ValueError(f"`every` must be at least 2, got {self.every}")
        if self.every is not None and self.folds != 1:
            raise ValueError("`folds` are about the ends of the tilt range, and `every` about its inside: pass one")
        if self.surroundings not in ("auto", "empty", "filled"):
            raise ValueError(f"`surroundings` is 'auto', 'empty' or 'filled', got {self.surroundings!r}")


@dataclass(frozen=True)
class AnyTestSettings(TiltTestSettings, WedgeChoiceSettings):
    """The settings of a wedge test of any kind: of a sector, of a choice by it, or of tilts that are left out.

    Raises
    ------
    ValueError
        As the classes above; or if a choice is to be made by tilts of a series.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose is not None and self.series is not None:
            raise ValueError(
                "`choose` compares settings by a sector of the halves, and `series` leaves out whole tilts: "
                "pass one of them"
            )
