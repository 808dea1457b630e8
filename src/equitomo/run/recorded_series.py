"""The tilt series from which ``equitomo halves`` made two half tomograms, found by the record beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equitomo.datasets import TomogramPair
from equitomo.geometry import Geometry
from equitomo.io import find_series, read_volume
from equitomo.run.folder import MANIFEST
from equitomo.run.halves.preparing import Source, source_of
from equitomo.run.halves.recording import HalvesManifest
from equitomo.run.settings import HalvesSettings
from equitomo.run.table import ResultRecord

# Degrees within which tilts, and correlation above which volumes, are those of one tomogram. Halves of one specimen
# correlate whatever program made them; those of two do not.
_SAME_TILT, _SAME_RANGE = 0.2, 2.0
_SAME_SPECIMEN = 0.1
# Planes that are compared.
_PLANES = 16


@dataclass(frozen=True)
class RecordedSeries:
    """A tilt series and how halves were made of it.

    Parameters
    ----------
    folder
        The folder of the halves.
    source
        The files of the series.
    settings
        How the halves were made.
    entry
        What the manifest of the folder says of the halves.
    """

    folder: Path
    source: Source
    settings: HalvesSettings
    entry: Mapping[str, Any]

    @classmethod
    def of(cls, place: str | Path, pair: TomogramPair) -> RecordedSeries:
        """Return the series of a tomogram.

        Parameters
        ----------
        place
            A folder with halves, or one of these.
        pair
            The tomogram.

        Raises
        ------
        ValueError
            If the place has no such record or several, a file of the series has changed since, or the series is that
            of another tomogram.
        OSError
            If a file cannot be read.
        """
        place = Path(place)
        folder = place if place.is_dir() else place.parent
        entries = HalvesManifest(folder).series
        if not entries:
            raise ValueError(
                f"{folder} has no {MANIFEST} of `equitomo halves`, which says from which tilt series halves were made: "
                "make halves with it, and pass their folder as `series`"
            )
        name = _chosen(entries, folder, place, pair)
        entry = entries[name]
        if entry.get("pair") is not None:
            raise ValueError(
                f"{name} in {folder} is one of two pairs of halves, of which no tilts can be left out: make one pair "
                "of halves of the series, and test a run on these"
            )
        try:
            inputs = {role: Path(given["path"]) for role, given in entry["made_from"]["inputs"].items()}
            recorded = entry["made_from"]["settings"]
            settings = HalvesSettings(**recorded)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged ({error!r}): make the halves anew") from error
        for role, path in inputs.items():
            if not path.exists():
                raise FileNotFoundError(f"{path}, the {role} of the halves in {folder}, is not there any more")
        found = cls(folder, _source(name, inputs), settings, entry)
        record = ResultRecord(folder / name, inputs, {}, recorded)
        if differences := record.differences():
            raise ValueError(
                f"the halves {name} in {folder} were made from something else than there is now "
                f"({'; '.join(differences)}): make them anew"
            )
        found.require_same_tomogram(pair)
        return found

    def require_same_tomogram(self, pair: TomogramPair) -> None:
        """Refuse the series of another tomogram: other tilts, another pixel size, or another specimen."""
        what, remedy = f"the series of {self.folder}", "pass the series from which the halves of the run were made"
        size, own = float(self.entry.get("voxel_size") or 0), min(pair.voxel_size or (0.0,))
        if size and own and abs(size - own) > 0.01 * max(size, own):
            raise ValueError(
                f"{what} gives voxels of {size:g} Å, and {pair.name} has {own:g} Å: {remedy}, with the same binning"
            )
        shape = tuple(self.entry.get("shape") or pair.shape)
        if shape != pair.shape:
            raise ValueError(f"{what} gives {shape} voxels (z, y, x), and {pair.name} has {pair.shape}: {remedy}")
        _require_same_tilts(self.entry["angles"], self.entry["tilt_axis"], pair, what, remedy)
        if _correlation(self._halves, pair) < _SAME_SPECIMEN:
            raise ValueError(f"{what} shows another specimen than {pair.name}, they do not correlate: {remedy}")

    @property
    def _halves(self) -> list[Path]:
        return [self.folder / self.entry[role] for role in ("first", "second")]


def _chosen(entries: Mapping[str, Any], folder: Path, place: Path, pair: TomogramPair) -> str:
    """Return the name of the entry that a place or a tomogram points to."""
    volumes = [pair.files[role] for role in ("first", "second") if role in pair.files]
    own_files = [volume if isinstance(volume, Path) else volume.path for volume in volumes]
    given = [place] if place != folder else own_files
    for name, entry in entries.items():
        own = [folder / entry.get(role, "") for role in ("first", "second")]
        if any(one.exists() and path.exists() and one.samefile(path) for one in own for path in given):
            return name
    if place != folder:
        raise ValueError(f"{place} is none of the halves in the {MANIFEST} of {folder}: pass one of them as `series`")
    if len(entries) > 1:
        names = ", ".join(list(entries)[:5]) + (", ..." if len(entries) > 5 else "")
        raise ValueError(f"{folder} has the halves of several series ({names}): pass one of the halves as `series`")
    return next(iter(entries))


def _source(name: str, inputs: Mapping[str, Path]) -> Source:
    """Return the source of the series whose files a record names by their roles."""
    images = [path for role, path in inputs.items() if role.startswith("images ")]
    if "metadata 1" not in inputs:
        stacks = tuple(inputs[role] for role in ("first stack", "second stack") if role in inputs)
        return Source(name, stacks, inputs.get("tilts"))
    found = find_series(inputs["metadata 1"])
    named = [one for one in found if one.name.replace("/", "_") == name]
    metadata = (named or found)[0]
    own = Source(name, metadata=metadata)
    if set(own.files.values()) == set(inputs.values()) or not 1 <= len(images) <= 2:
        return own
    # The stacks were given beside the file of the alignment.
    return source_of(images[0], images[1] if len(images) > 1 else None, None, inputs["metadata 1"])._replace(name=name)


def _require_same_tilts(
    angles: Sequence[Sequence[float]], tilt_axis: str, pair: TomogramPair, what: str, remedy: str
) -> None:
    """Refuse a series of other tilts than those of the tomogram."""
    ranges = (min(map(min, angles)), max(map(max, angles)))
    tilts = [part for geometry in pair.geometries for part in geometry.parts]
    if any(part.tilt_axis != tilt_axis for part in tilts):
        raise ValueError(f"{what} was tilted about {tilt_axis}, and {pair.name} about another axis: {remedy}")
    own = (min(part.tilt_range[0] for part in tilts), max(part.tilt_range[1] for part in tilts))
    if max(abs(one - other) for one, other in zip(ranges, own, strict=True)) > _SAME_RANGE:
        raise ValueError(
            f"{what} has tilts from {ranges[0]:g} to {ranges[1]:g} degrees, and {pair.name} from {own[0]:g} to "
            f"{own[1]:g}: {remedy}"
        )
    measured = {angle for half in angles for angle in half}
    if missing := [tilt for part in _listed(tilts) for tilt in part if not _is_among(tilt, measured)]:
        raise ValueError(
            f"{what} lacks {len(set(missing))} tilts of {pair.name}, such as {missing[0]:g} degrees: {remedy}"
        )


def _listed(parts: Sequence[Geometry]) -> list[tuple[float, ...]]:
    """Return the tilts of the series that are lists and no continuous ranges."""
    return [part.angles for geometry in parts for part in geometry.parts if not part.continuous]


def _is_among(tilt: float, tilts: set[float]) -> bool:
    return any(abs(tilt - other) <= _SAME_TILT for other in tilts)


def _correlation(halves: Sequence[Path], pair: TomogramPair) -> float:
    """Return how some planes of the recorded halves correlate with those of a tomogram, in any contrast."""
    n = pair.shape[0]
    start = max(0, (n - _PLANES) // 2)
    means = []
    for volumes in ([read_volume(path) for path in halves], pair.halves):
        planes = [np.asarray(volume[start : start + _PLANES], np.float64) for volume in volumes]
        means.append(np.mean(planes, axis=0).ravel())
    return abs(float(np.corrcoef(*means)[0, 1]))
