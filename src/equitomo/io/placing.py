"""Write files that get their names when they are complete, and replace others only if that is requested."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .opening import valid_path

# The ending of a file that is not complete; such a file remains if the process is killed.
PARTIAL = ".????????.partial"


def require_place(target: str | Path, *, overwrite: bool = False, n_bytes: int = 0, folder: bool = False) -> Path:
    """Raise an error, before any work, if the target could not be written; with ``folder`` it may be a folder."""
    target = valid_path(target)
    try:
        if not stat.S_ISDIR(target.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise _cannot_write(target, error) from error
    if target.is_dir() and not folder:
        raise IsADirectoryError(errno.EISDIR, "cannot write a file: the name is taken by a folder", str(target))
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"the disk has {free} bytes left, the file needs {n_bytes}", str(target))
    return target


@contextmanager
def atomic_file(target: str | Path, *, overwrite: bool = False, n_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a temporary file, which gets the name of the target if the ``with`` block ends without an error."""
    target = require_place(target, overwrite=overwrite, n_bytes=n_bytes)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    # If someone else puts a link in this place, it must be neither followed nor replaced.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(partial, flags, 0o666)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(partial, target, overwrite)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path, *, overwrite: bool = False, n_bytes: int = 0) -> Iterator[Path]:
    """Make a temporary folder, which gets the name of the target if the ``with`` block ends without an error."""
    target = require_place(target, overwrite=overwrite, n_bytes=n_bytes, folder=True)
    partial, old = (target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    try:
        partial.mkdir()
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield partial
        _flush(partial)
        if not overwrite and os.path.lexists(target):
            raise _exists(target)
        # A folder that is not empty cannot be replaced in one step.
        if os.path.lexists(target):
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if os.path.lexists(old):
                old.rename(target)
            raise
        flush_folder(target.parent)
    finally:
        for left in (partial, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def write_atomically(target: str | Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a small file as a whole, or leave no trace of it."""
    with atomic_file(target, overwrite=overwrite, n_bytes=len(content)) as file:
        file.write(content)


def open_without_links(path: str, flags: int) -> int:
    """Open a file without following a symbolic link; an ``opener`` for :func:`open`."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that they survive a power failure."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush(folder: Path) -> None:
    """Write the whole content of a folder to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            flush_folder(path)
    flush_folder(folder)


def _publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give the complete file its name, and write the name to the disk."""
    if overwrite:
        partial.replace(target)
    else:
        try:
            # Unlike a rename, a link never replaces a file that was made in the meantime.
            os.link(partial, target, follow_symlinks=False)
        except FileExistsError as error:
            raise _exists(target) from error
        except OSError as error:  # some file systems have no hard links
            if os.path.lexists(target):
                raise _exists(target) from error
            partial.replace(target)
    flush_folder(target.parent)


def _cannot_write(target: Path, error: OSError) -> OSError:
    """Return an error of the same kind that names the target and the remedy."""
    remedy = f"cannot write in the folder {target.parent}: {error.strerror}. Give one that exists and is writable"
    return type(error)(error.errno, remedy, str(target))


def _exists(target: Path) -> FileExistsError:
    """Return the error for a target that exists already."""
    remedy = "exists already; choose another name, or pass `overwrite=True` to replace it"
    return FileExistsError(errno.EEXIST, remedy, str(target))
