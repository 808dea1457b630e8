"""Findings before a training: on its tomograms, and on the memory, disk and time that it will need."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import torch

from equitomo import report, resources
from equitomo.datasets import SubtomogramDataset, TomogramPair
from equitomo.datasets.cubes import require_one_voxel_size
from equitomo.diagnosis import Finding, diagnose, estimate_wedge
from equitomo.geometry import TiltGeometry
from equitomo.io import bytes_to_create
from equitomo.methods import IcecreamTrainer
from equitomo.run.memory import LESS_MEMORY, duration
from equitomo.run.table import Tomogram
from equitomo.training import TrainingConfig
from equitomo.training.memory import IN_BACKWARD, cubes_at_once

Found = TypeVar("Found")
_GIGA = 1e9
# On a CPU, where a step with the paper's cubes takes minutes, steps are timed on cubes of three strides and scaled by
# their voxels. Several cubes: with a single one the weights, which do not grow with the voxels, take as long as these.
_TIMED_STRIDES, _TIMED_CUBES, _TIMED_STEPS = 3, 4, 2
# Copies in float32 of the volume that a run holds at once: the halves as read and normalised, result and its parts.
_COPIES = 8
# A network of preset tiny learns little in fewer steps.
_FEW_STEPS = 100
_PROGRAM = 5e8  # bytes of the libraries themselves


def check_training(
    tomograms: Sequence[Tomogram],
    config: TrainingConfig,
    out: str | Path = ".",
    *,
    picture: str | Path | None = None,
) -> Iterator[Finding]:
    """Yield the findings on tomograms and on the machine before the long work, each as soon as it is known.

    For a tomogram of a table the subject is its line. Such a tomogram has one finding if all is in order, and otherwise
    only those that are not.

    Parameters
    ----------
    tomograms
        The tomograms to train on.
    config
        The settings of the training.
    out
        The folder of the planned run, which need not exist.
    picture
        A PNG file to draw the power over the tilt of a single tomogram into.

    Examples
    --------
    >>> from equitomo.run import TomogramFiles
    >>> missing = Tomogram(TomogramFiles("even.mrc", "odd.mrc", tilts="-60,60"))
    >>> [finding.severity for finding in check_training([missing], TrainingConfig.preset("tiny"))]
    ['error']
    """
    usable = []
    # A block is held out of the first tomogram only.
    others = replace(config, held_out=0, stop_when_stable=False)
    for number, tomogram in enumerate(tomograms):
        line = "" if tomogram.table is None else f"line {tomogram.line}"
        settings = others if number else config
        findings, is_clean = _examined(tomogram, settings, picture, line or None), True
        for found in findings:
            if isinstance(found, TomogramPair):
                found.release()
                usable.append(found)
            elif not line:
                yield found
            elif found.severity != "ok":
                is_clean = False
                yield replace(found, subject=line, message=f"{found.subject}: {found.message}")
        if line and is_clean:
            yield Finding("ok", line, tomogram.files)
    if usable:
        yield from _of_machine(usable, config, out)


def _examined(
    tomogram: Tomogram, config: TrainingConfig, picture: str | Path | None, name: str | None
) -> Iterator[Finding | TomogramPair]:
    """Yield the findings on one tomogram, and in the end the pair if it can be used."""
    geometry = yield from _attempt("tilts", tomogram.geometry)
    # Without tilts the files can be looked at all the same.
    tilts = geometry or TiltGeometry.from_range(-60, 60)
    pair = yield from _attempt("files", lambda: tomogram.read(tilts, lazy=True, name=name))
    if pair is None:
        return
    for finding in (yield from _attempt("files", lambda: diagnose(pair, ctf_state=tomogram.ctf_state))) or ():
        if geometry is not None or finding.subject not in ("tilts", "wedge", "axes"):
            yield finding
    try:
        # The findings say why a pair cannot be used.
        _ = pair.scale, pair.mask
    except (ValueError, OSError):
        return
    if geometry is None:
        return
    if picture is not None:
        estimate = estimate_wedge(pair.statistics[0].middle)
        if estimate.tilt_range is not None:
            yield Finding("ok", "wedge", f"drawn in {report.draw_wedge(picture, estimate, geometry)}")
    yield _of_cubes(pair, config)
    yield pair


def _attempt(subject: str, act: Callable[[], Found]) -> Generator[Finding, None, Found | None]:
    """Return the result, and yield warnings as notes; or return ``None``, and yield the error."""
    result, failure = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = act()
        except (ValueError, OSError) as error:
            failure = Finding("error", subject, str(error))
    yield from (Finding("note", subject, str(warning.message)) for warning in caught)
    if failure is not None:
        yield failure
    return result


def _of_cubes(pair: TomogramPair, config: TrainingConfig) -> Finding:
    """Return how many different cubes of the configured side can be cut from a tomogram, or why none can."""
    config = config.fitted([pair.shape])
    side = " x ".join(map(str, dict.fromkeys(config.cube_shape)))
    try:
        cubes = SubtomogramDataset(
            pair,
            config.side,
            length=1,
            seed=config.seed,
            min_fraction=config.min_specimen,
            held_out=config.held_out,
        )
    except ValueError as error:
        largest = min(pair.shape) // config.stride * config.stride
        fits = all(n >= own for n, own in zip(pair.shape, config.cube_shape, strict=True))
        return Finding("error", "cubes", str(error), "" if fits else f"`side={largest}` is the largest cube that fits")
    within = "" if pair.mask is None else f" within a mask of {float(pair.mask.float().mean()):.0%}"
    return Finding("ok", "cubes", f"{cubes.n_starts:,} different cubes of {side} voxels{within}")


def _of_machine(pairs: Sequence[TomogramPair], config: TrainingConfig, out: str | Path) -> Iterator[Finding]:
    """Yield whether memory and disk suffice for a training, and how long it will take; a few steps are timed."""
    config = config.fitted(pair.shape for pair in pairs)
    if not config.mixed_voxel_sizes:
        try:
            require_one_voxel_size(pairs)
        except ValueError as error:
            yield Finding("error", "sizes", str(error))
    try:
        trial = Trial.of(pairs[0], config)
    except ValueError as error:
        yield Finding("error", "device", str(error))
        yield _of_memory(pairs, config, None)
        return
    yield _of_memory(pairs, config, trial)
    if trial.device.type == "cuda":
        room = torch.cuda.get_device_properties(trial.device).total_memory
        yield Finding("ok", "GPU", f"{trial.activations / _GIGA:.1f} GB of {room / _GIGA:.1f} GB used in a step")
    else:
        yield Finding("note", "GPU", "none is used")
    # A training on many tomograms writes no volume.
    result = bytes_to_create("reconstruction.mrc", pairs[0].shape) if len(pairs) == 1 else 0
    written, space = trial.written + result, shutil.disk_usage(_existing(Path(out))).free
    message = f"{written / _GIGA:.2f} GB needed, {space / _GIGA:.1f} GB free"
    yield Finding("ok" if written < space else "error", "disk", message)
    yield _of_time(trial.seconds, config)


def _of_time(seconds: float, config: TrainingConfig) -> Finding:
    """Return how long a training takes, or how many steps its time holds, with the seconds of a step."""
    if config.minutes is None:
        whole = duration(seconds * config.steps)
        return Finding("ok", "time", f"about {whole} for {config.steps:,} steps of {duration(seconds)}")
    n_steps = int(60 * config.minutes / seconds)
    message = f"{config.minutes:g} minutes hold about {n_steps:,} steps of {duration(seconds)}"
    if n_steps >= _FEW_STEPS:
        return Finding("ok", "time", message)
    return Finding(
        "warning", "time", f"{message}, too few to learn from", "more `minutes`, or a smaller `batch` or `width`"
    )


def _of_memory(pairs: Sequence[TomogramPair], config: TrainingConfig, trial: Trial | None) -> Finding:
    """Return whether the host's memory suffices for a training."""
    sizes = [4 * math.prod(pair.shape) for pair in pairs]
    # Both halves of all tomograms, and the other copies of the one that is being read or reconstructed.
    needed = min(2 * sum(sizes), config.memory * 2**30 or math.inf) + (_COPIES - 2) * max(sizes) + _PROGRAM
    if trial is not None and trial.device.type != "cuda":
        needed += IN_BACKWARD * trial.activations
    free = resources.free_memory()
    if free is None:
        return Finding("note", "memory", f"about {needed / _GIGA:.1f} GB needed, unknown free")
    message = f"about {needed / _GIGA:.1f} GB needed, {free / _GIGA:.1f} GB free"
    return Finding("ok", "memory", message) if needed < free else Finding("error", "memory", message, LESS_MEMORY)


@dataclass(frozen=True)
class Trial:
    """The time and memory of a training step, measured on a GPU and scaled from a small cube on a CPU."""

    device: torch.device
    seconds: float
    # Bytes that are kept for the backward pass of a step.
    activations: float
    # Bytes that the run will write into its folder.
    written: int

    @classmethod
    def of(cls, pair: TomogramPair, config: TrainingConfig) -> Self:
        """Measure a few steps, and refuse a device that cannot be used or whose memory does not hold a step."""
        # Whether enough cubes lie within a mask is another question.
        tried = replace(_small(config) if _on_cpu(config) else config, min_specimen=0.0)
        trainer = IcecreamTrainer(pair, tried)
        share = tried.batch * math.prod(tried.cube_shape) / (config.batch * math.prod(config.cube_shape))
        try:
            # The first step also sets things up.
            trainer.train(until=1)
            started = time.perf_counter()
            trainer.train(until=1 + _TIMED_STEPS)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            seconds = (time.perf_counter() - started) / _TIMED_STEPS
        except torch.OutOfMemoryError as error:
            raise ValueError(str(error)) from None
        if trainer.device.type == "cuda":
            kept = float(torch.cuda.max_memory_allocated(trainer.device))
        else:
            # What does not grow with the cubes, weights above all, is kept once.
            one, two = trainer.bytes_kept(1), trainer.bytes_kept(2)
            n_at_once = min(cubes_at_once(config, trainer.device), config.batch)
            larger = math.prod(config.cube_shape) / math.prod(tried.cube_shape)
            kept = 2 * one - two + (two - one) * n_at_once * larger
        return cls(trainer.device, seconds / share, kept, trainer.bytes_to_write)


def _on_cpu(config: TrainingConfig) -> bool:
    return config.device.startswith("cpu") or (config.device == "auto" and not torch.cuda.is_available())


def _small(config: TrainingConfig) -> TrainingConfig:
    """Return a configuration whose steps are quick enough to be timed on a CPU."""
    side, smallest = _TIMED_STRIDES * config.stride, min(config.cube_shape)
    side = min(side, smallest)
    return replace(config, side=side, margin=config.margin * side // smallest, batch=_TIMED_CUBES)


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one above that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
