"""The record of a run in ``manifest.json``: its inputs and settings, and when, where and how it was worked on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from equitomo.io import Volume, write_atomically
from equitomo.run.folder import MANIFEST
from equitomo.training import Trainer, TrainingInterruptedError
from equitomo.training.checkpoint import has_checkpoint
from equitomo.training.distributed import find_world
from equitomo.training.resuming import require_same_parts, require_same_settings, require_same_tilts

# Stands for the weights that a run began with, where they are not known.
NOT_RECORDED = "not recorded"
_PACKAGES = ("equitomo", "torch", "deepinv", "numpy", "mrcfile", "safetensors")


@dataclass(frozen=True)
class Invocation:
    """The command that started or resumed a run.

    Parameters
    ----------
    command
        The program and its arguments.
    options
        All options of the command with their values, as JSON can hold them.
    """

    command: Sequence[str] = field(default_factory=lambda: tuple(sys.argv))
    options: Mapping[str, Any] = field(default_factory=dict)


class Manifest:
    """The content of a run's ``manifest.json``, with an entry for each time the run was started or resumed.

    Inputs are the files that were read, by role. ``init`` describes the weights that the training began with; it is
    ``None`` if they were drawn from the seed. ``restart`` says whether the training left them for weights of the seed.
    """

    def __init__(self, folder: Path, trainer: Trainer, *, inputs: Mapping[str, Volume | Path], init: Any) -> None:
        self._path, self._config, self._trainer = folder / MANIFEST, trainer.config, trainer
        self._on_disk = self._read()
        self._content: dict[str, Any] = {
            "configuration": trainer.config.as_dict(),
            "method": trainer.fingerprint,
            "inputs": {role: described(given) for role, given in inputs.items()},
            "geometries": trainer.geometries,
            "init": init,
            "inverted": trainer.inverted,
            "invocations": [],
        }

    def resume(self) -> None:
        """Continue the record of the run that is resumed, and refuse inputs that have changed, are missing or are new.

        Where the run has no checkpoint that contains them, settings, tilts, method and initial weights are compared
        too.
        """
        try:
            before = json.loads(self._path.read_bytes())
            inputs, invocations, settings = before["inputs"], before["invocations"], dict(before["configuration"])
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
        """Refuse other tilts, another method or other initial weights; a record may be older than these entries."""
        tilts, init = self._content["geometries"], self._content["init"]
        require_same_tilts(before.get("geometries", tilts), tilts, self._path)
        method = self._content["method"]
        require_same_parts(before.get("method", method), method, self._path)
        was = before.get("init", init)
        if was != NOT_RECORDED and (was or {}).get("sha256") != (init or {}).get("sha256"):
            raise ValueError(
                f"the run of {self._path} began with {_weights(was)}, now with {_weights(init)}: give the `init` that "
                "it was started with, or replace it with `overwrite=True`"
            )

    def require_unchanged(self) -> None:
        """Refuse to continue a run that another process worked on since this record was made."""
        if self._read() != self._on_disk:
            raise OSError(
                errno.EBUSY, "another process worked on this run in the meantime: resume it anew", str(self._path)
            )

    @contextmanager
    def kept(self, invocation: Invocation) -> Iterator[None]:
        """Write the record when the work begins, and again when it ends, however it ends."""
        entry: dict[str, Any] = {"command": list(invocation.command), "options": dict(invocation.options)}
        entry |= {"versions": versions(), "hardware": _hardware(), "processes": find_world().size}
        entry |= {"started": _now(), "ended": None, "seconds": None, "outcome": "running"}
        self._content["invocations"].append(entry)
        started, outcome = time.perf_counter(), "finished"
        self._write()
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
        restart = self._trainer.restart
        self._content["restart"] = None if restart is None else asdict(restart)
        content = json.dumps(self._content, indent=1).encode() + b"\n"
        write_atomically(self._path, content, overwrite=True)
        self._on_disk = content

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None


def described(given: Volume | Path) -> dict[str, Any]:
    """Return what identifies a file or a store: its path, size, time, hash, and what its header says."""
    path = given if isinstance(given, Path) else given.path
    files = path.rglob("*") if path.is_dir() else [path]
    described: dict[str, Any] = {
        "path": str(path.absolute()),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "modified": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        "sha256": file_hash(path),
    }
    if isinstance(given, Volume):
        described["header"] = {
            "shape": list(given.shape),
            "type": str(given.dtype),
            "voxel_size": list(given.voxel_size),
            "origin": list(given.header.origin),
            "start": list(given.header.start),
            "labels": list(given.header.labels),
        }
    return described


def file_hash(path: Path) -> str:
    """Return the hash of a file's content, or of the names and contents of all files in a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def _changed(role: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """Return how an input differs from the one that the run was started with, and the remedy."""
    remedy = "give what the run was started with, or start another one with it as `init` in another `folder`"
    if before is None or now is None:
        given = f"was {before['path']}, now there is none" if before else f"was none, now {(now or {}).get('path')}"
        return f"the {role} of the run {given}: {remedy}"
    return (
        f"{now['path']} is not the {role} that the run was started with: it was {before.get('path')} of "
        f"{before.get('bytes')} bytes, last changed {before.get('modified')}, and has other content ({now['bytes']} "
        f"bytes, changed {now['modified']}); {remedy}"
    )


def _weights(init: dict[str, Any] | None) -> str:
    """Return words for the weights that a run began with."""
    if not init:
        return "weights drawn from the seed"
    if "network" in init:
        return f"those of the network {init['network']} of the package ({init['sha256'][:12]})"
    return f"those of {init['path']}, step {init['step']}"


def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
