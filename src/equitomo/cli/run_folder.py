"""The folder of a run: one process at a time, and no file harmed that is not the run's."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from equitomo.cli import manifest
from equitomo.cli.machine import readable, require_memory_of_step
from equitomo.cli.manifest import Invocation, Manifest
from equitomo.cli.options import Prediction, RunFolder, TrainingInput
from equitomo.cli.predicting import make_predictor
from equitomo.inference import Footprint
from equitomo.io import PARTIAL, Volume, bytes_to_create, valid_path
from equitomo.training import IcecreamTrainer
from equitomo.training.checkpoint import has_checkpoint
from equitomo.training.distributed import join

_LOCK = "run.lock"
_RUN = ("checkpoints", "previews", "losses.csv", "losses.png", "reconstruction.mrc", "slices.png", manifest.NAME)
# What each command leaves in its folder, and what --overwrite therefore may remove.
LEAVINGS = {"train": _RUN, "reconstruct": _RUN, "demo": (*_RUN, "even.mrc", "odd.mrc", "truth.mrc", "tilts.tlt")}


def enter(stack: ExitStack, options: RunFolder, leavings: Iterable[str]) -> None:
    """Let the first of the processes that train together occupy the folder, and the others wait for it, silently.

    They meet before that, so that the others notice if the first one finds something wrong and ends.
    """
    world = join()
    if world.is_first:
        stack.enter_context(occupied(options, leavings))
    else:
        stack.enter_context(redirect_stdout(None))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
    world.wait()


@contextmanager
def occupied(options: RunFolder, leavings: Iterable[str]) -> Iterator[Path]:
    """The run's folder: there, writable, this process's alone, and without an earlier run unless that was asked for.

    Parameters
    ----------
    options
        Which folder, and what to do about an earlier run.
    leavings
        What a run leaves there, and what ``overwrite`` therefore may remove.

    Raises
    ------
    OSError
        If another process uses the folder, it holds a run that was not asked for, or it cannot be written. A folder
        that was made for this is removed again.
    """
    if options.resume and options.overwrite:
        raise ValueError("--resume goes on with a run and --overwrite replaces it: give one of them")
    folder = valid_path(options.out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out {folder} is a file: name a folder")
    made = _make(folder)
    try:
        with ExitStack() as stack:
            _lock(stack, folder, options.break_lock)
            _check_leavings(options, folder, leavings)
            _clear_partials(folder, leavings)
            yield folder
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:
                # What was asked for is in it.
                break


def ready(
    options: Mapping[type, Any], trainer: IcecreamTrainer, files: Mapping[str, Volume | Path], init: Any
) -> Manifest:
    """Do what is left to do before the work, when all that was given is in order; the record of the run.

    Parameters
    ----------
    options
        Those of the command, by group.
    trainer
        What is to train.
    files
        The inputs, by the role they have.
    init
        What the record says of the weights that training began with.

    Raises
    ------
    ValueError
        If an input is among what the run writes, or is not the one that a resumed run was started with, or a step does
        not fit into the memory.
    OSError
        If the disk has too little room.
    """
    given: RunFolder = options[RunFolder]
    folder, command = Path(given.out), options[Invocation].command
    leavings = LEAVINGS[command]
    inputs = [file if isinstance(file, Path) else file.path for file in files.values()]
    _require_apart([*inputs, options[TrainingInput].init if TrainingInput in options else None], folder, leavings)
    n_bytes = trainer.bytes_to_write
    if Prediction in options:
        # The demonstration writes the halves and the truth too.
        volumes = 4 if command == "demo" else 1
        shape, dtype = trainer.dataset.pairs[0].shape, options[Prediction].dtype
        n_bytes += volumes * bytes_to_create(folder / "reconstruction.mrc", shape, dtype)
        predictor = make_predictor(
            trainer.network, trainer.dataset.pairs[0].geometry, options[Prediction], trainer.config
        )
        n_bytes += Footprint.of(predictor, shape).disk
    _require_space(folder, n_bytes, leavings)
    require_memory_of_step(trainer)
    record = Manifest(folder, options, trainer, files, init)
    if given.resume:
        record.go_on()
        if not has_checkpoint(folder):
            print(f"{folder} has no checkpoint yet: the run begins at step 0")
    if given.overwrite:
        _clear(folder, leavings)
    return record


def _clear(folder: Path, leavings: Iterable[str]) -> None:
    """Remove what an earlier run left."""
    for path in (folder / name for name in leavings):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _require_space(folder: Path, n_bytes: int, leavings: Iterable[str]) -> None:
    """Refuse, before any work, a disk that the run would fill; what it left so far is there to be written again."""
    free = shutil.disk_usage(folder).free + sum(_size(folder / name) for name in leavings)
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the disk has {readable(free)} for this run, which needs about {readable(n_bytes)} for its checkpoints "
            "and results. Free some space, take an --out on another disk, or keep fewer checkpoints (--keep_every)",
            str(folder),
        )


def _require_apart(inputs: Iterable[str | Path | None], folder: Path, leavings: Iterable[str]) -> None:
    """Refuse inputs that the run itself would replace or remove."""
    own = [(folder / name).resolve() for name in leavings]
    for path in inputs:
        resolved = None if path is None else Path(path).resolve()
        if resolved is not None and any(resolved == one or one in resolved.parents for one in own):
            raise ValueError(f"{path} is among what a run in {folder} writes: move it, or choose another --out")


def _make(folder: Path) -> list[Path]:
    """Make a folder; those that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise OSError(f"cannot write into --out {folder}: {error.strerror or error}") from error
    return missing


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out by a file. The system takes the lock back when a process dies, however it does.

    Raises
    ------
    filelock.Timeout
        If another process has it.
    """
    lock = FileLock(path, blocking=False)
    lock.acquire()
    try:
        yield
    finally:
        # Still locked: who opens it now finds it removed and makes another.
        path.unlink(missing_ok=True)
        lock.release()


def _lock(stack: ExitStack, folder: Path, break_lock: bool) -> None:
    """Have a folder alone until the stack is left."""
    path = folder / _LOCK
    if break_lock:
        path.unlink(missing_ok=True)
    try:
        stack.enter_context(locked(path))
        path.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    except Timeout:
        raise OSError(
            errno.EBUSY,
            f"in use by {_owner(path)}: wait for it, or choose another --out. If it is gone for certain, as a machine "
            "that shared a network disk may be, --break_lock takes the folder",
            str(folder),
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"cannot write into --out {folder}: {error.strerror or error}", str(path)) from error


def _owner(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"


def _check_leavings(options: RunFolder, folder: Path, leavings: Iterable[str]) -> None:
    left = [name for name in leavings if os.path.lexists(folder / name)]
    # The record comes before all else that a run leaves: there may be no checkpoint yet.
    is_run = has_checkpoint(folder) or (folder / manifest.NAME).is_file()
    remedy = "replace it with --overwrite, or choose another --out"
    if left and not (options.resume or options.overwrite):
        remedy = f"go on with --resume, {remedy}" if is_run else remedy
        raise FileExistsError(f"{folder} holds a run already ({', '.join(left)}): {remedy}")
    if not options.resume:
        return
    if not is_run and left:
        raise FileNotFoundError(f"{folder} has no checkpoint and no record to go on from ({', '.join(left)}): {remedy}")
    if not is_run:
        raise FileNotFoundError(f"there is no checkpoint in {folder} to resume: leave --resume out to start there")
    links = [name for name in left if (folder / name).is_symlink()]
    if links:
        raise OSError(
            errno.ELOOP,
            f"symbolic links would be written through ({', '.join(links)}): put the files themselves there, or make "
            "the run's folder the link",
            str(folder),
        )


def _clear_partials(folder: Path, leavings: Iterable[str]) -> None:
    """Remove what a process left that was killed while it wrote."""
    for name in leavings:
        for place in (name, f"{name}/*"):
            for path in folder.glob(place + PARTIAL):
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())
