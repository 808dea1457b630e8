"""MRC files packed by gzip or bzip2."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from .errors import FileFormatError
from .mrc_header import HEADER_BYTES, stated_size
from .opening import open_regular

_MAX_TRAILING = 1 << 16


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open an MRC file, unpacked where its content says that it is packed, with errors that name it."""
    with open_regular(path, "an MRC file") as file:
        magic = file.read(3)
        file.seek(0)
        stream = cast(
            BinaryIO,
            gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b\x08" else bz2.BZ2File(file) if magic == b"BZh" else file,
        )
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

    The content is read to its end, or a little beyond the size that the header states, and nothing is kept. The stream
    is left after the header.
    """
    expected, packer = stated_size(head), _packer(stream)
    if expected is None:
        raise FileFormatError(
            f"{path}: the {packer} file holds no MRC header, so how much it may unpack to is unknown; if it "
            "is an MRC file, unpack it first"
        )
    size = len(head)
    while size <= expected + _MAX_TRAILING and (part := stream.read(1 << 20)):
        size += len(part)
    if size > expected + _MAX_TRAILING and expected:
        raise FileFormatError(
            f"{path}: unpacks to more than the {expected} bytes that its header states; it is refused as damaged "
            "or hostile. Unpack it elsewhere and look at it"
        )
    stream.seek(HEADER_BYTES)
    return size


def _packer(stream: BinaryIO) -> str:
    return "gzip" if isinstance(stream, gzip.GzipFile) else "bzip2"
