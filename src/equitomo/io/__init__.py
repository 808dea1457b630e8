"""Files: tomograms in the MRC and OME-Zarr formats, and tilt angles. Numpy arrays, never tensors."""

from .errors import FileFormatError, FileFormatWarning
from .files import bytes_to_create, creating_volume, read_volume, require_writable, write_volume
from .mapped import release, scratch_array
from .mrc_header import MrcHeader
from .opening import named
from .placing import PARTIAL, beside, flush_folder, no_link, require_place, write_whole
from .tables import TableRow, read_table
from .tilts import read_tilts
from .volume import Volume
from .voxels import SLAB_BYTES, Index, StoredVoxels, slabs_of
from .zarr_voxels import ZarrVoxels

__all__ = [
    "PARTIAL",
    "SLAB_BYTES",
    "FileFormatError",
    "FileFormatWarning",
    "Index",
    "MrcHeader",
    "StoredVoxels",
    "TableRow",
    "Volume",
    "ZarrVoxels",
    "beside",
    "bytes_to_create",
    "creating_volume",
    "flush_folder",
    "named",
    "no_link",
    "read_table",
    "read_tilts",
    "read_volume",
    "release",
    "require_place",
    "require_writable",
    "scratch_array",
    "slabs_of",
    "write_volume",
    "write_whole",
]
