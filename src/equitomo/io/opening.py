"""Open files for reading, and raise errors that name the file and the remedy."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import FileFormatError

MAX_TEXT_BYTES = 1 << 26


def open_regular(path: str | Path, kind: str) -> BinaryIO:
    """Open a file for reading; error messages call it ``kind``."""
    path = valid_path(path)
    try:
        mode = path.stat().st_mode
        # Opening a pipe would wait until another process writes to it.
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


def read_text(path: Path, kind: str, expected: str) -> str:
    """Return the text of a file; error messages call it ``kind`` and say what was ``expected``."""
    with open_regular(path, f"a {kind}") as file:
        # Python allocates the whole number of bytes that read() is given.
        content = file.read(min(os.fstat(file.fileno()).st_size, MAX_TEXT_BYTES) + 1)
    if len(content) > MAX_TEXT_BYTES or b"\0" in content:
        raise FileFormatError(f"{path}: not a text file; {expected}")
    if not content.strip():
        raise FileFormatError(f"{path}: the {kind} is empty; {expected}")
    return content.decode("utf-8-sig", "replace")


def valid_path(path: str | Path) -> Path:
    """Return the path, or raise an error if no file can have that name."""
    if not str(path) or "\0" in str(path):
        raise ValueError(f"the name of a file must not be empty or contain NUL characters, got {str(path)!r}")
    return Path(path)
