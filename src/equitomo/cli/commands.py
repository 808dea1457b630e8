"""What the commands do: files in, tensors through, files out."""

from __future__ import annotations

import errno
import math
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from equitomo import report
from equitomo.cli.options import (
    Correlation,
    Demo,
    Geometry,
    Halves,
    OneOrTwo,
    PredictFiles,
    Prediction,
    RunFolder,
    RunGeometry,
    TrainingInput,
)
from equitomo.datasets import IntensityScale, Normalization, TomogramPair, require_usable, specimen_mask
from equitomo.geometry import TiltAxis, TiltGeometry
from equitomo.inference import TiledPredictor
from equitomo.io import Volume, creating_volume, read_tilts, read_volume, require_writable, write_volume
from equitomo.metrics import FourierShellCorrelation, fourier_shell_correlation, region_masks, wedge_energy_fraction
from equitomo.models import load_icecream_checkpoint
from equitomo.precision import chosen_device
from equitomo.simulate import simulate_halves
from equitomo.training import IcecreamTrainer, TrainingConfig, TrainingDivergedError, TrainingInterruptedError
from equitomo.training.checkpoint import has_checkpoint, load_checkpoint, load_network

Options = dict[type, Any]
Job = Callable[[], None]

# What a run leaves in its folder, and what --overwrite therefore may remove.
_LEAVINGS = ("checkpoints", "previews", "losses.csv", "losses.png", "reconstruction.mrc", "slices.png")


def run(command: str, options: Options) -> int:
    """Check the input of a command, then do it; the exit status."""
    try:
        try:
            job = _COMMANDS[command](options)
        except (ValueError, OSError) as error:
            print(f"equitomo: {error}", file=sys.stderr)
            return 2
        job()
    except (TrainingInterruptedError, KeyboardInterrupt) as error:
        print(f"equitomo: {error or 'interrupted'}", file=sys.stderr)
        return 130
    except TrainingDivergedError as error:
        print(f"equitomo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = ": free some space and go on with --resume" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        print(f"equitomo: {error}{full}", file=sys.stderr)
        return 74
    return 0


@dataclass(frozen=True)
class _Input:
    """Two halves, checked, with the file whose header the output takes over."""

    pair: TomogramPair
    like: Volume | None


def _prepare_train(options: Options) -> Job:
    folder, source = _claim(options[RunFolder]), _read_pair(options)
    trainer = _trainer(options, folder, source.pair)
    return lambda: _train(trainer, folder)


def _prepare_reconstruct(options: Options) -> Job:
    folder, source = _claim(options[RunFolder]), _read_pair(options)
    _require_range(source.pair.restore(source.pair.volumes), options[Prediction].dtype)
    trainer = _trainer(options, folder, source.pair)

    def job() -> None:
        _train(trainer, folder)
        _reconstruct(trainer, folder, source, options[Prediction])

    return job


def _prepare_demo(options: Options) -> Job:
    demo: Demo = options[Demo]
    folder = _claim(options[RunFolder])
    if demo.size < options[TrainingConfig].side:
        raise ValueError(f"--size {demo.size} is less than the side of a training cube, {options[TrainingConfig].side}")

    geometry = TiltGeometry(range(-60, 61, 3))
    generator = torch.Generator().manual_seed(options[TrainingConfig].seed)
    print(f"Simulating a specimen of {demo.size} x {demo.size} x {demo.size} voxels and its tilt series")
    halves = simulate_halves((demo.size,) * 3, geometry, snr=demo.snr, generator=generator)
    pair = TomogramPair(halves.first, halves.second, geometry, voxel_size=_DEMO_VOXEL, name=str(folder))
    trainer = _trainer({**options, TrainingInput: TrainingInput()}, folder, pair)

    def job() -> None:
        files = {"even": halves.first, "odd": halves.second, "truth": halves.truth}
        for name, volume in files.items():
            write_volume(folder / f"{name}.mrc", volume.numpy(), voxel_size=_DEMO_VOXEL, overwrite=True)
        (folder / "tilts.tlt").write_text("".join(f"{angle:.2f}\n" for angle in geometry.angles))
        _train(trainer, folder)
        source = _Input(pair, read_volume(folder / "even.mrc"))
        _reconstruct(trainer, folder, source, options[Prediction], truth=halves.truth)

    return job


def _prepare_predict(options: Options) -> Job:
    files: PredictFiles = options[PredictFiles]
    out = Path(files.out)
    require_writable(out, overwrite=files.overwrite)
    checkpoint = load_checkpoint(Path(files.run))
    volumes, scale = _read_volumes(options[OneOrTwo], checkpoint.state["config"]["normalization"])
    _require_range(volumes[0].data, options[Prediction].dtype)
    geometry = _run_geometry(options[RunGeometry], checkpoint.state["geometries"])
    network = load_network(checkpoint.path).to(chosen_device(files.device)).to(memory_format=torch.channels_last_3d)
    predictor = _predictor(network, geometry, options[Prediction], _run_config(files, checkpoint.state["config"]))

    shape = volumes[0].data.shape
    needs = predictor.footprint(shape, halves=len(volumes))
    require_writable(out, overwrite=files.overwrite, n_bytes=4 * math.prod(shape) + needs.disk)

    def job() -> None:
        print(f"Prediction takes up to {needs}, and what the network computes with")
        head: dict[str, Any] = {"like": volumes[0], "dtype": options[Prediction].dtype, "overwrite": files.overwrite}
        with creating_volume(out, shape, **head) as data, _progress("predicting", "tile") as predictor.progress:
            halves = [volume.data for volume in volumes]
            predictor(*halves, out=data, scratch=out.parent, intensities=(scale.mean, scale.scale))
        print(f"Wrote {out}")

    return job


def _prepare_fsc(options: Options) -> Job:
    halves, compare = options[Halves], options[Correlation]
    first, second = _read_halves(halves)
    for volume in (first, second):
        require_usable(torch.from_numpy(volume.as_float32().copy()), str(volume.path))
    geometry = None if compare.tilts is None else _geometry(compare.tilts, compare.tilt_axis)
    voxel_size = min(first.voxel_size) or None

    def job() -> None:
        a, b = first.as_float32(), second.as_float32()
        curves = {"whole": fourier_shell_correlation(a, b, voxel_size=voxel_size)}
        if geometry is not None:
            regions = region_masks(a.shape, geometry)
            for name, mask in (("measured", regions.measured), ("wedge", regions.wedge)):
                curves[name] = fourier_shell_correlation(a, b, voxel_size=voxel_size, mask=mask)
        _print_curves(curves, voxel_size)
        if compare.picture is not None:
            print(f"Drew {report.draw_correlations(compare.picture, curves, voxel_size=voxel_size)}")

    return job


def _claim(options: RunFolder) -> Path:
    """The run's folder, there, writable, and without an earlier run unless that was asked for."""
    folder = Path(options.out)
    if options.resume and options.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite replaces it: give one of them")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out {folder} is a file: name a folder")
    left = [name for name in _LEAVINGS if (folder / name).exists()]
    if left and not (options.resume or options.overwrite):
        raise FileExistsError(
            f"{folder} holds a run already ({', '.join(left)}): go on with --resume, replace it with --overwrite, or "
            "choose another --out"
        )
    if options.resume and not has_checkpoint(folder):
        raise FileNotFoundError(f"there is no checkpoint in {folder} to resume: leave --resume out to start there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write into --out {folder}: {error.strerror or error}") from error
    return folder


def _clear(folder: Path) -> None:
    """Remove what an earlier run left."""
    for path in (folder / name for name in _LEAVINGS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _require_range(volume: Tensor | np.ndarray[Any, Any], dtype: str) -> None:
    """Refuse 16 bits for intensities that they cannot hold, before and not after the work."""
    if dtype != "float16":
        return
    largest = max(abs(float(end)) for section in volume for end in (section.min(), section.max()))
    if largest > 6e4:
        raise ValueError(f"intensities reach {largest:g}, more than --dtype float16 can hold: write float32")


def _read_pair(options: Options) -> _Input:
    halves, given = options[Halves], options[TrainingInput]
    first, second = _read_halves(halves)
    geometry = _geometry(options[Geometry].tilts, options[Geometry].tilt_axis)
    voxel_size = first.voxel_size if min(first.voxel_size) > 0 else None
    pair = TomogramPair(
        first.data,
        second.data,
        geometry,
        voxel_size=voxel_size,
        mask=None if given.mask in (None, "auto") else read_volume(given.mask).data,
        normalization=options[TrainingConfig].normalization,
        name=f"{halves.first} and {halves.second}",
    )
    if given.mask == "auto":
        pair.mask = specimen_mask(pair.volumes.mean(0))
    return _Input(pair, first)


def _read_halves(files: Halves | OneOrTwo) -> tuple[Volume, Volume]:
    assert files.second is not None
    if Path(files.first).exists() and Path(files.second).exists() and Path(files.first).samefile(files.second):
        raise ValueError(f"{files.first} and {files.second} are the same file: give the two half tomograms")
    first, second = (_read(path, files) for path in (files.first, files.second))
    _check_same_grid(first, second)
    return first, second


def _read(path: str, files: Halves | OneOrTwo) -> Volume:
    """A volume, with the file's mean where a voxel is no number if that was asked for."""
    volume = read_volume(path, permissive=files.permissive)
    if files.nan == "refuse":
        return volume
    data = volume.as_float32()
    finite = np.isfinite(data)
    if not finite.any() or finite.all():
        return volume
    warnings.warn(f"{path}: {np.sum(~finite)} voxels that are NaN or infinite now hold the file's mean", stacklevel=2)
    return replace(volume, data=np.where(finite, data, data[finite].mean(dtype=np.float64).astype(np.float32)))


def _check_same_grid(first: Volume, second: Volume) -> None:
    if first.data.shape != second.data.shape:
        raise ValueError(
            f"the two volumes differ in shape: {first.path} has {first.data.shape} and {second.path} "
            f"{second.data.shape} voxels (z, y, x)"
        )
    for one, other in zip(first.voxel_size, second.voxel_size, strict=True):
        if abs(one - other) > 0.01 * max(one, other):
            raise ValueError(
                f"the two volumes differ in voxel size: {first.path} has {first.voxel_size} and {second.path} "
                f"{second.voxel_size} Å (z, y, x); correct the header that is wrong"
            )


def _read_volumes(paths: OneOrTwo, normalization: Normalization) -> tuple[list[Volume], IntensityScale]:
    volumes = [_read(paths.first, paths)] if paths.second is None else list(_read_halves(paths))
    for volume in volumes:
        require_usable(volume.data, str(volume.path))
    return volumes, IntensityScale.of(*(volume.data for volume in volumes), normalization=normalization)


def _geometry(tilts: str, tilt_axis: TiltAxis) -> TiltGeometry:
    """From ``LOW,HIGH`` or a file."""
    if re.fullmatch(r"[-+\d.,\s]+", tilts) and not Path(tilts).exists():
        try:
            low, high = map(float, tilts.split(","))
        except ValueError:
            raise ValueError(f"--tilts is a file or LOW,HIGH in degrees such as -60,60, got {tilts!r}") from None
        return TiltGeometry.from_range(low, high, tilt_axis)
    return TiltGeometry(read_tilts(tilts), tilt_axis)


def _run_config(given: PredictFiles, saved: dict[str, Any]) -> TrainingConfig:
    """The run's configuration, where the command line does not say otherwise."""
    asked = {"passes": given.passes, "average_first": given.average_first, "precision": given.precision}
    return TrainingConfig(**{**saved, **{name: value for name, value in asked.items() if value is not None}})


def _run_geometry(given: RunGeometry, saved: list[dict[str, Any]]) -> TiltGeometry:
    if given.tilts is not None:
        axes = {geometry["tilt_axis"] for geometry in saved}
        return _geometry(given.tilts, given.tilt_axis or (axes.pop() if len(axes) == 1 else "y"))
    if len(saved) > 1:
        raise ValueError("the run was trained on several tilt ranges: say with --tilts which one this tomogram has")
    geometry = TiltGeometry(**saved[0])
    return geometry if given.tilt_axis is None else replace(geometry, tilt_axis=given.tilt_axis)


def _trainer(options: Options, folder: Path, pair: TomogramPair) -> IcecreamTrainer:
    run_folder: RunFolder = options[RunFolder]
    trainer = IcecreamTrainer(
        pair,
        options[TrainingConfig],
        out=folder if run_folder.resume else None,
        resume=run_folder.resume,
        init=_initial_network(options[TrainingInput].init),
        preview=_Preview(folder / "previews"),
    )
    if Prediction in options:
        # Tiles that do not fit are to be refused before the training, not after it.
        _predictor(trainer.network, pair.geometry, options[Prediction], trainer.config)
    if run_folder.overwrite:
        # All that was given is in order: what is there may go now, and not before.
        _clear(folder)
    trainer.out = folder
    return trainer


def _initial_network(init: str | None) -> nn.Module | None:
    if init is None:
        return None
    # Kernels of the reference program see the axes in another order than volumes are read in here.
    return load_icecream_checkpoint(init, axes="zyx") if Path(init).is_file() else load_network(init)


class _Preview:
    """Pictures of a fixed cube, and how much it still changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Tensor | None = None
        self.change = ""

    def __call__(self, step: int, cube: Tensor, seen: Tensor) -> None:
        if self._before is not None:
            relative = float((seen - self._before).norm() / seen.norm().clamp_min(1e-12))
            self.change = f"{relative:.1%}"
        self._before = seen
        changed = f", changed by {self.change} since the last picture" if self.change else ""
        report.draw_preview(self._folder / f"step_{step:07d}.png", cube, seen, f"step {step}{changed}")


def _train(trainer: IcecreamTrainer, folder: Path) -> None:
    config = trainer.config
    if trainer.step:
        print(f"Resuming after step {trainer.step} of {config.steps}")
    if trainer.device.type == "cpu":
        print("No GPU is used; on two CPU cores a step of the preset 'tiny' takes about 0.2 s, one of 'paper' minutes")
    started = time.perf_counter()
    with tqdm(total=config.steps, initial=trainer.step, desc="training", unit="step", smoothing=0.05) as bar:

        def show(step: int, losses: dict[str, float]) -> None:
            shown = {name: f"{losses[name]:.4f}" for name in ("data", "equivariance")}
            if isinstance(trainer.preview, _Preview) and trainer.preview.change:
                shown["change"] = trainer.preview.change
            bar.set_postfix(shown, refresh=False)
            bar.update(step - bar.n)

        trainer.progress = show
        trainer.train()
    skipped = f", {trainer.skipped} steps skipped" if trainer.skipped else ""
    print(f"Trained {config.steps} steps in {time.perf_counter() - started:.0f} s{skipped}")
    report.draw_losses(folder / "losses.png", folder / "losses.csv")


def _reconstruct(
    trainer: IcecreamTrainer,
    folder: Path,
    source: _Input,
    prediction: Prediction,
    truth: Tensor | None = None,
) -> None:
    """Predict, write the result with the input's header and intensities, draw it, and say what changed."""
    pair = source.pair
    predictor = _predictor(trainer.network, pair.geometry, prediction, trainer.config)
    with _progress("predicting", "tile") as predictor.progress:
        result = predictor(pair.volumes[0], pair.volumes[1])
    target = folder / "reconstruction.mrc"
    write_volume(target, pair.restore(result).numpy(), like=source.like, dtype=prediction.dtype, overwrite=True)
    before = pair.volumes.mean(0)
    volumes = {"mean of the halves": before, "reconstruction": result}
    if truth is not None:
        volumes["truth"] = truth
    picture = report.draw_slices(folder / "slices.png", volumes, geometry=pair.geometry, voxel_size=pair.voxel_size)
    _summarise(pair, before, result)
    print(f"Wrote {target}\nDrew  {picture}, {folder / 'losses.png'} and {folder / 'previews'}")


def _summarise(pair: TomogramPair, before: Tensor, after: Tensor) -> None:
    filled = [wedge_energy_fraction(volume, pair.geometry).relative for volume in (before, after)]
    print(
        f"Power in the missing wedge, relative to an even spread: {filled[0]:.3f} before, {filled[1]:.3f} after. "
        "What the wedge holds now was inferred, not measured."
    )
    voxel_size = None if pair.voxel_size is None else min(pair.voxel_size)
    curve = fourier_shell_correlation(pair.volumes[0], pair.volumes[1], voxel_size=voxel_size)
    unit = "voxels" if voxel_size is None else "Å"
    print(f"The input halves agree down to {curve.resolution(0.143):.1f} {unit} (Fourier shell correlation of 0.143)")


def _predictor(
    network: nn.Module, geometry: TiltGeometry, prediction: Prediction, config: TrainingConfig
) -> TiledPredictor:
    return TiledPredictor(
        network,
        geometry,
        tile=prediction.tile,
        margin=prediction.tile_margin,
        passes=config.passes,
        average_first=config.average_first,
        wedge=prediction.wedge,
        precision=config.precision,
    )


@contextmanager
def _progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    with tqdm(desc=title, unit=unit) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _print_curves(curves: dict[str, FourierShellCorrelation], voxel_size: float | None) -> None:
    unit = "voxels" if voxel_size is None else "Å"
    print(f"{'region':>10} {'0.5':>10} {'0.143':>10}   resolution in {unit} where the correlation falls below")
    for name, curve in curves.items():
        print(f"{name:>10} {curve.resolution(0.5):10.1f} {curve.resolution(0.143):10.1f}")


_DEMO_VOXEL = 10.0
_COMMANDS: dict[str, Callable[[Options], Job]] = {
    "demo": _prepare_demo,
    "fsc": _prepare_fsc,
    "predict": _prepare_predict,
    "reconstruct": _prepare_reconstruct,
    "train": _prepare_train,
}
