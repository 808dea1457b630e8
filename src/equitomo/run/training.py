"""The part of a run that trains: its trainer, its folder and its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equitomo.datasets import TomogramPair
from equitomo.io import Volume
from equitomo.methods import IcecreamTrainer
from equitomo.run.folder import RunFolder
from equitomo.run.memory import require_memory_of_step
from equitomo.run.pictures import TrainingWatch
from equitomo.run.record import Invocation, Manifest


@dataclass
class RunTraining:
    """The part of a run that trains: the trainer, with the folder that it writes into and the record.

    The record is ``None`` in all but the first of several processes. ``resume`` and ``overwrite`` say what may be in
    the folder.
    """

    trainer: IcecreamTrainer
    folder: RunFolder
    watch: TrainingWatch
    record: Manifest | None
    invocation: Invocation
    resume: bool
    overwrite: bool
    _is_recorded: bool = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Hold the folder and keep the record until the block ends. Of nested blocks the outermost one counts."""
        if self._is_recorded:
            yield
            return
        with self.folder.held(resume=self.resume, overwrite=self.overwrite):
            if self.record is None:  # another process writes
                yield
                return
            if self.overwrite:
                self.folder.clear()
            else:
                self.record.require_unchanged()
            # From here on the folder holds this run.
            self.resume, self.overwrite, self._is_recorded = True, False, True
            try:
                with self.record.kept(self.invocation):
                    yield
            finally:
                self._is_recorded = False


def prepared_record(
    trainer: IcecreamTrainer,
    folder: RunFolder,
    inputs: Mapping[str, Volume | Path],
    init: Any,
    *,
    resume: bool,
) -> Manifest:
    """Return the record of a run, after all checks that the first process does for all."""
    paths = [file if isinstance(file, Path) else file.path for file in inputs.values()]
    origin = [init["path"]] if isinstance(init, dict) and "path" in init else []
    folder.require_apart([*paths, *origin])
    folder.require_space(trainer.bytes_to_write)
    require_memory_of_step(trainer)
    record = Manifest(folder.path, trainer, inputs=inputs, init=init)
    if resume:
        record.resume()
    return record


def inputs_of(pairs: Sequence[TomogramPair]) -> dict[str, Volume | Path]:
    """Return the files of the tomograms by role."""
    if len(pairs) == 1:
        return dict(pairs[0].files)
    numbered = enumerate(pairs, 1)
    return {f"{role} of tomogram {number}": file for number, pair in numbered for role, file in pair.files.items()}
