"""Predictions that treat mirror images alike."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from equitomo.geometry import TiltGeometry, as_geometry

# A range this close to a symmetric one, in degrees, is taken for one: less than the usual step between tilts.
_TOLERANCE = 2.0
_Z, _Y, _X = -3, -2, -1


class MirrorAveraged(nn.Module):
    r"""Average a network over the mirror images of its input that leave the missing wedge where it is.

    .. math:: \bar f(x) = \frac{1}{|S|} \sum_{R \in S} R^{-1} f(R x)

    so that :math:`\bar f(R x) = R \bar f(x)` for each of them. Where the truth is as likely as its mirror images the
    mean is no worse than what is averaged, since the errors of the parts differ. Reversing the tilt axis never moves
    the wedge, nor does reversing both other axes; reversing one of these needs a range that is symmetric about zero.
    That makes eight calls of the network, or four.

    Parameters
    ----------
    network
        Maps ``(batch, 1, z, y, x)`` to the same shape.
    geometry
        A :class:`~equitomo.geometry.TiltGeometry`, or a pair ``(low, high)`` of degrees about the y axis.
    flips
        ``False`` leaves out the images that only a mirror makes, as for a network that has not been trained on them:
        what remains are half turns.

    Examples
    --------
    >>> network = MirrorAveraged(torch.nn.Conv3d(1, 1, 3, padding=1, bias=False), (-60.0, 60.0))
    >>> x = torch.randn(1, 1, 8, 8, 8)
    >>> torch.allclose(network(x.flip(-1)), network(x).flip(-1), atol=1e-6)
    True
    """

    def __init__(self, network: nn.Module, geometry: TiltGeometry | tuple[float, float], *, flips: bool = True) -> None:
        super().__init__()
        self.network = network
        # Tiles must start on multiples of it, as for the network alone.
        self.stride = getattr(network, "stride", 1)
        # The images go through one after the other.
        self.maps_at_once = getattr(network, "maps_at_once", None)
        self.mirrors = mirrors_of(geometry, flips)

    def forward(self, x: Tensor) -> Tensor:
        """The mean, in float32 or better."""
        total = torch.zeros((), device=x.device)
        for axes in self.mirrors:
            # Sixteen bits would round the sum.
            result = self.network(x.flip(axes)).flip(axes)
            total = total + (result.float() if result.dtype.itemsize < 4 else result)
        return total / len(self.mirrors)


def mirrors_of(geometry: TiltGeometry | tuple[float, float], flips: bool = True) -> list[tuple[int, ...]]:
    """The sets of axes, counted from the last, that may be reversed together and leave the wedge where it is.

    Examples
    --------
    >>> mirrors_of((-40.0, 60.0))
    [(), (-2,), (-3, -1), (-3, -2, -1)]
    """
    geometry = as_geometry(geometry)
    low, high = geometry.tilt_range
    symmetric = abs(low + high) <= _TOLERANCE
    across = geometry.axes.across
    found = []
    for chosen in product((False, True), repeat=3):
        axes = tuple(axis for axis, taken in zip((_Z, _Y, _X), chosen, strict=True) if taken)
        keeps_wedge = symmetric or ((_Z in axes) == (across in axes))
        if keeps_wedge and (flips or len(axes) % 2 == 0):
            found.append(axes)
    return found
