"""What the commands do: files in, tensors through, files out."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from equitomo import report
from equitomo.cli import convert, run_folder
from equitomo.cli.interruption import interruptible
from equitomo.cli.manifest import Invocation
from equitomo.cli.options import (
    Converted,
    Correlation,
    Demo,
    Halves,
    HalvesOrTable,
    OneOrTwo,
    Pickle,
    PredictFiles,
    Prediction,
    Reading,
    RunFolder,
    RunGeometry,
    TrainingInput,
)
from equitomo.cli.reading import PairInput, read_geometry, read_halves, read_one, read_pair, read_table_of_pairs
from equitomo.datasets import (
    IntensityScale,
    Normalization,
    StoredTomogramPair,
    TomogramPair,
    require_usable,
)
from equitomo.geometry import TiltGeometry
from equitomo.inference import TiledPredictor
from equitomo.io import (
    Volume,
    creating_volume,
    named,
    read_volume,
    require_place,
    require_writable,
    write_volume,
    write_whole,
)
from equitomo.metrics import FourierShellCorrelation, fourier_shell_correlation, region_masks, wedge_energy_fraction
from equitomo.precision import chosen_device
from equitomo.simulate import simulate_halves
from equitomo.symmetry import MirrorAveraged
from equitomo.training import IcecreamTrainer, TrainingConfig, TrainingDivergedError, TrainingInterruptedError
from equitomo.training.checkpoint import load_checkpoint, load_network

Options = dict[type, Any]
Job = Callable[[], None]


def run(command: str, options: Options, arguments: Sequence[str] = ()) -> int:
    """Check the input of a command, then do it; the exit status."""
    options = {**options, Invocation: Invocation(command, tuple(arguments))}
    try:
        with interruptible(), ExitStack() as stack:
            try:
                if RunFolder in options:
                    stack.enter_context(run_folder.occupied(options[RunFolder], run_folder.LEAVINGS[command]))
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
        remedy = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f": free some space and {'go on with --resume' if RunFolder in options else 'try again'}"
        print(f"equitomo: {error}{remedy}", file=sys.stderr)
        return 74
    return 0


def _prepare_train(options: Options) -> Job:
    folder = Path(options[RunFolder].out)
    pairs: TomogramPair | list[StoredTomogramPair]
    files: dict[str, Volume | Path]
    if options[HalvesOrTable].table is not None:
        pairs, files = read_table_of_pairs(options)
    else:
        source = read_pair(options)
        pairs, files = source.pair, source.files
    trainer = _trainer(options, folder, pairs)
    record = run_folder.ready(options, trainer, files)

    def job() -> None:
        with record.kept():
            _train(trainer, folder)

    return job


def _prepare_reconstruct(options: Options) -> Job:
    folder, source = Path(options[RunFolder].out), read_pair(options)
    _require_range(source.like.data, options[Prediction].dtype)
    trainer = _trainer(options, folder, source.pair)
    record = run_folder.ready(options, trainer, source.files)

    def job() -> None:
        with record.kept():
            _train(trainer, folder)
            _reconstruct(trainer, folder, source, options[Prediction])

    return job


def _prepare_demo(options: Options) -> Job:
    demo: Demo = options[Demo]
    folder = Path(options[RunFolder].out)
    if demo.size < options[TrainingConfig].side:
        raise ValueError(f"--size {demo.size} is less than the side of a training cube, {options[TrainingConfig].side}")

    geometry = TiltGeometry(range(-60, 61, 3))
    generator = torch.Generator().manual_seed(options[TrainingConfig].seed)
    print(f"Simulating a specimen of {demo.size} x {demo.size} x {demo.size} voxels and its tilt series")
    halves = simulate_halves((demo.size,) * 3, geometry, snr=demo.snr, generator=generator)
    pair = TomogramPair(halves.first, halves.second, geometry, voxel_size=_DEMO_VOXEL, name=str(folder))
    trainer = _trainer({**options, TrainingInput: TrainingInput()}, folder, pair)
    record = run_folder.ready(options, trainer, {})

    def job() -> None:
        with record.kept():
            files = {"even": halves.first, "odd": halves.second, "truth": halves.truth}
            for name, volume in files.items():
                write_volume(folder / f"{name}.mrc", volume.numpy(), voxel_size=_DEMO_VOXEL, overwrite=True)
            angles = "".join(f"{angle:.2f}\n" for angle in geometry.angles)
            write_whole(folder / "tilts.tlt", angles.encode(), overwrite=True)
            _train(trainer, folder)
            source = PairInput(pair, {"first": read_volume(folder / "even.mrc")})
            _reconstruct(trainer, folder, source, options[Prediction], truth=halves.truth)

    return job


def _prepare_predict(options: Options) -> Job:
    files: PredictFiles = options[PredictFiles]
    out = named(files.out)
    require_writable(out, overwrite=files.overwrite)
    _require_other(out, options[OneOrTwo].first, options[OneOrTwo].second)
    checkpoint = load_checkpoint(Path(files.run))
    volumes, scale = _read_volumes(options[OneOrTwo], options[Reading], checkpoint.state["config"]["normalization"])
    _require_range(volumes[0].data, options[Prediction].dtype)
    geometry = _run_geometry(options[RunGeometry], checkpoint.state["geometries"])
    network = load_network(checkpoint.path).to(chosen_device(files.device)).to(memory_format=torch.channels_last_3d)
    predictor = _predictor(network, geometry, options[Prediction], _run_config(files, checkpoint.state["config"]))

    shape = volumes[0].data.shape
    needs = predictor.footprint(shape, halves=len(volumes))
    n_bytes = run_folder.output_bytes(math.prod(shape), options[Prediction]) + needs.disk
    require_writable(out, overwrite=files.overwrite, n_bytes=n_bytes)

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
    if compare.picture is not None:
        require_place(compare.picture, overwrite=compare.overwrite)
        _require_other(Path(compare.picture), halves.first, halves.second)
    first, second = read_halves(halves.first, halves.second, options[Reading])
    for volume in (first, second):
        require_usable(torch.from_numpy(volume.as_float32().copy()), str(volume.path))
    geometry = None if compare.tilts is None else read_geometry(compare.tilts, compare.tilt_axis)
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


def _prepare_convert(options: Options) -> Job:
    file, given = options[Pickle].file, options[Converted]
    out = convert.require_target(given)
    network = convert.read(file, given)
    return lambda: convert.write(network, file, out)


def _require_other(out: Path, *inputs: str | None) -> None:
    """Refuse to put the result in the place of what it is made from."""
    if any(path is not None and out.resolve() == Path(path).resolve() for path in inputs):
        raise ValueError(f"{out} is one of the inputs: choose another name for the result")


def _require_range(volume: Tensor | np.ndarray[Any, Any], dtype: str) -> None:
    """Refuse 16 bits for intensities that they cannot hold, before and not after the work."""
    if dtype != "float16":
        return
    largest = max(abs(float(end)) for section in volume for end in (section.min(), section.max()))
    if largest > 6e4:
        raise ValueError(f"intensities reach {largest:g}, more than --dtype float16 can hold: write float32")


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


def _trainer(
    options: Options, folder: Path, pairs: TomogramPair | Sequence[TomogramPair | StoredTomogramPair]
) -> IcecreamTrainer:
    resume = options[RunFolder].resume
    trainer = IcecreamTrainer(
        pairs,
        options[TrainingConfig],
        out=folder if resume else None,
        resume=resume,
        init=_initial_network(options[TrainingInput].init),
        preview=_Preview(folder / "previews"),
    )
    if Prediction in options:
        # Tiles that do not fit are to be refused before the training, not after it.
        _predictor(trainer.network, trainer.dataset.pairs[0].geometry, options[Prediction], trainer.config)
    trainer.out = folder
    return trainer


def _initial_network(init: str | None) -> nn.Module | None:
    if init is None:
        return None
    if Path(init).is_file():
        raise ValueError(
            f"--init {init} is a file, not a run or a checkpoint folder. Nothing else is read here; a checkpoint that "
            "torch.save wrote becomes one by `equitomo convert FILE --out CHECKPOINT`"
        )
    return load_network(init)


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
    source: PairInput,
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
    "convert": _prepare_convert,
    "demo": _prepare_demo,
    "fsc": _prepare_fsc,
    "predict": _prepare_predict,
    "reconstruct": _prepare_reconstruct,
    "train": _prepare_train,
}
