"""Read and write volumes in all formats of the package."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .hdf5 import write_hdf5
from .mapped import Array, scratch_array
from .mrc import read_mrc
from .mrc_header import Axes
from .mrc_write import creating_mrc, write_mrc
from .opening import open_regular, valid_path
from .placing import require_place
from .series.stacks import is_image_file, read_calibrated
from .volume import Volume
from .writing import Precision, WritingPlan, plan_writing
from .zarr_metadata import is_zarr
from .zarr_read import read_zarr
from .zarr_write import require_zarr_place, stored_bytes, write_zarr

# This is enough for the header of an MRC file and all but the longest extended headers.
_HEADER_BYTES = 1 << 20


def read_volume(path: str | Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    r"""Read a tomogram from an MRC file, plain or packed by gzip or bzip2, or from OME-Zarr, HyperSpy, EMD or TIFF.

    The content of a file decides how it is read, and not its extension. MRC files may have modes 0, 1, 2, 6 and 12,
    either byte order, MRC2014 or older headers, and axes in any order (``mapc, mapr, maps``), which are brought into
    ``(z, y, x)``. The header is checked against the size of the file before memory is allocated. If it states no voxel
    size, that of an FEI extended header is used.

    OME-Zarr stores (OME-NGFF 0.3 to 0.5, Zarr formats 2 and 3) need ``pip install 'equitomo[zarr]'``. ``FILE.zarr`` is
    the image at full resolution, ``FILE.zarr/1`` is its level with the path ``1``, and ``FILE.zarr/NAME`` is an image
    in a group of the store. Axes are ordered by their names, and all but z, y and x must have length 1. Lengths are
    converted to ångström, and the translation becomes the origin in the header.

    ``.hspy`` of HyperSpy, ``.emd`` in the layout of tomviz and TIFF (with the package ``tifffile``) are recognised by
    their content; ``.dm3`` and ``.dm4`` are read if the user has installed ``rosettasciio``. A file of images with
    tilts is refused as a tilt series.

    Parameters
    ----------
    path
        The file or store.
    memory_map
        If True, the voxels stay in the file until they are needed, so volumes larger than the memory can be opened:
        ``data`` is a read-only :class:`numpy.memmap` of an MRC file that is not packed and has the native byte order,
        and the voxels of a Zarr store are decoded where they are indexed. If False, ``data`` is an ordinary array.
    permissive
        Also read a file without the ``MAP`` mark if only its sizes agree with an old header, and a store with missing
        chunks, which then have its fill value.

    Raises
    ------
    FileFormatError
        If the file is not MRC or OME-Zarr, is damaged, or does not hold one real volume; if a chunk is missing, because
        a lost chunk cannot be distinguished from an empty one; or if ``zarr`` is needed and not installed.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If the header is old, contradicts itself or states no voxel size (in OME-Zarr: no unit of an axis), if chunks
        are missing and ``permissive`` is given, or if the header describes a stack of images (``ispg`` 0 with ``mz``
        1). With ``mz`` equal to ``nz``, as IMOD writes tomograms, such a file is a volume, and no warning is issued.

    Examples
    --------
    >>> from equitomo.io import write_volume
    >>> folder = getfixture("tmp_path")
    >>> path = write_volume(folder / "a.mrc", np.ones((4, 5, 6), np.float32), voxel_size=10.0)
    >>> volume = read_volume(path)
    >>> volume.data.shape, volume.voxel_size
    ((4, 5, 6), (10.0, 10.0, 10.0))
    """
    path = valid_path(path)
    if is_zarr(path):
        return read_zarr(path, memory_map=memory_map, permissive=permissive)
    with open_regular(path, "a volume") as file:
        head = file.read(8)
    if is_image_file(path, head):
        return read_calibrated(path, head, memory_map=memory_map)
    return read_mrc(path, memory_map=memory_map, permissive=permissive)


def write_volume(
    path: str | Path,
    data: Array,
    *,
    like: Volume | None = None,
    voxel_size: float | Axes | None = None,
    dtype: Precision = "float32",
    label: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a volume as a complete MRC file or OME-Zarr store, or leave nothing behind.

    The voxels are written to a temporary file or folder, which gets the name of the target only when it is complete and
    on the disk, and is removed after an error.

    Parameters
    ----------
    path
        The target. A name that ends in ``.zarr`` gives an OME-Zarr store (OME-NGFF 0.4, Zarr format 2, chunks of 128,
        and two coarser levels of means over 2 x 2 x 2 voxels), ``.hspy`` a file of HyperSpy and ``.emd`` one of tomviz,
        both with axes in nanometres, any other name an MRC file; ``.gz`` and ``.bz2`` are refused.
    data
        Real numbers with axes ``(z, y, x)``, in memory or memory-mapped.
    like
        A volume from which voxel size, origin, start, cell, labels, extended header and byte order are taken. An
        OME-Zarr store keeps the voxel size, and the origin as its translation. None writes a plain header.
    voxel_size
        Voxel size along ``(z, y, x)`` in ångström, or one number for all axes. None takes that of ``like``, or leaves
        it unknown (0).
    dtype
        ``"float32"`` (mode 2) or ``"float16"`` (mode 12).
    label
        At most 80 ASCII characters, which follow the labels of ``like``. If there are ten labels, it replaces the last
        one, because the first ones describe the acquisition. In OME-Zarr it is the description of the image. None
        writes ``"Written by equitomo"``.
    overwrite
        Allow an existing file, or a folder that is a Zarr store, to be replaced.

    Raises
    ------
    ValueError
        If an argument is wrong, or ``dtype`` cannot hold the values.
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
    path = valid_path(path)
    data = np.asanyarray(data)
    if data.dtype.kind not in "biuf":
        raise TypeError(f"`data` must hold real numbers, got {data.dtype}")
    plan = plan_writing(path, data.shape, like, voxel_size, dtype, label, overwrite)
    require_writable(path, overwrite=overwrite)
    _write(plan, data)
    return path


@contextmanager
def creating_volume(
    path: str | Path,
    shape: tuple[int, ...],
    *,
    like: Volume | None = None,
    voxel_size: float | Axes | None = None,
    dtype: Precision = "float32",
    label: str | None = None,
    overwrite: bool = False,
) -> Iterator[Array]:
    """Write a volume piece by piece as a complete MRC file or OME-Zarr store, or leave nothing behind.

    The ``with`` block gets an array of zeros ``(z, y, x)``, which it can fill in any order, as a map of a temporary
    file. At the end of the block the file is completed and gets the name of the target. After an error or an interrupt
    it is removed.

    Parameters
    ----------
    path
        The target, as for :func:`write_volume`.
    shape
        Voxels ``(z, y, x)``.
    like, voxel_size, dtype, label, overwrite
        As for :func:`write_volume`. The array is always float32. With ``"float16"`` and for OME-Zarr it lies in a file
        without a name in the same folder, and the target is written at the end.

    Raises
    ------
    ValueError, FileExistsError, OSError
        As for :func:`write_volume`. The space for the array is allocated on the disk at the beginning.

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
    path = valid_path(path)
    plan = plan_writing(path, tuple(shape), like, voxel_size, dtype, label, overwrite)
    if not _names_zarr(path) and not _names_hdf5(path) and dtype == "float32":
        require_writable(path, overwrite=overwrite)
        with creating_mrc(plan) as data:
            yield data
        return
    # In float16 sums of weighted pieces would be rounded at every step, and a chunk that is written in parts would be
    # packed anew for every part.
    require_writable(path, overwrite=overwrite, n_bytes=bytes_to_create(path, shape, dtype))
    data = scratch_array(path.parent, plan.shape)
    yield data
    _write(plan, data)


def require_writable(target: str | Path, *, overwrite: bool = False, n_bytes: int = 0) -> None:
    """Raise an error, before any work, if :func:`write_volume` could not write the target."""
    target = valid_path(target)
    if target.suffix.lower() in (".gz", ".bz2"):
        raise ValueError(f"{target}: packed files are not written; choose a name without {target.suffix}")
    if _names_zarr(target):
        require_zarr_place(target, overwrite=overwrite, n_bytes=n_bytes)
    else:
        require_place(target, overwrite=overwrite, n_bytes=n_bytes)


def bytes_to_create(target: str | Path, shape: tuple[int, ...], dtype: Precision = "float32") -> int:
    """Return about how many bytes :func:`creating_volume` uses on the disk, including temporary files."""
    floats = 4 * math.prod(shape)
    if _names_zarr(valid_path(target)):
        return stored_bytes(shape, dtype) + floats
    if _names_hdf5(valid_path(target)):
        return _HEADER_BYTES + floats + math.prod(shape) * np.dtype(dtype).itemsize
    return _HEADER_BYTES + (floats if dtype == "float32" else floats + math.prod(shape) * np.dtype(dtype).itemsize)


def _write(plan: WritingPlan, data: Array) -> None:
    """Write the voxels in the format that the name of the target means."""
    (write_zarr if _names_zarr(plan.path) else write_hdf5 if _names_hdf5(plan.path) else write_mrc)(plan, data)


def _names_zarr(path: Path) -> bool:
    """Return whether a Zarr store is to be written; the extension decides, because the target does not exist yet."""
    return path.suffix.lower() == ".zarr"


def _names_hdf5(path: Path) -> bool:
    """Return whether a path means a file of HyperSpy or tomviz."""
    return path.suffix.lower() in (".hspy", ".emd")
