"""Judge a tilt series before it is reconstructed: its tilt axis, its alignment and the order of its images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from equitomo.datasets import TiltSeries
from equitomo.datasets.acquisition import acquisition_order, schemes
from equitomo.datasets.views import background, binned
from equitomo.diagnosis.findings import Finding

# Pixels by which the centre of mass may miss its curve.
TOLERANCE = 0.5
# The tilt axis is wrong if the centre of mass moves along it this many times as much as along the other axis. Of two
# real and two simulated series, the wrong axis gave 2.5 to 5.2 and the right one at most 0.4.
_RATIO = 2.0
_MOST = 256  # larger images are averaged before
# The part of the width that counts as an edge, wider than the empty borders of aligned images, and the part of the mean
# brightness that edges have around a specimen that ends within the images.
_EDGE, _EMPTY = 1 / 16, 0.02


@dataclass(frozen=True)
class TiltAxisFit:
    r"""How far the centre of mass of the views follows the geometry of a tilt axis, in pixels.

    Parameters
    ----------
    along
        Deviation from a constant position along the axis, as the root mean square.
    across
        Deviation from :math:`A\cos\theta + B\sin\theta + c` across it.
    offset, offset_error
        The position :math:`c` of the axis relative to the middle of the images, and its standard error.
    profile
        The part of the matter that changes its place along the axis from view to view.
    is_compact
        Whether the specimen ends within the images across the axis, so that the view shows all of it at all tilts.
    """

    along: float
    across: float
    offset: float
    offset_error: float
    profile: float
    is_compact: bool


def fit_tilt_axis(projections: Tensor, angles: tuple[float, ...]) -> TiltAxisFit:
    r"""Compare the centre of mass of each view with the curve that a rotation about the tilt axis gives.

    The centre :math:`(x, z)` of the matter is projected to :math:`c + x\cos\theta + z\sin\theta` across the axis and
    to the same place along it (the first Helgason-Ludwig condition, :cite:t:`kak1988principles`, chapter 3). Matter is
    what is brighter than the background.

    Parameters
    ----------
    projections
        The images ``(tilt, along, across)``.
    angles
        The tilts in degrees.

    Examples
    --------
    >>> tilt = torch.deg2rad(torch.arange(-60.0, 61, 10))
    >>> place = torch.arange(32.0) - 15.5
    >>> across = torch.exp(-((place - 1 - 4 * tilt.sin()[:, None] - 3 * tilt.cos()[:, None]) ** 2) / 4)
    >>> views = across[:, None, :] * torch.exp(-(place**2) / 9)[:, None]
    >>> fit = fit_tilt_axis(views, tuple(range(-60, 61, 10)))
    >>> round(fit.along, 2), round(fit.across, 2), round(fit.offset, 1)
    (0.0, 0.0, 1.0)
    """
    factor = max(min(projections.shape[-2:]) // _MOST, 1)
    views = binned(projections, factor, "mean").double()
    matter = (views - background(views)[:, None, None]).clamp_min(0)
    profile = matter.sum(-1)
    total = profile.sum(-1).clamp_min(1e-30)
    along = (profile * _from_centre(profile)).sum(-1) / total
    across = (matter * _from_centre(matter)).sum((-2, -1)) / total
    tilt = torch.deg2rad(torch.tensor(angles, dtype=torch.float64))
    design = torch.stack((torch.cos(tilt), torch.sin(tilt), torch.ones_like(tilt)), -1)
    inverse = torch.linalg.pinv(design)
    curve = inverse @ across
    residual = _rms(across - design @ curve)
    share = profile / total[:, None]
    moved = (share - share.mean(0)).abs().sum(-1).mean() / 2
    width = max(round(_EDGE * matter.shape[-1]), 1)
    edges = torch.cat((matter[..., :width], matter[..., -width:]), -1)
    return TiltAxisFit(
        along=factor * _rms(along - along.mean()),
        across=factor * residual,
        offset=factor * float(curve[2]),
        offset_error=factor * residual * float(inverse[2].norm()),
        profile=float(moved),
        is_compact=bool(edges.mean() < _EMPTY * matter.mean()),
    )


def judge_series(series: TiltSeries) -> list[Finding]:
    """Return the findings about a tilt series: its axis, its alignment and the order of its images.

    Parameters
    ----------
    series
        The series.

    Examples
    --------
    >>> place, tilt = torch.arange(32.0) - 15.5, torch.deg2rad(torch.arange(-60.0, 61, 10))[:, None]
    >>> across = torch.exp(-((place - 6 * tilt.sin()) ** 2) / 4) + torch.exp(-((place + 5 * tilt.cos()) ** 2) / 6)
    >>> views = across[:, None, :] * torch.exp(-(place**2) / 9)[:, None]
    >>> angles = range(-60, 61, 10)
    >>> [finding.remedy for finding in judge_series(TiltSeries(views.mT, angles))]
    ["pass `tilt_axis='x'`"]
    """
    return [*_of_axis(series), *_of_order(series)]


def _of_axis(series: TiltSeries) -> Iterator[Finding]:
    """Yield what the centre of mass says about the tilt axis and the alignment."""
    own = fit_tilt_axis(series.projections, series.angles)
    other = fit_tilt_axis(series.projections.mT, series.angles)
    axis = series.tilt_axis
    across = "x" if axis == "y" else "y"
    if own.along > max(_RATIO * other.along, other.along + TOLERANCE) and own.profile > other.profile:
        yield Finding(
            "error",
            "axes",
            f"the tilt axis seems to be {across} and not {axis}: the centre of mass moves by {own.along:.1f} pixels "
            f"along {axis}, where it should rest, and by {other.along:.1f} along {across}",
            f"pass `tilt_axis='{across}'`",
        )
        return
    # Of a specimen that is larger than the images, another part is seen at each tilt, and its centre means nothing.
    if not own.is_compact:
        yield Finding(
            "ok", "axes", f"the tilt axis is {axis}, as far as a specimen that is larger than the images shows it"
        )
        return
    if own.across > TOLERANCE:
        yield Finding(
            "warning",
            "axes",
            f"the views are not aligned: across the tilt axis, their centre of mass misses the curve of a rotation by "
            f"{own.across:.1f} pixels (root mean square)",
            "align the series, or pass `align='mass'`",
        )
    elif abs(own.offset) > max(TOLERANCE, 3 * own.offset_error):
        yield Finding(
            "warning",
            "axes",
            f"the tilt axis lies {own.offset:.1f} pixels from the middle of the images",
            f"pass `tilt_axis_offset={own.offset:.1f}`",
        )
    else:
        yield Finding("ok", "axes", f"the centre of mass follows a rotation about {axis} to {own.across:.2f} pixels")


def _of_order(series: TiltSeries) -> Iterator[Finding]:
    """Yield that another order of the images makes neighbouring views more alike than that of the angles."""
    try:
        found = acquisition_order(series.projections, series.angles)
    except ValueError:
        return
    name = next(name for name, places in schemes(series.angles).items() if places == found)
    if name != "ascending":
        yield Finding(
            "error",
            "tilts",
            "neighbouring views are less alike than they should be: the images seem to have the order of acquisition, "
            f"{name}, but the angles are sorted",
            "pass `order='acquisition'`, or the angles in the order of the images",
        )


def _from_centre(values: Tensor) -> Tensor:
    n = values.shape[-1]
    return torch.arange(n, dtype=values.dtype, device=values.device) - (n - 1) / 2


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
