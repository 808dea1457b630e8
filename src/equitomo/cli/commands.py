"""The commands: from their options to the library, with what they print and their exit status."""

from __future__ import annotations

import dataclasses
import errno
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from equitomo.cli import options
from equitomo.cli.progress import TableBar, step_bar, tile_bar
from equitomo.cli.wording import with_options
from equitomo.datasets import TomogramPair
from equitomo.io import read_volume, require_place, require_writable, valid_path
from equitomo.resources import is_out_of_memory
from equitomo.run import (
    Conversion,
    Demonstration,
    Halves,
    Outcome,
    Plan,
    Preview,
    Run,
    TablePrediction,
    TiltTest,
    WedgeChoice,
    WedgeTest,
    check_training,
)
from equitomo.run.comparison import Comparison
from equitomo.run.defaults import why_from_scratch
from equitomo.run.demo import DEMO_FILES
from equitomo.run.folder import (
    FINISHED,
    MANIFEST,
    REPORT,
    RUN_FILES,
    TILT_TRAININGS,
    WEDGE_TRAININGS,
    RunFolder,
    require_other,
)
from equitomo.run.independent import independent_settings, results_to_compare, starting_weights, training_files
from equitomo.run.interruption import interruptible
from equitomo.run.many import listed
from equitomo.run.places import Picture, TrainingFolder
from equitomo.run.record import Invocation
from equitomo.run.reporting import report_of
from equitomo.run.settings import ReconstructionSettings, TomogramFiles
from equitomo.run.summary import agreement, filling
from equitomo.run.table import Tomogram, read_pairs, tomograms_of, warn_of_findings
from equitomo.run.verdict import advice
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training import TrainingDivergedError, TrainingInterruptedError
from equitomo.training.distributed import LostProcessError, join, leave

# The work that is left after all checks; it returns the exit status, None for 0.
Job = Callable[[], int | None]


@dataclass(frozen=True)
class Call:
    """A call of the program: its arguments, the names of the command's options, and what is released at the end."""

    arguments: Sequence[str]
    names: Collection[str]
    stack: ExitStack

    def say(self, error: object) -> None:
        """Print an error."""
        print(f"equitomo: {with_options(str(error), self.names)}", file=sys.stderr)

    def hold(self, given: TrainingFolder, names: Sequence[str] = RUN_FILES) -> RunFolder:
        """Hold a run's folder until the program ends. Of several processes only the first one prints and warns."""
        if not join().is_first:
            self.stack.enter_context(redirect_stdout(None))
            self.stack.enter_context(warnings.catch_warnings(action="ignore"))
        folder = RunFolder(given.out, names)
        held = folder.held(resume=given.resume, overwrite=given.overwrite, break_lock=given.break_lock)
        self.stack.enter_context(held)
        return folder

    def run(self, command: options.Training, folder: RunFolder, pairs: Sequence[TomogramPair]) -> Run:
        """Make or resume the run of a command."""
        values = {name: value for group in dataclasses.asdict(command).values() for name, value in group.items()}
        table = values.get("table")
        run = Run.create(
            folder,
            pairs,
            command.config,
            init=command.folder.init,
            resume=command.folder.resume,
            overwrite=command.folder.overwrite,
            further_inputs={} if table is None else {"table": Path(table)},
            invocation=Invocation(("equitomo", *self.arguments), values),
        )
        if command.folder.resume and not run.step:
            print(f"{folder.path} has no checkpoint yet: the run begins at step 0")
        was_chosen = command.folder.init is not None or command.folder.resume
        for note in run.notes + ([] if was_chosen else why_from_scratch(command.config)):
            print(with_options(note, self.names))
        return run


def run(command: options.Command, arguments: Sequence[str], names: Collection[str]) -> int:
    """Check the input of a command, then do it; return the exit status."""
    with ExitStack() as stack:
        call = Call(arguments, names, stack)
        try:
            stack.enter_context(interruptible())
            try:
                job = prepare(command, call)
            except (ValueError, OSError) as error:
                call.say(error)
                return 2
            return job() or 0
        except (TrainingInterruptedError, KeyboardInterrupt) as error:
            call.say(str(error) or "interrupted")
            return 130
        except (TrainingDivergedError, LostProcessError, torch.OutOfMemoryError) as error:
            call.say(error)
            return 1
        except OSError as error:
            remedy = "continue with `resume=True`" if "resume" in names else "try again"
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            call.say(f"{error}: free some space and {remedy}" if is_full else error)
            return 74
        except (MemoryError, RuntimeError) as error:
            # The host's memory is reported by several kinds of error.
            if not is_out_of_memory(error):
                raise
            call.say(f"out of memory: a smaller `tile` or `batch` needs less ({error})")
            return 1


@singledispatch
def prepare(command: options.Command, call: Call) -> Job:
    """Check the whole input of a command; return the work that is left."""
    raise NotImplementedError(type(command))


@prepare.register(options.Train)
@prepare.register(options.Reconstruct)
def _(command: options.Train | options.Reconstruct, call: Call) -> Job:
    folder = call.hold(command.folder)
    run = call.run(command, folder, read_pairs(_tomograms(command), warn=join().is_first))
    if isinstance(command, options.Reconstruct):
        run.require_reconstruction(command.result)
    return lambda: _work(command, run)


@prepare.register
def _(command: options.Demo, call: Call) -> Job:
    size = command.specimen.size
    largest = max(command.config.fitted([(size, size, size)]).cube_shape)
    if size < largest:
        raise ValueError(f"`size` {size} is less than the side of a training cube, {largest}")
    folder = call.hold(command.folder, DEMO_FILES)
    print(f"Simulating a specimen of {size} x {size} x {size} voxels and its tilt series")
    demonstration = Demonstration(command.specimen, command.config.seed)
    run = call.run(command, folder, [demonstration.pair])
    # The halves and the truth are written too.
    run.require_reconstruction(command.result, n_volumes=4)
    return lambda: _work(command, run, demonstration)


def _work(command: options.Training, run: Run, demonstration: Demonstration | None = None) -> None:
    """Train to the last step; the first of the processes then reconstructs, if that was asked for."""
    is_first, started = run.trainer.world.is_first, time.perf_counter()
    with run.recorded():
        if demonstration is not None and is_first:
            demonstration.write(run.path)
        if run.step:
            print(f"Resuming after step {run.step}" + (f" of {run.trainer.steps}" if run.trainer.steps else ""))
        with step_bar(run.trainer) if is_first else nullcontext() as show:
            run.train(progress=show)
        leave()
        skipped = f", {run.trainer.skipped} steps skipped" if run.trainer.skipped else ""
        print(f"Trained {run.step} steps in {time.perf_counter() - started:.0f} s{skipped}")
        if is_first and (said := advice(run.trainer)):
            print(said)
        if is_first and not isinstance(command, options.Train):
            with tile_bar("predicting") as show:
                truth = None if demonstration is None else demonstration.truth
                out = run.reconstruct(command.result, truth=truth, planned=_announce, progress=show)
            (pair,) = run.pairs
            print(filling(pair, read_volume(out)))
            if pair.n_views == 2:
                print(agreement(pair))
            drawn = ", ".join(str(run.path / name) for name in ("slices.png", "losses.png", "previews"))
            written = [out, *(path for name in (*FINISHED, REPORT) if (path := run.path / name).exists())]
            print("\n".join(f"Wrote {path}" for path in written), f"\nDrew  {drawn}", sep="")


@prepare.register
def _(command: options.Predict, call: Call) -> Job:
    result, given = command.result, command.files
    if given.table is not None:
        return _prepare_table(command, call)
    # Before anything is read: a name that cannot be written is soon refused.
    require_writable(valid_path(result.out), overwrite=result.overwrite)
    require_other(valid_path(result.out), given.first, given.second)
    run = Run.open(result.run)
    pair = run.read_pair(given)
    warn_of_findings(pair)
    plan = run.plan(pair, result.out, command.prediction, overwrite=result.overwrite, devices=result.device)

    def job() -> None:
        _announce(plan)
        print(f"Prediction takes up to {plan.needs}, and what the network computes with")
        with tile_bar("predicting") as show:
            plan.write(show)
        print("\n".join(f"Wrote {path}" for path in plan.paths))

    return job


def _prepare_table(command: options.Predict, call: Call) -> Job:
    """Check the prediction of a table; return the work that is left."""
    result, files, settings = command.result, command.files, command.prediction
    run = Run.open(result.run)
    table = TablePrediction(run, files, result.out, settings, overwrite=result.overwrite, devices=result.device)

    def job() -> int:
        n_tasks, outcomes = len(table.tasks), list[Outcome]()
        print(f"{n_tasks} of the {table.n_tomograms} tomograms of {files.table}, into {result.out}")
        bar = TableBar(n_tasks)

        def planned(plan: Plan) -> None:
            warn_of_findings(plan.pair)
            _announce(plan)

        def finished(outcome: Outcome) -> None:
            outcomes.append(replace(outcome, reason=with_options(outcome.reason, call.names)))
            bar.finish(outcomes[-1])

        try:
            table.write(planned=planned, progress=bar.tiles, finished=finished)
        finally:
            bar.bar.close()
            print(f"\n{listed(outcomes, n_tasks)}")
        return int(any(outcome.status == "failed" for outcome in outcomes))

    return job


@prepare.register
def _(command: options.Halves, call: Call) -> Job:
    given = command.folder
    halves = Halves(command.files, given.out, command.settings, overwrite=given.overwrite)
    call.stack.enter_context(halves.held(break_lock=given.break_lock))

    def job() -> int:
        with tile_bar("reconstructing", unit="plane") as show:
            outcomes = halves.write(
                progress=lambda name, done, total: show(done, total),
                finished=lambda outcome: tqdm.write(with_options(str(outcome), call.names)),
                announce=tqdm.write,
            )
        print(halves.following())
        return int(any(outcome.status == "failed" for outcome in outcomes))

    return job


@prepare.register
def _(command: options.Preview, call: Call) -> Job:
    result, given = command.result, command.files
    require_writable(valid_path(result.out), overwrite=result.overwrite)
    pair = Tomogram(given).read(lazy=True)
    preview = Preview(pair, result.out, command.prediction, overwrite=result.overwrite)

    def job() -> None:
        _announce(preview.plan)
        preview.write()
        print("\n".join(f"Wrote {path}" for path in preview.plan.paths))
        print(
            "This preview comes from a prior learned on simulations, not from training on this data, which is better: "
            "see `equitomo reconstruct`"
        )

    return job


@prepare.register
def _(command: options.WedgeTest, call: Call) -> Job:
    run = Run.open(command.run.run)
    if not (run.path / MANIFEST).exists():
        raise ValueError(f"{run.path} is not the folder of a run, in which the result is written: give that")
    picture = _picture(command.picture, command.files)
    pair = None if command.files.first is None else run.read_pair(command.files)
    choose, is_of_tilts = command.settings.choose, command.settings.series is not None
    folder = run.path / (TILT_TRAININGS if is_of_tilts else WEDGE_TRAININGS)
    trainings = WedgeTrainings(folder, overwrite=command.picture.overwrite)
    call.stack.enter_context(trainings.held(break_lock=command.picture.break_lock))
    kind: type[WedgeTest | WedgeChoice] = WedgeChoice if choose else TiltTest if is_of_tilts else WedgeTest
    test = kind.of(run, pair, command.settings, trainings)

    def job() -> None:
        results: list[Any] = []
        for fold in test.folds():
            print(fold)
            with step_bar(fold.trainer) as show:
                fold.train(show)
            with tile_bar("predicting") as show_tiles:
                results.append(fold.score(show_tiles))
        result = test.result(results)
        print(result)
        print(f"Wrote {result.write(run.path / result.file_name)}")
        test.finish()
        if picture is not None:
            print(f"Drew  {result.draw(picture)}")

    return job


@prepare.register
def _(command: options.Report, call: Call) -> Job:
    report = report_of(command.files)
    return lambda: print(f"Wrote {report.write()}")


@prepare.register
def _(command: options.Convert, call: Call) -> Job:
    given = command.pickle
    call.say(
        f"{given.file} is a pickle, a kind of file that can hold a program. Only tensors and plain containers are read "
        "from it, and nothing in it is run"
    )
    conversion = Conversion(given.file, given.out, axes=given.axes, overwrite=given.overwrite)

    def job() -> None:
        width, levels = conversion.network.final_conv.in_channels, len(conversion.network.encoders)
        out = conversion.write()
        print(f"Wrote {out}: a network of width {width} with {levels} levels, for --init and predict --run")

    return job


@prepare.register
def _(command: options.Fsc, call: Call) -> Job:
    given, files = command.picture, command.files
    picture = _picture(given, files)
    if given.independent is None or given.out is None:
        comparison = Comparison(files)
        return lambda: _compare(comparison, picture)
    config = independent_settings(given.independent, files)
    init = given.init or starting_weights(given.independent)
    folder = TrainingFolder(given.out, resume=given.resume, overwrite=given.overwrite, init=init)
    results = results_to_compare(files, given.independent, given.out)
    train = prepare(options.Reconstruct(training_files(files), folder, ReconstructionSettings(), config), call)

    def job() -> None:
        train()
        if join().is_first:
            _compare(Comparison(results), picture)

    return job


def _compare(comparison: Comparison, picture: Path | None) -> None:
    """Print the correlation of two volumes and draw it, if that was asked for."""
    curves = comparison.curves()
    print(comparison.table(curves))
    if picture is not None:
        print(f"Drew {comparison.draw(picture, curves)}")


@prepare.register
def _(command: options.Check, call: Call) -> Job:
    picture = _picture(command.plan, command.files)
    if command.files.table is not None and picture is not None:
        raise ValueError("`picture` draws the wedge of one tomogram: give its two halves in place of the `table`")
    tomograms = _tomograms(command)

    def job() -> int:
        to_mend = 0
        for finding in check_training(tomograms, command.config, command.plan.out, picture=picture):
            status = "MEND" if finding.severity in ("warning", "error") else finding.severity
            to_mend += status == "MEND"
            print(f"{status:<6}{finding.subject:<10}{with_options(finding.text, call.names)}", flush=True)
        print(f"\n{to_mend} to mend before a reconstruction." if to_mend else "\nNothing to mend.")
        return 1 if to_mend else 0

    return job


def _tomograms(command: options.Looking) -> list[Tomogram]:
    """Return the tomograms that a command names, itself or by a table."""
    config = command.config
    need_second = config.method != "equivariant_imaging"
    return tomograms_of(command.files, normalization=config.normalization, need_second=need_second)


def _announce(plan: Plan) -> None:
    """Print whether the tomogram is inverted for the network, and the margin that was measured, if it was."""
    if plan.pair.is_inverted:
        tqdm.write(f"{plan.pair.name} is inverted for the network, which knows bright specimens, and the result back")
    tolerance, margin = plan.settings.margin_tolerance, plan.predictor.layout.margin
    if plan.settings.tile_margin == "auto":
        label = plan.pair.labels[0]
        tqdm.write(f"Margins of {margin} voxels are within {tolerance:g} of what wider ones give {label}")


def _picture(given: Picture, files: TomogramFiles) -> Path | None:
    """Return the picture that a command draws, after a check that it can be written."""
    if given.picture is None:
        return None
    require_place(given.picture, overwrite=given.overwrite)
    require_other(Path(given.picture), files.first, files.second)
    return Path(given.picture)
