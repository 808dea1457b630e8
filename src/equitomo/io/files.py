"""Read and write volumes in all formats of the package."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .hdf5 import creating_hdf5, write_hdf5
from .mapped import Array
from .mrc import read_mrc
from .mrc_header import Axes
from .mrc_write import creating_mrc, write_mrc
from .opening import open_regular, valid_path
from .placing import require_place
from .series.stacks import is_image_file, read_calibrated
from .volume import Volume
from .writing import Precision, plan_writing
from .zarr_metadata import is_zarr
from .zarr_read import read_zarr
from .zarr_write import creating_zarr, require_zarr_place, stored_bytes, write_zarr

# Room for the header of an MRC file, and for all but the longest extended headers.
_HEADER_BYTES = 1 << 20


def read_volume(path: str | Path, *, memory_map: bool = True, permissive: bool = False) -> Volume:
    r"""Read a tomogram from an MRC file, plain or packed by gzip or bzip2, or from OME-Zarr, HyperSpy, EMD or TIFF.

    The content decides how it is read, not the extension (``.mrc .rec .st .ali .map``, ``.gz .bz2``). Modes 0, 1, 2, 6
    and 12 of either byte order are read, with MRC2014 headers or older ones. The header is checked against the size of
    the file before anything is allocated. Axes stored in another order (``mapc, mapr, maps``) are brought into
    ``(z, y, x)``. Where the header states no voxel size, that of an FEI extended header is taken.

    OME-Zarr stores (OME-NGFF 0.3 to 0.5, Zarr formats 2 and 3) need the package ``zarr``: ``pip install
    'equitomo[zarr]'``. ``FILE.zarr`` is the image at full resolution, ``FILE.zarr/1`` its level of the path ``1``,
    ``FILE.zarr/NAME`` an image in a group of the store. Axes are ordered by their names; all but z, y and x must have
    length 1. Lengths are converted to ångström, and the translation becomes the origin of the header. A missing chunk
    is an error, because a chunk that was lost cannot be distinguished from one that was left out as empty.

    ``.hspy`` of HyperSpy, ``.emd`` in the layout of tomviz and TIFF (with the package ``tifffile``) are recognised by
    their content; ``.dm3`` and ``.dm4`` are read if the user has installed ``rosettasciio``. A file of images with
    tilts is refused as a tilt series.

    Parameters
    ----------
    path
        The file.
    memory_map
        True: the voxels stay in the file until they are needed. ``data`` is a read-only :class:`numpy.memmap` of an MRC
        file that is not packed and has the native byte order, so volumes larger than the memory can be opened; the
        voxels of a Zarr store are decoded where they are indexed. False: ``data`` is an ordinary array that belongs to
        the caller.
    permissive
        Read a file without the ``MAP`` mark whenever the sizes agree, not only if its header is otherwise a valid old
        one; and read a store with missing chunks, which then hold its fill value.

    Raises
    ------
    FileFormatError
        If the file is not MRC or OME-Zarr, is damaged, or holds something other than one real volume; or if the package
        ``zarr`` is needed and not installed. The message says what was expected and what to do.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If the header is old, contradicts itself or leaves out the voxel size (in OME-Zarr: the unit of an axis), if
        chunks are missing and ``permissive`` is given, or if the header describes a stack of images (``ispg`` 0 with
        ``mz`` 1; with ``mz`` equal to ``nz``, as IMOD writes tomograms, a file is read as a volume without a warning).

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
    """Write a volume as an MRC file or an OME-Zarr store, whole or not at all.

    The voxels are written slab by slab to a temporary file (or folder) beside the target, which takes the target's name
    only when it is complete and on the disk. If anything goes wrong before, it is removed.

    Parameters
    ----------
    path
        The target. A name that ends in ``.zarr`` gives an OME-Zarr store (OME-NGFF 0.4, Zarr format 2, chunks of 128,
        and two coarser levels of means over 2 x 2 x 2 voxels), ``.hspy`` a file of HyperSpy and ``.emd`` one of tomviz,
        both with axes in nanometres, any other name an MRC file; ``.gz`` and ``.bz2`` are refused.
    data
        Real numbers with axes ``(z, y, x)``, in memory or memory-mapped.
    like
        A volume from which voxel size, origin, start, cell, labels, extended header and byte order are taken; an
        OME-Zarr store keeps voxel size and origin, as its translation. None writes a plain header.
    voxel_size
        Along ``(z, y, x)`` in ångström, or one number for all. None takes it from ``like``, or leaves it unknown (0).
    dtype
        ``"float32"`` (mode 2) or ``"float16"`` (mode 12).
    label
        At most 80 ASCII characters, added after the labels of ``like``. If there are ten labels already, it replaces
        the last one, because the first ones describe the acquisition. None writes ``"Written by equitomo"``. In
        OME-Zarr it is the description of the image.
    overwrite
        Allow replacing an existing file, or a folder that is a Zarr store.

    Returns
    -------
    Path
        The target.

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
    (write_zarr if _names_zarr(path) else write_hdf5 if _names_hdf5(path) else write_mrc)(plan, data)
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
    """Write a volume as an MRC file or an OME-Zarr store piece by piece, whole or not at all.

    The ``with`` block gets an array of zeros ``(z, y, x)`` to fill in any order, a map of a temporary file beside the
    target. At the end of the block the header is completed and the file takes the target's name; if the block is left
    by an error or an interrupt the file is removed.

    Parameters
    ----------
    path
        The target, as for :func:`write_volume`.
    shape
        Voxels ``(z, y, x)``.
    like, voxel_size, dtype, label, overwrite
        As for :func:`write_volume`. The array is float32 even with ``"float16"``: then, and for OME-Zarr, it lies in a
        second file without a name in the same folder.

    Raises
    ------
    ValueError, FileExistsError, OSError
        As for :func:`write_volume`; the space on the disk is allocated at the beginning.

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
    require_writable(path, overwrite=overwrite)
    creating = creating_zarr if _names_zarr(path) else creating_hdf5 if _names_hdf5(path) else creating_mrc
    with creating(plan) as data:
        yield data


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
    """Return about how many bytes of the disk :func:`creating_volume` takes, temporary files included."""
    floats = 4 * math.prod(shape)
    if _names_zarr(valid_path(target)):
        return stored_bytes(shape, dtype) + floats
    if _names_hdf5(valid_path(target)):
        return _HEADER_BYTES + floats + math.prod(shape) * np.dtype(dtype).itemsize
    return _HEADER_BYTES + (floats if dtype == "float32" else floats + math.prod(shape) * np.dtype(dtype).itemsize)


def _names_zarr(path: Path) -> bool:
    """Return whether a path means a Zarr store; the extension decides, since the file does not exist yet."""
    return path.suffix.lower() == ".zarr"


def _names_hdf5(path: Path) -> bool:
    """Return whether a path means a file of HyperSpy or tomviz."""
    return path.suffix.lower() in (".hspy", ".emd")
