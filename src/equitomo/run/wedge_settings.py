"""Settings of the wedge test as plain values: importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from equitomo.run.places import Picture
from equitomo.run.settings import POSITION, TomogramFiles


@dataclass(frozen=True)
class TestedRun:
    """The run to test.

    Parameters
    ----------
    run
        The folder of a run.
    """

    # Pytest must not take it for a test.
    __test__ = False

    run: str = field(metadata=POSITION)


@dataclass(frozen=True)
class TestedFiles(TomogramFiles):
    """The files of the tomogram to test on; without any those that the run was trained on."""

    __test__ = False

    first: str | None = field(default=None, metadata=POSITION)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if (self.first is None) != (self.second is None):
            raise ValueError("the wedge test needs both halves: give FIRST and SECOND, or none for those of the run")


@dataclass(frozen=True)
class TestedPicture(Picture):
    """The picture, and what an earlier test left.

    Parameters
    ----------
    overwrite
        Replace the picture if it exists, and what an interrupted wedge test with other settings left.
    break_lock
        Take the trainings of a test from a process that seems to work on them and is certainly gone.
    """

    __test__ = False

    break_lock: bool = False


@dataclass(frozen=True)
class WedgeTestSettings:
    """How the wedge is widened, and how the network for it is trained.

    Parameters
    ----------
    keep
        The share of the tilt range that is kept in the training. The sectors of the outermost tilts are held out.
    folds
        The number of tests, each with a training of its own: 1 holds out both ends of the tilt range at once, 2 first
        the low and then the high end, and 3 all three.
    start
        The weights that the training starts from: "same" takes those that the run started from, of the seed or of the
        package, and "seed" those of the seed. "cryo" takes those that come with the package, and a folder those of
        another run or checkpoint. "run" takes those of the run, which have seen the noise of the held-out sector, so
        that the result may be too good.
    steps
        The steps of the training; by default as many as the run has done, or a tenth of them if ``start`` is neither
        "same" nor "seed".
    minutes
        Train for so many minutes in place of ``steps``.
    keep_trained
        Keep the trained networks in the folder wedge_test of the run, or tilt_test if tilts of a series are left out,
        after the test. A test that is interrupted keeps them until it is repeated and done.

    Raises
    ------
    ValueError
        If a value is out of range, or both ``steps`` and ``minutes`` are given.
    """

    keep: float = 0.8
    folds: Literal[1, 2, 3] = 1
    start: str = "same"
    steps: int | None = None
    minutes: float | None = None
    keep_trained: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"`keep` is a share of the tilt range, more than 0 and less than 1, got {self.keep}")
        if self.folds not in (1, 2, 3):
            raise ValueError(f"`folds` is 1, 2 or 3, got {self.folds}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}")
        if self.steps is not None and self.minutes is not None:
            raise ValueError("`steps` and `minutes` both say how long to train: give one of them")


@dataclass(frozen=True)
class WedgeChoiceSettings(WedgeTestSettings):
    """How the wedge is widened, how the network for it is trained, and what is chosen by the test.

    Parameters
    ----------
    choose
        Choose between settings in place of testing one: "passes" of the network (1 or 2), "mirrors" (none, two or all
        mirror images), "share" of the weights of the start, or "checkpoints" of the run; all of them take one training.
        "steps" compares a training with others of half and a quarter of its steps. The present setting is kept unless
        another one is clearly better.

    Raises
    ------
    ValueError
        If a value is out of range, or the length or the start of the training does not fit the choice.
    """

    choose: Literal["passes", "mirrors", "share", "checkpoints", "steps"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = ("passes", "mirrors", "share", "checkpoints", "steps")
        if self.choose not in (None, *choices):
            raise ValueError(f"`choose` is one of {', '.join(choices)}, got {self.choose!r}")
        if self.choose == "steps" and self.minutes is not None:
            raise ValueError("`choose='steps'` compares numbers of steps: give `steps` in place of `minutes`")
        if self.choose == "share" and self.start in ("seed", "run"):
            raise ValueError(
                f"`choose='share'` is about the weights that the run started from: leave out `start={self.start!r}`"
            )
        if self.choose == "checkpoints" and (self.steps, self.minutes) != (None, None):
            raise ValueError("`choose='checkpoints'` trains as long as the run did: leave out `steps` and `minutes`")
        if self.choose == "checkpoints" and self.start not in ("same", "seed"):
            raise ValueError("`choose='checkpoints'` trains as the run did: leave out `start`")
