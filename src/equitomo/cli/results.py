"""Results of a table's tomograms: what they are called, what they were made from, and who makes them now."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout

from equitomo.cli.manifest import described, file_hash, versions
from equitomo.cli.run_folder import locked
from equitomo.io import PARTIAL, TableRow, write_atomically


def result_names(table: str, rows: Sequence[TableRow]) -> list[str]:
    """For each tomogram the base name of its first half, with as many folders before it as tell it from the others.

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
    """The folders that a file is in, and its name without what tells its format."""
    name = path.stem if path.suffix.lower() in (".gz", ".bz2") else path.name
    return [*(part for part in path.absolute().parent.parts[1:] if part != ".."), Path(name).stem]


class Record:
    """What a result is made from, kept beside it as ``NAME.json``.

    Parameters
    ----------
    result
        The file.
    inputs
        Files, by the role they have.
    weights
        Hashes of the network's.
    settings
        All else that the result depends on, as JSON holds it.
    indifferent
        Names of settings that are taken down, and may be others.
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
        # As it comes back from the file.
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._content: dict[str, Any] = {}

    def differences(self) -> list[str]:
        """What is other now than it was for the result that is there; empty if it would come out the same.

        An input whose size and time of change are those of the record is not read; otherwise its hash decides.
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

    def describe(self) -> None:
        """Take down the inputs as they are before they are used."""
        inputs = {role: described(path) | {"modified_ns": _modified(path)} for role, path in self._inputs.items()}
        self._content = {"inputs": inputs, "weights": self._weights, "settings": self._settings, "versions": versions()}

    def write(self) -> None:
        """Write what was taken down."""
        write_atomically(self._path, json.dumps(self._content, indent=1).encode() + b"\n", overwrite=True)


def _is_same(path: Path, saved: dict[str, Any]) -> bool:
    size = path.stat().st_size
    if size != saved["bytes"]:
        return False
    return bool(_modified(path) == saved["modified_ns"] or file_hash(path) == saved["sha256"])


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


@contextmanager
def claimed(result: Path) -> Iterator[bool]:
    """Whether this process alone may make a result now, which it may until the end of the ``with`` block.

    What a killed process left of it is removed.
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
