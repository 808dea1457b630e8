"""Which part of Fourier space a single-axis tilt series measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequencies, mirrored

TiltAxis = Literal["y", "x"]
Support = Literal["ball", "box"]
Sampling = Literal["range", "fan"]

# Angles and radii are compared in float64; a coefficient on the very edge counts as inside.
_EDGE = 1e-9


@dataclass(frozen=True)
class TiltGeometry:
    r"""The tilts of a single-axis series: beam along z, tilt axis along y or x.

    A projection at tilt :math:`\theta` has the detector coordinate
    :math:`t = x\cos\theta + z\sin\theta`, measured from the centre and growing with the array index, and
    fills the Fourier line :math:`(k_x, k_z) \propto (\cos\theta, \sin\theta)`
    (:cite:t:`bracewell1956strip`). With the tilt axis along x, y takes the place of x.

    Parameters
    ----------
    angles
        Tilts in degrees, each in [-90, 90], at least two, in any order; kept in ascending order.
    tilt_axis
        The axis the specimen was tilted about.
    continuous
        Whether ``angles`` are only the two ends of a continuous range; see :meth:`from_range`.

    Raises
    ------
    ValueError
        If there are fewer than two different angles, one is not finite or beyond 90 degrees, they span
        180 degrees or more, or the axis is neither y nor x.

    Examples
    --------
    >>> TiltGeometry([-60, -30, 0, 30, 50]).tilt_range
    (-60.0, 50.0)
    >>> TiltGeometry.from_range(-60, 60, tilt_axis="x").missing_angle
    60.0
    """

    angles: tuple[float, ...]
    tilt_axis: TiltAxis = "y"
    continuous: bool = False

    def __init__(self, angles: Sequence[float], tilt_axis: TiltAxis = "y", *, continuous: bool = False) -> None:
        ordered = tuple(sorted(float(angle) for angle in angles))
        object.__setattr__(self, "angles", ordered)
        object.__setattr__(self, "tilt_axis", tilt_axis)
        object.__setattr__(self, "continuous", continuous)
        self._check()

    def _check(self) -> None:
        if self.tilt_axis not in ("y", "x"):
            raise ValueError(f"tilt_axis must be 'y' or 'x' (the beam is along z), got {self.tilt_axis!r}")
        if not all(math.isfinite(angle) for angle in self.angles):
            raise ValueError(f"angles must be finite numbers of degrees, got {self.angles}")
        if len(set(self.angles)) < 2:
            raise ValueError(f"a tilt series has at least two different angles, got {self.angles}")
        low, high = self.tilt_range
        if low < -90 or high > 90 or high - low >= 180:
            raise ValueError(
                f"tilts must lie within -90 and 90 degrees and span less than 180, got {low:g} to {high:g}: "
                "are they radians, or stage angles with an offset?"
            )

    @classmethod
    def from_range(cls, low: float, high: float, tilt_axis: TiltAxis = "y") -> TiltGeometry:
        """A continuous wedge between two tilts in degrees, ``-90 <= low < high <= 90``."""
        if not low < high:
            raise ValueError(f"the lower tilt must be below the higher one, got ({low:g}, {high:g}) degrees")
        return cls((low, high), tilt_axis, continuous=True)

    @property
    def tilt_range(self) -> tuple[float, float]:
        """Lowest and highest tilt in degrees."""
        return self.angles[0], self.angles[-1]

    @property
    def missing_angle(self) -> float:
        """Opening of the missing wedge in degrees."""
        low, high = self.tilt_range
        return 180.0 - (high - low)


def as_geometry(geometry: TiltGeometry | tuple[float, float]) -> TiltGeometry:
    """A :class:`TiltGeometry`, also from a pair ``(low, high)`` of degrees about the y axis."""
    if isinstance(geometry, TiltGeometry):
        return geometry
    if len(geometry) != 2:
        raise ValueError(f"geometry must be a TiltGeometry or a pair (low, high) of degrees, got {geometry!r}")
    return TiltGeometry.from_range(*geometry)


def wedge_mask(
    shape: Sequence[int],
    geometry: TiltGeometry | tuple[float, float],
    *,
    support: Support = "box",
    low_pass: float | None = None,
    sampling: Sampling = "range",
    extent: float | None = None,
) -> Tensor:
    r"""Mask of the measured coefficients: 1 where one is kept, 0 in the missing wedge.

    With ``sampling="range"`` a coefficient is measured iff its direction lies in the tilt range,

    .. math:: m(k) = 1 \iff \theta_{\min} \le \arctan(k_z / k_x) \le \theta_{\max} \pmod{180^\circ},

    and with ``sampling="fan"`` iff it lies within half a Fourier voxel of the specimen's extent from one
    of the measured planes (:cite:t:`crowther1970reconstruction`),

    .. math:: m(k) = 1 \iff \min_i \lvert k_z\cos\theta_i - k_x\sin\theta_i \rvert \le 1 / (2\,\text{extent}).

    The line of the tilt axis, zero frequency with it, is in every projection. The mask is even, as a real
    operator needs: on an even grid one Nyquist index stands for both signs, and a coefficient is kept only
    if its mirror image is.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)`` of the grid that the mask is for.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    support
        ``"ball"`` also drops what lies beyond Nyquist in any direction (default of the reference program in
        its operator), ``"box"`` keeps the corners.
    low_pass
        Largest frequency kept, in cycles per voxel; ``None`` for no limit.
    sampling
        ``"range"`` fills the range between the outermost tilts, ``"fan"`` takes each tilt as one plane.
    extent
        Voxels that the specimen measures across the tilt axis, for ``"fan"``; ``None`` takes the shorter of
        the two lengths of ``shape`` across the tilt axis.

    Returns
    -------
    Tensor
        float32 of shape (z, y, x // 2 + 1) in the layout of :func:`equitomo.fourier.rfftn`, with length 1
        along every axis where the mask is constant.

    Raises
    ------
    ValueError
        If ``low_pass`` or ``extent`` is not positive, or a fan is asked of a continuous range.

    Examples
    --------
    >>> mask = wedge_mask((16, 16, 16), (-60.0, 60.0))
    >>> mask.shape, round(mask.mean().item(), 2)
    (torch.Size([16, 1, 9]), 0.69)
    """
    shape, geometry = spatial_shape(shape), as_geometry(geometry)
    _check_choices(sampling, support)
    radius = _largest_radius(support, low_pass)
    kept = _measured(shape, geometry, sampling, extent)
    if geometry.tilt_axis == "y":
        kept = kept[..., : shape[2] // 2 + 1]
    if radius is not None:
        kz, ky, kx = frequencies(shape)
        kept = kept & (kz**2 + ky**2 + kx**2 <= (radius + _EDGE) ** 2)
    return kept.float()


class WedgePlanes:
    """The mask of :func:`wedge_mask` plane by plane across the tilt axis, for volumes whose mask would not fit.

    Planes are counted by their frequency along the tilt axis, from zero on, and hold both signs of the other two
    frequencies.

    Parameters
    ----------
    shape, geometry, support, low_pass, sampling, extent
        As for :func:`wedge_mask`.

    Attributes
    ----------
    constant : bool
        Whether all planes are the same.
    n_planes : int
        The planes that hold anything; those of higher frequencies are empty.

    Examples
    --------
    >>> planes = WedgePlanes((16, 16, 16), (-60.0, 60.0), support="ball")
    >>> planes.n_planes, planes(2, 5).shape
    (9, torch.Size([3, 16, 16]))
    >>> half = wedge_mask((16, 16, 16), (-60.0, 60.0), support="ball")
    >>> torch.equal(planes(2, 5)[..., :9], half[:, 2:5].transpose(0, 1))
    True
    """

    def __init__(
        self,
        shape: Sequence[int],
        geometry: TiltGeometry | tuple[float, float],
        *,
        support: Support = "box",
        low_pass: float | None = None,
        sampling: Sampling = "range",
        extent: float | None = None,
    ) -> None:
        shape, geometry = spatial_shape(shape), as_geometry(geometry)
        _check_choices(sampling, support)
        self._radius = _largest_radius(support, low_pass)
        self.constant = self._radius is None
        along = -2 if geometry.tilt_axis == "y" else -1
        self._kept = _measured(shape, geometry, sampling, extent).squeeze(along)
        k_beam, k_across = (k.squeeze(along) for k in _plane_frequencies(shape, geometry.tilt_axis))
        self._across = k_beam**2 + k_across**2
        self._k = torch.fft.rfftfreq(shape[along], dtype=torch.float64)
        self.n_planes = len(self._k) if self._radius is None else int((self._k <= self._radius + _EDGE).sum())

    def __call__(self, start: int, stop: int) -> Tensor:
        """Planes ``start`` to ``stop``, float32 of shape (stop - start, z, x), or y for x if x is the tilt axis."""
        k = self._k[start:stop, None, None]
        if self._radius is None:
            return self._kept.float().expand(len(k), -1, -1)
        inside = self._across <= (self._radius + _EDGE) ** 2 - k**2
        return torch.logical_and(self._kept, inside).float()


def _measured(shape: tuple[int, int, int], geometry: TiltGeometry, sampling: Sampling, extent: float | None) -> Tensor:
    """What the tilts measure on one plane across the tilt axis, both signs of its frequencies; length 1 along it."""
    k_beam, k_across = _plane_frequencies(shape, geometry.tilt_axis)
    if sampling == "range":
        kept = _in_range(k_beam, k_across, geometry)
    else:
        across = shape[2] if geometry.tilt_axis == "y" else shape[1]
        kept = _in_fan(k_beam, k_across, geometry, min(shape[0], across) if extent is None else extent)
    kept |= (k_beam == 0) & (k_across == 0)
    plane_axis = -1 if geometry.tilt_axis == "y" else -2
    return kept & mirrored(kept, (-3, plane_axis))


def _plane_frequencies(shape: tuple[int, int, int], tilt_axis: TiltAxis) -> tuple[Tensor, Tensor]:
    """Frequencies along the beam and across the tilt axis, over the full plane of the two."""
    z, y, x = shape
    k_beam = torch.fft.fftfreq(z, dtype=torch.float64)[:, None, None]
    if tilt_axis == "y":
        return k_beam, torch.fft.fftfreq(x, dtype=torch.float64)[None, None, :]
    return k_beam, torch.fft.fftfreq(y, dtype=torch.float64)[None, :, None]


def _in_range(k_beam: Tensor, k_across: Tensor, geometry: TiltGeometry) -> Tensor:
    low, high = geometry.tilt_range
    direction = torch.rad2deg(torch.atan2(k_beam, k_across))
    return torch.remainder(direction - low + _EDGE, 180.0) <= high - low + 2 * _EDGE


def _in_fan(k_beam: Tensor, k_across: Tensor, geometry: TiltGeometry, extent: float) -> Tensor:
    if geometry.continuous:
        raise ValueError("a fan needs the list of tilts, not a continuous range: TiltGeometry(angles)")
    if not extent > 0:
        raise ValueError(f"extent must be a positive number of voxels, got {extent}")
    kept = torch.zeros_like(k_beam + k_across, dtype=torch.bool)
    for angle in geometry.angles:
        tilt = math.radians(angle)
        distance = (k_beam * math.cos(tilt) - k_across * math.sin(tilt)).abs()
        kept |= distance <= 0.5 / extent + _EDGE
    return kept


def _check_choices(sampling: Sampling, support: Support) -> None:
    if sampling not in ("range", "fan") or support not in ("ball", "box"):
        raise ValueError(f"sampling is 'range' or 'fan' and support 'ball' or 'box', got {sampling!r}, {support!r}")


def _largest_radius(support: Support, low_pass: float | None) -> float | None:
    if low_pass is not None and not low_pass > 0:
        raise ValueError(f"low_pass must be a positive frequency in cycles per voxel, got {low_pass}")
    nyquist = 0.5 if support == "ball" else None
    limits = [limit for limit in (nyquist, low_pass) if limit is not None]
    return min(limits) if limits else None
