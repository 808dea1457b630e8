"""The commands: from their options to the library, with what they print and their exit status."""

from __future__ import annotations

import dataclasses
import errno
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equitomo import report
from equitomo.cli.check import Listing, look_at
from equitomo.cli.interruption import interruptible
from equitomo.cli.options import Check, Command, Convert, Demo, Folder, Fsc, Predict, Reconstruct, Train, needs_halves
from equitomo.cli.parsing import names_of
from equitomo.cli.progress import TableBars, logged, step_bar, tile_bar
from equitomo.cli.wording import with_options
from equitomo.datasets import TomogramPair, read_geometry, require_usable
from equitomo.diagnosis import diagnose
from equitomo.geometry import TiltGeometry
from equitomo.io import named, read_volume, require_place, require_writable, write_volume, write_whole
from equitomo.metrics import FourierShellCorrelation, fourier_shell_correlation, region_masks
from equitomo.resources import is_out_of_memory
from equitomo.run import Conversion, Outcome, Run, TablePrediction, forecast_training
from equitomo.run.folder import RUN_FILES, RunFolder
from equitomo.run.prediction import require_other
from equitomo.run.record import Invocation
from equitomo.run.summary import agreement, filling
from equitomo.run.table import Tomogram, tomograms_of
from equitomo.simulate import simulate_halves
from equitomo.training import TrainingDivergedError, TrainingInterruptedError
from equitomo.training.distributed import LostProcessError, join, leave

# The work that is left after all checks; it returns the exit status, None for 0.
Job = Callable[[], int | None]
_DEMO_FILES = (*RUN_FILES, "even.mrc", "odd.mrc", "truth.mrc", "tilts.tlt")
_DEMO_VOXEL = 10.0


@dataclass(frozen=True)
class Call:
    """A call of the program: its arguments, and what is to be released at its end."""

    arguments: Sequence[str]
    stack: ExitStack

    def invocation(self, command: Command) -> Invocation:
        """Return the command as the record of a run keeps it."""
        options = {name: value for group in dataclasses.asdict(command).values() for name, value in group.items()}
        return Invocation(("equitomo", *self.arguments), options)

    def hold(self, given: Folder, names: Sequence[str] = RUN_FILES) -> RunFolder:
        """Hold a run's folder until the program ends. Of several processes only the first one prints and warns."""
        if not join().is_first:
            self.stack.enter_context(redirect_stdout(None))
            self.stack.enter_context(warnings.catch_warnings(action="ignore"))
        folder = RunFolder(given.out, names)
        held = folder.held(resume=given.resume, overwrite=given.overwrite, break_lock=given.break_lock)
        self.stack.enter_context(held)
        return folder


def run(command: Command, arguments: Sequence[str], names: Sequence[str]) -> int:
    """Check the input of a command, then do it; return the exit status.

    Parameters
    ----------
    command
        The command.
    arguments
        The arguments of the program.
    names
        Names of the command's options.
    """

    def say(error: object) -> None:
        print(f"equitomo: {with_options(str(error), names)}", file=sys.stderr)

    try:
        with interruptible(), logged(names), ExitStack() as stack:
            try:
                job = prepare(command, Call(arguments, stack))
            except (ValueError, OSError) as error:
                say(error)
                return 2
            return job() or 0
    except (TrainingInterruptedError, KeyboardInterrupt) as error:
        say(str(error) or "interrupted")
        return 130
    except (TrainingDivergedError, LostProcessError, torch.OutOfMemoryError) as error:
        say(error)
        return 1
    except OSError as error:
        remedy = "continue with `resume=True`" if "resume" in names else "try again"
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        say(f"{error}: free some space and {remedy}" if is_full else error)
        return 74
    except (MemoryError, RuntimeError) as error:
        # That of the host says so in several ways.
        if not is_out_of_memory(error):
            raise
        say(f"out of memory: a smaller `tile` or `batch` needs less ({error})")
        return 1


@singledispatch
def prepare(command: Command, call: Call) -> Job:
    """Check everything that a command was given; return the work that is left."""
    raise NotImplementedError(type(command))


@prepare.register
def _(command: Train, call: Call) -> Job:
    folder = call.hold(command.folder)
    table = command.halves.table
    further_inputs = {} if table is None else {"table": Path(table)}
    run = _created(
        command, folder, _pairs(command), call, init=command.start.init, further_inputs=further_inputs
    )

    def job() -> None:
        with run.recorded():
            _train(run)

    return job


@prepare.register
def _(command: Reconstruct, call: Call) -> Job:
    folder = call.hold(command.folder)
    (pair,) = _pairs(command)
    run = _created(command, folder, pair, call, init=command.start.init)
    run.require_reconstruction(command.tiles, dtype=command.output.dtype)

    def job() -> None:
        with run.recorded():
            if _train(run):
                _reconstruct(run, pair, command)

    return job


@prepare.register
def _(command: Demo, call: Call) -> Job:
    size, config = command.specimen.size, command.config
    if size < max(config.cube_shape):
        raise ValueError(f"`size` {size} is less than the side of a training cube, {max(config.cube_shape)}")
    folder = call.hold(command.folder, _DEMO_FILES)
    geometry = TiltGeometry(range(-60, 61, 3))
    print(f"Simulating a specimen of {size} x {size} x {size} voxels and its tilt series")
    generator = torch.Generator().manual_seed(config.seed)
    halves = simulate_halves((size,) * 3, geometry, snr=command.specimen.snr, generator=generator)
    pair = TomogramPair(halves.first, halves.second, geometry, voxel_size=_DEMO_VOXEL, name=str(folder.path))
    run = _created(command, folder, pair, call)
    # The halves and the truth are written too.
    run.require_reconstruction(command.tiles, dtype=command.output.dtype, n_volumes=4)

    def job() -> None:
        with run.recorded():
            if run.trainer.world.is_first:
                files = {"even": halves.first, "odd": halves.second, "truth": halves.truth}
                for name, volume in files.items():
                    path = folder.path / f"{name}.mrc"
                    write_volume(path, volume.numpy(), voxel_size=_DEMO_VOXEL, overwrite=True)
                angles = "".join(f"{angle:.2f}\n" for angle in geometry.angles)
                write_whole(folder.path / "tilts.tlt", angles.encode(), overwrite=True)
            if _train(run):
                _reconstruct(run, pair, command, truth=halves.truth)

    return job


@prepare.register
def _(command: Predict, call: Call) -> Job:
    result, given = command.result, command.tomogram
    if given.table is not None:
        return _prepare_table(command)
    assert given.first is not None
    # Before anything is read: a name that cannot be written is soon refused.
    require_writable(named(result.out), overwrite=result.overwrite)
    require_other(named(result.out), given.first, given.second)
    run = Run.open(result.run)
    pair = TomogramPair.read(
        given.first,
        given.second,
        tilts=run.geometry(command.tilts.tilts, command.tilts.tilt_axis),
        normalization=run.config.normalization,
        nan=command.reading.nan,
        permissive=command.reading.permissive,
        lazy=True,
    )
    _warn_of(pair)
    settings = {"dtype": command.output.dtype, "overwrite": result.overwrite, "devices": result.device}
    plan = run.plan(pair, result.out, command.prediction, **settings)

    def job() -> None:
        print(f"Prediction takes up to {plan.needs}, and what the network computes with")
        with tile_bar("predicting") as show:
            print(f"Wrote {plan.write(show)}")

    return job


def _prepare_table(command: Predict) -> Job:
    given, result = command.tomogram, command.result
    assert given.table is not None
    number, _, count = (given.part or "1/1").partition("/")
    table = TablePrediction(
        Run.open(result.run),
        given.table,
        result.out,
        command.prediction,
        part=(int(number), int(count)),
        tilts=command.tilts.tilts,
        tilt_axis=command.tilts.tilt_axis,
        nan=command.reading.nan,
        permissive=command.reading.permissive,
        dtype=command.output.dtype,
        overwrite=result.overwrite,
        devices=result.device,
    )

    def job() -> int:
        n_tasks, outcomes = len(table.tasks), []
        print(f"{n_tasks} of the {table.n_rows} tomograms of {given.table}, into {result.out}")
        bars = TableBars(n_tasks)

        def finished(outcome: Outcome) -> None:
            outcome = dataclasses.replace(outcome, reason=with_options(outcome.reason, names_of(Predict)))
            outcomes.append(outcome)
            bars.finish(outcome)

        try:
            table.write(planned=lambda plan: _warn_of(plan.pair), progress=bars.tiles, finished=finished)
        finally:
            bars.close()
            print(_table_of(outcomes, n_tasks))
        return int(any(outcome.status == "failed" for outcome in outcomes))

    return job


def _table_of(outcomes: list[Outcome], n_tasks: int) -> str:
    """Return the outcome of each tomogram, and how many there are of each kind."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.row.line)
    counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in ("done", "skipped", "failed")]
    if held := sum(outcome.status == "held" for outcome in outcomes):
        counts.append(f"{held} still with other processes")
    if left := n_tasks - len(outcomes):
        counts.append(f"{left} left")
    return "\n".join(["", *map(str, outcomes), ", ".join(counts)])


@prepare.register
def _(command: Convert, call: Call) -> Job:
    given = command.pickle
    print(
        f"equitomo: {given.file} is a pickle, a kind of file that can hold a program. Only tensors and plain containers "
        "are read from it, and nothing in it is run",
        file=sys.stderr,
    )
    conversion = Conversion(given.file, given.out, axes=given.axes, overwrite=given.overwrite)

    def job() -> None:
        width, levels = conversion.network.final_conv.in_channels, len(conversion.network.encoders)
        out = conversion.write()
        print(f"Wrote {out}: a network of width {width} with {levels} levels, for --init and predict --run")

    return job


@prepare.register
def _(command: Fsc, call: Call) -> Job:
    halves, tilts = command.halves, command.tilts
    picture = _picture(command, halves.first, halves.second)
    geometry = None if tilts.tilts is None else read_geometry(tilts.tilts, tilts.tilt_axis)
    # Correlation needs no tilts, a pair does: any will do.
    pair = TomogramPair.read(
        halves.first,
        halves.second,
        tilts=geometry or (-60.0, 60.0),
        nan=command.reading.nan,
        permissive=command.reading.permissive,
        lazy=True,
    )
    for label, statistics in zip(pair.labels, pair.statistics, strict=True):
        require_usable(statistics, label, nan=command.reading.nan)
    voxel_size = min(pair.voxel_size) if pair.voxel_size else None

    def job() -> None:
        first, second = (np.asarray(half[:, :, :], np.float32) for half in pair.halves)
        masks: dict[str, torch.Tensor | None] = {"whole": None}
        if geometry is not None:
            regions = region_masks(pair.shape, geometry)
            masks |= {"measured": regions.measured, "wedge": regions.wedge}
        curves = {
            name: fourier_shell_correlation(first, second, voxel_size=voxel_size, mask=mask)
            for name, mask in masks.items()
        }
        unit = "voxels" if voxel_size is None else "Å"
        print(f"{'region':>10} {'0.5':>10} {'0.143':>10}   resolution in {unit} where the correlation falls below")
        for name, curve in curves.items():
            print(f"{name:>10} {curve.resolution(0.5):10.1f} {curve.resolution(0.143):10.1f}")
        if picture is not None:
            print(f"Drew {report.draw_correlations(picture, curves, voxel_size=voxel_size)}")

    return job


@prepare.register
def _(command: Check, call: Call) -> Job:
    given, config, picture = command.halves, command.config, _picture(command, command.halves.first, command.halves.second)
    if given.table is not None and picture is not None:
        raise ValueError("`picture` draws the wedge of one tomogram: give its two halves in place of the `table`")
    if given.table is None and command.tilts.tilts is None:
        Tomogram(given.first or "", given.second, None).geometry()
    tomograms = _tomograms(command, command.plan.mask)

    def job() -> int:
        listing, usable = Listing(names_of(Check)), []
        for tomogram in tomograms:
            reading, line = _reading(command), f"line {tomogram.line}"
            with listing.line(line, tomogram.files) if tomogram.table else nullcontext():
                reading |= {"name": line} if tomogram.table else {}
                pair = look_at(listing, tomogram, reading, config, picture)
            if pair is not None:
                pair.release()
                usable.append(pair)
        for finding in forecast_training(usable, config, command.plan.out) if usable else ():
            listing.show(finding)
        return listing.close()

    return job


def _tomograms(command: Train | Check | Reconstruct, mask: str | None) -> list[Tomogram]:
    """Return the tomograms that a command names, itself or by a table."""
    given, tilts = command.halves, command.tilts
    table = getattr(given, "table", None)
    if table is not None:
        need_second = needs_halves(command.config)
        settings = {"tilts": tilts.tilts, "tilt_axis": tilts.tilt_axis, "mask": mask, "need_second": need_second}
        return tomograms_of(table, **settings)
    return [Tomogram(given.first, given.second, tilts.tilts, tilts.tilt_axis, mask)]


def _reading(command: Train | Check | Reconstruct) -> dict[str, Any]:
    """Return how the volumes of a training are to be read."""
    reading = command.reading
    return {
        "normalization": command.config.normalization,
        "nan": reading.nan,
        "permissive": reading.permissive,
    }


def _pairs(command: Train | Reconstruct) -> list[TomogramPair]:
    """Read the tomograms of a training, and warn of what is odd about them."""
    pairs = []
    for tomogram in _tomograms(command, command.start.mask):
        with tomogram.naming_the_line():
            pair = tomogram.read(**_reading(command))
            _warn_of(pair)
        if pair.is_lazy:
            pair.release()
        pairs.append(pair)
    return pairs


def _warn_of(pair: TomogramPair) -> None:
    """Warn of the findings on a pair that is used all the same."""
    if not join().is_first:
        return
    # A pair that cannot be used is refused, and not warned of.
    _ = pair.scale
    for finding in diagnose(pair):
        # A spectrum that does not tell the wedge is a note for `check`: nothing can be done about it.
        if finding.severity != "ok" and (finding.severity, finding.subject) != ("note", "wedge"):
            warnings.warn(f"{pair.name}: {finding.text}", stacklevel=2)


def _created(
    command: Train | Reconstruct | Demo,
    folder: RunFolder,
    pairs: TomogramPair | Sequence[TomogramPair],
    call: Call,
    **settings: Any,
) -> Run:
    given = command.folder
    settings |= {"resume": given.resume, "overwrite": given.overwrite, "invocation": call.invocation(command)}
    run = Run.create(folder, pairs, command.config, **settings)
    if given.resume and not run.step:
        print(f"{folder.path} has no checkpoint yet: the run begins at step 0")
    return run


def _picture(command: Check | Fsc, *inputs: str | None) -> Path | None:
    """Return the picture that a command draws, after a check that it can be written."""
    given = command.picture
    if given.picture is None:
        return None
    require_place(given.picture, overwrite=given.overwrite)
    require_other(Path(given.picture), *inputs)
    return Path(given.picture)


def _train(run: Run) -> bool:
    """Train to the last step and part from the other processes; return whether this one is the first."""
    if run.trainer.world.is_first:
        if run.step:
            print(f"Resuming after step {run.step} of {run.config.steps}")
        started = time.perf_counter()
        with step_bar(run) as show:
            run.train(progress=show)
        skipped = f", {run.trainer.skipped} steps skipped" if run.trainer.skipped else ""
        print(f"Trained {run.config.steps} steps in {time.perf_counter() - started:.0f} s{skipped}")
    else:
        run.train()
    leave()
    return run.trainer.world.is_first


def _reconstruct(run: Run, pair: TomogramPair, command: Reconstruct | Demo, truth: torch.Tensor | None = None) -> None:
    """Write the reconstruction, and say what changed."""
    with tile_bar("predicting") as show:
        out = run.reconstruct(command.tiles, dtype=command.output.dtype, truth=truth, progress=show)
    print(filling(pair, read_volume(out)))
    print(f"The input halves {agreement(pair)}")
    print(f"Wrote {out}\nDrew  {run.path / 'slices.png'}, {run.path / 'losses.png'} and {run.path / 'previews'}")
