"""Filtered backprojection: the ramp filter, the weights of the tilts, and the line of the tilt axis."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from equitomo.physics.projector import Projector, keys_gain

RampWindow = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

# Tilts that differ by less than this many degrees are repeated scans of one direction.
_SAME_TILT = 0.1
# Views within this many degrees of the least tilted one set the mass of the planes.
_LEAST_TILTED = 5.0


def tilt_steps(tilts: Tensor) -> Tensor:
    r"""Return the range in radians that each tilt represents, for tilts in degrees in any order.

    A tilt represents the directions that are nearer to it than to any other, and at an end of the range as much beyond
    it as up to it. Directions are taken modulo 180 degrees, so that no more than that is represented. Repeated scans
    of a direction, which differ by less than 0.1 degrees, share its range.

    Examples
    --------
    >>> torch.rad2deg(tilt_steps(torch.tensor([-60.0, 0.0, 0.0, 60.0]))).round().tolist()
    [60.0, 30.0, 30.0, 60.0]
    """
    angles, order = torch.sort(tilts.double())
    group = (angles.diff() >= _SAME_TILT).cumsum(0)
    group = torch.cat((group.new_zeros(1), group))
    counts = torch.bincount(group).to(angles)
    centres = torch.bincount(group, weights=angles) / counts
    gaps = centres.diff()
    if not len(gaps):
        return torch.full_like(tilts, math.pi / len(tilts))
    # Over the end of the range the next tilt is the first one, half a turn on.
    beyond = 180 - (centres[-1] - centres[0])
    before = torch.cat((gaps[:1].minimum(beyond), gaps))
    after = torch.cat((gaps, gaps[-1:].minimum(beyond)))
    steps = torch.deg2rad((before + after) / 2 / counts)[group]
    return torch.empty_like(steps).scatter_(0, order, steps).to(tilts)


def ramp_response(length: int, window: RampWindow = "ram-lak", *, interpolations: int = 1) -> Tensor:
    r"""Return the ramp filter on the half spectrum of ``length`` pixels, in float64.

    The filter is the band-limited one of Ramachandran and Lakshminarayanan (:cite:t:`kak1988principles`, chapter 3,
    eq. 61), :math:`|k|` up to Nyquist, sampled in real space so that nothing is lost at zero frequency. The window
    multiplies it, and it is divided by the gain of the cubic interpolation, :math:`\hat w(k)`.

    Parameters
    ----------
    length
        Number of pixels of the padded views.
    window
        ``"ram-lak"`` for none, ``"shepp-logan"`` for :math:`\operatorname{sinc} k`, ``"cosine"`` for
        :math:`\cos \pi k`, ``"hamming"`` for :math:`.54 + .46 \cos 2\pi k`, ``"hann"`` for
        :math:`(1 + \cos 2\pi k) / 2`.
    interpolations
        How many interpolations have lowered the gain: 1 for the backprojection of measured views, 2 where the views
        were made by :class:`~equitomo.physics.Projector` as well.

    Raises
    ------
    ValueError
        If the window is unknown.
    """
    if window not in get_args(RampWindow):
        raise ValueError(f"`window` must be one of {', '.join(get_args(RampWindow))}, got {window!r}")
    lag = torch.arange(length, dtype=torch.float64)
    lag = torch.minimum(lag, length - lag)
    kernel = torch.where(lag % 2 == 0, 0.0, -1 / (math.pi * lag) ** 2)
    kernel[0] = 0.25
    k = torch.fft.rfftfreq(length, dtype=torch.float64)
    windows = {
        "ram-lak": torch.ones_like(k),
        "shepp-logan": torch.sinc(k),
        "cosine": torch.cos(math.pi * k),
        "hamming": 0.54 + 0.46 * torch.cos(2 * math.pi * k),
        "hann": 0.5 + 0.5 * torch.cos(2 * math.pi * k),
    }
    response: Tensor = torch.fft.rfft(kernel).real * windows[window] / keys_gain(k) ** interpolations
    return response


def filtered_backprojection(
    projector: Projector, y: Tensor, steps: Tensor, window: RampWindow = "ram-lak", *, interpolations: int = 1
) -> Tensor:
    r"""Return volumes ``(batch, C, z, y, x)`` from series ``(batch, C, tilt, along, t)`` by filtered backprojection.

    .. math::

        x = \sum_i \Delta\theta_i\, (h * p_{\theta_i})(x\cos\theta_i + z\sin\theta_i), \qquad
        \hat h(k) = \lvert k \rvert\, \frac{\text{window}(k)}{\hat w(k)^n}

    This is the inverse Radon transform restricted to the measured directions. There the gain is one, whatever the
    tilt range, and the missing wedge stays empty. On the line of the tilt axis, which all views measure, the sum
    depends on the tilt range and on the size of the volume instead. The gain is made one there too: a constant is added
    to each plane across the tilt axis, such that the plane has the mass that the least tilted views show of it. Views
    with mean zero therefore give a volume with mean zero.

    Parameters
    ----------
    projector
        The projector whose adjoint is used.
    y
        The series.
    steps
        The range that each tilt represents; see :func:`tilt_steps`.
    window, interpolations
        See :func:`ramp_response`.
    """
    y = y if y.dtype == torch.float64 else y.float()
    x = projector.backproject(ramp_filtered(y, window, interpolations=interpolations) * steps.to(y)[:, None, None])
    return _with_measured_mass(projector, x, y, steps.to(y))


def ramp_filtered(y: Tensor, window: RampWindow = "ram-lak", *, interpolations: int = 1) -> Tensor:
    """Return views ``(..., t)`` filtered by :func:`ramp_response`, continued beyond the detector by their last pixels.

    The continuation falls to zero over half of the detector. Without it matter that ends at the edge of the detector
    would appear as a bright rim; views that end in an empty background are not changed by it.
    """
    n = y.shape[-1]
    reach = n // 2
    fall = 0.5 + 0.5 * torch.cos(math.pi * (torch.arange(reach, device=y.device, dtype=y.dtype) + 0.5) / max(1, reach))
    gap = y.new_zeros(()).expand(*y.shape[:-1], 2 * n - 2 * reach)
    padded = torch.cat((y, y[..., -1:] * fall, gap, y[..., :1] * fall.flip(0)), dim=-1)
    response = ramp_response(padded.shape[-1], window, interpolations=interpolations).to(y)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(padded) * response, n=padded.shape[-1])
    return filtered[..., :n]


def _with_measured_mass(projector: Projector, x: Tensor, y: Tensor, steps: Tensor) -> Tensor:
    """Add a constant to each plane across the tilt axis, so that its mass is that in the least tilted views."""
    tilts = projector.tilts
    # Of the line of the tilt axis all views hold the same. The least tilted ones hold least of the matter beside the
    # volume, and miss least of the volume itself.
    used = ((tilts - tilts[tilts.abs().argmin()]).abs() <= _LEAST_TILTED).nonzero()[:, 0]
    plane = Projector(
        (projector.n_beam, 1, projector.n_across),
        tilts[used],
        detector=projector.detector,
        offsets=projector.offsets[used],
    )
    # The pixels whose path through the volume is at least half of the longest.
    radians = torch.deg2rad(plane.tilts.to(y))
    reach = torch.maximum(projector.n_across * radians.cos(), projector.n_beam * radians.sin().abs()) / 2
    t = torch.arange(projector.detector, device=y.device, dtype=y.dtype) - (projector.detector - 1) / 2
    seen = steps[used, None] * ((t - plane.offsets.to(y)[:, None]).abs() <= reach[:, None])
    recorded = plane.backproject(seen[None, None, :, None])[0, 0, :, 0]
    # Sums of products, because autocast would round the terms of a matrix product.
    mass = (y[:, :, used] * seen[:, None]).sum((-3, -1))
    recorded = recorded[:, None, :] if projector.tilt_axis == "y" else recorded[:, :, None]
    across = (-3, -1) if projector.tilt_axis == "y" else (-3, -2)
    missing = (mass - (x * recorded).sum(across)) / recorded.sum()
    return x + (missing[:, :, None, :, None] if projector.tilt_axis == "y" else missing[:, :, None, None, :])
