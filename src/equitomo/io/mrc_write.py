"""Write tomograms in the MRC format, whole or not at all."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from .mapped import claim, release, scratch_array
from .mrc import Volume
from .mrc_header import HEADER_BYTES, Array, Axes, byte_order
from .opening import named
from .placing import beside, require_place
from .voxels import SLAB_BYTES


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
    >>> from equitomo.io import read_volume
    >>> folder = getfixture("tmp_path")
    >>> before = read_volume(write_volume(folder / "a.mrc", np.zeros((4, 5, 6)), voxel_size=7.5))
    >>> after = read_volume(write_volume(folder / "b.mrc", before.data + 1, like=before, label="plus 1"))
    >>> after.voxel_size, after.header.labels
    ((7.5, 7.5, 7.5), ('Written by equitomo', 'plus 1'))
    """
    path = named(path)
    data = np.asanyarray(data)
    if data.dtype.kind not in "biuf":
        raise TypeError(f"data must hold real numbers, got {data.dtype}")
    head = _Head.of(data.shape, like, voxel_size, dtype, label)
    require_writable(path, overwrite=overwrite, n_bytes=head.n_bytes)
    with beside(path, overwrite=overwrite) as file:
        file.write(head.record.tobytes() + head.extended)
        head.finish(file, _write_slabs(file, data, head.dtype))
    return path


@contextmanager
def creating_volume(
    path: str | Path,
    shape: tuple[int, ...],
    *,
    like: Volume | None = None,
    voxel_size: float | Axes | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    label: str | None = None,
    overwrite: bool = False,
) -> Iterator[Array]:
    """Write a volume as an MRC file piece by piece, whole or not at all.

    Gives an array of zeros ``(z, y, x)`` to be filled in any order, a map of a file beside the target. At the end of
    the ``with`` block the header is completed and the file takes the target's name; if the block is left by an error
    or an interrupt the file is removed.

    Parameters
    ----------
    path
        The target. A name of a packed file (``.gz``, ``.bz2``) is refused.
    shape
        Voxels ``(z, y, x)``.
    like, voxel_size, dtype, label, overwrite
        As for :func:`write_volume`. The array is float32 also with ``"float16"``: then it lies in a second, nameless
        file in the same folder.

    Raises
    ------
    ValueError, FileExistsError, OSError
        As for :func:`write_volume`; room on the disk is claimed at the beginning.

    Examples
    --------
    >>> from equitomo.io import read_volume
    >>> path = getfixture("tmp_path") / "a.mrc"
    >>> with creating_volume(path, (4, 5, 6), voxel_size=7.5) as data:
    ...     data[:, :, 3:] += 1
    ...     path.exists()
    False
    >>> float(read_volume(path).data.mean())
    0.5
    """
    path = named(path)
    head = _Head.of(tuple(shape), like, voxel_size, dtype, label)
    require_writable(path, overwrite=overwrite, n_bytes=head.n_bytes)
    with beside(path, overwrite=overwrite) as file:
        file.write(head.record.tobytes() + head.extended)
        if dtype == "float16":
            # Sums of weighted pieces would be rounded at every step.
            data = scratch_array(path.parent, shape)
            yield data
            head.finish(file, _write_slabs(file, data, head.dtype))
        else:
            claim(file, head.n_bytes)
            data = np.memmap(cast(Any, file), head.dtype, "r+", head.n_bytes - math.prod(shape) * 4, tuple(shape))
            yield data
            head.finish(file, _statistics(data))
            data.flush()


@dataclass(frozen=True)
class _Head:
    """What stands before the voxels, and how they are stored."""

    record: Array
    extended: bytes
    dtype: np.dtype[Any]
    n_bytes: int

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        like: Volume | None,
        voxel_size: float | Axes | None,
        dtype: str,
        label: str | None,
    ) -> Self:
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"data must have three axes (z, y, x), none empty, got shape {shape}")
        if dtype not in ("float32", "float16"):
            raise ValueError(f'dtype must be "float32" or "float16", got {dtype!r}')
        record = _new_header(shape, like, voxel_size, label)
        record["mode"] = 2 if dtype == "float32" else 12
        extended = like.header.extended if like else b""
        n_bytes = HEADER_BYTES + len(extended) + math.prod(shape) * np.dtype(dtype).itemsize
        return cls(record, extended, np.dtype(dtype).newbyteorder(cast(Any, byte_order(record))), n_bytes)

    def finish(self, file: BinaryIO, statistics: tuple[float, float, float, float]) -> None:
        """Write the header again, now with the statistics of the voxels."""
        for name, value in zip(("dmin", "dmax", "dmean", "rms"), statistics, strict=True):
            self.record[name] = value
        file.seek(0)
        file.write(self.record.tobytes())


def require_writable(target: str | Path, *, overwrite: bool = False, n_bytes: int = 0) -> None:
    """Refuse, before any work, a target that :func:`write_volume` could not write."""
    target = named(target)
    if target.suffix.lower() in (".gz", ".bz2"):
        raise ValueError(f"path must not end in {target.suffix}: packed files are not written, got {target}")
    require_place(target, overwrite=overwrite, n_bytes=n_bytes)


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
    record["machst"] = (0x44, 0x44, 0, 0) if byte_order(record) == "<" else (0x11, 0x11, 0, 0)
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
    sizes = np.broadcast_to(np.asarray(voxel_size, dtype=float), 3) if np.size(voxel_size) in (1, 3) else [np.nan]
    if not all(0 <= size < np.inf for size in sizes):
        raise ValueError(f"voxel_size must be one number or (z, y, x) in ångström, not negative, got {voxel_size}")
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

    def write(slab: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.ascontiguousarray(slab, dtype)
            if not np.can_cast(slab.dtype, dtype) and np.any(np.isinf(stored) & np.isfinite(slab)):
                raise ValueError(
                    f"data reach {np.abs(slab[np.isfinite(slab)]).max():g}, more than {dtype.name} can hold "
                    f'({np.finfo(dtype).max:g}); write with dtype="float32" or scale the volume'
                )
        file.write(stored.view(np.uint8).data)
        return stored

    return _statistics(data, write)


def _statistics(data: Array, store: Callable[[Array], Array] = np.asarray) -> tuple[float, float, float, float]:
    """Minimum, maximum, mean and deviation of what ``store`` makes of the voxels, a few sections at a time."""
    step = max(1, SLAB_BYTES // (data[0].size * data.itemsize))
    low, high, mean, square, count = np.inf, -np.inf, 0.0, 0.0, 0
    for begin in range(0, len(data), step):
        stored = store(data[begin : begin + step])
        with np.errstate(over="ignore", invalid="ignore"):
            # Means and squares of two parts combine exactly; sums of squares would cancel.
            n, centre = stored.size, float(stored.mean(dtype=np.float64))
            square += float(np.square(np.subtract(stored, centre, dtype=np.float64)).sum())
            square += (centre - mean) ** 2 * count * n / (count + n)
            mean += (centre - mean) * n / (count + n)
            count += n
            low, high = min(low, float(stored.min())), max(high, float(stored.max()))
        release(data)
    if not np.isfinite([low, high, mean, square]).all():
        return 0.0, -1.0, -2.0, -1.0  # MRC2014's way to say that they are not known
    return low, high, mean, float(np.sqrt(square / count))
