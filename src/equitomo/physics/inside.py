"""A Fourier filter evaluated only inside a margin, on the smallest grid that gives its values exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equitomo.checks import Shape
from equitomo.fourier import filtered, frequencies, irfftn, laid_out, rfftn


class InsideFilter:
    r"""Apply a zero-padding Fourier filter and return the result without its outermost ``margin`` voxels.

    For the inner :math:`n - 2\,\text{margin}` of :math:`n` voxels per axis only lags of the filter's kernel up to
    :math:`n - 1 - \text{margin}` matter, so that a circular convolution on :math:`2(n - \text{margin}) - 1` voxels or
    more has the same values there. A phase moves the first inner voxel to index 0: then the rest of the output is not
    transformed, nor are the zeros around it in the gradient.

    The mask is even, lies on the half spectrum of ``grid_shape``, to which the volume is padded, and has length 1 where
    it is constant. The attribute ``grid_shape`` is that of the smaller grid.
    """

    def __init__(self, mask: Tensor, volume_shape: Shape, grid_shape: Shape, margin: int) -> None:
        self.margin, self._mask, self._version = margin, mask, mask._version
        # Along an axis where the mask is constant the filter does nothing: there the input is only cut.
        self._varies = tuple(n > 1 for n in mask.shape[-3:])
        self._inner = tuple(n - 2 * margin for n in volume_shape)
        z, y, x = grid_shape
        double = mask.detach().double()
        kernel = irfftn(double.expand(*double.shape[:-3], z, y, x // 2 + 1), grid_shape)
        for axis in range(3):
            kernel = self._cut(kernel, axis, volume_shape[axis], grid_shape[axis])
        z, y, x = kernel.shape[-3:]
        self.grid_shape = (z, y, x)
        # Orthonormal transforms scale with the square root of the number of voxels, but a filter must not.
        spectrum = rfftn(kernel, self.grid_shape).real * math.sqrt(z * y * x / math.prod(grid_shape))
        self._spectrum = laid_out(self._shifted(spectrum).to(torch.promote_types(mask.dtype, torch.complex64)))

    def fits(self, mask: Tensor, margin: int) -> bool:
        """Return whether the filter was made for this mask, unchanged since then, and this margin."""
        return self.margin == margin and self._mask is mask and self._version == mask._version

    def __call__(self, x: Tensor) -> Tensor:
        """Return the result inside the margin, ``(..., z - 2 * margin, y - 2 * margin, x - 2 * margin)``."""
        for axis, varies in zip((-3, -2, -1), self._varies, strict=True):
            if not varies:
                x = x.narrow(axis, self.margin, x.shape[axis] - 2 * self.margin)
        z, y, n = self._inner
        return filtered(x, self._spectrum, self.grid_shape, (z, y, n))

    def _cut(self, kernel: Tensor, axis: int, n: int, padded: int) -> Tensor:
        """Return the lags of the kernel that matter along one axis, on a grid as short as it may be."""
        longest = n - 1 - self.margin
        length = _next_smooth(2 * longest + 1) if self._varies[axis] else self._inner[axis]
        if self._varies[axis] and not (padded > n and length < padded):
            return kernel
        # On a grid that is longer than it must be, the lags beyond the longest reach only what is cut off.
        index = torch.arange(length, device=kernel.device)
        lag = torch.where(index > length // 2, index - length, index)
        return kernel.index_select(axis - 3, lag % padded)

    def _shifted(self, spectrum: Tensor) -> Tensor:
        """Return the spectrum of the filter moved by the margin, with length 1 along the axes it is constant on."""
        turns = torch.zeros((), dtype=spectrum.dtype, device=spectrum.device)
        for axis, k in zip((-3, -2, -1), frequencies(self.grid_shape, device=spectrum.device), strict=True):
            if self._varies[axis]:
                turns = turns + k * self.margin
            else:
                spectrum = spectrum.narrow(axis, 0, 1)
        return torch.polar(spectrum.new_ones(()), 2 * math.pi * turns) * spectrum


def _next_smooth(n: int) -> int:
    """Return the next length without a prime factor above 5: transforms of such lengths are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
