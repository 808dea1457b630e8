"""From what the command line names to volumes, tilts and pairs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equitomo.cli.options import Geometry, Halves, HalvesOrTable, Reading, TrainingGeometry, TrainingInput
from equitomo.datasets import TomogramPair, require_one_grid
from equitomo.diagnosis import diagnose
from equitomo.geometry import TiltAxis
from equitomo.io import TableRow, Volume, read_table, read_volume
from equitomo.training import TrainingConfig

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
    pair = _read(declared, options, f"{declared.first} and {declared.second}")
    _ = pair.volumes, pair.mask
    return PairInput(pair, pair.files)


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


def read_table_of_pairs(options: Options) -> tuple[list[TomogramPair], dict[str, Volume | Path]]:
    """The tomograms of a table, of which no more than the headers are read, and all files that belong to them."""
    table, mask = options[HalvesOrTable].table, options[TrainingInput].mask
    pairs, files = [], dict[str, Volume | Path](table=Path(table))
    for row in declared_rows(options, mask):
        name = f"{row.first} and {row.second} (line {row.line} of {table})"
        try:
            pair = _read(declared_in(row, options, mask), options, name)
            pair.release()
        except (ValueError, OSError) as error:
            raise ValueError(f"{table}: line {row.line}: {error}") from error
        pairs.append(pair)
        files |= {f"line {row.line}: {role}": file for role, file in pair.files.items()}
    return pairs, files


def _read(declared: Declared, options: Options, name: str) -> TomogramPair:
    """Read a pair that stays in its files."""
    reading: Reading = options[Reading]
    pair = TomogramPair.read(
        declared.first,
        declared.second,
        tilts=declared.tilts,
        tilt_axis=declared.tilt_axis,
        mask=declared.mask,
        normalization=options[TrainingConfig].normalization,
        nan=reading.nan,
        permissive=reading.permissive,
        lazy=True,
        name=name,
    )
    warn_of_pair(pair)
    return pair


def warn_of_pair(pair: TomogramPair) -> None:
    """Warn of what diagnose() found in a pair that can be used.

    Raises
    ------
    ValueError
        If it cannot be used.
    """
    _ = pair.scale
    for finding in diagnose(pair):
        if finding.severity != "ok" and not (finding.severity == "note" and finding.subject == "wedge"):
            warnings.warn(f"{pair.name}: {finding.text}", stacklevel=4)


def read_halves(first: str | Path, second: str | Path, reading: Reading) -> tuple[Volume, Volume]:
    """Two volumes that can be halves of one tomogram."""
    volumes = read_one(first, reading), read_one(second, reading)
    require_one_grid(*volumes)
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
