"""What ``equitomo halves`` leaves beside the halves: their tilts, the table for training and the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from equitomo.io import CtfState, write_atomically
from equitomo.run.folder import MANIFEST

# What a series may have: one pair of halves, or a first and a second one.
PAIRS = (None, 1, 2)
_COLUMNS = ("first", "second", "tilts", "second_tilts", "tilt_axis")


def table_of(pair: int | None = None) -> str:
    """Return the name of the table of all tomograms, or of all first or second pairs, which one network may see."""
    return "tomograms.csv" if pair is None else f"tomograms_pair{pair}.csv"


def write_tilts(path: Path, angles: tuple[float, ...]) -> Path:
    """Write the tilts of a half, one in a line."""
    write_atomically(path, "".join(f"{angle:.3f}\n" for angle in angles).encode(), overwrite=True)
    return path


class HalvesManifest:
    """The ``manifest.json`` of a folder with halves, and the tables of its tomograms.

    Raises
    ------
    ValueError
        If the folder has the manifest of something else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.series: dict[str, dict[str, Any]] = {}
        if (folder / MANIFEST).exists():
            found = _series_in(folder / MANIFEST)
            if found is None:
                raise ValueError(f"{folder / MANIFEST} is not that of half tomograms: choose another `folder`")
            self.series = found

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Record the halves of one series, and write the manifest and the tables anew."""
        self.series[name] = dict(entry)
        self._write()

    def discard(self, name: str) -> None:
        """Forget the halves of a series, which are about to be made anew."""
        if self.series.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        content = json.dumps({"series": self.series}, indent=1).encode() + b"\n"
        write_atomically(self._folder / MANIFEST, content, overwrite=True)
        for pair in PAIRS:
            own = [one for one in self.series.values() if one.get("pair") == pair]
            lines = [",".join(_COLUMNS)]
            lines += [",".join(_quoted(str(one[column])) for column in _COLUMNS) for one in own]
            if own or (self._folder / table_of(pair)).exists():
                write_atomically(self._folder / table_of(pair), ("\n".join(lines) + "\n").encode(), overwrite=True)


def entry_of(
    files: tuple[str, str], tilts: tuple[Path, Path], angles: Sequence[Sequence[float]], tilt_axis: str, **facts: Any
) -> dict[str, Any]:
    """Return the entry of a series in the manifest."""
    return {
        "first": files[0],
        "second": files[1],
        "tilts": tilts[0].name,
        "second_tilts": tilts[1].name,
        "tilt_axis": tilt_axis,
        "angles": [list(half) for half in angles],
        **facts,
    }


def recorded_ctf_state(half: str | Path, table: str | Path | None = None) -> CtfState:
    """Return the CTF state of a half that ``equitomo halves`` recorded beside it or beside the table that names it."""
    half = Path(half).absolute()
    for folder in (half.parent, *([] if table is None else [Path(table).absolute().parent])):
        for entry in (_series_in(folder / MANIFEST) or {}).values():
            files = [folder / str(entry.get(role)) for role in ("first", "second")]
            if half in files and entry.get("ctf_state") in get_args(CtfState):
                return entry["ctf_state"]  # type: ignore[no-any-return]
    return "unknown"


def _series_in(path: Path) -> dict[str, dict[str, Any]] | None:
    """Return the series of a manifest of halves, or None if it is none."""
    try:
        found = json.loads(path.read_bytes())["series"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and all(isinstance(one, dict) for one in found.values()) else None


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if any(sign in value for sign in ',"\n') else value
