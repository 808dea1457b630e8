"""The error of a result for one half against the other half: a measure on data without the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.geometry import Geometry
from equitomo.metrics.differentiable import FourierMetric, Region
from equitomo.metrics.regions import inside, region_masks, region_sums

# Standard deviations in voxels of the Gaussian filters to choose from.
_SIGMAS = np.arange(0, 4.01, 0.1).tolist()


class CrossHalfError(FourierMetric):
    r"""Mean square of the difference of a result for one half to the other half, relative to that of the halves.

    .. math:: \frac{\lVert A (f(y_0) - y_1) \rVert^2 + \lVert A (f(y_1) - y_0) \rVert^2}
        {2\, \lVert A (y_0 - y_1) \rVert^2}

    The lower the better. The result for one half has not seen the noise of the other one. For halves with the same
    signal and independent noise the expectation is

    .. math:: \frac12 + \frac{\text{error power of the result}}{\text{noise power of a half}} \cdot \frac12 ,

    so it is 1 for halves that are returned as they are, and 1/2 for the truth. This holds for voxels that the network
    was not trained on: on those of the training it may have learned the noise by heart. Only the measured part of
    Fourier space is compared, because the halves say nothing about the wedge.

    Parameters
    ----------
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    second_geometry
        The tilts of the second half where they differ. Only what both halves measure is compared.
    taper, **kwargs
        As for :class:`~equitomo.metrics.FourierMetric`.

    Examples
    --------
    >>> x, noise = torch.randn(1, 1, 32, 32, 32), torch.randn(1, 2, 32, 32, 32)
    >>> metric = CrossHalfError((-60.0, 60.0))
    >>> y = x + noise
    >>> round(metric(y, y).item(), 6)
    1.0
    >>> bool((metric(x.expand_as(y), y) - 0.5).abs() < 0.05)
    True
    """

    def __init__(
        self,
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        second_geometry: Geometry | tuple[float, float] | None = None,
        taper: int = 0,
        **kwargs: Any,
    ) -> None:
        region: Region = "overall" if geometry is None else "measured"
        super().__init__(geometry, region=region, taper=taper, **kwargs)
        self.second_geometry = second_geometry
        self.lower_better = True

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the error of each sample, ``(batch,)``, of results and halves ``(batch, 2, z, y, x)``."""
        results, halves = self._tapered_pair(x_net, x)
        if halves.shape[1] != 2:
            raise ValueError(f"two halves are needed, (batch, 2, z, y, x), got {tuple(x.shape)}")
        labels = inside(spatial_shape(halves.shape[1:]), self._mask(halves), halves.device)
        error = results - halves.flip(1)
        noise = halves[:, :1] - halves[:, 1:]
        errors, noises = (region_sums(one, one, labels, 1).first[:, 0] for one in (error, noise))
        return (errors / (2 * noises)).to(torch.promote_types(x_net.dtype, torch.float32))

    def _mask(self, x: Tensor) -> Tensor | None:
        if self.geometry is None:
            return None
        return region_masks(x.shape[-3:], self.geometry, second_geometry=self.second_geometry, device=x.device).measured


class RowsToBeat(NamedTuple):
    """The :class:`CrossHalfError` of what needs no training.

    ``gaussian`` is that of the halves after the Gaussian filter that does best, whose standard deviation in voxels is
    ``sigma``; ``nothing`` is that of volumes of zeros.
    """

    gaussian: float
    sigma: float
    nothing: float


def rows_to_beat(halves: Tensor, metric: CrossHalfError, sigmas: Sequence[float] = _SIGMAS) -> RowsToBeat:
    """Return the errors that a network must beat on two halves ``(2, z, y, x)``.

    The standard deviation of the filter is chosen on these halves themselves, so the filter is better than one that a
    user could choose. The result for zeros is 1/2 plus half of the signal-to-noise ratio of a half.

    Examples
    --------
    >>> smooth = torch.ones(32, 32, 32).cumsum(0).sin()
    >>> rows = rows_to_beat(smooth + torch.randn(2, 32, 32, 32), CrossHalfError())
    >>> 0.5 < rows.gaussian < 0.8 and rows.sigma > 0.3 and rows.nothing > rows.gaussian
    True
    """
    shape, y = spatial_shape(halves.shape[1:]), halves[None]
    spectrum, radius = rfftn(y), frequency_radius(shape, device=halves.device)

    def error(sigma: float) -> float:
        kernel = torch.exp(-2 * (torch.pi * sigma * radius) ** 2).to(spectrum.real.dtype)
        return float(metric(irfftn(spectrum * kernel, shape), y))

    gaussian, sigma = min((error(sigma), sigma) for sigma in sigmas)
    return RowsToBeat(gaussian, sigma, float(metric(torch.zeros_like(y), y)))


def relative_error(error: float, nothing: float) -> float:
    """Return the power of a result's error relative to that of the signal in the measured part, from two errors.

    Examples
    --------
    >>> relative_error(0.5, nothing=0.9), relative_error(0.9, nothing=0.9)
    (0.0, 1.0)
    """
    return (error - 0.5) / (nothing - 0.5)
