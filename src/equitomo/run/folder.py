"""The folder of a run: one process at a time writes into it, and files that are not the run's are left alone."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from equitomo.io import PARTIAL, Volume, valid_path
from equitomo.run.memory import readable
from equitomo.training.checkpoint import has_checkpoint
from equitomo.training.distributed import join

MANIFEST = "manifest.json"
REPORT = "report.html"
_LOCK = "run.lock"
# The names that a run writes in its folder, and that `overwrite` may therefore remove.
WEDGE_TEST, WEDGE_CHOICE, WEDGE_TRAININGS = "wedge_test.json", "wedge_choice.json", "wedge_test"
TILT_TEST, TILT_CONTROL, TILT_TRAININGS = "tilt_test.json", "tilt_control.json", "tilt_test"
FINISHED = (
    *("refined.mrc", "deconvolved.mrc", "confidence.mrc"),
    *("measured.mrc", "filled.mrc", "data_consistent.mrc", "wedge_mask.mrc", "filled_spots.csv", "filled_spots.png"),
)
_TESTED = (WEDGE_TEST, WEDGE_CHOICE, WEDGE_TRAININGS, TILT_TEST, TILT_CONTROL, TILT_TRAININGS)
RESULTS = ("reconstruction.mrc", *FINISHED, "slices.png", *_TESTED, REPORT)
RUN_FILES = ("checkpoints", "previews", "losses.csv", "losses.png", "held_out.csv", *RESULTS, MANIFEST)


class RunFolder:
    """A folder, which need not exist, for one run; one process at a time works in it.

    The run writes the files and folders in ``names`` there, and no others are touched.

    Examples
    --------
    >>> folder = RunFolder(getfixture("tmp_path") / "run")
    >>> with folder.held():
    ...     (folder.path / "run.lock").exists()
    True
    >>> folder.path.exists()
    False
    """

    def __init__(self, path: str | Path, names: Sequence[str] = RUN_FILES) -> None:
        self.path, self.names = valid_path(path), names
        self._depth = 0

    @contextmanager
    def held(self, *, resume: bool = False, overwrite: bool = False, break_lock: bool = False) -> Iterator[None]:
        """Keep other processes out of the folder until the block ends. Blocks may be nested; the outermost one counts.

        Of several processes that train together the first one holds the folder. They meet here, so that the others
        notice if the first one refuses the folder and ends.

        With ``resume`` the folder must hold a run to be continued, with ``overwrite`` it may hold one, and with
        ``break_lock`` it is taken from a process that seems to use it. A folder that was made here is removed again if
        it is refused, or if nothing was written into it in the end.

        Raises
        ------
        ValueError
            If both ``resume`` and ``overwrite`` are given.
        OSError
            If another process uses the folder, it holds a run and neither option is given, it holds no run to resume,
            or it cannot be written.
        """
        if resume and overwrite:
            raise ValueError("`resume=True` continues a run and `overwrite=True` replaces it: pass one of them")
        self._depth += 1
        try:
            if self._depth > 1:
                yield
            elif (world := join()).is_first:
                with self._made(), self._locked(break_lock):
                    self._check(resume, overwrite)
                    self._remove_partials()
                    world.wait()
                    yield
            else:
                world.wait()
                yield
        finally:
            self._depth -= 1

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        for path in (self.path / name for name in self.names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def require_space(self, n_bytes: int) -> None:
        """Refuse, before any work, a disk with less room than ``n_bytes``.

        The space of the files that the run has written so far counts as free, because they are replaced.
        """
        existing = next(path for path in (self.path, *self.path.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free + sum(_size(self.path / name) for name in self.names)
        if free < n_bytes:
            raise OSError(
                errno.ENOSPC,
                f"the disk has {readable(free)} for this run, which needs about {readable(n_bytes)} for its "
                "checkpoints and results. Free some space, choose another `folder`, or keep fewer checkpoints "
                "(`keep_every`)",
                str(self.path),
            )

    def require_apart(self, inputs: Iterable[str | Path]) -> None:
        """Refuse inputs that the run itself would replace or remove."""
        own = [(self.path / name).resolve() for name in self.names]
        for path in inputs:
            resolved = Path(path).resolve()
            if any(resolved == one or one in resolved.parents for one in own):
                raise ValueError(
                    f"{path} is among the files that a run in {self.path} writes: move it, or choose another `folder`"
                )

    @contextmanager
    def _made(self) -> Iterator[None]:
        """Make the folder, and remove it at the end if it was missing and nothing was written into it."""
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"`folder` {self.path} is a file: name a folder")
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise OSError(f"cannot write into `folder` {self.path}: {error.strerror or error}") from error
        try:
            yield
        finally:
            for path in missing:
                try:
                    path.rmdir()
                except OSError:
                    # The run is in it.
                    break

    @contextmanager
    def _locked(self, break_lock: bool) -> Iterator[None]:
        """Lock the folder, or say which process has locked it."""
        path = self.path / _LOCK
        with ExitStack() as stack:
            if break_lock:
                path.unlink(missing_ok=True)
            try:
                stack.enter_context(locked(path))
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                path.write_text(f"process {os.getpid()} on {platform.node()} since {since}\n")
            except Timeout:
                raise OSError(
                    errno.EBUSY,
                    f"in use by {_owner(path)}: wait for it, or choose another `folder`. If that process is certainly "
                    "gone, as on a machine that shared a network disk, pass `break_lock=True`",
                    str(self.path),
                ) from None
            except OSError as error:
                message = f"cannot write into `folder` {self.path}: {error.strerror or error}"
                raise OSError(error.errno, message, str(path)) from error
            yield

    def _check(self, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that holds a run although none is expected, or none although one is to be resumed."""
        left = [name for name in self.names if os.path.lexists(self.path / name)]
        # The manifest is written before all other files: there may be no checkpoint yet.
        is_run = has_checkpoint(self.path) or (self.path / MANIFEST).is_file()
        remedy = "replace it with `overwrite=True`, or choose another `folder`"
        if left and not (resume or overwrite):
            remedy = f"continue it with `resume=True`, {remedy}" if is_run else remedy
            raise FileExistsError(f"{self.path} holds a run already ({', '.join(left)}): {remedy}")
        if not resume:
            return
        if not is_run and left:
            raise FileNotFoundError(
                f"{self.path} has no checkpoint and no manifest to resume from ({', '.join(left)}): {remedy}"
            )
        if not is_run:
            raise FileNotFoundError(
                f"there is no checkpoint in {self.path} to resume: start a run there without `resume=True`"
            )
        if links := [name for name in left if (self.path / name).is_symlink()]:
            raise OSError(
                errno.ELOOP,
                f"symbolic links would be written through ({', '.join(links)}): put the files themselves there, or "
                "make the run's folder the link",
                str(self.path),
            )

    def _remove_partials(self) -> None:
        """Remove the partial files of a process that was killed while it wrote."""
        for name in self.names:
            for pattern in (name, f"{name}/*"):
                for path in self.path.glob(pattern + PARTIAL):
                    path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out by a file, or raise :class:`filelock.Timeout` if one has the lock.

    The operating system frees the lock when a process dies, however that happens.
    """
    lock = FileLock(path, blocking=False)
    lock.acquire()
    try:
        yield
    finally:
        # Still locked: a process that opens the file now finds it removed, and makes another one.
        path.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    """Return the process that has the lock, as it described itself."""
    try:
        return path.read_text(errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder, without following links."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def named_beside(out: Path, word: str) -> Path:
    """Return the file for what is made of a prediction: ``WORD.mrc`` in a run, and else its name with a suffix.

    A word with a suffix of its own, as that of a table, keeps it.
    """
    name = word if "." in word else f"{word}{out.suffix}"
    return out.with_name(name if out.name == RESULTS[0] else f"{out.stem}_{name}")


def require_other(out: Path, *inputs: str | Path | Volume | None) -> None:
    """Refuse to put the result in the place of what it is made from."""
    # A level of an OME-Zarr store is a folder in it.
    resolved = [(one.path if isinstance(one, Volume) else Path(one)).resolve() for one in inputs if one is not None]
    if any(out.resolve() in (path, *path.parents) for path in resolved):
        raise ValueError(f"{out} is one of the inputs: choose another name for the result")
