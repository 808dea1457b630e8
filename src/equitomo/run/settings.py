"""Settings of reading, prediction and demonstration as plain values: importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


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
    permissive
        Read files without the MAP mark whenever their header agrees with their size, and Zarr stores that lack chunks.
    is_tomogram
        Accept a file that looks like a tilt series because it has one section for each tilt.
    nan
        What to do about voxels that are NaN or infinite: refuse the file, or replace them by its mean ("mean").
    """

    first: str
    second: str | None = None
    tilts: str | None = None
    tilt_axis: Literal["y", "x"] | None = None
    second_axis_tilts: str | None = None
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
class TomogramTable(TomogramFiles):
    """The files of one tomogram, or a table of many.

    With a table, the other fields are for all its tomograms: tilts and axes for those for which the table names none.

    Parameters
    ----------
    table
        Many tomograms in place of one: a file (.csv, .tsv, .star) with the columns first and second, and optionally
        tilts, tilt_axis, second_axis_tilts and mask; paths are relative to its folder. For a prediction the second
        halves may be missing, and results that exist are skipped.
    """

    first: str | None = None  # type: ignore[assignment]
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
REFINEMENT_SETTINGS = {"refine", "projections", "positive", "refine_iterations"}


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

    Raises
    ------
    ValueError
        If ``margin_tolerance`` is not positive, ``refine_iterations`` is negative, or settings of a refinement are
        given without ``refine``.
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

    def __post_init__(self) -> None:
        if self.refine_iterations < 0:
            raise ValueError(f"`refine_iterations` must not be negative, got {self.refine_iterations}")
        if self.refine == "none" and (self.positive or self.projections is not None):
            given = "positive" if self.projections is None else "projections"
            raise ValueError(f"`{given}` is a setting of a refinement: pass `refine='sirt'` too")
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
        Average over the mirror images that leave the wedge where it is; by default as the run was configured.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    passes: int | None = None
    average_first: bool | None = None
    test_time_mirrors: bool | None = None
