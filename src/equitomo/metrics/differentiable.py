"""The scores as metrics of deepinv: batched, differentiable, one number per sample."""

from __future__ import annotations

from typing import Any, Literal

import torch
from deepinv.loss.metric import Metric
from torch import Tensor, nn

from equitomo.checks import require_volumes, spatial_shape
from equitomo.fourier import cosine_taper
from equitomo.geometry import Geometry
from equitomo.metrics.correlation import number_of_shells
from equitomo.metrics.regions import inside, region_masks, region_sums, shells
from equitomo.metrics.wedge_energy import energy_in_parts

Region = Literal["overall", "measured", "wedge"]


# deepinv carries no types: nn.Module is named so that type checkers know the methods.
class FourierMetric(Metric, nn.Module):  # type: ignore[misc]
    """The base of the metrics below, for volumes ``(batch, C, z, y, x)``.

    A metric returns one value per sample, ``(batch,)``, in the precision of the volumes but at least float32. The
    channels of a sample are compared together, like one longer volume. All values are differentiable with respect to
    both volumes.

    Parameters
    ----------
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    region
        The frequencies to look at: ``"overall"`` up to Nyquist, only their ``"measured"`` part, or only the missing
        ``"wedge"``. The latter two need the geometry.
    taper
        Subtract the mean of each volume and let it fall to zero towards its faces over this many voxels, see
        :func:`equitomo.fourier.cosine_taper`. Use it for volumes that were cut out of something larger; 0 compares
        them as they are.
    **kwargs
        Arguments of :class:`deepinv.loss.metric.Metric`, such as ``reduction``, ``train_loss`` and ``center_crop``.

    Raises
    ------
    ValueError
        If a region needs a geometry and there is none, or there is no such region.
    """

    def __init__(
        self,
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        region: Region = "overall",
        taper: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if region not in ("overall", "measured", "wedge"):
            raise ValueError(f"`region` must be 'overall', 'measured' or 'wedge', got {region!r}")
        if region != "overall" and geometry is None:
            raise ValueError(f"`region={region!r}` depends on the tilts: pass `geometry`")
        self.geometry, self.region, self.taper = geometry, region, taper
        self.lower_better = False

    def invert_metric(self, m: Tensor) -> Tensor:
        """Return ``1 - m``, which is smallest for the best value."""
        return 1 - m

    def _mask(self, x: Tensor) -> Tensor | None:
        """Return the mask of the region; ``None`` for all frequencies."""
        if self.region == "overall" or self.geometry is None:
            return None
        mask: Tensor = getattr(region_masks(x.shape[-3:], self.geometry, device=x.device), self.region)
        return mask

    def _tapered(self, x: Tensor, name: str) -> Tensor:
        require_volumes(x, name)
        if not self.taper:
            return x
        return (x - x.mean((-3, -2, -1), keepdim=True)) * cosine_taper(x.shape[-3:], self.taper).to(x)

    def _tapered_pair(self, x_net: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self._tapered(x_net, "x_net"), self._tapered(x, "x")
        if first.shape != second.shape:
            raise ValueError(f"`x_net` and `x` must have the same shape, got {tuple(x_net.shape)} and {tuple(x.shape)}")
        return first, second


class MeanFSC(FourierMetric):
    r"""Mean of the Fourier shell correlation over its shells; the higher the better, 1 for equal volumes.

    .. math:: \frac1n \sum_{i=1}^{n} \mathrm{FSC}(S_i)

    See :func:`fourier_shell_correlation`. Shells in which the region has no coefficient are left out. The resolution,
    where the curve crosses a threshold, jumps from shell to shell and is not differentiable; this mean is.

    Parameters
    ----------
    geometry, region, taper, **kwargs
        As for :class:`FourierMetric`.
    n_shells
        Number of shells; ``None`` for half of the shortest side.

    Examples
    --------
    >>> x = torch.randn(2, 1, 16, 16, 16)
    >>> metric = MeanFSC((-60.0, 60.0), region="wedge")
    >>> metric(3 * x, x)
    tensor([1., 1.])
    """

    def __init__(
        self,
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        region: Region = "overall",
        n_shells: int | None = None,
        taper: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(geometry, region=region, taper=taper, **kwargs)
        self.n_shells = n_shells

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean correlation of each sample, ``(batch,)``."""
        first, second = self._tapered_pair(x_net, x)
        shape = spatial_shape(first.shape[1:])
        n = number_of_shells(shape, self.n_shells)
        sums = region_sums(first, second, shells(shape, n, self._mask(first), first.device), n)
        return _like(sums.correlation[:, sums.n_coefficients > 0].mean(-1), first)


class FourierCorrelation(FourierMetric):
    r"""Normalised correlation over a region of Fourier space; the higher the better, 1 for equal volumes.

    .. math:: \frac{\sum_{k} \operatorname{Re} F_1(k)\, \overline{F_2(k)}}
        {\sqrt{\sum_{k} |F_1(k)|^2 \; \sum_{k} |F_2(k)|^2}}

    See :func:`fourier_correlation`. It does not depend on the contrast of the volumes.

    Parameters
    ----------
    geometry, region, taper, **kwargs
        As for :class:`FourierMetric`.

    Examples
    --------
    >>> x, noise = torch.randn(2, 3, 1, 16, 16, 16)
    >>> metric = FourierCorrelation((-60.0, 60.0), region="measured", train_loss=True, reduction="mean")
    >>> loss = metric(x + noise, x)  # 1 minus the correlation, averaged over the batch
    >>> loss.shape, bool(abs(loss - (1 - 0.5**0.5)) < 0.05)
    (torch.Size([]), True)
    """

    def metric(self, x_net: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the correlation of each sample, ``(batch,)``."""
        first, second = self._tapered_pair(x_net, x)
        labels = inside(spatial_shape(first.shape[1:]), self._mask(first), first.device)
        return _like(region_sums(first, second, labels, 1).correlation[:, 0], first)


class WedgeEnergyFraction(FourierMetric):
    """Share of a volume's energy that lies in the missing wedge, without a reference.

    See :func:`wedge_energy_fraction`. A filtered backprojection has none, and a reconstruction as isotropic as white
    noise has the wedge's share of the coefficients. More is better only up to there, and the share does not tell
    whether the right structure fills the wedge: noise fills it as well.

    Parameters
    ----------
    geometry, taper, **kwargs
        As for :class:`FourierMetric`.

    Examples
    --------
    >>> share = WedgeEnergyFraction((-60.0, 60.0))(torch.randn(2, 1, 32, 32, 32))
    >>> bool((share - 0.33).abs().max() < 0.05)
    True
    """

    def __init__(self, geometry: Geometry | tuple[float, float], *, taper: int = 0, **kwargs: Any) -> None:
        super().__init__(geometry, taper=taper, **kwargs)
        self._tilts = geometry

    def metric(self, x_net: Tensor, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Return the wedge's share of the energy of each sample, ``(batch,)``; ``x`` is ignored."""
        volumes = self._tapered(x_net, "x_net")
        energy, _ = energy_in_parts(volumes, self._tilts)
        return _like(energy[:, 1] / energy.sum(-1), volumes)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """Return a value in the precision of volumes, but at least float32."""
    return value.to(torch.promote_types(x.dtype, torch.float32))
