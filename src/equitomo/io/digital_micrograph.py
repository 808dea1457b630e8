"""Read ``.dm3`` and ``.dm4`` of DigitalMicrograph with RosettaSciIO, if the user has installed it.

RosettaSciIO is GPL-3: this package neither contains nor requires it, and only calls what is installed.
"""

from importlib import import_module
from pathlib import Path

import numpy as np

from .calibrated import CalibratedArray, calibrated, uniform_axis
from .errors import FileFormatError

# The version of the format, as a number of four bytes.
_MARKS = (b"\0\0\0\x03", b"\0\0\0\x04")


def is_dm(path: Path, head: bytes) -> bool:
    """Return whether a file is one of DigitalMicrograph: it has no mark, so its name counts too."""
    return path.suffix.lower() in (".dm3", ".dm4") and head.startswith(_MARKS)


def read_dm(path: Path) -> CalibratedArray:
    """Return the images of a ``.dm3`` or ``.dm4`` file, with the tilts of an axis of angles."""
    try:
        reader = import_module("rsciio.digitalmicrograph").file_reader
    except ImportError as error:
        raise FileFormatError(
            f"{path}: is a file of DigitalMicrograph, which the package rosettasciio (GPL-3) reads; install it with "
            "pip install rosettasciio, or save the series as MRC, TIFF or .hspy"
        ) from error
    try:
        signals = reader(str(path))
    except Exception as error:
        raise FileFormatError(f"{path}: rosettasciio cannot read it ({error}); export the series again") from error
    stacks = [signal for signal in signals if np.ndim(signal["data"]) == 3]
    if not stacks:
        shapes = ", ".join(str(np.shape(signal["data"])) for signal in signals) or "no image"
        raise FileFormatError(f"{path}: holds {shapes}, expected a stack of images (image, y, x)")
    data = np.asarray(stacks[0]["data"])
    axes = [
        uniform_axis(str(a.get("name") or ""), str(a.get("units") or ""), n, float(a["scale"]), float(a["offset"]))
        for a, n in zip(stacks[0]["axes"], data.shape, strict=True)
    ]
    return calibrated(path, data, axes, None)
