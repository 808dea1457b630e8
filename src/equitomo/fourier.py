r"""Fourier transforms in the convention of the package.

Transforms are real, orthonormal and unshifted, over the last three axes ``(z, y, x)``, and a spectrum is the half with
``kx >= 0``. Frequencies are in cycles per voxel, and Nyquist is 0.5. Under autocast and for half-precision input the
transforms are computed in float32, because 16 bits do not hold the range of a spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from equitomo.checks import Shape, spatial_shape

_AXES = (-3, -2, -1)
# Masks that are computed from angles, such as contrast transfer functions with astigmatism, are symmetric only up to
# this fraction of their largest value.
ROUNDING = 1e-5
# On larger grids a CPU filters one volume after the other: the spectra of a batch would fit neither into the cache nor
# into the memory that the allocator keeps, and would take up to twice the time.
LARGEST_TOGETHER = 1 << 19


def rfftn(x: Tensor, shape: Shape | None = None) -> Tensor:
    """Return the half spectrum of real volumes, zero-padded at the end of each axis to ``shape`` if given.

    Parameters
    ----------
    x
        Real volumes ``(..., z, y, x)``.
    shape
        The lengths of the transform; ``None`` takes those of ``x``.

    Returns
    -------
    Tensor
        Complex ``(..., z, y, x // 2 + 1)``, complex64 or complex128.

    Examples
    --------
    >>> x = torch.randn(4, 5, 6, dtype=torch.float64)
    >>> rfftn(x).shape
    torch.Size([4, 5, 4])
    >>> torch.allclose(irfftn(rfftn(x), (4, 5, 6)), x)
    True
    """
    with torch.autocast(x.device.type, enabled=False):
        spectrum: Tensor = torch.fft.rfftn(_at_least_float32(x), s=shape, dim=_AXES, norm="ortho")
    return spectrum


def irfftn(spectrum: Tensor, shape: Shape) -> Tensor:
    """Return the real volumes of ``shape`` voxels of a half spectrum; this is the inverse of :func:`rfftn`."""
    with torch.autocast(spectrum.device.type, enabled=False):
        volume: Tensor = torch.fft.irfftn(spectrum, s=shape, dim=_AXES, norm="ortho")
    return volume


def filtered(x: Tensor, mask: Tensor, grid: Shape, shape: Shape | None = None) -> Tensor:
    r"""Zero-pad volumes to ``grid``, multiply their spectrum by a mask, and crop them to ``shape``.

    .. math:: A x = C\, F^{-1} \operatorname{diag}(m)\, F P x

    The axes are transformed one after the other, so that lines of zeros are not transformed and cropped lines are not
    computed. With a real mask and the shape of ``x`` the operator is self-adjoint. Its gradient is the adjoint, which
    is the same filter with the conjugate mask and the shapes exchanged, and needs no stored spectrum. Its forward
    derivative is the filter itself.

    Parameters
    ----------
    x
        Real volumes ``(..., z, y, x)``.
    mask
        The mask of a real filter on the half spectrum of ``grid``, with ``m(-k)`` the conjugate of ``m(k)``. It may
        have length 1 along axes where it is constant. With length 1 along y no transform is needed there, and the
        volumes must have the length of ``shape`` along y.
    grid
        The lengths of the transform, none below those of the volumes.
    shape
        The lengths of the result; ``None`` takes those of ``x``.

    Examples
    --------
    >>> x = torch.randn(4, 5, 6)
    >>> torch.allclose(filtered(x, torch.ones(1, 1, 1), (8, 5, 6)), x, atol=1e-6)
    True
    """
    if shape is None:
        z, y, n = x.shape[-3:]
        shape = (z, y, n)
    with torch.autocast(x.device.type, enabled=False):
        x = _at_least_float32(x)
        if mask.requires_grad:
            return _filter(x, mask, grid, shape)
        result: Tensor = _Filter.apply(x, mask, _Lengths(grid, shape))
        return result


def filtered_mean_square(x: Tensor, mask: Tensor) -> Tensor:
    r"""Return the mean square of filtered volumes, one value per sample, without computing these volumes.

    .. math:: \frac1N \lVert F^{-1} \operatorname{diag}(m)\, F x \rVert^2 = \frac1N \sum_k m(k)^2 |\hat x(k)|^2

    This is Parseval's theorem, which holds without padding and cropping. It takes one transform, and one more for the
    gradient :math:`\frac2N F^{-1} \operatorname{diag}(m^2) F x`, where :func:`filtered` takes two for each.

    Parameters
    ----------
    x
        Real volumes ``(batch, C, z, y, x)``.
    mask
        The mask of a real filter on the half spectrum of ``x``, with length 1 where it is constant.

    Examples
    --------
    >>> x = torch.randn(2, 1, 4, 5, 6)
    >>> torch.allclose(filtered_mean_square(x, torch.ones(1, 1, 1)), x.square().mean(dim=(1, 2, 3, 4)))
    True
    """
    with torch.autocast(x.device.type, enabled=False):
        x = _at_least_float32(x)
        if mask.requires_grad:
            z, y, n = x.shape[-3:]
            return filtered(x, mask, (z, y, n)).square().mean(dim=(1, 2, 3, 4))
        value: Tensor = _MeanSquare.apply(x, mask)[0]
        return value


def frequencies(
    shape: Shape,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frequencies of the half spectrum, in cycles per voxel.

    Returns
    -------
    tuple of Tensor
        ``kz`` of shape (z, 1, 1), ``ky`` of shape (1, y, 1) and ``kx >= 0`` of shape (1, 1, x // 2 + 1).
        On an even axis the Nyquist index of z and y carries the value -0.5.

    Examples
    --------
    >>> kz, ky, kx = frequencies((4, 5, 6))
    >>> kz.flatten().tolist(), kx.flatten().tolist()
    ([0.0, 0.25, -0.5, -0.25], [0.0, 0.16666666666666666, 0.3333333333333333, 0.5])
    """
    z, y, x = shape
    return (
        torch.fft.fftfreq(z, device=device, dtype=dtype)[:, None, None],
        torch.fft.fftfreq(y, device=device, dtype=dtype)[None, :, None],
        torch.fft.rfftfreq(x, device=device, dtype=dtype)[None, None, :],
    )


def frequency_radius(
    shape: Shape, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the distance of each coefficient of the half spectrum from zero frequency, in cycles per voxel."""
    kz, ky, kx = frequencies(shape, device=device, dtype=dtype)
    return (kz**2 + ky**2 + kx**2).sqrt()


def mirrored(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return a mask on the full, unshifted spectrum reversed along ``axes``; along all axes it is ``mask(-k)``."""
    # Index 0 holds k = 0 and stays, and index i becomes N - i. An axis of length 1 is its own mirror.
    return mask.flip(axes).roll((1,) * len(axes), axes)


def full_spectrum(half: Tensor, length_x: int) -> Tensor:
    """Return an even mask on the full spectrum ``(..., z, y, x)`` from its half with ``kx >= 0``.

    A mask that is constant along x, where it has length 1, stays as it is.

    Examples
    --------
    >>> full_spectrum(torch.tensor([[[1.0, 2.0, 3.0]]]), 4)
    tensor([[[1., 2., 3., 2.]]])
    """
    if half.shape[-1] == 1:
        return half
    rest = mirrored(half[..., 1 : (length_x + 1) // 2], (-3, -2)).flip(-1)
    return torch.cat((half, rest), dim=-1)


def is_even(half: Tensor, length_x: int) -> bool:
    """Return whether a mask on the half spectrum is that of a real operator, ``m(k) = m(-k)`` up to rounding.

    It can differ only in planes that contain their own mirror images: ``kx = 0`` and, on an even axis, Nyquist.
    """
    own = [0] if length_x % 2 or half.shape[-1] == 1 else [0, -1]
    planes = half[..., own]
    return bool((planes - mirrored(planes, (-3, -2))).abs().max() <= ROUNDING * planes.abs().max())


def multiplicity(length_x: int, device: torch.device | str | None = None) -> Tensor:
    """Return the number of coefficients of the full spectrum that each plane ``kx`` of the half stands for.

    Examples
    --------
    >>> multiplicity(6).tolist(), multiplicity(5).tolist()
    ([1.0, 2.0, 2.0, 1.0], [1.0, 2.0, 2.0])
    """
    count = torch.full((length_x // 2 + 1,), 2.0, device=device)
    count[0] = 1.0
    if length_x % 2 == 0:
        count[-1] = 1.0
    return count


def hann(shape: Sequence[int]) -> Tensor:
    """Return a Hann window ``(z, y, x)`` in float32 that is zero just outside the faces.

    It prevents the cross that the jumps between opposite faces would cause in the spectrum.
    """
    z, y, x = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in shape)
    return z[:, None, None] * y[:, None] * x


def cosine_taper(shape: Sequence[int], width: int = 8) -> Tensor:
    r"""Return a window ``(z, y, x)`` in float32 that falls from one to zero towards the faces of a volume.

    .. math:: w(i) = \tfrac12 - \tfrac12 \cos\bigl(\pi (i + \tfrac12) / n\bigr), \qquad i < n = \text{width}

    This is the factor at both ends of each axis, over ``width`` voxels but at most a quarter of the shortest side.

    Examples
    --------
    >>> [round(value, 3) for value in cosine_taper((16, 16, 16), width=2)[8, 8, :4].tolist()]
    [0.146, 0.854, 1.0, 1.0]
    """
    z, y, x = cosine_edges(shape, width)
    return z[:, None, None] * y[:, None] * x


def cosine_edges(shape: Sequence[int], width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of :func:`cosine_taper` along z, y and x, for a volume that is read in parts."""
    if width < 0:
        raise ValueError(f"`width` must not be negative, got {width}")
    width = min(width, min(shape) // 4)
    rise = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(width) + 0.5) / max(width, 1))
    z, y, x = (torch.cat((rise, torch.ones(n - 2 * width), rise.flip(0))) for n in spatial_shape(shape))
    return z, y, x


def _filter(x: Tensor, mask: Tensor, grid: Shape, shape: Shape) -> Tensor:
    """Return filtered volumes; see :func:`filtered`."""
    leading = torch.broadcast_shapes(x.shape[:-3], mask.shape[:-3])  # type: ignore[no-untyped-call]
    if math.prod(leading) > 1 and math.prod(grid) > LARGEST_TOGETHER and x.device.type == "cpu":
        x, mask = (t.expand(*leading, *t.shape[-3:]) for t in (x, mask))
        return torch.stack([_filter(volume, own, grid, shape) for volume, own in zip(x, mask, strict=True)])
    along_y = mask.shape[-2] > 1
    return _inverse(_forward(x, grid, along_y) * _reordered(mask, along_y), grid, shape, along_y)


# The axis that is transformed next is the last one, because a transform along another one would copy twice, to pad and
# to reorder. A mask that is constant along y commutes with the transform along y, which is then omitted.


def _forward(x: Tensor, grid: Shape, along_y: bool) -> Tensor:
    """Return the half spectrum on a grid, with the order of axes of :func:`_reordered`."""
    spectrum: Tensor = torch.fft.rfft(x, n=grid[2])
    if along_y:
        spectrum = torch.fft.fft(spectrum.transpose(-1, -2), n=grid[1])
    spectrum = torch.fft.fft(spectrum.movedim(-3, -1), n=grid[0])
    return spectrum


def _inverse(spectrum: Tensor, grid: Shape, shape: Shape, along_y: bool) -> Tensor:
    """Return the volumes of a spectrum from :func:`_forward`, cropped to a shape."""
    spectrum = torch.fft.ifft(spectrum)[..., : shape[0]]
    if along_y:
        spectrum = torch.fft.ifft(spectrum.transpose(-1, -2))[..., : shape[1]].movedim(-3, -1)
    else:
        spectrum = spectrum.movedim(-1, -3)
    volume: Tensor = torch.fft.irfft(spectrum, n=grid[2])
    # The copy frees the memory of the cropped part, and torch's forward mode accepts no view here.
    return volume if shape[2] == grid[2] else volume[..., : shape[2]].contiguous()


def _reordered(mask: Tensor, along_y: bool) -> Tensor:
    """Return a mask in the order of :func:`_forward`: ``(..., kx, y, z)``, or without y ``(..., y, kx, z)``."""
    return mask.transpose(-3, -1) if along_y else mask.movedim(-3, -1)


def laid_out(mask: Tensor) -> Tensor:
    """Return the mask with z innermost in memory, which is the order in which :func:`filtered` reads it."""
    return mask.transpose(-3, -1).contiguous().transpose(-3, -1)


@dataclass(frozen=True)
class _Lengths:
    """The grid of a filter and the shape of its result, because torch would unpack tuples into arguments."""

    grid: Shape
    shape: Shape


class _Filter(torch.autograd.Function):
    """The filter with its adjoint as gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, lengths: _Lengths) -> Tensor:
        return _filter(x, mask, lengths.grid, lengths.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mask, ctx.lengths = inputs
        z, y, n = x.shape[-3:]
        ctx.reversed = _Lengths(ctx.lengths.grid, (z, y, n))
        ctx.save_for_backward(mask)
        ctx.save_for_forward(x, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _Filter.apply(gradient, mask.conj(), ctx.reversed), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dmask: Tensor | None, _: None) -> Tensor:
        x, mask = ctx.saved_tensors
        terms = [(x, dmask)] if dx is None else [(dx, mask), (x, dmask)]
        parts = [_Filter.apply(volume, m, ctx.lengths) for volume, m in terms if m is not None]
        return cast(Tensor, sum(parts[1:], parts[0]))


class _MeanSquare(torch.autograd.Function):
    """The mean square, and the spectrum that it was computed from, which the gradient needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        z, y, n = x.shape[-3:]
        along_y = mask.shape[-2] > 1
        spectrum = _forward(x, (z, y, n), along_y)
        energy = torch.view_as_real(spectrum).square().sum(-1) * _reordered(
            _power(mask) * multiplicity(n, device=x.device), along_y
        )
        return energy.sum(dim=(1, 2, 3, 4)) / (x[0].numel() * z * n * (y if along_y else 1)), spectrum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, spectrum = output
        ctx.mark_non_differentiable(spectrum)
        ctx.save_for_backward(*inputs, spectrum)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        x, mask, spectrum = ctx.saved_tensors
        z, y, n = x.shape[-3:]
        scale = 2 * gradient[:, None, None, None, None] / x[0].numel()
        if torch.is_grad_enabled():
            # The second derivative depends on x, and the stored spectrum has no derivative with respect to x.
            return scale * _Filter.apply(x, _power(mask), _Lengths((z, y, n), (z, y, n))), None
        along_y = mask.shape[-2] > 1
        filtered_twice = _inverse(spectrum * _reordered(_power(mask), along_y), (z, y, n), (z, y, n), along_y)
        return scale * filtered_twice, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dmask: Tensor | None) -> tuple[Tensor, None]:
        x, mask = ctx.saved_tensors
        z, y, n = x.shape[-3:]
        product = dx * _Filter.apply(x, _power(mask), _Lengths((z, y, n), (z, y, n)))
        return 2 * product.mean(dim=(1, 2, 3, 4)), None


def _power(mask: Tensor) -> Tensor:
    """Return the squared magnitude of a mask."""
    return mask.abs().square()


def _at_least_float32(x: Tensor) -> Tensor:
    """Return volumes in float64 as they are, and others in float32."""
    if not torch.is_floating_point(x):
        raise TypeError(f"a real floating-point volume is needed, got {x.dtype}: call .float() first")
    return x if x.dtype == torch.float64 else x.float()
