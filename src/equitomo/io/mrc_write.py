"""Write tomograms in the MRC format."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import machine_stamp_from_byte_order

from .mapped import SLAB_BYTES, Array, allocate, release
from .mrc_header import byte_order, stated_size, stored_dtype
from .placing import atomic_file
from .writing import WritingPlan, as_stored


def write_mrc(plan: WritingPlan, data: Array) -> None:
    """Write a volume as an MRC file; see :func:`write_volume`."""
    with _new_file(plan) as (file, record):
        _finish(file, record, _write_slabs(file, data, stored_dtype(record, [])))


@contextmanager
def creating_mrc(plan: WritingPlan) -> Iterator[Array]:
    """Yield a map of a new MRC file in float32, and complete the file at the end; see :func:`creating_volume`."""
    with _new_file(plan) as (file, record):
        dtype, offset = stored_dtype(record, []), file.tell()
        allocate(file, offset + math.prod(plan.shape) * dtype.itemsize)
        data = np.memmap(cast(Any, file), dtype, "r+", offset, plan.shape)
        yield data
        _finish(file, record, _statistics(data))
        data.flush()


@contextmanager
def _new_file(plan: WritingPlan) -> Iterator[tuple[BinaryIO, Array]]:
    """Open a new file, write a header without statistics, and yield both."""
    record = _new_header(plan)
    with atomic_file(plan.path, overwrite=plan.overwrite, n_bytes=stated_size(record.tobytes()) or 0) as file:
        file.write(record.tobytes() + (plan.like.header.extended if plan.like else b""))
        yield file, record


def _finish(file: BinaryIO, record: Array, statistics: tuple[float, float, float, float]) -> None:
    """Write the header again with the statistics of the voxels."""
    for name, value in zip(("dmin", "dmax", "dmean", "rms"), statistics, strict=True):
        record[name] = value
    if record["mode"] == 12:
        # A program that computes the deviation in float16 overflows above some ten thousand voxels, and would report
        # the right value as wrong. In MRC2014 a negative value means that the deviation is not known.
        record["rms"] = -1
    file.seek(0)
    file.write(record.tobytes())


def _new_header(plan: WritingPlan) -> Array:
    """Return the header of a volume; labels, origin and extended header are those of ``plan.like``."""
    like, shape = plan.like, plan.shape
    record = like.header.record.copy() if like else np.zeros((), HEADER_DTYPE.newbyteorder("="))
    keep_sampling = like is not None and like.shape == shape and int(record["mz"]) not in (0, 1)
    starts = like.header.start if like else (0, 0, 0)
    for axis, n, start, size in zip("zyx", shape, starts, plan.voxel_size, strict=True):
        record[f"n{axis}"], record[f"n{axis}start"] = n, start
        if not keep_sampling or record[f"m{axis}"] < 1:
            record[f"m{axis}"] = n
        record["cella"][axis] = size * int(record[f"m{axis}"])
    if not any(record["cellb"].item()):
        record["cellb"] = (90, 90, 90)
    record["mapc"], record["mapr"], record["maps"] = 1, 2, 3
    record["mode"] = 2 if plan.dtype == "float32" else 12
    record["ispg"], record["nversion"], record["map"] = 1, 20141, b"MAP "
    record["machst"] = list(machine_stamp_from_byte_order(byte_order(record)))
    extended = like.header.extended if like else b""
    record["nsymbt"] = len(extended)
    if extended and not record["exttyp"].tobytes().strip(b" \0"):
        # MRC2014 requires a kind and has no code for an unknown one. Text is that of CCP4, which held symmetry
        # operators; anything else is older than the codes. How many numbers each section has stays in nint and nreal.
        record["exttyp"] = b"CCP4" if extended.isascii() else b"MRCO"
    _add_label(record, plan.label)
    return record


def _add_label(record: Array, label: str) -> None:
    """Add a label after the others, or replace the last if there are ten, and leave no gaps."""
    labels = [bytes(old) for old in record["label"] if bytes(old).strip(b" \0")][:9]
    labels.append(label.ljust(80).encode("ascii"))
    record["nlabl"] = len(labels)
    record["label"] = labels + [b""] * (10 - len(labels))


def _write_slabs(file: BinaryIO, data: Array, dtype: np.dtype[Any]) -> tuple[float, float, float, float]:
    """Write the voxels a few sections at a time, and return their minimum, maximum, mean and deviation."""

    def write(slab: Array) -> Array:
        stored = as_stored(slab, dtype)
        file.write(stored.view(np.uint8).data)
        return stored

    return _statistics(data, write)


def _statistics(data: Array, store: Callable[[Array], Array] = np.asarray) -> tuple[float, float, float, float]:
    """Return minimum, maximum, mean and deviation of the voxels that ``store`` returns, a few sections at a time."""
    step = max(1, SLAB_BYTES // (data[0].size * data.itemsize))
    low, high, mean, square, count = np.inf, -np.inf, 0.0, 0.0, 0
    for begin in range(0, len(data), step):
        stored = store(data[begin : begin + step])
        with np.errstate(over="ignore", invalid="ignore"):
            # Combining means and centred squares of two parts is exact; sums of plain squares would lose digits.
            n, centre = stored.size, float(stored.mean(dtype=np.float64))
            square += float(np.square(np.subtract(stored, centre, dtype=np.float64)).sum())
            square += (centre - mean) ** 2 * count * n / (count + n)
            mean += (centre - mean) * n / (count + n)
            count += n
            low, high = min(low, float(stored.min())), max(high, float(stored.max()))
        release(data)
    if not np.isfinite([low, high, mean, square]).all():
        return 0.0, -1.0, -2.0, -1.0  # in MRC2014 these mean that nothing is known
    return low, high, mean, float(np.sqrt(square / count))
