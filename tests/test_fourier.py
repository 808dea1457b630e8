"""The Fourier convention against torch's full complex transforms and autograd."""

from __future__ import annotations

import pytest
import torch
from asserting import SHAPES, assert_close, dense, normal
from torch.autograd import forward_ad

from equitomo import fourier
from equitomo.fourier import (
    filtered,
    filtered_mean_square,
    frequencies,
    full_spectrum,
    irfftn,
    is_even,
    mirrored,
    rfftn,
)

GRIDS = [(shape, tuple(factor * n for n in shape)) for shape in SHAPES for factor in (1, 2)]
AXES = (-3, -2, -1)
# torch itself calls it on its first forward derivative.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


def even_half(grid: tuple[int, int, int], seed: int = 3) -> torch.Tensor:
    """A real, even mask without any other symmetry, on the half spectrum."""
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = (mask + mirrored(mask, AXES)) / 2
    return mask[..., : grid[2] // 2 + 1]


def plain(
    x: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int, int], shape: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """What ``filtered`` computes, as one would write it down."""
    z, y, n = x.shape[-3:] if shape is None else shape
    volume = torch.fft.irfftn(mask * torch.fft.rfftn(x, s=grid, dim=AXES), s=grid, dim=AXES)
    return volume[..., :z, :y, :n]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inverse_restores_volumes(shape):
    x = normal(2, 1, *shape)
    assert_close(irfftn(rfftn(x), shape), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_is_half_of_the_orthonormal_one(shape):
    x = normal(*shape)
    assert_close(rfftn(x), torch.fft.fftn(x, norm="ortho")[..., : shape[2] // 2 + 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_adds_zeros_at_the_end(shape):
    x = normal(*shape)
    grid = tuple(n + 3 for n in shape)
    padded = torch.nn.functional.pad(x, (0, 3) * 3)
    assert_close(rfftn(x, grid), rfftn(padded))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sixteen_bits_are_transformed_in_float32(dtype):
    x = normal(6, 5, 4).to(dtype)
    assert rfftn(x).dtype == torch.complex64
    assert torch.equal(rfftn(x), rfftn(x.float()))


def test_autocast_does_not_reach_the_transforms():
    x = normal(1, 1, 6, 5, 4, dtype=torch.float32)
    mask = even_half((6, 5, 4)).float()
    expected = filtered(x, mask, (6, 5, 4)), irfftn(rfftn(x), (6, 5, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = filtered(x, mask, (6, 5, 4)), irfftn(rfftn(x), (6, 5, 4))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("function", [rfftn, lambda x: filtered(x, torch.ones(1, 1, 1), (4, 4, 4))])
def test_integers_are_refused(function):
    with pytest.raises(TypeError, match=r"floating-point volume is needed, got torch.int64: call .float\(\)"):
        function(torch.ones(4, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("shape", SHAPES)
def test_frequencies_are_those_of_plane_waves(shape):
    kz, ky, kx = frequencies(shape)
    z, y, x = (torch.arange(n, dtype=torch.float64) for n in shape)
    index = (1, 2, 3)
    phase = kz[index[0]] * z[:, None, None] + ky[0, index[1]] * y[None, :, None] + kx[0, 0, index[2]] * x
    spectrum = rfftn(torch.cos(2 * torch.pi * phase)).abs()
    assert tuple(torch.unravel_index(spectrum.argmax(), spectrum.shape)) == index


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirrored_mask_is_the_mask_at_minus_k(shape):
    mask = normal(*shape)
    for axes in (AXES, (-3, -1), (-2,)):
        expected = mask
        for axis in axes:
            index = -torch.arange(shape[axis]) % shape[axis]
            expected = expected.index_select(axis, index)
        assert torch.equal(mirrored(mask, axes), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_full_spectrum_of_an_even_mask_is_restored_from_its_half(shape):
    half = even_half(shape)
    full = full_spectrum(half[None, None], shape[2])[0, 0]
    assert torch.equal(full[..., : shape[2] // 2 + 1], half)
    assert torch.equal(full, mirrored(full, AXES))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plane", ["zero", "nyquist", "between"])
def test_evenness_is_lost_only_in_the_planes_that_hold_their_own_mirror_images(shape, plane):
    half = even_half(shape)
    assert is_even(half, shape[2])
    half[1, 2, {"zero": 0, "nyquist": -1, "between": 1}[plane]] += 1
    has_nyquist = shape[2] % 2 == 0
    assert is_even(half, shape[2]) == (plane == "between" or (plane == "nyquist" and not has_nyquist))


@pytest.mark.parametrize(("shape", "grid"), GRIDS)
@pytest.mark.parametrize("along_y", [True, False])
def test_filtering_is_the_plain_formula(shape, grid, along_y):
    x, mask = normal(2, 1, *shape), even_half(grid)
    if not along_y:
        mask = even_half((grid[0], 1, grid[2]))
    assert_close(filtered(x, mask, grid), plain(x, mask, grid))


@pytest.mark.parametrize(("shape", "grid"), GRIDS)
def test_the_gradient_of_filtering_is_that_of_the_plain_formula(shape, grid):
    x, mask, weight = normal(2, 1, *shape).requires_grad_(), even_half(grid), normal(2, 1, *shape, seed=1)
    (actual,) = torch.autograd.grad((filtered(x, mask, grid).sin() * weight).sum(), x)
    (expected,) = torch.autograd.grad((plain(x, mask, grid).sin() * weight).sum(), x)
    assert_close(actual, expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (8, 7, 8), (6, 9, 4)])
def test_filtering_with_a_complex_mask_cuts_to_another_shape_and_its_gradient_is_the_adjoint(shape):
    """The mask of a real filter without symmetry: that of a random kernel."""
    grid = (10, 9, 12)
    mask = torch.fft.rfftn(normal(*grid, seed=7), dim=AXES)
    x = normal(2, 6, 5, 8).requires_grad_()
    actual, expected = filtered(x, mask, grid, shape), plain(x, mask, grid, shape)
    assert_close(actual, expected)
    weight = normal(2, *shape, seed=1)
    for one, other in zip(*(torch.autograd.grad((v * weight).sum(), x) for v in (actual, expected)), strict=True):
        assert_close(one, other)


def test_filtering_passes_gradcheck_twice():
    x = normal(1, 3, 4, 3).requires_grad_()
    mask = even_half((6, 5, 6))

    def function(v):
        return filtered(v, mask, (6, 5, 6)).sin()

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_the_gradient_with_respect_to_a_mask_that_asks_for_one_is_right():
    shape, grid = (3, 4, 3), (6, 5, 6)
    x, mask = normal(1, *shape).requires_grad_(), even_half(grid).requires_grad_()
    actual = torch.autograd.grad(filtered(x, mask, grid).square().sum(), (x, mask))
    expected = torch.autograd.grad(plain(x, mask, grid).square().sum(), (x, mask))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


def test_the_gradient_is_summed_where_one_volume_meets_several_masks():
    grid = (6, 5, 6)
    x = normal(1, 1, *grid).requires_grad_()
    masks = torch.stack([even_half(grid, seed) for seed in (1, 2, 3)])[:, None]
    (actual,) = torch.autograd.grad(filtered(x, masks, grid).square().sum(), x)
    (expected,) = torch.autograd.grad(plain(x, masks, grid).square().sum(), x)
    assert_close(actual, expected)


def test_filtering_works_under_vjp_and_vmap_of_torch_func():
    grid = (6, 5, 6)
    x, mask, v = normal(4, 1, 6, 5, 6), even_half(grid), normal(4, 1, 6, 5, 6, seed=1)
    value, pull_back = torch.func.vjp(lambda u: filtered(u, mask, grid), x)
    assert_close(value, filtered(x, mask, grid))
    assert_close(pull_back(v)[0], filtered(v, mask, grid))
    assert_close(torch.vmap(lambda u: filtered(u, mask, grid))(x), filtered(x, mask, grid))
    gradient = torch.vmap(torch.func.grad(lambda u: filtered(u, mask, grid).square().sum()))(x)
    assert_close(gradient, 2 * filtered(filtered(x, mask, grid), mask, grid))


@forward_mode
@pytest.mark.parametrize(("shape", "grid"), GRIDS)
@pytest.mark.parametrize("along_y", [True, False])
def test_the_forward_derivative_of_filtering_is_filtering(shape, grid, along_y):
    grid = grid if along_y else (grid[0], shape[1], grid[2])
    x, v, mask = normal(2, 1, *shape), normal(2, 1, *shape, seed=1), even_half(grid)[:, slice(None if along_y else 1)]
    mask = (mask + mirrored(mask, (-3,))) / 2 if not along_y else mask
    value, derivative = torch.func.jvp(lambda u: filtered(u, mask, grid), (x,), (v,))
    assert torch.equal(value, filtered(x, mask, grid))
    assert torch.equal(derivative, filtered(v, mask, grid))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(filtered(forward_ad.make_dual(x, v), mask, grid))
        assert torch.equal(dual.tangent, derivative)


@forward_mode
def test_the_forward_derivative_with_respect_to_volume_and_mask_is_the_sum_of_both():
    grid = (6, 5, 6)
    x, v, mask, change = normal(1, 3, 4, 3), normal(1, 3, 4, 3, seed=1), even_half(grid), even_half(grid, 4)
    _, derivative = torch.func.jvp(lambda u, m: filtered(u, m, grid), (x, mask), (v, change))
    assert_close(derivative, filtered(v, mask, grid) + filtered(x, change, grid))
    _, derivative = torch.func.jvp(lambda m: filtered(x, m, grid), (mask,), (change,))
    assert_close(derivative, filtered(x, change, grid))


@forward_mode
def test_the_hessian_of_a_filtered_square_is_the_filter_twice():
    grid = (3, 4, 5)
    mask = even_half(grid)
    hessian = torch.func.hessian(lambda u: filtered(u, mask, grid).square().sum())(normal(*grid))
    assert_close(hessian.reshape(60, 60), 2 * dense(lambda u: filtered(filtered(u, mask, grid), mask, grid), grid))


def test_filtering_keeps_no_spectrum_for_the_gradient():
    x, mask, kept = normal(1, 1, 8, 8, 8).requires_grad_(), even_half((16, 16, 16)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        filtered(x, mask, (16, 16, 16))
    assert [tuple(t.shape) for t in kept] == [tuple(mask.shape)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "lengths", [(1, 1, 1), (3, 1, 1), (1, 1, 0)], ids=["one mask", "each its own", "constant along y"]
)
def test_by_parseval_the_mean_square_and_its_gradient_are_those_of_the_filtered_volume(shape, lengths):
    n_masks, channels, along_y = lengths
    mask = torch.stack([even_half(shape, seed) for seed in range(n_masks)])[:, None]
    if not along_y:
        mask = mask[..., :1, :]
        mask = (mask + mirrored(mask.expand(1, 1, shape[0], 1, shape[2] // 2 + 1), (-3,))) / 2
    x = normal(3, 2 * channels, *shape).requires_grad_()
    weight = torch.tensor([1.0, 2.0, -3.0], dtype=x.dtype)
    value = filtered_mean_square(x, mask)
    expected = filtered(x, mask, shape).square().mean(dim=(1, 2, 3, 4))
    assert_close(value, expected)
    assert_close(*(torch.autograd.grad((weight * v).sum(), x)[0] for v in (value, expected)))


@forward_mode
@pytest.mark.parametrize("lengths", [(2, 3, 4), (3, 3, 3)])
@pytest.mark.parametrize("along_y", [True, False])
def test_parsevals_mean_square_passes_gradcheck_in_every_order(lengths, along_y):
    mask = even_half(lengths if along_y else (lengths[0], 1, lengths[2]))
    x = normal(2, 1, *lengths).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: filtered_mean_square(u, mask), (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda u: filtered_mean_square(u, mask), (x,), check_fwd_over_rev=True)


def test_the_norm_of_a_gradient_of_parsevals_mean_square_can_be_learned_from():
    """A gradient penalty: the second derivative passes through the gradient of the value, and through its factor."""
    x, mask = normal(2, 1, 4, 5, 6).requires_grad_(), even_half((4, 5, 6))
    found = []
    for square in (filtered_mean_square, lambda u, m: filtered(u, m, (4, 5, 6)).square().mean(dim=(1, 2, 3, 4))):
        (gradient,) = torch.autograd.grad(square(x.sin(), mask).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    assert_close(*found)


def test_a_learned_mask_gets_the_gradient_of_parsevals_mean_square():
    x, mask = normal(2, 1, 4, 5, 6), even_half((4, 5, 6)).requires_grad_()
    found = torch.autograd.grad(filtered_mean_square(x, mask).sum(), mask)[0]
    expected = torch.autograd.grad(plain(x, mask, (4, 5, 6)).square().mean(dim=(1, 2, 3, 4)).sum(), mask)[0]
    assert_close(found, expected)


def test_parsevals_mean_square_takes_one_transform_each_way(monkeypatch):
    calls = []
    for name in ("rfft", "irfft"):
        real = getattr(torch.fft, name)
        monkeypatch.setattr(torch.fft, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    x = normal(1, 1, 6, 6, 6).requires_grad_()
    filtered_mean_square(x, even_half((6, 6, 6))).sum().backward()
    assert calls == ["rfft", "irfft"]


def test_a_batch_too_large_for_the_cache_is_filtered_volume_by_volume_alike(monkeypatch):
    x = torch.randn(3, 2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(3, 1, 8, 7, 5, dtype=torch.float64)
    together = fourier.filtered(x, masks, (8, 7, 8))
    (gradient,) = torch.autograd.grad(together.square().sum(), x)
    monkeypatch.setattr(fourier, "LARGEST_TOGETHER", 1)
    apart = fourier.filtered(x, masks, (8, 7, 8))
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(apart.square().sum(), x)[0], gradient, rtol=0, atol=1e-13)
    # One volume under several masks, as broadcasting has it.
    several = fourier.filtered(x[:1].detach(), masks, (8, 7, 8))
    assert several.shape == (3, 2, 5, 6, 7)
    torch.testing.assert_close(several[2], fourier.filtered(x[0].detach(), masks[2], (8, 7, 8)), rtol=0, atol=1e-14)
