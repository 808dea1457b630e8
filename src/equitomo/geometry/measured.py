"""The part of Fourier space that was measured at all, whatever the weights of its tilts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from equitomo.geometry.masks import Planes, WedgeMask
from equitomo.geometry.tilts import Geometry, TiltAxes


class MeasuredMask:
    """The mask of the measured coefficients for any shape, 1 where one has a weight other than zero, and else 0.

    Operators take it as ``mask=``.

    Parameters
    ----------
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.

    Examples
    --------
    >>> MeasuredMask((-60.0, 60.0))((16, 16, 16)).unique().tolist()
    [0.0, 1.0]
    """

    def __init__(self, geometry: Geometry | tuple[float, float]) -> None:
        self._wedge = WedgeMask(geometry, support="box")

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Return the mask on the half spectrum, with length 1 along every axis where it is constant."""
        return (self._wedge(shape) != 0).float()

    def planes(self, shape: Sequence[int]) -> Planes:
        """Return the same mask plane by plane, never as a whole."""
        return _OfAnyWeight(self._wedge.planes(shape))


class _OfAnyWeight:
    """The planes of a weighted mask with 1 in place of all weights but zero."""

    def __init__(self, planes: Planes) -> None:
        self._planes = planes
        self.axes: TiltAxes = planes.axes
        self.constant, self.n_planes, self.n_bytes = planes.constant, planes.n_planes, planes.n_bytes

    def __call__(self, start: int, stop: int) -> Tensor:
        return (self._planes(start, stop) != 0).float()
