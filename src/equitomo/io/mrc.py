"""Read and write tomograms in the MRC format (MRC2014 and the older headers of IMOD)."""

import bz2
import errno
import gzip
import math
import os
import secrets
import shutil
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
from mrcfile.dtypes import HEADER_DTYPE

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
PACKERS = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2"}
MAX_TRAILING = 1 << 16
SLAB_BYTES = 1 << 22


class FileFormatError(ValueError):
    """The file is not what it says, or not of a kind that can be used."""


class FileFormatWarning(UserWarning):
    """The file can be used, but something about it may surprise."""


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
        return _order(self.record)

    @property
    def start(self) -> tuple[int, int, int]:
        """Index of the first voxel along ``(z, y, x)``."""
        starts = [int(self.record[name]) for name in ("nzstart", "nystart", "nxstart")]
        z, y, x = (starts[axis] for axis in _axis_order(self.record))
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


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and what its file says about it.

    Parameters
    ----------
    data
        Voxels with axes ``(z, y, x)`` in the stored type (int8, uint8, int16, uint16, float16
        or float32) and native byte order.
    voxel_size
        Along ``(z, y, x)`` in ångström; 0 if the file does not say.
    header
        The rest of the header, for :func:`write_volume`.
    path
        The file it was read from.
    """

    data: Array
    voxel_size: Axes
    header: MrcHeader
    path: Path

    def as_float32(self) -> npt.NDArray[np.float32]:
        """Voxels as float32: ``data`` itself if it has that type, else a converted copy."""
        return np.asanyarray(self.data).astype(np.float32, copy=False)


def read_volume(path: str | Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    r"""Read a tomogram from an MRC file, plain or packed by gzip or bzip2.

    The content decides, not the extension (``.mrc .rec .st .ali .map``, ``.gz .bz2``). Modes 0,
    1, 2, 6 and 12 of either byte order are read, with MRC2014 headers or older ones. The header
    is held against the size of the file before anything is allocated. Axes stored in another
    order (``mapc, mapr, maps``) are brought into ``(z, y, x)``.

    Parameters
    ----------
    path
        The file.
    memory_map
        True: ``data`` is a read-only :class:`numpy.memmap` where the file allows it (plain and
        in native byte order), so volumes larger than the memory can be opened. False: an
        ordinary array that belongs to the caller.
    permissive
        Read a file without the ``MAP`` mark whenever the sizes agree, not only if its header is
        otherwise a valid old one.

    Raises
    ------
    FileFormatError
        If the file is not MRC, is damaged, or holds something other than one real volume. The
        message says what was expected and how to mend it.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If the header is old, contradicts itself or leaves out the voxel size, and if the file
        says it is a stack of images (``ispg`` 0 with ``mz`` 1; with ``mz`` equal to ``nz``, as
        IMOD writes tomograms, it is taken as a volume silently).

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> path = write_volume(folder / "a.mrc", np.ones((4, 5, 6), np.float32), voxel_size=10.0)
    >>> volume = read_volume(path)
    >>> volume.data.shape, volume.voxel_size
    ((4, 5, 6), (10.0, 10.0, 10.0))
    """
    path = _named(path)
    notes: list[str] = []
    with open_regular(path, "an MRC file") as file:
        packer = PACKERS.get(file.read(3))
        file.seek(0)
        content = _unpacked(path, file, packer) if packer else None
        size = len(content) if content is not None else os.fstat(file.fileno()).st_size
        head = bytes(content[:HEADER_BYTES]) if content is not None else file.read(HEADER_BYTES)
        record = _understood(path, head, size, permissive, notes)
        _check_one_volume(path, record, notes)
        dtype, shape, skip = _stored(record, notes)
        if content is not None:
            extended = bytes(content[HEADER_BYTES:skip])
            data: Array = np.frombuffer(content, dtype, math.prod(shape), skip).reshape(shape)
        else:
            extended = file.read(skip - HEADER_BYTES)
            data = np.memmap(cast(Any, file), dtype, "r", skip, shape)
    voxel_size = _voxel_size(record, notes)
    order = _axis_order(record)
    if order != (0, 1, 2):
        notes.append(f"axes are stored in another order (mapc, mapr, maps = {_axes(record)}); made (z, y, x)")
    for note in notes:
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=2)
    data = _native(data.transpose(order), memory_map)
    return Volume(data, voxel_size, MrcHeader(record, extended), path)


def write_volume(
    path: str | Path,
    data: Array,
    *,
    like: Volume | None = None,
    voxel_size: float | Axes | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    label: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a volume as an MRC file, whole or not at all.

    The voxels go slab by slab to a file beside the target, which takes the target's name only
    when it is complete and on the disk; whatever happens before, that file is removed.

    Parameters
    ----------
    path
        The target. A name of a packed file (``.gz``, ``.bz2``) is refused.
    data
        Real numbers with axes ``(z, y, x)``, in memory or memory-mapped.
    like
        A volume whose voxel size, origin, start, cell, labels, extended header and byte order
        are kept. None writes a plain header.
    voxel_size
        Along ``(z, y, x)`` in ångström, or one number for all. None takes it from ``like``, or
        leaves it unknown (0).
    dtype
        ``"float32"`` (mode 2) or ``"float16"`` (mode 12).
    label
        At most 80 ASCII characters, added after the labels of ``like``. If those are ten
        already, it takes the place of the last: the first ones tell of the acquisition. None
        writes ``"Written by equitomo"``.
    overwrite
        Allow to replace an existing file.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    ValueError
        If an argument does not fit, or the values do not fit into ``dtype``.
    FileExistsError
        If the target exists and ``overwrite`` is False.
    OSError
        If the folder is missing, not writable or full.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> before = read_volume(write_volume(folder / "a.mrc", np.zeros((4, 5, 6)), voxel_size=7.5))
    >>> after = read_volume(write_volume(folder / "b.mrc", before.data + 1, like=before, label="plus 1"))
    >>> after.voxel_size, after.header.labels
    ((7.5, 7.5, 7.5), ('Written by equitomo', 'plus 1'))
    """
    path = _named(path)
    data = np.asanyarray(data)
    if data.ndim != 3 or 0 in data.shape:
        raise ValueError(f"data must have three axes (z, y, x), none empty, got shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise TypeError(f"data must hold real numbers, got {data.dtype}")
    if dtype not in ("float32", "float16"):
        raise ValueError(f'dtype must be "float32" or "float16", got {dtype!r}')
    record = _new_header(data.shape, like, voxel_size, label)
    record["mode"] = 2 if dtype == "float32" else 12
    extended = like.header.extended if like else b""
    n_bytes = HEADER_BYTES + len(extended) + data.size * np.dtype(dtype).itemsize
    with _beside(path, overwrite=overwrite, n_bytes=n_bytes) as file:
        file.write(record.tobytes() + extended)
        statistics = _write_slabs(file, data, np.dtype(dtype).newbyteorder(cast(Any, _order(record))))
        record["dmin"], record["dmax"], record["dmean"], record["rms"] = statistics
        file.seek(0)
        file.write(record.tobytes())
    return path


def _named(path: str | Path) -> Path:
    """Path, refused if no file can have that name."""
    if not str(path) or "\0" in str(path):
        raise ValueError(f"path must be the name of a file, without NUL characters, got {str(path)!r}")
    return Path(path)


def open_regular(path: str | Path, kind: str) -> BinaryIO:
    """Open a file for reading, with an error that says what to do."""
    path = _named(path)
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


def _unpacked(path: Path, file: BinaryIO, packer: str) -> bytearray:
    """Content of a packed file, never more than its header asks for."""
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file) if packer == "gzip" else bz2.BZ2File(file))
    try:
        content = bytearray(stream.read(HEADER_BYTES))
        order = STAMPS.get(bytes(content[212:214]))
        if order is None or len(content) < HEADER_BYTES:
            raise FileFormatError(
                f"{path}: the {packer} file holds no MRC header with a machine stamp, so how much it may "
                "unpack to is unknown; if it is an MRC file with an old header, unpack it first"
            )
        expected = _expected_size(_record(bytes(content), order)) or 0
        # Grow with what is really there: the header of a small file may ask for terabytes.
        while len(content) <= expected + MAX_TRAILING and (part := stream.read(1 << 22)):
            content += part
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(
            f"{path}: the {packer} file is damaged ({error}); pack or copy it again"
        ) from error
    if len(content) > expected + MAX_TRAILING and expected:
        raise FileFormatError(
            f"{path}: unpacks to more than the {expected} bytes that its header states; refused as damaged "
            "or hostile. Unpack it elsewhere and look at it"
        )
    return content


def _record(head: bytes, order: str) -> Array:
    """Header bytes as a structured array without axes."""
    return np.frombuffer(head, HEADER_DTYPE.newbyteorder(cast(Any, order)), 1).reshape(()).copy()


def _order(record: Array) -> str:
    """Byte order of a record, ``"<"`` or ``">"``."""
    return ">" if record["nx"].dtype == np.dtype(">i4") else "<"


def _ints(record: Array, *names: str) -> list[int]:
    """Fields as Python integers, which do not overflow."""
    return [int(record[name]) for name in names]


def _axes(record: Array) -> tuple[int, ...]:
    """Fields mapc, mapr and maps, where an unset header means 1, 2, 3."""
    axes = tuple(_ints(record, "mapc", "mapr", "maps"))
    return axes if axes != (0, 0, 0) else (1, 2, 3)


def _axis_order(record: Array) -> tuple[int, ...]:
    """Which stored axis (section, row, column) is z, y and x."""
    stored = _axes(record)[::-1]
    return tuple(stored.index(axis) for axis in (3, 2, 1))


def _expected_size(record: Array) -> int | None:
    """Bytes of the file that the header describes, or None if it describes none."""
    nx, ny, nz, mode, nsymbt = _ints(record, "nx", "ny", "nz", "mode", "nsymbt")
    if min(nx, ny, nz) < 1 or mode not in MODES or nsymbt < 0:
        return None
    return HEADER_BYTES + nsymbt + nx * ny * nz * np.dtype(MODES[mode]).itemsize


def _understood(path: Path, head: bytes, size: int, permissive: bool, notes: list[str]) -> Array:
    """Header in the right byte order, held against the size of the file."""
    if len(head) < HEADER_BYTES:
        what = "is empty" if not head else f"has only {size} bytes{_looks_like(head)}"
        raise FileFormatError(
            f"{path}: {what}; an MRC file begins with a header of {HEADER_BYTES} bytes. "
            "Copy or export it again"
        )
    marked, stamp = head[208:211] == b"MAP", STAMPS.get(head[212:214])
    if not marked:
        return _old_header(path, head, size, permissive, notes)
    if stamp is None:
        fitting = [order for order in "<>" if _expected_size(_record(head, order)) == size]
        shown = head[212:216].hex(" ")
        if len(fitting) != 1:
            raise FileFormatError(
                f"{path}: unknown machine stamp {shown} (expected 44 44 or 11 11), and the size of the file "
                "does not tell the byte order either; write the file again with a program that sets it"
            )
        stamp = fitting[0]
        notes.append(f"unknown machine stamp {shown}; the size of the file tells the byte order {stamp!r}")
    record = _record(head, stamp)
    _check_numbers(path, record)
    expected = _expected_size(record) or 0
    if size < expected:
        raise FileFormatError(
            f"{path}: truncated: the header asks for {expected} bytes, found {size}. "
            "Copy or export the file again"
        )
    if size > expected:
        notes.append(f"{size - expected} bytes after the voxels are ignored")
    return record


def _old_header(path: Path, head: bytes, size: int, permissive: bool, notes: list[str]) -> Array:
    """Header without the MAP mark, as programs wrote before 2000."""
    fitting = [_record(head, order) for order in "<>" if _expected_size(_record(head, order)) == size]
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
    floats = np.frombuffer(head, np.dtype("f4").newbyteorder(cast(Any, _order(record))), 3, 208)
    record["origin"]["z"], record["origin"]["x"], record["origin"]["y"] = floats
    return record


def _is_plain(record: Array) -> bool:
    """Whether all that an unmarked header says makes sense."""
    n_labels, *sampling = _ints(record, "nlabl", "mx", "my", "mz")
    labels = [bytes(label) for label in record["label"][: max(n_labels, 0)]]
    return (
        1 <= n_labels <= 10
        and min(sampling) > 0
        and sorted(_axes(record)) == [1, 2, 3]
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
    if sorted(_axes(record)) != [1, 2, 3]:
        raise FileFormatError(
            f"{path}: mapc, mapr, maps = {_axes(record)} must be 1, 2, 3 in some order; mend the header"
        )


def _check_one_volume(path: Path, record: Array, notes: list[str]) -> None:
    """Refuse pictures and stacks of volumes; note what calls itself a stack of images."""
    nz, mz, ispg = _ints(record, "nz", "mz", "ispg")
    if ispg >= 401:
        raise FileFormatError(
            f"{path}: a stack of volumes (ispg {ispg}), expected one volume; "
            "save the wanted one as its own file"
        )
    if nz == 1:
        raise FileFormatError(
            f"{path}: a single section (nz = 1), expected a volume; "
            "give the tomogram, not a projection or a slice"
        )
    if ispg == 0 and mz == 1:
        notes.append(
            f"calls itself a stack of {nz} images (ispg 0, mz 1); used as a volume with {nz} sections"
        )


def _stored(record: Array, notes: list[str]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type and shape of the voxels as stored, and the byte where they begin."""
    nx, ny, nz, mode, nsymbt = _ints(record, "nx", "ny", "nz", "mode", "nsymbt")
    dtype = np.dtype(MODES[mode]).newbyteorder(cast(Any, _order(record)))
    if mode == 0 and (reason := _unsigned_bytes(record)):
        notes.append(f"mode 0 read as unsigned bytes, because {reason}")
        dtype = np.dtype("u1")
    return dtype, (nz, ny, nx), HEADER_BYTES + nsymbt


def _unsigned_bytes(record: Array) -> str:
    """Why bytes are unsigned, or nothing: MRC2014 says signed, IMOD wrote unsigned for long."""
    flags = _imod_flags(record)
    if flags is not None:
        return "" if flags & 1 else "IMOD's flag says so"
    return f"the header states a maximum of {float(record['dmax']):g}" if 127 < record["dmax"] <= 255 else ""


def _imod_flags(record: Array) -> int | None:
    """Bits that IMOD sets (1: bytes are signed, 16: two values in a byte), or None without its stamp."""
    words = np.dtype("u4").newbyteorder(cast(Any, _order(record)))
    stamp, flags = np.frombuffer(record["extra2"].tobytes(), words, 2, 40)
    return int(flags) if stamp == IMOD_STAMP else None


def _voxel_size(record: Array, notes: list[str]) -> Axes:
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


def _native(data: Array, memory_map: bool) -> Array:
    """Voxels in native byte order and aligned, copied only where needed."""
    if not data.dtype.isnative:
        return np.array(data, data.dtype.newbyteorder("="), order="C")
    if not data.flags.aligned or not memory_map:
        return np.array(data, order="C")
    return data


def _new_header(
    shape: tuple[int, ...], like: Volume | None, voxel_size: float | Axes | None, label: str | None
) -> Array:
    """Header of a volume, with all that is worth keeping of another one's."""
    record = like.header.record.copy() if like else np.zeros((), HEADER_DTYPE.newbyteorder("="))
    sizes = _three_sizes(voxel_size, like)
    keep_sampling = like is not None and like.data.shape == shape and int(record["mz"]) not in (0, 1)
    starts = like.header.start if like else (0, 0, 0)
    for axis, n, start, size in zip("zyx", shape, starts, sizes, strict=True):
        record[f"n{axis}"], record[f"n{axis}start"] = n, start
        if not keep_sampling or record[f"m{axis}"] < 1:
            record[f"m{axis}"] = n
        record["cella"][axis] = size * int(record[f"m{axis}"])
    if not any(record["cellb"].item()):
        record["cellb"] = (90, 90, 90)
    record["mapc"], record["mapr"], record["maps"] = 1, 2, 3
    record["ispg"], record["nversion"], record["map"] = 1, 20141, b"MAP "
    record["machst"] = (0x44, 0x44, 0, 0) if _order(record) == "<" else (0x11, 0x11, 0, 0)
    extended = like.header.extended if like else b""
    record["nsymbt"] = len(extended)
    if extended and not record["exttyp"].tobytes().strip(b" \0") and extended.isascii():
        # Undeclared text records are the symmetry operators of CCP4.
        record["exttyp"] = b"CCP4"
    _add_label(record, label)
    return record


def _three_sizes(voxel_size: float | Axes | None, like: Volume | None) -> Axes:
    """Voxel size along (z, y, x), checked."""
    if voxel_size is None:
        return like.voxel_size if like else (0.0, 0.0, 0.0)
    sizes = (
        np.broadcast_to(np.asarray(voxel_size, dtype=float), 3) if np.size(voxel_size) in (1, 3) else [np.nan]
    )
    if not all(0 <= size < np.inf for size in sizes):
        raise ValueError(
            f"voxel_size must be one number or (z, y, x) in ångström, not negative, got {voxel_size}"
        )
    z, y, x = (float(size) for size in sizes)
    return z, y, x


def _add_label(record: Array, label: str | None) -> None:
    """Close the gaps between the labels and add one, in place of the last if there are ten."""
    text = "Written by equitomo" if label is None else label
    if len(text) > 80 or not (text.isascii() and text.isprintable() and text.strip()):
        raise ValueError(f"label must be 1 to 80 printable ASCII characters, got {len(text)}: {text!r}")
    labels = [bytes(old) for old in record["label"] if bytes(old).strip(b" \0")][:9]
    labels.append(text.ljust(80).encode("ascii"))
    record["nlabl"] = len(labels)
    record["label"] = labels + [b""] * (10 - len(labels))


def _write_slabs(file: BinaryIO, data: Array, dtype: np.dtype[Any]) -> tuple[float, float, float, float]:
    """Write voxels a few sections at a time; return their minimum, maximum, mean and deviation."""
    step = max(1, SLAB_BYTES // (data[0].size * dtype.itemsize))
    low, high, mean, square, count = np.inf, -np.inf, 0.0, 0.0, 0
    for begin in range(0, len(data), step):
        slab = data[begin : begin + step]
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.ascontiguousarray(slab, dtype)
            if not np.can_cast(slab.dtype, dtype) and np.any(np.isinf(stored) & np.isfinite(slab)):
                raise ValueError(
                    f"data reach {np.abs(slab[np.isfinite(slab)]).max():g}, more than {dtype.name} can hold "
                    f'({np.finfo(dtype).max:g}); write with dtype="float32" or scale the volume'
                )
            file.write(stored.view(np.uint8).data)
            # Means and squares of two parts combine exactly; sums of squares would cancel.
            n, centre = stored.size, float(stored.mean(dtype=np.float64))
            square += float(np.square(np.subtract(stored, centre, dtype=np.float64)).sum())
            square += (centre - mean) ** 2 * count * n / (count + n)
            mean += (centre - mean) * n / (count + n)
            count += n
            low, high = min(low, float(stored.min())), max(high, float(stored.max()))
    if not np.isfinite([low, high, mean, square]).all():
        return 0.0, -1.0, -2.0, -1.0  # MRC2014's way to say that they are not known
    return low, high, mean, float(np.sqrt(square / count))


@contextmanager
def _beside(target: Path, *, overwrite: bool, n_bytes: int) -> Iterator[BinaryIO]:
    """Open a new file beside the target that takes its name at the end, if all went well."""
    _check_target(target, overwrite, n_bytes)
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    # A link put there by someone else must be neither followed nor replaced.
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


def _check_target(target: Path, overwrite: bool, n_bytes: int) -> None:
    """Refuse, before any work, a target that cannot be written."""
    if target.suffix.lower() in (".gz", ".bz2"):
        raise ValueError(f"path must not end in {target.suffix}: packed files are not written, got {target}")
    try:
        if not stat.S_ISDIR(target.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise _cannot_write(target, error) from error
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "cannot write a volume: the name is taken by a folder", str(target)
        )
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC, f"the disk has {free} bytes left, the volume needs {n_bytes}", str(target)
        )


def _cannot_write(target: Path, error: OSError) -> OSError:
    """Error of the same kind that names the target and the remedy."""
    remedy = (
        f"cannot write in the folder {target.parent}: {error.strerror}. Give one that exists and is writable"
    )
    return type(error)(error.errno, remedy, str(target))


def _exists(target: Path) -> FileExistsError:
    """Error for a target that is there already."""
    remedy = "exists already; choose another name, or allow to replace it with overwrite=True (--overwrite)"
    return FileExistsError(errno.EEXIST, remedy, str(target))


def _publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name, and make that last."""
    if overwrite:
        partial.replace(target)
    else:
        try:
            # Unlike a rename, a link never replaces a file that appeared in the meantime.
            os.link(partial, target, follow_symlinks=False)
        except FileExistsError as error:
            raise _exists(target) from error
        except OSError as error:  # some file systems have no links
            if os.path.lexists(target):
                raise _exists(target) from error
            partial.replace(target)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
