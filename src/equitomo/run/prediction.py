"""The prediction of one tomogram: the predictor that a run's settings make, and all checks before the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from equitomo.datasets import TomogramPair
from equitomo.geometry import Geometry, TiltGeometry
from equitomo.inference import Footprint, TiledPredictor, measured_margin
from equitomo.io import Volume, bytes_to_create, creating_volume, require_writable, valid_path
from equitomo.precision import chosen_device
from equitomo.run.confidence import Confidence
from equitomo.run.deconvolution import Deconvolution
from equitomo.run.finish import Finish
from equitomo.run.folder import require_other
from equitomo.run.memory import require_memory
from equitomo.run.refinement import Refinement
from equitomo.run.settings import ReconstructionSettings
from equitomo.run.splitting import Split
from equitomo.symmetry import MirrorAveraged
from equitomo.training import TrainingConfig
from equitomo.training.method import Operator

Progress = Callable[[int, int], None]
VoxelType = Literal["float32", "float16"]
# The widest margin that "auto" compares with.
_WIDEST_MARGIN = 64
_LARGEST_FLOAT16 = 6e4
# Degrees by which the ends of the tilts of two halves may differ for their wedge to count as one.
_SAME_RANGE = 7.0


def predictor_for(
    network: nn.Module,
    geometry: Geometry,
    settings: ReconstructionSettings,
    config: TrainingConfig,
    *,
    physics: Operator | None = None,
    devices: Sequence[torch.device] | None = None,
    pair: TomogramPair | None = None,
) -> TiledPredictor:
    """Return the predictor of a run.

    ``physics`` makes the operator of a run that has its own; otherwise the geometry does. A ``tile_margin`` of "auto"
    is measured on ``pair``. Without one it stays zero, which suffices to see whether the other settings fit.
    """
    averaged = MirrorAveraged(network, geometry, flips=config.flips, images=config.mirror_images)
    make = partial(
        TiledPredictor,
        averaged if config.test_time_mirrors else network,
        geometry if physics is None else lambda shape: physics(shape, geometry),
        tile=settings.tile or None,
        passes=config.passes,
        average_first=config.average_first,
        wedge=settings.wedge,
        local_tile=settings.local_tile or None,
        precision=config.precision,
        devices=devices,
    )
    try:
        if settings.tile_margin != "auto":
            return make(margin=settings.tile_margin)
        predictor = make(margin=0)
        return predictor if pair is None else make(margin=_measured_margin(predictor, settings, pair))
    except ValueError as error:
        # The margin of a configuration is another one.
        raise ValueError(str(error).replace("`margin`", "`tile_margin`")) from error


def _measured_margin(predictor: TiledPredictor, settings: ReconstructionSettings, pair: TomogramPair) -> int:
    """Return the margin that is within the tolerance in the middle of a tomogram."""
    # Core and margins make one tile: measuring takes no more memory than predicting.
    core = min(32, predictor.tile // 4)
    room = min((predictor.tile - core) // 2, _WIDEST_MARGIN)
    largest = max(room // predictor.stride, 1) * predictor.stride
    try:
        return measured_margin(
            predictor,
            pair.halves[0],
            settings.margin_tolerance,
            largest=largest,
            core=core,
            intensities=(pair.scale.mean, pair.scale.scale),
        )
    except ValueError as error:
        message = f"`tile_margin='auto'`: {error}; that is, a larger `tile` or `margin_tolerance`"
        raise ValueError(message) from error


class Plan:
    """The prediction of a tomogram, for which inputs and settings are checked and the disk has room.

    Parameters
    ----------
    pair
        The tomogram.
    out
        The file to write.
    predictor
        The predictor.
    settings
        The settings of the prediction.
    overwrite
        Replace the file if it exists.
    label
        What the header says of the volume; ``None`` for the program's name.

    Attributes
    ----------
    needs : Footprint
        The memory and the disk that the prediction takes.
    finishes : list of Finish
        What follows the prediction, if the settings ask for it.
    paths : list of Path
        The files that are written, that of the prediction first.

    Raises
    ------
    ValueError
        If the result would replace an input, the intensities do not fit into 16 bits, or the memory does not suffice.
    OSError
        If the file cannot be written, or the disk has too little room.
    """

    def __init__(
        self,
        pair: TomogramPair,
        out: str | Path,
        predictor: TiledPredictor,
        settings: ReconstructionSettings,
        *,
        overwrite: bool = False,
        label: str | None = None,
    ) -> None:
        self.pair, self.out, self.predictor = pair, valid_path(out), predictor
        self.settings, self._overwrite, self._label = settings, overwrite, label
        require_other(self.out, *pair.files.values())
        require_range(pair, settings.dtype)
        self.needs = Footprint.of(predictor, pair.shape, halves=len(pair.halves), sources=pair.halves)
        n_bytes = bytes_to_create(self.out, pair.shape, settings.dtype) + self.needs.disk
        require_writable(self.out, overwrite=overwrite, n_bytes=n_bytes)
        require_memory(self.needs.memory, f"{self.out}: prediction", "a smaller `tile` or `local_tile` needs less")
        self.finishes = finishes(pair, self.out, predictor, settings, overwrite=overwrite)
        self.paths = [self.out, *(path for finish in self.finishes for path in finish.paths)]

    def write(self, progress: Progress | None = None, *, before_naming: Callable[[], None] = lambda: None) -> Path:
        """Predict into the file, write what follows into others, and return the path of the first.

        Parameters
        ----------
        progress
            Called with the number of tiles done and their total.
        before_naming
            Called when all is computed, before the file takes its name.
        """
        pair = self.pair
        first = pair.files.get("first")
        header: dict[str, Any] = {"like": first} if isinstance(first, Volume) else {"voxel_size": pair.voxel_size}
        header |= {"dtype": self.settings.dtype, "overwrite": self._overwrite, "label": self._label}
        with creating_volume(self.out, pair.shape, **header) as data:
            intensities = (pair.scale.mean, pair.scale.scale)
            self.predictor(*pair.halves, out=data, scratch=self.out.parent, intensities=intensities, progress=progress)
            before_naming()
        for finish in self.finishes:
            finish.write()
        return self.out


def finishes(
    pair: TomogramPair, out: Path, predictor: TiledPredictor, settings: ReconstructionSettings, *, overwrite: bool
) -> list[Finish]:
    """Return what the settings ask for after a prediction, checked before it."""
    found: list[Finish] = []
    if settings.refine != "none":
        found.append(Refinement(pair, out, settings, overwrite=overwrite))
    if settings.deconvolve != "none":
        found.append(Deconvolution(pair, out, settings, overwrite=overwrite))
    if settings.split_result:
        geometry = _geometry_for("split_result", pair)
        found.append(Split(pair, out, geometry, settings, overwrite=overwrite))
    if settings.confidence != "none":
        geometry = _geometry_for("confidence", pair)
        found.append(Confidence(pair, out, predictor, geometry, settings, overwrite=overwrite))
    return found


def chosen_devices(devices: str | Sequence[str | torch.device]) -> list[torch.device]:
    """Return devices, given as such or as names with commas between them, after trying each; refuse several kinds."""
    names = devices.split(",") if isinstance(devices, str) else [str(device) for device in devices]
    chosen = [chosen_device(name.strip()) for name in names]
    if len({device.type for device in chosen}) > 1:
        raise ValueError(f"devices of several kinds, {', '.join(names)}, would give other results: choose one kind")
    return chosen


def common_geometry(pair: TomogramPair) -> Geometry:
    """Return the tilts of both halves together if their ranges nearly agree, and else those of the first.

    Halves that were made of every second tilt, or of scans of the same tilts, lack almost the same wedge.
    """
    if not _nearly_agree(pair):
        return pair.geometry
    angles = {angle for geometry in pair.geometries for part in geometry.parts for angle in part.angles}
    return TiltGeometry(angles, pair.geometry.parts[0].tilt_axis)


def _geometry_for(setting: str, pair: TomogramPair) -> Geometry:
    """Return the tilts of both halves together for a setting that needs those of one volume."""
    if len(set(pair.geometries)) > 1 and not _nearly_agree(pair):
        raise ValueError(
            f"{pair.name}: the halves have different tilts, and `{setting}` needs those of one volume: predict each "
            "half alone"
        )
    return common_geometry(pair)


def _nearly_agree(pair: TomogramPair) -> bool:
    """Return whether the halves have other tilts about one axis, but nearly the same range."""
    parts = [part for geometry in pair.geometries for part in geometry.parts]
    if len(set(pair.geometries)) == 1 or len(parts) != 2 or any(part.continuous or part.weights for part in parts):
        return False
    first, second = parts
    ends = zip(first.tilt_range, second.tilt_range, strict=True)
    return first.tilt_axis == second.tilt_axis and all(abs(one - other) <= _SAME_RANGE for one, other in ends)


def require_one_wedge(pair: TomogramPair, config: TrainingConfig) -> None:
    """Refuse halves of clearly different tilts where a prediction depends on the wedge."""
    if _nearly_agree(pair):
        return
    if len(set(pair.geometries)) > 1 and (config.passes > 1 or config.test_time_mirrors):
        raise ValueError(
            f"{pair.name}: the halves have different tilts, and a prediction with several passes or with mirror images "
            "needs those of the volume that it is applied to: predict each half alone, or pass `passes=1` and "
            "`test_time_mirrors=False`"
        )


def require_range(pair: TomogramPair, dtype: VoxelType) -> None:
    """Refuse 16 bits for intensities that they cannot hold, before and not after the work."""
    if dtype == "float32":
        return
    largest = max(abs(end) for half in pair.statistics for end in half.extremes)
    if largest > _LARGEST_FLOAT16:
        raise ValueError(f"intensities reach {largest:g}, more than `dtype='float16'` can hold: write float32")
