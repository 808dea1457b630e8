"""The standard deviation of the voxels of a prediction, written beside it under a name and a label of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equitomo.confidence import bytes_for_confidence, confidence_map
from equitomo.datasets import TomogramPair
from equitomo.geometry import Geometry
from equitomo.inference import TiledPredictor
from equitomo.io import Volume, read_volume, write_volume
from equitomo.run.finish import Finish
from equitomo.run.settings import ReconstructionSettings

_LEARNED = "learned from simulations"


def is_learned(volume: Volume) -> bool:
    """Return whether the header of a confidence map says that it was learned where the truth is known."""
    return any(_LEARNED in label for label in volume.header.labels)


class Confidence(Finish):
    """The confidence map of a prediction, checked before the prediction is made.

    ``geometry`` has the tilts of all that was measured, and the settings a ``confidence`` other than ``"none"``.

    Raises
    ------
    ValueError
        If a second half is needed and missing, or the memory does not suffice.
    OSError
        If the file cannot be written.
    """

    words, task = ("confidence",), "the confidence map"
    remedy = "predict without `confidence`, or a part of the tomogram"

    def __init__(
        self,
        pair: TomogramPair,
        out: Path,
        predictor: TiledPredictor,
        geometry: Geometry,
        settings: ReconstructionSettings,
        *,
        overwrite: bool,
    ) -> None:
        self._predictor, self._geometry = predictor, geometry
        assert settings.confidence != "none"
        self._estimate = settings.confidence
        if pair.n_views < 2 and self._estimate != "orbit":
            raise ValueError(
                f"{pair.name}: `confidence='{self._estimate}'` takes the noise from two halves, and there is one "
                "volume: give its second half, or pass `confidence='orbit'`"
            )
        super().__init__(
            pair, out, settings, overwrite=overwrite, memory=bytes_for_confidence(pair.shape, self._estimate)
        )

    def write(self) -> Path:
        """Estimate the map and return its path."""
        pair, settings = self._pair, self._settings
        first, *others = pair.halves
        deviation = confidence_map(
            self._predictor,
            first,
            others[0] if others else None,
            self._geometry,
            estimate=self._estimate,
            n_samples=settings.confidence_samples,
            intensities=(pair.scale.mean, pair.scale.scale),
        )
        samples = f", {settings.confidence_samples} samples" if self._estimate in ("bootstrap", "orbit") else ""
        header: dict[str, Any] = {"like": read_volume(self._source), "dtype": settings.dtype}
        label = f"equitomo: standard deviation by {self._estimate}{samples}, not calibrated"
        if self._estimate == "learned":
            label = f"equitomo: standard deviation {_LEARNED}"
        return write_volume(self.paths[0], deviation.numpy(), label=label, overwrite=self._overwrite, **header)
