r"""The one Fourier convention of the package.

Transforms are real, orthonormal and unshifted, over the last three axes ``(z, y, x)``; a spectrum is
the half ``kx >= 0``. Frequencies are in cycles per voxel, Nyquist is 0.5. Under autocast, and for
half-precision input, the transforms run in float32: sixteen bits do not hold a spectrum's range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equitomo.checks import spatial_shape

_AXES = (-3, -2, -1)
# Voxels of a grid above which a CPU filters one volume after the other: a batch of their spectra would neither stay in
# the cache nor in memory that the allocator has at hand, and take up to twice the time.
_LARGEST_TOGETHER = 1 << 19


def rfftn(x: Tensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Half spectrum of real volumes, zero-padded at the end of each axis to ``shape`` if given.

    Parameters
    ----------
    x
        Real volumes ``(..., z, y, x)``.
    shape
        Lengths to transform at; ``None`` takes those of ``x``.

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


def irfftn(spectrum: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Real volumes of ``shape`` voxels from their half spectrum; the inverse of :func:`rfftn`."""
    with torch.autocast(spectrum.device.type, enabled=False):
        volume: Tensor = torch.fft.irfftn(spectrum, s=shape, dim=_AXES, norm="ortho")
    return volume


def filtered(x: Tensor, mask: Tensor, grid: tuple[int, int, int], shape: tuple[int, int, int] | None = None) -> Tensor:
    r"""Zero-pad to ``grid``, multiply the spectrum by a mask, cut back to ``shape``.

    .. math:: A x = C\, F^{-1} \operatorname{diag}(m)\, F P x

    Axis by axis, so that lines of zeros are not transformed and what is cut off is not computed. With a real mask and
    the shape of ``x`` the operator is self-adjoint. The gradient is the adjoint, the same filter with the conjugate
    mask and the shapes exchanged, and no spectrum is kept for it.

    Parameters
    ----------
    x
        Real volumes ``(..., z, y, x)``.
    mask
        On the half spectrum of ``grid``, broadcastable; that of a real filter, ``m(-k)`` the conjugate of ``m(k)``.
        If it is constant along y, that axis must have its length in ``x``, ``grid`` and ``shape`` alike.
    grid
        Lengths to transform at, none below the volume's.
    shape
        Lengths of the result; ``None`` takes those of ``x``.

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
        result: Tensor = _Filter.apply(x, mask, grid, shape)
        return result


def filtered_mean_square(x: Tensor, mask: Tensor) -> Tensor:
    r"""Mean of the squared filtered volumes, one value per sample, without computing them.

    .. math:: \frac1N \lVert F^{-1} \operatorname{diag}(m)\, F x \rVert^2 = \frac1N \sum_k m(k)^2 |\hat x(k)|^2

    Parseval's theorem; nothing may be cut off or padded. One transform, and one more for the gradient
    :math:`\frac2N F^{-1} \operatorname{diag}(m^2) F x`, where :func:`filtered` needs two and two. It can be
    differentiated once.

    Parameters
    ----------
    x
        Real volumes ``(batch, C, z, y, x)``.
    mask
        On the half spectrum of ``x``, broadcastable; real, or that of a real filter.

    Examples
    --------
    >>> x = torch.randn(2, 1, 4, 5, 6)
    >>> torch.allclose(filtered_mean_square(x, torch.ones(1, 1, 1)), x.square().mean(dim=(1, 2, 3, 4)))
    True
    """
    with torch.autocast(x.device.type, enabled=False):
        value: Tensor = _MeanSquare.apply(_at_least_float32(x), mask)
        return value


def frequencies(
    shape: tuple[int, int, int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies of the half spectrum, in cycles per voxel.

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


def mirrored(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``mask(-k)`` of a full, unshifted spectrum, reversed along ``axes``."""
    # Index 0 holds k = 0 and stays; index i becomes N - i. A broadcast axis of length 1 is its own mirror.
    return mask.flip(axes).roll((1,) * len(axes), axes)


def full_spectrum(half: Tensor, length_x: int) -> Tensor:
    """The full spectrum ``(..., z, y, x)`` of an even mask that is given on the half ``kx >= 0``.

    A mask that is constant along x (length 1 there) stays as it is.

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
    """Whether a mask on the half spectrum is that of a real operator, ``m(k) = m(-k)``.

    Only the planes that hold their own mirror images can break it: ``kx = 0`` and, on an even axis, Nyquist.
    """
    own = [0] if length_x % 2 or half.shape[-1] == 1 else [0, -1]
    planes = half[..., own]
    return torch.equal(planes, mirrored(planes, (-3, -2)))


def multiplicity(length_x: int, device: torch.device | str | None = None) -> Tensor:
    """How many coefficients of the full spectrum each plane ``kx`` of the half stands for.

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


def _filter(x: Tensor, mask: Tensor, grid: tuple[int, int, int], shape: tuple[int, int, int]) -> Tensor:
    leading = torch.broadcast_shapes(x.shape[:-3], mask.shape[:-3])  # type: ignore[no-untyped-call]
    if math.prod(leading) > 1 and math.prod(grid) > _LARGEST_TOGETHER and x.device.type == "cpu":
        x, mask = (t.expand(*leading, *t.shape[-3:]) for t in (x, mask))
        return torch.stack([_filter(volume, own, grid, shape) for volume, own in zip(x, mask, strict=True)])
    along_y = mask.shape[-2] > 1
    return _inverse(_forward(x, grid, along_y) * _turned(mask, along_y), grid, shape, along_y)


# The axis in hand comes last: a transform along another one would copy twice, to pad and to reorder. A mask that is
# constant along y commutes with everything along y, which is then left out.


def _forward(x: Tensor, grid: tuple[int, int, int], along_y: bool) -> Tensor:
    """Half spectrum on a grid, its axes ordered as :func:`_turned` says."""
    spectrum: Tensor = torch.fft.rfft(x, n=grid[2])
    if along_y:
        spectrum = torch.fft.fft(spectrum.transpose(-1, -2), n=grid[1])
    spectrum = torch.fft.fft(spectrum.movedim(-3, -1), n=grid[0])
    return spectrum


def _inverse(spectrum: Tensor, grid: tuple[int, int, int], shape: tuple[int, int, int], along_y: bool) -> Tensor:
    """Back from :func:`_forward`, cut to a shape."""
    spectrum = torch.fft.ifft(spectrum)[..., : shape[0]]
    if along_y:
        spectrum = torch.fft.ifft(spectrum.transpose(-1, -2))[..., : shape[1]].movedim(-3, -1)
    else:
        spectrum = spectrum.movedim(-1, -3)
    volume: Tensor = torch.fft.irfft(spectrum, n=grid[2])
    return volume[..., : shape[2]]


def _turned(mask: Tensor, along_y: bool) -> Tensor:
    """A mask in the order that :func:`_forward` leaves: ``(..., kx, y, z)``, or without y ``(..., y, kx, z)``."""
    return mask.transpose(-3, -1) if along_y else mask.movedim(-3, -1)


def laid_out(mask: Tensor) -> Tensor:
    """The same mask with z innermost in memory, the order in which :func:`filtered` meets it."""
    return mask.transpose(-3, -1).contiguous().transpose(-3, -1)


class _Filter(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, grid: tuple[int, int, int], shape: tuple[int, int, int]) -> Tensor:
        return _filter(x, mask, grid, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mask, ctx.grid, _ = inputs
        ctx.shape = tuple(x.shape[-3:])
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (mask,) = ctx.saved_tensors
        return _Filter.apply(gradient, mask.conj(), ctx.grid, ctx.shape), None, None, None


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        z, y, n = x.shape[-3:]
        along_y = mask.shape[-2] > 1
        spectrum = _forward(x, (z, y, n), along_y)
        ctx.shape = tuple(x.shape)
        ctx.save_for_backward(spectrum, mask)
        energy = torch.view_as_real(spectrum).square().sum(-1) * _turned(
            _power(mask) * multiplicity(n, device=x.device), along_y
        )
        return energy.sum(dim=(1, 2, 3, 4)) / (x[0].numel() * z * n * (y if along_y else 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        spectrum, mask = ctx.saved_tensors
        grid, along_y = ctx.shape[-3:], mask.shape[-2] > 1
        scale = 2 * gradient[:, None, None, None, None] / math.prod(ctx.shape[1:])
        return scale * _inverse(spectrum * _turned(_power(mask), along_y), grid, grid, along_y), None


def _power(mask: Tensor) -> Tensor:
    return mask.abs().square()


def _at_least_float32(x: Tensor) -> Tensor:
    if not torch.is_floating_point(x):
        raise TypeError(f"a real floating-point volume is needed, got {x.dtype}: call .float() first")
    return x if x.dtype == torch.float64 else x.float()


def hann(shape: Sequence[int]) -> Tensor:
    """Return a Hann window ``(z, y, x)`` in float32 that is zero just outside the faces.

    Without it the jumps between opposite faces would put a cross over the spectrum.
    """
    z, y, x = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in shape)
    return z[:, None, None] * y[:, None] * x


def cosine_taper(shape: Sequence[int], width: int = 8) -> Tensor:
    r"""Window ``(z, y, x)`` in float32 that falls from one to zero towards the faces of a volume.

    .. math:: w(i) = \tfrac12 - \tfrac12 \cos\bigl(\pi (i + \tfrac12) / n\bigr), \qquad i < n = \text{width}

    from both ends of each axis, over ``width`` voxels but at most a quarter of the shortest side.

    Examples
    --------
    >>> [round(value, 3) for value in cosine_taper((16, 16, 16), width=2)[8, 8, :4].tolist()]
    [0.146, 0.854, 1.0, 1.0]
    """
    z, y, x = cosine_edges(shape, width)
    return z[:, None, None] * y[:, None] * x


def cosine_edges(shape: Sequence[int], width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of :func:`cosine_taper` along z, y and x, for a volume that is looked at in parts."""
    if width < 0:
        raise ValueError(f"width must not be negative, got {width}")
    width = min(width, min(shape) // 4)
    rise = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(width) + 0.5) / max(width, 1))
    z, y, x = (torch.cat((rise, torch.ones(n - 2 * width), rise.flip(0))) for n in spatial_shape(shape))
    return z, y, x
