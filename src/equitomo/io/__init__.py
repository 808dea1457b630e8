"""Files: tomograms in the MRC format and tilt angles. Numpy arrays, never tensors."""

from .errors import FileFormatError, FileFormatWarning
from .mapped import release, scratch_array
from .mrc import Volume, read_volume
from .mrc_header import MrcHeader
from .mrc_write import creating_volume, require_writable, write_volume
from .tilts import read_tilts

__all__ = [
    "FileFormatError",
    "FileFormatWarning",
    "MrcHeader",
    "Volume",
    "creating_volume",
    "read_tilts",
    "read_volume",
    "release",
    "require_writable",
    "scratch_array",
    "write_volume",
]
