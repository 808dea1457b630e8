"""The data-consistent finish of a prediction, written beside it under a name and a label of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from equitomo.datasets import TiltSeries, TomogramPair
from equitomo.geometry import TiltGeometry
from equitomo.io import creating_volume, read_volume
from equitomo.refinement import MeasuredSeries, Measurement, ReprojectedHalves, bytes_to_refine, fitted_scale, refine
from equitomo.run.finish import Finish
from equitomo.run.settings import ReconstructionSettings


class Refinement(Finish):
    """The refinement of a prediction, checked before the prediction is made.

    The settings have ``refine="sirt"``.

    Raises
    ------
    ValueError
        If the projections do not fit the tomogram, or the memory does not suffice.
    OSError
        If a file cannot be read or written.
    """

    words, task = ("refined",), "refinement"
    remedy = "predict without `refine`, and refine on a larger machine"

    def __init__(self, pair: TomogramPair, out: Path, settings: ReconstructionSettings, *, overwrite: bool) -> None:
        self._measurement = _measurement(pair, settings)
        super().__init__(
            pair, out, settings, overwrite=overwrite, memory=bytes_to_refine(pair.shape, self._measurement)
        )

    def write(self, progress: Callable[[int, int], None] | None = None) -> Path:
        """Refine the file of the prediction and return the path of the result."""
        (path,), volume, settings = self.paths, read_volume(self._source), self._settings
        against = "the halves" if settings.projections is None else "projections"
        sign = ", positive" if settings.positive else ""
        label = f"equitomo: refined by {settings.refine_iterations} iterations of SIRT against {against}{sign}"
        header: dict[str, Any] = {"like": volume, "label": label, "dtype": settings.dtype, "overwrite": self._overwrite}
        with creating_volume(path, volume.shape, **header) as data:
            refine(
                volume,
                self._measurement,
                iterations=settings.refine_iterations,
                positive=settings.positive,
                out=data,
                progress=progress,
            )
        return path


def _measurement(pair: TomogramPair, settings: ReconstructionSettings) -> Measurement:
    """Return the projections: those of a file, or else those of the halves."""
    if settings.projections is None:
        return ReprojectedHalves(pair.halves, pair.geometries)
    geometry, tilts = pair.geometry, pair.files.get("tilts")
    if not isinstance(geometry, TiltGeometry) or geometry.continuous:
        raise ValueError(
            f"`projections` {settings.projections} need the list of their tilts: pass the file of the angles as "
            "`tilts`, and not a range"
        )
    # The file and not the geometry, which has lost the order of the images.
    series = TiltSeries.read(
        settings.projections,
        tilts=tilts if isinstance(tilts, Path) else list(geometry.angles),
        tilt_axis=geometry.tilt_axis,
    )
    n_along = pair.shape[geometry.axes.along]
    if series.shape[0] != n_along:
        raise ValueError(
            f"{settings.projections} has {series.shape[0]} pixels along the tilt axis and the tomogram {n_along} "
            "voxels: give the aligned projections that the halves were made from, binned as these"
        )
    measured = MeasuredSeries(series.projections, series.geometry)
    try:
        # Projections of another contrast are to be found now and not after the training.
        fitted_scale(pair.halves[0], measured)
    except ValueError as error:
        raise ValueError(f"{settings.projections}: {error}") from error
    return measured
