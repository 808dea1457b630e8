"""Metrics of deepinv that judge a result and cannot train a network, because they are not differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.geometry import Geometry
from equitomo.metrics.correlation import FourierShellCorrelation, number_of_shells
from equitomo.metrics.differentiable import FourierMetric, Region
from equitomo.metrics.held_out_sector import held_out_correlation
from equitomo.metrics.regions import region_sums, shells


class _Judgement(FourierMetric):
    """The base of the metrics below."""

    def __init__(self, geometry: Geometry | tuple[float, float] | None = None, **kwargs: Any) -> None:
        super().__init__(geometry, **kwargs)
        if self.train_loss:
            raise ValueError(
                f"{type(self).__name__} is not differentiable and cannot be a loss: leave out `train_loss`, or take "
                "MeanFSC or FourierCorrelation"
            )


class FSCResolution(_Judgement):
    r"""Where the Fourier shell correlation first falls below a threshold, in Å or in voxels; the lower the better.

    See :meth:`FourierShellCorrelation.resolution`. The channels of a sample are compared together.

    Parameters
    ----------
    geometry, region, taper, **kwargs
        As for :class:`FourierMetric`, without ``train_loss``.
    threshold
        0.143 for two half data sets, 0.5 for a volume and its reference.
    voxel_size
        Å per voxel; ``None`` gives voxels.
    n_shells
        Number of shells; ``None`` for half of the shortest side.

    Raises
    ------
    ValueError
        As :class:`FourierMetric`, or with ``train_loss``: :class:`MeanFSC` is differentiable.

    Examples
    --------
    >>> x = torch.randn(2, 1, 16, 16, 16)
    >>> FSCResolution((-60.0, 60.0), region="measured", voxel_size=10.0)(x, x)
    tensor([20., 20.])
    """

    def __init__(
        self,
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        threshold: float = 0.5,
        voxel_size: float | None = None,
        region: Region = "overall",
        n_shells: int | None = None,
        taper: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(geometry, region=region, taper=taper, **kwargs)
        self.threshold, self.voxel_size, self.n_shells = threshold, voxel_size, n_shells
        self.lower_better = True

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the resolution of each sample, ``(batch,)``; NaN where a volume has no power."""
        first, second = self._tapered_pair(x_net, x)
        shape = spatial_shape(first.shape[1:])
        n = number_of_shells(shape, self.n_shells)
        sums = region_sums(first, second, shells(shape, n, self._mask(first), first.device), n)
        frequency = torch.arange(1, n + 1, dtype=torch.float64) / (2 * n)
        curves = (
            FourierShellCorrelation(frequency, one, sums.n_coefficients, self.voxel_size) for one in sums.correlation
        )
        return _values([curve.resolution(self.threshold) for curve in curves], first)


class HeldOutSectorCorrelation(_Judgement):
    """Estimated correlation with the truth in a sector whose noise a prediction has not seen; the higher the better.

    See :func:`held_out_correlation`, which also gives the error of the estimate. ``x_net`` are predictions
    ``(batch, 1, z, y, x)``, and the reference ``x`` are the two halves as measured, ``(batch, 2, z, y, x)``.

    Parameters
    ----------
    sector
        The mask of the sector on the half spectrum, as for :func:`fourier_shell_correlation`; of a pair of halves that
        of :func:`equitomo.datasets.hold_out_sector`.
    threshold, n_shells
        As for :func:`held_out_correlation`.
    **kwargs
        Arguments of :class:`deepinv.loss.metric.Metric`, without ``train_loss``.

    Raises
    ------
    ValueError
        If there are not two halves for one prediction, shapes differ, or with ``train_loss``.

    Examples
    --------
    >>> from equitomo.metrics import region_masks
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, *noise = torch.randn(3, 2, 1, 32, 32, 32, generator=generator)
    >>> halves = torch.cat([x + one for one in noise], dim=1)
    >>> metric = HeldOutSectorCorrelation(region_masks((32, 32, 32), (-60.0, 60.0)).wedge)
    >>> bool((metric(x, halves) - 1).abs().max() < 0.1)
    True
    """

    def __init__(self, sector: Tensor, *, threshold: float = 0.143, n_shells: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sector, self.threshold, self.n_shells = sector, threshold, n_shells

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the estimate for each sample, ``(batch,)``; NaN where the halves do not agree in the sector."""
        predictions, halves = self._tapered(x_net, "x_net"), self._tapered(x, "x")
        if predictions.shape[1] != 1 or halves.shape[1] != 2 or len(predictions) != len(halves):
            raise ValueError(
                "a prediction (batch, 1, z, y, x) and two halves (batch, 2, z, y, x) are needed, got "
                f"{tuple(x_net.shape)} and {tuple(x.shape)}"
            )
        found = []
        for (one,), (first, second) in zip(predictions.detach(), halves.detach(), strict=True):
            result = held_out_correlation(
                one, first, second, self.sector, n_shells=self.n_shells, threshold=self.threshold
            )
            found.append(result.estimate)
        return _values(found, predictions)


def _values(found: list[float], x: Tensor) -> Tensor:
    """Return one value for each sample in the precision of volumes, but at least float32."""
    return torch.tensor(found, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
