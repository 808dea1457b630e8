"""Arrays with calibrated axes, as programs of materials science store them, and their units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import FileFormatError
from .mapped import Array
from .mrc_header import Axes

# Lengths in ångström; tomviz writes its units as [n_m].
_LENGTHS = {
    "Å": 1.0,
    "angstrom": 1.0,
    "ångström": 1.0,
    "a": 1.0,
    "pm": 0.01,
    "nm": 10.0,
    "nanometer": 10.0,
    "µm": 1e4,
    "um": 1e4,
    "micron": 1e4,
    "mm": 1e7,
    "cm": 1e8,
    "inch": 2.54e8,
    "m": 1e10,
}
_DEGREES = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0, "º": 1.0, "rad": 180 / math.pi, "mrad": 0.18 / math.pi}


class Axis(NamedTuple):
    """One axis of an array: its name, its unit, and the values of its points."""

    name: str
    units: str
    values: Array

    @property
    def step(self) -> float:
        """Return the distance of two points in ångström, or 0 if the unit is no length."""
        factor = _LENGTHS.get(_plain(self.units)) or _LENGTHS.get(_plain(self.units).lower(), 0.0)
        return abs(float(self.values[1] - self.values[0])) * factor if len(self.values) > 1 else 0.0

    @property
    def start(self) -> float:
        """Return the first point in ångström, or 0 if the unit is no length."""
        factor = _LENGTHS.get(_plain(self.units)) or _LENGTHS.get(_plain(self.units).lower(), 0.0)
        return float(self.values[0]) * factor

    @property
    def angles(self) -> tuple[float, ...] | None:
        """Return the points in degrees, or None if the axis is not one of angles."""
        factor = _DEGREES.get(_plain(self.units).lower())
        if factor is None:
            return None
        # Thousandths of a degree: no goniometer is more exact, and radians in float32 are not.
        return tuple(round(float(value) * factor, 4) for value in self.values)


@dataclass(frozen=True)
class CalibratedArray:
    """An array with axes ``(z, y, x)`` or ``(image, y, x)`` and what is known about them.

    Parameters
    ----------
    data
        The voxels or the images.
    sizes
        Distances of voxels along the axes in ångström; 0 where they are not known.
    origin
        Position of the first voxel in ångström.
    angles
        The tilt of each image in degrees; None if there are none.
    """

    data: Array
    sizes: Axes
    origin: Axes = (0.0, 0.0, 0.0)
    angles: tuple[float, ...] | None = None


def calibrated(source: object, data: Array, axes: Sequence[Axis], angles: Sequence[float] | None) -> CalibratedArray:
    """Return an array with its axes in the order ``(z, y, x)`` or ``(image, y, x)``.

    Parameters
    ----------
    source
        The file, for messages.
    data
        An array with three axes.
    axes
        Its axes. An axis of angles is brought to the front; axes named x, y and z are brought into the order z, y, x,
        others are kept as they are.
    angles
        The tilt of each image if the file has them elsewhere; None takes those of an axis of angles.
    """
    if data.ndim != 3:
        raise FileFormatError(
            f"{source}: has the shape {data.shape}, expected three axes, a stack of images or a volume; export it"
        )
    order = list(range(3))
    tilted = [n for n, axis in enumerate(axes) if axis.angles is not None]
    names = [axis.name.lower() for axis in axes]
    if tilted:
        order = [tilted[0], *(n for n in order if n != tilted[0])]
        angles = angles or axes[tilted[0]].angles
    elif sorted(names) == ["x", "y", "z"]:
        order = [names.index(name) for name in "zyx"]
    z, y, x = (axes[n] for n in order)
    if angles is not None and len(angles) != data.shape[order[0]]:
        raise FileFormatError(f"{source}: has {len(angles)} tilts for {data.shape[order[0]]} images")
    sizes = (0.0 if angles is not None else z.step, y.step, x.step)
    origin = (0.0 if angles is not None else z.start, y.start, x.start)
    return CalibratedArray(data.transpose(order), sizes, origin, tuple(angles) if angles is not None else None)


def uniform_axis(name: str, units: str, n: int, scale: float, offset: float) -> Axis:
    """Return an axis with points at equal distances."""
    return Axis(name, units, offset + scale * np.arange(n))


def length_in_angstrom(unit: str) -> float | None:
    """Return a unit of length in ångström, or None if it is not known."""
    return _LENGTHS.get(_plain(unit)) or _LENGTHS.get(_plain(unit).lower())


def _plain(units: str) -> str:
    """Return a unit without brackets and underscores: tomviz writes ``[n_m]``."""
    # ImageJ writes the Greek letter and the sign of micro alike, and TIFF escapes it.
    plain = units.strip().strip("[]").replace("_", "").replace("μ", "µ").replace("\\u00B5", "µ").replace("Å", "Å")
    return plain if plain == "Å" else plain.rstrip("s") if len(plain) > 3 else plain
