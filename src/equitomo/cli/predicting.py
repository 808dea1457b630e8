"""``equitomo predict``: a trained network applied to a tomogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from equitomo.cli import run_folder
from equitomo.cli.options import OneOrTwo, PredictFiles, Prediction, Reading, RunGeometry
from equitomo.cli.reading import read_geometry, read_halves, read_one
from equitomo.datasets import IntensityScale, Normalization, require_usable
from equitomo.geometry import TiltGeometry
from equitomo.inference import TiledPredictor
from equitomo.io import Volume, creating_volume, named, require_writable
from equitomo.precision import chosen_device
from equitomo.symmetry import MirrorAveraged
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import load_checkpoint, load_network

Options = dict[type, Any]
Job = Callable[[], None]


def prepare(options: Options) -> Job:
    """Check what a prediction was given; the work that is left."""
    files: PredictFiles = options[PredictFiles]
    out = named(files.out)
    require_writable(out, overwrite=files.overwrite)
    require_other(out, options[OneOrTwo].first, options[OneOrTwo].second)
    checkpoint = load_checkpoint(Path(files.run))
    volumes, scale = _read_volumes(options[OneOrTwo], options[Reading], checkpoint.state["config"]["normalization"])
    require_range(volumes[0].data, options[Prediction].dtype)
    geometry = _run_geometry(options[RunGeometry], checkpoint.state["geometries"])
    network = load_network(checkpoint.path).to(chosen_device(files.device)).to(memory_format=torch.channels_last_3d)
    predictor = make_predictor(network, geometry, options[Prediction], _run_config(files, checkpoint.state["config"]))

    shape = volumes[0].data.shape
    needs = predictor.footprint(shape, halves=len(volumes))
    n_bytes = run_folder.output_bytes(math.prod(shape), options[Prediction]) + needs.disk
    require_writable(out, overwrite=files.overwrite, n_bytes=n_bytes)

    def job() -> None:
        print(f"Prediction takes up to {needs}, and what the network computes with")
        head: dict[str, Any] = {"like": volumes[0], "dtype": options[Prediction].dtype, "overwrite": files.overwrite}
        with creating_volume(out, shape, **head) as data, progress("predicting", "tile") as predictor.progress:
            halves = [volume.data for volume in volumes]
            predictor(*halves, out=data, scratch=out.parent, intensities=(scale.mean, scale.scale))
        print(f"Wrote {out}")

    return job


def require_other(out: Path, *inputs: str | None) -> None:
    """Refuse to put the result in the place of what it is made from."""
    if any(path is not None and out.resolve() == Path(path).resolve() for path in inputs):
        raise ValueError(f"{out} is one of the inputs: choose another name for the result")


def require_range(volume: Tensor | np.ndarray[Any, Any], dtype: str) -> None:
    """Refuse 16 bits for intensities that they cannot hold, before and not after the work."""
    if dtype != "float16":
        return
    largest = max(abs(float(end)) for section in volume for end in (section.min(), section.max()))
    if largest > 6e4:
        raise ValueError(f"intensities reach {largest:g}, more than --dtype float16 can hold: write float32")


def make_predictor(
    network: nn.Module, geometry: TiltGeometry, prediction: Prediction, config: TrainingConfig
) -> TiledPredictor:
    """A predictor as the run was configured and the command line asks."""
    return TiledPredictor(
        MirrorAveraged(network, geometry, flips=config.flips) if config.mirrors else network,
        geometry,
        tile=prediction.tile,
        margin=prediction.tile_margin,
        passes=config.passes,
        average_first=config.average_first,
        wedge=prediction.wedge,
        precision=config.precision,
    )


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, as a function of what is done and the total."""
    with tqdm(desc=title, unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _read_volumes(
    paths: OneOrTwo, reading: Reading, normalization: Normalization
) -> tuple[list[Volume], IntensityScale]:
    if paths.second is None:
        volumes = [read_one(paths.first, reading)]
    else:
        volumes = list(read_halves(paths.first, paths.second, reading))
    for volume in volumes:
        require_usable(volume.data, str(volume.path))
    return volumes, IntensityScale.of(*(volume.data for volume in volumes), normalization=normalization)


def _run_config(given: PredictFiles, saved: dict[str, Any]) -> TrainingConfig:
    """The run's configuration, where the command line does not say otherwise."""
    asked = {name: getattr(given, name) for name in ("passes", "average_first", "mirrors", "precision")}
    return TrainingConfig(**{**saved, **{name: value for name, value in asked.items() if value is not None}})


def _run_geometry(given: RunGeometry, saved: list[dict[str, Any]]) -> TiltGeometry:
    if given.tilts is not None:
        axes = {geometry["tilt_axis"] for geometry in saved}
        return read_geometry(given.tilts, given.tilt_axis or (axes.pop() if len(axes) == 1 else "y"))
    if not saved:
        raise ValueError("the checkpoint was converted and knows no tilts: give --tilts")
    if len(saved) > 1:
        raise ValueError("the run was trained on several tilt ranges: say with --tilts which one this tomogram has")
    geometry = TiltGeometry(**saved[0])
    return geometry if given.tilt_axis is None else replace(geometry, tilt_axis=given.tilt_axis)
