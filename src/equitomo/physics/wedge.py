"""The missing wedge as a linear operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from deepinv.physics import DecomposablePhysics, LinearPhysics
from torch import Tensor

from equitomo.checks import require_spatial, require_volumes, spatial_shape
from equitomo.fourier import filtered, irfftn, is_even, laid_out, rfftn
from equitomo.geometry import Sampling, Support, TiltGeometry, WedgePlanes, as_geometry, wedge_mask
from equitomo.physics._inside import InsideFilter


class _FourierFilter:
    """What both operators are: a real, even mask on the half spectrum of a grid that holds the volume."""

    mask: Tensor
    volume_shape: tuple[int, int, int]
    grid_shape: tuple[int, int, int]
    geometry: TiltGeometry
    _settings: dict[str, Any]
    _mask_is_given = False

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Apply the operator to volumes ``(batch, C, z, y, x)``."""
        self.update_parameters(**kwargs)
        require_spatial(x, self.volume_shape)
        if len(self.mask) not in (1, len(x)):
            raise ValueError(
                f"the operator holds masks for {len(self.mask)} samples and was given {len(x)}: update(mask=...) with "
                "one mask for each, or with one for all"
            )
        return filtered(x, self.mask, self.grid_shape)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """As :meth:`A`, which is its own adjoint."""
        return self.A(y, **kwargs)

    def resized(self, img_size: Sequence[int]) -> Self:
        """The same tilts and settings for volumes of another shape, without noise model.

        Raises
        ------
        ValueError
            If the mask was given with ``update``: it is of this shape only.
        """
        self._require_made(img_size)
        return type(self)(img_size, self.geometry, device=self.mask.device, **self._settings)  # type: ignore[call-arg]

    def planes(self, img_size: Sequence[int]) -> tuple[tuple[int, int, int], WedgePlanes]:
        """The grid for volumes of another shape and the mask on it, plane by plane and never as a whole.

        Raises
        ------
        ValueError
            As :meth:`resized`.
        """
        self._require_made(img_size)
        return self._planes(spatial_shape(img_size, "img_size"))

    def _planes(self, shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], WedgePlanes]:
        return shape, WedgePlanes(shape, self.geometry, **self._settings)

    def _require_made(self, img_size: Sequence[int]) -> None:
        if self._mask_is_given:
            raise ValueError(
                f"this operator's mask was given for {self.volume_shape} voxels (z, y, x) and cannot be made for "
                f"{tuple(img_size)}: make an operator of that size and update its mask"
            )

    def update_parameters(self, **kwargs: Any) -> None:
        """Take over ``mask`` after checking it, and whatever else deepinv updates."""
        if kwargs.get("mask") is not None:
            _check_mask(kwargs["mask"], self.grid_shape)
            self._mask_is_given = True
        super().update_parameters(**kwargs)  # type: ignore[misc]


class MissingWedgeOperator(_FourierFilter, DecomposablePhysics):  # type: ignore[misc]
    r"""Keep the Fourier coefficients that a tilt series measures, drop the rest.

    .. math:: A = F^{-1} \operatorname{diag}(m)\, F

    with the mask of :func:`equitomo.geometry.wedge_mask`. The mask is even and zero or one, so :math:`A`
    keeps volumes real and is an orthogonal projection, :math:`A = A^\top = A^2 = A^+`. Noise of a noise
    model is projected too: a reconstruction from the tilts holds none in the wedge.

    A mask per sample, shape (batch, 1, z, y or 1, x // 2 + 1), lets a batch mix tilt ranges:
    ``update(mask=...)`` or ``A(x, mask=...)``. As everywhere in deepinv it stays on the operator.

    Parameters
    ----------
    img_size
        Voxels ``(z, y, x)``, or ``(C, z, y, x)``; beam along z.
    geometry
        A :class:`~equitomo.geometry.TiltGeometry`, or a pair ``(low, high)`` of degrees about the y axis.
    support
        ``"ball"``, the reference program's default, also drops the corners beyond Nyquist; ``"box"`` keeps
        them.
    low_pass
        Largest frequency kept, in cycles per voxel; ``None`` for no limit.
    sampling
        ``"range"`` or the exact ``"fan"`` of the measured planes.
    extent
        The specimen's extent across the tilt axis in voxels, for ``"fan"``; see
        :func:`~equitomo.geometry.wedge_mask`.
    device
        Where the mask lives.
    **kwargs
        For :class:`deepinv.physics.DecomposablePhysics`, as ``noise_model``.

    Raises
    ------
    ValueError
        For a size or geometry out of range, a volume of another shape, or a mask that does not fit the half
        spectrum or is not even.

    Examples
    --------
    >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> y = physics.A(torch.randn(2, 1, 16, 16, 16))
    >>> torch.allclose(physics.A(y), y, atol=1e-6)
    True
    """

    def __init__(
        self,
        img_size: Sequence[int],
        geometry: TiltGeometry | tuple[float, float],
        *,
        support: Support = "ball",
        low_pass: float | None = None,
        sampling: Sampling = "range",
        extent: float | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        self.volume_shape = self.grid_shape = spatial_shape(img_size, "img_size")
        self.geometry = as_geometry(geometry)
        self._settings: dict[str, Any] = {
            "support": support,
            "low_pass": low_pass,
            "sampling": sampling,
            "extent": extent,
        }
        mask = wedge_mask(self.grid_shape, self.geometry, **self._settings)
        super().__init__(img_size=_with_channel(img_size), mask=laid_out(mask[None, None]), device=device, **kwargs)

    def V_adjoint(self, x: Tensor) -> Tensor:
        """Half spectrum of ``x``."""
        require_spatial(x, self.volume_shape)
        return rfftn(x)

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Real volumes of a half spectrum."""
        return irfftn(x, self.grid_shape)

    # The half spectrum is no orthonormal basis, but V V^T = 1 on volumes, and all that is ever used is
    # V diag(m) V^T, with U = V.
    def U(self, x: Tensor) -> Tensor:
        """As :meth:`V`."""
        return self.V(x)

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        """As :meth:`V_adjoint`."""
        return self.V_adjoint(x)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Add noise, and keep of it what a reconstruction from these tilts can hold."""
        return filtered(super().noise(x, **kwargs), self.mask, self.grid_shape)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Tensor | float, **kwargs: Any) -> Tensor:
        r"""Proximal operator of :math:`\frac{\gamma}{2}\|Ax-y\|^2` at ``z``, in closed form.

        .. math:: \hat x(k) = \frac{\hat z(k) + \gamma\, m(k)\, \hat y(k)}{1 + \gamma\, m(k)^2}

        ``gamma`` is a number, one value per sample of shape (batch,), or anything that broadcasts.
        """
        self.update_parameters(**kwargs)
        # deepinv 0.5 cannot broadcast one gamma per sample against a batch of volumes.
        if isinstance(gamma, Tensor) and gamma.ndim == 1:
            gamma = gamma[:, None, None, None, None]
        spectrum = gamma * self.mask * self.V_adjoint(y)
        if isinstance(z, Tensor):
            spectrum = spectrum + self.V_adjoint(z)
        elif z:
            spectrum = spectrum + self.V_adjoint(torch.full_like(y, z))
        return self.V(spectrum / (1 + gamma * self.mask**2))


class PaddedMissingWedgeOperator(_FourierFilter, LinearPhysics):  # type: ignore[misc]
    r"""Zero-pad, empty the missing wedge at the larger size, cut back.

    .. math:: A = P^\top F^{-1} \operatorname{diag}(m)\, F P

    where :math:`P` pads each axis with zeros. A cube cut from a tomogram is not periodic; padding keeps
    what leaves it on one side from coming back on the other, as the reference program does with
    ``padding=2``. :math:`A` is self-adjoint with norm at most one, but no projection:
    :math:`A^2 \ne A`, many singular values lie between zero and one, and :math:`A^+` is ill-posed. Use
    :meth:`prox_l2`, not ``A_dagger``.

    The mask of support ``"box"`` is constant along the tilt axis, where padding would change nothing and is
    left out.

    Parameters
    ----------
    img_size
        Voxels ``(z, y, x)``, or ``(C, z, y, x)``; beam along z.
    geometry
        A :class:`~equitomo.geometry.TiltGeometry`, or a pair ``(low, high)`` of degrees about the y axis.
    padding
        The padded lengths over the volume's, at least 1.
    support, low_pass, sampling, extent, device, **kwargs
        As for :class:`MissingWedgeOperator`. The extent of a fan is that of the volume, not of its padding.

    Raises
    ------
    ValueError
        As for :class:`MissingWedgeOperator`, for ``padding`` below 1, and for a solver of ``prox_l2`` that
        deepinv 0.5 solves wrongly.

    Examples
    --------
    >>> physics = PaddedMissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> physics.grid_shape
    (32, 32, 32)
    >>> y = physics.A(torch.randn(2, 1, 16, 16, 16))
    >>> y.shape
    torch.Size([2, 1, 16, 16, 16])
    """

    def __init__(
        self,
        img_size: Sequence[int],
        geometry: TiltGeometry | tuple[float, float],
        *,
        padding: float = 2,
        support: Support = "ball",
        low_pass: float | None = None,
        sampling: Sampling = "range",
        extent: float | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        if not padding >= 1:
            raise ValueError(f"padding is the padded length over the volume's and at least 1, got {padding}")
        super().__init__(img_size=_with_channel(img_size), device=device, **kwargs)
        self.volume_shape = spatial_shape(img_size, "img_size")
        self.geometry = as_geometry(geometry)
        self.grid_shape = _padded_shape(self.volume_shape, padding, self.geometry, support, low_pass)
        self._settings: dict[str, Any] = {
            "padding": padding,
            "support": support,
            "low_pass": low_pass,
            "sampling": sampling,
            "extent": extent,
        }
        mask = wedge_mask(self.grid_shape, self.geometry, **self._mask_settings(self.volume_shape))
        self.register_buffer("mask", laid_out(mask[None, None]))
        self._inside: InsideFilter | None = None
        self.to(device)

    def _planes(self, shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], WedgePlanes]:
        padding, support, low_pass = (self._settings[name] for name in ("padding", "support", "low_pass"))
        grid = _padded_shape(shape, padding, self.geometry, support, low_pass)
        return grid, WedgePlanes(grid, self.geometry, **self._mask_settings(shape))

    def _mask_settings(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        settings = {name: value for name, value in self._settings.items() if name != "padding"}
        if settings["extent"] is None:
            z, y, x = shape
            settings["extent"] = min(z, x if self.geometry.tilt_axis == "y" else y)
        return settings

    def A_inside(self, x: Tensor, margin: int) -> Tensor:
        """``A(x)`` without its outermost ``margin`` voxels: the same values, on a smaller grid.

        Returns
        -------
        Tensor
            ``(batch, C, z - 2 * margin, y - 2 * margin, x - 2 * margin)``.
        """
        require_spatial(x, self.volume_shape)
        if not 0 <= 2 * margin < min(self.volume_shape):
            raise ValueError(f"a margin of {margin} voxels leaves nothing of {self.volume_shape} voxels (z, y, x)")
        # A learned mask has a gradient to pass on each time; one made in inference mode counts no changes; masks per
        # sample change with every batch, and a filter made anew each time would cost more than it saves.
        if self.mask.requires_grad or self.mask.is_inference() or len(self.mask) > 1:
            z, y, n = (slice(margin, length - margin) for length in self.volume_shape)
            return self.A(x)[..., z, y, n]
        if self._inside is None or not self._inside.fits(self.mask, margin):
            # Made in a step under inference mode, it would fail in the next one that is differentiated.
            with torch.inference_mode(False):
                self._inside = InsideFilter(self.mask, self.volume_shape, self.grid_shape, margin)
        return self._inside(x)

    def prox_l2(
        self, z: Tensor | float | None, y: Tensor, gamma: Tensor | float, solver: str = "CG", **kwargs: Any
    ) -> Tensor:
        """Proximal operator of the data term, by conjugate gradients; see deepinv's ``LinearPhysics``."""
        # deepinv 0.5 drops gamma and z in these two where x and y have one shape, as they do here.
        if solver in ("minres", "BiCGStab"):
            raise ValueError(f"deepinv solves prox_l2 wrongly with solver={solver!r} here: use 'CG' or 'lsqr'")
        return cast(Tensor, super().prox_l2(z, y, gamma, solver=solver, **kwargs))


def _with_channel(img_size: Sequence[int]) -> tuple[int, ...]:
    """deepinv's ``img_size``: channel first, no batch."""
    size = tuple(int(n) for n in img_size)
    return size if len(size) == 4 else (1, *size)


def _padded_shape(
    shape: tuple[int, int, int],
    padding: float,
    geometry: TiltGeometry,
    support: Support,
    low_pass: float | None,
) -> tuple[int, int, int]:
    z, y, x = (math.ceil(padding * n) for n in shape)
    if support == "box" and low_pass is None:
        return (z, shape[1], x) if geometry.tilt_axis == "y" else (z, y, shape[2])
    return z, y, x


def _check_mask(mask: Tensor, shape: tuple[int, int, int]) -> None:
    """Refuse a mask that does not fit the half spectrum, or would turn real volumes complex."""
    require_volumes(mask, "mask")
    half = (shape[0], shape[1], shape[2] // 2 + 1)
    if any(n not in (1, wanted) for n, wanted in zip(mask.shape[-3:], half, strict=True)):
        raise ValueError(
            f"mask must be (batch or 1, 1, z, y, x) with (z, y, x) = {half} or 1, the half spectrum kx >= 0 of "
            f"{shape} voxels, got shape {tuple(mask.shape)}"
        )
    if not is_even(mask, shape[2]):
        raise ValueError(
            "mask must be even, m(k) = m(-k), or the operator is no projection of real volumes: keep a coefficient "
            "only if its mirror image is kept, as equitomo.geometry.wedge_mask does"
        )
