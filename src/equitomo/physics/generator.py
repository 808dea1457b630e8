"""Random tilt ranges, as a deepinv physics generator."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics.generator import PhysicsGenerator
from torch import Tensor

from equitomo.geometry import TiltGeometry, TiltUnion
from equitomo.physics.wedge import WedgeOperator


class TiltRangeGenerator(PhysicsGenerator):  # type: ignore[misc]
    """Draw masks of random tilt ranges for a missing-wedge operator, one per sample.

    The ends of a range are drawn uniformly and independently, and the range is about the tilt axis of the operator's
    geometry. For a union a range is drawn about the axis of each part.

    Parameters
    ----------
    physics
        An operator that was made from a geometry; its shape, support and other settings are those of the masks.
    low, high
        The intervals in degrees that the lowest and the highest tilt are drawn from.
    rng
        The generator to draw with, on ``device``; ``None`` makes one, seeded with torch's default.
    device, dtype
        The device and the type of the masks.

    Raises
    ------
    ValueError
        If the intervals leave the range of -90 to 90 degrees or overlap, or the operator was not made from a geometry.

    Examples
    --------
    >>> from equitomo.physics import MissingWedgeOperator
    >>> physics = MissingWedgeOperator((16, 16, 16), (-60.0, 60.0))
    >>> params = TiltRangeGenerator(physics, low=(-70.0, -40.0), high=(30.0, 70.0)).step(batch_size=3, seed=0)
    >>> params["mask"].shape
    torch.Size([3, 1, 16, 16, 9])
    >>> physics(torch.randn(3, 1, 16, 16, 16), **params).shape
    torch.Size([3, 1, 16, 16, 16])
    """

    def __init__(
        self,
        physics: WedgeOperator,
        *,
        low: tuple[float, float] = (-70.0, -40.0),
        high: tuple[float, float] = (40.0, 70.0),
        rng: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(rng=rng, device=device, dtype=dtype)
        if not -90 <= low[0] <= low[1] < high[0] <= high[1] <= 90 or high[1] - low[0] >= 180:
            raise ValueError(
                "`low` and `high` must be intervals of degrees with -90 <= low[0] <= low[1] < high[0] <= high[1] <= 90 "
                f"that span less than 180, got {low} and {high}"
            )
        if physics.geometry is None:
            raise ValueError("`physics` must be made from a geometry: an operator of a mask has no tilt axis")
        self._tilt_axes = sorted({part.tilt_axis for part in physics.geometry.parts})
        # Not the operator, which would become a part of this module and be moved with it.
        self._mask_for = physics.mask_for
        self._lowest = torch.tensor([low[0], high[0]], dtype=torch.float64)
        self._width = torch.tensor([low[1] - low[0], high[1] - high[0]], dtype=torch.float64)

    def step(self, batch_size: int = 1, seed: int | str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Return ``{"mask": ...}`` of shape (batch_size, 1, z, y, x // 2 + 1), with length 1 where masks are constant.

        Parameters
        ----------
        batch_size
            The number of masks.
        seed
            The seed that the generator is set to; ``None`` draws on.
        **kwargs
            Not used.
        """
        self.rng_manual_seed(seed)
        size = batch_size, len(self._tilt_axes), 2
        drawn = torch.rand(size, generator=self.rng, device=self.rng.device, dtype=torch.float64).cpu()
        ranges = (self._lowest + self._width * drawn).tolist()
        masks = [self._mask_for(self._geometry(own)) for own in ranges]
        return {"mask": torch.cat(masks).to(**self.factory_kwargs)}

    def _geometry(self, ranges: list[tuple[float, float]]) -> TiltGeometry | TiltUnion:
        parts = [TiltGeometry.from_range(*r, axis) for r, axis in zip(ranges, self._tilt_axes, strict=True)]
        return TiltUnion(parts) if len(parts) > 1 else parts[0]
