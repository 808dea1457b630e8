"""What the record of a run says, in words: its inputs, settings, versions and times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from equitomo.geometry import Geometry, as_geometry
from equitomo.run.folder import MANIFEST
from equitomo.run.memory import readable
from equitomo.run.record import NOT_RECORDED

# Characters of a hash that are shown; the record holds all of them.
_HASH = 16


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's ``manifest.json``.

    Parameters
    ----------
    inputs
        The files that were read, by role, as the record describes them.
    geometries
        The tilts.
    configuration
        The settings of the training.
    invocations
        Each time that the run was worked on, with its command, versions, machine and times.
    init
        The weights that the training began with, ``None`` for weights drawn from the seed, ``"not recorded"`` where
        the record does not say it.
    restart
        When and why the training began again from scratch; ``None`` if it did not.
    """

    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    geometries: Sequence[Geometry] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    invocations: Sequence[Mapping[str, Any]] = ()
    init: Any = None
    restart: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a run.

        Raises
        ------
        ValueError
            If there is none, or it is damaged.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes())
            geometries = [as_geometry(described) for described in content["geometries"]]
            return cls(
                dict(content["inputs"]),
                geometries,
                dict(content["configuration"]),
                list(content["invocations"]),
                content.get("init", NOT_RECORDED),
                content.get("restart"),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{folder} holds no run, as it has no {MANIFEST}: name the folder of a run, or a "
                "tomogram and the volume that was made of it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): a run that is resumed writes it anew") from error

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the command that worked on the run last; empty for a run that a script made."""
        return dict(self.invocations[-1].get("options") or {}) if self.invocations else {}

    @property
    def seconds(self) -> float:
        """The time that was spent on the run so far."""
        return sum(_seconds(entry) for entry in self.invocations)

    @property
    def date(self) -> str:
        """The day on which the run was begun, empty if it is not known."""
        return str(self.invocations[0].get("started", ""))[:10] if self.invocations else ""

    def warnings(self, *, is_running: bool) -> list[str]:
        """Return what became of the run if it did not end well, and which inputs are missing or have changed.

        A run that ``is_running`` writes its report itself: its last invocation has not ended.
        """
        found = []
        if self.invocations and not is_running and (outcome := self.invocations[-1].get("outcome")) != "finished":
            stopped = "is not finished, or was killed" if outcome == "running" else f"ended early: {outcome}"
            found.append(f"The run {stopped}. It can be resumed.")
        for role, described in self.inputs.items():
            path = Path(str(described.get("path")))
            if not path.exists():
                found.append(f"The {role} of the run, {path}, is not there any more.")
            elif path.is_file() and path.stat().st_size != described.get("bytes"):
                found.append(f"The {role} of the run, {path}, has changed since it was read.")
        return found

    def facts(self) -> dict[str, dict[str, str]]:
        """Return names and values by heading, for a reader."""
        found = {f"Input: {role}": _file_facts(described) for role, described in self.inputs.items()}
        found["Tilts"] = {f"series {n}": _tilts(geometry) for n, geometry in enumerate(self.geometries, 1)}
        for number, entry in enumerate(self.invocations, 1):
            heading = "Work" if len(self.invocations) == 1 else f"Work, part {number} of {len(self.invocations)}"
            found[heading] = _invocation_facts(entry)
        if self.invocations:
            found["Versions"] = {name: str(value) for name, value in self.invocations[-1].get("versions", {}).items()}
        began = self.init if isinstance(self.init, str) else self.init and f"{self.init.get('path')}"
        settings = {**self.configuration, **self.options}
        found["Settings"] = {"began with": began or "weights drawn from the seed"}
        found["Settings"] |= {name: _value(value) for name, value in settings.items() if value is not None}
        return {heading: values for heading, values in found.items() if values}


def span(seconds: float) -> str:
    """Return a time as a reader says it.

    Examples
    --------
    >>> span(9.6), span(130), span(7300)
    ('10 s', '2 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def voxel_text(sizes: Sequence[float]) -> str:
    """Return the sides of a voxel as text, one number if all are alike.

    Examples
    --------
    >>> voxel_text((10.52, 10.520001, 10.52)), voxel_text((10.0, 10.0, 20.0))
    ('10.52 Å', '10 × 10 × 20 Å')
    """
    texts = [f"{size:.4g}" for size in sizes]
    return f"{texts[0] if len(set(texts)) == 1 else ' × '.join(texts)} Å"


def _seconds(entry: Mapping[str, Any]) -> float:
    """Return the time of an invocation, until now if it has not ended."""
    if entry.get("seconds") is not None:
        return float(entry["seconds"])
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(str(entry["started"]))).total_seconds()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _file_facts(described: Mapping[str, Any]) -> dict[str, str]:
    header = described.get("header") or {}
    facts = {
        "file": str(described.get("path")),
        "size": readable(int(described.get("bytes", 0))),
        "changed": str(described.get("modified", "")),
        "SHA-256": f"{str(described.get('sha256', ''))[:_HASH]}…",
    }
    if header:
        facts["voxels"] = f"{' × '.join(map(str, header['shape']))} (z, y, x), {header['type']}"
        facts["voxel size"] = voxel_text(header["voxel_size"])
        facts |= {f"label {n}": str(label) for n, label in enumerate(header.get("labels", ()), 1)}
    return facts


def _tilts(geometry: Geometry) -> str:
    views = sum(len(part.angles) for part in geometry.parts if not part.continuous)
    return f"{geometry}, {views} views" if views else str(geometry)


def _invocation_facts(entry: Mapping[str, Any]) -> dict[str, str]:
    machine = entry.get("hardware", {})
    gpus = machine.get("gpus") or ["none"]
    return {
        "command": " ".join(map(str, entry.get("command", ()))),
        "begun": str(entry.get("started", "")),
        "time": span(_seconds(entry)),
        "processes": str(entry.get("processes", 1)),
        "machine": f"{machine.get('machine')}, {machine.get('system')}",
        "processor": f"{machine.get('processor')}, {machine.get('cores')} cores, {machine.get('threads')} threads",
        "memory": readable(int(machine.get("memory_bytes", 0))),
        "GPU": ", ".join(gpus),
    }


def _value(value: Any) -> str:
    return "none" if value is None else {"True": "yes", "False": "no"}.get(str(value), str(value))
