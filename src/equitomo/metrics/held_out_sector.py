r"""The correlation with the truth in a sector of Fourier space that was measured but held out.

Let :math:`x` be the noise-free volume, :math:`y_i = x + n_i` two halves with independent noise, and :math:`p` a
prediction that has never seen :math:`n_i` in the sector :math:`S`. With :math:`\langle a, b \rangle = \sum_{k \in S}
\operatorname{Re} \hat a\, \overline{\hat b}` the noise drops out of all expectations of products of different volumes:

.. math::

    \mathbb{E} \langle p, \bar y \rangle = \langle p, x \rangle, \qquad
    \mathbb{E} \langle y_0, y_1 \rangle = \langle x, x \rangle, \qquad \bar y = \tfrac12 (y_0 + y_1),

so that

.. math::

    \hat c = \frac{\langle p, \bar y \rangle}{\sqrt{\langle p, p \rangle \langle y_0, y_1 \rangle}}
           = \frac{\operatorname{corr}(p, \bar y)}{\sqrt{R}}, \qquad
    R = \frac{\langle y_0, y_1 \rangle}{\langle \bar y, \bar y \rangle} \approx \frac{2 r}{1 + r},

estimates the correlation of the prediction with :math:`x`. :math:`R` is the reliability of the mean, which
the correlation :math:`r` of the halves gives by the formula of Spearman and Brown (:cite:t:`spearman1910correlation`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equitomo.metrics.correlation import number_of_shells
from equitomo.metrics.regions import Array, as_batch
from equitomo.metrics.sector_sums import (
    GroupSums,
    block_labels,
    error_by_noise,
    jackknife_error,
    jackknifed,
    noise_terms,
    products_in_shells,
    replicated,
)
from equitomo.volumes import Shape


@dataclass(frozen=True)
class HeldOutCorrelation:
    """What :func:`held_out_correlation` returns.

    Values per shell are NaN where a shell is not used or a sum is not positive. All errors are standard errors.

    Parameters
    ----------
    estimate, error
        The estimated correlation of the prediction with the noise-free volume in all shells that are used.
    noise_error
        The part of the error that noise causes: that about the truth in this very sector.
    raw
        The correlation with the noisy mean of the halves, before the division by the root of its reliability.
    reliability
        The share of signal in the power of the mean of the halves. Its root is what the measured mean itself scores.
    power
        The power of the prediction relative to that of the noise-free volume.
    limit
        The largest frequency that is used, in cycles per voxel.
    n_coefficients
        Coefficients that are used.
    n_left_out
        Coefficients of the sector in shells that are not used, because the halves do not agree there.
    frequency, correlation, correlation_error, shell_reliability, count
        The centres of all shells in cycles per voxel, the estimate in each with its error, the reliability of the mean,
        and the number of coefficients.
    """

    estimate: float
    error: float
    noise_error: float
    raw: float
    reliability: float
    power: float
    limit: float
    n_coefficients: int
    n_left_out: int
    frequency: Tensor
    correlation: Tensor
    correlation_error: Tensor
    shell_reliability: Tensor
    count: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the estimate."""
        return self.estimate - 1.96 * self.error, self.estimate + 1.96 * self.error

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them, with ``None`` in place of NaN."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def held_out_correlation(
    prediction: Array,
    first: Array,
    second: Array,
    sector: Tensor,
    *,
    n_shells: int | None = None,
    threshold: float = 0.143,
) -> HeldOutCorrelation:
    """Estimate the correlation of a prediction with the truth in a sector whose noise it has never seen.

    The shells are used from the first one on, up to the one about which the halves correlate less than ``threshold``
    in the sector: beyond it the reliability is not known well enough to divide by it. If the halves hardly agree at
    all, no shell is used and the estimate is NaN.

    The error is that of the jackknife over groups of blocks of Fourier coefficients, because noise that is stationary
    in the volume is independent from coefficient to coefficient, and not from voxel to voxel. It also holds how much
    the prediction's quality varies between coefficients, so that about the truth in this very sector it is cautious. It
    is never less than the error that the noise alone causes.

    What both halves have in common counts as truth, also an artefact.

    Parameters
    ----------
    prediction
        A volume ``(z, y, x)``, on any intensity scale.
    first, second
        The halves as measured, both on one scale.
    sector
        The mask of the sector, as for :func:`fourier_shell_correlation`.
    n_shells
        As for :func:`fourier_shell_correlation`.
    threshold
        The least correlation of the halves.

    Raises
    ------
    ValueError
        If the volumes differ in shape or are not ``(z, y, x)``.

    Examples
    --------
    >>> from equitomo.metrics import region_masks
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth, error, *noise = torch.randn(4, 32, 32, 32, generator=generator)
    >>> sector = region_masks(truth.shape, (-60.0, 60.0)).wedge
    >>> result = held_out_correlation(truth + error, truth + noise[0], truth + noise[1], sector)
    >>> abs(result.estimate - 0.5**0.5) < 2 * result.error
    True
    """
    return correlation_of(_sums(prediction, first, second, sector, n_shells), threshold)


def correlation_of(sums: GroupSums, threshold: float) -> HeldOutCorrelation:
    """Return what follows from the sums of a prediction and two measurements."""
    product, power, mean, signal, *_ = sums
    count, used = sums.counts, sums.used(threshold)
    n = len(count)
    estimate, error = jackknifed(*(part[:, used].sum(1, keepdim=True) for part in (product, power, signal)))
    correlation, correlation_error = jackknifed(product, power, signal)
    # Of few groups the jackknife is now and then too small by chance.
    terms = noise_terms(product.sum(0), power.sum(0), signal.sum(0), sums.halves.sum(0), count)
    by_noise = error_by_noise(*(term[used].sum(0, keepdim=True) for term in terms))
    error = error.maximum(by_noise)
    correlation_error = correlation_error.maximum(error_by_noise(*terms))
    hidden = torch.full_like(correlation, math.nan)
    total = {"product": product, "power": power, "mean": mean, "signal": signal}
    total_used = {name: float(sums[:, used].sum()) for name, sums in total.items()}
    frequency = torch.arange(1, n + 1, dtype=torch.float64) / (2 * n)
    return HeldOutCorrelation(
        estimate=float(estimate),
        error=float(error),
        noise_error=float(by_noise),
        raw=_ratio(total_used["product"], math.sqrt(total_used["power"] * total_used["mean"])),
        reliability=_ratio(total_used["signal"], total_used["mean"]),
        power=_ratio(total_used["power"], total_used["signal"]),
        limit=float(frequency[used][-1]) if used.any() else 0.0,
        n_coefficients=int(count[used].sum()),
        n_left_out=int(count[~used].sum()),
        frequency=frequency,
        correlation=correlation.where(used, hidden),
        correlation_error=correlation_error.where(used, hidden),
        shell_reliability=(signal.sum(0) / mean.sum(0)).where(count > 0, hidden),
        count=count,
    )


def held_out_difference(
    one: Array,
    other: Array,
    first: Array,
    second: Array,
    sector: Tensor,
    *,
    n_shells: int | None = None,
    threshold: float = 0.143,
) -> tuple[float, float]:
    r"""Return by how much one prediction correlates better with the truth than another, and the standard error of that.

    The value is the difference of the two estimates of :func:`held_out_correlation`. Its error is less than theirs,
    because both predictions are compared with the same noisy halves. It is that of the jackknife in which both lose
    the same blocks, and never less than what the noise alone causes: with :math:`q = p_1/\|p_1\| - p_2/\|p_2\|` the
    difference is

    .. math:: \hat c_1 - \hat c_2 = \frac{\langle q, \bar y \rangle}{\sqrt{\langle y_0, y_1 \rangle}}.

    Parameters
    ----------
    one, other
        Two predictions ``(z, y, x)`` that have never seen the noise of the sector.
    first, second, sector, n_shells, threshold
        As for :func:`held_out_correlation`.

    Raises
    ------
    ValueError
        As :func:`held_out_correlation`.

    Examples
    --------
    >>> from equitomo.metrics import region_masks
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth, error, *noise = torch.randn(4, 32, 32, 32, generator=generator)
    >>> halves = truth + noise[0], truth + noise[1]
    >>> sector = region_masks(truth.shape, (-60.0, 60.0)).wedge
    >>> difference, error = held_out_difference(truth + error, truth + 1.1 * error, *halves, sector)
    >>> 0 < difference and error < held_out_correlation(truth + error, *halves, sector).error / 3
    True
    """
    a, b = (_sums(prediction, first, second, sector, n_shells) for prediction in (one, other))
    used = a.used(threshold)
    common = products_in_shells(one, other, sector, len(a.counts))
    signal = a.signal[:, used].sum(1, keepdim=True)
    sums = [(part.product[:, used].sum(1, keepdim=True), part.power[:, used].sum(1, keepdim=True)) for part in (a, b)]
    (better, replicates), (worse, other_replicates) = (replicated(*pair, signal) for pair in sums)
    # What an empty prediction contributes is zero.
    n_a, n_b = (power.sum().where(power.sum() > 0, math.inf) for _, power in sums)
    product = a.product.sum(0) / n_a.sqrt() - b.product.sum(0) / n_b.sqrt()
    power = a.power.sum(0) / n_a + b.power.sum(0) / n_b - 2 * common / (n_a * n_b).sqrt()
    terms = noise_terms(product, power.clamp(min=0), a.signal.sum(0), a.halves.sum(0), a.counts)
    product, _, *others = (term[used].sum(0, keepdim=True) for term in terms)
    # The powers are in q already.
    by_noise = error_by_noise(product, torch.ones_like(product), *others)
    error = jackknife_error(replicates - other_replicates, signal != 0).maximum(by_noise)
    return float(better - worse), float(error)


def _sums(prediction: Array, first: Array, second: Array, sector: Tensor, n_shells: int | None) -> GroupSums:
    """Return the sums of a prediction and the halves."""
    if not first.shape == second.shape == prediction.shape:
        shapes = ", ".join(str(tuple(volume.shape)) for volume in (prediction, first, second))
        raise ValueError(f"the prediction and the halves must have one shape, got {shapes}")
    p, one, other = map(as_batch, (prediction, first, second))
    shape: Shape = (p.shape[-3], p.shape[-2], p.shape[-1])
    n = number_of_shells(shape, n_shells)
    sums = GroupSums.of(p, one, other, block_labels(shape, n, sector, p.device), n)
    return sums.without_rounding(float(p.double().square().sum()))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [_plain(one) for one in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value
