"""Read stacks of images in TIFF files with the package ``tifffile``."""

import re
from pathlib import Path
from typing import Any

from .calibrated import Axis, CalibratedArray, calibrated, length_in_angstrom, uniform_axis
from .errors import FileFormatError

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Values of the tag ResolutionUnit.
_RESOLUTION_UNITS = {2: "inch", 3: "cm"}


def read_tiff(path: Path, *, memory_map: bool = True) -> CalibratedArray:
    """Return the images of a TIFF file; the pixel size comes from OME, ImageJ or the tags of the resolution.

    A resolution in dots per inch or centimetre is taken for a pixel size only where it is finer than a micrometre: else
    it is one for printing.
    """
    try:
        import tifffile
    except ImportError as error:
        raise FileFormatError(
            f"{path}: is a TIFF file; install the package that reads it: pip install 'equitomo[materials]'"
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            shape = tuple(n for n in series.shape if n > 1)
            if len(shape) != 3 or "S" in series.axes:
                kind = "colour" if "S" in series.axes else f"shape {series.shape}"
                raise FileFormatError(
                    f"{path}: holds images of {kind}, expected a stack of grey images (image, y, x); export it so"
                )
            sizes = _sizes(file)
            contiguous = memory_map and series.dataoffset is not None
        data = tifffile.memmap(path, mode="r") if contiguous else tifffile.imread(path)
    except FileFormatError:
        raise
    except Exception as error:
        raise FileFormatError(f"{path}: damaged TIFF file ({error}); export it again") from error
    if data.dtype.kind not in "biuf":
        raise FileFormatError(f"{path}: holds {data.dtype}, expected real numbers")
    data = data.reshape(shape)
    axes: list[Axis] = [
        uniform_axis(name, "Å" if size else "", n, size or 1.0, 0.0)
        for name, n, size in zip(("section", "row", "column"), shape, (0.0, *sizes), strict=True)
    ]
    return calibrated(path, data, axes, None)


def _sizes(file: Any) -> tuple[float, float]:
    """Return the pixel size along y and x in ångström; 0 if it is not known."""
    if file.ome_metadata:
        found = [_ome_size(file.ome_metadata, axis) for axis in "YX"]
        if all(found):
            return found[0], found[1]
    tags = file.pages[0].tags
    unit = (file.imagej_metadata or {}).get("unit") or _RESOLUTION_UNITS.get(
        int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 0, ""
    )
    length = length_in_angstrom(str(unit))
    sizes = []
    for name in ("YResolution", "XResolution"):
        n_pixels, n_units = tags[name].value if name in tags else (0, 0)
        size = length * n_units / n_pixels if length and n_pixels else 0.0
        sizes.append(size if size < 1e4 or file.imagej_metadata else 0.0)
    return sizes[0], sizes[1]


def _ome_size(text: str, axis: str) -> float:
    """Return ``PhysicalSizeX`` or ``PhysicalSizeY`` of OME in ångström, 0 if it is missing."""
    value = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', text)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', text)
    # Micrometres are OME's default.
    factor = length_in_angstrom(unit[1] if unit else "µm")
    return float(value[1]) * factor if value and factor else 0.0
