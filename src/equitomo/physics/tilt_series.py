"""A tilt series as a deepinv operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from equitomo.checks import Shape, require_spatial, require_volumes, spatial_shape
from equitomo.geometry import TiltGeometry
from equitomo.physics.backprojection import RampWindow, filtered_backprojection, ramp_response, tilt_steps
from equitomo.physics.projector import Projector


class TiltSeriesPhysics(LinearPhysics):  # type: ignore[misc]
    r"""Project volumes ``(batch, C, z, y, x)`` to tilt series ``(batch, C, tilt, y, t)``.

    .. math:: A = \begin{pmatrix} P_{\theta_1} \\ \vdots \\ P_{\theta_n} \end{pmatrix}, \qquad
        (P_\theta v)(y, t) = \sum_{z, x} w(t - x\cos\theta - z\sin\theta - t_0)\, v(z, y, x)

    with the cubic weights of Keys; see :mod:`equitomo.physics.projector`. ``z``, ``x`` and ``t`` are measured from the
    centre, ``(n - 1) / 2``, and grow with the index. The views are in the order of ``geometry.angles``, ascending. The
    axis before the last is the one along the tilt axis: with the tilt axis along x, x and y change places, and the
    series is ``(batch, C, tilt, x, t)``. The volume is empty beyond its faces.

    The adjoint is exact, and both directions are differentiable any number of times.

    Parameters
    ----------
    img_size
        Voxels ``(z, y, x)``, or ``(C, z, y, x)``; the beam is along z.
    geometry
        The list of tilts and the tilt axis; or several with one number of tilts and one axis, one for each sample of a
        batch.
    detector
        Number of detector pixels across the tilt axis; ``None`` for as many as the volume has voxels there.
        ``full_detector`` gives the number that records all voxels at all tilts.
    tilt_axis_offset
        The position of the tilt axis on the detector, in pixels from its centre; a number, or one for each tilt.
    window
        The window of the ramp filter in :meth:`A_dagger`; see :func:`~equitomo.physics.ramp_response`.
    device
        The device to compute on.
    **kwargs
        Further arguments of deepinv's ``LinearPhysics``, such as ``noise_model``.

    Raises
    ------
    ValueError
        If a geometry is a continuous range, the geometries do not fit each other, or another argument is out of range.

    Examples
    --------
    >>> physics = TiltSeriesPhysics((16, 12, 16), TiltGeometry(range(-60, 61, 3)), detector=23)
    >>> y = physics.A(torch.ones(1, 1, 16, 12, 16))
    >>> y.shape, physics.A_dagger(y).shape
    (torch.Size([1, 1, 41, 12, 23]), torch.Size([1, 1, 16, 12, 16]))
    """

    tilts: Tensor
    offsets: Tensor

    def __init__(
        self,
        img_size: Sequence[int],
        geometry: TiltGeometry | Sequence[TiltGeometry],
        *,
        detector: int | None = None,
        tilt_axis_offset: float | Sequence[float] | Tensor = 0.0,
        window: RampWindow = "ram-lak",
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        geometries = list(geometry) if isinstance(geometry, Sequence) else [geometry]
        _check_geometries(geometries)
        self.volume_shape: Shape = spatial_shape(img_size, "img_size")
        size = tuple(int(n) for n in img_size)
        super().__init__(img_size=size if len(size) == 4 else (1, *size), **kwargs)
        self.tilt_axis = geometries[0].tilt_axis
        self.window: RampWindow = window
        axes = geometries[0].axes
        self.n_along, n_across = (self.volume_shape[axis] for axis in (axes.along, axes.across))
        self.detector = n_across if detector is None else int(detector)
        if self.detector < 1:
            raise ValueError(f"`detector` must be a positive number of pixels, got {detector}")
        ramp_response(1, window)
        tilts = torch.tensor([g.angles for g in geometries], dtype=torch.float32)
        offsets = torch.as_tensor(tilt_axis_offset, dtype=torch.float32)
        if offsets.ndim > 1 or offsets.numel() not in (1, tilts.shape[1]) or not offsets.isfinite().all():
            raise ValueError(
                f"`tilt_axis_offset` must be one finite number of pixels or one for each of {tilts.shape[1]} tilts, "
                f"got {tilt_axis_offset}"
            )
        self.register_buffer("tilts", tilts)
        self.register_buffer("offsets", offsets.reshape(1, -1).clone())
        self._projectors: dict[Any, list[Projector]] = {}
        self.to(device)

    @property
    def series_shape(self) -> tuple[int, int, int]:
        """The lengths ``(tilt, along the tilt axis, t)`` of a series."""
        return self.tilts.shape[1], self.n_along, self.detector

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Return the series ``(batch, C, tilt, along, t)`` of volumes ``(batch, C, z, y, x)``, in float32 or better."""
        self.update_parameters(**kwargs)
        require_spatial(x, self.volume_shape)
        return self._each(x, lambda projector, own, _: projector.project(own))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Return the backprojection of series ``(batch, C, tilt, along, t)``, the exact adjoint of :meth:`A`."""
        self.update_parameters(**kwargs)
        self._require_series(y)
        return self._each(y, lambda projector, own, _: projector.backproject(own))

    def A_dagger(
        self, y: Tensor, solver: str | None = None, *, window: RampWindow | None = None, **kwargs: Any
    ) -> Tensor:
        r"""Return the filtered backprojection of a series, which approximates the pseudo-inverse.

        The result holds what the tilts measure with gain one, up to Nyquist and on the line of the tilt axis too, and
        nothing in the missing wedge: the gain of the interpolation in :meth:`A` and in its adjoint is put back. For
        views that were measured, not made by :meth:`A`, see :func:`equitomo.solvers.filtered_backprojection`.

        Parameters
        ----------
        y
            Series ``(batch, C, tilt, along, t)``.
        solver
            ``None`` for filtered backprojection; deepinv's names, such as ``"lsqr"``, for the least-squares solution
            by iteration.
        window
            The window of the ramp filter; ``None`` for that of the operator.
        **kwargs
            Parameters as for :meth:`A`, or the arguments of deepinv's solver.
        """
        if solver is not None:
            solved: Tensor = super().A_dagger(y, solver=solver, **kwargs)
            return solved
        self.update_parameters(**kwargs)
        return self.filtered_backprojection(y, window or self.window, interpolations=2)

    def filtered_backprojection(self, y: Tensor, window: RampWindow = "ram-lak", *, interpolations: int = 1) -> Tensor:
        """Return the filtered backprojection of a series; see :func:`~equitomo.physics.filtered_backprojection`."""
        self._require_series(y)
        return self._each(
            y,
            lambda projector, own, tilts: filtered_backprojection(
                projector, own, tilt_steps(tilts), window, interpolations=interpolations
            ),
        )

    def update_parameters(self, **kwargs: Any) -> None:
        """Update ``tilts`` in degrees, of shape (batch or 1, tilt), and ``offsets`` in pixels, as deepinv does."""
        for name in ("tilts", "offsets"):
            if kwargs.get(name) is not None:
                own, given = getattr(self, name), kwargs[name]
                lengths = (self.tilts.shape[1],) if name == "tilts" else (1, self.tilts.shape[1])
                if given.ndim != 2 or given.shape[1] not in lengths:
                    raise ValueError(
                        f"`{name}` must be (batch or 1, {' or '.join(map(str, lengths))}), got {tuple(given.shape)}"
                    )
                kwargs[name] = given.to(own)
        super().update_parameters(**kwargs)
        if kwargs.get("tilts") is not None or kwargs.get("offsets") is not None:
            self._projectors = {}

    def _each(self, batch: Tensor, apply: Callable[[Projector, Tensor, Tensor], Tensor]) -> Tensor:
        """Apply a function with the projector of each sample, or at once where all have the same."""
        projectors = self._made()
        if len(projectors) == 1:
            return apply(projectors[0], batch, self.tilts[0])
        if len(projectors) != len(batch):
            raise ValueError(
                f"the operator holds the tilts of {len(projectors)} samples and was given {len(batch)}: "
                "update(tilts=...) with the tilts of each, or with those of all"
            )
        tilts = self.tilts.expand(len(batch), -1)
        return torch.cat([apply(own, sample[None], t) for own, sample, t in zip(projectors, batch, tilts, strict=True)])

    def _made(self) -> list[Projector]:
        """Return the projectors, with their weights kept as long as tilts and device stay."""
        key = self.tilts.device, _version(self.tilts), _version(self.offsets)
        if key not in self._projectors:
            n = max(len(self.tilts), len(self.offsets))
            tilts, offsets = self.tilts.expand(n, -1), self.offsets.expand(n, -1)
            made = [
                Projector(self.volume_shape, t, tilt_axis=self.tilt_axis, detector=self.detector, offsets=o)
                for t, o in zip(tilts, offsets, strict=True)
            ]
            self._projectors = {key: made}
        return self._projectors[key]

    def _require_series(self, y: Tensor) -> None:
        require_volumes(y, "y")
        if tuple(y.shape[-3:]) != self.series_shape:
            raise ValueError(
                f"y has {tuple(y.shape[-3:])} (tilts, pixels along the tilt axis, pixels across), this operator was "
                f"made for {self.series_shape}: make one with the tilts, `detector` and `img_size` of the series"
            )


def full_detector(img_size: Sequence[int], geometry: TiltGeometry, *, tilt_axis_offset: float = 0.0) -> int:
    """Return the number of detector pixels that records every voxel at every tilt.

    It differs from the number of voxels across the tilt axis by an even number, so that a detector of that width is the
    middle of it.

    Examples
    --------
    >>> full_detector((16, 16, 16), TiltGeometry(range(-60, 61, 3)))
    28
    """
    shape = spatial_shape(img_size, "img_size")
    n_beam, n_across = shape[geometry.axes.beam], shape[geometry.axes.across]
    radians = torch.deg2rad(torch.tensor(geometry.angles, dtype=torch.float64))
    reach = ((n_across - 1) / 2 * radians.cos() + (n_beam - 1) / 2 * radians.sin().abs()).max().item()
    # The weights of a voxel reach two pixels further.
    spare = int(-(-(reach + abs(tilt_axis_offset) + 2 - (n_across - 1) / 2) // 1))
    return n_across + 2 * max(0, spare)


def _version(tensor: Tensor) -> int:
    # Tensors that were made in inference mode do not count their changes, and cannot be changed outside it.
    return 0 if tensor.is_inference() else tensor._version


def _check_geometries(geometries: Sequence[TiltGeometry]) -> None:
    if not geometries or not all(isinstance(g, TiltGeometry) for g in geometries):
        raise ValueError("`geometry` must be a TiltGeometry, or one for each sample: a tilt series has one tilt axis")
    if any(g.continuous for g in geometries):
        raise ValueError("a tilt series needs a list of tilts, not a continuous range: TiltGeometry(angles)")
    if len({(len(g.angles), g.tilt_axis) for g in geometries}) > 1:
        raise ValueError("the geometries of a batch must have one number of tilts and one tilt axis")
