"""Read and write tomograms in the MRC and OME-Zarr formats, as NumPy arrays, and read tilt angles and tables."""

from .errors import FileFormatError, FileFormatWarning
from .fei import fei_tilts
from .files import bytes_to_create, creating_volume, read_volume, require_writable, write_volume
from .mapped import SLAB_BYTES, Index, release, scratch_array, slabs_of
from .mrc_header import MrcHeader
from .mrc_voxels import MrcVoxels
from .opening import valid_path
from .placing import PARTIAL, atomic_file, flush_folder, open_without_links, require_place, write_atomically
from .series import CtfState, Defocus, SeriesMetadata, find_series, read_series, read_stack
from .tables import TableRow, read_table
from .tilts import read_tilts
from .volume import Volume
from .zarr_voxels import ZarrVoxels

__all__ = [
    "PARTIAL",
    "SLAB_BYTES",
    "CtfState",
    "Defocus",
    "FileFormatError",
    "FileFormatWarning",
    "Index",
    "MrcHeader",
    "MrcVoxels",
    "SeriesMetadata",
    "TableRow",
    "Volume",
    "ZarrVoxels",
    "atomic_file",
    "bytes_to_create",
    "creating_volume",
    "fei_tilts",
    "find_series",
    "flush_folder",
    "open_without_links",
    "read_series",
    "read_stack",
    "read_table",
    "read_tilts",
    "read_volume",
    "release",
    "require_place",
    "require_writable",
    "scratch_array",
    "slabs_of",
    "valid_path",
    "write_atomically",
    "write_volume",
]
