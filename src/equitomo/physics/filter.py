"""The part that both operators share: a mask on the half spectrum of a grid, and the masks for other shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from equitomo.checks import Shape, require_spatial, require_volumes, spatial_shape
from equitomo.fourier import filtered, is_even, laid_out
from equitomo.geometry import Geometry, MaskPlanes, Planes, Sampling, Support, WedgeMask

MaskMaker = Callable[[Shape], Tensor]


class FourierFilter(LinearPhysics):  # type: ignore[misc]
    """A real, even mask on the half spectrum of a grid that holds the volume.

    A subclass returns its own constructor arguments from ``_own_settings``, and from ``_grid_of`` the grid that a
    volume is filtered on.
    """

    mask: Tensor
    volume_shape: Shape
    grid_shape: Shape
    # The function that makes the mask for other shapes; None for a mask that was given as a tensor.
    _maker: MaskMaker | None
    _is_updated = False

    def __init__(
        self,
        img_size: Sequence[int],
        geometry: Geometry | tuple[float, float] | None = None,
        *,
        mask: MaskMaker | Tensor | None = None,
        support: Support = "ball",
        low_pass: float | None = None,
        sampling: Sampling = "range",
        extent: float | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> None:
        size = tuple(int(n) for n in img_size)
        self.volume_shape = spatial_shape(size, "img_size")
        # deepinv's img_size has the channels first and no batch.
        super().__init__(img_size=size if len(size) == 4 else (1, *size), device=device, **kwargs)
        if mask is None and geometry is not None:
            mask = WedgeMask(geometry, support=support, low_pass=low_pass, sampling=sampling, extent=extent)
        elif mask is None or geometry is not None:
            raise ValueError("an operator needs either a `geometry` or a `mask`, and not both")
        elif (low_pass, sampling, extent) != (None, "range", None):
            raise ValueError("`low_pass`, `sampling` and `extent` belong to a `geometry`: a `mask` is taken as it is")
        self._maker = None if isinstance(mask, Tensor) else mask
        self.grid_shape = self._grid_of(self.volume_shape)
        self.register_buffer("mask", _made_mask(mask, self.grid_shape, self.volume_shape))
        self.to(device)

    @property
    def geometry(self) -> Geometry | None:
        """The geometry that the operator was made for; ``None`` for an operator of a mask."""
        return self._maker.geometry if isinstance(self._maker, WedgeMask) else None

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Apply the operator to volumes ``(batch, C, z, y, x)``."""
        self.update_parameters(**kwargs)
        self._require_fit(x)
        return filtered(x, self.mask, self.grid_shape)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Apply the adjoint, which is :meth:`A` itself."""
        return self.A(y, **kwargs)

    def resized(self, img_size: Sequence[int]) -> Self:
        """Return an operator with the same mask and settings for volumes of another shape, without noise model.

        Raises
        ------
        ValueError
            If the mask was given as a tensor or by ``update``: it is of this shape only.
        """
        if self._maker_for(spatial_shape(img_size, "img_size")) is None:
            return self.clone()  # type: ignore[no-any-return]
        return type(self)(img_size, mask=self._maker, device=self.mask.device, **self._own_settings())

    def planes(self, img_size: Sequence[int]) -> tuple[Shape, Planes]:
        """Return the grid for volumes of another shape and the mask on it, plane by plane.

        A mask that is made from a geometry, or by an object with a method ``planes(shape)``, is never made as a whole.

        Raises
        ------
        ValueError
            As :meth:`resized`, and if there are masks for several samples or views.
        """
        shape = spatial_shape(img_size, "img_size")
        maker = self._maker_for(shape)
        if self.mask.shape[:2] != (1, 1):
            raise ValueError(
                f"the operator holds masks for {_described(self.mask)} and was given one volume: update(mask=...) "
                "with one mask"
            )
        if maker is None:
            return self.grid_shape, MaskPlanes(lambda: self.mask, self.grid_shape, self.mask.shape)
        grid = self._grid_of(shape)
        if isinstance(maker, WedgeMask):
            return grid, maker.planes(grid, shape)
        if hasattr(maker, "planes"):
            return grid, maker.planes(grid)
        return grid, MaskPlanes(lambda: _made_mask(maker, grid, shape), grid, self.mask.shape)

    def mask_for(self, geometry: Geometry | tuple[float, float]) -> Tensor:
        """Return the mask of another geometry on this operator's grid, as ``update(mask=...)`` takes it.

        Such masks are joined along the first axis for a batch that mixes tomograms, along the second for views of
        different tilts. For geometries with different tilt axes make the operator for their union: then all their
        masks have one shape.

        Raises
        ------
        ValueError
            If the operator was not made from a geometry, or only for another tilt axis.
        """
        if not isinstance(self._maker, WedgeMask):
            raise ValueError(
                "an operator of a `mask` cannot make the mask of a geometry: make the operator from a `geometry` or a "
                "WedgeMask"
            )
        wedge = self._maker.of(geometry)
        if self._maker.constant_axis not in (None, wedge.constant_axis):
            raise ValueError(
                f"the operator was made for {self.geometry} and takes no mask for {wedge.geometry}: make it for the "
                "union of the geometries, first | second"
            )
        mask = _made_mask(wedge, self.grid_shape, self.volume_shape).to(self.mask)
        if self._maker.constant_axis is None:
            z, y, x = self.grid_shape
            mask = laid_out(mask.expand(1, 1, z, y, x // 2 + 1))
        return mask

    def update_parameters(self, **kwargs: Any) -> None:
        """Update the parameters as deepinv does, after checking ``mask``."""
        if kwargs.get("mask") is not None:
            _check_mask(kwargs["mask"], self.grid_shape)
            self._is_updated = True
        super().update_parameters(**kwargs)

    def _grid_of(self, shape: Shape) -> Shape:
        return shape

    def _own_settings(self) -> dict[str, Any]:
        return {}

    def _maker_for(self, shape: Shape) -> MaskMaker | None:
        """Return the function that makes the mask for another shape; ``None`` if the operator's own mask has it."""
        if not self._is_updated and self._maker is not None:
            return self._maker
        if shape != self.volume_shape:
            raise ValueError(
                f"this operator's mask was given for {self.volume_shape} voxels (z, y, x) and cannot be made for "
                f"{shape}: make an operator of that size, or give `mask` as a function from a shape to a mask"
            )
        return None

    def _require_fit(self, x: Tensor) -> None:
        require_spatial(x, self.volume_shape)
        if any(n not in (1, given) for n, given in zip(self.mask.shape[:2], x.shape[:2], strict=True)):
            raise ValueError(
                f"the operator holds masks for {_described(self.mask)} and was given {_described(x)}: "
                "update(mask=...) with one mask for each, or with one for all"
            )


def _made_mask(maker: MaskMaker | Tensor, grid: Shape, volume: Shape) -> Tensor:
    """Return an operator's mask on a grid, checked, of shape (batch or 1, views or 1, z, y, x // 2 + 1)."""
    made = maker(grid, volume) if isinstance(maker, WedgeMask) else maker
    mask = made if isinstance(made, Tensor) else made(grid)
    if isinstance(mask, Tensor) and mask.ndim == 3:
        mask = mask[None, None]
    _check_mask(mask, grid)
    return laid_out(mask.float())


def _described(batch: Tensor) -> str:
    samples, views = batch.shape[:2]
    return f"{samples} samples" if views == 1 else f"{samples} samples of {views} views"


def _check_mask(mask: Tensor, grid: Shape) -> None:
    """Refuse a mask that does not fit the half spectrum, or would turn real volumes complex."""
    require_volumes(mask, "mask")
    half = (grid[0], grid[1], grid[2] // 2 + 1)
    if any(n not in (1, wanted) for n, wanted in zip(mask.shape[-3:], half, strict=True)):
        raise ValueError(
            f"`mask` must be (batch or 1, views or 1, z, y, x) with (z, y, x) = {half} or 1, the half spectrum kx >= 0 "
            f"of {grid} voxels, got shape {tuple(mask.shape)}"
        )
    if not is_even(mask, grid[2]):
        raise ValueError(
            "`mask` must be even, m(k) = m(-k), or the operator would turn real volumes complex: keep a coefficient "
            "only if its mirror image is kept, as equitomo.geometry.wedge_mask does"
        )
