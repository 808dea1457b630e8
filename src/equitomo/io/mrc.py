"""Read tomograms in the MRC format (MRC2014 and the older headers of IMOD)."""

import os
import warnings
from pathlib import Path

from .errors import FileFormatError, FileFormatWarning
from .fei import fei_voxel_size
from .mrc_header import HEADER_BYTES, Axes, MrcHeader, axis_numbers, axis_order, checked_record, field, stored_dtype
from .mrc_voxels import MrcVoxels
from .unpacking import is_packed, open_unpacked, unpacked_size
from .volume import Volume


def read_mrc(path: Path, *, memory_map: bool = True, permissive: bool = False, is_stack: bool = False) -> Volume:
    """Return the volume or the stack in an MRC file, plain or packed; see :func:`read_volume`."""
    notes: list[str] = []
    header, head = read_header(path, permissive, notes)
    record = header.record
    if not is_stack:
        _require_one_volume(path, header, notes)
    shape = field(record, "nz"), field(record, "ny"), field(record, "nx")
    offset = HEADER_BYTES + len(header.extended)
    voxels = MrcVoxels(path, head, offset, shape, stored_dtype(record, notes), axis_order(record))
    voxel_size = _voxel_size(header, notes, is_stack=is_stack)
    if voxels.order != (0, 1, 2):
        notes.append(
            f"the axes are stored in another order (mapc, mapr, maps = {axis_numbers(record)}); they are reordered to "
            "(z, y, x)"
        )
    for note in notes:
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=3)
    return Volume(voxels if memory_map else voxels.read(), voxel_size, header, path)


def read_header(path: Path, permissive: bool, notes: list[str]) -> tuple[MrcHeader, bytes]:
    """Return the header of an MRC file, checked against the size of the file, and its bytes as they are stored."""
    with open_unpacked(path) as file:
        head = file.read(HEADER_BYTES)
        size = unpacked_size(path, file, head) if is_packed(file) else os.fstat(file.fileno()).st_size
        record = checked_record(path, head, size, permissive, notes)
        return MrcHeader(record, file.read(field(record, "nsymbt"))), head


def _require_one_volume(path: Path, header: MrcHeader, notes: list[str]) -> None:
    """Raise an error for a picture or a stack of volumes, and add a note for a declared stack of images."""
    nz, mz = field(header.record, "nz"), field(header.record, "mz")
    if header.ispg >= 401:
        raise FileFormatError(
            f"{path}: a stack of volumes (ispg {header.ispg}), expected one volume; save the wanted one as its own file"
        )
    if nz == 1:
        raise FileFormatError(
            f"{path}: a single section (nz = 1), expected a volume; give the tomogram, not a projection or a slice"
        )
    if header.ispg == 0 and mz == 1:
        notes.append(f"the header declares a stack of {nz} images (ispg 0, mz 1); it is used as a volume")


def _voxel_size(header: MrcHeader, notes: list[str], *, is_stack: bool) -> Axes:
    """Return the voxel size, cell over sampling, along ``(z, y, x)``; 0 where the file does not state one."""
    record = header.record
    if any(float(record["cellb"][name]) not in (0.0, 90.0) for name in ("alpha", "beta", "gamma")):
        notes.append("the cell angles are not right angles; the voxels are used as if they were")
    sizes = []
    for axis in "zyx":
        cell, sampling = float(record["cella"][axis]), field(record, f"m{axis}")
        sizes.append(cell / sampling if 0 < cell < float("inf") and sampling > 0 else 0.0)
    z, y, x = sizes
    if is_stack and z == 0:
        z = sizes[0] = x  # The distance between images has no meaning.
    # In a stack of images mz is 1 by rule, but in many files the cell nevertheless spans all sections.
    nz, mz = field(record, "nz"), field(record, "mz")
    if header.ispg == 0 and mz == 1 and abs(z / nz - x) <= 0.01 * x:
        z /= nz
    # Some programs write 1 Å if they do not know the voxel size.
    if (0.0 in sizes or sizes == [1.0] * 3) and (known := fei_voxel_size(header)):
        notes.append(f"the header states no voxel size; {known[2]:.4g} Å is taken from the FEI extended header")
        return known
    if 0.0 in sizes:
        notes.append("no voxel size in the header, so lengths are stated in voxels")
    return z, y, x
