"""MRC files packed by gzip or bzip2."""

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FileFormatError
from .mrc_header import HEADER_BYTES, stated_size
from .opening import open_regular

_MAX_TRAILING = 1 << 16
_OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open}


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open an MRC file, and unpack it if its content is packed; errors name the file."""
    with open_regular(path, "an MRC file") as file:
        magic = file.read(3)
        file.seek(0)
        stream: BinaryIO = _OPENERS[magic](file) if magic in _OPENERS else file
        try:
            yield stream
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise type(error)(error.errno, f"cannot be read: {error.strerror}", str(path)) from error
            packer = _packer(stream)
            raise FileFormatError(f"{path}: the {packer} file is damaged ({error}); pack or copy it again") from error


def is_packed(stream: BinaryIO) -> bool:
    """Return whether a stream of :func:`open_unpacked` unpacks its file."""
    return isinstance(stream, gzip.GzipFile | bz2.BZ2File)


def unpacked_size(path: Path, stream: BinaryIO, head: bytes) -> int:
    """Return the size of a packed file's content, whose header ``head`` has been read.

    Nothing of the content is kept, and no more is unpacked than a little beyond the size that the header states.
    """
    expected, packer = stated_size(head), _packer(stream)
    if expected is None:
        raise FileFormatError(
            f"{path}: the {packer} file does not begin with an MRC header, so it is unknown to how much it may unpack; "
            "if it is an MRC file, unpack it first"
        )
    size = len(head)
    while size <= expected + _MAX_TRAILING and (part := stream.read(1 << 20)):
        size += len(part)
    if size > expected + _MAX_TRAILING and expected:
        raise FileFormatError(
            f"{path}: unpacks to more than the {expected} bytes that its header states, so it is refused as damaged "
            "or hostile; unpack it by hand and check it"
        )
    stream.seek(HEADER_BYTES)
    return size


def _packer(stream: BinaryIO) -> str:
    """Return the name of the program that packed a stream's file."""
    return "gzip" if isinstance(stream, gzip.GzipFile) else "bzip2"
