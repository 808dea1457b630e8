"""``equitomo predict --table``: a trained network applied to the tomograms of a table, on one device or several."""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from equitomo.cli.options import OneOrMany, PredictFiles, Prediction, Reading, RunGeometry
from equitomo.cli.predicting import (
    Options,
    Progress,
    Tomogram,
    Trained,
    chosen_devices,
    make_predictor,
    make_ready,
    require_other,
)
from equitomo.cli.results import Record, claimed, result_names
from equitomo.geometry import TiltGeometry
from equitomo.io import TableRow, read_table, read_volume, require_place, valid_path
from equitomo.training import TrainingConfig

_SETTINGS = ("passes", "average_first", "mirrors", "flips", "precision", "normalization")


def prepare(options: Options) -> Callable[[], int]:
    """Check what the prediction of many tomograms was given; the work that is left, which gives the exit status."""
    files, given = options[PredictFiles], options[OneOrMany]
    assert given.table is not None
    rows, folder = read_table(given.table, need_second=False), valid_path(files.out)
    results = [folder / name for name in result_names(given.table, rows)]
    inputs = [str(half) for row in rows for half in _halves(row).values()]
    for result in results:
        require_other(result, *inputs)
    trained, devices = Trained.read(files), chosen_devices(files.device)
    # Settings that can work with no tomogram are told now; any tilts do for that.
    make_predictor(trained.network, TiltGeometry.from_range(-60, 60), options[Prediction], trained.config)
    _make_folder(folder)
    number, count = map(int, (given.part or "1/1").split("/"))
    tasks = list(zip(rows, results, strict=True))[number - 1 :: count]

    def job() -> int:
        print(f"{len(tasks)} of the {len(rows)} tomograms of {given.table}, into {folder}")
        return _Work(tasks, trained, devices, options).do()

    return job


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_place(folder / "result.mrc", overwrite=True)
    except OSError as error:
        raise OSError(f"cannot write into --out {folder}: {error.strerror or error}; name a folder") from error


@dataclass(frozen=True)
class _Outcome:
    """What came of one tomogram."""

    row: TableRow
    result: Path
    status: Literal["done", "skipped", "failed", "held"]
    reason: str

    def __str__(self) -> str:
        return f"{self.status:<8} line {self.row.line:<5} {self.result.name}: {self.reason}"


class _StoppedError(Exception):
    """The work is to end."""


@dataclass(frozen=True)
class _Worker:
    """A device with its copy of the network, and the line of the screen that it reports on."""

    trained: Trained
    device: torch.device
    slot: int


class _Work:
    """The tomograms that are to be done, and what came of them.

    Each device has a thread, which takes the tomogram that is next: threads share the memory that the libraries take
    (a process of its own would take some 700 MiB for each device), one interrupt reaches them all, and the time goes
    into kernels, which run without the interpreter's lock.
    """

    def __init__(
        self,
        tasks: Sequence[tuple[TableRow, Path]],
        trained: Trained,
        devices: Sequence[torch.device],
        options: Options,
    ) -> None:
        self._options = options
        self._workers = [
            _Worker(replace(trained, network=copy.deepcopy(trained.network).to(device)), device, slot)
            for slot, device in enumerate(devices)
        ]
        self._left: queue.SimpleQueue[tuple[TableRow, Path]] = queue.SimpleQueue()
        for task in tasks:
            self._left.put(task)
        # What other processes were at, and whether it is looked at for the last time.
        self._held: list[tuple[TableRow, Path]] = []
        self._is_last = False
        self._bars = _Bars(len(tasks))
        self._outcomes: list[_Outcome] = []

    def do(self) -> int:
        """Do it all; 1 if any tomogram failed."""
        try:
            with self._bars.shown():
                self._once()
                # The others may have failed since, or been killed.
                self._is_last = True
                while self._held:
                    self._left.put(self._held.pop(0))
                self._once()
        finally:
            self._tell()
        return int(any(outcome.status == "failed" for outcome in self._outcomes))

    def _once(self) -> None:
        """Go through all that is left."""
        if len(self._workers) == 1:
            # In this thread: an interrupt then need not wait for the tile.
            self._go_on(self._workers[0])
        else:
            self._together()

    def _together(self) -> None:
        with ThreadPoolExecutor(len(self._workers)) as pool:
            try:
                for future in [pool.submit(self._go_on, worker) for worker in self._workers]:
                    future.result()
            except BaseException:
                self._bars.stopped.set()
                raise

    def _go_on(self, worker: _Worker) -> None:
        """Do one tomogram after the other until none is left."""
        while not self._bars.stopped.is_set():
            try:
                row, result = self._left.get_nowait()
                outcome = self._outcome(worker, row, result)
            except (queue.Empty, _StoppedError):
                return
            if outcome.status == "held" and not self._is_last:
                self._held.append((row, result))
                continue
            if outcome.status != "done":
                self._bars.pass_over()
            self._outcomes.append(outcome)
            tqdm.write(str(outcome))

    def _outcome(self, worker: _Worker, row: TableRow, result: Path) -> _Outcome:
        started = time.perf_counter()
        try:
            with claimed(result) as ours:
                if not ours:
                    return _Outcome(row, result, "held", "another process is at it")
                reason = self._make(worker, row, result)
        except _StoppedError:
            raise
        # Whatever it is that one tomogram meets, the others go on.
        except Exception as error:
            known = isinstance(error, ValueError | OSError)
            return _Outcome(row, result, "failed", str(error) if known else f"{type(error).__name__}: {error}")
        if reason is not None:
            return _Outcome(row, result, "skipped", reason)
        return _Outcome(row, result, "done", f"{time.perf_counter() - started:.0f} s")

    def _make(self, worker: _Worker, row: TableRow, result: Path) -> str | None:
        """Make a result, or say why there is no need to."""
        given: RunGeometry = self._options[RunGeometry]
        own = RunGeometry(row.tilts or given.tilts, row.tilt_axis or given.tilt_axis)
        second = None if row.second is None else str(row.second)
        tomogram = Tomogram(str(row.first), second, worker.trained.geometry(own), result)
        record = Record(
            result,
            _halves(row),
            worker.trained.hashes,
            _settings(self._options, worker.trained, tomogram.geometry),
            indifferent=_indifferent(self._options[Prediction], worker.trained.config),
        )
        overwrite: bool = self._options[PredictFiles].overwrite
        if result.exists():
            differences = record.differences()
            if not differences and _is_whole(result):
                return "done already"
            if differences and not overwrite:
                raise FileExistsError(
                    f"{result} was made from something else ({'; '.join(differences)}): "
                    "replace it with --overwrite, or choose another --out"
                )
            overwrite = True
        record.describe()
        ready = make_ready(tomogram, worker.trained, self._options, devices=[worker.device], overwrite=overwrite)

        def finish() -> None:
            # First the old result goes: were it there with the new one's record, it would be taken for the new one.
            if overwrite:
                result.unlink(missing_ok=True)
            record.write()

        with self._bars.one(result.stem, worker.slot) as show:
            ready.write(show, finishing=finish)
        return None

    def _tell(self) -> None:
        """The table of what came of each tomogram."""
        outcomes = sorted(self._outcomes, key=lambda outcome: outcome.row.line)
        counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in ("done", "skipped", "failed")]
        if held := sum(outcome.status == "held" for outcome in outcomes):
            counts.append(f"{held} still with other processes")
        if left := self._left.qsize() + len(self._held):
            counts.append(f"{left} or more left")
        print("\n".join(["", *map(str, outcomes), ", ".join(counts)]))


def _halves(row: TableRow) -> dict[str, Path]:
    """The files of a tomogram by the role they have: two halves, or the first alone."""
    return {"first": row.first} | ({} if row.second is None else {"second": row.second})


def _settings(options: Options, trained: Trained, geometry: TiltGeometry) -> dict[str, Any]:
    """What else a result depends on; which device computes it is a matter of rounding."""
    prediction = asdict(options[Prediction])
    if prediction["tile_margin"] != "auto":
        del prediction["margin_tolerance"]
    configured = {name: getattr(trained.config, name) for name in _SETTINGS}
    return prediction | configured | {"nan": options[Reading].nan, "tilts": asdict(geometry)}


def _indifferent(prediction: Prediction, config: TrainingConfig) -> set[str]:
    """Settings that change no more of a result than rounding and the error that the margin allows."""
    return set() if prediction.wedge == "tile" and config.passes > 1 else {"tile"}


def _is_whole(result: Path) -> bool:
    try:
        read_volume(result)
    except (ValueError, OSError):
        return False
    return True


class _Bars:
    """Progress of each tomogram and of all of them, and the place where work is stopped."""

    def __init__(self, n_tomograms: int) -> None:
        self.stopped = threading.Event()
        self._n = n_tomograms
        self._lock = threading.Lock()
        self._all: tqdm[Any]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """With the bar of all tomograms, which moves with the tiles of each."""
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total} [{elapsed}<{remaining}]"
        with tqdm(total=self._n, desc="tomograms", smoothing=0, bar_format=form, position=0) as self._all:
            yield

    @contextmanager
    def one(self, name: str, slot: int) -> Iterator[Progress]:
        """A bar for one tomogram, as a function of the tiles done and their total."""
        seen = 0.0
        with tqdm(desc=name, unit="tile", position=1 + slot, leave=False) as bar:

            def show(done: int, total: int) -> None:
                nonlocal seen
                if self.stopped.is_set():
                    raise _StoppedError
                bar.total = total
                bar.update(done - bar.n)
                self._advance(done / total - seen)
                seen = done / total

            try:
                yield show
            except BaseException:
                self._advance(-seen)
                raise

    def pass_over(self) -> None:
        """Count a tomogram that took no time, or none that says how long the others will take."""
        with self._lock:
            self._all.initial += 1
        self._advance(1)

    def _advance(self, share: float) -> None:
        with self._lock:
            # Shares add up with rounding errors, and the bar warns of what is beyond its ends.
            self._all.n = min(max(self._all.n + share, 0), self._n)
            self._all.update(0)
