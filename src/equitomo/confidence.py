"""A map of the standard deviation of a predicted tomogram, from a predictor and the halves."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from deepinv.models import Reconstructor
from torch import Tensor

from equitomo.deviation import PARTS, deviation_inputs, deviations, learned_deviation
from equitomo.geometry import Geometry, as_geometry
from equitomo.inference import TiledPredictor
from equitomo.physics import MissingWedgeOperator
from equitomo.transform import CubeRotationGroup
from equitomo.uncertainty import EquivariantBootstrap, HalvesNoise, OrbitDeviation, halves_variance
from equitomo.volumes import VolumeLike, as_voxels, blurred

Estimate = Literal["learned", "orbit", "halves", "bootstrap"]
# The width in voxels over which variances are averaged; see docs/benchmarks.md.
SMOOTHING = 1.0
# Volumes in float32 that are held at once: halves, result, a sample and its spectra, sums.
_HELD = {"learned": 20, "halves": 6, "orbit": 16, "bootstrap": 20}
_OF_SAMPLES = ("orbit", "bootstrap")


class TiledReconstructor(Reconstructor):  # type: ignore[misc]
    """Apply a predictor as deepinv applies a reconstruction, ``model(y, physics)``.

    Parameters
    ----------
    predictor
        The predictor, which has its own operator where it needs one.
    intensities
        Mean and deviation with which the volumes enter the network.

    Examples
    --------
    >>> predictor = TiledPredictor(torch.nn.Identity(), tile=16, margin=4, passes=1)
    >>> TiledReconstructor(predictor)(torch.randn(3, 2, 16, 16, 16), None).shape
    torch.Size([3, 1, 16, 16, 16])
    """

    def __init__(self, predictor: TiledPredictor, intensities: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.predictor, self.intensities = predictor, intensities

    def forward(self, y: Tensor, physics: Any = None, **kwargs: Any) -> Tensor:
        """Return volumes ``(batch, 1, z, y, x)`` of one view or two halves ``(batch, views, z, y, x)``."""
        made = [self.predictor(*sample.unbind(), intensities=self.intensities) for sample in y]
        return torch.stack(made)[:, None]


def confidence_map(
    predictor: TiledPredictor,
    first: VolumeLike,
    second: VolumeLike | None,
    geometry: Geometry | tuple[float, float],
    *,
    estimate: Estimate = "learned",
    n_samples: int = 8,
    smoothing: float = SMOOTHING,
    intensities: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """Return the standard deviation of each voxel of a prediction, in the unit of the volumes.

    Turned specimens take all elements of the cube's group that keep the shape and move the wedge. A volume with three
    different lengths has none; then it is continued along the shorter one of y and x, by its reflection and its noise
    periodically, and the map is cut back.

    Parameters
    ----------
    predictor
        The predictor.
    first, second
        The halves ``(z, y, x)``; with ``"orbit"`` the second may be ``None``.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    estimate
        ``"learned"`` for the network of :mod:`equitomo.deviation`, whose 90 % intervals are 1.645 times the map;
        otherwise how the variance is estimated, see :mod:`equitomo.uncertainty`.
    n_samples
        The number of samples of ``"orbit"`` and ``"bootstrap"``, each of which takes one prediction.
    smoothing
        The standard deviation in voxels of the Gaussian with which estimated variances are averaged, as few samples
        give no variance of a single voxel; 0 for none.
    intensities
        Mean and deviation with which the volumes enter the network.
    seed
        The seed for the elements and the noise.

    Raises
    ------
    ValueError
        If there is no second half for an estimate that needs it, or too few samples.

    Examples
    --------
    >>> predictor = TiledPredictor(torch.nn.Identity(), tile=16, margin=4, passes=1)
    >>> halves = torch.randn(2, 16, 16, 16)
    >>> confidence_map(predictor, *halves, (-60.0, 60.0)).shape
    torch.Size([16, 16, 16])
    """
    if second is None and estimate != "orbit":
        raise ValueError(f"`estimate={estimate!r}` needs two halves, from which it takes the noise: take 'orbit'")
    if estimate == "learned":
        assert second is not None
        return _learned(predictor, _tensor(first), _tensor(second), geometry, intensities)
    model = TiledReconstructor(predictor, intensities)
    halves = torch.stack([_tensor(half) for half in (first, second) if half is not None])
    if estimate == "halves":
        one, other = (model(half[None, None])[0, 0] for half in halves)
        variance = halves_variance(one, other)
    else:
        variance = _of_samples(model, halves, as_geometry(geometry), estimate, n_samples, seed)
    return (blurred(variance, smoothing) if smoothing else variance).clamp(min=0).sqrt()


def bytes_for_confidence(shape: Sequence[int], estimate: Estimate) -> int:
    """Return about how many bytes of memory :func:`confidence_map` takes beside a prediction."""
    return 4 * _HELD[estimate] * math.prod(_levelled(shape) if estimate in _OF_SAMPLES else shape)


def _learned(
    predictor: TiledPredictor,
    first: Tensor,
    second: Tensor,
    geometry: Geometry | tuple[float, float],
    intensities: tuple[float, float],
) -> Tensor:
    """Return the standard deviation of the result that the network of the package predicts, ``(z, y, x)``."""
    inputs = deviation_inputs(predictor, first, second, geometry, intensities)
    model = copy.deepcopy(learned_deviation()).to(predictor.device)
    # A negative scale inverts the contrast.
    return abs(intensities[1]) * deviations(model, inputs, geometry)[PARTS.index("result")]


def _of_samples(
    model: TiledReconstructor, halves: Tensor, geometry: Geometry, estimate: Estimate, n_samples: int, seed: int
) -> Tensor:
    """Return the variance by bootstrap or orbit, ``(z, y, x)``."""
    z, y, x = halves.shape[1:]
    shape = _levelled((z, y, x))
    generator = torch.Generator().manual_seed(seed)
    physics = MissingWedgeOperator(shape, geometry, support="box")
    moving = CubeRotationGroup.moving(physics, rng=generator)
    kind: type[EquivariantBootstrap] = OrbitDeviation
    if estimate == "bootstrap":
        kind = EquivariantBootstrap
        one, other = (_continued(half, shape, "wrap") for half in halves)
        physics.set_noise_model(HalvesNoise(one, other, geometry, generator))
    moving.n_trans = min(n_samples, len(moving.elements))
    sampling = kind(model, moving, n_samples=n_samples)
    with torch.no_grad():
        found = _continued(model(halves[None])[0, 0], shape, "reflect")[None, None]
        variance = sampling.variance(sampling.deviations(found, physics))
    return variance[0, 0, :z, :y, :x].contiguous()


def _tensor(volume: VolumeLike) -> Tensor:
    return torch.from_numpy(np.array(as_voxels(volume)[:, :, :], np.float32))


def _levelled(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return a shape in which two lengths are equal: the same one, or with the larger of y and x for both."""
    z, y, x = shape
    return (z, y, x) if len({z, y, x}) < 3 else (z, max(y, x), max(y, x))


def _continued(volume: Tensor, shape: Sequence[int], mode: Literal["reflect", "wrap"]) -> Tensor:
    """Return a volume that is continued at the end of its axes."""
    widths = [(0, wanted - n) for wanted, n in zip(shape, volume.shape, strict=True)]
    if not any(width for _, width in widths):
        return volume
    return torch.from_numpy(np.pad(volume.numpy(), widths, mode=mode))
