"""The missing wedge as a linear operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor

from equitomo.checks import Shape, require_spatial
from equitomo.fourier import filtered, irfftn, rfftn
from equitomo.geometry import Geometry, WedgeMask
from equitomo.physics.filter import FourierFilter
from equitomo.physics.inside import InsideFilter

# Singular values below this part of the largest one count as zero in the pseudo-inverse.
_SMALLEST = 1e-5


class MissingWedgeOperator(FourierFilter, DecomposablePhysics):  # type: ignore[misc]
    r"""Keep the Fourier coefficients that a tilt series measures, drop the rest.

    .. math:: A = F^{-1} \operatorname{diag}(m)\, F

    The mask :math:`m` is that of a geometry, see :func:`equitomo.geometry.wedge_mask`, or any other that is real and
    even, so that :math:`A` keeps volumes real and is self-adjoint, :math:`A = A^\top`. A mask of zeros and ones makes
    it an orthogonal projection, :math:`A = A^2 = A^+`. A weighted mask, as of weighted tilts or with a contrast
    transfer function, does not: then :math:`A^+` divides by the weights, and :meth:`prox_l2` is the stable way back.
    Noise of a noise model is projected onto the coefficients with :math:`m(k) \ne 0`: a reconstruction from the tilts
    holds none in the wedge.

    One mask per sample lets a batch mix tilt ranges, one per view lets the halves differ: the shape is
    (batch or 1, views or 1, z, y, x // 2 + 1) with length 1 also where the mask is constant. Give it with
    ``update(mask=...)`` or ``A(x, mask=...)``; as everywhere in deepinv it stays on the operator. :meth:`mask_for`
    makes the masks of other geometries.

    Parameters
    ----------
    img_size
        Voxels ``(z, y, x)``, or ``(C, z, y, x)``; the beam is along z.
    geometry
        A :class:`~equitomo.geometry.TiltGeometry`, a union of several, or a pair ``(low, high)`` of degrees about the y
        axis; ``None`` if ``mask`` is given.
    mask
        The mask in place of a geometry: a tensor of shape (z, y, x // 2 + 1), or one per sample and view; or a function
        that returns it for a shape ``(z, y, x)``, so that the operator can be made for other shapes too, as prediction
        and training need.
    support
        ``"ball"``, the reference program's default, also drops the corners beyond Nyquist; ``"box"`` keeps
        them. This and the next three are for a geometry: a ``mask`` is taken as it is.
    low_pass
        The largest frequency that is kept, in cycles per voxel; ``None`` for no limit.
    sampling
        ``"range"`` or the exact ``"fan"`` of the measured planes.
    extent
        The length of the specimen across the tilt axis in voxels, for ``"fan"``; see
        :func:`~equitomo.geometry.wedge_mask`.
    device
        Where the mask lives.
    **kwargs
        For :class:`deepinv.physics.DecomposablePhysics`, as ``noise_model``.

    Raises
    ------
    ValueError
        For a size or geometry out of range, a volume of another shape, a mask that does not fit the half
        spectrum or is not even, or if not exactly one of ``geometry`` and ``mask`` is given.

    Examples
    --------
    >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> y = physics.A(torch.randn(2, 1, 16, 16, 16))
    >>> torch.allclose(physics.A(y), y, atol=1e-6)
    True

    A wedge with an envelope, for any shape:

    >>> from equitomo.fourier import frequencies
    >>> from equitomo.geometry import wedge_mask
    >>> def weighted(shape):
    ...     kz, ky, kx = frequencies(shape)
    ...     return wedge_mask(shape, (-60.0, 60.0)) * torch.exp(-8 * (kz**2 + ky**2 + kx**2))
    >>> physics = MissingWedgeOperator((16, 16, 16), mask=weighted)
    >>> physics.resized((12, 8, 10)).mask.shape
    torch.Size([1, 1, 12, 8, 6])
    """

    def V_adjoint(self, x: Tensor) -> Tensor:
        """Return the half spectrum of ``x``."""
        require_spatial(x, self.volume_shape)
        return rfftn(x)

    def V(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Return the real volumes of a half spectrum."""
        return irfftn(x, self.grid_shape)

    # The half spectrum is not an orthonormal basis, but V V^T = 1 on volumes, and all that is ever used is
    # V diag(m) V^T, with U = V.
    def U(self, x: Tensor) -> Tensor:
        """Return the same as :meth:`V`."""
        return self.V(x)

    def U_adjoint(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Return the same as :meth:`V_adjoint`."""
        return self.V_adjoint(x)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Add noise, projected onto the coefficients that a reconstruction from these tilts can contain."""
        # Not the mask itself, which would weight the measured part a second time.
        return filtered(super().noise(x, **kwargs), (self.mask != 0).to(self.mask), self.grid_shape)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Apply the pseudo-inverse: divide by the mask, except where it is zero or below 1e-5 of its largest value."""
        self.update_parameters(**kwargs)
        self._require_fit(y)
        # deepinv's own pseudo-inverse treats negative values of a mask as zeros.
        size = self.mask.abs()
        kept = size > _SMALLEST * size.amax((-3, -2, -1), keepdim=True)
        return filtered(y, torch.where(kept, self.mask, torch.inf).reciprocal(), self.grid_shape)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Tensor | float, **kwargs: Any) -> Tensor:
        r"""Return the proximal operator of :math:`\frac{\gamma}{2}\|Ax-y\|^2` at ``z``, in closed form.

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


class PaddedMissingWedgeOperator(FourierFilter):
    r"""Zero-pad, empty the missing wedge at the larger size, cut back.

    .. math:: A = P^\top F^{-1} \operatorname{diag}(m)\, F P

    where :math:`P` pads each axis with zeros. A cube cut from a tomogram is not periodic; padding keeps
    what leaves it on one side from coming back on the other, as the reference program does with
    ``padding=2``. :math:`A` is self-adjoint, with norm at most one where the mask is, but not a projection:
    :math:`A^2 \ne A`, many singular values lie between zero and one, and :math:`A^+` is ill-posed. Use
    :meth:`prox_l2`, not ``A_dagger``.

    The mask of a geometry with one tilt axis and support ``"box"`` is constant along that axis, where padding would
    change nothing and is left out.

    Parameters
    ----------
    img_size, geometry
        As for :class:`MissingWedgeOperator`.
    padding
        The ratio of the padded lengths to the volume's, at least 1.
    **kwargs
        The other arguments of :class:`MissingWedgeOperator`. A ``mask`` is one of the padded grid, whose shape a
        function is called with; the extent of a fan is that of the volume, not of its padding.

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
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        padding: float = 2,
        **kwargs: Any,
    ) -> None:
        if not padding >= 1:
            raise ValueError(f"`padding` is the padded length over the volume's and at least 1, got {padding}")
        self._padding = padding
        self._inside: InsideFilter | None = None
        super().__init__(img_size, geometry, **kwargs)

    def _grid_of(self, shape: Shape) -> Shape:
        padded = [math.ceil(self._padding * n) for n in shape]
        constant = self._maker.constant_axis if isinstance(self._maker, WedgeMask) else None
        if constant is not None:
            padded[constant] = shape[constant]
        return padded[0], padded[1], padded[2]

    def _own_settings(self) -> dict[str, Any]:
        return {"padding": self._padding}

    def A_inside(self, x: Tensor, margin: int) -> Tensor:
        """Return ``A(x)`` without its outermost ``margin`` voxels: the same values, computed on a smaller grid.

        Returns
        -------
        Tensor
            ``(batch, C, z - 2 * margin, y - 2 * margin, x - 2 * margin)``.
        """
        self._require_fit(x)
        if not 0 <= 2 * margin < min(self.volume_shape):
            raise ValueError(f"a margin of {margin} voxels leaves nothing of {self.volume_shape} voxels (z, y, x)")
        # A learned mask has a gradient to pass on each time; one made in inference mode counts no changes; masks per
        # sample change with every batch, and a filter made anew each time would cost more than it saves.
        if self.mask.requires_grad or self.mask.is_inference() or len(self.mask) > 1:
            z, y, n = (slice(margin, length - margin) for length in self.volume_shape)
            return self.A(x)[..., z, y, n]
        if self._inside is None or not self._inside.fits(self.mask, margin):
            # A filter made in a step under inference mode would fail in the next one that is differentiated.
            with torch.inference_mode(False):
                self._inside = InsideFilter(self.mask, self.volume_shape, self.grid_shape, margin)
        return self._inside(x)

    def prox_l2(
        self, z: Tensor | float | None, y: Tensor, gamma: Tensor | float, solver: str = "CG", **kwargs: Any
    ) -> Tensor:
        """Return the proximal operator of the data term, by conjugate gradients; see deepinv's ``LinearPhysics``."""
        # deepinv 0.5 drops gamma and z in these two where x and y have one shape, as they do here.
        if solver in ("minres", "BiCGStab"):
            raise ValueError(f"deepinv solves prox_l2 wrongly with solver={solver!r} here: use 'CG' or 'lsqr'")
        return cast(Tensor, super().prox_l2(z, y, gamma, solver=solver, **kwargs))


WedgeOperator = MissingWedgeOperator | PaddedMissingWedgeOperator
