"""The standard deviation of the voxels of a prediction, written beside it under a name and a label of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equitomo.confidence import bytes_for_confidence, confidence_map
from equitomo.datasets import TomogramPair
from equitomo.geometry import Geometry
from equitomo.inference import TiledPredictor
from equitomo.io import bytes_to_create, read_volume, require_writable, write_volume
from equitomo.run.folder import named_beside
from equitomo.run.memory import require_memory
from equitomo.run.settings import ReconstructionSettings


class Confidence:
    """The confidence map of a prediction, checked before the prediction is made.

    Parameters
    ----------
    pair
        The tomogram.
    out
        The file of the prediction.
    predictor
        The predictor.
    geometry
        The tilts of all that was measured.
    settings
        The settings, with ``confidence`` other than ``"none"``.
    overwrite
        Replace the file if it exists.

    Attributes
    ----------
    path : Path
        The file to write.
    n_bytes : int
        The room that it takes.

    Raises
    ------
    ValueError
        If a second half is needed and missing, or the memory does not suffice.
    OSError
        If the file cannot be written.
    """

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
        self.path = named_beside(out, "confidence")
        self._pair, self._source, self._predictor, self._geometry = pair, out, predictor, geometry
        self._settings, self._overwrite = settings, overwrite
        assert settings.confidence != "none"
        self._estimate = settings.confidence
        if pair.n_views < 2 and self._estimate != "orbit":
            raise ValueError(
                f"{pair.name}: `confidence='{self._estimate}'` takes the noise from two halves, and there is one "
                "volume: give its second half, or pass `confidence='orbit'`"
            )
        self.n_bytes = bytes_to_create(self.path, pair.shape, settings.dtype)
        require_writable(self.path, overwrite=overwrite, n_bytes=self.n_bytes)
        require_memory(
            bytes_for_confidence(pair.shape, self._estimate),
            f"{self.path}: the confidence map",
            "predict without `confidence`, or a part of the tomogram",
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
        samples = "" if self._estimate == "halves" else f", {settings.confidence_samples} samples"
        header: dict[str, Any] = {"like": read_volume(self._source), "dtype": settings.dtype}
        label = f"equitomo: standard deviation by {self._estimate}{samples}, not calibrated"
        return write_volume(self.path, deviation.numpy(), label=label, overwrite=self._overwrite, **header)
