"""Files: tomograms in the MRC format and tilt angles. Numpy arrays, never tensors."""

from .errors import FileFormatError, FileFormatWarning
from .mrc import Volume, read_volume
from .mrc_header import MrcHeader
from .mrc_write import require_writable, write_volume
from .tables import TableRow, read_table
from .tilts import read_tilts
from .voxels import StoredVoxels

__all__ = [
    "FileFormatError",
    "FileFormatWarning",
    "MrcHeader",
    "StoredVoxels",
    "TableRow",
    "Volume",
    "read_table",
    "read_tilts",
    "read_volume",
    "require_writable",
    "write_volume",
]
