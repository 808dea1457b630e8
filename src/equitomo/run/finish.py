"""What follows a prediction and is checked before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from equitomo.datasets import TomogramPair
from equitomo.io import bytes_to_create, require_writable
from equitomo.run.folder import named_beside, require_other
from equitomo.run.memory import require_memory
from equitomo.run.settings import ReconstructionSettings


class Finish(ABC):
    """Work on the file of a prediction, for which places, disk and memory are checked before the prediction.

    Parameters
    ----------
    pair
        The tomogram.
    out
        The file of the prediction.
    settings
        The settings of the prediction.
    overwrite
        Replace files that exist.
    memory, scratch
        The bytes that the work takes in memory, and for intermediate results on the disk.

    Attributes
    ----------
    words : sequence of str
        What the files are named after; those with a suffix of their own are small.
    task, remedy : str
        What the work is called, and what to do where the memory does not suffice.
    paths : list of Path
        The files to write.
    n_bytes : int
        The room that they take.

    Raises
    ------
    ValueError
        If a file would replace an input, or the memory does not suffice.
    OSError
        If a file cannot be written.
    """

    words: ClassVar[Sequence[str]]
    task: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(
        self,
        pair: TomogramPair,
        out: Path,
        settings: ReconstructionSettings,
        *,
        overwrite: bool,
        memory: float,
        scratch: int = 0,
    ) -> None:
        self._pair, self._source, self._settings, self._overwrite = pair, out, settings, overwrite
        self.paths = [named_beside(out, word) for word in self.words]
        n_volumes = sum("." not in word for word in self.words)
        self.n_bytes = n_volumes * bytes_to_create(out, pair.shape, settings.dtype)
        for path in self.paths:
            require_other(path, *pair.files.values(), settings.projections)
            require_writable(path, overwrite=overwrite, n_bytes=self.n_bytes + scratch)
        require_memory(memory, f"{self.paths[0]}: {self.task}", self.remedy)

    @abstractmethod
    def write(self) -> object:
        """Write the files."""
