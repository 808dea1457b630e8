"""The header of an MRC file, checked against the size of the file."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import byte_order_from_machine_stamp, dtype_from_mode, normalise_byte_order

from .errors import FileFormatError
from .mapped import Array

Axes = tuple[float, float, float]

HEADER_BYTES = 1024
_MODES = (0, 1, 2, 6, 12)
_REFUSED_MODES = {
    3: "complex numbers (a transform, not a volume)",
    4: "complex numbers (a transform, not a volume)",
    16: "RGB pictures",
    101: "packed 4-bit numbers; unpack them first, with IMOD: newstack -mode 1",
}
_IMOD_STAMP = 1146047817


@dataclass(frozen=True, eq=False)
class MrcHeader:
    """The header of an MRC file, kept to be written again.

    Parameters
    ----------
    record
        The 1024 bytes as a structured array without axes in the file's byte order, with the field names of MRC2014.
    extended
        The extended header, byte for byte.
    """

    record: Array
    extended: bytes = b""

    @property
    def byte_order(self) -> str:
        """Byte order of the file, ``"<"`` or ``">"``."""
        return byte_order(self.record)

    @property
    def start(self) -> tuple[int, int, int]:
        """Index of the first voxel along ``(z, y, x)``."""
        starts = [field(self.record, name) for name in ("nzstart", "nystart", "nxstart")]
        z, y, x = (starts[axis] for axis in axis_order(self.record))
        return z, y, x

    @property
    def origin(self) -> Axes:
        """Origin along ``(z, y, x)`` in ångström."""
        origin = self.record["origin"]
        return float(origin["z"]), float(origin["y"]), float(origin["x"])

    @property
    def ispg(self) -> int:
        """Space group number: 0 for an image stack, 1 for a volume."""
        return field(self.record, "ispg")

    @property
    def exttyp(self) -> str:
        """Kind of the extended header in four letters, or an empty text."""
        return bytes(self.record["exttyp"]).decode("latin-1").strip()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are not blank, oldest first."""
        texts = (bytes(label).decode("latin-1").rstrip(" \0") for label in self.record["label"])
        return tuple(text for text in texts if text.strip())


def header_at(origin: Axes) -> MrcHeader:
    """Return a header that holds only an origin ``(z, y, x)`` in ångström, for a file of another format."""
    record = np.zeros((), HEADER_DTYPE.newbyteorder("="))
    record["origin"]["z"], record["origin"]["y"], record["origin"]["x"] = origin
    return MrcHeader(record)


def checked_record(path: Path, head: bytes, size: int, permissive: bool, notes: list[str]) -> Array:
    """Return the header of a file of ``size`` bytes in its byte order, or raise an error if it is not valid."""
    if len(head) < HEADER_BYTES:
        what = "is empty" if not head else f"has only {size} bytes{_looks_like(head)}"
        raise FileFormatError(
            f"{path}: {what}; an MRC file begins with a header of {HEADER_BYTES} bytes. Copy or export it again"
        )
    records = [_as_record(head, order) for order in _byte_orders(head)]
    if len(records) > 1:
        records = [_settled_by_size(path, head, size, records, permissive, notes)]
    (record,) = records
    _check_numbers(path, record)
    expected = _stated_size(record) or 0
    if size < expected:
        raise FileFormatError(
            f"{path}: truncated: the header asks for {expected} bytes, found {size}. Copy or export the file again"
        )
    if size > expected:
        notes.append(f"{size - expected} bytes after the voxels are ignored")
    if not _is_marked(head):
        # The old layout holds the origin in the order z, x, y where the mark, the stamp and rms are now.
        floats = np.frombuffer(head, np.dtype("f4").newbyteorder(cast(Any, byte_order(record))), 3, 208)
        record["origin"]["z"], record["origin"]["x"], record["origin"]["y"] = floats
    return record


def stated_size(head: bytes) -> int | None:
    """Return the bytes of the file that a header states, 0 for an invalid one, None if it is not an MRC header."""
    if len(head) < HEADER_BYTES:
        return None
    orders = _byte_orders(head)
    sizes = [size for order in orders if (size := _stated_size(_as_record(head, order)))]
    # An old header has neither mark nor stamp. In the wrong byte order sizes below 65,536 are larger, never smaller.
    return min(sizes, default=0 if len(orders) == 1 else None)


def stored_dtype(record: Array, notes: list[str]) -> np.dtype[Any]:
    """Return the type of the voxels as they are stored, and add a note if bytes are read as unsigned."""
    dtype: np.dtype[Any] = dtype_from_mode(field(record, "mode")).newbyteorder(byte_order(record))
    if dtype == np.int8 and (reason := _reason_for_unsigned_bytes(record)):
        notes.append(f"mode 0 read as unsigned bytes, because {reason}")
        return np.dtype("u1")
    return dtype


def field(record: Array, name: str) -> int:
    """Return a field as a Python integer, which cannot overflow."""
    return int(record[name])


def byte_order(record: Array) -> str:
    """Return the byte order of a record, ``"<"`` or ``">"``."""
    return str(normalise_byte_order(record.dtype["nx"].byteorder))


def axis_numbers(record: Array) -> tuple[int, ...]:
    """Return the fields mapc, mapr and maps, or 1, 2, 3 if they are not set."""
    axes = tuple(field(record, name) for name in ("mapc", "mapr", "maps"))
    return axes if axes != (0, 0, 0) else (1, 2, 3)


def axis_order(record: Array) -> tuple[int, ...]:
    """Return the stored axes (0 section, 1 row, 2 column) that are z, y and x."""
    stored = axis_numbers(record)[::-1]
    return tuple(stored.index(axis) for axis in (3, 2, 1))


def _as_record(head: bytes, order: str) -> Array:
    """Return header bytes as a structured array without axes."""
    return np.frombuffer(head, HEADER_DTYPE.newbyteorder(cast(Any, order)), 1).reshape(()).copy()


def _is_marked(head: bytes) -> bool:
    """Return whether a header has the mark of MRC2014."""
    return head[208:211] == b"MAP"


def _byte_orders(head: bytes) -> str:
    """Return the byte order that the machine stamp states, or both if there is none."""
    if _is_marked(head):
        with suppress(ValueError):
            return str(byte_order_from_machine_stamp(head[212:216]))
    return "<>"


def _stated_size(record: Array) -> int | None:
    """Return the bytes of the file that a record states, or None if it is not valid."""
    nx, ny, nz, mode, nsymbt = (field(record, name) for name in ("nx", "ny", "nz", "mode", "nsymbt"))
    if min(nx, ny, nz) < 1 or mode not in _MODES or nsymbt < 0:
        return None
    return HEADER_BYTES + nsymbt + nx * ny * nz * int(dtype_from_mode(mode).itemsize)


def _settled_by_size(
    path: Path, head: bytes, size: int, records: list[Array], permissive: bool, notes: list[str]
) -> Array:
    """Return the record whose sizes agree with the file, for a header that does not state its byte order."""
    fitting = [record for record in records if _stated_size(record) == size]
    if _is_marked(head):
        shown = head[212:216].hex(" ")
        if len(fitting) != 1:
            raise FileFormatError(
                f"{path}: unknown machine stamp {shown} (expected 44 44 or 11 11), and the size of the file "
                "does not show the byte order either; write the file again with a program that sets it"
            )
        order = byte_order(fitting[0])
        notes.append(f"unknown machine stamp {shown}; the byte order {order!r} fits the size of the file")
    elif len(fitting) != 1:
        raise FileFormatError(
            f"{path}: not an MRC file{_looks_like(head)}: no MAP mark at byte 208, and its {size} bytes are "
            "not those that an old header would state. Export the tomogram as MRC"
        )
    elif not permissive and not _is_plain(fitting[0]):
        raise FileFormatError(
            f"{path}: no MAP mark at byte 208 of the header. The size of the file agrees with the header, so "
            "if you know that it is an MRC file, pass `permissive=True`"
        )
    else:
        notes.append("the file has an old header without the MAP mark; its sizes agree with the file")
    return fitting[0]


def _is_plain(record: Array) -> bool:
    """Return whether all fields of a header without the mark have plausible values."""
    n_labels = field(record, "nlabl")
    labels = [bytes(label) for label in record["label"][: max(n_labels, 0)]]
    return (
        1 <= n_labels <= 10
        and min(field(record, name) for name in ("mx", "my", "mz")) > 0
        and sorted(axis_numbers(record)) == [1, 2, 3]
        and bool(record["dmin"] <= record["dmax"])
        and all(label.rstrip(b"\0").decode("latin-1").isprintable() for label in labels)
    )


def _looks_like(head: bytes) -> str:
    """Return what a file that is not an MRC file seems to be, for messages."""
    kinds = {
        b"\x89HDF": "HDF5",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"PK": "a zip archive",
        b"\x93NUMPY": "NumPy",
    }
    found = [kind for magic, kind in kinds.items() if head.startswith(magic)]
    if not found and all(byte in b"\t\n\r\f" or byte >= 32 for byte in head[:256]):
        found = ["text"]
    return f" (it looks like {found[0]})" if found else ""


def _check_numbers(path: Path, record: Array) -> None:
    """Raise an error for a header with a mode, sizes or axes that cannot be read."""
    nx, ny, nz, mode, nsymbt = (field(record, name) for name in ("nx", "ny", "nz", "mode", "nsymbt"))
    is_packed = mode == 0 and (_imod_flags(record) or 0) & 16
    if mode not in _MODES or is_packed:
        what = _REFUSED_MODES.get(101 if is_packed else mode, "unknown")
        raise FileFormatError(
            f"{path}: mode {mode}: {what}. Modes 0, 1, 2, 6 and 12 can be read; convert the file to mode 2"
        )
    if min(nx, ny, nz) < 1 or nsymbt < 0:
        raise FileFormatError(
            f"{path}: the header states sizes nx, ny, nz = {nx}, {ny}, {nz} and an extended header of {nsymbt} bytes, "
            "but sizes must be positive. The header is damaged: export the file again"
        )
    if sorted(axis_numbers(record)) != [1, 2, 3]:
        raise FileFormatError(
            f"{path}: mapc, mapr, maps = {axis_numbers(record)} must be 1, 2, 3 in some order; correct the header"
        )


def _reason_for_unsigned_bytes(record: Array) -> str:
    """Return why bytes are read as unsigned, as in old IMOD, or an empty text if they are signed, as in MRC2014."""
    flags = _imod_flags(record)
    if flags is not None:
        return "" if flags & 1 else "IMOD's flag states it"
    return f"the header states a maximum of {float(record['dmax']):g}" if 127 < record["dmax"] <= 255 else ""


def _imod_flags(record: Array) -> int | None:
    """Return the bits that IMOD sets (1: signed bytes, 16: two values in a byte), or None without its stamp."""
    words = np.dtype("u4").newbyteorder(cast(Any, byte_order(record)))
    stamp, flags = np.frombuffer(record["extra2"].tobytes(), words, 2, 40)
    return int(flags) if stamp == _IMOD_STAMP else None
