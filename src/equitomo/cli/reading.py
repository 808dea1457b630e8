"""From what the command line names to volumes, tilts and pairs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equitomo.cli.options import Geometry, Halves, HalvesOrTable, Reading, TrainingGeometry, TrainingInput
from equitomo.datasets import (
    IntensityScale,
    StoredTomogramPair,
    TomogramPair,
    judge_halves,
    require_two_halves,
    warn_of_outliers,
)
from equitomo.geometry import TiltAxis, TiltGeometry
from equitomo.io import TableRow, Volume, read_table, read_tilts, read_volume
from equitomo.training import TrainingConfig
from equitomo.wedge_estimate import WedgeEstimate, WedgeVerdict, estimate_wedge, judge_geometry

Options = dict[type, Any]


@dataclass(frozen=True)
class Declared:
    """One tomogram as the command line or a line of a table names it, its mask a file, ``"auto"`` or ``None``."""

    first: str | Path
    second: str | Path
    tilts: str
    tilt_axis: TiltAxis
    mask: str | None


@dataclass(frozen=True)
class PairInput:
    """Two halves, checked, with the files they and what belongs to them came from."""

    pair: TomogramPair
    files: dict[str, Volume | Path]

    @property
    def like(self) -> Volume:
        """The file whose header the output takes over."""
        first = self.files["first"]
        assert isinstance(first, Volume)
        return first


def read_pair(options: Options) -> PairInput:
    """Two half tomograms with their tilts and mask, in memory."""
    declared = declared_pair(options, options[TrainingInput].mask)
    stored, files = _stored_pair(declared, options, f"{declared.first} and {declared.second}")
    return PairInput(stored.load(), files)


def declared_pair(options: Options, mask: str | None) -> Declared:
    """The tomogram that the command line names itself."""
    halves = options.get(Halves) or options[HalvesOrTable]
    given = options.get(Geometry) or options[TrainingGeometry]
    if given.tilts is None:
        raise ValueError("--tilts is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
    return Declared(halves.first, halves.second, given.tilts, given.tilt_axis, mask)


def declared_rows(options: Options, mask: str | None) -> list[TableRow]:
    """The lines of the table."""
    if mask not in (None, "auto"):
        raise ValueError(f"--mask {mask} cannot fit all tomograms of a table: name their masks in its column mask")
    return read_table(options[HalvesOrTable].table)


def declared_in(row: TableRow, options: Options, mask: str | None) -> Declared:
    """The tomogram of a line, with what the command line says for all where the line does not."""
    given: TrainingGeometry = options[TrainingGeometry]
    if (tilts := row.tilts or given.tilts) is None:
        raise ValueError("no tilts: name them in the column tilts, or with --tilts for all")
    assert row.second is not None  # read_table refuses it
    return Declared(row.first, row.second, tilts, row.tilt_axis or given.tilt_axis, row.mask or mask)


def read_table_of_pairs(options: Options) -> tuple[list[StoredTomogramPair], dict[str, Volume | Path]]:
    """The tomograms of a table, of which no more than the headers are read, and all files that belong to them."""
    table, mask = options[HalvesOrTable].table, options[TrainingInput].mask
    pairs, files = [], dict[str, Volume | Path](table=Path(table))
    for row in declared_rows(options, mask):
        name = f"{row.first} and {row.second} (line {row.line} of {table})"
        try:
            pair, own = _stored_pair(declared_in(row, options, mask), options, name)
        except (ValueError, OSError) as error:
            raise ValueError(f"{table}: line {row.line}: {error}") from error
        pairs.append(pair)
        files |= {f"line {row.line}: {role}": file for role, file in own.items()}
    return pairs, files


def _stored_pair(
    declared: Declared, options: Options, name: str
) -> tuple[StoredTomogramPair, dict[str, Volume | Path]]:
    """A pair that is still in its files, and these files by the role they have."""
    reading: Reading = options[Reading]
    halves, mask = {"first": declared.first, "second": declared.second}, declared.mask
    volumes = {role: read_volume(path, permissive=reading.permissive) for role, path in halves.items()}
    if mask is not None and mask != "auto":
        volumes["mask"] = read_volume(mask, permissive=reading.permissive)
    pair = StoredTomogramPair(
        volumes["first"],
        volumes["second"],
        read_geometry(declared.tilts, declared.tilt_axis),
        mask="auto" if mask == "auto" else volumes.get("mask"),
        normalization=options[TrainingConfig].normalization,
        nan=reading.nan,
        name=name,
    )
    warn_of_geometry(name, [volumes["first"], volumes["second"]], pair.geometry)
    files: dict[str, Volume | Path] = dict(volumes)
    if Path(declared.tilts).is_file():
        files["tilts"] = Path(declared.tilts)
    return pair, files


def read_halves(first: str | Path, second: str | Path, reading: Reading) -> tuple[Volume, Volume]:
    """Two volumes that can be halves of one tomogram."""
    volumes = read_one(first, reading), read_one(second, reading)
    require_two_halves(*volumes)
    return volumes


def read_one(path: str | Path, reading: Reading) -> Volume:
    """A volume, with the file's mean where a voxel is no number if that was asked for."""
    volume = read_volume(path, permissive=reading.permissive)
    if reading.nan == "refuse":
        return volume
    data = volume.as_float32()
    finite = np.isfinite(data)
    if not finite.any() or finite.all():
        return volume
    warnings.warn(f"{path}: {np.sum(~finite)} voxels that are NaN or infinite now hold the file's mean", stacklevel=2)
    return replace(volume, voxels=np.where(finite, data, data[finite].mean(dtype=np.float64).astype(np.float32)))


def read_geometry(tilts: str, tilt_axis: TiltAxis) -> TiltGeometry:
    """From ``LOW,HIGH`` or a file."""
    if re.fullmatch(r"[-+\d.,\s]+", tilts) and not Path(tilts).exists():
        try:
            low, high = map(float, tilts.split(","))
        except ValueError:
            raise ValueError(f"--tilts is a file or LOW,HIGH in degrees such as -60,60, got {tilts!r}") from None
        return TiltGeometry.from_range(low, high, tilt_axis)
    return TiltGeometry(read_tilts(tilts), tilt_axis)


def warn_of_halves(name: str, volumes: Sequence[Volume], scale: IntensityScale) -> None:
    """Say what is odd about one or two volumes that are used all the same.

    Raises
    ------
    ValueError
        If two are no independent halves.
    """
    data = [volume.data for volume in volumes]
    for complaint in judge_halves(data[0], data[1], name) if len(data) == 2 else []:
        warnings.warn(f"{name}: {complaint}", stacklevel=3)
    warn_of_outliers(data, scale, name)


def warn_of_geometry(name: str, volumes: Sequence[Volume], geometry: TiltGeometry) -> None:
    """Say what makes the declared wedge another one than the data's: nothing later would show it."""
    verdict = judge_each([volume.data for volume in volumes], geometry).verdict
    notes = [verdict.message if verdict.is_wrong else "", voxels_not_cubic(volumes[0].voxel_size)]
    if verdict.kind == "unclear":
        notes.append(thinnest_not_z(volumes[0].shape))
    for note in filter(None, notes):
        warnings.warn(f"{name}: {note}", stacklevel=4)


@dataclass(frozen=True)
class Judged:
    """The wedge of a tomogram held against its data, and which half says so."""

    verdict: WedgeVerdict
    estimate: WedgeEstimate


def judge_each(volumes: Sequence[Any], geometry: TiltGeometry) -> Judged:
    """Hold a geometry against the spectrum of each half; what the first says, unless the wedge of the other is wrong.

    Of two that are turned or mirrored against each other the sum would have another wedge.
    """
    judged = [Judged(judge_geometry(estimate, geometry), estimate) for estimate in map(estimate_wedge, volumes)]
    first, *others = judged
    for other in others:
        if other.verdict.is_wrong and not first.verdict.is_wrong:
            return replace(
                other, verdict=replace(other.verdict, message=f"of the second half: {other.verdict.message}")
            )
    return first


def voxels_not_cubic(voxel_size: Sequence[float]) -> str:
    """What is wrong with voxels of several lengths, empty if they have one."""
    if min(voxel_size) <= 0 or max(voxel_size) <= 1.01 * min(voxel_size):
        return ""
    return (
        f"the voxels are no cubes, {tuple(round(size, 3) for size in voxel_size)} Å (z, y, x), but the tilts are taken "
        "as angles between voxels: resample the tomogram to cubes"
    )


def thinnest_not_z(shape: Sequence[int]) -> str:
    """What is odd about a volume that is thinnest along another axis than the beam, empty if it is not."""
    thinnest = min(range(3), key=lambda axis: shape[axis])
    if shape[thinnest] > 0.6 * shape[0]:
        return ""
    return (
        f"the volume is thinnest along {'zyx'[thinnest]}, {tuple(shape)} voxels (z, y, x), but the beam must be along "
        "z: is the file stored with other axes? (IMOD: clip rotx IN OUT)"
    )
