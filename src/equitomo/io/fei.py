"""Read the metadata of each section that microscopes of FEI (Thermo Fisher) write into the extended header."""

import numpy as np
from mrcfile.dtypes import get_ext_header_dtype

from .mapped import Array
from .mrc_header import Axes, MrcHeader, byte_order

# Before MRC2014 the header had 32 numbers for each of 1024 sections, and its kind was not declared.
_OLD_FIELDS = {"Alpha tilt": 0, "Pixel size X": 44, "Pixel size Y": 44}


def fei_metadata(header: MrcHeader, n_sections: int) -> Array | None:
    """Return the metadata of the first sections (tilts in degrees, sizes in metres), or None if FEI wrote none."""
    order = byte_order(header.record)
    dtype = get_ext_header_dtype(bytes(header.record["exttyp"]), order)
    if dtype is None and _is_old(header, order):
        fields = list(_OLD_FIELDS)
        kinds = [f"{order}f4"] * len(fields)
        dtype = np.dtype({"names": fields, "formats": kinds, "offsets": list(_OLD_FIELDS.values()), "itemsize": 128})
    if dtype is None or len(header.extended) < n_sections * dtype.itemsize:
        return None
    metadata: Array = np.frombuffer(header.extended, dtype, n_sections)
    if "Metadata size" in (dtype.names or ()) and (metadata["Metadata size"] != dtype.itemsize).any():
        return None
    return metadata


def fei_voxel_size(header: MrcHeader) -> Axes | None:
    """Return the voxel size in ångström along ``(z, y, x)``, or None if unknown; along z it is taken from x."""
    metadata = fei_metadata(header, 1)
    if metadata is None:
        return None
    y, x = (1e10 * float(metadata[name][0]) for name in ("Pixel size Y", "Pixel size X"))
    return (x, y, x) if all(1e-3 < size < 1e6 for size in (y, x)) else None


def fei_tilts(header: MrcHeader, n_sections: int) -> tuple[float, ...] | None:
    """Return the tilt of each section in degrees, or None if the extended header holds none."""
    metadata = fei_metadata(header, n_sections)
    return None if metadata is None else tuple(float(angle) for angle in metadata["Alpha tilt"])


def _is_old(header: MrcHeader, order: str) -> bool:
    """Return whether the header says, as IMOD reads it, that FEI wrote 32 real numbers for each section."""
    n_integers, n_reals = np.frombuffer(header.record["extra2"].tobytes(), f"{order}i2", 2, 16)
    return (n_integers, n_reals) == (0, 32) and any(label.strip().startswith("Fei Co") for label in header.labels)
