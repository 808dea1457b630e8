"""Opening files for reading, with errors that say what to do."""

import errno
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import FileFormatError


def open_regular(path: str | Path, kind: str) -> BinaryIO:
    """Open a file for reading, with an error that says what to do."""
    path = named(path)
    try:
        mode = path.stat().st_mode
        # Opening a pipe would wait for ever.
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise FileFormatError(f"{path}: not a regular file; give the name of {kind}")
        return path.open("rb")
    except OSError as error:
        remedy = {
            errno.ENOENT: "no such file; check the name and the folder",
            errno.EISDIR: f"a folder, not a file; give the name of {kind} in it",
            errno.EACCES: "no permission to read; change it with chmod, or ask the owner",
        }.get(error.errno or 0, error.strerror)
        raise type(error)(error.errno, remedy, str(path)) from error


def named(path: str | Path) -> Path:
    """Path, refused if no file can have that name."""
    if not str(path) or "\0" in str(path):
        raise ValueError(f"path must be the name of a file, without NUL characters, got {str(path)!r}")
    return Path(path)
