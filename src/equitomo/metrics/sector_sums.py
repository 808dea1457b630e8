"""Sums over the shells or rings of a part of Fourier space, with the errors of estimates that are made of them."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

from equitomo.metrics.regions import Array, Labels, as_batch, region_sums, shells
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
    first, second
        Those of each measurement with itself.
    n_coefficients
        The number of coefficients.
    """

    product: Tensor
    power: Tensor
    mean: Tensor
    signal: Tensor
    first: Tensor
    second: Tensor
    n_coefficients: Tensor

    @classmethod
    def of(cls, prediction: Tensor, first: Tensor, second: Tensor, labels: Labels, n_shells: int) -> Self:
        """Return the sums of a prediction and two measurements, batches ``(1, 1, z, y, x)``."""
        halves = region_sums(first, second, labels, n_shells * N_GROUPS)
        filled = region_sums(prediction, (first + second) / 2, labels, n_shells * N_GROUPS)
        sums = (filled.cross, filled.first, filled.second, halves.cross, halves.first, halves.second)
        return cls(*(one.reshape(N_GROUPS, n_shells) for one in (*sums, filled.n_coefficients)))

    def without_rounding(self, total_power: float) -> Self:
        """Return the same sums, with those of a prediction that is empty here but for rounding set to zero.

        ``total_power`` is the power of the prediction everywhere.
        """
        product, power = without_rounding(self.product, self.power, total_power)
        return self._replace(product=product, power=power)

    @property
    def halves(self) -> Tensor:
        """The power of both measurements."""
        return self.first + self.second

    @property
    def counts(self) -> Tensor:
        """The number of coefficients in each shell."""
        return self.n_coefficients.sum(0)

    def used(self, threshold: float) -> Tensor:
        """Return the shells that are used."""
        return _used(self.signal.sum(0), self.first.sum(0), self.second.sum(0), self.counts, threshold)


def without_rounding(product: Tensor, power: Tensor, total_power: float) -> tuple[Tensor, Tensor]:
    """Return the sums of a prediction, zeros if it has left empty what they are over."""
    if float(power.sum()) <= _EMPTY * total_power:
        return torch.zeros_like(product), torch.zeros_like(power)
    return product, power


def products_in_shells(one: Array, other: Array, sector: Tensor, n_shells: int) -> Tensor:
    """Return the products of two volumes ``(z, y, x)`` in the shells of a sector."""
    a, b = as_batch(one), as_batch(other)
    labels = block_labels((a.shape[-3], a.shape[-2], a.shape[-1]), n_shells, sector, a.device)
    products = region_sums(a, b, labels, n_shells * N_GROUPS).cross
    return products.reshape(N_GROUPS, n_shells).sum(0)


def block_labels(shape: Shape, n_shells: int, sector: Tensor, device: torch.device) -> Labels:
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
    estimate, without = replicated(product, power, signal)
    return estimate, jackknife_error(without, signal != 0)


def replicated(product: Tensor, power: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimate of all groups (rows), and the estimates without each of them."""

    def estimate(product: Tensor, power: Tensor, signal: Tensor) -> Tensor:
        found = product / (power * signal.where(signal > 0, math.nan)).sqrt()
        return found.where((power != 0) | ~(signal > 0), 0.0)

    full = [sums.sum(0) for sums in (product, power, signal)]
    return estimate(*full), estimate(
        *(total - sums for total, sums in zip(full, (product, power, signal), strict=True))
    )


def jackknife_error(without: Tensor, present: Tensor) -> Tensor:
    """Return the standard error of what has the values ``without`` each of the groups (rows) that are present."""
    # Groups without a coefficient would only dilute the rest.
    n = present.sum(0)
    centre = without.where(present, 0.0).sum(0) / n
    squares = (without - centre).square().where(present, 0.0).sum(0)
    return (squares * (n - 1) / n).sqrt().where(n > 1, math.nan)


def noise_terms(
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


def error_by_noise(
    product: Tensor, power: Tensor, signal: Tensor, of_product: Tensor, of_signal: Tensor, covariance: Tensor
) -> Tensor:
    """Return the standard error of the estimate that noise alone causes, to first order."""
    scale = (power * signal.clamp(min=0)).sqrt()
    estimate = product / scale
    variance = (
        of_product / scale**2 + estimate**2 * of_signal / (4 * signal**2) - estimate * covariance / (scale * signal)
    )
    return variance.clamp(min=0).sqrt().nan_to_num(0.0, posinf=0.0)
