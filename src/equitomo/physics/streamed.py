r"""A missing-wedge operator on volumes larger than the memory.

Let :math:`t` be the tilt axis and :math:`F_t` the transform along it, with the same padding as the operator's. The
operator's transform is the product of transforms along the single axes, and its mask :math:`m` multiplies coefficients
one by one, so

.. math:: A = C\, F^{-1} \operatorname{diag}(m)\, F P
            = C_t F_t^{-1} \Bigl[ \bigoplus_{k_t} A_{k_t} \Bigr] F_t P_t, \qquad
          A_{k_t} = C_2\, F_2^{-1} \operatorname{diag}\bigl(m(\cdot, k_t, \cdot)\bigr)\, F_2 P_2:

a transform along the tilt axis, then for every frequency :math:`k_t` a filter of one plane across it, then back.
Nothing is approximated. Volumes are real, so planes of :math:`k_t \ge 0` suffice, each complex and with both signs of
its own frequencies. The first and the last step take a few sections (z) at a time, the middle one a few planes; between
them the planes lie in a file of :math:`8\,n_k\,n_z\,n_s` bytes (:math:`s` is the third axis). There are
:math:`n_k = g_t/2 + 1` of them for the padded length :math:`g_t`, fewer with a low-pass filter, whose higher planes are
empty.

A mask that is constant along :math:`t` (support ``"box"`` without low-pass filter) needs no :math:`F_t`: every plane of
the volume itself is filtered, in place and without a file if the tilt axis is y. If it is x, whose planes are strewn
over the whole file, they are gathered in a file of the volume's size first.

Planes and sections do not depend on each other: when memory runs out, fewer of them are taken at a time, and where a
device has no room for one, the CPU goes on. The result is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import mirrored
from equitomo.io import release, scratch_array
from equitomo.physics.wedge import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.resources import Retry

WedgeOperator = MissingWedgeOperator | PaddedMissingWedgeOperator
Shape = tuple[int, int, int]

# Of one slab on the grid; this many are held at once.
_SLAB_BYTES = 1 << 24
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
        An operator of any size: for another size the same is made, but never its whole mask.
    source, target
        Volumes ``(z, y, x)``, maps of files or not; they may be the same.
    scratch
        A folder for the planes; ``None`` keeps them in memory.
    device
        Where the transforms are computed, as long as it has room for them.

    Raises
    ------
    ValueError
        If the operator's mask was given for another shape, or holds one for each of several samples.
    OSError
        If the scratch folder is missing, not writable or too full.
    MemoryError, RuntimeError
        If the host has no room for a single plane.

    Examples
    --------
    >>> operator = PaddedMissingWedgeOperator((8, 8, 8), (-60.0, 60.0))
    >>> x = np.random.default_rng(0).normal(size=(12, 9, 10)).astype(np.float32)
    >>> y = np.empty_like(x)
    >>> apply_by_planes(operator, x, y)
    >>> expected = operator.resized(x.shape).A(torch.from_numpy(x)[None, None])[0, 0]
    >>> np.allclose(y, expected, atol=1e-5)
    True
    """
    plan = _Plan.of(operator, spatial_shape(source.shape))
    # Axes (t, z, s): along the tilt axis, the beam, and across both.
    axes = (1, 0, 2) if plan.tilt_axis == "y" else (2, 0, 1)
    volume, result = source.transpose(axes), target.transpose(axes)
    slabs = _Slabs(source.shape, torch.device(device))
    if plan.planes_shape is None:
        _filter_planes(volume, result, plan, slabs, source, target)
        return
    planes = scratch_array(scratch, plan.planes_shape, plan.planes_dtype)

    def forth(part: slice, device: torch.device) -> None:
        planes[:, part] = plan.along(_on(volume[:, part], device)).cpu().numpy()
        release(source, planes)

    def back(part: slice, device: torch.device) -> None:
        result[:, part] = plan.back(_on(planes[:, part], device)).cpu().numpy()
        release(target, planes)

    slabs.each("section", plan.lengths[1], plan.section_bytes, forth)
    _filter_planes(planes, planes, plan, slabs, planes)
    slabs.each("section", plan.lengths[1], plan.section_bytes, back)


def streaming_needs(operator: WedgeOperator, shape: Shape) -> tuple[int, int]:
    """Bytes of the arrays that :func:`apply_by_planes` works with, and of its scratch file."""
    plan = _Plan.of(operator, shape)
    memory = _HELD * max(_SLAB_BYTES, plan.plane_bytes, plan.section_bytes)
    if plan.planes_shape is None:
        return memory, 0
    return memory, int(np.prod(plan.planes_shape)) * plan.planes_dtype.itemsize


class _Planes(Protocol):
    constant: bool
    n_planes: int

    def __call__(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class _Plan:
    """Lengths along (t, z, s) of the volume and its grid, and the mask's planes."""

    tilt_axis: str
    lengths: Shape
    grid: Shape
    masks: _Planes

    @classmethod
    def of(cls, operator: WedgeOperator, shape: Shape) -> _Plan:
        grid, masks = _masks_of(operator, shape)
        tilt_axis = operator.geometry.tilt_axis
        return cls(tilt_axis, _turned(shape, tilt_axis), _turned(grid, tilt_axis), masks)

    @property
    def planes_shape(self) -> Shape | None:
        """Of what lies in the scratch file, if there is one."""
        t, z, s = self.lengths
        if not self.masks.constant:
            return self.masks.n_planes, z, s
        return None if self.tilt_axis == "y" else (t, z, s)

    @property
    def planes_dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.float32 if self.masks.constant else np.complex64)

    @property
    def section_bytes(self) -> int:
        """Of the transform along t of one section."""
        return self.grid[0] * self.lengths[2] * 8

    @property
    def plane_bytes(self) -> int:
        """Of the transform of one plane."""
        return self.grid[1] * self.grid[2] * 8

    def along(self, volume: Tensor) -> Tensor:
        """Into planes."""
        if self.masks.constant:
            return volume
        planes: Tensor = torch.fft.rfft(volume, n=self.grid[0], dim=0)
        return planes[: self.masks.n_planes]

    def back(self, planes: Tensor) -> Tensor:
        """From planes; those that were left out are zero."""
        if self.masks.constant:
            return planes
        volume: Tensor = torch.fft.irfft(planes, n=self.grid[0], dim=0)
        return volume[: self.lengths[0]]


class _Share(NamedTuple):
    """How many planes or sections are computed at a time, and where."""

    n: int
    device: torch.device


class _Slabs:
    """Work on the planes and sections of a volume, a few at a time.

    When memory runs out fewer are taken, and the CPU where a device has no room for a single one.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device, self._bytes = shape, device, _SLAB_BYTES

    def each(self, unit: str, length: int, n_bytes: int, work: Callable[[slice, torch.device], None]) -> None:
        """Do the work on slices of an axis, each with as many steps of ``n_bytes`` as a slab holds, one at least."""
        start, shape = 0, " x ".join(map(str, self._shape))

        def smaller(share: _Share) -> _Share | None:
            if share.n > 1:
                self._bytes = share.n // 2 * n_bytes
            elif share.device.type != "cpu":
                self._bytes, self._device = _SLAB_BYTES, torch.device("cpu")
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
    same = plan.masks(0, 1) if plan.masks.constant else None

    def work(part: slice, device: torch.device) -> None:
        masks = plan.masks(part.start, part.stop) if same is None else same
        target[part] = _filtered(_on(source[part], device), masks.to(device)).cpu().numpy()
        release(*held)

    slabs.each("plane", len(source), plan.plane_bytes, work)


def _filtered(planes: Tensor, masks: Tensor) -> Tensor:
    """Filter planes ``(n, z, s)``, real or complex, with masks ``(n or 1, z, s)`` on both signs of the padded grid."""
    (z, s), (grid_z, grid_s) = planes.shape[-2:], masks.shape[-2:]
    real = not planes.is_complex()
    spectrum = torch.fft.rfft(planes, n=grid_s) if real else torch.fft.fft(planes, n=grid_s)
    spectrum = torch.fft.fft(spectrum.transpose(-1, -2), n=grid_z)
    spectrum *= masks[..., : spectrum.shape[-2]].transpose(-1, -2)
    spectrum = torch.fft.ifft(spectrum)[..., :z].transpose(-1, -2)
    filtered: Tensor = torch.fft.irfft(spectrum, n=grid_s) if real else torch.fft.ifft(spectrum)
    return filtered[..., :s]


def _masks_of(operator: WedgeOperator, shape: Shape) -> tuple[Shape, _Planes]:
    if operator.volume_shape != shape:
        return operator.planes(shape)
    if len(operator.mask) > 1:
        raise ValueError(
            f"the operator holds masks for {len(operator.mask)} samples and was given one volume: update(mask=...) "
            "with one mask"
        )
    return operator.grid_shape, _MaskPlanes(operator.mask[0, 0], operator.grid_shape, operator.geometry.tilt_axis)


class _MaskPlanes:
    """Planes of a mask that is there, on the half spectrum of a grid."""

    def __init__(self, mask: Tensor, grid: Shape, tilt_axis: str) -> None:
        z, y, x = grid
        self._tilt_axis, self._length = tilt_axis, (y if tilt_axis == "y" else x)
        self.constant = mask.shape[-2 if tilt_axis == "y" else -1] == 1
        self.n_planes = self._length // 2 + 1
        # Not copied: a mask may have length 1 wherever it is constant.
        along_y = 1 if self.constant and tilt_axis == "y" else y
        along_x = 1 if self.constant and tilt_axis == "x" else x // 2 + 1
        self._mask, self._length_x = mask.expand(z, along_y, along_x), x

    def __call__(self, start: int, stop: int) -> Tensor:
        if self._tilt_axis == "x":
            return self._mask[..., start:stop].permute(2, 0, 1).float()
        rows = torch.arange(start, stop, device=self._mask.device)
        half = self._mask[:, rows]
        # m(kz, ky, -kx) = m(-kz, -ky, kx), and the half spectrum holds both signs of ky.
        opposite = self._mask[:, -rows % self._mask.shape[1], 1 : (self._length_x + 1) // 2]
        return torch.cat((half, mirrored(opposite, (-3,)).flip(-1)), -1).transpose(0, 1).float()


def _turned(shape: Shape, tilt_axis: str) -> Shape:
    z, y, x = shape
    return (y, z, x) if tilt_axis == "y" else (x, z, y)


def _on(part: NDArray[np.generic], device: torch.device | str) -> Tensor:
    # A copy in any case: torch wants no map that is read only.
    return torch.from_numpy(np.array(part, order="C")).to(device)
