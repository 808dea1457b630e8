"""The commands as typed dataclasses, put together from groups of options; nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from equitomo.run.places import Folder, Pickle, Plan, Result, SecondNetwork, Trained, TrainingFolder
from equitomo.run.settings import (
    ComparedFiles,
    HalvesSettings,
    Prediction,
    PredictionTable,
    ReconstructionSettings,
    ReportFiles,
    SeriesFiles,
    SpecimenSettings,
    TomogramFiles,
    TrainingFiles,
    TrainingTable,
)
from equitomo.run.tilt_settings import AnyTestSettings
from equitomo.run.wedge_settings import TestedFiles, TestedPicture, TestedRun
from equitomo.training.config import TrainingConfig


@dataclass(frozen=True)
class Reconstruct:
    """Train on two half tomograms, reconstruct them and draw pictures: the main job."""

    files: TrainingFiles
    folder: TrainingFolder
    result: ReconstructionSettings
    config: TrainingConfig


@dataclass(frozen=True)
class Check:
    """Look at half tomograms and the machine before the long work; status 1 if something must be mended."""

    files: TrainingTable
    plan: Plan
    config: TrainingConfig


@dataclass(frozen=True)
class Demo:
    """Simulate a specimen and its half tomograms, then reconstruct them: less than three minutes on two CPU cores."""

    specimen: SpecimenSettings
    folder: TrainingFolder
    result: ReconstructionSettings
    config: TrainingConfig


@dataclass(frozen=True)
class Train:
    """Train a network on two half tomograms, or on those of many specimens."""

    files: TrainingTable
    folder: TrainingFolder
    config: TrainingConfig


@dataclass(frozen=True)
class Predict:
    """Reconstruct a tomogram, or those of a table, with a trained network."""

    files: PredictionTable
    result: Trained
    prediction: Prediction


@dataclass(frozen=True)
class Preview:
    """Reconstruct a tomogram in seconds, without training, by a network that learned from simulated specimens."""

    files: TomogramFiles
    result: Result
    prediction: ReconstructionSettings


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint that torch.save wrote (a pickle: only tensors are read from it, and no code is run)."""

    pickle: Pickle


@dataclass(frozen=True)
class Halves:
    """Make two half tomograms of a tilt series, or of all that an alignment program wrote; those done are skipped."""

    files: SeriesFiles
    folder: Folder
    settings: HalvesSettings


@dataclass(frozen=True)
class Fsc:
    """Fourier shell correlation of two volumes, or of the results of two networks that were trained apart."""

    files: ComparedFiles
    picture: SecondNetwork


@dataclass(frozen=True)
class WedgeTest:
    """Estimate what the filled wedge is worth, by emptying a sector that was measured and filling it anew."""

    run: TestedRun
    files: TestedFiles
    settings: AnyTestSettings
    picture: TestedPicture


@dataclass(frozen=True)
class Report:
    """Show all that is known about a run, or about a volume that any program made, in one HTML file."""

    files: ReportFiles


def name_of(command: type[object]) -> str:
    """Return the name of a command on the command line: ``wedge-test`` for ``WedgeTest``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", command.__name__).lower()


# The commands that train, and those that look at the tomograms to train on.
Training = Train | Reconstruct | Demo
Looking = Train | Reconstruct | Check
Command = Training | Looking | Predict | Preview | Convert | Fsc | Halves | WedgeTest | Report
COMMANDS: dict[str, type[Command]] = {
    name_of(command): command
    for command in (Reconstruct, Halves, Check, Demo, Train, Predict, Preview, WedgeTest, Report, Convert, Fsc)
}
# The options that people use; all others stand in sections of their own.
COMMON = {"table", "tilts", "tilt_axis", "mask", "run", "out", "steps", "minutes", "method", "init", "resume"}
COMMON |= {"overwrite", "device", "picture", "axes", "size", "alignment", "aretomo", "warp", "relion", "thickness"}
COMMON |= {"bin", "split", "ctf", "keep", "folds", "start", "choose", "independent", "series", "every"}
