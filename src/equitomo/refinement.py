r"""A data-consistent finish: iterations against the measured projections that start from a reconstruction.

A network removes noise and fills the missing wedge, but nothing makes its result agree with the projections. It is
scaled to them and then refined by SIRT,

.. math:: x_0 = a\, x_\text{net}, \quad a = \frac{\langle A x_\text{net}, y\rangle}{\lVert A x_\text{net}\rVert^2},
    \qquad x_{k+1} = \bigl[x_k + V A^\top W (y - A x_k)\bigr]_+ ,

see :func:`equitomo.solvers.sirt`. A few iterations correct the coarse features, which the projections determine best.
Many bring back the noise. Positive values are right where the background of the specimen is a true zero.

The projector treats planes across the tilt axis separately, so a volume is refined a few planes at a time, with the
same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from numpy.typing import NDArray
from torch import Tensor

from equitomo.geometry import Geometry, TiltAxis, TiltGeometry
from equitomo.physics import TiltSeriesPhysics
from equitomo.solvers import sirt
from equitomo.volumes import Shape, VolumeLike, Voxels, as_voxels

# About the best for few and for many counts; see docs/benchmarks.md.
ITERATIONS = 5
# The bytes of the planes that are refined at a time, and how many arrays of their size the iteration holds.
SLAB_BYTES = 1 << 25
HELD = 12
# The step between the tilts at which a continuous range is projected, in degrees.
_STEP = 2.0

Progress: TypeAlias = Callable[[int, int], None]


class Measurement(Protocol):
    """Projections that a volume is refined against."""

    @property
    def geometry(self) -> TiltGeometry:
        """The list of tilts and the axis."""

    @property
    def detector(self) -> int:
        """Number of pixels across the tilt axis."""

    def series(self, part: slice, physics: TiltSeriesPhysics) -> Tensor:
        """Return the pixels ``(1, 1, tilt, along, t)`` of some positions along the tilt axis."""

    def operator(self, physics: TiltSeriesPhysics) -> LinearPhysics:
        """Return the operator whose projections are compared with the series."""


class MeasuredSeries:
    """The projections of a tilt series.

    Parameters
    ----------
    projections
        The views ``(tilt, along the tilt axis, t)``, in ascending order of the tilts.
    geometry
        The tilts.
    """

    def __init__(self, projections: Tensor, geometry: TiltGeometry) -> None:
        if len(projections) != len(geometry.angles):
            raise ValueError(
                f"`projections` has {len(projections)} views, expected one for each of {len(geometry.angles)} tilts"
            )
        self.geometry, self.detector, self._projections = geometry, projections.shape[-1], projections

    def series(self, part: slice, physics: TiltSeriesPhysics) -> Tensor:
        """Return the pixels ``(1, 1, tilt, along, t)`` of some positions along the tilt axis."""
        return self._projections[None, None, :, part].to(physics.tilts)

    def operator(self, physics: TiltSeriesPhysics) -> LinearPhysics:
        """Return the operator whose projections are compared with the series."""
        return physics


class ReprojectedHalves:
    r"""The projections of half tomograms, for where there is no tilt series.

    Half tomograms hold what was measured, but cut to the box of the tomogram, and their projections are not those that
    were measured. The reconstruction is therefore treated alike before it is compared: with the projection :math:`P`
    and filtered backprojection :math:`F`, for the mean :math:`m` of the halves

    .. math:: y = P m, \qquad A x = P F P x .

    Parameters
    ----------
    halves
        One half or two, ``(z, y, x)``.
    geometries
        The tilts of each half, about one axis. A continuous range is projected every two degrees.
    """

    def __init__(self, halves: Sequence[VolumeLike], geometries: Sequence[Geometry]) -> None:
        self._halves: list[Voxels] = [as_voxels(half) for half in halves]
        tilts = [_listed(geometry) for geometry in geometries]
        if len({one.tilt_axis for one in tilts}) > 1:
            raise ValueError("`geometries` must be about one axis: the projections of both halves are joined")
        self.geometry = TiltGeometry({angle for one in tilts for angle in one.angles}, tilts[0].tilt_axis)
        self.detector = self._halves[0].shape[self.geometry.axes.across]

    def series(self, part: slice, physics: TiltSeriesPhysics) -> Tensor:
        """Return the projections ``(1, 1, tilt, along, t)`` of some positions along the tilt axis."""
        planes = [_planes(half, part, self.geometry.tilt_axis) for half in self._halves]
        views: Tensor = physics.A(torch.stack(planes).mean(0)[None, None].to(physics.tilts.device))
        return views

    def operator(self, physics: TiltSeriesPhysics) -> LinearPhysics:
        """Return the operator whose projections are compared with the series."""
        # SIRT converges with the adjoint of P alone, to which that of P F P is similar.
        return LinearPhysics(
            A=lambda x: physics.A(physics.filtered_backprojection(physics.A(x), "shepp-logan")),
            A_adjoint=physics.A_adjoint,
        )


def refine(
    volume: VolumeLike,
    measurement: Measurement,
    *,
    iterations: int = ITERATIONS,
    positive: bool = True,
    tilt_axis_offset: float = 0.0,
    out: NDArray[np.float32] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Refine a reconstruction against projections by SIRT, a few planes at a time, and return it.

    Parameters
    ----------
    volume
        The reconstruction ``(z, y, x)`` to start from, on any intensity scale.
    measurement
        :class:`MeasuredSeries`, or :class:`ReprojectedHalves` where there is no series.
    iterations
        Number of iterations; 0 only scales the volume to the projections, and sets values below zero to zero.
    positive
        Whether values below zero are set to zero, which is right for a specimen on a background of zero.
    tilt_axis_offset
        The position of the tilt axis on the detector, in pixels from its centre.
    out
        An array to write into; ``None`` makes one.
    device
        The device to compute on.
    progress
        Called with the number of planes done and their total.

    Returns
    -------
    numpy.ndarray
        The refined volume, on the scale of the projections.

    Raises
    ------
    ValueError
        If the projections have another length along the tilt axis than the volume, or have the opposite contrast.

    Examples
    --------
    >>> geometry = TiltGeometry(range(-60, 61, 3))
    >>> physics = TiltSeriesPhysics((16, 4, 16), geometry)
    >>> truth = torch.zeros(16, 4, 16)
    >>> truth[6:10, :, 6:10] = 1.0
    >>> measured = MeasuredSeries(physics.A(truth[None, None])[0, 0], geometry)
    >>> blurred = 0.3 * torch.nn.functional.avg_pool3d(truth[None], 3, 1, 1)[0]
    >>> error = lambda x: float((torch.as_tensor(x) - truth).norm() / truth.norm())
    >>> error(refine(blurred, measured)) < 0.5 * error(blurred)
    True
    """
    if iterations < 0:
        raise ValueError(f"`iterations` must not be negative, got {iterations}")
    problem = _Problem(volume, measurement, tilt_axis_offset, device)
    scale = problem.scale()
    result = np.empty(problem.source.shape, np.float32) if out is None else out
    for part in problem.parts:
        x, y, physics = problem.of(part)
        found = x * scale
        if iterations:
            found = sirt(y, physics, iterations=iterations, positive=positive, init=found)
        elif positive:
            found = found.clamp(min=0)
        result[_place(part, measurement.geometry.tilt_axis)] = found[0, 0].cpu().numpy()
        if progress is not None:
            progress(part.stop, problem.parts[-1].stop)
    return result


def fitted_scale(
    volume: VolumeLike,
    measurement: Measurement,
    *,
    tilt_axis_offset: float = 0.0,
    device: torch.device | str = "cpu",
) -> float:
    """Return the factor that brings a volume closest to the projections, with arguments as for :func:`refine`."""
    return _Problem(volume, measurement, tilt_axis_offset, device).scale()


class _Problem:
    """A volume and the projections that it is compared with, a few planes at a time."""

    def __init__(
        self, volume: VolumeLike, measurement: Measurement, tilt_axis_offset: float, device: torch.device | str
    ) -> None:
        self.source, self._measurement = as_voxels(volume), measurement
        self._offset, self._device = tilt_axis_offset, device
        self.parts = list(_parts(self.source.shape, measurement))
        self._operators: dict[int, TiltSeriesPhysics] = {}

    def of(self, part: slice) -> tuple[Tensor, Tensor, LinearPhysics]:
        """Return planes across the tilt axis, their series and the operator between them."""
        x = _planes(self.source, part, self._measurement.geometry.tilt_axis)[None, None].to(self._device)
        n = part.stop - part.start
        if n not in self._operators:
            self._operators[n] = TiltSeriesPhysics(
                x.shape[-3:],
                self._measurement.geometry,
                detector=self._measurement.detector,
                tilt_axis_offset=self._offset,
                device=self._device,
            )
        physics = self._operators[n]
        return x, self._measurement.series(part, physics), self._measurement.operator(physics)

    def scale(self) -> float:
        """Return the factor of the volume with the least squared distance of its projections to the series."""
        product = power = 0.0
        for part in self.parts:
            x, y, physics = self.of(part)
            projected = physics.A(x).double()
            product += float((projected * y).sum())
            power += float(projected.square().sum())
        if not product > 0:
            raise ValueError(
                "the projections do not show this volume, whose own have the opposite sign: check that the contrast, "
                "the tilts and the tilt axis of the projections are those of the volume"
            )
        return product / power


def bytes_to_refine(shape: Shape, measurement: Measurement) -> int:
    """Return about how many bytes of memory :func:`refine` takes, beside the volume and the series."""
    return HELD * max(SLAB_BYTES, _plane_bytes(shape, measurement))


def _listed(geometry: Geometry) -> TiltGeometry:
    """Return a list of tilts, for a continuous range that of equal steps."""
    if not isinstance(geometry, TiltGeometry):
        raise ValueError("a tomogram that was tilted about two axes cannot be refined: projections need one tilt axis")
    if not geometry.continuous:
        return geometry
    low, high = geometry.tilt_range
    return TiltGeometry(np.linspace(low, high, math.ceil((high - low) / _STEP) + 1), geometry.tilt_axis)


def _plane_bytes(shape: Shape, measurement: Measurement) -> int:
    """Return the bytes of one plane across the tilt axis and of its projections."""
    axes = measurement.geometry.axes
    n_pixels = len(measurement.geometry.angles) * measurement.detector
    return 4 * (shape[axes.beam] * shape[axes.across] + n_pixels)


def _parts(shape: Shape, measurement: Measurement) -> Iterator[slice]:
    """Yield parts of the tilt axis that are refined at a time."""
    n, n_along = max(1, SLAB_BYTES // _plane_bytes(shape, measurement)), shape[measurement.geometry.axes.along]
    for start in range(0, n_along, n):
        yield slice(start, min(start + n, n_along))


def _place(part: slice, tilt_axis: TiltAxis) -> Any:
    return np.s_[:, part, :] if tilt_axis == "y" else np.s_[:, :, part]


def _planes(volume: Voxels, part: slice, tilt_axis: TiltAxis) -> Tensor:
    """Return planes across the tilt axis as float32, still with the axes (z, y, x)."""
    return torch.from_numpy(np.array(volume[_place(part, tilt_axis)], np.float32))
