"""The tomograms of a table: their pairs, the names of their results, and the records and locks beside those."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import Timeout

from equitomo.datasets import Normalization, TomogramPair, read_geometry
from equitomo.geometry import Geometry
from equitomo.io import PARTIAL, read_table, write_atomically
from equitomo.run.folder import locked
from equitomo.run.record import described, file_hash, versions
from equitomo.run.settings import TomogramFiles, TrainingFiles


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

    def geometry(self) -> Geometry:
        """Return the tilts.

        Raises
        ------
        ValueError, OSError
            If they are not declared, or cannot be read.
        """
        if self.declared.tilts is not None:
            return read_geometry(self.declared.tilts, self.declared.tilt_axis or "y")
        if self.table is None:
            raise ValueError("`tilts` is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
        raise ValueError("no tilts: name them in the column tilts, or pass `tilts` for all")

    def read(self, geometry: Geometry | None = None, *, lazy: bool, name: str | None = None) -> TomogramPair:
        """Read the pair.

        Parameters
        ----------
        geometry
            The tilts; ``None`` takes the declared ones.
        lazy
            Read no more than the headers now.
        name
            The name of the pair in messages; ``None`` takes its files and its line.

        Raises
        ------
        ValueError, OSError
            As :meth:`geometry` and :meth:`equitomo.TomogramPair.read`.
        """
        given = self.declared
        line = "" if self.table is None else f" (line {self.line} of {self.table})"
        return TomogramPair.read(
            given.first,
            given.second,
            # The name of a file is passed on, which then belongs to the files of the pair.
            tilts=geometry or given.tilts or self.geometry(),
            tilt_axis=given.tilt_axis or "y",
            mask=getattr(given, "mask", None),
            normalization=self.normalization,
            nan=given.nan,
            permissive=given.permissive,
            is_tomogram=given.is_tomogram,
            lazy=lazy,
            name=name or f"{self.files}{line}",
        )

    @contextmanager
    def naming_the_line(self) -> Iterator[None]:
        """Put the table and the line in front of the message of an error."""
        try:
            yield
        except (ValueError, OSError) as error:
            if self.table is None:
                raise
            raise ValueError(f"{self.table}: line {self.line}: {error}") from error


def tomograms_of(
    files: TomogramFiles,
    table: str | Path | None = None,
    *,
    normalization: Normalization = "robust",
    need_second: bool = True,
) -> list[Tomogram]:
    """Return the tomograms of a table, or the one whose files are named.

    Parameters
    ----------
    files
        The files. With a table, the tilts, tilt axis and mask of the tomograms for which it names none, and all other
        settings; masks are taken from it if these are :class:`~equitomo.run.TrainingFiles`.
    table
        A file as for :func:`equitomo.io.read_table`, or ``None``.
    normalization
        As for :class:`~equitomo.TomogramPair`.
    need_second
        Refuse tomograms without second halves.

    Raises
    ------
    ValueError, OSError
        If halves or tilts are missing, the table cannot be used, or one mask is given for all of it.
    """
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
        own = {"tilts": row.tilts, "tilt_axis": row.tilt_axis}
        own |= {"mask": row.mask} if kind is TrainingFiles else {}
        own = {name: value or shared[name] for name, value in own.items()}
        halves = {"first": str(row.first), "second": None if row.second is None else str(row.second)}
        tomograms.append(Tomogram(kind(**{**shared, **own, **halves}), normalization, table, row.line))
    return tomograms


def result_names(table: str | Path, tomograms: Sequence[Tomogram]) -> list[str]:
    """Return for each tomogram the name of its first half, with as many folders before it as make the names differ.

    ``one/even.mrc`` and ``two/even.mrc`` give ``one_even.mrc`` and ``two_even.mrc``.

    Raises
    ------
    ValueError
        If two names are the same with all folders; the message has the lines.
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

    Parameters
    ----------
    result
        The file.
    inputs
        Files, by role.
    weights
        Hashes of the network's weights.
    settings
        All other values on which the result depends, as JSON can hold them.
    indifferent
        Names of settings that are recorded but need not be the same.
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
        """Return what the record says, with the inputs as they are now: it is asked for before they are used."""
        inputs = {role: described(path) | {"modified_ns": _modified(path)} for role, path in self._inputs.items()}
        content = {"inputs": inputs, "weights": self._weights, "settings": self._settings, "versions": versions()}
        return json.dumps(content, indent=1).encode() + b"\n"

    def write(self, content: bytes) -> None:
        """Write what :meth:`content` returned."""
        write_atomically(self._path, content, overwrite=True)


def _is_same(path: Path, saved: dict[str, Any]) -> bool:
    if path.stat().st_size != saved["bytes"]:
        return False
    return bool(_modified(path) == saved["modified_ns"] or file_hash(path) == saved["sha256"])


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


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
