"""The commands that continue with halves: a training, or two networks that are trained apart."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equitomo.run.halves.preparing import Source
from equitomo.run.halves.recording import table_of

Entry = Mapping[str, Any]
# Two networks that start from the same weights share what these know: see the benchmarks.
_SCRATCH = ("--init", "none")
_APART = (
    "Two networks that are trained apart on the two pairs, and how far their results agree (choose a preset and other "
    "settings for the first one, and the second one takes them):"
)
_TABLES_APART = (
    "Two networks that are trained apart on the two pairs of all series, and how far their results for one of these "
    "agree (choose a preset and the same settings for both):"
)


def following(folder: Path, entries: Mapping[str, Entry], sources: Sequence[Source]) -> str:
    """Return which tables a folder with halves has, and for two pairs the commands that compare two networks.

    Parameters
    ----------
    folder
        The folder.
    entries
        What its manifest says of all halves, by name.
    sources
        The series of this call, each twice if it has two pairs.
    """
    pairs = dict.fromkeys(source.pair for source in sources)
    tables = [path for pair in pairs if (path := folder / table_of(pair)).exists()]
    if not tables:
        return "Nothing was made"
    lines = [f"Wrote {' and '.join(map(str, tables))}, for `equitomo train --table`"]
    names = {source.name: [source._replace(pair=pair).result for pair in (1, 2)] for source in sources if source.pair}
    made = [both for both in names.values() if entries.keys() >= set(both)]
    if made and len(names) == 1:
        first, second = (entries[name] for name in made[0])
        lines += [_APART, *_of_one(folder, first, second)]
    elif made:
        lines += [_TABLES_APART, *_of_tables(folder, tables, entries, made[0])]
    return "\n".join(lines)


def _of_one(folder: Path, first: Entry, second: Entry) -> list[str]:
    """Return the commands for the two pairs of one series."""
    return [
        _command("reconstruct", *_halves(folder, first), *_SCRATCH, "--out", "run1"),
        _command("fsc", *_halves(folder, second), "--independent", "run1", "--out", "run2"),
    ]


def _of_tables(folder: Path, tables: Sequence[Path], entries: Mapping[str, Entry], names: Sequence[str]) -> list[str]:
    """Return the commands for all first and all second pairs, and for the results of one series."""
    one, other = tables
    first, second = (entries[name] for name in names)
    results = [Path("results1") / first["first"], Path("results2") / second["first"]]
    return [
        _command("train", "--table", one, *_SCRATCH, "--out", "run1"),
        _command("train", "--table", other, *_SCRATCH, "--out", "run2", "--seed", "1"),
        _command("predict", "--table", one, "--run", "run1", "--out", "results1"),
        _command("predict", "--table", other, "--run", "run2", "--out", "results2"),
        _command("fsc", *results, "--tilts", folder / f"{names[1]}.tlt", *_axis(second)),
    ]


def _command(*words: str | Path) -> str:
    return f"  equitomo {shlex.join(map(str, words))}"


def _halves(folder: Path, entry: Entry) -> list[str | Path]:
    """Return the arguments for two halves and their tilts."""
    given = [folder / entry["first"], folder / entry["second"], "--tilts", folder / entry["tilts"]]
    first, second = entry["angles"]
    if first != second:
        given += ["--second-tilts", folder / entry["second_tilts"]]
    return [*given, *_axis(entry)]


def _axis(entry: Entry) -> list[str]:
    return [] if entry["tilt_axis"] == "y" else ["--tilt-axis", entry["tilt_axis"]]
