"""``equitomo predict``: a trained network applied to a tomogram."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn
from tqdm import tqdm

from equitomo.cli.machine import require_memory
from equitomo.cli.options import OneOrMany, PredictFiles, Prediction, Reading, RunGeometry
from equitomo.cli.reading import read_one, warn_of_pair
from equitomo.datasets import IntensityScale, Normalization, TomogramPair, read_geometry
from equitomo.geometry import TiltGeometry
from equitomo.inference import Footprint, TiledPredictor, measured_margin
from equitomo.io import Volume, bytes_to_create, creating_volume, require_writable, valid_path
from equitomo.precision import chosen_device
from equitomo.symmetry import MirrorAveraged
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import load_checkpoint, load_network
from equitomo.volumes import VolumeLike as Voxels

Options = dict[type, Any]
Job = Callable[[], None]
Progress = Callable[[int, int], None]
# That "auto" compares with.
_WIDEST_MARGIN = 64


@dataclass(frozen=True)
class Tomogram:
    """What is reconstructed, and into which file."""

    first: str
    second: str | None
    geometry: TiltGeometry
    out: Path


@dataclass(frozen=True)
class Trained:
    """A run's network, its configuration where the command line does not say otherwise, and the tilts it knows.

    ``hashes`` are those of the weights.
    """

    network: nn.Module
    config: TrainingConfig
    geometries: list[dict[str, Any]]
    hashes: dict[str, str]

    @classmethod
    def read(cls, files: PredictFiles) -> Self:
        """From a run's folder or one of its checkpoints."""
        checkpoint = load_checkpoint(Path(files.run))
        state = checkpoint.state
        asked = {name: getattr(files, name) for name in ("passes", "average_first", "mirrors", "precision")}
        config = TrainingConfig(**{**state["config"], **{k: value for k, value in asked.items() if value is not None}})
        network = load_network(checkpoint.path).to(memory_format=torch.channels_last_3d)
        hashes = {name: state["sha256"][name] for name in ("weights", "averaged") if name in state["sha256"]}
        return cls(network, config, state["geometries"], hashes)

    def geometry(self, given: RunGeometry) -> TiltGeometry:
        """How a tomogram was tilted: as the run's, where nothing else is given."""
        if given.tilts is not None:
            axes = {geometry["tilt_axis"] for geometry in self.geometries}
            return read_geometry(given.tilts, given.tilt_axis or (axes.pop() if len(axes) == 1 else "y"))
        if not self.geometries:
            raise ValueError("the checkpoint was converted and knows no tilts: give --tilts")
        if len(self.geometries) > 1:
            raise ValueError("the run was trained on several tilt ranges: say with --tilts which one this tomogram has")
        geometry = TiltGeometry(**self.geometries[0])
        return geometry if given.tilt_axis is None else replace(geometry, tilt_axis=given.tilt_axis)


@dataclass(frozen=True)
class Ready:
    """A prediction for which all that was given is in order and the disk has room."""

    out: Path
    volumes: list[Volume]
    scale: IntensityScale
    predictor: TiledPredictor
    needs: Footprint
    dtype: Literal["float32", "float16"]
    overwrite: bool

    def write(self, progress: Progress, *, finishing: Callable[[], None] = lambda: None) -> None:
        """Predict into the file; ``finishing`` is called when all is computed, before the file takes its name."""
        halves: list[Any] = [volume.data for volume in self.volumes]
        shape, like = halves[0].shape, self.volumes[0]
        with creating_volume(self.out, shape, like=like, dtype=self.dtype, overwrite=self.overwrite) as data:
            intensities = (self.scale.mean, self.scale.scale)
            self.predictor(*halves, out=data, scratch=self.out.parent, intensities=intensities, progress=progress)
            finishing()


def prepare(options: Options) -> Job:
    """Check what the prediction of one tomogram was given; the work that is left."""
    files, given = options[PredictFiles], options[OneOrMany]
    out = valid_path(files.out)
    require_writable(out, overwrite=files.overwrite)
    require_other(out, given.first, given.second)
    devices = chosen_devices(files.device)
    trained = Trained.read(files)
    trained.network.to(devices[0])
    tomogram = Tomogram(given.first, given.second, trained.geometry(options[RunGeometry]), out)
    ready = make_ready(tomogram, trained, options, devices=devices, overwrite=files.overwrite)

    def job() -> None:
        print(f"Prediction takes up to {ready.needs}, and what the network computes with")
        with progress("predicting", "tile") as show:
            ready.write(show)
        print(f"Wrote {out}")

    return job


def make_ready(
    tomogram: Tomogram, trained: Trained, options: Options, *, devices: list[torch.device], overwrite: bool
) -> Ready:
    """Read what a tomogram's prediction needs, and see whether it can be.

    Raises
    ------
    ValueError, OSError
        If it cannot.
    """
    prediction: Prediction = options[Prediction]
    volumes, scale = _read_volumes(tomogram, options[Reading], trained.config.normalization)
    require_range(volumes[0].data, prediction.dtype)
    predictor = make_predictor(
        trained.network,
        tomogram.geometry,
        prediction,
        trained.config,
        devices=devices,
        sample=volumes[0].data,
        intensities=(scale.mean, scale.scale),
        name=tomogram.first,
    )
    shape = volumes[0].data.shape
    needs = Footprint.of(predictor, shape, halves=len(volumes), sources=[volume.data for volume in volumes])
    n_bytes = bytes_to_create(tomogram.out, shape, prediction.dtype) + needs.disk
    require_writable(tomogram.out, overwrite=overwrite, n_bytes=n_bytes)
    require_memory(needs.memory, f"{tomogram.out}: prediction", "a smaller --tile or --local_tile needs less")
    return Ready(tomogram.out, volumes, scale, predictor, needs, prediction.dtype, overwrite)


def chosen_devices(names: str) -> list[torch.device]:
    """The devices of a list of names with commas between them, each tried."""
    devices = [chosen_device(name.strip()) for name in names.split(",")]
    if len({device.type for device in devices}) > 1:
        raise ValueError(f"--device {names} names devices of several kinds, whose results would differ: give one kind")
    return devices


def require_other(out: Path, *inputs: str | None) -> None:
    """Refuse to put the result in the place of what it is made from."""
    # A level of an OME-Zarr store is a folder in it.
    resolved = [Path(path).resolve() for path in inputs if path is not None]
    if any(out.resolve() in (path, *path.parents) for path in resolved):
        raise ValueError(f"{out} is one of the inputs: choose another name for the result")


def require_range(volume: Iterable[Any], dtype: str) -> None:
    """Refuse 16 bits for intensities that they cannot hold, before and not after the work."""
    if dtype != "float16":
        return
    largest = max(abs(float(end)) for section in volume for end in (section.min(), section.max()))
    if largest > 6e4:
        raise ValueError(f"intensities reach {largest:g}, more than --dtype float16 can hold: write float32")


def make_predictor(
    network: nn.Module,
    geometry: TiltGeometry,
    prediction: Prediction,
    config: TrainingConfig,
    *,
    devices: list[torch.device] | None = None,
    sample: Voxels | None = None,
    intensities: tuple[float, float] = (0.0, 1.0),
    name: str = "the tomogram",
) -> TiledPredictor:
    """A predictor as the run was configured and the command line asks.

    A margin that is to be measured is measured on ``sample``, a volume of these ``intensities``, and said with its
    ``name``; without a sample none is taken, which is enough to see whether the other settings can work.
    """
    make = partial(
        TiledPredictor,
        MirrorAveraged(network, geometry, flips=config.flips) if config.mirrors else network,
        geometry,
        tile=prediction.tile or None,
        passes=config.passes,
        average_first=config.average_first,
        wedge=prediction.wedge,
        local_tile=prediction.local_tile or None,
        precision=config.precision,
        devices=devices,
    )
    if prediction.tile_margin != "auto":
        return make(margin=prediction.tile_margin)
    predictor = make(margin=0)
    if sample is None:
        return predictor
    margin = _measured_margin(predictor, prediction, sample, intensities)
    tqdm.write(f"Margins of {margin} voxels are within {prediction.margin_tolerance:g} of what wider ones give {name}")
    return make(margin=margin)


def _measured_margin(
    predictor: TiledPredictor,
    prediction: Prediction,
    sample: Voxels,
    intensities: tuple[float, float],
) -> int:
    """The margin that is within the tolerance in the middle of a volume."""
    # Core and margins make one tile: measuring takes no more memory than predicting.
    core = min(32, predictor.tile // 4)
    room = min((predictor.tile - core) // 2, _WIDEST_MARGIN)
    largest = max(room // predictor.stride, 1) * predictor.stride
    settings: dict[str, Any] = {"largest": largest, "core": core, "intensities": intensities}
    try:
        return measured_margin(predictor, sample, prediction.margin_tolerance, **settings)
    except ValueError as error:
        raise ValueError(f"--tile_margin auto: {error}; that is, a larger --tile or --margin_tolerance") from error


@contextmanager
def progress(title: str, unit: str) -> Iterator[Progress]:
    """A bar, as a function of what is done and the total."""
    with tqdm(desc=title, unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _read_volumes(
    tomogram: Tomogram, reading: Reading, normalization: Normalization
) -> tuple[list[Volume], IntensityScale]:
    paths = [path for path in (tomogram.first, tomogram.second) if path is not None]
    volumes = [read_one(path, reading) for path in paths]
    second = volumes[1] if len(volumes) > 1 else None
    pair = TomogramPair(volumes[0], second, tomogram.geometry, normalization=normalization, lazy=True)
    warn_of_pair(pair)
    return volumes, pair.scale
