"""The tilts of single-axis series, and unions of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, overload

from equitomo.io.angles import RADIANS

TiltAxis = Literal["y", "x"]


class TiltAxes(NamedTuple):
    """The axes of a single-axis tilt series among the last three axes ``(z, y, x)`` of a volume, counted from the last.

    Parameters
    ----------
    beam
        The axis of the beam, always z.
    along
        The tilt axis.
    across
        The axis at right angles to both.

    Examples
    --------
    >>> TiltAxes.about("y")
    TiltAxes(beam=-3, along=-2, across=-1)
    """

    beam: int
    along: int
    across: int

    @classmethod
    def about(cls, tilt_axis: TiltAxis) -> TiltAxes:
        """Return the axes for a tilt axis along y or x."""
        return cls(-3, -2, -1) if tilt_axis == "y" else cls(-3, -1, -2)


@dataclass(frozen=True)
class TiltGeometry:
    r"""The tilts of a single-axis series: the beam is along z, the tilt axis along y or x.

    A projection at tilt :math:`\theta` has the detector coordinate
    :math:`t = x\cos\theta + z\sin\theta`, measured from the centre and growing with the array index, and
    fills the Fourier line :math:`(k_x, k_z) \propto (\cos\theta, \sin\theta)`
    (:cite:t:`bracewell1956strip`). With the tilt axis along x, y takes the place of x.

    ``a | b`` is the union of two geometries, as of a dual-axis series: a coefficient is measured if one of them
    measures it. See :class:`TiltUnion`.

    Parameters
    ----------
    angles
        Tilts in degrees, each in [-90, 90], at least two, in any order; they are kept in ascending order.
    tilt_axis
        The axis that the specimen was tilted about.
    continuous
        Whether ``angles`` are only the two ends of a continuous range; see :meth:`from_range`.
    weights
        The weight of each tilt, from 0 to 1, in the order of ``angles``; ``None`` gives each the weight 1. They become
        the values of the mask, see :func:`wedge_mask`.

    Raises
    ------
    ValueError
        If there are fewer than two different angles, one is not finite or beyond 90 degrees, they span
        180 degrees or more, the axis is neither y nor x, or the weights do not fit.

    Examples
    --------
    >>> TiltGeometry([-60, -30, 0, 30, 50]).tilt_range
    (-60.0, 50.0)
    >>> TiltGeometry.from_range(-60, 60, tilt_axis="x").missing_angle
    60.0
    >>> str(TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 55, "x"))
    '-50 to 55 degrees about x and -60 to 60 degrees about y'
    """

    angles: tuple[float, ...]
    tilt_axis: TiltAxis = "y"
    continuous: bool = False
    weights: tuple[float, ...] | None = None

    def __init__(
        self,
        angles: Iterable[float],
        tilt_axis: TiltAxis = "y",
        *,
        continuous: bool = False,
        weights: Iterable[float] | None = None,
    ) -> None:
        angles = [float(angle) for angle in angles]
        weights = None if weights is None else [float(weight) for weight in weights]
        if weights is not None and len(weights) != len(angles):
            raise ValueError(f"one weight per tilt is needed, got {len(weights)} `weights` for {len(angles)} `angles`")
        order = sorted(range(len(angles)), key=angles.__getitem__)
        object.__setattr__(self, "angles", tuple(angles[i] for i in order))
        object.__setattr__(self, "tilt_axis", tilt_axis)
        object.__setattr__(self, "continuous", continuous)
        object.__setattr__(self, "weights", None if weights is None else tuple(weights[i] for i in order))
        self._check()

    def _check(self) -> None:
        if self.tilt_axis not in ("y", "x"):
            raise ValueError(f"`tilt_axis` must be 'y' or 'x' (the beam is along z), got {self.tilt_axis!r}")
        if not all(math.isfinite(angle) for angle in self.angles):
            raise ValueError(f"`angles` must be finite numbers of degrees, got {self.angles}")
        if len(set(self.angles)) < 2:
            raise ValueError(f"a tilt series has at least two different angles, got {self.angles}")
        low, high = self.tilt_range
        if low < -90 or high > 90 or high - low >= 180:
            raise ValueError(
                f"tilts must lie within -90 and 90 degrees and span less than 180, got {low:g} to {high:g}: "
                "are they radians, or stage angles with an offset?"
            )
        if self.weights is not None and not (all(0 <= w <= 1 for w in self.weights) and any(self.weights)):
            raise ValueError(
                f"`weights` must lie between 0 and 1 and not all be 0, got {self.weights}: divide them by the largest"
            )
        if max(-low, high) <= RADIANS:
            raise ValueError(
                f"all tilts lie between {low:g} and {high:g}, so they seem to be radians, expected degrees: multiply "
                "each by 57.29578 (180 / pi)"
            )

    @classmethod
    def from_range(cls, low: float, high: float, tilt_axis: TiltAxis = "y") -> TiltGeometry:
        """Return a continuous wedge between two tilts in degrees, ``-90 <= low < high <= 90``."""
        if not low < high:
            raise ValueError(f"the lower tilt must be below the higher one, got ({low:g}, {high:g}) degrees")
        return cls((low, high), tilt_axis, continuous=True)

    @property
    def tilt_range(self) -> tuple[float, float]:
        """The lowest and the highest tilt in degrees."""
        return self.angles[0], self.angles[-1]

    @property
    def axes(self) -> TiltAxes:
        """The axes of the beam, of the tilts and across both, as negative axes of ``(..., z, y, x)``."""
        return TiltAxes.about(self.tilt_axis)

    @property
    def missing_angle(self) -> float:
        """The opening of the missing wedge in degrees."""
        low, high = self.tilt_range
        return 180.0 - (high - low)

    @property
    def parts(self) -> tuple[TiltGeometry, ...]:
        """The geometry itself as the only part, so that one loop serves single-axis and dual-axis geometries."""
        return (self,)

    def __or__(self, other: Geometry) -> Geometry:
        return _union((self, other))

    def __str__(self) -> str:
        low, high = self.tilt_range
        return f"{low:g} to {high:g} degrees about {self.tilt_axis}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them; :func:`as_geometry` reads them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TiltUnion:
    """Several single-axis series of one specimen, as of a dual-axis acquisition, written ``a | b``.

    A coefficient is measured if one of the parts measures it; where they are weighted, the largest weight counts. The
    order of the parts does not matter, and equal ones count once.

    Parameters
    ----------
    parts
        Geometries, unions among them; at least two of the single-axis series must differ.

    Raises
    ------
    ValueError
        If fewer than two different series are given.

    Examples
    --------
    >>> about_y, about_x = TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-60, 60, "x")
    >>> about_y | about_x == TiltUnion([about_x, about_y])
    True
    """

    parts: tuple[TiltGeometry, ...]

    def __init__(self, parts: Iterable[Geometry]) -> None:
        different = {part for geometry in parts for part in geometry.parts}
        if len(different) < 2:
            raise ValueError(f"a union needs at least two different tilt series, got {len(different)}")
        object.__setattr__(self, "parts", tuple(sorted(different, key=_order)))

    def __or__(self, other: Geometry) -> Geometry:
        return _union((self, other))

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    def as_dict(self) -> dict[str, Any]:
        """Return the parts as JSON holds them; :func:`as_geometry` reads them."""
        return {"parts": [part.as_dict() for part in self.parts]}


Geometry = TiltGeometry | TiltUnion


@overload
def as_geometry(geometry: TiltGeometry | tuple[float, float]) -> TiltGeometry: ...
@overload
def as_geometry(geometry: Geometry | tuple[float, float] | Mapping[str, Any]) -> Geometry: ...
def as_geometry(geometry: Geometry | tuple[float, float] | Mapping[str, Any]) -> Geometry:
    """Return a geometry, made from a pair ``(low, high)`` of degrees about the y axis or from ``as_dict()`` if need be.

    Examples
    --------
    >>> as_geometry((-60.0, 50.0)) == TiltGeometry.from_range(-60, 50)
    True
    >>> union = TiltGeometry([-60, 0, 60]) | TiltGeometry([-50, 50], "x", weights=[1, 0.5])
    >>> as_geometry(union.as_dict()) == union
    True
    """
    if isinstance(geometry, Geometry):
        return geometry
    if isinstance(geometry, Mapping):
        if "parts" in geometry:
            return TiltUnion([TiltGeometry(**part) for part in geometry["parts"]])
        return TiltGeometry(**geometry)
    if len(geometry) != 2:
        raise ValueError(f"`geometry` must be a TiltGeometry or a pair (low, high) of degrees, got {geometry!r}")
    return TiltGeometry.from_range(*geometry)


def shared_axes(geometry: Geometry) -> TiltAxes | None:
    """Return the axes that all parts of a geometry share, or ``None`` if they were tilted about different axes."""
    first, *others = {part.axes for part in geometry.parts}
    return None if others else first


def _union(geometries: Sequence[Geometry]) -> Geometry:
    different = {part for geometry in geometries for part in geometry.parts}
    return TiltUnion(different) if len(different) > 1 else different.pop()


def _order(part: TiltGeometry) -> tuple[Any, ...]:
    return part.tilt_axis, part.angles, part.continuous, part.weights or ()
