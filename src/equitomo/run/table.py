"""The tomograms of a table: their pairs, the names of their results, and the records and locks beside those."""

from __future__ import annotations

import glob
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import Timeout

from equitomo.datasets import Normalization, TomogramPair, read_geometry
from equitomo.diagnosis import diagnose
from equitomo.geometry import Geometry
from equitomo.io import PARTIAL, CtfState, read_table, write_atomically
from equitomo.run.folder import locked
from equitomo.run.halves.recording import recorded_ctf_state
from equitomo.run.record import described, file_hash, versions
from equitomo.run.settings import TomogramFiles, TomogramTable, TrainingFiles


@dataclass(frozen=True)
class Tomogram:
    """A tomogram to be read, perhaps of a table.

    Parameters
    ----------
    declared
        Its files.
    normalization
        As for :class:`~equitomo.TomogramPair`.
    table, line
        The table and the line in it.
    """

    declared: TomogramFiles
    normalization: Normalization = "robust"
    table: str | Path | None = None
    line: int = 0

    @property
    def halves(self) -> dict[str, Path]:
        """The files of the halves by role; of a single volume the first alone."""
        given = {"first": self.declared.first, "second": self.declared.second}
        return {role: Path(path) for role, path in given.items() if path is not None}

    @property
    def files(self) -> str:
        """The names of the halves."""
        return " and ".join(map(str, self.halves.values()))

    @property
    def ctf_state(self) -> CtfState:
        """What was done about the contrast transfer function, as far as ``equitomo halves`` recorded it."""
        return recorded_ctf_state(self.declared.first, self.table)

    def geometry(self) -> Geometry:
        """Return the declared tilts, or say in an error that they are missing or cannot be read."""
        if self.declared.tilts is not None:
            return read_geometry(self.declared.tilts, self.declared.tilt_axis or "y", self.declared.second_axis_tilts)
        if self.table is None:
            raise ValueError("`tilts` is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
        raise ValueError("no tilts: name them in the column tilts, or pass `tilts` for all")

    def read(self, geometry: Geometry | None = None, *, lazy: bool, name: str | None = None) -> TomogramPair:
        """Read the pair, or no more than its headers if ``lazy``.

        A ``geometry`` replaces the declared tilts, and a ``name`` replaces the files and the line in messages. Errors
        are those of :meth:`geometry` and :meth:`equitomo.TomogramPair.read`.
        """
        given = self.declared
        line = "" if self.table is None else f" (line {self.line} of {self.table})"
        return TomogramPair.read(
            given.first,
            given.second,
            # The name of a file is passed on, which then belongs to the files of the pair.
            tilts=geometry or given.tilts or self.geometry(),
            tilt_axis=given.tilt_axis or "y",
            second_tilts=given.second_tilts if given.tilts else None,
            second_axis_tilts=None if geometry else given.second_axis_tilts,
            mask=getattr(given, "mask", None),
            normalization=self.normalization,
            nan=given.nan,
            permissive=given.permissive,
            is_tomogram=given.is_tomogram,
            lazy=lazy,
            name=name or f"{self.files}{line}",
        )


def read_pairs(tomograms: Sequence[Tomogram], *, warn: bool = True) -> list[TomogramPair]:
    """Read the tomograms of a training, those of a table lazily, and warn of the findings on them.

    Where a tomogram of a table cannot be used, the error names its line.
    """
    pairs = []
    for tomogram in tomograms:
        try:
            pair = tomogram.read(lazy=tomogram.table is not None)
            warn_of_findings(pair, warn=warn, ctf_state=tomogram.ctf_state)
        except (ValueError, OSError) as error:
            if tomogram.table is None:
                raise
            raise ValueError(f"{tomogram.table}: line {tomogram.line}: {error}") from error
        if pair.is_lazy:
            pair.release()
        pairs.append(pair)
    return pairs


def warn_of_findings(pair: TomogramPair, *, warn: bool = True, ctf_state: CtfState = "unknown") -> None:
    """Refuse a pair that cannot be used, and warn of the findings on one that can."""
    _ = pair.scale
    for finding in diagnose(pair, ctf_state=ctf_state) if warn else ():
        # A spectrum that does not show the wedge is a note for `check`: nothing can be done about it.
        if finding.severity != "ok" and (finding.severity, finding.subject) != ("note", "wedge"):
            warnings.warn(f"{pair.name}: {finding.text}", stacklevel=2)


def tomograms_of(
    files: TomogramFiles, *, normalization: Normalization = "robust", need_second: bool = True
) -> list[Tomogram]:
    """Return the tomogram whose files are named, or those of a table.

    Parameters
    ----------
    files
        The files of one tomogram, or a :class:`~equitomo.run.TomogramTable`. Masks are taken from the table only for a
        :class:`~equitomo.run.TrainingTable`.
    normalization
        As for :class:`~equitomo.TomogramPair`.
    need_second
        Refuse tomograms without second halves.

    Raises
    ------
    ValueError, OSError
        If halves or tilts are missing, the table cannot be used, or one mask is given for all of it.
    """
    table = files.table if isinstance(files, TomogramTable) else None
    if table is None:
        one = Tomogram(files, normalization)
        if need_second and files.second is None:
            raise ValueError("give the two half tomograms FIRST and SECOND: the method learns from both")
        if files.tilts is None:
            one.geometry()
        return [one]
    mask = getattr(files, "mask", None)
    if mask not in (None, "auto"):
        raise ValueError(f"`mask={mask!r}` cannot fit all tomograms of a table: name them in its column mask")
    kind = TrainingFiles if isinstance(files, TrainingFiles) else TomogramFiles
    shared = {field.name: getattr(files, field.name) for field in fields(kind)}
    tomograms = []
    for row in read_table(table, need_second=need_second):
        own = {name: getattr(row, name) for name in ("tilts", "tilt_axis", "second_axis_tilts", "second_tilts")}
        own |= {"mask": row.mask} if kind is TrainingFiles else {}
        own = {name: value or shared[name] for name, value in own.items()}
        halves = {"first": str(row.first), "second": None if row.second is None else str(row.second)}
        tomograms.append(Tomogram(kind(**{**shared, **own, **halves}), normalization, table, row.line))
    return tomograms


def result_names(table: str | Path, tomograms: Sequence[Tomogram]) -> list[str]:
    """Return for each tomogram the name of its first half, with as many folders before it as make the names differ.

    ``one/even.mrc`` and ``two/even.mrc`` give ``one_even.mrc`` and ``two_even.mrc``. Two names that are the same with
    all their folders are refused.
    """
    places = [_place(Path(tomogram.declared.first)) for tomogram in tomograms]
    lengths = [1] * len(tomograms)
    while True:
        names = ["_".join(place[-n:]) + ".mrc" for place, n in zip(places, lengths, strict=True)]
        # Some file systems do not tell capitals apart.
        counts = Counter(name.lower() for name in names)
        alike = [i for i, name in enumerate(names) if counts[name.lower()] > 1]
        longer = [i for i in alike if lengths[i] < len(places[i])]
        if not longer:
            break
        for i in longer:
            lengths[i] += 1
    if alike:
        first = names[alike[0]].lower()
        lines = " and ".join(str(tomograms[i].line) for i in alike if names[i].lower() == first)
        raise ValueError(f"{table}: lines {lines} would both be written to {names[alike[0]]}: rename a first half")
    return names


def _place(path: Path) -> list[str]:
    """Return the folders of a file and its name without the extensions."""
    name = path.stem if path.suffix.lower() in (".gz", ".bz2") else path.name
    return [*(part for part in path.absolute().parent.parts[1:] if part != ".."), Path(name).stem]


class ResultRecord:
    """The record beside a result, ``NAME.json``, of the inputs, weights and settings that it was made from.

    Inputs are files by role, weights are hashes by name, and settings are all other values on which the result depends,
    as JSON can hold them. Settings that are ``indifferent`` are recorded but need not be the same.
    """

    def __init__(
        self,
        result: Path,
        inputs: Mapping[str, Path],
        weights: dict[str, str],
        settings: dict[str, Any],
        *,
        indifferent: Collection[str] = (),
    ) -> None:
        self._path = result.with_name(f"{result.name}.json")
        self._inputs, self._weights, self._indifferent = inputs, weights, indifferent
        # The settings as they come back from the file.
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))

    def differences(self) -> list[str]:
        """Return how the result would be made differently than it was; an empty list if it would come out the same.

        An input whose size and time of change are those of the record is not read; otherwise its hash is compared.
        """
        try:
            saved = json.loads(self._path.read_bytes())
            inputs, weights, settings = saved["inputs"], saved["weights"], dict(saved["settings"])
            found = [f"{role} was {inputs[role]['path']}, now none" for role in inputs if role not in self._inputs]
            found += [
                f"{role} is now {path} with other content" if role in inputs else f"{role} was none, now {path}"
                for role, path in self._inputs.items()
                if role not in inputs or not _is_same(path, inputs[role])
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return [f"what it was made from is not known, {self._path.name} is missing or damaged: {error}"]
        if weights != self._weights:
            found.append("the network has other weights")
        for name in sorted((settings.keys() | self._settings.keys()) - set(self._indifferent)):
            if settings.get(name) != self._settings.get(name):
                found.append(f"{name} was {settings.get(name)}, now {self._settings.get(name)}")
        return found

    def content(self) -> bytes:
        """Return the content of the record, with the inputs as they are now. Call it before they are used."""
        inputs = {
            role: described(path) | {"modified_ns": path.stat().st_mtime_ns} for role, path in self._inputs.items()
        }
        content = {"inputs": inputs, "weights": self._weights, "settings": self._settings, "versions": versions()}
        return json.dumps(content, indent=1).encode() + b"\n"

    def write(self, content: bytes) -> None:
        """Write the content that :meth:`content` returned."""
        write_atomically(self._path, content, overwrite=True)


def _is_same(path: Path, saved: dict[str, Any]) -> bool:
    """Return whether a file is the recorded one, by its size and its time of change or its hash."""
    if path.stat().st_size != saved["bytes"]:
        return False
    return bool(path.stat().st_mtime_ns == saved["modified_ns"] or file_hash(path) == saved["sha256"])


@contextmanager
def claimed(result: Path) -> Iterator[bool]:
    """Yield whether this process alone may make a result until the end of the ``with`` block.

    What a killed process left of the result is removed.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(result.with_name(f"{result.name}.lock")))
        except Timeout:
            yield False
            return
        for left in result.parent.glob(f"{glob.escape(result.name)}*{PARTIAL}"):
            if left.name[: -len(PARTIAL)] in (result.name, f"{result.name}.json"):
                left.unlink(missing_ok=True)
        yield True
