r"""How sure a reconstruction is, voxel by voxel, estimated from the network and the data alone.

Three estimates of the variance of :math:`x^\star = f(y)` are given. None of them knows the truth, and each sees another
part of the error; ``benchmarks/calibration.py`` compares them with the truth of simulations.

- :class:`EquivariantBootstrap` (:cite:t:`tachella2024equivariant`): the reconstruction is turned, measured again with
  new noise, reconstructed and turned back,

  .. math:: y_b = A R_g x^\star + n_b, \qquad x_b = R_g^{-1} f(y_b), \qquad
            \hat v = \tfrac1N \sum_b (x_b - x^\star)^2 .

  A turned specimen is as likely as the specimen itself, so the error of :math:`x_b`, which is known, stands for the
  error of :math:`x^\star`, also in the wedge.
- :class:`OrbitDeviation`: the same without noise, and the spread about the mean: how far the network contradicts itself
  when the wedge lies elsewhere.
- :func:`halves_variance`: the difference between the reconstructions of the two halves. It sees the noise, and nothing
  of what both have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepinv.models import Reconstructor
from deepinv.physics import NoiseModel, Physics
from deepinv.transform import Transform
from torch import Tensor

from equitomo.checks import require_volumes
from equitomo.geometry import Geometry, as_geometry
from equitomo.methods import exchange_tilts

Model = Callable[[Tensor, Any], Tensor]


class HalvesNoise(NoiseModel):  # type: ignore[misc]
    r"""Make noisy halves of a volume with the noise that real halves have.

    With :math:`d = \tfrac12 (y_0 - y_1)`, the noise of the mean of the halves, and random signs :math:`S` for the
    sectors between the tilts, as in :func:`equitomo.methods.exchange_tilts`,

    .. math:: x \mapsto (x + S d + S' d,\; x + S d - S' d) .

    The noise of different tilts is independent, so other signs make other noise of the same power at every
    frequency. The two halves have that of the given ones, and their mean that of the mean.

    Parameters
    ----------
    first, second
        The halves, ``(z, y, x)``.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    rng
        The generator to draw with, on the CPU; ``None`` takes torch's own.

    Examples
    --------
    >>> first, second = torch.randn(2, 8, 8, 8)
    >>> noise = HalvesNoise(first, second, (-60.0, 60.0), torch.Generator().manual_seed(0))
    >>> noise(torch.zeros(1, 1, 8, 8, 8)).shape
    torch.Size([1, 2, 8, 8, 8])
    """

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        geometry: Geometry | tuple[float, float],
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__(rng=rng)
        if first.ndim != 3 or first.shape != second.shape:
            raise ValueError(
                f"`first` and `second` must be (z, y, x) and of one shape, got {tuple(first.shape)} and "
                f"{tuple(second.shape)}"
            )
        self.register_buffer("halves", torch.stack((first, second))[None])
        self.geometry = as_geometry(geometry)

    def forward(self, input: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:  # noqa: A002
        """Return two halves ``(batch, 2, z, y, x)`` of volumes ``(batch, 1, z, y, x)``."""
        require_volumes(input)
        self.rng_manual_seed(seed)
        common, opposite = self._drawn(len(input)), self._drawn(len(input))
        return input + torch.cat((common + opposite, common - opposite), dim=1)

    def _drawn(self, n: int) -> Tensor:
        """Return noise of the mean of the halves, ``(n, 1, z, y, x)``."""
        exchanged = exchange_tilts(self.halves.expand(n, -1, -1, -1, -1), self.geometry, self.rng)
        return (exchanged[:, :1] - exchanged[:, 1:]) / 2


class EquivariantBootstrap(Reconstructor):  # type: ignore[misc]
    """Reconstruct, and estimate the mean square error of each voxel by the equivariant bootstrap.

    As deepinv's samplers do, it returns the estimate and a variance.

    Parameters
    ----------
    model
        A reconstruction ``model(y, physics)``, as every :class:`deepinv.models.Reconstructor` is.
    transform
        The transforms under which the specimen is as likely as itself, such as
        :meth:`equitomo.CubeRotationGroup.moving`. Of its ``n_trans`` drawn at a time, one after the other is used.
    n_samples
        The number of bootstrap samples.

    Raises
    ------
    ValueError
        If ``n_samples`` is too small.

    Examples
    --------
    >>> from equitomo import CubeRotationGroup, MissingWedgeOperator
    >>> from deepinv.physics import GaussianNoise
    >>> physics = MissingWedgeOperator((8, 8, 8), (-60.0, 60.0), noise_model=GaussianNoise(0.1))
    >>> bootstrap = EquivariantBootstrap(lambda y, physics: y, CubeRotationGroup(), n_samples=4)
    >>> x, variance = bootstrap(physics(torch.randn(1, 1, 8, 8, 8)), physics)
    >>> variance.shape
    torch.Size([1, 1, 8, 8, 8])
    """

    _least = 1

    def __init__(self, model: Model, transform: Transform, *, n_samples: int = 8) -> None:
        super().__init__()
        if n_samples < self._least:
            raise ValueError(f"`n_samples` must be at least {self._least}, got {n_samples}")
        self.model, self.transform, self.n_samples = model, transform, n_samples

    @torch.no_grad()
    def forward(self, y: Tensor, physics: Physics, seed: int | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the estimate and the variance of its voxels.

        Parameters
        ----------
        y
            The measurements.
        physics
            The operator, whose noise model makes the noise of the samples.
        seed
            The seed for the transforms and for the noise, if that has a generator.
        """
        if seed is not None:
            self.transform.rng.manual_seed(seed)
            if getattr(physics.noise_model, "rng", None) is not None:
                physics.noise_model.rng_manual_seed(seed)
        x = self.model(y, physics)
        return x, self.variance(self.deviations(x, physics))

    def deviations(self, x: Tensor, physics: Physics) -> Iterator[Tensor]:
        """Yield for each sample what the model makes of the estimate, measured once more, less the estimate."""
        drawn: list[dict[str, Any]] = []
        for _ in range(self.n_samples):
            if not drawn:
                params = self.transform.get_params(x)
                drawn = [{name: value[[n]] for name, value in params.items()} for n in range(self.transform.n_trans)]
            own = drawn.pop(0)
            y = self.measured(self.transform.transform(x, **own), physics)
            yield self.transform.inverse(self.model(y, physics), **own) - x

    def measured(self, x: Tensor, physics: Physics) -> Tensor:
        """Return new measurements of a volume."""
        y: Tensor = physics(x)
        return y

    def variance(self, deviations: Iterator[Tensor]) -> Tensor:
        """Return the variance of deviations: their mean square, because they are errors."""
        return sum(deviation.square() for deviation in deviations) / self.n_samples  # type: ignore[return-value]


class OrbitDeviation(EquivariantBootstrap):
    """Reconstruct, and measure how far the reconstructions of turned specimens contradict each other.

    The samples are those of :class:`EquivariantBootstrap` without noise, and the variance is that about their mean.

    Parameters
    ----------
    model, transform, n_samples
        As for :class:`EquivariantBootstrap`; at least two samples.
    """

    _least = 2

    def measured(self, x: Tensor, physics: Physics) -> Tensor:
        """Return measurements without noise."""
        y: Tensor = physics.A(x)
        return y

    def variance(self, deviations: Iterator[Tensor]) -> Tensor:
        """Return the variance of the deviations about their mean."""
        mean = squares = torch.zeros(())
        for n, deviation in enumerate(deviations, 1):
            change = deviation - mean.to(deviation)
            mean = mean.to(deviation) + change / n
            squares = squares.to(deviation) + change * (deviation - mean)
        return squares / (self.n_samples - 1)


def halves_variance(first: Tensor, second: Tensor) -> Tensor:
    r"""Return the variance of the mean of two independent reconstructions, :math:`\tfrac14 (f(y_0) - f(y_1))^2`.

    From two values a variance is no more than guessed: average it over neighbours before it is looked at.

    Examples
    --------
    >>> halves_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor([0., 1.])
    """
    return (first - second).square() / 4
