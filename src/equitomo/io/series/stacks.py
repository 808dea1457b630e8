"""Images of materials science with their pixel size and tilts: MRC, HyperSpy, EMD, DigitalMicrograph and TIFF."""

import warnings
from pathlib import Path

from equitomo.io.calibrated import CalibratedArray
from equitomo.io.digital_micrograph import is_dm, read_dm
from equitomo.io.errors import FileFormatError, FileFormatWarning
from equitomo.io.fei import fei_metadata
from equitomo.io.hdf5 import HDF5_MARK, read_hdf5
from equitomo.io.mrc import read_mrc
from equitomo.io.mrc_header import header_at
from equitomo.io.opening import open_regular, valid_path
from equitomo.io.tiff import TIFF_MARKS, read_tiff
from equitomo.io.volume import Volume

from .metadata import Program, SeriesMetadata


def read_stack(path: str | Path, *, permissive: bool = False) -> tuple[Volume, tuple[float, ...] | None]:
    """Read a stack of images, and their tilts where the file has them.

    Parameters
    ----------
    path
        An MRC stack, a ``.hspy`` of HyperSpy, an ``.emd`` of tomviz or in the Berkeley layout, a TIFF, or a ``.dm3`` or
        ``.dm4`` of DigitalMicrograph if the package ``rosettasciio`` is installed.
    permissive
        See :func:`~equitomo.read_volume`.

    Returns
    -------
    Volume
        The images, ``(image, y, x)``; its voxel size has the pixel size along y and x, in ångström.
    tuple of float or None
        The tilt of each image in degrees.

    Raises
    ------
    FileFormatError
        If the file is damaged or is not a stack of images, or if a package is missing to read it.
    OSError
        If the file cannot be opened.
    """
    path = valid_path(path)
    with open_regular(path, "a stack of images") as file:
        head = file.read(8)
    if not is_image_file(path, head):
        return _read_mrc_stack(path, permissive=permissive)
    image = read_image_file(path, head)
    if not image.sizes[1]:
        warnings.warn(f"{path}: no unit of length; lengths are in pixels", FileFormatWarning, stacklevel=2)
    return Volume(image.data, image.sizes, header_at(image.origin), path), image.angles


def _read_mrc_stack(path: Path, *, permissive: bool) -> tuple[Volume, tuple[float, ...] | None]:
    """Return the images of an MRC stack, and the tilts of its FEI extended header."""
    volume = read_mrc(path, permissive=permissive, is_stack=True)
    metadata = fei_metadata(volume.header, volume.shape[0])
    return volume, tuple(float(angle) for angle in metadata["Alpha tilt"]) if metadata is not None else None


def is_image_file(path: Path, head: bytes) -> bool:
    """Return whether a file is HDF5, TIFF or DigitalMicrograph, by its first bytes."""
    return head.startswith((HDF5_MARK, *TIFF_MARKS)) or is_dm(path, head)


def image_series(path: Path) -> SeriesMetadata:
    """Return the tilt series in a file of images with tilts."""
    with open_regular(path, "a stack of images") as file:
        image = read_image_file(path, file.read(8))
    if image.angles is None:
        raise FileFormatError(
            f"{path}: holds {image.data.shape[0]} images without tilts; give the file of the tilts too, or write the "
            "angles in degrees, one per line, into a .tlt file"
        )
    programs: dict[str, Program] = {".emd": "emd", ".hspy": "hyperspy", ".dm3": "dm", ".dm4": "dm"}
    return SeriesMetadata(
        path.stem,
        image.angles,
        stack=path,
        pixel_size=image.sizes[2] or None,
        image_shape=(image.data.shape[1], image.data.shape[2]),
        program=programs.get(path.suffix.lower(), "unknown"),
        ctf_state="none",
        files=(path,),
    )


def read_image_file(path: Path, head: bytes, *, memory_map: bool = True) -> CalibratedArray:
    """Return the images or the volume in a file that is neither MRC nor Zarr."""
    if head.startswith(HDF5_MARK):
        return read_hdf5(path, memory_map=memory_map)
    return read_tiff(path, memory_map=memory_map) if head.startswith(TIFF_MARKS) else read_dm(path)


def read_calibrated(path: Path, head: bytes, *, memory_map: bool = True) -> Volume:
    """Return the volume in such a file, or refuse a tilt series."""
    image = read_image_file(path, head, memory_map=memory_map)
    if image.angles is not None:
        raise FileFormatError(
            f"{path}: {len(image.angles)} images with {len(image.angles)} tilts: a tilt series, not a tomogram; "
            "reconstruct it first, with equitomo halves"
        )
    if 0.0 in image.sizes:
        warnings.warn(
            f"{path}: no unit of length for each axis; lengths are in voxels", FileFormatWarning, stacklevel=3
        )
    return Volume(image.data, image.sizes, header_at(image.origin), path)
