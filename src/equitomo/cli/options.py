"""The commands as typed dataclasses, put together from groups of options; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from equitomo.run.settings import Prediction, TileSettings
from equitomo.training.config import TrainingConfig


_GIVE_HALVES = "give the two half tomograms FIRST and SECOND, or a `table` of many"


@dataclass(frozen=True)
class Halves:
    """Two half tomograms.

    Parameters
    ----------
    first
        One half tomogram, an MRC file or an OME-Zarr store.
    second
        The other half: the same specimen from the other tilts, frames or doses.
    """

    first: str
    second: str


@dataclass(frozen=True)
class OneOrTwo:
    """Two half tomograms.

    Parameters
    ----------
    first
        One half tomogram, an MRC file or an OME-Zarr store.
    second
        The other half: the same specimen from the other tilts, frames or doses. Methods that learn from one volume do
        without.
    """

    first: str
    second: str | None = None


@dataclass(frozen=True)
class HalvesOrTable:
    """Two half tomograms, or those of many specimens.

    Parameters
    ----------
    first
        One half tomogram, an MRC file or an OME-Zarr store.
    second
        The other half: the same specimen from the other tilts, frames or doses. Methods that learn from one volume do
        without.
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) with the columns first and second, and optionally
        tilts, tilt_axis and mask; paths are relative to its folder.
    """

    first: str | None = None
    second: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        if self.table is not None and self.first is not None:
            raise ValueError("give two half tomograms or a `table` of many, not both")
        if self.table is None and self.first is None:
            raise ValueError(_GIVE_HALVES)


@dataclass(frozen=True)
class OneOrTable:
    """A tomogram, or many.

    Parameters
    ----------
    first
        A tomogram, an MRC file or an OME-Zarr store.
    second
        The other half, if there are two; the reconstructions are averaged.
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) as for training, which may lack second halves;
        tomograms that are finished already are skipped.
    part
        K/N, such as 3/10: only every N-th line of the table, from the K-th on; for N processes that share a table.
    """

    first: str | None = None
    second: str | None = None
    table: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if (self.table is None) == (self.first is None):
            raise ValueError("give a tomogram FIRST, with its SECOND if there are halves, or a `table` of many")
        if self.part is not None and self.table is None:
            raise ValueError("`part` is a part of a table: give a `table`")
        number, slash, count = (self.part or "1/1").partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(f"`part` is K/N with 1 <= K <= N, such as 3/10, got {self.part!r}")


@dataclass(frozen=True)
class Reading:
    """Reading volumes.

    Parameters
    ----------
    permissive
        Read files without the MAP mark whenever their header agrees with their size, and Zarr stores that lack chunks.
    nan
        What to do about voxels that are NaN or infinite: refuse the file, or replace them by its mean ("mean").
    """

    permissive: bool = False
    nan: Literal["refuse", "mean"] = "refuse"


@dataclass(frozen=True)
class Tilts:
    """The tilts.

    Parameters
    ----------
    tilts
        The tilts in degrees: a file (.tlt, .rawtlt, .txt, .xf, .mdoc, .aln, .star), or LOW,HIGH such as -60,60. With a
        table, those of the tomograms for which it names none.
    tilt_axis
        The axis of the volume about which the specimen was tilted, unless a table names it; the beam is along z.
    """

    tilts: str | None = None
    tilt_axis: Literal["y", "x"] = "y"


@dataclass(frozen=True)
class OtherTilts:
    """The tilts, where they differ from those of the run.

    Parameters
    ----------
    tilts
        The tilts in degrees, a file or LOW,HIGH; by default those of the run.
    tilt_axis
        The axis of the volume about which the specimen was tilted; by default that of the run.
    """

    tilts: str | None = None
    tilt_axis: Literal["y", "x"] | None = None


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
    """

    out: str
    resume: bool = False
    overwrite: bool = False
    break_lock: bool = False


@dataclass(frozen=True)
class Start:
    """Where the training looks, and what it starts from.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, or "auto" to find it; cubes elsewhere are not used. With a
        table, "auto" is for the tomograms for which it names none.
    init
        A run or a checkpoint whose network the training starts from; `equitomo convert` makes one of a checkpoint of
        the reference program.
    """

    mask: str | None = None
    init: str | None = None


@dataclass(frozen=True)
class Output:
    """The volume that is written.

    Parameters
    ----------
    dtype
        The type of its voxels.
    """

    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class Picture:
    """A picture.

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
class Plan:
    """What is planned.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, or "auto" to find it. With a table, "auto" is for the tomograms
        for which it names none.
    out
        The folder of the planned run, for the room on its disk.
    """

    mask: str | None = None
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
class Pickle:
    """A checkpoint and what becomes of it.

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
class Specimen:
    """The simulated specimen.

    Parameters
    ----------
    size
        Voxels per side of the volume.
    snr
        Signal-to-noise ratio of a projection at full dose.
    """

    size: int = 64
    snr: float = 0.5

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise ValueError(f"`snr` must be positive, got {self.snr}")


def needs_halves(config: TrainingConfig) -> bool:
    """Return whether the method of a configuration learns from two halves."""
    return config.method != "equivariant_imaging"


def _require_halves(given: OneOrTwo | HalvesOrTable, config: TrainingConfig) -> None:
    if given.first is not None and given.second is None and needs_halves(config):
        raise ValueError(f"{_GIVE_HALVES}: method {config.method} learns from both")


@dataclass(frozen=True)
class Reconstruct:
    """Train on two half tomograms, reconstruct them and draw pictures: the main job."""

    preset: ClassVar[str] = "paper"
    halves: OneOrTwo
    reading: Reading
    tilts: Tilts
    folder: Folder
    start: Start
    output: Output
    tiles: TileSettings
    config: TrainingConfig

    def __post_init__(self) -> None:
        _require_halves(self.halves, self.config)


@dataclass(frozen=True)
class Check:
    """Look at half tomograms and the machine before the long work; status 1 if something must be mended."""

    preset: ClassVar[str] = "paper"
    halves: HalvesOrTable
    reading: Reading
    tilts: Tilts
    plan: Plan
    picture: Picture
    config: TrainingConfig

    def __post_init__(self) -> None:
        _require_halves(self.halves, self.config)


@dataclass(frozen=True)
class Demo:
    """Simulate a specimen and its half tomograms, then reconstruct them; minutes on two CPU cores."""

    preset: ClassVar[str] = "tiny"
    specimen: Specimen
    folder: Folder
    output: Output
    tiles: TileSettings
    config: TrainingConfig


@dataclass(frozen=True)
class Train:
    """Train a network on two half tomograms, or on those of many specimens."""

    preset: ClassVar[str] = "paper"
    halves: HalvesOrTable
    reading: Reading
    tilts: Tilts
    folder: Folder
    start: Start
    config: TrainingConfig

    def __post_init__(self) -> None:
        _require_halves(self.halves, self.config)


@dataclass(frozen=True)
class Predict:
    """Reconstruct a tomogram, or those of a table, with a trained network."""

    tomogram: OneOrTable
    reading: Reading
    result: Result
    tilts: OtherTilts
    output: Output
    prediction: Prediction


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint that torch.save wrote (a pickle: only tensors are read from it, and no code is run)."""

    pickle: Pickle


@dataclass(frozen=True)
class Fsc:
    """Fourier shell correlation of two volumes; with the tilts also of the measured part and of the wedge."""

    halves: Halves
    reading: Reading
    tilts: Tilts
    picture: Picture


Command = Reconstruct | Check | Demo | Train | Predict | Convert | Fsc
COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command for command in (Reconstruct, Check, Demo, Train, Predict, Convert, Fsc)
}
POSITIONS = ("first", "second", "file")
# The options that people use; all others stand in sections of their own.
COMMON = {"table", "tilts", "tilt_axis", "mask", "run", "out", "preset", "steps", "method", "init", "resume"}
COMMON |= {"overwrite", "device", "picture", "axes", "size"}
