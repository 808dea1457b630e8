"""The measured and the filled part of a prediction and the spots of the latter, written beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equitomo.datasets import TomogramPair
from equitomo.filled import data_consistent, full_wedge_mask, measured_operator, measured_part
from equitomo.geometry import Geometry
from equitomo.io import Volume, creating_volume, read_volume, release
from equitomo.physics.streamed import streaming_needs
from equitomo.report import draw_spots
from equitomo.run.finish import Finish
from equitomo.run.settings import ReconstructionSettings
from equitomo.run.summary import MeanOfHalves
from equitomo.spots import bytes_to_find_spots, filled_spots, write_spots
from equitomo.volumes import VolumeLike

# The volumes and what their headers say of them, and the names of a table and a picture of spots.
PARTS = {
    "measured": "equitomo: measured part of the result, the wedge is empty again",
    "filled": "equitomo: filled part of the result, inferred and not measured",
    "data_consistent": "equitomo: measured part of the input, wedge filled by a network",
    "wedge_mask": "equitomo: 1 where measured, zero frequency in the first voxel",
}
SPOTS = ("filled_spots.csv", "filled_spots.png")


class Split(Finish):
    """The split of a prediction, checked before the prediction is made.

    ``geometry`` has the tilts of all that was measured, and the settings have ``split_result=True``.

    Raises
    ------
    ValueError
        If the halves have clearly different tilts, or the memory does not suffice.
    OSError
        If a file cannot be written.
    """

    words, task = (*PARTS, *SPOTS), "the split"
    remedy = "predict without `split_result`"

    def __init__(
        self, pair: TomogramPair, out: Path, geometry: Geometry, settings: ReconstructionSettings, *, overwrite: bool
    ) -> None:
        self._geometry = geometry
        memory, scratch = streaming_needs(measured_operator(geometry), pair.shape)
        memory = max(memory, bytes_to_find_spots(pair.shape))
        super().__init__(pair, out, settings, overwrite=overwrite, memory=memory, scratch=scratch)
        self._paths = dict(zip(self.words, self.paths, strict=True))

    def write(self) -> None:
        """Split the file of the prediction."""
        result, folder = read_volume(self._source), self._source.parent
        with self._creating("measured", result) as measured:
            measured_part(result, self._geometry, out=measured, scratch=folder)
            with self._creating("filled", result) as filled:
                for place, block in result.slabs():
                    filled[place] = np.subtract(block, measured[place], dtype=np.float32)
                    release(measured, filled)
                self._list_spots(result, measured, filled)
        with self._creating("data_consistent", result) as both:
            data_consistent(result, MeanOfHalves(self._pair), self._geometry, out=both, scratch=folder)
        with self._creating("wedge_mask", None) as mask:
            full_wedge_mask(result.shape, self._geometry, out=mask)

    def _list_spots(self, result: Volume, measured: NDArray[Any], filled: NDArray[Any]) -> None:
        """Write a table and a picture of the spots that the measured part does not show."""
        spots = filled_spots(result, measured, self._geometry)
        table, picture = (self._paths[name] for name in SPOTS)
        write_spots(table, spots, voxel_size=self._pair.voxel_size, overwrite=self._overwrite)
        volumes: dict[str, VolumeLike] = {"result": result, "measured part": measured, "filled part": filled}
        draw_spots(picture, spots, volumes, geometry=self._geometry)

    @contextmanager
    def _creating(self, word: str, like: Volume | None) -> Iterator[NDArray[Any]]:
        """Yield the array of a new file."""
        header: dict[str, Any] = {"voxel_size": self._pair.voxel_size} if like is None else {"like": like}
        header |= {"label": PARTS[word], "dtype": self._settings.dtype, "overwrite": self._overwrite}
        with creating_volume(self._paths[word], self._pair.shape, **header) as data:
            yield data
