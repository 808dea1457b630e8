"""The settings between which the wedge test can choose, and the commands that use them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equitomo.datasets import TomogramPair
from equitomo.io import Volume
from equitomo.run.network import RunNetwork
from equitomo.run.report_facts import RunRecord
from equitomo.run.wedge_settings import WedgeChoiceSettings
from equitomo.training.checkpoint import kept_steps

_PASSES = (1, 2)
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
_MIRRORS: Mapping[str, Mapping[str, Any]] = {
    "no mirror images": {"test_time_mirrors": False},
    "two mirror images": {"test_time_mirrors": True, "mirror_images": "two"},
    "all mirror images": {"test_time_mirrors": True, "mirror_images": "all"},
}
# Parts of the steps of a training.
_PARTS = (1, 2, 4)
# Options of the command of a run, with a value each, that are those of its place and its length.
_REPLACED = ("--out", "--steps", "--minutes")


@dataclass(frozen=True)
class Candidate:
    """One of the settings to choose from.

    Parameters
    ----------
    name
        What is different, in words.
    command
        The command that uses it.
    changes
        Settings of the prediction that differ from those of the run.
    share
        The share of the weights of the start; ``None`` for that of the training.
    checkpoint
        The step of the checkpoint that predicts; ``None`` for the last one.
    steps
        The steps of a training of its own; ``None`` for the training of all.
    """

    name: str
    command: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None
    checkpoint: int | None = None
    steps: int | None = None


def candidates_of(run: RunNetwork, pair: TomogramPair, settings: WedgeChoiceSettings, n_steps: int) -> list[Candidate]:
    """Return the settings to choose from, those of the run first.

    Parameters
    ----------
    run
        The run.
    pair
        The tomogram.
    settings
        What is to be chosen.
    n_steps
        The steps of a training on fewer tilts.

    Raises
    ------
    ValueError
        If the run leaves nothing to choose from.
    """
    if settings.choose == "steps":
        steps = list(dict.fromkeys(max(1, n_steps // part) for part in _PARTS))
        return [Candidate(f"{n} step{'s' if n > 1 else ''}", _training_command(run, n), steps=n) for n in steps]
    if settings.choose == "checkpoints":
        kept = sorted(kept_steps(run.path), reverse=True)
        if len(kept) < 2 or run.step not in kept:
            raise ValueError(
                f"{run.path} holds the checkpoint of one step only: a training with `keep_every` keeps more to choose "
                "from"
            )
        places = {n: str(run.path / "checkpoints" / f"step_{n:08d}") for n in kept}
        return [Candidate(f"step {n}", _command(run, pair, place=places[n]), checkpoint=n) for n in kept]
    if settings.choose == "share":
        # It refuses a run that has no such weights.
        run.with_share(0.0)
        return [Candidate("share as trained", _command(run, pair)), *(_share(run, pair, share) for share in _SHARES)]
    known = _MIRRORS if settings.choose == "mirrors" else _passes(run.config.passes)
    used = run.config.as_dict()
    found = [Candidate(name, _command(run, pair, changes), changes) for name, changes in known.items()]
    # Those that are used now come first.
    return sorted(found, key=lambda one: any(used[name] != value for name, value in one.changes.items()))


def _passes(present: int) -> dict[str, Mapping[str, Any]]:
    return {f"{n} pass{'es' if n > 1 else ''}": {"passes": n} for n in sorted({*_PASSES, present})}


def _share(run: RunNetwork, pair: TomogramPair, share: float) -> Candidate:
    return Candidate(f"share {share:g}", _command(run, pair, {"start_share": share}), share=share)


def _command(
    run: RunNetwork, pair: TomogramPair, changes: Mapping[str, Any] | None = None, *, place: str | None = None
) -> str:
    """Return the command that predicts a tomogram with other settings."""
    files = [_path(pair.files[role]) for role in ("first", "second") if role in pair.files]
    words = ["equitomo", "predict", *(files or ["FIRST", "SECOND"]), "--run", place or str(run.path), "--out", "FILE"]
    for name, value in (changes or {}).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def _training_command(run: RunNetwork, n_steps: int) -> str:
    """Return the command that made a run, with another number of steps and another folder."""
    try:
        words = list(RunRecord.read(run.path).invocations[0]["command"])
    except (ValueError, IndexError, KeyError):
        words = []
    if words[:1] != ["equitomo"]:
        return f"train with `steps={n_steps}`"
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before not in _REPLACED and word.partition("=")[0] not in (*_REPLACED, "--resume", "--overwrite")
    ]
    return shlex.join([*kept, "--steps", str(n_steps), "--out", f"{run.path}_{n_steps}"])


def _path(file: Volume | Path) -> str:
    return str(file if isinstance(file, Path) else file.path)
