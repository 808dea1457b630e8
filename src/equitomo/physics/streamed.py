r"""A missing-wedge operator on volumes larger than the memory.

Let :math:`t` be the tilt axis and :math:`F_t` the transform along it, with the padding of the operator. The
operator's transform is the product of transforms along the single axes, and its mask :math:`m` multiplies each
coefficient on its own, so

.. math:: A = C\, F^{-1} \operatorname{diag}(m)\, F P
            = C_t F_t^{-1} \Bigl[ \bigoplus_{k_t} A_{k_t} \Bigr] F_t P_t, \qquad
          A_{k_t} = C_2\, F_2^{-1} \operatorname{diag}\bigl(m(\cdot, k_t, \cdot)\bigr)\, F_2 P_2.

The volume is transformed along the tilt axis, then one plane across it is filtered for every frequency :math:`k_t`,
then the volume is transformed back; nothing is approximated. As volumes are real, the planes with :math:`k_t \ge 0`
suffice, each of them complex and with both signs of its own frequencies. The first and the last step take a few
sections (z) at a time, the middle one a few planes. Between the steps the planes lie in a file of
:math:`8\,n_k\,n_z\,n_s` bytes, where :math:`s` is the third axis and :math:`n_k = g_t/2 + 1` for the padded length
:math:`g_t`, or less with a low-pass filter, whose higher planes are empty.

If the mask is constant along :math:`t` (support ``"box"`` without low-pass filter), :math:`F_t` is not needed: every
plane of the volume itself is filtered. With the tilt axis along y this is done in place and without a file; planes
across x are spread over the whole volume and are gathered in a file of its size first.

Any axis may take the part of the tilt axis. Masks that are constant along none, as those of dual-axis geometries, are
read in planes across y.

Planes and sections do not depend on each other. When memory runs out, fewer of them are taken at a time, and the CPU
takes over where a device has no room for a single one. The result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.checks import Shape, spatial_shape
from equitomo.geometry import Planes, TiltAxes
from equitomo.io import release, scratch_array
from equitomo.physics.wedge import WedgeOperator
from equitomo.resources import Retry

# The bytes of the transforms of planes or sections that are taken at a time, and how many such arrays are held at once.
SLAB_BYTES = 1 << 24
_HELD = 6


def apply_by_planes(
    operator: WedgeOperator,
    source: NDArray[np.float32],
    target: NDArray[np.float32],
    *,
    scratch: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write ``A(source)`` into ``target``, in memory that hardly depends on the size of the volume.

    The result is that of the operator of the volume's shape, up to rounding.

    Parameters
    ----------
    operator
        An operator of any size, whose mask is made for the size of the volume. The mask of a geometry, and of any
        object with a method ``planes(shape)``, is never made as a whole; that of another function is.
    source, target
        Volumes ``(z, y, x)`` in memory or in memory maps; they may be the same.
    scratch
        A folder for the planes; ``None`` keeps them in memory.
    device
        The device that computes the transforms, as long as it has room for them.

    Raises
    ------
    ValueError
        If the operator's mask was given for another shape, or there are masks for several samples or views.
    OSError
        If the scratch folder is missing, not writable or too full.
    MemoryError, RuntimeError
        If the host has no room for a single plane.

    Examples
    --------
    >>> from equitomo.physics import PaddedMissingWedgeOperator
    >>> operator = PaddedMissingWedgeOperator((8, 8, 8), (-60.0, 60.0))
    >>> x = np.random.default_rng(0).normal(size=(12, 9, 10)).astype(np.float32)
    >>> y = np.empty_like(x)
    >>> apply_by_planes(operator, x, y)
    >>> expected = operator.resized(x.shape).A(torch.from_numpy(x)[None, None])[0, 0]
    >>> np.allclose(y, expected, atol=1e-5)
    True
    """
    plan = _Plan.of(operator, spatial_shape(source.shape))
    volume, result = source.transpose(_order(plan.axes)), target.transpose(_order(plan.axes))
    slabs = _Slabs(source.shape, torch.device(device))
    if plan.planes_shape is None:
        _filter_planes(volume, result, plan, slabs, source, target)
        return
    planes = scratch_array(scratch, plan.planes_shape, plan.planes_dtype)

    def forth(part: slice, device: torch.device) -> None:
        planes[:, part] = plan.to_planes(_on(volume[:, part], device)).cpu().numpy()
        release(source, planes)

    def back(part: slice, device: torch.device) -> None:
        result[:, part] = plan.from_planes(_on(planes[:, part], device)).cpu().numpy()
        release(target, planes)

    slabs.each("section", plan.lengths[1], plan.section_bytes, forth)
    _filter_planes(planes, planes, plan, slabs, planes)
    slabs.each("section", plan.lengths[1], plan.section_bytes, back)


def streaming_needs(operator: WedgeOperator, shape: Shape) -> tuple[int, int]:
    """Return the bytes of the arrays that :func:`apply_by_planes` works with, and those of its scratch file."""
    plan = _Plan.of(operator, shape)
    memory = _HELD * max(SLAB_BYTES, plan.plane_bytes, plan.section_bytes) + plan.masks.n_bytes
    if plan.planes_shape is None:
        return memory, 0
    return memory, int(np.prod(plan.planes_shape)) * plan.planes_dtype.itemsize


@dataclass(frozen=True)
class _Plan:
    """The lengths of a volume and of its grid in the order (t, z, s), and the planes of the mask."""

    axes: TiltAxes
    lengths: Shape
    grid: Shape
    masks: Planes

    @classmethod
    def of(cls, operator: WedgeOperator, shape: Shape) -> _Plan:
        grid, masks = operator.planes(shape)
        (t, z, s), (grid_t, grid_z, grid_s) = ([n[axis] for axis in _order(masks.axes)] for n in (shape, grid))
        return cls(masks.axes, (t, z, s), (grid_t, grid_z, grid_s), masks)

    @property
    def planes_shape(self) -> Shape | None:
        """The shape of the array in the scratch file, or ``None`` if there is none."""
        t, z, s = self.lengths
        if not self.masks.constant:
            return self.masks.n_planes, z, s
        return None if self.axes.along == -2 else (t, z, s)

    @property
    def planes_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.float32 if self.masks.constant else np.complex64)

    @property
    def section_bytes(self) -> int:
        """The bytes of one section transformed along t."""
        return self.grid[0] * self.lengths[2] * 8

    @property
    def plane_bytes(self) -> int:
        """The bytes of one transformed plane."""
        return self.grid[1] * self.grid[2] * 8

    def to_planes(self, volume: Tensor) -> Tensor:
        """Return the planes that are filtered, of a volume ``(t, z, s)``."""
        if self.masks.constant:
            return volume
        planes: Tensor = torch.fft.rfft(volume, n=self.grid[0], dim=0)
        return planes[: self.masks.n_planes]

    def from_planes(self, planes: Tensor) -> Tensor:
        """Return the volume of filtered planes; those that were left out are zero."""
        if self.masks.constant:
            return planes
        volume: Tensor = torch.fft.irfft(planes, n=self.grid[0], dim=0)
        return volume[: self.lengths[0]]


class _Share(NamedTuple):
    """The number of planes or sections that are computed at a time, and the device that does it."""

    n: int
    device: torch.device


class _Slabs:
    """Work on the planes and sections of a volume, a few at a time.

    When memory runs out, fewer are taken, and the CPU where a device has no room for a single one.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device, self._bytes = shape, device, SLAB_BYTES

    def each(self, unit: str, length: int, n_bytes: int, work: Callable[[slice, torch.device], None]) -> None:
        """Do the work on slices of an axis, each of as many steps of ``n_bytes`` as a slab holds, but at least one."""
        start, shape = 0, " x ".join(map(str, self._shape))

        def smaller(share: _Share) -> _Share | None:
            if share.n > 1:
                self._bytes = share.n // 2 * n_bytes
            elif share.device.type != "cpu":
                self._bytes, self._device = SLAB_BYTES, torch.device("cpu")
            else:
                return None
            return self._share(length, n_bytes)

        def describe(share: _Share) -> str:
            units = unit if share.n == 1 else f"{unit}s"
            return f"{share.n} {units} of {shape} voxels on {share.device}"

        def attempt(share: _Share) -> None:
            nonlocal start
            stop = min(start + share.n, length)
            work(slice(start, stop), share.device)
            start = stop

        retry = Retry(self._share(length, n_bytes), smaller, describe)
        while start < length:
            retry(attempt)

    def _share(self, length: int, n_bytes: int) -> _Share:
        return _Share(min(max(1, self._bytes // n_bytes), length), self._device)


def _filter_planes(
    source: NDArray[np.generic],
    target: NDArray[np.generic],
    plan: _Plan,
    slabs: _Slabs,
    *held: NDArray[np.generic],
) -> None:
    constant = plan.masks(0, 1) if plan.masks.constant else None

    def work(part: slice, device: torch.device) -> None:
        masks = plan.masks(part.start, part.stop) if constant is None else constant
        target[part] = _filtered(_on(source[part], device), masks.to(device)).cpu().numpy()
        release(*held)

    slabs.each("plane", len(source), plan.plane_bytes, work)


def _filtered(planes: Tensor, masks: Tensor) -> Tensor:
    """Return filtered planes ``(n, z, s)``, real or complex; masks ``(n or 1, z, s)`` hold both signs of the grid."""
    (z, s), (grid_z, grid_s) = planes.shape[-2:], masks.shape[-2:]
    real = not planes.is_complex()
    spectrum = torch.fft.rfft(planes, n=grid_s) if real else torch.fft.fft(planes, n=grid_s)
    spectrum = torch.fft.fft(spectrum.transpose(-1, -2), n=grid_z)
    spectrum *= masks[..., : spectrum.shape[-2]].transpose(-1, -2)
    spectrum = torch.fft.ifft(spectrum)[..., :z].transpose(-1, -2)
    filtered: Tensor = torch.fft.irfft(spectrum, n=grid_s) if real else torch.fft.ifft(spectrum)
    return filtered[..., :s]


def _order(axes: TiltAxes) -> Shape:
    """Return the axes in the order (t, z, s): along the tilt axis, along the beam, and across both."""
    return axes.along, axes.beam, axes.across


def _on(part: NDArray[np.generic], device: torch.device | str) -> Tensor:
    # The part is always copied, because torch accepts no read-only memory map.
    return torch.from_numpy(np.array(part, order="C")).to(device)
