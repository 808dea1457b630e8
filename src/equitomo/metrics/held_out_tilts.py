r"""The correlation with the truth in tilts of a series that were left out.

By the projection-slice theorem (:cite:t:`bracewell1956strip`) the projection :math:`P_\theta f` of a volume is one
plane of its Fourier transform. Let :math:`y_i = P_\theta x + n_i` be two measurements of a tilt that was left out of
everything a prediction :math:`f` was made from. Their noise is independent of :math:`f` and of each other, so that,
with :math:`\langle a, b \rangle` the sum of :math:`\operatorname{Re} \hat a\, \overline{\hat b}` over a ring of the
plane, or over many,

.. math::

    \hat c = \frac{\langle P_\theta f, \bar y \rangle}
                  {\sqrt{\langle P_\theta f, P_\theta f \rangle \langle y_0, y_1 \rangle}}
           = \frac{\operatorname{corr}(P_\theta f, \bar y)}{\sqrt{R}}

estimates the correlation of :math:`P_\theta f` with the projection of the noise-free specimen, and :math:`R` is the
reliability of the mean :math:`\bar y`, exactly as in :mod:`equitomo.metrics.held_out_sector`. Of a single measurement
the reliability is not known, and neither is the correlation with the truth.

A plane that was left out is not wholly unknown. The transform of a specimen of finite size changes little within one
Fourier voxel, so near the tilt axis the neighbouring tilts have measured the plane too. See :func:`unseen`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from equitomo.metrics.held_out_sector import HeldOutCorrelation, correlation_of
from equitomo.metrics.regions import Labels, RegionSums, as_batch, region_sums, shells
from equitomo.metrics.sector_sums import BLOCK, FACTORS, N_GROUPS, GroupSums, jackknifed, without_rounding


@dataclass(frozen=True)
class RawCorrelation:
    """What :func:`raw_tilt_correlation` returns. All errors are standard errors.

    Parameters
    ----------
    raw, error
        The correlation in all rings.
    frequency, correlation, correlation_error, count
        The centres of the rings in cycles per pixel, the correlation in each with its error, NaN where a ring is empty,
        and the number of coefficients.
    """

    raw: float
    error: float
    frequency: Tensor
    correlation: Tensor
    correlation_error: Tensor
    count: Tensor


def held_out_tilt_correlation(
    prediction: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    regions: Sequence[Tensor],
    *,
    n_rings: int | None = None,
    threshold: float = 0.143,
) -> HeldOutCorrelation:
    """Estimate the correlation of predicted projections with noise-free ones at tilts that were left out.

    The rings of all tilts are taken together. They are used from the first one on, up to the one about which the
    measurements correlate less than ``threshold``, as in :func:`held_out_correlation`, whose errors these are too.
    Neighbouring tilts share what they show, so their coefficients at one frequency are left out together.

    Parameters
    ----------
    prediction
        The projection ``(along, t)`` of the predicted volume at each tilt. Tilts may differ in the number of pixels
        along ``t``.
    first, second
        Two measurements of each, with independent noise, on one scale.
    regions
        Boolean masks ``(along, t // 2 + 1)`` of the coefficients to use, such as those of :func:`unseen`.
    n_rings
        The number of rings up to Nyquist; ``None`` for half of the smallest number of pixels along an axis.
    threshold
        The least correlation of the measurements.

    Raises
    ------
    ValueError
        If there is no view, or the views or regions of a tilt differ in shape.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth, error, *noise = torch.randn(4, 5, 64, 64, generator=generator)
    >>> regions = [torch.ones(64, 33, dtype=torch.bool)] * 5
    >>> found = held_out_tilt_correlation(truth + error, truth + noise[0], truth + noise[1], regions)
    >>> abs(found.estimate - 0.5**0.5) < 2 * found.error
    True
    """
    n = _require_views(n_rings, prediction, first, second, regions=regions)
    width = min(view.shape[1] for view in prediction)
    sums = []
    for p, one, other, region in zip(prediction, first, second, regions, strict=True):
        labels = _labels(p, region, n, width)
        sums.append(GroupSums.of(_batch(p), _batch(one), _batch(other), labels, n))
    total = GroupSums(*(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True)))
    return correlation_of(total.without_rounding(_power(prediction)), threshold)


def raw_tilt_correlation(
    prediction: Sequence[Tensor], measured: Sequence[Tensor], regions: Sequence[Tensor], *, n_rings: int | None = None
) -> RawCorrelation:
    """Return the correlation of predicted projections with noisy ones, where each tilt was measured once.

    Noise lowers it by an unknown factor, so it only serves to compare predictions of the same tilts.

    Parameters
    ----------
    prediction, regions, n_rings
        As for :func:`held_out_tilt_correlation`.
    measured
        The measurement of each tilt.

    Raises
    ------
    ValueError
        As :func:`held_out_tilt_correlation`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth, noise = torch.randn(2, 3, 64, 64, generator=generator)
    >>> found = raw_tilt_correlation(truth, truth + noise, [torch.ones(64, 33, dtype=torch.bool)] * 3)
    >>> abs(found.raw - 0.5**0.5) < 3 * found.error
    True
    """
    n = _require_views(n_rings, prediction, measured, regions=regions)
    width = min(view.shape[1] for view in prediction)
    total: RegionSums = reduce(
        lambda a, b: RegionSums(*(one + other for one, other in zip(a, b, strict=True))),
        (
            region_sums(_batch(p), _batch(y), _labels(p, region, n, width), n * N_GROUPS)
            for p, y, region in zip(prediction, measured, regions, strict=True)
        ),
    )
    product, power, noisy, count = (one.reshape(N_GROUPS, n) for one in total)
    product, power = without_rounding(product, power, _power(prediction))
    raw, error = jackknifed(*(one.sum(1, keepdim=True) for one in (product, power, noisy)))
    correlation, correlation_error = jackknifed(product, power, noisy)
    frequency = torch.arange(1, n + 1, dtype=torch.float64) / (2 * n)
    return RawCorrelation(float(raw), float(error), frequency, correlation, correlation_error, count.sum(0))


def unseen(
    shape: Sequence[int],
    tilt: float,
    kept: Sequence[float],
    extent: tuple[float, float],
    *,
    width: float | None = None,
    margin: float = 1.0,
) -> Tensor:
    r"""Return the coefficients of a projection that the tilts which were kept do not tell.

    The transform of a specimen of extents :math:`Z` along the beam and :math:`X` across the tilt axis is smooth over a
    distance of :math:`1 / E_\phi` across the plane of a tilt :math:`\phi`, with
    :math:`E_\phi = X |\sin\phi| + Z \cos\phi`. In the plane of the tilt :math:`\theta` a coefficient is unseen if

    .. math:: |k_t|\, \sin |\theta - \phi| \ge \frac{m}{E_\phi}

    for every tilt :math:`\phi` that was kept. A window over ``width`` pixels blurs the plane itself, so that the
    strong low frequencies are kept two of its steps, ``2 / width``, farther away.

    The line :math:`k_y = 0` is never unseen. All volumes have an offset of their own there, which is no error of the
    prediction.

    Parameters
    ----------
    shape
        Pixels ``(along, t)`` of the projection.
    tilt
        Its tilt in degrees.
    kept
        The tilts that were kept, in degrees.
    extent
        Voxels of the volume along the beam and across the tilt axis.
    width
        The pixels along ``t`` that a window leaves; ``None`` if there is no window.
    margin
        The distance :math:`m` in Fourier voxels of the volume.

    Examples
    --------
    >>> region = unseen((64, 64), 60.0, range(-48, 49, 3), (64, 64))
    >>> region.shape, [int(k) for k in region.any(0).nonzero()[:1]]
    (torch.Size([64, 33]), [4])
    """
    z, x = extent
    nearest = 0.0
    for angle in kept:
        phi, apart = math.radians(angle), math.sin(math.radians(abs(tilt - angle)))
        reach = x * abs(math.sin(phi)) + z * abs(math.cos(phi))
        nearest = max(nearest, math.inf if abs(apart) < 1e-6 else margin / (reach * abs(apart)))
    n_along, n_across = shape
    k = torch.arange(n_across // 2 + 1, dtype=torch.float64) / n_across
    region = (k >= nearest + (0 if width is None else 2 / width)).expand(n_along, -1).clone()
    region[0] = False
    return region


def _labels(view: Tensor, region: Tensor, n_rings: int, width: int) -> Labels:
    """Return the labels of the rings of each group of blocks, which lie at the same frequencies in all views."""
    shape = (1, *view.shape)
    ring = shells(shape, n_rings, region, view.device)
    y, t = (torch.arange(length, device=view.device) for length in (view.shape[0], view.shape[1] // 2 + 1))
    # A block holds both signs of its frequencies: the two coefficients of a pair of opposite ones are the same number.
    y = y.minimum(view.shape[0] - y)
    t = (t * width / view.shape[1]).round().long()
    group = (FACTORS[1] * (y // BLOCK)[:, None] + FACTORS[2] * (t // BLOCK)) % N_GROUPS

    def labels(section: slice) -> Tensor:
        of_ring = ring(section)
        return (group * n_rings + of_ring).where(of_ring > 0, 0)

    return labels


def _require_views(n_rings: int | None, *views: Sequence[Tensor], regions: Sequence[Tensor]) -> int:
    """Refuse views that do not belong together, and return the number of rings."""
    if not len(views[0]) or len({len(series) for series in (*views, regions)}) > 1:
        counts = ", ".join(str(len(series)) for series in (*views, regions))
        raise ValueError(f"expected a prediction, a measurement and a region for each tilt, got {counts}")
    for *own, region in zip(*views, regions, strict=True):
        shapes = {tuple(view.shape) for view in own}
        if len(shapes) > 1 or own[0].ndim != 2:
            raise ValueError(f"the views of a tilt must be (along, t) of one shape, got {sorted(shapes)}")
        if tuple(region.shape) != (own[0].shape[0], own[0].shape[1] // 2 + 1):
            raise ValueError(
                f"the region of a view {tuple(own[0].shape)} must be (along, t // 2 + 1), got {tuple(region.shape)}"
            )
    return n_rings or min(min(view.shape) for view in views[0]) // 2


def _batch(view: Tensor) -> Tensor:
    """Return a view ``(along, t)`` as a volume of a single section, in float64."""
    return as_batch(view.double()[None])


def _power(views: Sequence[Tensor]) -> float:
    return sum(float(view.double().square().sum()) for view in views)
