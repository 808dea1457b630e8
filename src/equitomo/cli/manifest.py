"""The record of a run: what went in, with which settings, on what, and when."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from equitomo.io import Volume, write_atomically
from equitomo.training import IcecreamTrainer, TrainingInterruptedError
from equitomo.training.checkpoint import has_checkpoint
from equitomo.training.distributed import find_world
from equitomo.training.resuming import require_same_settings, require_same_tilts

NAME = "manifest.json"
# Of the weights that a run began with, where they are not known.
NOT_RECORDED = "not recorded"
_PACKAGES = ("equitomo", "torch", "deepinv", "numpy", "mrcfile", "safetensors")


@dataclasses.dataclass(frozen=True)
class Invocation:
    """The command, and all arguments as they were given."""

    command: str
    arguments: tuple[str, ...]


class Manifest:
    """``manifest.json`` of a run, with one entry for each time the run was started or resumed.

    Parameters
    ----------
    folder
        The run's folder.
    options
        The options of the command by group, the way it was called among them.
    trainer
        What trains, or goes on to.
    inputs
        What was read, by the role it has.
    init
        The weights that training began with, ``None`` if they were drawn from the seed.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[type, Any],
        trainer: IcecreamTrainer,
        inputs: Mapping[str, Volume | Path],
        init: Any = None,
    ) -> None:
        self._path = folder / NAME
        invocation: Invocation = options[Invocation]
        self._config = trainer.config
        self._command = ["equitomo", *invocation.arguments]
        settings = {group.__name__: values for group, values in options.items() if group is not Invocation}
        self._content: dict[str, Any] = {
            "configuration": {name: dataclasses.asdict(values) for name, values in settings.items()},
            "seed": trainer.config.seed,
            "inputs": {role: described(given) for role, given in inputs.items()},
            "geometries": trainer.geometries,
            "init": init,
            "invocations": [],
        }

    def go_on(self) -> None:
        """Take over the record of the run that is resumed.

        Raises
        ------
        ValueError
            If an input of the run has changed, was taken away or came to it. Where no checkpoint says them, settings,
            tilts and initial weights are compared too.
        """
        try:
            before = json.loads(self._path.read_bytes())
            inputs, invocations = before["inputs"], before["invocations"]
            settings = dict(before["configuration"]["TrainingConfig"])
            hashes = {role: given["sha256"] for role, given in inputs.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{self._path} cannot be read ({error}): whether the inputs are still those of the run is not known",
                stacklevel=2,
            )
            return
        if not has_checkpoint(self._path.parent):
            require_same_settings(settings, self._config, 0, self._path)
            self._require_same_beginning(before)
        now = self._content["inputs"]
        for role in sorted(hashes.keys() | now.keys()):
            if hashes.get(role) != now.get(role, {}).get("sha256"):
                raise ValueError(_changed(role, inputs.get(role), now.get(role)))
        self._content["invocations"] = invocations
        # A record that is older than this entry does not have it.
        self._content["init"] = before.get("init", self._content["init"])

    def _require_same_beginning(self, before: dict[str, Any]) -> None:
        """Refuse other tilts or initial weights; a record may be older than these entries."""
        tilts, init = self._content["geometries"], self._content["init"]
        require_same_tilts(before.get("geometries", tilts), tilts, self._path)
        was = before.get("init", init)
        if was != NOT_RECORDED and (was or {}).get("sha256") != (init or {}).get("sha256"):
            raise ValueError(
                f"the run of {self._path} began with {_weights(was)}, now with {_weights(init)}: give the --init that "
                "it was started with, or replace it with --overwrite"
            )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the record when the work begins, and again when it ends, however it ends."""
        entry: dict[str, Any] = {"command": self._command, "versions": versions(), "hardware": _hardware()}
        entry["processes"] = find_world().size
        entry |= {"started": _now(), "ended": None, "seconds": None, "outcome": "running"}
        self._content["invocations"].append(entry)
        started = time.perf_counter()
        self._write()
        outcome = "finished"
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | TrainingInterruptedError)
            outcome = "interrupted" if stopped else f"failed: {error}"
            raise
        finally:
            entry |= {"ended": _now(), "seconds": round(time.perf_counter() - started, 3), "outcome": outcome}
            try:
                self._write()
            except OSError as error:
                # A full disk has been reported already; the reason must not be hidden by this one.
                warnings.warn(f"{self._path} could not be brought up to date: {error}", stacklevel=2)

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._content, indent=1).encode() + b"\n", overwrite=True)


def described(given: Volume | Path) -> dict[str, Any]:
    """A file or store by its content, and what its header says."""
    path = given if isinstance(given, Path) else given.path
    status = path.stat()
    files = path.rglob("*") if path.is_dir() else [path]
    described: dict[str, Any] = {
        "path": str(path.absolute()),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "modified": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
        "sha256": file_hash(path),
    }
    if isinstance(given, Volume):
        described["header"] = {
            "shape": list(given.data.shape),
            "type": str(given.data.dtype),
            "voxel_size": list(given.voxel_size),
            "origin": list(given.header.origin),
            "start": list(given.header.start),
            "labels": list(given.header.labels),
        }
    return described


def file_hash(path: Path) -> str:
    """Of a file its content; of a folder names and contents of all files in it."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _changed(role: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    remedy = "give what the run was started with, or start another one with --init in another folder"
    if before is None or now is None:
        given = f"was {before['path']}, now there is none" if before else f"was none, now {(now or {}).get('path')}"
        return f"the {role} of the run {given}: {remedy}"
    return (
        f"{now['path']} is not the {role} that the run was started with: it was {before.get('path')} of "
        f"{before.get('bytes')} bytes, last changed {before.get('modified')}, and has other content ({now['bytes']} "
        f"bytes, changed {now['modified']}); {remedy}"
    )


def _weights(init: dict[str, Any] | None) -> str:
    return f"those of {init['path']}, step {init['step']}" if init else "weights drawn from the seed"


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory(),
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
