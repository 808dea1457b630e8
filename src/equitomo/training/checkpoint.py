"""Checkpoints in safetensors and JSON, which are complete or absent."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from equitomo.geometry import Geometry, as_geometry
from equitomo.io import flush_folder
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.training.config import TrainingConfig
from equitomo.training.fingerprint import describe, differences
from equitomo.training.presets import SHIPPED

_log = logging.getLogger(__name__)
_STATE = "state.json"
_STATE_HASH = "state.json.sha256"
# Checkpoints that are kept in any case, so that a damaged one has a sound one before it.
_N_KEPT = 2
# The end of a checkpoint's name while another checkpoint takes its place.
_ASIDE = ".old.partial"
# Bytes of headers, names and the state, a generous estimate.
_OTHER_BYTES = 1 << 16


class CheckpointError(ValueError):
    """Raised for a checkpoint that is damaged, or does not fit the network or the run."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one folder of ``checkpoints/``."""

    path: Path
    # Groups of named tensors, one safetensors file each: weights, ema (their exponential moving average),
    # start (the weights that keep a share in predictions) and optimizer.
    tensors: Mapping[str, dict[str, Tensor]]
    # Everything else, as JSON: step, configuration, counters.
    state: dict[str, Any]

    @property
    def config(self) -> TrainingConfig:
        """The settings of the run."""
        return TrainingConfig.from_dict(self.state["config"])

    @property
    def geometries(self) -> list[Geometry]:
        """The distinct geometries of the run's tomograms; none for a converted network."""
        return [as_geometry(settings) for settings in self.state["geometries"]]

    def group(self, *, ema: bool = True) -> str:
        """Return the name of the weights to predict with: the moving average, where the run kept one."""
        return "ema" if ema and "ema" in self.tensors else "weights"

    def network(
        self, make: Callable[[], nn.Module] | None = None, *, ema: bool = True, share: float | None = None
    ) -> nn.Module:
        """Return the trained network, as :func:`load_network` does.

        In place of the share of the starting weights that the training chose, another one may be given.
        """
        group = self.group(ema=ema)
        start = self.tensors.get("start", {}) if group == "ema" else {}
        if share is not None and not start:
            raise CheckpointError(
                f"{self.path} holds no weights that its training started from, of which `start_share` could be a share"
            )
        network = self._rebuilt() if make is None else self._made_by(make)
        chosen = self.state.get("start_share", 0.0) if share is None else share
        load_weights(network, blended(self.tensors[group], start, chosen), self.path)
        return network

    def _rebuilt(self) -> nn.Module:
        """Return the library's network without drawing initial weights."""
        if (settings := self.state["network"]) is None:
            raise CheckpointError(
                f"{self.path} holds the weights of a {self.state['fingerprint']['network']['class']}, which this "
                "library cannot make by itself: pass `network`, the function that made it for the training"
            )
        return _empty(settings)

    def _made_by(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the user's own network, if it is the one that the run was trained with."""
        # The weights that the function draws are replaced, so torch's generator is put back to where it was.
        with torch.random.fork_rng(devices=[]):
            network = make()
        found = describe(network, values=False)
        before = self.state.get("fingerprint", {}).get("network", found)
        if other := next(differences(before, found), None):
            raise CheckpointError(
                f"{self.path} holds the weights of a {before['class']}, and `network` makes another network, a "
                f"{found['class']}: {other}"
            )
        return network


def blended(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights in which those of a start have a share; whole numbers, such as counters, are not blended."""
    return {
        name: value.lerp(start[name], share) if name in start and torch.is_floating_point(value) else value
        for name, value in weights.items()
    }


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any], *, keep_every: int = 0
) -> Path:
    """Write ``folder/step_XXXXXXXX``, then drop all but the last two and those at multiples of ``keep_every``."""
    final = folder / f"step_{step:08d}"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        flush_folder(folder.parent)
    for old in _stranded(folder):
        old.rename(_named_before(old))
    for left in folder.glob(".step_*.partial"):
        # Left by a process that was killed while it wrote.
        shutil.rmtree(left, ignore_errors=True)
    write_checkpoint(final, tensors, {**state, "step": step})
    drop_old_checkpoints(folder, step, keep_every=keep_every)
    return final


def drop_old_checkpoints(folder: Path, step: int, *, keep_every: int) -> None:
    """Drop all checkpoints up to ``step`` but the last two of them and those at multiples of ``keep_every``."""
    for old in [path for path in _candidates(folder) if _step_of(path) <= step][_N_KEPT:]:
        # A checkpoint of step 0 was written if a signal arrived at once.
        if not (keep_every and _step_of(old) and _step_of(old) % keep_every == 0):
            shutil.rmtree(old, ignore_errors=True)


def write_checkpoint(final: Path, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write one checkpoint folder, and replace the one of that name if there is one.

    The checkpoint is written under another name, flushed to disk and renamed, so no interruption can leave an
    incomplete checkpoint under its name. Every file is covered by a hash: ``state.json`` holds the hashes of the
    tensors, and ``state.json.sha256`` that of ``state.json``, in the form that ``sha256sum -c`` reads.
    """
    partial = final.with_name(f".{final.name}.partial")
    # A folder that a killed process left is removed. A file or a link stays and makes mkdir fail, so that nothing is
    # written through it.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        hashes = {name: _write_tensors(partial / f"{name}.safetensors", group) for name, group in tensors.items()}
        content = json.dumps({**state, "sha256": hashes}, indent=1).encode()
        _write_bytes(partial / _STATE, content)
        _write_bytes(partial / _STATE_HASH, f"{_hash(content)}  {_STATE}\n".encode())
        flush_folder(partial)
        _put_in_place(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush_folder(final.parent)


def checkpoint_bytes(network: nn.Module, *, n_kept: int) -> int:
    """Return about how large a checkpoint is: the weights, the two moments of Adam, and ``n_kept`` further weights."""
    weights: int = sum(value.nbytes for value in network.state_dict().values())
    return weights * (3 + n_kept) + _OTHER_BYTES


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder, or the latest sound checkpoint of ``checkpoints/`` or of a run.

    A damaged checkpoint is skipped with a warning in the log. If none is sound, a :class:`CheckpointError` is raised.
    """
    problems = []
    for candidate in _candidates(path):
        try:
            return _read(candidate)
        except (OSError, ValueError, SafetensorError) as error:
            problems.append(f"{candidate.name}: {error}")
            _log.warning("checkpoint %s cannot be used (%s); trying the one before", candidate, error)
    raise CheckpointError(
        f"no sound checkpoint in {path}" + (f" ({'; '.join(problems)})" if problems else ": give a run's folder")
    )


def has_checkpoint(path: Path) -> bool:
    """Return whether a run or folder holds any checkpoint."""
    return bool(_candidates(path))


def kept_steps(path: Path) -> list[int]:
    """Return the steps of the checkpoints that a run or folder holds, the latest first."""
    return [_step_of(candidate) for candidate in _candidates(path)]


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is one checkpoint, sound or not."""
    return (path / _STATE).is_file()


def load_network(path: str | Path, *, network: Callable[[], nn.Module] | None = None, ema: bool = True) -> nn.Module:
    """Return the trained network of a run, or of one of its checkpoints.

    Parameters
    ----------
    path
        A run's folder, its ``checkpoints`` folder, or one checkpoint. ``"cryo"`` is the network that comes with the
        package, see :doc:`/models`; a folder of that name is ``"./cryo"``.
    network
        The function that made the network for the training, if it is a network of your own.
    ema
        Take the exponential moving average of the weights, if the run kept one.

    Raises
    ------
    CheckpointError
        If there is no sound checkpoint, the checkpoint does not fit the network, or only ``network`` can make the
        network.
    """
    if path in SHIPPED:
        return _shipped_network(str(path))
    return load_checkpoint(Path(path)).network(network, ema=ema)


def _shipped_network(name: str) -> ScaleEquivariantUNet3D:
    """Return a network that comes with the package, in float32."""
    weights = {key: value.float() for key, value in safetensors.torch.load(_shipped_weights(name)).items()}
    network = _empty(SHIPPED[name])
    load_weights(network, weights, name)
    return network


def shipped_hash(name: str) -> str:
    """Return the hash of the weights of a network that comes with the package."""
    return _hash(_shipped_weights(name))


def _shipped_weights(name: str) -> bytes:
    return resources.files("equitomo").joinpath("weights", f"{name}.safetensors").read_bytes()


def _empty(settings: Mapping[str, Any]) -> ScaleEquivariantUNet3D:
    """Return the library's network without drawing initial weights."""
    with torch.device("meta"):
        network = ScaleEquivariantUNet3D(**settings)
    return network.to_empty(device="cpu")


def network_settings(network: nn.Module) -> dict[str, Any] | None:
    """Return the settings from which a checkpoint rebuilds a network, ``None`` for a network of another class."""
    return network.settings if type(network) is ScaleEquivariantUNet3D else None


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Load weights strictly, and name parameters that do not fit in the error."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        shown = ", ".join(f"{name} {found.get(name)} in place of {expected.get(name)}" for name in differing[:3])
        raise CheckpointError(
            f"the weights of {source} do not fit this network, {len(differing)} parameters differ: {shown}; "
            "use the network, `width` and `levels` they were trained with"
        )
    network.load_state_dict(dict(weights))


def _candidates(path: Path) -> list[Path]:
    """Return the checkpoint folders, the latest first."""
    if is_checkpoint(path):
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    # A reader renames nothing: another process may be between its two renames.
    found = [*folder.glob("step_*"), *_stranded(folder)]
    return sorted((p for p in found if p.is_dir() and _step_of(p) >= 0), key=_step_of, reverse=True)


def _stranded(folder: Path) -> list[Path]:
    """Return checkpoints that were moved aside by a process that was killed before the new one had their name."""
    return [old for old in folder.glob(f".step_*{_ASIDE}") if not _named_before(old).exists()]


def _named_before(old: Path) -> Path:
    """Return the path that a checkpoint had before it was moved aside."""
    return old.with_name(old.name.removeprefix(".").removesuffix(_ASIDE))


def _step_of(path: Path) -> int:
    """Return the step in a checkpoint's name, or -1 if the name is not that of a checkpoint."""
    number = _named_before(path).name.removeprefix("step_")
    return int(number) if number.isascii() and number.isdecimal() else -1


def _read(path: Path) -> Checkpoint:
    content = (path / _STATE).read_bytes()
    if (path / _STATE_HASH).read_bytes().split()[:1] != [_hash(content).encode()]:
        raise ValueError(f"{_STATE} was changed or cut short after it was written")
    state = json.loads(content)
    if not _is_state(state):
        raise ValueError(f"{_STATE} does not hold what this program writes there")
    tensors = {}
    for name, expected in state["sha256"].items():
        content = (path / f"{name}.safetensors").read_bytes()
        if _hash(content) != expected:
            raise ValueError(f"{name}.safetensors was changed or cut short after it was written")
        tensors[name] = safetensors.torch.load(content)
    return Checkpoint(path, tensors, state)


def _is_state(state: object) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        return False
    hashes = state.get("sha256")
    # The names become names of files, and none may lead out of the folder.
    return isinstance(hashes, dict) and all(name.isidentifier() for name in hashes)


def _write_tensors(path: Path, group: dict[str, Tensor]) -> str:
    # The memory layout of the training does not matter to the file. The copies are needed because safetensors refuses
    # tensors that share memory, as tied weights do.
    content = safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in group.items()})
    _write_bytes(path, content)
    return _hash(content)


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put_in_place(partial: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}{_ASIDE}")
    if final.exists():
        # Nothing is removed before the second rename: between the two the old checkpoint is found under its other name.
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
