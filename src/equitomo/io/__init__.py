"""Files: tomograms in the MRC format and tilt angles. Numpy arrays, never tensors."""

from .mrc import FileFormatError, FileFormatWarning, MrcHeader, Volume, read_volume, write_volume
from .tilts import read_tilts

__all__ = [
    "FileFormatError",
    "FileFormatWarning",
    "MrcHeader",
    "Volume",
    "read_tilts",
    "read_volume",
    "write_volume",
]
