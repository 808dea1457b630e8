"""The header of an MRC file: what it says, held against the size of the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

from .errors import FileFormatError

Array = npt.NDArray[Any]
Axes = tuple[float, float, float]

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
REFUSED_MODES = {
    3: "complex numbers (a transform, not a volume)",
    4: "complex numbers (a transform, not a volume)",
    16: "RGB pictures",
    101: "packed 4-bit numbers; unpack them first, with IMOD: newstack -mode 1",
}
STAMPS = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
IMOD_STAMP = 1146047817


@dataclass(frozen=True, eq=False)
class MrcHeader:
    """The header of an MRC file, kept to be written again.

    Parameters
    ----------
    record
        The 1024 bytes as a structured array without axes, in the file's byte order, its
        fields named as in MRC2014.
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
        starts = [int(self.record[name]) for name in ("nzstart", "nystart", "nxstart")]
        z, y, x = (starts[axis] for axis in axis_order(self.record))
        return z, y, x

    @property
    def origin(self) -> Axes:
        """Origin along ``(z, y, x)`` in ångström."""
        origin = self.record["origin"]
        return float(origin["z"]), float(origin["y"]), float(origin["x"])

    @property
    def ispg(self) -> int:
        """Space group number: 0 an image stack, 1 a volume."""
        return int(self.record["ispg"])

    @property
    def exttyp(self) -> str:
        """Kind of the extended header, four letters, or empty."""
        return bytes(self.record["exttyp"]).decode("latin-1").strip()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are not blank, oldest first."""
        texts = (bytes(label).decode("latin-1").rstrip(" \0") for label in self.record["label"])
        return tuple(text for text in texts if text.strip())


def header_at(origin: Axes) -> MrcHeader:
    """The header that stands for a file of another format, which knows an origin ``(z, y, x)`` in ångström."""
    record = np.zeros((), HEADER_DTYPE.newbyteorder("="))
    record["origin"]["z"], record["origin"]["y"], record["origin"]["x"] = origin
    return MrcHeader(record)


def understood(path: Path, head: bytes, size: int, permissive: bool, notes: list[str]) -> Array:
    """Header in the right byte order, held against the size of the file."""
    if len(head) < HEADER_BYTES:
        what = "is empty" if not head else f"has only {size} bytes{_looks_like(head)}"
        raise FileFormatError(
            f"{path}: {what}; an MRC file begins with a header of {HEADER_BYTES} bytes. Copy or export it again"
        )
    marked, stamp = head[208:211] == b"MAP", STAMPS.get(head[212:214])
    if not marked:
        return _old_header(path, head, size, permissive, notes)
    if stamp is None:
        fitting = [order for order in "<>" if expected_size(as_record(head, order)) == size]
        shown = head[212:216].hex(" ")
        if len(fitting) != 1:
            raise FileFormatError(
                f"{path}: unknown machine stamp {shown} (expected 44 44 or 11 11), and the size of the file "
                "does not tell the byte order either; write the file again with a program that sets it"
            )
        stamp = fitting[0]
        notes.append(f"unknown machine stamp {shown}; the size of the file tells the byte order {stamp!r}")
    record = as_record(head, stamp)
    _check_numbers(path, record)
    expected = expected_size(record) or 0
    if size < expected:
        raise FileFormatError(
            f"{path}: truncated: the header asks for {expected} bytes, found {size}. Copy or export the file again"
        )
    if size > expected:
        notes.append(f"{size - expected} bytes after the voxels are ignored")
    return record


def check_one_volume(path: Path, record: Array, notes: list[str]) -> None:
    """Refuse pictures and stacks of volumes; note what calls itself a stack of images."""
    nz, mz, ispg = _ints(record, "nz", "mz", "ispg")
    if ispg >= 401:
        raise FileFormatError(
            f"{path}: a stack of volumes (ispg {ispg}), expected one volume; save the wanted one as its own file"
        )
    if nz == 1:
        raise FileFormatError(
            f"{path}: a single section (nz = 1), expected a volume; give the tomogram, not a projection or a slice"
        )
    if ispg == 0 and mz == 1:
        notes.append(f"calls itself a stack of {nz} images (ispg 0, mz 1); used as a volume with {nz} sections")


def stored_layout(record: Array, notes: list[str]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type and shape of the voxels as stored, and the byte where they begin."""
    nx, ny, nz, mode, nsymbt = _ints(record, "nx", "ny", "nz", "mode", "nsymbt")
    dtype = np.dtype(MODES[mode]).newbyteorder(cast(Any, byte_order(record)))
    if mode == 0 and (reason := _unsigned_bytes(record)):
        notes.append(f"mode 0 read as unsigned bytes, because {reason}")
        dtype = np.dtype("u1")
    return dtype, (nz, ny, nx), HEADER_BYTES + nsymbt


def voxel_size_of(record: Array, notes: list[str]) -> Axes:
    """Cell over sampling along (z, y, x), 0 where the header does not say."""
    if any(float(record["cellb"][name]) not in (0.0, 90.0) for name in ("alpha", "beta", "gamma")):
        notes.append("the cell angles are not right angles; the voxels are used as if they were")
    sizes = []
    for axis in "zyx":
        cell, sampling = float(record["cella"][axis]), int(record[f"m{axis}"])
        known = 0 < cell < float("inf") and sampling > 0
        sizes.append(cell / sampling if known else 0.0)
    z, y, x = sizes
    # In a stack of images mz is 1 by rule, yet many programs let the cell span all sections.
    nz, mz, ispg = _ints(record, "nz", "mz", "ispg")
    if ispg == 0 and mz == 1 and abs(z / nz - x) <= 0.01 * x:
        z /= nz
    if 0.0 in sizes:
        notes.append("no voxel size in the header; give it where ångström matter")
    return z, y, x


def as_record(head: bytes, order: str) -> Array:
    """Header bytes as a structured array without axes."""
    return np.frombuffer(head, HEADER_DTYPE.newbyteorder(cast(Any, order)), 1).reshape(()).copy()


def byte_order(record: Array) -> str:
    """Byte order of a record, ``"<"`` or ``">"``."""
    return ">" if record["nx"].dtype == np.dtype(">i4") else "<"


def axis_numbers(record: Array) -> tuple[int, ...]:
    """Fields mapc, mapr and maps, where an unset header means 1, 2, 3."""
    axes = tuple(_ints(record, "mapc", "mapr", "maps"))
    return axes if axes != (0, 0, 0) else (1, 2, 3)


def axis_order(record: Array) -> tuple[int, ...]:
    """Which stored axis (section, row, column) is z, y and x."""
    stored = axis_numbers(record)[::-1]
    return tuple(stored.index(axis) for axis in (3, 2, 1))


def expected_size(record: Array) -> int | None:
    """Bytes of the file that the header describes, or None if it describes none."""
    nx, ny, nz, mode, nsymbt = _ints(record, "nx", "ny", "nz", "mode", "nsymbt")
    if min(nx, ny, nz) < 1 or mode not in MODES or nsymbt < 0:
        return None
    return HEADER_BYTES + nsymbt + nx * ny * nz * np.dtype(MODES[mode]).itemsize


def _ints(record: Array, *names: str) -> list[int]:
    """Fields as Python integers, which do not overflow."""
    return [int(record[name]) for name in names]


def _old_header(path: Path, head: bytes, size: int, permissive: bool, notes: list[str]) -> Array:
    """Header without the MAP mark, as programs wrote before 2000."""
    fitting = [as_record(head, order) for order in "<>" if expected_size(as_record(head, order)) == size]
    if len(fitting) != 1:
        raise FileFormatError(
            f"{path}: not an MRC file{_looks_like(head)}: no MAP mark at byte 208, and its {size} bytes are "
            "not what an old header would ask for. Export the tomogram as MRC"
        )
    record = fitting[0]
    if not permissive and not _is_plain(record):
        raise FileFormatError(
            f"{path}: no MAP mark at byte 208 of the header. The sizes agree, so if you know that it is an "
            "MRC file read it with permissive=True (--permissive)"
        )
    notes.append("old header without the MAP mark; read because its sizes agree with the file")
    _check_numbers(path, record)
    # The old layout holds the origin in the order z, x, y where the mark, the stamp and rms are now.
    floats = np.frombuffer(head, np.dtype("f4").newbyteorder(cast(Any, byte_order(record))), 3, 208)
    record["origin"]["z"], record["origin"]["x"], record["origin"]["y"] = floats
    return record


def _is_plain(record: Array) -> bool:
    """Whether all that an unmarked header says makes sense."""
    n_labels, *sampling = _ints(record, "nlabl", "mx", "my", "mz")
    labels = [bytes(label) for label in record["label"][: max(n_labels, 0)]]
    return (
        1 <= n_labels <= 10
        and min(sampling) > 0
        and sorted(axis_numbers(record)) == [1, 2, 3]
        and bool(record["dmin"] <= record["dmax"])
        and all(label.rstrip(b"\0").decode("latin-1").isprintable() for label in labels)
    )


def _looks_like(head: bytes) -> str:
    """What a file seems to be instead, for messages."""
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
    """Refuse what the header says if no volume can be read by it."""
    nx, ny, nz, mode, nsymbt = _ints(record, "nx", "ny", "nz", "mode", "nsymbt")
    packed = mode == 0 and (_imod_flags(record) or 0) & 16
    if mode not in MODES or packed:
        what = REFUSED_MODES.get(101 if packed else mode, "unknown")
        raise FileFormatError(
            f"{path}: mode {mode}: {what}. Modes 0, 1, 2, 6 and 12 can be read; convert the file to mode 2"
        )
    if min(nx, ny, nz) < 1 or nsymbt < 0:
        raise FileFormatError(
            f"{path}: the header states sizes nx, ny, nz = {nx}, {ny}, {nz} and an extended header of "
            f"{nsymbt} bytes; sizes must be positive. The header is damaged: export the file again"
        )
    if sorted(axis_numbers(record)) != [1, 2, 3]:
        raise FileFormatError(
            f"{path}: mapc, mapr, maps = {axis_numbers(record)} must be 1, 2, 3 in some order; mend the header"
        )


def _unsigned_bytes(record: Array) -> str:
    """Why bytes are unsigned, or nothing: MRC2014 says signed, IMOD wrote unsigned for long."""
    flags = _imod_flags(record)
    if flags is not None:
        return "" if flags & 1 else "IMOD's flag says so"
    return f"the header states a maximum of {float(record['dmax']):g}" if 127 < record["dmax"] <= 255 else ""


def _imod_flags(record: Array) -> int | None:
    """Bits that IMOD sets (1: bytes are signed, 16: two values in a byte), or None without its stamp."""
    words = np.dtype("u4").newbyteorder(cast(Any, byte_order(record)))
    stamp, flags = np.frombuffer(record["extra2"].tobytes(), words, 2, 40)
    return int(flags) if stamp == IMOD_STAMP else None
