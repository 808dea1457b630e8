"""Sums over the shells of a sector of Fourier space, with the errors of estimates that are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equitomo.metrics.correlation import number_of_shells
from equitomo.metrics.regions import Array, Labels, as_batch, region_sums, shells
from equitomo.volumes import Shape

# Neighbouring coefficients are not independent: a specimen that fills a part of the volume ties them together. Blocks
# of so many along each axis, with their mirror images, are left out together to find the error.
_BLOCK = 3
# A prime number, so that the blocks of a group lie apart.
_N_GROUPS = 101
_FACTORS = (7919, 104729, 1299709)
# The least correlation of the halves in all shells together, in standard deviations of that of noise.
_SIGNIFICANT = 5.0
# A prediction with less than this part of its power in the sector has left it empty, up to rounding.
_EMPTY = 1e-10


@dataclass(frozen=True)
class SectorSums:
    """Sums over the sector for each group of blocks (rows) and each shell (columns)."""

    shape: Shape
    n_shells: int
    product: Tensor
    power: Tensor
    mean: Tensor
    signal: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    @classmethod
    def of(cls, prediction: Array, first: Array, second: Array, sector: Tensor, n_shells: int | None) -> SectorSums:
        """Return the sums of a prediction and the halves; a prediction that is empty in the sector has none."""
        if not first.shape == second.shape == prediction.shape:
            shapes = ", ".join(str(tuple(volume.shape)) for volume in (prediction, first, second))
            raise ValueError(f"the prediction and the halves must have one shape, got {shapes}")
        p, one, other = map(as_batch, (prediction, first, second))
        shape: Shape = (p.shape[-3], p.shape[-2], p.shape[-1])
        n = number_of_shells(shape, n_shells)
        labels = _labels(shape, n, sector, p.device)
        halves = region_sums(one, other, labels, n * _N_GROUPS)
        filled = region_sums(p, (one + other) / 2, labels, n * _N_GROUPS)
        product, power, mean, signal, a, b = (
            sums.reshape(_N_GROUPS, n)
            for sums in (filled.cross, filled.first, filled.second, halves.cross, halves.first, halves.second)
        )
        count = filled.n_coefficients.reshape(_N_GROUPS, n).sum(0)
        if float(power.sum()) <= _EMPTY * float(p.double().square().sum()):
            product, power = torch.zeros_like(product), torch.zeros_like(power)
        return cls(shape, n, product, power, mean, signal, a, b, count)

    @property
    def halves(self) -> Tensor:
        """The power of both halves."""
        return self.first + self.second

    def with_other(self, one: Array, other: Array, sector: Tensor) -> Tensor:
        """Return the products of two predictions in the shells."""
        a, b = as_batch(one), as_batch(other)
        labels = _labels(self.shape, self.n_shells, sector, a.device)
        products = region_sums(a, b, labels, self.n_shells * _N_GROUPS).cross
        return products.reshape(_N_GROUPS, self.n_shells).sum(0)

    def used(self, threshold: float) -> Tensor:
        """Return the shells that are used."""
        return _used(self.signal.sum(0), self.first.sum(0), self.second.sum(0), self.count, threshold)


def _labels(shape: Shape, n_shells: int, sector: Tensor, device: torch.device) -> Labels:
    """Return the labels of the shells of each group of blocks, one group after the other."""
    shell = shells(shape, n_shells, sector, device)
    # A block holds both signs of its frequencies: the two coefficients of a pair of opposite ones are the same number.
    z, y, x = (torch.arange(length, device=device) for length in (shape[0], shape[1], shape[2] // 2 + 1))
    blocks = (z.minimum(shape[0] - z), y.minimum(shape[1] - y), x)
    hashed = [factor * (index // _BLOCK) for factor, index in zip(_FACTORS, blocks, strict=True)]

    def labels(section: slice) -> Tensor:
        of_shell = shell(section)
        group = (hashed[0][section, None, None] + hashed[1][:, None] + hashed[2]) % _N_GROUPS
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
