"""The folder in which a wedge test keeps its trainings until it is done, so that it can be continued."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from equitomo.datasets import HeldOutSector
from equitomo.io import write_atomically
from equitomo.run.folder import RunFolder
from equitomo.run.wedge_settings import WedgeTestSettings
from equitomo.training.config import PredictionSettings, RuntimeSettings, TrainingConfig
from equitomo.training.fingerprint import describe, differences

_RECORD = "wedge_test.json"
# Voxels along an axis, at most, by which tomograms are told apart.
_SAMPLED = 32
# A training is the same with other values of these.
_FREE = {field.name for group in (RuntimeSettings, PredictionSettings) for field in dataclasses.fields(group)}
# But what it keeps may be what is compared.
_FREE -= {"keep_every"}
# What the settings of a test say about its trainings, beside their length.
_OF_TRAINING = ("keep", "start", "every")


@dataclass(frozen=True)
class KeptTraining:
    """The folder of one training, and what belongs to the test that it is part of."""

    path: Path
    about: Mapping[str, Any]

    def record(self) -> None:
        """Write what the training belongs to, before it begins."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.about, indent=1).encode() + b"\n"
        write_atomically(self.path / _RECORD, content, overwrite=True)


class WedgeTrainings:
    """A folder with the trainings of a wedge test, each in one of its own, as a run has one.

    A test that was interrupted finds its trainings there, continues the unfinished one and does not repeat the others.

    Parameters
    ----------
    path
        The folder, which need not exist.
    overwrite
        Replace trainings of a test with other settings, which are refused otherwise.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self._folder, self._overwrite = RunFolder(path, names=()), overwrite

    @contextmanager
    def held(self, *, break_lock: bool = False) -> Iterator[None]:
        """Keep other processes out of the folder until the block ends, and remove it then if it is empty.

        Raises
        ------
        OSError
            If another process uses the folder, or it cannot be written.
        """
        with self._folder.held(break_lock=break_lock):
            yield
        with suppress(OSError):
            self._folder.path.rmdir()

    def kept(
        self,
        name: str,
        held_out: HeldOutSector,
        config: TrainingConfig,
        settings: WedgeTestSettings,
        init: nn.Module | None,
    ) -> KeptTraining:
        """Return the folder ``name`` for a training, with nothing in it or with the beginning of this very training.

        Raises
        ------
        ValueError
            If it holds a training with other settings, and they are not to be replaced.
        """
        training = KeptTraining(self._folder.path / name, _about(held_out, config, settings, init))
        if not training.path.exists() or not (differing := _differing(training)):
            return training
        if not self._overwrite:
            raise ValueError(
                f"{training.path} holds a training of another wedge test, which was interrupted or kept: {differing}. "
                "Give what it was begun with to continue it, or pass `overwrite=True` to replace it"
            )
        shutil.rmtree(training.path)
        return training

    def require_space(self, n_bytes: int) -> None:
        """Refuse, before any work, a disk with less room than ``n_bytes``."""
        self._folder.require_space(n_bytes)

    def remove(self) -> None:
        """Remove all trainings."""
        for record in self._folder.path.glob(f"*/{_RECORD}"):
            shutil.rmtree(record.parent)


def _about(
    held_out: HeldOutSector, config: TrainingConfig, settings: WedgeTestSettings, init: nn.Module | None
) -> dict[str, Any]:
    """Return what tells one training from another: the settings, the tomogram and the weights that it starts from."""
    steps = [max(1, n // _SAMPLED) for n in held_out.pair.shape]
    sample = held_out.pair.volumes[:, :: steps[0], :: steps[1], :: steps[2]]
    given = dataclasses.asdict(settings)
    own = {name: value for name, value in config.as_dict().items() if name not in _FREE}
    shared = {name: given[name] for name in _OF_TRAINING if name in given}
    about = {
        "settings": {**own, **shared, "tilts": str(held_out.pair.geometry)},
        "tomogram": describe(sample.clone()),
        "weights": None if init is None else describe(init),
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def _differing(training: KeptTraining) -> str:
    """Return how what a folder holds differs from a training, empty if it does not."""
    try:
        before = json.loads((training.path / _RECORD).read_bytes())
        settings = dict(before["settings"])
        others = {name: before[name] for name in ("tomogram", "weights")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {_RECORD} cannot be read ({error})"
    now = training.about["settings"]
    found = [f"`{name}` was {settings.get(name)}, now {now[name]}" for name in now if settings.get(name) != now[name]]
    if not found:
        words = {"tomogram": "the tomogram was another one", "weights": "the weights to start from were others"}
        found = [words[name] for name in others if any(differences(others[name], training.about[name]))]
    return ", ".join(found[:4])
