"""The options of every command, as typed dataclasses; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Halves:
    """The two half tomograms.

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
class HalvesOrTable:
    """The half tomograms.

    Parameters
    ----------
    first
        One half tomogram, an MRC file or an OME-Zarr store.
    second
        The other half: the same specimen from the other tilts, frames or doses.
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) with the columns first, second and, if wanted, tilts,
        tilt_axis and mask; paths are relative to its folder.
    """

    first: str | None = None
    second: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        if self.table is not None and self.first is not None:
            raise ValueError("give two half tomograms or a --table of many, not both")
        if self.table is None and (self.first is None or self.second is None):
            raise ValueError("give the two half tomograms FIRST and SECOND, or a --table of many")


@dataclass(frozen=True)
class OneOrMany:
    """What to reconstruct.

    Parameters
    ----------
    first
        A tomogram, an MRC file or an OME-Zarr store.
    second
        The other half, if there are two; the reconstructions are averaged.
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) as for training, which need not have second halves;
        what is done already is skipped.
    part
        K/N, as 3/10: only every N-th line of the table, from the K-th on; for N processes that share a table.
    """

    first: str | None = None
    second: str | None = None
    table: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if (self.table is None) == (self.first is None):
            raise ValueError("give a tomogram FIRST, if there are halves with its SECOND, or a --table of many")
        if self.part is None:
            return
        if self.table is None:
            raise ValueError("--part is a part of a table: give a --table")
        number, slash, count = self.part.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(f"--part is K/N with 1 <= K <= N, as 3/10, got {self.part!r}")


@dataclass(frozen=True)
class Reading:
    """How volumes are read.

    Parameters
    ----------
    permissive
        Read files without the MAP mark whenever their header agrees with their size, and Zarr stores that lack chunks.
    nan
        What to do about voxels that are NaN or infinite: refuse the file, or put its mean there ("mean").
    """

    permissive: bool = False
    nan: Literal["refuse", "mean"] = "refuse"


@dataclass(frozen=True)
class Geometry:
    """How the specimen was tilted.

    Parameters
    ----------
    tilts
        The tilts in degrees: a file (.tlt, .rawtlt, .txt, .xf, .mdoc, .aln, .star), or LOW,HIGH such as -60,60.
    tilt_axis
        The axis of the volume that the specimen was tilted about; the beam is along z.
    """

    tilts: str
    tilt_axis: Literal["y", "x"] = "y"


@dataclass(frozen=True)
class TrainingGeometry:
    """How the specimens were tilted.

    Parameters
    ----------
    tilts
        The tilts in degrees: a file (.tlt, .rawtlt, .txt, .xf, .mdoc, .aln, .star), or LOW,HIGH such as -60,60; with a
        table those of the tomograms for which it names none.
    tilt_axis
        The axis of the volume that the specimen was tilted about, unless a table says so; the beam is along z.
    """

    tilts: str | None = None
    tilt_axis: Literal["y", "x"] = "y"


@dataclass(frozen=True)
class RunGeometry:
    """How the specimen was tilted, where it differs from the run.

    Parameters
    ----------
    tilts
        The tilts in degrees, a file or LOW,HIGH; those of the run if not given.
    tilt_axis
        The axis of the volume that the specimen was tilted about; that of the run if not given.
    """

    tilts: str | None = None
    tilt_axis: Literal["y", "x"] | None = None


@dataclass(frozen=True)
class RunFolder:
    """The run.

    Parameters
    ----------
    out
        The folder of the run.
    resume
        Go on with a run that was stopped.
    overwrite
        Replace what an earlier run left in the folder.
    break_lock
        Take a folder that a process seems to use which is gone for certain.
    """

    out: str
    resume: bool = False
    overwrite: bool = False
    break_lock: bool = False


@dataclass(frozen=True)
class TrainingInput:
    """What else training may be given.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, or "auto" to find it; cubes elsewhere are not used. With a table
        "auto" is for the tomograms for which it names none.
    init
        A run or a checkpoint to start from; `equitomo convert` makes one of a checkpoint of the reference program.
    """

    mask: str | None = None
    init: str | None = None


@dataclass(frozen=True)
class Prediction:
    """How the trained network is applied.

    Parameters
    ----------
    wedge
        Where a second pass finds the wedge emptied: inside small tiles of its own, and only the wedge of the result
        is the second pass's ("local"); in the whole volume ("global"); inside the tiles of both passes ("tile").
    local_tile
        Voxels per side of the small tiles of "local"; 0 for two strides of the network, at least 16.
    tile
        Voxels per side of a tile; 0 for as many as the memory of the device holds comfortably, from 112 to 240.
    tile_margin
        Voxels of a tile that are computed and thrown away at every face; "auto" measures for each tomogram how many
        the network needs.
    margin_tolerance
        The relative error that "auto" allows in the network's values.
    dtype
        The numbers in the output file.
    """

    wedge: Literal["local", "global", "tile"] = "local"
    local_tile: int = 0
    tile: int = 0
    tile_margin: int | Literal["auto"] = 24
    margin_tolerance: float = 0.01
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if not self.margin_tolerance > 0:
            raise ValueError(f"margin_tolerance must be positive, got {self.margin_tolerance}")


@dataclass(frozen=True)
class PredictFiles:
    """Where from and where to.

    Parameters
    ----------
    run
        The folder of a run, or one of its checkpoints.
    out
        The file to write; a name that ends in .zarr makes an OME-Zarr store. With a table the folder, in which files
        are named after the first halves.
    overwrite
        Replace the file if it is there; with a table, if it was made from something else.
    device
        "auto", a torch device as "cpu" or "cuda:1", or several as "cuda:0,cuda:1", which share the tiles of one
        tomogram or the tomograms of a table.
    precision
        Number format of the network.
    passes
        Passes of the network, with the wedge emptied in between; as the run was configured if not given.
    average_first
        Average the halves before the network in place of after it; as the run was configured if not given.
    test_time_mirrors
        Average over mirror images that leave the wedge where it is; as the run was configured if not given.
    """

    run: str
    out: str
    overwrite: bool = False
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    passes: int | None = None
    average_first: bool | None = None
    test_time_mirrors: bool | None = None


@dataclass(frozen=True)
class Pickle:
    """What to convert.

    Parameters
    ----------
    file
        A checkpoint written by torch.save: of the reference program, or of this network; also one of
        DistributedDataParallel or torch.compile.
    """

    file: str


@dataclass(frozen=True)
class Converted:
    """What it becomes.

    Parameters
    ----------
    out
        The checkpoint to write, a folder that --init and predict --run take.
    axes
        The order of the axes of the volumes that the network was trained on: "yxz" as in the reference program, or
        "zyx" as in this package.
    overwrite
        Replace a checkpoint that is there.
    """

    out: str
    axes: Literal["yxz", "zyx"] = "yxz"
    overwrite: bool = False


@dataclass(frozen=True)
class CheckPlan:
    """What the check also looks at.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, or "auto" to find it. With a table "auto" is for the tomograms
        for which it names none.
    out
        The folder of the run to come: is there room on its disk?
    picture
        A PNG file to draw the power over the tilt into, with the declared and the found range; not with a table.
    overwrite
        Replace the picture if it is there.
    """

    mask: str | None = None
    out: str = "."
    picture: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.lower().endswith(".png"):
            raise ValueError(f"picture must be the name of a .png file, got {self.picture}")


@dataclass(frozen=True)
class Correlation:
    """How volumes are compared.

    Parameters
    ----------
    tilts
        The tilts in degrees, a file or LOW,HIGH: also compare the measured part and the wedge.
    tilt_axis
        The axis of the volume that the specimen was tilted about.
    picture
        A PNG file to draw the curves into.
    overwrite
        Replace the picture if it is there.
    """

    tilts: str | None = None
    tilt_axis: Literal["y", "x"] = "y"
    picture: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.lower().endswith(".png"):
            raise ValueError(f"picture must be the name of a .png file, got {self.picture}")


@dataclass(frozen=True)
class Demo:
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
            raise ValueError(f"snr must be positive, got {self.snr}")
