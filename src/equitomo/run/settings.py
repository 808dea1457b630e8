"""Settings of reading, prediction and demonstration as plain values: importing this module does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

# Marks a field that the command line takes by its position and not as an option.
POSITION = {"position": True}


@dataclass(frozen=True)
class TomogramFiles:
    """The files of a tomogram, and how they are read.

    Parameters
    ----------
    first
        A half tomogram, an MRC file or an OME-Zarr store.
    second
        The other half: the same specimen from the other tilts, frames or doses. Methods that learn from one volume do
        without, and so does a prediction.
    tilts
        The tilts in degrees: a file (.tlt, .rawtlt, .txt, .xf, .mdoc, .aln, .star, or .mrc with tilts in its extended
        header), or LOW,HIGH such as -60,60. A table may name others for its tomograms; a prediction takes those of its
        run by default.
    tilt_axis
        The axis of the volume about which the specimen was tilted, while the beam is along z; by default that of the
        table or of the run, or y.
    second_axis_tilts
        The tilts of the second series of a dual-axis tomogram, about the other axis (x if the first is y), as for
        ``tilts``.
    second_tilts
        The tilts of the second half where they differ from those of the first, as in halves that were made of the even
        and the odd tilts.
    permissive
        Read files without the MAP mark whenever their header agrees with their size, and Zarr stores that lack chunks.
    is_tomogram
        Accept a file that looks like a tilt series because it has one section for each tilt.
    nan
        What to do about voxels that are NaN or infinite: refuse the file, or replace them by its mean ("mean").
    """

    first: str = field(metadata=POSITION)
    second: str | None = field(default=None, metadata=POSITION)
    tilts: str | None = None
    tilt_axis: Literal["y", "x"] | None = None
    second_axis_tilts: str | None = None
    second_tilts: str | None = None
    permissive: bool = False
    is_tomogram: bool = False
    nan: Literal["refuse", "mean"] = "refuse"


@dataclass(frozen=True)
class TrainingFiles(TomogramFiles):
    """The files of a tomogram to train on, and how they are read.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, or "auto" to find it; cubes elsewhere are not used. With a
        table, "auto" is for the tomograms for which it names none.
    """

    mask: str | None = None


@dataclass(frozen=True)
class ComparedFiles(TomogramFiles):
    """The files of two volumes to compare, and how they are read.

    Parameters
    ----------
    mask
        A file that is non-zero where the specimen is, best with soft edges, or "auto" to find it. The correlation is
        then that inside it, corrected for what the mask itself makes correlate.
    """

    mask: str | None = None


@dataclass(frozen=True)
class ReportFiles:
    """What is reported on, and the page that is written.

    Parameters
    ----------
    first
        The folder of a run; or a tomogram as it was measured, before any program filled its wedge.
    second
        The volume that any program made of this tomogram.
    tilts
        The tilts of the tomogram in degrees: a file, or LOW,HIGH such as -60,60. A run knows its own.
    tilt_axis
        The axis of the tomogram about which the specimen was tilted.
    second_axis_tilts
        The tilts of the second series of a dual-axis tomogram, about the other axis.
    permissive
        Read files without the MAP mark whenever their header agrees with their size, and Zarr stores that lack chunks.
    nan
        What to do about voxels that are NaN or infinite: refuse the file, or replace them by its mean ("mean").
    out
        The HTML file to write; by default report.html in the folder of the run, where it is always replaced.
    overwrite
        Replace the file if it exists.
    """

    first: str = field(metadata=POSITION)
    second: str | None = field(default=None, metadata=POSITION)
    tilts: str | None = None
    tilt_axis: Literal["y", "x"] = "y"
    second_axis_tilts: str | None = None
    permissive: bool = False
    nan: Literal["refuse", "mean"] = "refuse"
    out: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class TomogramTable(TomogramFiles):
    """The files of one tomogram, or a table of many.

    With a table, the other fields are for all its tomograms: tilts and axes for those for which the table names none.

    Parameters
    ----------
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) with the columns first and second, and optionally
        tilts, tilt_axis, second_axis_tilts, second_tilts and mask; paths are relative to its folder. For a prediction
        the second halves may be missing, the result ``out`` is a folder in which files are named after the first
        halves, and results that exist are skipped; ``overwrite`` replaces those that were made from something else.
    """

    first: str | None = field(default=None, metadata=POSITION)  # type: ignore[assignment]
    table: str | None = None

    def __post_init__(self) -> None:
        if (self.table is None) == (self.first is None):
            raise ValueError("give a tomogram as FIRST, with its other half as SECOND, or a `table` of many, not both")


@dataclass(frozen=True)
class TrainingTable(TomogramTable, TrainingFiles):
    """The files of a tomogram to train on, or a table of many.

    Parameters
    ----------
    table
        As for :class:`~equitomo.run.TomogramTable`; its column ``mask`` is read too.
    """


@dataclass(frozen=True)
class PredictionTable(TomogramTable):
    """The files of a tomogram to predict, or a table of many.

    Parameters
    ----------
    part
        K/N, such as 3/10: only every N-th line of the table, from the K-th on; for N processes that share a table.
    """

    part: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and self.table is None:
            raise ValueError("`part` is a part of a table: give a `table`")


@dataclass(frozen=True)
class SpecimenSettings:
    """The simulated specimen.

    Parameters
    ----------
    size
        Voxels per side of the volume.
    snr
        Signal-to-noise ratio of a projection at full dose.

    Raises
    ------
    ValueError
        If ``snr`` is not positive.
    """

    size: int = 64
    snr: float = 0.5

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise ValueError(f"`snr` must be positive, got {self.snr}")


# The settings of what follows a prediction and does not change it.
FINISHING_SETTINGS = {
    *("refine", "projections", "positive", "refine_iterations"),
    *("deconvolve", "defocus", "phase_flipped", "deconvolution_strength", "deconvolution_falloff"),
    *("voltage", "spherical_aberration", "amplitude_contrast"),
    *("split_result", "confidence", "confidence_samples"),
}


@dataclass(frozen=True)
class ReconstructionSettings:
    """How a tomogram is cut into tiles for the network, and how the result is written.

    Parameters
    ----------
    wedge
        Where the missing wedge is emptied before a second pass: inside small tiles, and only the wedge of the second
        result is kept ("local"); in the whole volume ("global"); inside the tiles of both passes ("tile").
    local_tile
        Voxels per side of the small tiles of "local"; 0 takes two strides of the network, and 16 voxels at least.
    tile
        Voxels per side of a tile; 0 takes what the memory of the device holds comfortably, from 112 to 240.
    tile_margin
        Voxels at every face of a tile that are computed and thrown away; "auto" measures for each tomogram how many
        the network needs.
    margin_tolerance
        The relative error in the network's values that "auto" allows.
    dtype
        The type of the voxels in the file.
    refine
        "sirt" also writes refined.mrc (or NAME_refined), in which iterations of SIRT have brought the result into
        agreement with what was measured.
    projections
        The aligned tilt series that the result is refined against, an MRC file whose images have the order of the
        tilts; by default the projections of the halves are used.
    positive
        Set values below zero to zero in the refined volume, for a specimen on a background of zero.
    refine_iterations
        The iterations of the refinement; more bring more noise back, and 0 only scales the result to the projections.
    deconvolve
        "isonet" or "warp" also writes deconvolved.mrc (or NAME_deconvolved), from which the contrast transfer function
        was removed in the convention of that program; for looking at the result.
    defocus
        The defocus at the tilt of zero for ``deconvolve``, in ångström, positive for underfocus.
    phase_flipped
        Whether the phases of the views were flipped before the tomograms were reconstructed.
    deconvolution_strength
        The exponent of the signal-to-noise ratio that ``deconvolve`` presumes, in the units of its convention.
    deconvolution_falloff
        How fast this ratio falls with the frequency.
    voltage
        In kilovolts.
    spherical_aberration
        In millimetres.
    amplitude_contrast
        Between 0 and 1.
    split_result
        Also write the measured part of the result (measured.mrc or NAME_measured), the part that was filled into the
        wedge (filled), the result with the input in its measured part (data_consistent), the mask of the measured
        Fourier coefficients (wedge_mask), and a table and a picture of spots that only the filled part shows
        (filled_spots).
    confidence
        Also write the standard deviation of each voxel (confidence.mrc or NAME_confidence), predicted by a network that
        learned it from simulations ("learned"), or estimated by reconstructing the turned result from new measurements
        with new noise ("bootstrap"), or without noise ("orbit"), or from the difference between the halves ("halves").
    confidence_samples
        How often the result is turned for "bootstrap" and "orbit"; each time takes one more prediction.

    Raises
    ------
    ValueError
        If ``margin_tolerance`` is not positive, ``refine_iterations`` is negative, ``confidence_samples`` is less than
        2, settings of a refinement are given
        without ``refine``, or ``deconvolve`` without ``defocus``.
    """

    wedge: Literal["local", "global", "tile"] = "local"
    local_tile: int = 0
    tile: int = 0
    tile_margin: int | Literal["auto"] = 24
    margin_tolerance: float = 0.01
    dtype: Literal["float32", "float16"] = "float32"
    refine: Literal["none", "sirt"] = "none"
    projections: str | None = None
    positive: bool = False
    refine_iterations: int = 5
    deconvolve: Literal["none", "isonet", "warp"] = "none"
    defocus: float = 0.0
    phase_flipped: bool = False
    deconvolution_strength: float = 1.0
    deconvolution_falloff: float = 1.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.07
    split_result: bool = False
    confidence: Literal["none", "learned", "bootstrap", "orbit", "halves"] = "none"
    confidence_samples: int = 8

    def __post_init__(self) -> None:
        if self.refine_iterations < 0:
            raise ValueError(f"`refine_iterations` must not be negative, got {self.refine_iterations}")
        if self.refine == "none" and (self.positive or self.projections is not None):
            given = "positive" if self.projections is None else "projections"
            raise ValueError(f"`{given}` is a setting of a refinement: pass `refine='sirt'` too")
        if (self.deconvolve != "none") != bool(self.defocus):
            raise ValueError("`deconvolve` and `defocus` belong together: pass both, the defocus in ångström")
        if self.confidence_samples < 2:
            raise ValueError(f"`confidence_samples` must be at least 2, got {self.confidence_samples}")
        if not self.margin_tolerance > 0:
            raise ValueError(f"`margin_tolerance` must be positive, got {self.margin_tolerance}")

    def changes(self) -> dict[str, Any]:
        """Return the settings that replace those of the run, by the names that its configuration has for them."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(ReconstructionSettings)}
        return {name: value for name in own if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Prediction(ReconstructionSettings):
    """How a trained network is applied to a tomogram, where that may differ from the settings of its run.

    Parameters
    ----------
    precision
        Number format of the network.
    passes
        Passes of the network, between which the wedge is emptied; by default as the run was configured.
    average_first
        Average the halves before the network and not after it; by default as the run was configured.
    test_time_mirrors
        Average over mirror images that leave the wedge where it is; by default as the run was configured.
    mirror_images
        How many of them: "two" or "all"; by default as the run was configured.
    start_share
        The share of the weights that the training started from in those that predict, from 0 to less than 1; by default
        as the training of the run has chosen.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    passes: int | None = None
    average_first: bool | None = None
    test_time_mirrors: bool | None = None
    mirror_images: Literal["two", "all"] | None = None
    start_share: float | None = None


@dataclass(frozen=True)
class SeriesFiles:
    """The files of a tilt series, or of many.

    Parameters
    ----------
    first
        A tilt series, a stack of images: MRC, .hspy, .emd, .tif or .dm3. Or that of one half of the frames or of the
        dose, with the other one as ``second``.
    second
        The other half of the frames or of the dose, at the same tilts.
    tilts
        A file with the tilt of each image, in the order of the images; by default those in the stack itself.
    alignment
        A file of the program that aligned the series, in place of ``tilts``: .aln of AreTomo, tilt.com, .tlt or .xf of
        IMOD, .xml or .tomostar of Warp, .star of RELION, .mdoc of SerialEM. What lies beside it is read too.
    aretomo
        A folder with the output of AreTomo, for all of its series.
    warp
        A folder with the .xml or .tomostar of Warp, for all of its series.
    relion
        A tomograms.star of RELION 5, for all of its series.
    permissive
        Read files without the MAP mark whenever their header agrees with their size.
    """

    first: str | None = field(default=None, metadata=POSITION)
    second: str | None = field(default=None, metadata=POSITION)
    tilts: str | None = None
    alignment: str | None = None
    aretomo: str | None = None
    warp: str | None = None
    relion: str | None = None
    permissive: bool = False

    def __post_init__(self) -> None:
        many = [name for name in ("aretomo", "warp", "relion") if getattr(self, name) is not None]
        if (self.first is not None) + len(many) != 1:
            raise ValueError("give a tilt series as FIRST, or the output of one program: `aretomo`, `warp` or `relion`")
        if many and (self.tilts or self.alignment):
            raise ValueError(f"`{many[0]}` has the tilts of all its series: leave out `tilts` and `alignment`")
        if self.tilts is not None and self.alignment is not None:
            raise ValueError("`tilts` and `alignment` both give the tilts of the images: pass one of them")


@dataclass(frozen=True)
class HalvesSettings:
    """How two half tomograms are made of a tilt series.

    Parameters
    ----------
    thickness
        Sections of the result. By default what the program's files say; of dark-field images, as many as
        they have pixels across the tilt axis.
    size
        Y,X such as 512,512: voxels of the result; by default those of the images. All pixels of the images are used.
    bin
        Pixels along each axis of the images that become one.
    tilt_axis
        The axis of the images along which the tilt axis lies: "y" along the rows' direction of growing index, "x" along
        the columns'. Files of an alignment program know it.
    tilt_axis_angle
        Degrees from the y axis to the tilt axis, counterclockwise with x to the right, by which the images are turned.
    tilt_axis_offset
        Pixels from the middle of the images to the tilt axis, before binning.
    pretilt
        Degrees to add to all tilts.
    exclude
        Images to leave out, counted from 0, such as 0,17,40-45; 1-40/2 is every second one from 1 to 40.
    order
        "sections": the n-th tilt is that of the n-th image. "acquisition": the tilts were sorted but not the images,
        whose order is found from their likeness.
    align
        "mass" moves the centre of mass of each view to where a rotation takes it, as suits single particles.
    split
        What the halves are made of: other scans of the same tilts ("scan"), every second tilt ("tilt"), or scans where
        at least half of the tilts have two ("auto").
    pairs
        2 makes two pairs of halves of each series, NAME_pair1 and NAME_pair2, for two networks that are trained apart:
        each has every second tilt, with the frames or scans of the same tilts in its halves if there are some.
    method
        Filtered backprojection or simultaneous iterations (SIRT).
    iterations
        Iterations of SIRT.
    positive
        Whether SIRT keeps values from being negative.
    intensities
        "views" gives all views one mean and deviation, as suits transmitted electrons; "background" only subtracts the
        background, as suits dark-field images; "auto" takes the second where a bright specimen lies on a dark
        background.
    dose_filter
        Weight frequencies by what the dose has left of them; the files must tell the dose.
    ctf
        "flip" flips phases by the defocus in the files, in strips along the tilt axis. Dark-field images have no such
        contrast.
    strict
        Refuse a series whose images contradict its tilt axis or order, in place of a warning.
    pixel_size
        Of the images in ångström, before binning; by default what the files say.
    memory
        GiB to work in; 0 takes half of what is free.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    thickness: int | None = None
    size: str | None = None
    bin: int = 1
    tilt_axis: Literal["y", "x"] | None = None
    tilt_axis_angle: float | None = None
    tilt_axis_offset: float = 0.0
    pretilt: float = 0.0
    exclude: str | None = None
    order: Literal["sections", "acquisition"] = "sections"
    align: Literal["none", "mass"] = "none"
    split: Literal["auto", "scan", "tilt"] = "auto"
    pairs: Literal[1, 2] = 1
    method: Literal["fbp", "sirt"] = "fbp"
    iterations: int = 50
    positive: bool = False
    intensities: Literal["auto", "views", "background", "none"] = "auto"
    dose_filter: bool = False
    ctf: Literal["none", "flip"] = "none"
    strict: bool = True
    pixel_size: float | None = None
    memory: float = 0.0

    def __post_init__(self) -> None:
        for name in ("thickness", "bin", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if self.pairs not in (1, 2):
            raise ValueError(f"`pairs` must be 1 or 2, got {self.pairs}")
        if not self.memory >= 0:
            raise ValueError(f"`memory` must not be negative, got {self.memory}")
        if self.positive and self.method != "sirt":
            raise ValueError("`positive=True` is for SIRT: pass `method='sirt'` too")
        _ = self.shape, self.excluded

    @property
    def shape(self) -> tuple[int, int] | None:
        """The voxels along y and x that ``size`` states."""
        if self.size is None:
            return None
        match = re.fullmatch(r"\s*(\d+)\s*[,x]\s*(\d+)\s*", self.size)
        if not match or 0 in (y_x := (int(match[1]), int(match[2]))):
            raise ValueError(f"`size` must be Y,X in voxels such as 512,512, got {self.size!r}")
        return y_x

    @property
    def excluded(self) -> tuple[int, ...]:
        """The images that ``exclude`` states."""
        found: set[int] = set()
        for word in filter(None, map(str.strip, (self.exclude or "").split(","))):
            match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6})(?:/([1-9]\d{0,5}))?)?", word)
            if not match:
                raise ValueError(
                    f"`exclude` must be numbers of images from 0, such as 0,17,40-45 or 1-40/2, got {self.exclude!r}"
                )
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)))
        return tuple(sorted(found))
