"""The measurement operator for volumes and tiles of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from deepinv.physics import Physics
from numpy.typing import NDArray
from torch import Tensor

from equitomo.geometry import Geometry, as_geometry
from equitomo.inference._splitting import SplittingFunction
from equitomo.physics import PaddedMissingWedgeOperator, WedgeOperator
from equitomo.physics.streamed import apply_by_planes, streaming_needs
from equitomo.volumes import Shape

OperatorFactory = Callable[[Shape], Physics]
# An operator with a method `resized`, or a function that makes one for a shape.
Resizable: TypeAlias = "Physics | OperatorFactory"

_CPU = torch.device("cpu")


def operator_for_all_shapes(given: Resizable | Geometry | tuple[float, float]) -> Resizable:
    """Return an operator that can be made for any shape; tilts stand for a padded missing-wedge operator."""
    if isinstance(given, Physics):
        if not hasattr(given, "resized"):
            raise ValueError(
                f"a {type(given).__name__} fits only volumes of its own size, but it is applied to tiles and to whole "
                "volumes: pass a function `(shape) -> operator` as `physics_or_geometry`"
            )
        return given
    return given if callable(given) else PaddedMissingWedgeOperator((8, 8, 8), as_geometry(given))


class Operators:
    """The operator A on one device, made for the shape that it is applied to; the last one is kept.

    If the memory of the device does not suffice, the CPU applies the operator.
    """

    def __init__(self, resizable: Resizable, device: torch.device) -> None:
        self._resizable, self.device = resizable, device
        self._last: tuple[tuple[Shape, torch.device], Physics] | None = None
        self._apply = SplittingFunction(self._apply_on, [device] if device == _CPU else [device, _CPU])

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``A(x)`` for tiles ``(batch, 1, z, y, x)`` on the host, as many at a time as the memory holds."""
        return self._apply(x)

    def of(self, shape: Shape, device: torch.device | None = None) -> Physics:
        """Return the operator for a shape, on this device or another one."""
        device = self.device if device is None else device
        if self._last is None or self._last[0] != (shape, device):
            # A tensor made in inference mode could not be used in training, should the caller keep the operator.
            with torch.inference_mode(False):
                self._last = (shape, device), self._made(shape, device)
        return self._last[1]

    def apply_to_volume(self, volume: NDArray[np.float32], scratch: str | Path | None) -> None:
        """Apply the operator to a whole volume in place: a wedge plane by plane, another operator in memory."""
        z, y, x = volume.shape
        operator = self._resizable if isinstance(self._resizable, Physics) else self.of((z, y, x), _CPU)
        if isinstance(operator, WedgeOperator):
            apply_by_planes(operator, volume, volume, scratch=scratch, device=self.device)
        else:
            volume[:] = self(torch.from_numpy(volume)[None, None])[0, 0].numpy()

    def volume_needs(self, shape: Shape) -> tuple[int, int]:
        """Return the bytes of memory and of intermediate files that :meth:`apply_to_volume` takes.

        For an operator that is not applied plane by plane, only its input and output are counted.
        """
        if isinstance(self._resizable, WedgeOperator):
            return streaming_needs(self._resizable, shape)
        return 8 * math.prod(shape), 0

    def grid(self, shape: Shape) -> Shape:
        """Return the lengths of the grid on which A is computed for a tile."""
        return cast(Shape, getattr(self.of(shape), "grid_shape", shape))

    def _made(self, shape: Shape, device: torch.device) -> Physics:
        if not isinstance(self._resizable, Physics):
            operator = self._resizable(shape)
        elif getattr(self._resizable, "volume_shape", None) == shape:
            # A copy, if it must be moved: the caller's operator stays where it is.
            operator = self._resizable if _is_on(self._resizable, device) else self._resizable.clone()
        else:
            operator = self._resizable.resized(shape)
        return operator if _is_on(operator, device) else operator.to(device)

    def _apply_on(self, x: Tensor, device: torch.device) -> Tensor:
        z, y, n = x.shape[-3:]
        result: Tensor = self.of((z, y, n), device).A(x.to(device)).cpu()
        if result.shape != x.shape:
            raise ValueError(
                f"the operator gives {tuple(result.shape)} for {tuple(x.shape)}: between two passes it must keep the "
                "shape; apply the adjoint or a pseudo-inverse in it, or pass `passes=1`"
            )
        return result


def _is_on(operator: Physics, device: torch.device) -> bool:
    return all(tensor.device == device for tensor in chain(operator.buffers(), operator.parameters()))
