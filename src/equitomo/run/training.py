"""The part of a run that trains: its trainer, its folder and its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equitomo.datasets import TomogramPair
from equitomo.io import Volume
from equitomo.methods import IcecreamTrainer
from equitomo.run.folder import RunFolder
from equitomo.run.memory import require_memory_of_step
from equitomo.run.pictures import TrainingWatch
from equitomo.run.record import Invocation, Manifest


class RunTraining:
    """The part of a run that trains: the trainer, with the folder and the record.

    Parameters
    ----------
    trainer
        The trainer, which writes into the folder.
    folder
        The folder.
    watch
        Receives what the trainer reports.
    invocation
        The command that this is part of.
    resume, overwrite
        What is allowed to be in the folder.
    """

    def __init__(
        self,
        trainer: IcecreamTrainer,
        folder: RunFolder,
        watch: TrainingWatch,
        invocation: Invocation,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.trainer, self.folder, self.watch = trainer, folder, watch
        self._invocation, self._resume, self._overwrite = invocation, resume, overwrite
        self._manifest: Manifest | None = None
        self._is_recorded = False

    def prepare(self, inputs: Mapping[str, Volume | Path], init: Any, init_path: str | Path | None) -> None:
        """Make the record, after all checks that the first process does for all."""
        paths = [file if isinstance(file, Path) else file.path for file in inputs.values()]
        self.folder.require_apart([*paths, *([] if init_path is None else [init_path])])
        self.folder.require_space(self.trainer.bytes_to_write)
        require_memory_of_step(self.trainer)
        self._manifest = Manifest(self.folder.path, self.trainer, inputs=inputs, init=init)
        if self._resume:
            self._manifest.resume()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Hold the folder and keep the record until the block ends. Of nested blocks the outermost one counts."""
        if self._is_recorded:
            yield
            return
        with self.folder.held(resume=self._resume, overwrite=self._overwrite):
            if self._manifest is None:  # another process writes
                yield
                return
            if self._overwrite:
                self.folder.clear()
            else:
                self._manifest.require_unchanged()
            # From here on the folder holds this run.
            self._resume, self._overwrite, self._is_recorded = True, False, True
            try:
                with self._manifest.kept(self._invocation):
                    yield
            finally:
                self._is_recorded = False


def inputs_of(pairs: Sequence[TomogramPair]) -> dict[str, Volume | Path]:
    """Return the files of the tomograms by role."""
    if len(pairs) == 1:
        return dict(pairs[0].files)
    numbered = enumerate(pairs, 1)
    return {f"{role} of tomogram {number}": file for number, pair in numbered for role, file in pair.files.items()}
