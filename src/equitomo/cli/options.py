"""The commands as typed dataclasses, put together from groups of options; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from equitomo.run.settings import (
    HalvesSettings,
    Prediction,
    PredictionTable,
    ReconstructionSettings,
    SeriesFiles,
    SpecimenSettings,
    TomogramFiles,
    TrainingFiles,
    TrainingTable,
)
from equitomo.training.config import TrainingConfig


@dataclass(frozen=True)
class Folder:
    """The folder of the run.

    Parameters
    ----------
    out
        The folder of the run.
    resume
        Continue a run that was stopped.
    overwrite
        Replace what an earlier run left in the folder.
    break_lock
        Take a folder that seems to be used by a process which is certainly gone.
    init
        What the training starts from: "cryo", the network that comes with the package; a run or a checkpoint; or
        "none" for scratch. Presets fast and tiny start from "cryo" by themselves if it fits their settings.
    """

    out: str
    resume: bool = False
    overwrite: bool = False
    break_lock: bool = False
    init: str | None = None


@dataclass(frozen=True)
class HalvesFolder:
    """The folder of the halves.

    Parameters
    ----------
    out
        The folder for the halves. Series that are done already are skipped.
    overwrite
        Replace halves that were made from other files or with other settings.
    break_lock
        Take a folder that seems to be used by a process which is certainly gone.
    """

    out: str
    overwrite: bool = False
    break_lock: bool = False


@dataclass(frozen=True)
class Picture:
    """The picture.

    Parameters
    ----------
    picture
        A PNG file to draw into.
    overwrite
        Replace the picture if it exists.
    """

    picture: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.lower().endswith(".png"):
            raise ValueError(f"`picture` must be the name of a .png file, got {self.picture}")


@dataclass(frozen=True)
class Plan(Picture):
    """The planned run.

    Parameters
    ----------
    out
        The folder of the planned run, for the room on its disk.
    """

    out: str = "."


@dataclass(frozen=True)
class Result:
    """The network and the result.

    Parameters
    ----------
    run
        The folder of a run, or one of its checkpoints.
    out
        The file to write; a name that ends in .zarr makes an OME-Zarr store. With a table, the folder, in which files
        are named after the first halves.
    overwrite
        Replace the file if it exists; with a table, if it was made from something else.
    device
        "auto", a torch device such as "cpu" or "cuda:1", or several such as "cuda:0,cuda:1", which share the tiles of
        one tomogram or the tomograms of a table.
    """

    run: str
    out: str
    overwrite: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class PreviewResult:
    """The result.

    Parameters
    ----------
    out
        The file to write; a name that ends in .zarr makes an OME-Zarr store.
    overwrite
        Replace the file if it exists.
    """

    out: str
    overwrite: bool = False


@dataclass(frozen=True)
class Pickle:
    """The checkpoint.

    Parameters
    ----------
    file
        A checkpoint written by torch.save: of the reference program, or of this network; also one of
        DistributedDataParallel or torch.compile.
    out
        The checkpoint to write, a folder that --init and predict --run take.
    axes
        The order of the axes of the volumes that the network was trained on: "yxz" for the reference program,
        "zyx" for this package.
    overwrite
        Replace an existing checkpoint.
    """

    file: str
    out: str
    axes: Literal["yxz", "zyx"] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Reconstruct:
    """Train on two half tomograms, reconstruct them and draw pictures: the main job."""

    files: TrainingFiles
    folder: Folder
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
    folder: Folder
    result: ReconstructionSettings
    config: TrainingConfig


@dataclass(frozen=True)
class Train:
    """Train a network on two half tomograms, or on those of many specimens."""

    files: TrainingTable
    folder: Folder
    config: TrainingConfig


@dataclass(frozen=True)
class Predict:
    """Reconstruct a tomogram, or those of a table, with a trained network."""

    files: PredictionTable
    result: Result
    prediction: Prediction


@dataclass(frozen=True)
class Preview:
    """Reconstruct a tomogram in seconds, without training, by a network that learned from simulated specimens."""

    files: TomogramFiles
    result: PreviewResult
    prediction: ReconstructionSettings


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint that torch.save wrote (a pickle: only tensors are read from it, and no code is run)."""

    pickle: Pickle


@dataclass(frozen=True)
class Halves:
    """Make two half tomograms of a tilt series, or of all that an alignment program wrote."""

    files: SeriesFiles
    folder: HalvesFolder
    settings: HalvesSettings


@dataclass(frozen=True)
class Fsc:
    """Fourier shell correlation of two volumes; with the tilts also of the measured part and of the wedge."""

    files: TomogramFiles
    picture: Picture


# The commands that train, and those that look at the tomograms to train on.
Training = Train | Reconstruct | Demo
Looking = Train | Reconstruct | Check
Command = Training | Looking | Predict | Preview | Convert | Fsc | Halves
COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (Reconstruct, Halves, Check, Demo, Train, Predict, Preview, Convert, Fsc)
}
POSITIONS = ("first", "second", "file")
# The options that people use; all others stand in sections of their own.
COMMON = {"table", "tilts", "tilt_axis", "mask", "run", "out", "steps", "minutes", "method", "init", "resume"}
COMMON |= {"overwrite", "device", "picture", "axes", "size", "alignment", "aretomo", "warp", "relion", "thickness"}
COMMON |= {"bin", "split", "ctf"}
