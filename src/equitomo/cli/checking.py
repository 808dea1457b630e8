"""``equitomo check``: look at half tomograms before the long work on them."""

from __future__ import annotations

import copy
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from equitomo import report
from equitomo.cli import machine
from equitomo.cli.options import CheckPlan, HalvesOrTable, Reading
from equitomo.cli.predicting import require_other
from equitomo.cli.reading import Declared, declared_in, declared_pair, declared_rows, read_halves
from equitomo.datasets import SubtomogramDataset, TomogramPair, read_geometry, require_one_voxel_size
from equitomo.diagnosis import diagnose, estimate_wedge
from equitomo.io import TableRow, bytes_to_create, read_volume, require_place
from equitomo.training import IcecreamTrainer, TrainingConfig
from equitomo.training.memory import IN_BACKWARD, cubes_at_once

Options = dict[type, Any]
Status = Literal["ok", "note", "mend"]
Found = TypeVar("Found")

_GIGA = 1e9
# A step is timed on cubes of three strides on a CPU, where one of the paper's takes minutes, and scaled by its voxels.
# On several: with a single one the weights, which do not grow with the voxels, take as long as these.
_TIMED_STRIDES, _TIMED_CUBES, _TIMED_STEPS = 3, 4, 2
# Copies in float32 of the volume that a run holds at once: the halves as read and normalised, result and its parts.
_COPIES = 8
_PROGRAM = 5e8  # bytes of the libraries themselves


def run(options: Options) -> int:
    """Print what is in order and what is not; 1 if something must be mended, 2 if it is not said what to look at."""
    try:
        declared = _declared(options)
    except (ValueError, OSError) as error:
        print(f"equitomo: {error}", file=sys.stderr)
        return 2
    table = _Table()
    if isinstance(declared, Declared):
        pair = _look_at_one(table, declared, options)
        if pair is not None:
            n_voxels = math.prod(pair.shape)
            result = bytes_to_create("reconstruction.mrc", pair.shape)
            _look_at_the_machine(table, pair, options, volumes=_COPIES * 4 * n_voxels, result=result)
    else:
        _look_at_all(table, declared, options)
    return table.close()


def _declared(options: Options) -> Declared | list[TableRow]:
    """What is to be looked at."""
    plan, halves = options[CheckPlan], options[HalvesOrTable]
    if halves.table is None:
        if plan.picture is not None:
            require_place(plan.picture, overwrite=plan.overwrite)
            require_other(Path(plan.picture), halves.first, halves.second)
        return declared_pair(options, plan.mask)
    if plan.picture is not None:
        raise ValueError("--picture draws the wedge of one tomogram: give its two halves in place of the --table")
    return declared_rows(options, plan.mask)


def _look_at_one(table: _Table, declared: Declared, options: Options) -> TomogramPair | None:
    """The pair, if it can be used at all."""
    pair = _look_at_the_data(table, declared, options)
    if pair is not None:
        _draw_the_wedge(table, pair, options[CheckPlan].picture)
        _look_at_the_cubes(table, pair, options[TrainingConfig])
    return pair


def _look_at_all(table: _Table, rows: list[TableRow], options: Options) -> None:
    """Every tomogram of a table, one after the other, and once the machine."""
    config: TrainingConfig = options[TrainingConfig]
    usable: list[TomogramPair] = []
    for row in rows:
        with table.line(row.line, f"{row.first} and {row.second}"):
            declared = table.attempt("tilts", lambda row=row: declared_in(row, options, options[CheckPlan].mask))  # type: ignore[misc]
            pair = None if declared is None else _look_at_one(table, declared, options)
        if pair is not None:
            pair.name = f"line {row.line}"
            # The first is what steps are timed on; of the others no more is needed than what they are.
            usable.append(_without_voxels(pair) if usable else pair)
    if not usable:
        return
    if not config.mixed_voxel_sizes:
        table.attempt("sizes", lambda: require_one_voxel_size(usable))
    sizes = [math.prod(pair.shape) for pair in usable]
    held = min(8 * sum(sizes), config.memory * 2**30 or math.inf)
    # Both halves of all, and what else the one takes that is being read.
    _look_at_the_machine(table, usable[0], options, volumes=held + (_COPIES - 2) * 4 * max(sizes), result=0)


def _without_voxels(pair: TomogramPair) -> TomogramPair:
    """A pair of that shape which takes no memory."""
    pair.release()
    return pair


class _Table:
    """Lines of status, subject and finding, printed as they come."""

    def __init__(self) -> None:
        self._to_mend = 0
        self._line = ""
        self.doubted: set[str] = set()

    def __call__(self, status: Status, subject: str, text: str) -> None:
        self._to_mend += status == "mend"
        if status != "ok":
            self.doubted.add(subject)
        if self._line:
            if status == "ok":
                return
            subject, text = self._line, f"{subject}: {text}"
        print(f"{'MEND' if status == 'mend' else status:<6}{subject:<10}{text}", flush=True)

    @contextmanager
    def line(self, number: int, name: str) -> Iterator[None]:
        """What is found belongs to this line of the user's table: one line of ours if there is nothing to say."""
        self._line, self.doubted = f"line {number}", set()
        yield
        subject, self._line = self._line, ""
        if not self.doubted:
            self("ok", subject, name)

    def close(self) -> int:
        print("\nNothing to mend." if not self._to_mend else f"\n{self._to_mend} to mend before a reconstruction.")
        return 1 if self._to_mend else 0

    def attempt(self, subject: str, act: Callable[[], Found], said: Sequence[str] = ()) -> Found | None:
        """The result, with warnings as notes but for those said already; ``None`` and a line to mend if it fails."""
        with self._noting(subject, said):
            try:
                return act()
            except (ValueError, OSError) as error:
                self("mend", subject, str(error))
                return None

    @contextmanager
    def _noting(self, subject: str, said: Sequence[str]) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for message in (str(warning.message) for warning in caught):
            if not any(known in message for known in said):
                self("note", subject, message)


def _look_at_the_data(table: _Table, declared: Declared, options: Options) -> TomogramPair | None:
    """The pair, if the files and the tilts can be used at all."""
    geometry = table.attempt("tilts", lambda: read_geometry(declared.tilts, declared.tilt_axis))
    if geometry is not None:
        low, high = geometry.tilt_range
        views = "" if geometry.continuous else f"{len(geometry.angles)} views from "
        table("ok", "tilts", f"{views}{low:g} to {high:g} degrees about {geometry.tilt_axis}")
    files = table.attempt("files", lambda: read_halves(declared.first, declared.second, options[Reading]))
    if files is None or geometry is None:
        return None

    def make() -> TomogramPair:
        permissive: bool = options[Reading].permissive
        mask: Any = declared.mask
        if mask not in (None, "auto"):
            mask = read_volume(mask, permissive=permissive)
        normalization = options[TrainingConfig].normalization
        return TomogramPair(*files, geometry, mask=mask, normalization=normalization, lazy=True)

    pair = table.attempt("halves", make)
    if pair is None:
        return None
    findings = diagnose(pair)
    for finding in findings:
        status: Status = finding.severity if finding.severity in ("ok", "note") else "mend"
        table(status, finding.subject, finding.text)
    if any(finding.severity == "error" and finding.subject != "wedge" for finding in findings):
        return None
    _ = pair.volumes, pair.mask
    return pair


def _draw_the_wedge(table: _Table, pair: TomogramPair, picture: str | None) -> None:
    if picture is not None and (estimate := estimate_wedge(pair.statistics[0].middle)).tilt_range is not None:
        table("ok", "wedge", f"drawn in {report.draw_wedge(picture, estimate, pair.geometry)}")


def _look_at_the_cubes(table: _Table, pair: TomogramPair, config: TrainingConfig) -> None:
    def count() -> int:
        return SubtomogramDataset(pair, config.side, length=1, min_fraction=config.min_specimen).n_starts

    starts = table.attempt("cubes", count)
    if starts is not None:
        of_mask = "" if pair.mask is None else f" within a mask of {float(pair.mask.float().mean()):.0%}"
        table("ok", "cubes", f"{starts:,} different cubes of {config.side} voxels{of_mask}")
    elif min(pair.shape) < config.side:
        stride = 2 ** (config.levels - 1)
        table("note", "cubes", f"--side {min(pair.shape) // stride * stride} is the largest that fits")


def _look_at_the_machine(table: _Table, pair: TomogramPair, options: Options, *, volumes: float, result: int) -> None:
    """Memory, disk and time for the configured training, with bytes of volumes in memory and of the result on disk."""
    config: TrainingConfig = options[TrainingConfig]
    trial = table.attempt("device", lambda: _Trial.of(pair, config))
    free = machine.free_memory()
    on_gpu = trial is not None and trial.device.type == "cuda"
    needed = _PROGRAM + (volumes if trial is None or on_gpu else volumes + IN_BACKWARD * trial.activations)
    enough: Status = "note" if free is None else "ok" if needed < free else "mend"
    there = "unknown" if free is None else f"{free / _GIGA:.1f} GB"
    smaller = f"; {machine.LESS_MEMORY}" if enough == "mend" else ""
    table(enough, "memory", f"about {needed / _GIGA:.1f} GB needed, {there} free{smaller}")
    if trial is None:
        return
    if on_gpu:
        room = torch.cuda.get_device_properties(trial.device).total_memory
        table("ok", "GPU", f"{trial.activations / _GIGA:.1f} GB of {room / _GIGA:.1f} GB used in a step")
    else:
        table("note", "GPU", "none is used")
    written = trial.written + result
    space = shutil.disk_usage(_existing(Path(options[CheckPlan].out))).free
    table("ok" if written < space else "mend", "disk", f"{written / _GIGA:.2f} GB needed, {space / _GIGA:.1f} GB free")
    seconds = trial.seconds * config.steps
    table(
        "ok",
        "time",
        f"about {machine.duration(seconds)} for {config.steps:,} steps of {machine.duration(trial.seconds)}",
    )


class _Trial:
    """A few steps of the training, for what a step takes: all of it on a GPU, a small cube of it on a CPU."""

    def __init__(self, device: torch.device, seconds: float, activations: float, written: int) -> None:
        self.device, self.seconds, self.activations, self.written = device, seconds, activations, written

    @classmethod
    def of(cls, pair: TomogramPair, config: TrainingConfig) -> _Trial:
        pair = copy.copy(pair)
        pair._mask_given = pair._mask = None
        trainer = IcecreamTrainer(pair, _small(config) if _on_cpu(config) else config)
        share = trainer.config.batch * trainer.config.side**3 / (config.batch * config.side**3)
        try:
            # The first step also sets things up.
            trainer.train(until=1)
            seconds = _seconds(lambda: trainer.train(until=1 + _TIMED_STEPS), trainer.device) / _TIMED_STEPS
        except torch.OutOfMemoryError as error:
            raise ValueError(str(error)) from None
        if trainer.device.type == "cuda":
            kept = float(torch.cuda.max_memory_allocated(trainer.device))
        else:
            # What does not grow with the cubes, weights above all, is kept once.
            one, two = trainer.bytes_kept(1), trainer.bytes_kept(2)
            n_at_once = min(cubes_at_once(config, trainer.device), config.batch)
            kept = 2 * one - two + (two - one) * n_at_once * config.side**3 / trainer.config.side**3
        return cls(trainer.device, seconds / share, kept, trainer.bytes_to_write)


def _on_cpu(config: TrainingConfig) -> bool:
    return config.device.startswith("cpu") or (config.device == "auto" and not torch.cuda.is_available())


def _small(config: TrainingConfig) -> TrainingConfig:
    side = min(config.side, _TIMED_STRIDES * 2 ** (config.levels - 1))
    return replace(config, side=side, margin=config.margin * side // config.side, batch=_TIMED_CUBES)


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
