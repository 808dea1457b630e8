"""Prediction of the tomograms of a table, on one device or several, while other processes may do the same."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from equitomo.geometry import TiltGeometry
from equitomo.io import read_volume, require_place, valid_path
from equitomo.resources import computing_threads
from equitomo.run.folder import require_other
from equitomo.run.network import Devices
from equitomo.run.prediction import Plan, chosen_devices
from equitomo.run.run import Run
from equitomo.run.settings import FINISHING_SETTINGS, Prediction, PredictionTable, ReconstructionSettings
from equitomo.run.table import ResultRecord, Tomogram, claimed, result_names, tomograms_of

TableProgress = Callable[[Path, int, int], None]
_PREDICTION = Prediction()
# Settings of a run on which a result depends.
_SETTINGS = ("passes", "average_first", "test_time_mirrors", "mirror_images", "flips", "precision", "normalization")


@dataclass(frozen=True)
class Outcome:
    """The result of the work on one tomogram.

    Parameters
    ----------
    tomogram
        The tomogram.
    result
        The file.
    status
        ``"done"``, ``"skipped"`` for a result that existed, ``"failed"``, or ``"held"`` for one that another process
        works on.
    reason
        The time that it took, or why it was not made.
    """

    tomogram: Tomogram
    result: Path
    status: Literal["done", "skipped", "failed", "held"]
    reason: str

    def __str__(self) -> str:
        return f"{self.status:<8} line {self.tomogram.line:<5} {self.result.name}: {self.reason}"


def listed(outcomes: Sequence[Outcome], n_tasks: int) -> str:
    """Return a line with the outcome of each tomogram, and one with the number of each kind of outcome."""
    counts = {status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed", "held")}
    numbers = [f"{counts[status]} {status}" for status in ("done", "skipped", "failed")]
    numbers += [f"{counts['held']} still with other processes"] * (counts["held"] > 0)
    numbers += [f"{n_tasks - len(outcomes)} left"] * (n_tasks > len(outcomes))
    lines = map(str, sorted(outcomes, key=lambda outcome: outcome.tomogram.line))
    return "\n".join([*lines, ", ".join(numbers)])


class TablePrediction:
    """The prediction of the tomograms of a table into a folder.

    A result that exists, is whole and would come out the same is skipped. A tomogram that fails stops no other one.
    Any number of processes may work on one table and folder: a tomogram that another process works on is skipped, and
    retried once at the end.

    Parameters
    ----------
    run
        The run with the network.
    files
        The table, and the tilts for the tomograms for which it names none; ``None`` stands for those of the run.
    folder
        The folder for the results, which are named after the first halves. It is made if it does not exist.
    settings
        As for :meth:`Run.predictor`.
    overwrite
        As for :meth:`Run.plan`, but only results that were made from something else are replaced.
    devices
        Devices that share the tomograms.

    Attributes
    ----------
    n_tomograms : int
        Tomograms of the table.
    tasks : list of tuple
        The tomograms of this part, each with the path of its result.

    Raises
    ------
    ValueError, OSError
        For everything that concerns all tomograms: the table, the settings, the devices, the folder.
    """

    def __init__(
        self,
        run: Run,
        files: PredictionTable,
        folder: str | Path,
        settings: ReconstructionSettings = _PREDICTION,
        *,
        overwrite: bool = False,
        devices: Devices = "auto",
    ) -> None:
        if files.table is None:
            raise ValueError("these are the files of one tomogram: give a `table` of many")
        for name in ("refine", "deconvolve", "split_result", "confidence"):
            if getattr(settings, name) not in ("none", False):
                raise ValueError(f"`{name}` is for one tomogram: predict those of a `table` one by one for it")
        number, count = _part(files.part or "1/1")
        tomograms, folder = tomograms_of(files, need_second=False), valid_path(folder)
        results = [folder / name for name in result_names(files.table, tomograms)]
        for result in results:
            require_other(result, *(half for tomogram in tomograms for half in tomogram.halves.values()))
        self.run, self.settings, self.devices = run, settings, chosen_devices(devices)
        # Settings that fit no tomogram are refused now; any tilts do for that.
        run.predictor(TiltGeometry.from_range(-60, 60), self.settings, devices=self.devices[:1])
        _make_folder(folder)
        self.n_tomograms, self.tasks = len(tomograms), list(zip(tomograms, results, strict=True))[number - 1 :: count]
        self._overwrite = overwrite

    def write(
        self,
        *,
        planned: Callable[[Plan], None] = lambda plan: None,
        progress: TableProgress = lambda result, done, total: None,
        finished: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Make all results; return the outcomes in the order of the table.

        Parameters
        ----------
        planned
            Called with the plan of each tomogram before its prediction.
        progress
            Called with the path of a result, the tiles done and their total.
        finished
            Called with each outcome. With several devices all three are called from several threads.
        """
        return _Work(self, planned, progress, finished).do()

    def make(
        self, run: Run, tomogram: Tomogram, result: Path, planned: Callable[[Plan], None], progress: TableProgress
    ) -> str | None:
        """Make one result with a run whose network is on one device; or return why there is no need to."""
        declared = tomogram.declared
        geometry = run.geometry(declared.tilts, declared.tilt_axis, declared.second_axis_tilts)
        settings = self._recorded_settings() | {"nan": declared.nan, "tilts": geometry.as_dict()}
        if declared.second_tilts is not None:
            settings["second_tilts"] = run.geometry(declared.second_tilts, declared.tilt_axis).as_dict()
        indifferent = {"tile"} if self._is_seamless else set()
        record = ResultRecord(result, tomogram.halves, run.weight_hashes, settings, indifferent=indifferent)
        overwrite = self._overwrite
        if result.exists():
            differences = record.differences()
            if not differences and _is_whole(result):
                return "done already"
            if differences and not overwrite:
                raise FileExistsError(
                    f"{result} was made from something else ({'; '.join(differences)}): "
                    "replace it with `overwrite=True`, or choose another `folder`"
                )
            overwrite = True
        content = record.content()
        pair = run.read_pair(declared)
        plan = run.plan(pair, result, self.settings, overwrite=overwrite, devices=None)
        planned(plan)

        def before_naming() -> None:
            # The old result is removed first: beside the new record it would pass for the new result.
            if overwrite:
                result.unlink(missing_ok=True)
            record.write(content)

        plan.write(lambda done, total: progress(result, done, total), before_naming=before_naming)
        return None

    def _recorded_settings(self) -> dict[str, Any]:
        """Return the settings on which a result depends; the device changes it by no more than rounding."""
        # Nothing follows the results of a table, and those of earlier versions know no such settings.
        tiles = {name: value for name, value in asdict(self.settings).items() if name not in FINISHING_SETTINGS}
        if self.settings.tile_margin != "auto":
            del tiles["margin_tolerance"]
        if tiles.get("start_share") is None:
            # Results of earlier versions know no such setting.
            tiles.pop("start_share", None)
        config = self.run.config_with(self.settings)
        return tiles | {name: getattr(config, name) for name in _SETTINGS}

    @property
    def _is_seamless(self) -> bool:
        """Whether the size of the tiles changes a result by no more than rounding and the error of the margin."""
        return self.settings.wedge != "tile" or self.run.config_with(self.settings).passes == 1


class _StoppedError(Exception):
    """Raised in the threads of the other devices when one of them failed or was interrupted."""


class _Work:
    """The work on the tomograms of a table.

    Each device has a thread, which takes the next tomogram: threads share the memory that the libraries take (a
    process of its own would take some 700 MiB for each device), one interrupt reaches them all, and the time goes into
    kernels, which run without the interpreter's lock.
    """

    def __init__(
        self,
        table: TablePrediction,
        planned: Callable[[Plan], None],
        progress: TableProgress,
        finished: Callable[[Outcome], None],
    ) -> None:
        self._table, self._planned, self._progress, self._finished = table, planned, progress, finished
        self._runs = [table.run.copied_to(device) for device in table.devices]
        self._left: queue.SimpleQueue[tuple[Tomogram, Path]] = queue.SimpleQueue()
        # Tomograms that other processes had claimed, to be retried once at the end.
        self._held: list[tuple[Tomogram, Path]] = []
        self._is_retry = False
        self._stopped = threading.Event()
        self._outcomes: list[Outcome] = []

    def do(self) -> list[Outcome]:
        self._work_through(self._table.tasks)
        # Meanwhile the other processes may have failed or been killed.
        self._is_retry = True
        self._work_through(self._held)
        return sorted(self._outcomes, key=lambda outcome: outcome.tomogram.line)

    def _work_through(self, tasks: Sequence[tuple[Tomogram, Path]]) -> None:
        for task in tasks:
            self._left.put(task)
        if len(self._runs) == 1:
            # In this thread: an interrupt then need not wait for the tile.
            self._work_with(self._runs[0])
            return
        with computing_threads(len(self._runs)) as pool:
            try:
                for future in [pool.submit(self._work_with, run) for run in self._runs]:
                    future.result()
            except BaseException:
                self._stopped.set()
                raise

    def _work_with(self, run: Run) -> None:
        """Make one result after the other until none is left."""
        while not self._stopped.is_set():
            try:
                tomogram, result = self._left.get_nowait()
                outcome = self._outcome(run, tomogram, result)
            except (queue.Empty, _StoppedError):
                return
            if outcome.status == "held" and not self._is_retry:
                self._held.append((tomogram, result))
                continue
            self._outcomes.append(outcome)
            self._finished(outcome)

    def _outcome(self, run: Run, tomogram: Tomogram, result: Path) -> Outcome:
        started = time.perf_counter()
        try:
            with claimed(result) as is_ours:
                if not is_ours:
                    return Outcome(tomogram, result, "held", "another process works on it")
                reason = self._table.make(run, tomogram, result, self._planned, self._report)
        except _StoppedError:
            raise
        # Whatever error one tomogram causes, the others are made.
        except Exception as error:
            is_known = isinstance(error, ValueError | OSError)
            return Outcome(tomogram, result, "failed", str(error) if is_known else f"{type(error).__name__}: {error}")
        if reason is not None:
            return Outcome(tomogram, result, "skipped", reason)
        return Outcome(tomogram, result, "done", f"{time.perf_counter() - started:.0f} s")

    def _report(self, result: Path, done: int, total: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self._progress(result, done, total)


def _part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"`part` is K/N with 1 <= K <= N, such as 3/10, got {text!r}")
    return int(number), int(count)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_place(folder / "result.mrc", overwrite=True)
    except OSError as error:
        raise OSError(f"cannot write into `folder` {folder}: {error.strerror or error}; name a folder") from error


def _is_whole(result: Path) -> bool:
    try:
        read_volume(result)
    except (ValueError, OSError):
        return False
    return True
