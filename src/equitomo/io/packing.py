"""MRC files packed by gzip or bzip2."""

import bz2
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from .errors import FileFormatError
from .mrc_header import HEADER_BYTES, STAMPS, as_record, expected_size

PACKERS = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2"}
MAX_TRAILING = 1 << 16


def packer_of(file: BinaryIO) -> str | None:
    """What an open file was packed by, told by its content; the file is left at its beginning."""
    packer = PACKERS.get(file.read(3))
    file.seek(0)
    return packer


def unpacked(path: Path, file: BinaryIO, packer: str) -> bytearray:
    """Content of a packed file, never more than its header asks for."""
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file) if packer == "gzip" else bz2.BZ2File(file))
    try:
        content = bytearray(stream.read(HEADER_BYTES))
        expected = _stated_size(bytes(content))
        if expected is None:
            raise FileFormatError(
                f"{path}: the {packer} file holds no MRC header, so how much it may unpack to is unknown; if it "
                "is an MRC file, unpack it first"
            )
        # Grow with what is really there: the header of a small file may ask for terabytes.
        while len(content) <= expected + MAX_TRAILING and (part := stream.read(1 << 22)):
            content += part
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(f"{path}: the {packer} file is damaged ({error}); pack or copy it again") from error
    if len(content) > expected + MAX_TRAILING and expected:
        raise FileFormatError(
            f"{path}: unpacks to more than the {expected} bytes that its header states; refused as damaged "
            "or hostile. Unpack it elsewhere and look at it"
        )
    return content


def _stated_size(head: bytes) -> int | None:
    """Bytes that the header asks for, 0 if it is an MRC header that cannot be used, None if it is none."""
    if len(head) < HEADER_BYTES:
        return None
    if head[208:211] == b"MAP" and (stamp := STAMPS.get(head[212:214])):
        return expected_size(as_record(head, stamp)) or 0
    # An old header has neither mark nor stamp. In the wrong byte order sizes below 65,536 are larger, never smaller.
    sizes = [size for order in "<>" if (size := expected_size(as_record(head, order)))]
    return min(sizes, default=None)
