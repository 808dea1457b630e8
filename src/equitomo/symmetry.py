"""Averaging of a network over mirror images of its input."""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from equitomo.geometry import Geometry, TiltGeometry, as_geometry

# Ends that differ by so many degrees still make a symmetric range: less than the usual step between tilts.
_TOLERANCE = 2.0
_WEIGHTS_TOLERANCE = 0.05

Images = Literal["two", "all"]


class MirrorAveraged(nn.Module):
    r"""Average a network over the mirror images of its input that leave the missing wedge where it is.

    .. math:: \bar f(x) = \frac{1}{|S|} \sum_{R \in S} R^{-1} f(R x)

    so that :math:`\bar f(R x) = R \bar f(x)` for each of them. If a specimen is as likely as its mirror images, the
    mean is not worse than the single predictions, since their errors differ. Reversing the tilt axis never moves the
    wedge, nor does reversing both other axes. Reversing only one of the other axes requires a range that is symmetric
    about zero, with symmetric weights if there are any. A symmetric range takes eight calls of the network, any other
    range four. For a union of geometries, only the images are used that leave the wedge of each part where it is.

    A range counts as symmetric if its two ends differ in size by 2 degrees at most, less than the usual step between
    tilts, and weights count as symmetric if those of opposite tilts differ by 0.05 at most.

    Parameters
    ----------
    network
        A network that maps ``(batch, 1, z, y, x)`` to the same shape.
    geometry
        A :class:`~equitomo.geometry.TiltGeometry`, a union of several, or a pair ``(low, high)`` of degrees about the y
        axis.
    flips
        ``False`` leaves out the images that only a mirror makes, as for a network that was not trained on them:
        the rotations by 180 degrees remain.
    images
        ``"two"`` takes only the volume itself and the image that reverses most axes: all three, or two without
        ``flips``. This has most of the gain for two calls of the network; see the benchmarks.

    Examples
    --------
    >>> network = MirrorAveraged(torch.nn.Conv3d(1, 1, 3, padding=1, bias=False), (-60.0, 60.0))
    >>> x = torch.randn(1, 1, 8, 8, 8)
    >>> torch.allclose(network(x.flip(-1)), network(x).flip(-1), atol=1e-6)
    True
    """

    def __init__(
        self,
        network: nn.Module,
        geometry: Geometry | tuple[float, float],
        *,
        flips: bool = True,
        images: Images = "all",
    ) -> None:
        super().__init__()
        self.network = network
        # Tiles must start on multiples of the stride, as for the network alone.
        self.stride = getattr(network, "stride", 1)
        # The images go through the network one after the other.
        self.maps_at_once = getattr(network, "maps_at_once", None)
        every = mirrors_of(geometry, flips)
        # The last image reverses most axes.
        self.mirrors = every if images == "all" else list(dict.fromkeys((every[0], every[-1])))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the mirror images, in float32 or better."""
        total = torch.zeros((), device=x.device)
        for axes in self.mirrors:
            # Sixteen bits would round the sum.
            result = self.network(x.flip(axes)).flip(axes)
            total = total + (result.float() if result.dtype.itemsize < 4 else result)
        return total / len(self.mirrors)


def mirrors_of(geometry: Geometry | tuple[float, float], flips: bool = True) -> list[tuple[int, ...]]:
    """Return the sets of axes, counted from the last, that may be reversed together without moving the wedge.

    Examples
    --------
    >>> mirrors_of((-60.0, 60.0))
    [(), (-1,), (-2,), (-2, -1), (-3,), (-3, -1), (-3, -2), (-3, -2, -1)]
    >>> mirrors_of((-40.0, 60.0))
    [(), (-2,), (-3, -1), (-3, -2, -1)]
    >>> about_y, about_x = TiltGeometry.from_range(-40, 60), TiltGeometry.from_range(-40, 60, "x")
    >>> mirrors_of(about_y | about_x)
    [(), (-3, -2, -1)]
    """
    parts = as_geometry(geometry).parts
    # The order decides which image a seed draws, and in which order images are averaged.
    subsets = [tuple(axis for axis in chosen if axis) for chosen in product((0, -3), (0, -2), (0, -1))]
    allowed = [axes for axes in subsets if flips or len(axes) % 2 == 0]
    return [axes for axes in allowed if all(_keeps(part, axes) for part in parts)]


def _keeps(part: TiltGeometry, reversed_axes: tuple[int, ...]) -> bool:
    """Return whether reversing some axes leaves the wedge of a single-axis series where it is."""
    beam, across = (axis in reversed_axes for axis in (part.axes.beam, part.axes.across))
    if beam == across:
        return True
    low, high = part.tilt_range
    weights = part.weights or ()
    differences = (abs(one - other) for one, other in zip(weights, reversed(weights), strict=True))
    return abs(low + high) <= _TOLERANCE and max(differences, default=0.0) <= _WEIGHTS_TOLERANCE
