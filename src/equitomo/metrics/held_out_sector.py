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
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from equitomo.metrics.correlation import number_of_shells
from equitomo.metrics.regions import Array, Labels, RegionSums, as_batch, region_sums, shells
from equitomo.volumes import Shape

# Neighbouring coefficients are not independent: a specimen that fills a part of the volume ties them together. Blocks
# of so many along each axis, with their mirror images, are left out together to find the error.
BLOCK = 3
# A prime number, so that the blocks of a group lie apart.
N_GROUPS = 101
FACTORS = (7919, 104729, 1299709)
# The least correlation of the halves in all shells together, in standard deviations of that of noise.
_SIGNIFICANT = 5.0
# A prediction with less than this part of its power in the sector has left it empty, up to rounding.
_EMPTY = 1e-10


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
    if not first.shape == second.shape == prediction.shape:
        shapes = ", ".join(str(tuple(volume.shape)) for volume in (prediction, first, second))
        raise ValueError(f"the prediction and the halves must have one shape, got {shapes}")
    p, one, other = map(as_batch, (prediction, first, second))
    shape: Shape = (p.shape[-3], p.shape[-2], p.shape[-1])
    n = number_of_shells(shape, n_shells)
    labels = _labels(shape, n, sector, p.device)
    halves = region_sums(one, other, labels, n * N_GROUPS)
    filled = region_sums(p, (one + other) / 2, labels, n * N_GROUPS)
    sums = GroupSums.of(filled, halves, n)
    return sums.estimated(threshold=threshold, total_power=float(p.double().square().sum()))


class GroupSums(NamedTuple):
    """Sums over the coefficients of each group of blocks (rows) in each shell (columns), in float64.

    Parameters
    ----------
    product, power
        Those of the prediction with the mean of two measurements, and with itself.
    mean
        Those of the mean of the measurements with itself.
    signal
        Those of one measurement with the other.
    one, other
        Those of each measurement with itself.
    n_coefficients
        The number of coefficients.
    """

    product: Tensor
    power: Tensor
    mean: Tensor
    signal: Tensor
    one: Tensor
    other: Tensor
    n_coefficients: Tensor

    @classmethod
    def of(cls, filled: RegionSums, halves: RegionSums, n_shells: int) -> Self:
        """Return the sums of a prediction with the mean of two measurements, and of these with each other."""
        sums = (filled.cross, filled.first, filled.second, halves.cross, halves.first, halves.second)
        return cls(*(one.reshape(N_GROUPS, n_shells) for one in (*sums, filled.n_coefficients)))

    def estimated(self, *, threshold: float, total_power: float) -> HeldOutCorrelation:
        """Return what follows from the sums; a prediction with next to nothing of its ``total_power`` here is empty."""
        product, power, mean, signal, one, other, counts = self
        count = counts.sum(0)
        n = len(count)
        used = _used(signal.sum(0), one.sum(0), other.sum(0), count, threshold)
        if float(power.sum()) <= _EMPTY * total_power:
            product, power = torch.zeros_like(product), torch.zeros_like(power)
        estimate, error = jackknifed(*(sums[:, used].sum(1, keepdim=True) for sums in (product, power, signal)))
        correlation, correlation_error = jackknifed(product, power, signal)
        # Of few groups the jackknife is now and then too small by chance.
        terms = _noise_terms(product.sum(0), power.sum(0), signal.sum(0), (one + other).sum(0), count)
        noise_error = _noise_error(*(term[used].sum(0, keepdim=True) for term in terms))
        error = error.maximum(noise_error)
        correlation_error = correlation_error.maximum(_noise_error(*terms))
        hidden = torch.full_like(correlation, math.nan)
        total = {"product": product, "power": power, "mean": mean, "signal": signal}
        total_used = {name: float(sums[:, used].sum()) for name, sums in total.items()}
        frequency = torch.arange(1, n + 1, dtype=torch.float64) / (2 * n)
        return HeldOutCorrelation(
            estimate=float(estimate),
            error=float(error),
            noise_error=float(noise_error),
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


def _labels(shape: Shape, n_shells: int, sector: Tensor, device: torch.device) -> Labels:
    """Return the labels of the shells of each group of blocks, one group after the other."""
    shell = shells(shape, n_shells, sector, device)
    # A block holds both signs of its frequencies: the two coefficients of a pair of opposite ones are the same number.
    z, y, x = (torch.arange(length, device=device) for length in (shape[0], shape[1], shape[2] // 2 + 1))
    blocks = (z.minimum(shape[0] - z), y.minimum(shape[1] - y), x)
    hashed = [factor * (index // BLOCK) for factor, index in zip(FACTORS, blocks, strict=True)]

    def labels(section: slice) -> Tensor:
        of_shell = shell(section)
        group = (hashed[0][section, None, None] + hashed[1][:, None] + hashed[2]) % N_GROUPS
        return (group * n_shells + of_shell).where(of_shell > 0, 0)

    return labels


def _used(signal: Tensor, first: Tensor, second: Tensor, count: Tensor, threshold: float) -> Tensor:
    """Return the shells up to the first about which the halves correlate less than the threshold."""
    # Single shells hold few coefficients: each is judged together with its neighbours.
    pooled = (torch.nn.functional.pad(sums, (1, 1)).unfold(0, 3, 1).sum(-1) for sums in (signal, first, second))
    cross, one, other = pooled
    agree = (cross >= threshold * (one * other).sqrt()) | (count == 0)
    used = agree.cumprod(0).bool() & (count > 0)
    # Of n coefficients of noise the standard deviation of the correlation is 1 / sqrt(n). Without this the first shells
    # of halves that have nothing in common would sometimes be taken for signal.
    cross, one, other, n = (sums[used].sum() for sums in (signal, first, second, count))
    return used & bool(cross * n.double().sqrt() >= _SIGNIFICANT * (one * other).sqrt())


def jackknifed(product: Tensor, power: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimate and its standard error for sums of groups (rows), one for each column."""

    def estimate(product: Tensor, power: Tensor, signal: Tensor) -> Tensor:
        found = product / (power * signal.where(signal > 0, math.nan)).sqrt()
        return found.where((power != 0) | ~(signal > 0), 0.0)

    full = [sums.sum(0) for sums in (product, power, signal)]
    # Groups without a coefficient would only dilute the rest.
    present = signal != 0
    n = present.sum(0)
    without = estimate(*(total - sums for total, sums in zip(full, (product, power, signal), strict=True)))
    centre = without.where(present, 0.0).sum(0) / n
    squares = (without - centre).square().where(present, 0.0).sum(0)
    error = (squares * (n - 1) / n).sqrt().where(n > 1, math.nan)
    return estimate(*full), error


def _noise_terms(
    product: Tensor, power: Tensor, signal: Tensor, halves: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Return the sums of each shell, and the variances and the covariance of two of them that noise alone causes.

    With :math:`m` the mean power of the noise of the mean of the halves in a shell of :math:`n` coefficients, to which
    both signs of a frequency contribute the same,

    .. math::

        \operatorname{Var} \langle p, \bar y \rangle = m \langle p, p \rangle, \quad
        \operatorname{Var} \langle y_0, y_1 \rangle = 4 m \langle x, x \rangle + 4 n m^2, \quad
        \operatorname{Cov} = 2 m \langle p, x \rangle.
    """
    noise = (halves - 2 * signal).clamp(min=0) / (4 * count.clamp(min=1))
    of_signal = 4 * noise * signal.clamp(min=0) + 4 * count * noise**2
    return product, power, signal, noise * power, of_signal, 2 * noise * product


def _noise_error(
    product: Tensor, power: Tensor, signal: Tensor, of_product: Tensor, of_signal: Tensor, covariance: Tensor
) -> Tensor:
    """Return the standard error of the estimate that noise alone causes, to first order."""
    scale = (power * signal.clamp(min=0)).sqrt()
    estimate = product / scale
    variance = (
        of_product / scale**2 + estimate**2 * of_signal / (4 * signal**2) - estimate * covariance / (scale * signal)
    )
    return variance.clamp(min=0).sqrt().nan_to_num(0.0, posinf=0.0)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [_plain(one) for one in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value
