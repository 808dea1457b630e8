"""The tomograms of a table: their pairs, the names of their results, and the records and locks beside those."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from equitomo.datasets import TomogramPair, read_geometry
from equitomo.geometry import TiltAxis, TiltGeometry
from equitomo.io import PARTIAL, TableRow, read_table, write_whole
from equitomo.run.folder import locked
from equitomo.run.record import described, file_hash, versions


@dataclass(frozen=True)
class Tomogram:
    """A tomogram as a command or a line of a table declares it.

    Parameters
    ----------
    first, second
        The files of the halves; ``second`` is ``None`` for a single volume.
    tilts
        A file, or ``"LOW,HIGH"`` in degrees; ``None`` if they are not declared.
    tilt_axis
        The tilt axis.
    mask
        A file, ``"auto"``, or ``None``.
    table, line
        The table and the line in it, where it is of a table.
    """

    first: str | Path
    second: str | Path | None
    tilts: str | None
    tilt_axis: TiltAxis = "y"
    mask: str | None = None
    table: str | Path | None = None
    line: int = 0

    @property
    def files(self) -> str:
        """The names of the halves."""
        return " and ".join(str(half) for half in (self.first, self.second) if half is not None)

    def geometry(self) -> TiltGeometry:
        """Return the tilts.

        Raises
        ------
        ValueError, OSError
            If they are not declared, or cannot be read.
        """
        if self.tilts is not None:
            return read_geometry(self.tilts, self.tilt_axis)
        if self.table is None:
            raise ValueError("`tilts` is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
        raise ValueError("no tilts: name them in the column tilts, or pass `tilts` for all")

    def read(self, geometry: TiltGeometry | None = None, **settings: Any) -> TomogramPair:
        """Read the pair; of one of a table no more than the headers.

        Parameters
        ----------
        geometry
            The tilts; ``None`` takes the declared ones.
        settings
            Further arguments of :meth:`equitomo.TomogramPair.read`.

        Raises
        ------
        ValueError, OSError
            As :meth:`geometry` and :meth:`equitomo.TomogramPair.read`.
        """
        name = self.files if self.table is None else f"{self.files} (line {self.line} of {self.table})"
        settings = {"lazy": self.table is not None, "name": name, "mask": self.mask, **settings}
        tilts: Any = self.tilts if geometry is None and self.tilts is not None else geometry or self.geometry()
        return TomogramPair.read(self.first, self.second, tilts=tilts, tilt_axis=self.tilt_axis, **settings)

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
    table: str | Path,
    *,
    tilts: str | None = None,
    tilt_axis: TiltAxis = "y",
    mask: str | None = None,
    need_second: bool = True,
) -> list[Tomogram]:
    """Return the tomograms of a table.

    Parameters
    ----------
    table
        A file as for :func:`equitomo.io.read_table`.
    tilts, tilt_axis, mask
        What holds for the tomograms for which the table does not say otherwise; of masks only ``"auto"``.
    need_second
        Refuse a table without second halves.

    Raises
    ------
    ValueError, OSError
        If the table cannot be used, or ``mask`` is a file.
    """
    if mask not in (None, "auto"):
        raise ValueError(f"`mask={mask!r}` cannot fit all tomograms of a table: name their masks in its column mask")
    return [
        Tomogram(
            row.first,
            row.second,
            row.tilts or tilts,
            row.tilt_axis or tilt_axis,
            row.mask or mask,
            table=table,
            line=row.line,
        )
        for row in read_table(table, need_second=need_second)
    ]


def result_names(table: str | Path, rows: Sequence[TableRow]) -> list[str]:
    """Return for each tomogram the name of its first half, with as many folders before it as make the names differ.

    ``one/even.mrc`` and ``two/even.mrc`` give ``one_even.mrc`` and ``two_even.mrc``.

    Raises
    ------
    ValueError
        If two names are the same with all folders; the message has the lines.
    """
    places = [_place(row.first) for row in rows]
    lengths = [1] * len(rows)
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
        lines = " and ".join(str(rows[i].line) for i in alike if names[i].lower() == names[alike[0]].lower())
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
        write_whole(self._path, content, overwrite=True)


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
