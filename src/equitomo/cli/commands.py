"""What the commands do: files in, tensors through, files out."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from equitomo import report
from equitomo.cli import convert, many, predicting, run_folder, summary
from equitomo.cli.initial import Initial
from equitomo.cli.interruption import interruptible
from equitomo.cli.machine import duration
from equitomo.cli.manifest import Invocation
from equitomo.cli.options import (
    Converted,
    Correlation,
    Demo,
    Halves,
    HalvesOrTable,
    OneOrMany,
    Pickle,
    Prediction,
    Reading,
    RunFolder,
    TrainingInput,
)
from equitomo.cli.predicting import make_predictor, progress, require_other, require_range
from equitomo.cli.reading import PairInput, read_halves, read_pair, read_table_of_pairs
from equitomo.datasets import TomogramPair, read_geometry, require_usable
from equitomo.geometry import TiltGeometry
from equitomo.io import Volume, creating_volume, read_volume, release, require_place, write_atomically, write_volume
from equitomo.metrics import FourierShellCorrelation, fourier_shell_correlation, region_masks
from equitomo.resources import is_out_of_memory
from equitomo.simulate import simulate_halves
from equitomo.training import IcecreamTrainer, TrainingConfig, TrainingDivergedError, TrainingInterruptedError
from equitomo.training.distributed import LostProcessError, leave
from equitomo.volumes import VolumeLike as Voxels

Options = dict[type, Any]
# The exit status, None for 0.
Job = Callable[[], int | None]


def run(command: str, options: Options, arguments: Sequence[str] = ()) -> int:
    """Check the input of a command, then do it; the exit status."""
    options = {**options, Invocation: Invocation(command, tuple(arguments))}
    try:
        with interruptible(), ExitStack() as stack:
            try:
                if RunFolder in options:
                    run_folder.enter(stack, options[RunFolder], run_folder.LEAVINGS[command])
                job = _COMMANDS[command](options)
            except (ValueError, OSError) as error:
                print(f"equitomo: {error}", file=sys.stderr)
                return 2
            status = job()
    except (TrainingInterruptedError, KeyboardInterrupt) as error:
        print(f"equitomo: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except (TrainingDivergedError, LostProcessError, torch.OutOfMemoryError) as error:
        print(f"equitomo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = f": free some space and {'go on with --resume' if RunFolder in options else 'try again'}"
        print(f"equitomo: {error}{remedy}", file=sys.stderr)
        return 74
    except (MemoryError, RuntimeError) as error:
        # That of the host says so in several ways.
        if not is_out_of_memory(error):
            raise
        print(f"equitomo: out of memory: a smaller --tile or --batch needs less ({error})", file=sys.stderr)
        return 1
    return status or 0


def _prepare_train(options: Options) -> Job:
    folder = Path(options[RunFolder].out)
    pairs: TomogramPair | list[TomogramPair]
    files: dict[str, Volume | Path]
    if options[HalvesOrTable].table is not None:
        pairs, files = read_table_of_pairs(options)
    else:
        source = read_pair(options)
        pairs, files = source.pair, source.files
    initial = Initial.read(options[RunFolder], options[TrainingInput])
    trainer = _trainer(options, folder, pairs, initial)
    if not trainer.world.is_first:
        return lambda: _train_along(trainer)
    record = run_folder.ready(options, trainer, files, initial.described)

    def job() -> None:
        with record.kept():
            _train(trainer, folder)

    return job


def _prepare_reconstruct(options: Options) -> Job:
    folder, source = Path(options[RunFolder].out), read_pair(options)
    require_range(source.like.data, options[Prediction].dtype)
    initial = Initial.read(options[RunFolder], options[TrainingInput])
    trainer = _trainer(options, folder, source.pair, initial)
    if not trainer.world.is_first:
        return lambda: _train_along(trainer)
    record = run_folder.ready(options, trainer, source.files, initial.described)

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
    initial = Initial.read(options[RunFolder], TrainingInput())
    trainer = _trainer(options, folder, pair, initial)
    if not trainer.world.is_first:
        return lambda: _train_along(trainer)
    record = run_folder.ready(options, trainer, {}, initial.described)

    def job() -> None:
        with record.kept():
            files = {"even": halves.first, "odd": halves.second, "truth": halves.truth}
            for name, volume in files.items():
                write_volume(folder / f"{name}.mrc", volume.numpy(), voxel_size=_DEMO_VOXEL, overwrite=True)
            angles = "".join(f"{angle:.2f}\n" for angle in geometry.angles)
            write_atomically(folder / "tilts.tlt", angles.encode(), overwrite=True)
            _train(trainer, folder)
            source = PairInput(pair, {"first": read_volume(folder / "even.mrc")})
            _reconstruct(trainer, folder, source, options[Prediction], truth=halves.truth)

    return job


def _prepare_predict(options: Options) -> Job:
    if options[OneOrMany].table is None:
        return predicting.prepare(options)
    return many.prepare(options)


def _prepare_fsc(options: Options) -> Job:
    halves, compare = options[Halves], options[Correlation]
    if compare.picture is not None:
        require_place(compare.picture, overwrite=compare.overwrite)
        require_other(Path(compare.picture), halves.first, halves.second)
    first, second = read_halves(halves.first, halves.second, options[Reading])
    for volume in (first, second):
        require_usable(volume, str(volume.path))
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


def _trainer(
    options: Options,
    folder: Path,
    pairs: TomogramPair | Sequence[TomogramPair],
    initial: Initial,
) -> IcecreamTrainer:
    resume = options[RunFolder].resume
    trainer = IcecreamTrainer(
        pairs,
        options[TrainingConfig],
        out=folder if resume else None,
        resume=resume,
        init=initial.network,
        preview=_Preview(folder / "previews"),
    )
    if Prediction in options:
        # Tiles that do not fit are to be refused before the training, not after it.
        make_predictor(trainer.network, trainer.dataset.pairs[0].geometry, options[Prediction], trainer.config)
    trainer.out = folder
    return trainer


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
    started, first, clock = time.perf_counter(), trainer.step, 0.0
    with tqdm(total=config.steps, initial=trainer.step, desc="training", unit="step", smoothing=0.05) as bar:

        def show(step: int, losses: dict[str, float]) -> None:
            nonlocal clock
            shown = {name: f"{losses[name]:.4f}" for name in ("data", "equivariance")}
            if isinstance(trainer.preview, _Preview) and trainer.preview.change:
                shown["change"] = trainer.preview.change
            bar.set_postfix(shown, refresh=False)
            bar.update(step - bar.n)
            if trainer.device.type == "cpu" and step == first + 1:
                # The first one also sets things up.
                clock = time.perf_counter()
            elif trainer.device.type == "cpu" and step == first + 2:
                left = config.steps - step
                took = time.perf_counter() - clock
                tqdm.write(f"No GPU is used: a step takes {duration(took)}, all that are left {duration(left * took)}")

        trainer.progress = show
        trainer.train()
    leave()
    skipped = f", {trainer.skipped} steps skipped" if trainer.skipped else ""
    print(f"Trained {config.steps} steps in {time.perf_counter() - started:.0f} s{skipped}")
    report.draw_losses(folder / "losses.png", folder / "losses.csv")


def _train_along(trainer: IcecreamTrainer) -> None:
    """What a process does that is not the first: after the training nothing waits for it any more."""
    trainer.train()
    leave()


def _reconstruct(
    trainer: IcecreamTrainer,
    folder: Path,
    source: PairInput,
    prediction: Prediction,
    truth: Tensor | None = None,
) -> None:
    """Predict, write the result with the input's header and intensities, draw it, and say what changed."""
    pair, target = source.pair, folder / "reconstruction.mrc"
    predictor = make_predictor(trainer.network, pair.geometry, prediction, trainer.config, sample=pair.volumes[0])
    with creating_volume(target, pair.shape, like=source.like, dtype=prediction.dtype, overwrite=True) as data:
        with progress("predicting", "tile") as show:
            predictor(pair.volumes[0], pair.volumes[1], out=data, scratch=folder, progress=show)
        for section in data:
            section[...] = pair.restore(torch.from_numpy(np.array(section, np.float32))).numpy()
            release(data)
    volumes: dict[str, Voxels] = {"mean of the halves": summary.MeanOfHalves(pair), "reconstruction": data}
    if truth is not None:
        volumes["truth"] = truth
    picture = report.draw_slices(folder / "slices.png", volumes, geometry=pair.geometry, voxel_size=pair.voxel_size)
    print(summary.filling(pair, data))
    print(f"The input halves {summary.agreement(pair)}")
    print(f"Wrote {target}\nDrew  {picture}, {folder / 'losses.png'} and {folder / 'previews'}")


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
