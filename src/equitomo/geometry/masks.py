"""Masks of the Fourier coefficients that a tilt series measures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from equitomo.checks import Shape, spatial_shape
from equitomo.fourier import frequencies, mirrored
from equitomo.geometry.tilts import Geometry, TiltAxes, TiltGeometry, as_geometry, shared_axes

Support = Literal["ball", "box"]
Sampling = Literal["range", "fan"]

# Angles and radii are compared in float64; a coefficient on the very edge counts as inside.
_EDGE = 1e-9


def wedge_mask(
    shape: Sequence[int],
    geometry: Geometry | tuple[float, float],
    *,
    support: Support = "box",
    low_pass: float | None = None,
    sampling: Sampling = "range",
    extent: float | None = None,
) -> Tensor:
    r"""Return the mask of the measured coefficients: 1 where one is kept, 0 in the missing wedge.

    With ``sampling="range"`` a coefficient is measured if and only if its direction lies in the tilt range,

    .. math:: m(k) = 1 \iff \theta_{\min} \le \arctan(k_z / k_x) \le \theta_{\max} \pmod{180^\circ},

    and with ``sampling="fan"`` if and only if it lies within half a Fourier voxel of the specimen's extent from one
    of the measured planes (:cite:t:`crowther1970reconstruction`),

    .. math:: m(k) = 1 \iff \min_i \lvert k_z\cos\theta_i - k_x\sin\theta_i \rvert \le 1 / (2\,\text{extent}).

    The mask of weighted tilts has their weights in place of 1. In a range the weight of a direction between two
    neighbouring tilts :math:`\theta_i \le \theta \le \theta_{i+1}` is interpolated linearly in the angle,

    .. math:: m(k) = w_i + (w_{i+1} - w_i)\, \frac{\theta - \theta_i}{\theta_{i+1} - \theta_i},

    where tilts of equal angle count with the mean of their weights; in a fan each plane has its own weight, and where
    planes overlap the largest counts. Of a union of geometries the mask is the elementwise maximum of the masks of its
    parts.

    The line of the tilt axis, which includes zero frequency, is in every projection and has the largest weight. The
    mask is even, as a real operator needs. On an even grid one Nyquist index stands for both signs, and there the
    smaller of the two values is taken: a coefficient is kept only if its mirror image is kept.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the grid that the mask is for.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    support
        ``"ball"`` also drops what lies beyond Nyquist in any direction (the default of the reference program in
        its operator), ``"box"`` keeps the corners.
    low_pass
        The largest frequency that is kept, in cycles per voxel; ``None`` for no limit.
    sampling
        ``"range"`` fills the range between the outermost tilts, ``"fan"`` takes each tilt as one plane.
    extent
        The length of the specimen in voxels across the tilt axis, for ``"fan"``; ``None`` takes the shorter of
        the two lengths of ``shape`` across the tilt axis.

    Returns
    -------
    Tensor
        float32 of shape (z, y, x // 2 + 1) in the layout of :func:`equitomo.fourier.rfftn`, with length 1
        along every axis where the mask is constant.

    Raises
    ------
    ValueError
        If ``low_pass`` or ``extent`` is not positive, or a fan is requested for a continuous range.

    Examples
    --------
    >>> mask = wedge_mask((16, 16, 16), (-60.0, 60.0))
    >>> mask.shape, round(mask.mean().item(), 2)
    (torch.Size([16, 1, 9]), 0.69)
    >>> weighted = TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.5])
    >>> wedge_mask((16, 16, 16), weighted)[2, 0, 2].item()  # at 45 degrees
    0.625
    """
    wedge = WedgeMask(geometry, support=support, low_pass=low_pass, sampling=sampling, extent=extent)
    return wedge(spatial_shape(shape))


class WedgeMask:
    """A wedge mask for any shape: an object that holds the other arguments of :func:`wedge_mask`.

    Operators take it, like any function from a shape to a mask, as ``mask=``.

    Parameters
    ----------
    geometry, support, low_pass, sampling, extent
        As for :func:`wedge_mask`.

    Raises
    ------
    ValueError
        As :func:`wedge_mask`.

    Examples
    --------
    >>> wedge = WedgeMask((-60.0, 60.0), support="ball")
    >>> wedge((16, 16, 16)).shape, wedge((12, 8, 10)).shape
    (torch.Size([16, 16, 9]), torch.Size([12, 8, 6]))
    """

    def __init__(
        self,
        geometry: Geometry | tuple[float, float],
        *,
        support: Support = "box",
        low_pass: float | None = None,
        sampling: Sampling = "range",
        extent: float | None = None,
    ) -> None:
        self.geometry = as_geometry(geometry)
        if sampling not in ("range", "fan") or support not in ("ball", "box"):
            raise ValueError(
                f"`sampling` is 'range' or 'fan' and `support` 'ball' or 'box', got {sampling!r}, {support!r}"
            )
        if low_pass is not None and not low_pass > 0:
            raise ValueError(f"`low_pass` must be a positive frequency in cycles per voxel, got {low_pass}")
        if sampling == "fan" and any(part.continuous for part in self.geometry.parts):
            raise ValueError("a fan needs the list of tilts, not a continuous range: TiltGeometry(angles)")
        if extent is not None and not extent > 0:
            raise ValueError(f"`extent` must be a positive number of voxels, got {extent}")
        self.support, self.low_pass, self.sampling, self.extent = support, low_pass, sampling, extent

    @property
    def radius(self) -> float | None:
        """The largest frequency that is kept, in cycles per voxel, or ``None`` where the corners are kept too."""
        limits = [0.5] * (self.support == "ball") + ([] if self.low_pass is None else [self.low_pass])
        return min(limits, default=None)

    @property
    def constant_axis(self) -> int | None:
        """The axis along which the mask is constant, as a negative number, or ``None``."""
        axes = shared_axes(self.geometry)
        return None if axes is None or self.radius is not None else axes.along

    def of(self, geometry: Geometry | tuple[float, float]) -> WedgeMask:
        """Return the mask of another geometry with the same settings."""
        settings = {"low_pass": self.low_pass, "extent": self.extent}
        return WedgeMask(geometry, support=self.support, sampling=self.sampling, **settings)

    def __call__(self, shape: Sequence[int], volume: Shape | None = None) -> Tensor:
        """Return the mask for a grid of ``shape``; a fan's extent is that of ``volume``, or of the grid if ``None``."""
        z, y, x = grid = spatial_shape(shape)
        measured = [_measured(grid, part, self, volume or grid) for part in self.geometry.parts]
        # The slice keeps the one value of a mask that is constant along x.
        mask = reduce(torch.maximum, measured)[..., : x // 2 + 1]
        if self.radius is not None:
            kz, ky, kx = frequencies((z, y, x))
            mask = mask * (kz**2 + ky**2 + kx**2 <= (self.radius + _EDGE) ** 2)
        return mask.float()

    def planes(self, shape: Sequence[int], volume: Shape | None = None) -> WedgePlanes:
        """Return the same mask plane by plane, never as a whole."""
        return WedgePlanes(shape, self, volume=volume)


class Planes(Protocol):
    """A mask plane by plane across one axis, as :func:`equitomo.physics.apply_by_planes` reads it.

    Planes are counted by their frequency along that axis, from zero on, and hold both signs of the other two
    frequencies.

    Attributes
    ----------
    axes : TiltAxes
        ``along`` is the axis that the planes are across; a plane's own axes are ``beam`` and ``across``.
    constant : bool
        Whether all planes are equal.
    n_planes : int
        The number of planes up to the last one that holds anything but zeros.
    n_bytes : int
        The memory that the planes are made from.
    """

    axes: TiltAxes
    constant: bool
    n_planes: int
    n_bytes: int

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return planes ``start`` to ``stop`` in float32, of shape (stop - start, beam, across)."""


class WedgePlanes:
    """The mask of :func:`wedge_mask` plane by plane, for volumes whose mask would not fit into the memory.

    The planes lie across the tilt axis; those of a union of geometries with different tilt axes lie across y.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the grid that the mask is for.
    wedge
        The mask, or a geometry to take a mask of support ``"box"`` for.
    volume
        Voxels ``(z, y, x)`` whose extent a fan has; ``None`` takes those of the grid.

    Examples
    --------
    >>> wedge = WedgeMask((-60.0, 60.0), support="ball")
    >>> planes = WedgePlanes((16, 16, 16), wedge)
    >>> planes.n_planes, planes(2, 5).shape
    (9, torch.Size([3, 16, 16]))
    >>> torch.equal(planes(2, 5)[..., :9], wedge((16, 16, 16))[:, 2:5].transpose(0, 1))
    True
    """

    def __init__(
        self, shape: Sequence[int], wedge: WedgeMask | Geometry | tuple[float, float], *, volume: Shape | None = None
    ) -> None:
        grid = spatial_shape(shape)
        wedge = wedge if isinstance(wedge, WedgeMask) else WedgeMask(wedge)
        self.axes = shared_axes(wedge.geometry) or TiltAxes.about("y")
        self.constant = wedge.constant_axis is not None
        along = self.axes.along
        # Each of length 1 or of both signs of its frequencies along the axis, which now comes first.
        measured = (_measured(grid, part, wedge, volume or grid) for part in wedge.geometry.parts)
        self._measured = [mask.movedim(along, 0).float() for mask in measured]
        self.n_bytes = sum(mask.nbytes for mask in self._measured)
        self._limit = math.inf if wedge.radius is None else (wedge.radius + _EDGE) ** 2
        k_beam, k_across = (k.movedim(along, 0)[0] for k in _plane_frequencies(grid, self.axes))
        self._across = k_beam**2 + k_across**2
        self._k = torch.fft.rfftfreq(grid[along], dtype=torch.float64)
        self.n_planes = int((self._k**2 <= self._limit).sum())

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return planes ``start`` to ``stop`` in float32, of shape (stop - start, beam, across)."""
        k = self._k[start:stop, None, None]
        planes = reduce(torch.maximum, (mask if len(mask) == 1 else mask[start:stop] for mask in self._measured))
        if math.isinf(self._limit):
            return planes.expand(len(k), *self._across.shape)
        return planes.mul(self._across <= self._limit - k**2)


class MaskPlanes:
    """Any even mask plane by plane, made as a whole when the first plane is asked for.

    The planes lie across x if the mask is constant along x alone, and otherwise across y.

    Parameters
    ----------
    make
        A function that returns the mask on the half spectrum of ``grid``, of shape (z, y, x // 2 + 1) with length 1
        where it is constant; further axes before these have length 1.
    grid
        Voxels ``(z, y, x)`` of the grid.
    like
        The lengths of such a mask, of any grid: they tell where it is constant without making it.
    """

    def __init__(self, make: Callable[[], Tensor], grid: Shape, like: Sequence[int]) -> None:
        self._make, self._grid = make, grid
        z, y, x = (n > 1 for n in like[-3:])
        self.axes = TiltAxes.about("x" if y and not x else "y")
        self.constant = not (x if self.axes.along == -1 else y)
        self.n_planes = grid[self.axes.along] // 2 + 1
        half = grid[0], grid[1], grid[2] // 2 + 1
        self.n_bytes = 4 * math.prod(n for n, varies in zip(half, (z, y, x), strict=True) if varies)

    @cached_property
    def _mask(self) -> Tensor:
        mask = self._make()
        mask = mask.reshape(mask.shape[-3:])
        if self.constant and mask.shape[self.axes.along] > 1:
            raise ValueError(
                f"the mask of a grid of {self._grid} voxels varies along axes where it was constant before"
            )
        lengths = [self._grid[0], self._grid[1], self._grid[2] // 2 + 1]
        if self.constant:
            lengths[self.axes.along] = 1
        # Nothing is copied: a mask may have length 1 wherever it is constant.
        return mask.expand(lengths)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return planes ``start`` to ``stop`` in float32, of shape (stop - start, beam, across)."""
        if self.axes.along == -1:
            return self._mask[..., start:stop].permute(2, 0, 1).float()
        rows = torch.arange(start, stop, device=self._mask.device)
        half = self._mask[:, rows]
        # m(kz, ky, -kx) = m(-kz, -ky, kx), and the half spectrum holds both signs of ky.
        opposite = self._mask[:, -rows % self._mask.shape[1], 1 : (self._grid[2] + 1) // 2]
        return torch.cat((half, mirrored(opposite, (-3,)).flip(-1)), -1).transpose(0, 1).float()


def _measured(grid: Shape, part: TiltGeometry, wedge: WedgeMask, volume: Shape) -> Tensor:
    """Return the mask of one series in a plane across its tilt axis, for both signs of its two frequencies."""
    axes = part.axes
    k_beam, k_across = _plane_frequencies(grid, axes)
    if wedge.sampling == "range":
        mask = _in_range(k_beam, k_across, part)
    else:
        mask = _in_fan(k_beam, k_across, part, wedge.extent or min(volume[axes.beam], volume[axes.across]))
    mask[(k_beam == 0) & (k_across == 0)] = max(part.weights or (1.0,))
    return torch.minimum(mask, mirrored(mask, (axes.beam, axes.across)))


def _plane_frequencies(grid: Shape, axes: TiltAxes) -> tuple[Tensor, Tensor]:
    """Return the frequencies along the beam and across the tilt axis, each along its own axis of three."""
    k_beam, k_across = (_along(axis, torch.fft.fftfreq(grid[axis], dtype=torch.float64)) for axis in axes[::2])
    return k_beam, k_across


def _along(axis: int, values: Tensor) -> Tensor:
    lengths = [1, 1, 1]
    lengths[axis] = -1
    return values.reshape(lengths)


def _in_range(k_beam: Tensor, k_across: Tensor, part: TiltGeometry) -> Tensor:
    low, high = part.tilt_range
    direction = torch.rad2deg(torch.atan2(k_beam, k_across))
    above = torch.remainder(direction - low + _EDGE, 180.0)
    inside = (above <= high - low + 2 * _EDGE).double()
    return inside if part.weights is None else inside * _interpolated(low + above - _EDGE, part.angles, part.weights)


def _interpolated(angle: Tensor, tilts: Sequence[float], weights: Sequence[float]) -> Tensor:
    """Return the weight of each angle, linear between neighbouring tilts."""
    alike = defaultdict(list)
    for tilt, weight in zip(tilts, weights, strict=True):
        alike[tilt].append(weight)
    means = [sum(same) / len(same) for same in alike.values()]
    return torch.from_numpy(np.interp(angle.numpy(), list(alike), means))


def _in_fan(k_beam: Tensor, k_across: Tensor, part: TiltGeometry, extent: float) -> Tensor:
    mask = torch.zeros_like(k_beam + k_across)
    for angle, weight in zip(part.angles, part.weights or [1.0] * len(part.angles), strict=True):
        tilt = math.radians(angle)
        distance = (k_beam * math.cos(tilt) - k_across * math.sin(tilt)).abs()
        mask = torch.maximum(mask, weight * (distance <= 0.5 / extent + _EDGE))
    return mask
