r"""Projection of volumes along the tilted beam, and its exact adjoint.

A voxel at :math:`(z, x)` is seen by the detector pixels around :math:`t = x\cos\theta + z\sin\theta + t_0`, with the
cubic weights of Keys (:cite:t:`keys1981cubic`, eq. 15, :math:`a = -1/2`),

.. math::

    p_\theta(j) = \sum_{z, x} w(t - j)\, v(z, x), \qquad
    w(u) = \begin{cases}
        \tfrac32 |u|^3 - \tfrac52 u^2 + 1 & |u| \le 1 \\
        -\tfrac12 |u|^3 + \tfrac52 u^2 - 4 |u| + 2 & 1 < |u| < 2.
    \end{cases}

The weights of a voxel add up to one, so that each view has the mass of the volume, as far as the detector reaches.
They do not depend on the position along the tilt axis. One sparse matrix from the planes across the tilt axis to the
detector therefore serves all positions along it, and both directions are weighted sums of contiguous rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import embedding_bag

from equitomo.checks import Shape
from equitomo.geometry import TiltAxes, TiltAxis

# Weights are kept for the next call if there are no more than this, and are otherwise made a block at a time.
KEPT_WEIGHTS = 1 << 25
BLOCK_WEIGHTS = 1 << 21
# The bytes of the rows that are summed at a time.
SLAB_BYTES = 1 << 26

# The axes along the tilt axis go last, so that they are summed at once.
_TO_ROWS = {"y": "b c z y x -> (z x) (b c y)", "x": "b c z y x -> (z y) (b c x)"}
_TO_VOLUME = {"y": "(z x) (b c y) -> b c z y x", "x": "(z y) (b c x) -> b c z y x"}


class _Block(NamedTuple):
    """Some rows of the sparse matrix: which input rows each output row sums, and with which weights."""

    rows: slice
    entries: Tensor
    weights: Tensor
    offsets: Tensor


class Projector:
    """The projection of volumes of one shape at given tilts, and its adjoint.

    Both directions are linear, differentiable any number of times, and compute in float32, or in float64 for float64
    input. They also do so under autocast.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``.
    tilts
        Tilts in degrees, of shape (tilt,), on the device to compute on.
    tilt_axis
        The axis that the specimen was tilted about.
    detector
        Number of detector pixels across the tilt axis; ``None`` for as many as the volume has voxels there.
    offsets
        The position of the tilt axis on the detector, in pixels from the centre: one for all tilts or one for each.

    Examples
    --------
    >>> projector = Projector((9, 2, 9), torch.tensor([-90.0, 0.0, 90.0]))
    >>> x = torch.zeros(1, 1, 9, 2, 9)
    >>> x[..., 6, 0, 4] = 1.0  # two voxels above the centre, so t = 2 sin(tilt)
    >>> series = projector.project(x)
    >>> series.shape, series[0, 0, :, 0].argmax(dim=-1).tolist()
    (torch.Size([1, 1, 3, 2, 9]), [2, 4, 6])
    """

    def __init__(
        self,
        shape: Shape,
        tilts: Tensor,
        *,
        tilt_axis: TiltAxis = "y",
        detector: int | None = None,
        offsets: Tensor | float = 0.0,
    ) -> None:
        axes = TiltAxes.about(tilt_axis)
        self.shape, self.tilt_axis = shape, tilt_axis
        self.n_beam, self.n_along, self.n_across = (shape[axis] for axis in axes)
        self.detector = self.n_across if detector is None else detector
        self.n_tilts = len(tilts)
        self.tilts = tilts.detach()
        radians = torch.deg2rad(self.tilts.double())
        self._device = radians.device
        self._cos, self._sin = radians.cos(), radians.sin()
        offsets = torch.as_tensor(offsets, device=self._device).detach()
        self.offsets = offsets.expand(self.n_tilts)
        self._kept: dict[tuple[str, torch.dtype], list[_Block]] = {}

    def project(self, x: Tensor) -> Tensor:
        """Return the series ``(batch, C, tilt, along, t)`` of volumes ``(batch, C, z, y, x)``."""
        series: Tensor = _Project.apply(_widened(x), self)
        return series

    def backproject(self, y: Tensor) -> Tensor:
        """Return the adjoint, volumes ``(batch, C, z, y, x)`` of series ``(batch, C, tilt, along, t)``."""
        volumes: Tensor = _Backproject.apply(_widened(y), self)
        return volumes

    def __deepcopy__(self, memo: dict[int, Any]) -> Projector:
        """Return the projector itself, which never changes, so that operators and their copies share the weights."""
        return self

    def _projected(self, x: Tensor) -> Tensor:
        series = x.new_empty(*x.shape[:2], self.n_tilts, self.n_along, self.detector)
        along = TiltAxes.about(self.tilt_axis).along
        for part in self._parts(x):
            planes = x.narrow(along, part.start, part.stop - part.start)
            rows = rearrange(planes, _TO_ROWS[self.tilt_axis])
            sums = self._summed(rows, "project", self.n_tilts * self.detector)
            series[..., part, :] = rearrange(
                sums, "(tilt t) (b c a) -> b c tilt a t", b=x.shape[0], c=x.shape[1], t=self.detector
            )
        return series

    def _backprojected(self, y: Tensor) -> Tensor:
        volumes = y.new_empty(*y.shape[:2], *self.shape)
        along = TiltAxes.about(self.tilt_axis).along
        for part in self._parts(y):
            rows = rearrange(y[..., part, :], "b c tilt a t -> (tilt t) (b c a)")
            sums = self._summed(rows, "backproject", self.n_beam * self.n_across)
            lengths = {"b": y.shape[0], "c": y.shape[1], "z": self.n_beam}
            planes = volumes.narrow(along, part.start, part.stop - part.start)
            planes.copy_(rearrange(sums, _TO_VOLUME[self.tilt_axis], **lengths))
        return volumes

    def _parts(self, batch: Tensor) -> Iterator[slice]:
        """Yield parts of the tilt axis whose rows, of volumes or of series, are no larger than a slab."""
        n_rows = max(self.n_beam * self.n_across, self.n_tilts * self.detector)
        position = batch.shape[0] * batch.shape[1] * n_rows * batch.element_size()
        n = max(1, SLAB_BYTES // position)
        for start in range(0, self.n_along, n):
            yield slice(start, min(start + n, self.n_along))

    def _summed(self, rows: Tensor, direction: str, n_rows: int) -> Tensor:
        sums = rows.new_empty(n_rows, rows.shape[1])
        for block in self._blocks(direction, rows.dtype):
            sums[block.rows] = embedding_bag(
                block.entries,
                rows,
                block.offsets,
                mode="sum",
                per_sample_weights=block.weights,
                include_last_offset=True,
            )
        return sums

    def _blocks(self, direction: str, dtype: torch.dtype) -> Iterator[_Block]:
        """Yield the sparse matrix, which is kept if it is small."""
        if (direction, dtype) in self._kept:
            yield from self._kept[direction, dtype]
            return
        blocks: list[_Block] = []
        n_kept = 0
        for block in self._forward_blocks(dtype) if direction == "project" else self._adjoint_blocks(dtype):
            yield block
            n_kept += len(block.entries)
            blocks.append(block)
            if n_kept > KEPT_WEIGHTS:
                blocks.clear()
        if n_kept <= KEPT_WEIGHTS:
            self._kept[direction, dtype] = blocks

    def _forward_blocks(self, dtype: torch.dtype) -> Iterator[_Block]:
        """Yield the rows of the detector, for some of the pixels of a tilt at a time."""
        z, x = self._from_centre(self.n_beam), self._from_centre(self.n_across)
        for tilt, (cos, sin, zero) in enumerate(
            zip(self._cos.tolist(), self._sin.tolist(), self.offsets.tolist(), strict=True)
        ):
            # Along the axis where t grows fastest a pixel is reached by the fewest voxels.
            along_x = abs(cos) >= abs(sin)
            fast, slow = (x, z) if along_x else (z, x)
            slope, shift = (cos, sin * slow) if along_x else (sin, cos * slow)
            strides = (1, self.n_across) if along_x else (self.n_across, 1)
            reach = 2 / abs(slope)
            n = max(1, BLOCK_WEIGHTS // (len(slow) * math.ceil(2 * reach)))
            for start in range(0, self.detector, n):
                t = self._from_centre(self.detector)[start : start + n, None] - zero - shift
                first = torch.ceil(t / slope + (len(fast) - 1) / 2 - reach)
                index = first[..., None] + torch.arange(math.ceil(2 * reach), device=self._device)
                u = (slope * (index - (len(fast) - 1) / 2) - t[..., None]).to(dtype)
                weights = keys_weights(u)
                used = (index >= 0) & (index < len(fast)) & (weights != 0)
                counts = used.flatten(1).sum(1)
                position = index.to(torch.int32) * strides[0]
                position += (torch.arange(len(slow), device=self._device, dtype=torch.int32) * strides[1])[:, None]
                row = tilt * self.detector + start
                yield _Block(slice(row, row + len(t)), position[used], weights[used], _offsets(counts))

    def _adjoint_blocks(self, dtype: torch.dtype) -> Iterator[_Block]:
        """Yield the rows of the volume, for some of its lines across the tilt axis at a time."""
        across = self._from_centre(self.n_across)[:, None] * self._cos + self.offsets.double() + (self.detector - 1) / 2
        taps = torch.arange(4, device=self._device, dtype=torch.int32) - 1
        first_rows = torch.arange(self.n_tilts, device=self._device, dtype=torch.int32) * self.detector
        z = self._from_centre(self.n_beam)
        n = max(1, BLOCK_WEIGHTS // (self.n_across * self.n_tilts * 4))
        for start in range(0, self.n_beam, n):
            t = across + z[start : start + n, None, None] * self._sin
            floor = t.floor()
            fraction = (t - floor).to(dtype)[..., None]
            pixel = floor.to(torch.int32)[..., None] + taps
            weights = keys_weights(fraction - taps)
            weights *= (pixel >= 0) & (pixel < self.detector)
            index = pixel.clamp_(0, self.detector - 1) + first_rows[:, None]
            rows = slice(start * self.n_across, (start + len(t)) * self.n_across)
            counts = torch.full((t.shape[0] * t.shape[1],), 4 * self.n_tilts, device=self._device)
            yield _Block(rows, index.flatten(), weights.flatten(), _offsets(counts))

    def _from_centre(self, n: int) -> Tensor:
        return torch.arange(n, device=self._device, dtype=torch.float64) - (n - 1) / 2


def keys_weights(u: Tensor) -> Tensor:
    """Return the cubic weights of Keys with a = -1/2 at distances ``u`` in pixels."""
    # The two cubics differ by a multiple of (1 - |u|)^2, so that no case has to be told apart.
    v = (2 - u.abs()).clamp_(min=0)
    w = (v - 1).clamp_(min=0)
    return (v * v).mul_(0.5).mul_(v - 1).addcmul_(w * w, 1 - 2 * w)


def keys_gain(frequency: Tensor) -> Tensor:
    r"""Return the Fourier transform of the weights of Keys, at frequencies in cycles per pixel.

    .. math::

        \hat w(k) = \frac{3\,[s(k)^2 - s(2k)] - 3\,s(2k)^2 + 2\,s(2k) + s(4k)}{(\pi k)^2}, \qquad
        s(k) = \frac{\sin \pi k}{\pi k}
    """
    k = frequency.double()
    s, s2, s4 = torch.sinc(k), torch.sinc(2 * k), torch.sinc(4 * k)
    gain = (3 * (s**2 - s2) - 3 * s2**2 + 2 * s2 + s4) / (math.pi * k) ** 2
    # Near zero the differences cancel, and the gain differs from one by less than 1e-8.
    return torch.where(k.abs() < 4e-3, 1.0, gain).to(frequency)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, projector: Projector) -> Tensor:
        return projector._projected(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Projector], output: Tensor) -> None:
        ctx.projector = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.projector.backproject(gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Any:
        return ctx.projector.project(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, projector: Projector) -> tuple[Tensor, int]:
        return _over_batch(projector.project, x, in_dims[0])


class _Backproject(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, projector: Projector) -> Tensor:
        return projector._backprojected(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Projector], output: Tensor) -> None:
        ctx.projector = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.projector.project(gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Any:
        return ctx.projector.backproject(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], y: Tensor, projector: Projector) -> tuple[Tensor, int]:
        return _over_batch(projector.backproject, y, in_dims[0])


def _over_batch(apply: Callable[[Tensor], Tensor], batch: Tensor, dim: int | None) -> tuple[Tensor, int]:
    """Apply a function of a batch to a batch of batches."""
    assert dim is not None
    batch = batch.movedim(dim, 0)
    applied = apply(batch.flatten(0, 1))
    return applied.reshape(*batch.shape[:2], *applied.shape[1:]), 0


def _widened(batch: Tensor) -> Tensor:
    """Return the batch in float32, or in float64 if it is that already."""
    return batch if batch.dtype == torch.float64 else batch.float()


def _offsets(counts: Tensor) -> Tensor:
    """Return where each run of entries begins, and where the last one ends."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
