"""Projection of a volume along the tilted beam, and reconstruction from the projections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.geometry import TiltAxes, TiltGeometry


def project(volume: Tensor, geometry: TiltGeometry, *, width: int | None = None) -> Tensor:
    r"""Return the tilt series of a volume: its line integrals along the tilted beam.

    .. math::

        p_\theta(y, t) = \int x(t\sin\theta + s\cos\theta,\; y,\; t\cos\theta - s\sin\theta)\, ds,
        \qquad t = x\cos\theta + z\sin\theta,

    where ``z``, ``x`` and ``t`` are measured from the centre, ``(n - 1) / 2``, and grow with the index
    (:cite:t:`kak1988principles`, chapter 3, eq. 2). With the tilt axis along x, y takes the place of x. Each line is
    sampled once per voxel with cubic interpolation. The volume is zero outside its faces.

    Parameters
    ----------
    volume
        The volume ``(z, y, x)``.
    geometry
        The list of tilts and the tilt axis.
    width
        Number of detector pixels across the tilt axis; ``None`` for as many as the volume has voxels there. Matter
        that projects beside the detector is not recorded.

    Returns
    -------
    Tensor
        The series ``(tilt, along the tilt axis, detector)``, with ascending tilts as in ``geometry.angles``.

    Raises
    ------
    ValueError
        If the volume is not ``(z, y, x)`` or the geometry is a continuous range.

    Examples
    --------
    >>> volume = torch.zeros(9, 2, 9)
    >>> volume[6, 0, 4] = 1.0  # two voxels above the centre, so t = 2 sin(tilt)
    >>> series = project(volume, TiltGeometry([-90, 0, 89]))
    >>> series.shape, series[:, 0].argmax(dim=-1).tolist()
    (torch.Size([3, 2, 9]), [2, 4, 6])
    """
    if volume.ndim != 3:
        raise ValueError(f"`volume` must be (z, y, x), got shape {tuple(volume.shape)}")
    tilts = _tilts(geometry)
    planes = _to_planes(volume, geometry.axes)
    n_beam = math.ceil(math.hypot(*planes.shape[-2:])) + 1
    s = _from_centre(n_beam, volume)[:, None]
    t = _from_centre(planes.shape[-1] if width is None else width, volume)
    views = [
        _sample(planes, t * math.sin(tilt) + s * math.cos(tilt), t * math.cos(tilt) - s * math.sin(tilt))
        for tilt in tilts
    ]
    return torch.stack([view.sum(dim=-2) for view in views])


def filtered_backprojection(series: Tensor, geometry: TiltGeometry, shape: Sequence[int]) -> Tensor:
    r"""Reconstruct a volume from its tilt series by filtered backprojection.

    .. math::

        x(z, y, x) = \sum_i \Delta\theta_i\, (h * p_{\theta_i})(y, x\cos\theta_i + z\sin\theta_i), \qquad
        \hat h(k) = \lvert k \rvert

    with the band-limited ramp filter of Ramachandran and Lakshminarayanan (:cite:t:`kak1988principles`, chapter 3,
    eq. 61) and cubic interpolation. :math:`\Delta\theta_i` is half the angle in radians between the neighbours of tilt
    :math:`i`, and at the two ends the whole step. This is the inverse Radon transform restricted to the measured
    directions.

    The gain is therefore 1 in all measured directions, whatever the tilt range, and the missing wedge stays empty.
    There are two exceptions. On the line of the tilt axis, and with it at zero frequency, all projections measure the
    same coefficients, and the gain is little more than the share of 180 degrees that the tilts cover, for instance
    0.77 for -60 to 60 degrees.
    Above half of Nyquist interpolation lowers the gain, to about 0.7 at Nyquist.

    Parameters
    ----------
    series
        The series ``(tilt, along the tilt axis, detector)``, with ascending tilts as in ``geometry.angles``.
    geometry
        The list of tilts and the tilt axis.
    shape
        Voxels ``(z, y, x)`` of the result. The detector may be wider or narrower.

    Raises
    ------
    ValueError
        If the series does not fit the geometry and shape, or the geometry is a continuous range.

    Examples
    --------
    >>> geometry = TiltGeometry(range(-60, 61, 3))
    >>> series = project(torch.ones(8, 4, 16), geometry)
    >>> filtered_backprojection(series, geometry, (8, 4, 16)).shape
    torch.Size([8, 4, 16])
    """
    shape = spatial_shape(shape)
    tilts = _tilts(geometry)
    n_beam, n_along, n_across = (shape[axis] for axis in geometry.axes)
    if series.ndim != 3 or series.shape[:2] != (len(tilts), n_along):
        raise ValueError(
            f"`series` must be (tilt, along the tilt axis, detector) with {len(tilts)} tilts and {n_along} "
            f"along the {geometry.tilt_axis} axis, got shape {tuple(series.shape)}"
        )
    filtered = _ramp_filter(series)
    z_beam, across = _from_centre(n_beam, series)[:, None], _from_centre(n_across, series)
    planes = series.new_zeros(n_along, n_beam, n_across)
    for view, tilt, step in zip(filtered, tilts, _angular_steps(tilts), strict=True):
        t = across * math.cos(tilt) + z_beam * math.sin(tilt)
        planes += step * _sample(view[:, None], torch.zeros_like(t), t)
    return _from_planes(planes, geometry.axes)


def _tilts(geometry: TiltGeometry) -> list[float]:
    """Return the tilts in radians."""
    if geometry.continuous:
        raise ValueError("a tilt series needs a list of tilts, not a continuous range: TiltGeometry(angles)")
    return [math.radians(angle) for angle in geometry.angles]


def _angular_steps(tilts: list[float]) -> list[float]:
    """Return the range of tilts in radians that each tilt represents."""
    before, after = tilts[:1] + tilts[:-1], tilts[1:] + tilts[-1:]
    steps = [(right - left) / 2 for left, right in zip(before, after, strict=True)]
    # An end tilt has a neighbour on one side only, but it represents as much on the other side.
    return [2 * steps[0], *steps[1:-1], 2 * steps[-1]]


def _ramp_filter(series: Tensor) -> Tensor:
    """Apply the band-limited ramp filter along the detector, which is padded so that nothing wraps around."""
    n = series.shape[-1]
    lag = torch.arange(-n, n, device=series.device, dtype=series.dtype)
    # The filter is sampled in real space. Sampling |k| would remove the zero frequency, and so lower the whole volume.
    kernel = torch.where(lag % 2 == 0, 0.0, -1 / (math.pi * lag) ** 2)
    kernel[n] = 0.25
    response = torch.fft.rfft(kernel.roll(n)).real
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(series, n=2 * n) * response, n=2 * n)
    return filtered[..., :n]


def _from_centre(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype) - (n - 1) / 2


def _to_planes(volume: Tensor, axes: TiltAxes) -> Tensor:
    """Return the planes across the tilt axis, ``(along the tilt axis, z, across)``."""
    return volume.movedim(axes.along, 0)


def _from_planes(planes: Tensor, axes: TiltAxes) -> Tensor:
    return planes.movedim(0, axes.along).contiguous()


def _sample(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return planes ``(n, rows, columns)`` at positions relative to their centre, zero outside."""
    n_rows, n_columns = planes.shape[-2:]
    grid = torch.stack((2 * columns / n_columns, 2 * rows / n_rows), dim=-1)
    # Linear interpolation in projection and backprojection would lower the gain to 0.75 at half of Nyquist.
    return torch.nn.functional.grid_sample(planes[None], grid[None], mode="bicubic", align_corners=False)[0]
