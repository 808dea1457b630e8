"""The two operators: projection or contraction, proximal steps, masks per sample, deepinv's ways of handling them."""

from __future__ import annotations

import itertools

import pytest
import torch
from asserting import (
    CASES,
    RANGES,
    SHAPES,
    assert_close,
    assert_contraction,
    assert_differs,
    assert_projection,
    assert_real_operator,
    assert_self_adjoint,
    dense,
    normal,
    operator,
)
from deepinv.physics import GaussianNoise

from equitomo.fourier import is_even
from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.physics.inside import InsideFilter

OPERATORS = [MissingWedgeOperator, PaddedMissingWedgeOperator]
TINY = [((4, 4, 4), (-60.0, 60.0), "y", "ball"), ((3, 4, 5), (-50.0, 20.0), "x", "box")]
each_operator = pytest.mark.parametrize("kind", OPERATORS)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_tiny = pytest.mark.parametrize("case", TINY, ids=str)


def masks(case, ranges=((-60, 60), (-50, 20), (-30, 45))):
    """Operators of several ranges, and their masks stacked for a batch."""
    shape, _, axis, support = case
    return lambda kind: [operator(kind, (shape, each, axis, support)) for each in ranges]


@each_case
def test_the_unpadded_operator_is_an_orthogonal_projection_and_its_own_inverse(case):
    assert_projection(operator(MissingWedgeOperator, case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_single_precision_it_is_one_to_a_millionth(dtype):
    physics = MissingWedgeOperator((16, 15, 18), (-60.0, 40.0))
    y = physics.A(normal(2, 1, 16, 15, 18).to(dtype))
    assert y.dtype == torch.float32
    assert_close(physics.A(y), y, 1e-6)


@each_case
def test_the_padded_operator_is_self_adjoint(case):
    assert_self_adjoint(operator(PaddedMissingWedgeOperator, case))


@each_operator
@each_case
def test_operators_are_real_and_equal_to_the_full_complex_formula(kind, case):
    assert_real_operator(operator(kind, case))


@each_operator
@each_tiny
def test_no_operator_amplifies(kind, case):
    assert_contraction(operator(kind, case))


@each_case
def test_the_padded_operator_is_no_projection(case):
    physics = operator(PaddedMissingWedgeOperator, case)
    y = physics.A(normal(1, 1, *physics.volume_shape))
    assert (physics.A(y) - y).norm() > 0.03 * y.norm()


@each_tiny
def test_many_singular_values_of_the_padded_operator_lie_strictly_between_zero_and_one(case):
    singular = torch.linalg.svdvals(dense(operator(PaddedMissingWedgeOperator, case).A, case[0]))
    assert ((singular > 0.05) & (singular < 0.95)).float().mean() > 0.2


@each_tiny
def test_the_singular_values_of_the_unpadded_operator_are_zero_and_one(case):
    singular = torch.linalg.svdvals(dense(operator(MissingWedgeOperator, case).A, case[0]))
    assert torch.minimum(singular, (1 - singular).abs()).max() < 1e-12
    assert 0 < singular.sum() < len(singular)


def test_an_unsymmetrised_mask_would_be_no_projection_although_it_passes_the_adjointness_test():
    """What the mirror condition on even grids is for; the operator therefore refuses such a mask."""
    shape, (low, high) = (8, 8, 8), (-60.0, 30.0)
    kz, kx = torch.fft.fftfreq(8)[:, None], torch.fft.fftfreq(8)[None, :5].abs()
    angle = torch.rad2deg(torch.atan2(kz, kx))
    naive = ((angle >= low) & (angle <= high) | (kz == 0) & (kx == 0)).double()[None, None, :, None, :]
    physics = operator(MissingWedgeOperator, (shape, (low, high), "y", "box"))
    with pytest.raises(ValueError, match=r"`mask` must be even, m\(k\) = m\(-k\)"):
        physics.update(mask=naive)
    physics.mask = naive
    u, v = normal(1, 1, *shape), normal(1, 1, *shape, seed=1)
    assert_close((physics.A(u) * v).sum(), (u * physics.A(v)).sum())
    y = physics.A(u)
    assert_differs(physics.A(y), y, 0.02)


@each_operator
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tilts", RANGES)
def test_the_operators_masks_are_even(kind, shape, tilts):
    for axis, support in itertools.product(("y", "x"), ("ball", "box")):
        physics = operator(kind, (shape, tilts, axis, support))
        assert is_even(physics.mask, physics.grid_shape[2])


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, (12, 18, 16)),
        ({"support": "box"}, (12, 9, 16)),
        ({"support": "box", "low_pass": 0.4}, (12, 18, 16)),
        ({"padding": 1.5}, (9, 14, 12)),
        ({"padding": 1}, (6, 9, 8)),
    ],
)
def test_padding_multiplies_the_lengths_and_spares_the_tilt_axis_where_it_would_change_nothing(settings, grid):
    assert PaddedMissingWedgeOperator((6, 9, 8), (-60, 60), **settings).grid_shape == grid


def test_padding_along_the_tilt_axis_would_change_nothing():
    shape, geometry = (6, 7, 8), TiltGeometry.from_range(-60, 40, "x")
    physics = PaddedMissingWedgeOperator(shape, geometry, support="box").double()
    assert physics.grid_shape == (12, 14, 8)
    x = normal(1, 1, *shape)
    mask = wedge_mask((12, 14, 16), geometry).double()
    spectrum = mask * torch.fft.rfftn(x, s=(12, 14, 16), dim=(-3, -2, -1))
    padded = torch.fft.irfftn(spectrum, s=(12, 14, 16), dim=(-3, -2, -1))
    assert_close(physics.A(x), padded[..., :6, :7, :8])


def test_a_padding_of_one_is_the_unpadded_operator():
    x = normal(1, 1, 6, 9, 8)
    padded = PaddedMissingWedgeOperator((6, 9, 8), (-60, 40), padding=1).double()
    assert_close(padded.A(x), operator(MissingWedgeOperator, ((6, 9, 8), (-60, 40), "y", "ball")).A(x))


def test_what_leaves_a_padded_volume_does_not_come_back_on_the_other_side():
    x = torch.zeros(1, 1, 16, 4, 16, dtype=torch.float64)
    x[..., 0, 0, 0] = 1
    # Index 15 is next to 0 on a periodic grid only.
    far = (0, 0, 15, 0, 0)
    padded = PaddedMissingWedgeOperator((16, 4, 16), (-60, 60), support="box").double().A(x)
    wrapped = operator(MissingWedgeOperator, ((16, 4, 16), (-60, 60), "y", "box")).A(x)
    assert padded[far].abs() < 0.05 * wrapped[far].abs()


def test_a_fan_of_the_padded_operator_has_the_extent_of_the_volume():
    geometry = TiltGeometry([-40, 0, 40])
    physics = PaddedMissingWedgeOperator((8, 6, 10), geometry, sampling="fan")
    expected = wedge_mask((16, 12, 20), geometry, support="ball", sampling="fan", extent=8)
    assert torch.equal(physics.mask[0, 0], expected)


@each_tiny
@each_operator
@pytest.mark.parametrize("start", ["none", "number", "tensor"])
@pytest.mark.parametrize("gamma", [0.3, 25.0, torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)], ids=str)
def test_the_proximal_step_solves_its_linear_equations(kind, case, start, gamma):
    physics = operator(kind, case, max_iter=400, tol=1e-14)
    matrix = dense(physics.A, case[0])
    y = normal(3, 1, *case[0], seed=1)
    z = {"none": None, "number": 0.7, "tensor": normal(3, 1, *case[0], seed=2)}[start]
    full_z = torch.zeros_like(y) + (0 if z is None else z)
    expected = []
    for index in range(3):
        g = gamma[index] if isinstance(gamma, torch.Tensor) else gamma
        left = g * matrix.T @ matrix + torch.eye(len(matrix), dtype=torch.float64)
        right = g * matrix.T @ y[index].flatten() + full_z[index].flatten()
        expected.append(torch.linalg.solve(left, right).reshape(y[index].shape))
    # Conjugate gradients in deepinv divide by sums with 1e-8 added: they stall at residuals of about 1e-5.
    tolerance = 1e-12 if kind is MissingWedgeOperator else 1e-4
    assert_close(physics.prox_l2(z, y, gamma), torch.stack(expected), tolerance)


def test_the_proximal_step_in_closed_form_takes_masks_that_are_not_binary():
    case = TINY[1]
    physics = operator(MissingWedgeOperator, case)
    physics.update(mask=0.3 * physics.mask)
    matrix, y = dense(physics.A, case[0]), normal(1, 1, *case[0])
    left = 4 * matrix.T @ matrix + torch.eye(len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(left, 4 * matrix.T @ y.flatten() + y.flatten()).reshape(y.shape)
    assert_close(physics.prox_l2(y, y, 4.0), expected)


@pytest.mark.parametrize("solver", ["minres", "BiCGStab"])
def test_solvers_that_deepinv_gets_wrong_are_refused(solver):
    physics, y = PaddedMissingWedgeOperator((4, 4, 4), (-60, 60)), torch.ones(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match="use 'CG' or 'lsqr'"):
        physics.prox_l2(None, y, 1.0, solver=solver)


@pytest.mark.parametrize("solver", ["CG", "lsqr"])
def test_the_solvers_that_are_left_agree(solver):
    physics = operator(PaddedMissingWedgeOperator, TINY[1], max_iter=400, tol=1e-13)
    y, z = normal(2, 1, *TINY[1][0]), normal(2, 1, *TINY[1][0], seed=1)
    assert_close(physics.prox_l2(z, y, 2.0, solver=solver), physics.prox_l2(z, y, 2.0), 1e-5)


@each_operator
def test_a_mask_per_sample_is_an_operator_per_sample(kind):
    separate = masks(((6, 9, 8), None, "y", "ball"))(kind)
    x = normal(3, 2, 6, 9, 8)
    expected = torch.cat([physics.A(x[[i]]) for i, physics in enumerate(separate)])
    mixed = separate[0].clone()
    mixed.update(mask=torch.cat([physics.mask for physics in separate]))
    assert_close(mixed.A(x), expected)


@each_operator
def test_a_mask_given_with_a_volume_stays_on_the_operator(kind):
    first, second = masks(((6, 9, 8), None, "y", "ball"), ((-60, 60), (-50, 20)))(kind)
    x = normal(1, 1, 6, 9, 8)
    expected = second.A(x)
    assert_close(first.A(x, mask=second.mask), expected)
    assert_close(first.A(x), expected)


@each_operator
def test_the_gradient_with_respect_to_a_mask_is_right(kind):
    physics = operator(kind, ((3, 4, 3), (-60, 40), "y", "ball"))
    x, mask = normal(1, 1, 3, 4, 3), physics.mask.clone().requires_grad_()
    (actual,) = torch.autograd.grad(physics.A(x, mask=mask).square().sum(), mask)
    grid = physics.grid_shape
    spectrum = mask * torch.fft.rfftn(x, s=grid, dim=(-3, -2, -1))
    volume = torch.fft.irfftn(spectrum, s=grid, dim=(-3, -2, -1))[..., :3, :4, :3]
    (expected,) = torch.autograd.grad(volume.square().sum(), mask)
    assert_close(actual, expected)


@each_operator
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[..., 1:], r"`mask` must be \(batch or 1, views or 1, z, y, x\) with \(z, y, x\) = "),
        (lambda m: m[..., :-1, :, :], "the half spectrum kx >= 0 of"),
        (lambda m: m[0], r"mask must be a non-empty batch of volumes \(batch, channel, z, y, x\)"),
        (lambda m: m + torch.arange(m.shape[-3])[:, None, None], "`mask` must be even"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(kind, change, message):
    physics = kind((8, 8, 8), (-60.0, 60.0))
    before = physics.mask.clone()
    with pytest.raises(ValueError, match=message):
        physics.update(mask=change(physics.mask))
    assert torch.equal(physics.mask, before)


@each_operator
def test_a_boolean_mask_is_refused_with_the_remedy(kind):
    physics = kind((8, 8, 8), (-60.0, 60.0))
    with pytest.raises(TypeError, match=r"floating-point type, got torch.bool: call mask.float\(\) first"):
        physics.A(torch.ones(1, 1, 8, 8, 8), mask=physics.mask.bool())


@pytest.mark.fault(72, 73)
@each_operator
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(1, 1, 8, 8, 9), ValueError, r"x has \(8, 8, 9\) voxels .* this operator was made for \(8, 8, 8\)"),
        (torch.ones(8, 8, 8), ValueError, r"\(batch, channel, z, y, x\), got shape \(8, 8, 8\)"),
        (torch.ones(0, 1, 8, 8, 8), ValueError, "non-empty batch"),
        (torch.ones(1, 1, 8, 8, 8, dtype=torch.int32), TypeError, r"got torch.int32: call x.float\(\) first"),
        ([[1.0]], TypeError, "must be a torch tensor, got list"),
    ],
)
def test_a_volume_that_does_not_fit_is_refused(kind, x, error, message):
    physics = kind((8, 8, 8), (-60.0, 60.0))
    with pytest.raises(error, match=message):
        physics.A(x)


@pytest.mark.fault(72)
@each_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_volume_in_any_layout_keeps_its_type_and_its_gradient(kind, dtype):
    physics = kind((6, 7, 8), (-60, 60)).to(dtype)
    x = normal(1, 1, 8, 7, 6, dtype=dtype).transpose(-1, -3).requires_grad_()
    y = physics.A(x)
    assert (y.dtype, y.requires_grad) == (dtype, True)
    assert_close(y, physics.A(x.detach().contiguous()), 1e-6)


@pytest.mark.fault(74)
@each_operator
@pytest.mark.parametrize("method", ["A", "A_adjoint", "A_dagger"])
def test_a_volume_on_another_device_is_refused_with_both(kind, method):
    """By torch, whose device without memory stands for a GPU here."""
    physics, x = kind((8, 8, 8), (-60, 60)).to("meta"), torch.ones(1, 1, 8, 8, 8)
    with pytest.raises(RuntimeError, match=r"(?=.*\bmeta\b)(?=.*\bcpu\b).*device"):
        getattr(physics, method)(x)


@each_operator
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 8), (-60, 60)), r"img_size must be \(z, y, x\) or \(C, z, y, x\)"),
        (((8, 8, 8), (60, -60)), "lower tilt must be below"),
        (((8, 8, 8), (0, 1, 2)), "pair"),
    ],
)
def test_an_operator_that_cannot_be_meant_is_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


@pytest.mark.parametrize("padding", [0.5, float("nan")])
def test_a_padding_below_one_is_refused(padding):
    with pytest.raises(ValueError, match="`padding` is the padded length over the volume's and at least 1"):
        PaddedMissingWedgeOperator((8, 8, 8), (-60, 60), padding=padding)


@each_operator
def test_a_leading_channel_of_the_size_is_deepinvs(kind):
    physics = kind((2, 6, 7, 8), (-60, 60))
    assert physics.volume_shape == (6, 7, 8)
    assert tuple(physics.img_size) == (2, 6, 7, 8)
    assert tuple(kind((6, 7, 8), (-60, 60)).img_size) == (1, 6, 7, 8)


@each_case
def test_noise_holds_nothing_in_the_wedge(case):
    noise = GaussianNoise(0.5, rng=torch.Generator().manual_seed(0))
    physics = operator(MissingWedgeOperator, case, noise_model=noise)
    x = normal(1, 1, *case[0])
    y = physics(x)
    assert_close(physics.A(y), y)
    assert_differs(y, physics.A(x), 0.05)


@each_operator
def test_a_clone_is_equal_and_independent(kind):
    physics = operator(kind, CASES[0])
    x, other = normal(1, 1, *CASES[0][0]), physics.clone()
    before = physics.A(x)
    assert torch.equal(other.A(x), before)
    other.mask.zero_()
    assert torch.equal(physics.A(x), before)


@each_operator
def test_the_state_dict_carries_an_updated_mask(kind):
    first, second = masks(((6, 9, 8), None, "y", "ball"), ((-60, 60), (-50, 20)))(kind)
    first.load_state_dict(second.state_dict())
    x = normal(1, 1, 6, 9, 8)
    assert torch.equal(first.A(x), second.A(x))


@each_operator
def test_operators_move_as_modules_do(kind):
    physics = kind((6, 7, 8), (-60, 60))
    assert physics.mask.dtype == torch.float32
    assert physics.double().mask.dtype == torch.float64
    assert physics.to(torch.float32).mask.dtype == torch.float32
    assert physics.to("meta").mask.device.type == "meta"
    assert kind((6, 7, 8), (-60, 60), device="meta").mask.device.type == "meta"


@each_operator
def test_autocast_changes_nothing(kind):
    physics, x = kind((6, 7, 8), (-60, 60)), normal(1, 1, 6, 7, 8, dtype=torch.float32)
    expected = physics.A(x), physics.prox_l2(x, x, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = physics.A(x), physics.prox_l2(x, x, 2.0)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, 1e-6)


@each_operator
def test_a_gradient_passes_back_into_half_precision(kind):
    physics = kind((6, 7, 8), (-60, 60))
    x = normal(1, 1, 6, 7, 8).half().requires_grad_()
    (gradient,) = torch.autograd.grad(physics.A(x).sum(), x)
    assert gradient.dtype == torch.float16
    assert_close(gradient.float(), physics.A(torch.ones(1, 1, 6, 7, 8)), 1e-3)


@each_operator
def test_the_same_operator_is_made_for_another_size(kind):
    settings = {"support": "ball", "low_pass": 0.4, "sampling": "fan", "extent": 7}
    if kind is PaddedMissingWedgeOperator:
        settings["padding"] = 1.5
    geometry = TiltGeometry([-50, 0, 20, 40], "x")
    resized, made = kind((8, 8, 8), geometry, **settings).resized((6, 9, 5)), kind((6, 9, 5), geometry, **settings)
    assert type(resized) is kind
    assert torch.equal(resized.mask, made.mask)
    assert (resized.volume_shape, resized.grid_shape) == (made.volume_shape, made.grid_shape)


@each_operator
def test_channels_and_samples_do_not_mix(kind):
    physics, x = operator(kind, CASES[0]), normal(2, 3, *CASES[0][0])
    separate = torch.stack([torch.cat([physics.A(v[None, None])[0] for v in sample]) for sample in x])
    assert_close(physics.A(x), separate)
    kept = x.clone()
    physics.A(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("padding", [1, 1.5, 2])
@pytest.mark.parametrize("margin", [0, 1, 2])
@each_case
def test_the_inside_on_its_smaller_grid_is_the_inside_of_the_whole(case, margin, padding):
    physics = operator(PaddedMissingWedgeOperator, case, padding=padding)
    x = normal(2, 2, *case[0])
    z, y, n = (slice(margin, length - margin) for length in case[0])
    assert_close(physics.A_inside(x, margin), physics.A(x)[..., z, y, n])


def test_the_inside_is_computed_on_the_smallest_quick_grid_that_is_exact():
    physics = PaddedMissingWedgeOperator((12, 12, 12), (-60, 60))
    inside = [InsideFilter(physics.mask, (12, 12, 12), (24, 24, 24), margin) for margin in (0, 1, 3, 4)]
    grids = [made.grid_shape[0] for made in inside]
    # 2 (n - margin) - 1 or above without a prime factor over 5, from 23, 21, 17 and 15; 24 is the padded grid itself.
    assert grids == [24, 24, 18, 15]


@pytest.mark.parametrize("margin", [-1, 4])
def test_a_margin_that_leaves_no_inside_is_refused(margin):
    with pytest.raises(ValueError, match=rf"a margin of {margin} voxels leaves nothing of \(8, 8, 9\)"):
        PaddedMissingWedgeOperator((8, 8, 9), (-60, 60)).A_inside(torch.ones(1, 1, 8, 8, 9), margin)


CHANGES = {
    "updated": lambda physics, mask: physics.update(mask=mask),
    "loaded": lambda physics, mask: physics.load_state_dict({"mask": mask}),
    "in place": lambda physics, mask: physics.mask.copy_(mask),
    "assigned": lambda physics, mask: setattr(physics, "mask", mask),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_inside_follows_a_changed_mask(change):
    first, second = masks(((6, 9, 8), None, "y", "ball"), ((-60, 60), (-50, 20)))(PaddedMissingWedgeOperator)
    x = normal(1, 1, 6, 9, 8)
    before = first.A_inside(x, 1)
    change(first, second.mask)
    assert_differs(first.A_inside(x, 1), before, 0.01)
    assert_close(first.A_inside(x, 1), second.A_inside(x, 1))


def test_the_inside_with_a_mask_per_sample_is_an_operator_per_sample():
    separate = masks(((6, 9, 8), None, "y", "ball"))(PaddedMissingWedgeOperator)
    x, mixed = normal(3, 2, 6, 9, 8), separate[0].clone()
    mixed.update(mask=torch.cat([physics.mask for physics in separate]))
    assert_close(mixed.A_inside(x, 2), torch.cat([p.A_inside(x[[i]], 2) for i, p in enumerate(separate)]))


def test_the_gradient_of_the_inside_is_that_of_the_cut():
    physics, x = operator(PaddedMissingWedgeOperator, CASES[-1]), normal(1, 1, *CASES[-1][0]).requires_grad_()
    (actual,) = torch.autograd.grad(physics.A_inside(x, 2).square().sum(), x)
    (expected,) = torch.autograd.grad(physics.A(x)[..., 2:-2, 2:-2, 2:-2].square().sum(), x)
    assert_close(actual, expected)


def test_a_learned_mask_gets_the_gradient_of_the_inside_every_time():
    physics, x = operator(PaddedMissingWedgeOperator, ((4, 5, 4), (-60, 40), "y", "ball")), normal(1, 1, 4, 5, 4)
    with torch.no_grad():
        physics.A_inside(x, 1)
    physics.mask.requires_grad_()
    (expected,) = torch.autograd.grad(physics.A(x)[..., 1:-1, 1:-1, 1:-1].square().sum(), physics.mask)
    for _ in range(2):
        (actual,) = torch.autograd.grad(physics.A_inside(x, 1).square().sum(), physics.mask)
        assert_close(actual, expected)


def test_the_inside_works_in_and_after_inference_mode():
    physics, x = PaddedMissingWedgeOperator((6, 6, 6), (-60, 40)), torch.ones(1, 1, 6, 6, 6)
    with torch.inference_mode():
        physics.A_inside(x, 1)
        PaddedMissingWedgeOperator((6, 6, 6), (-60, 40)).A_inside(x, 1)
    physics.A_inside(x.requires_grad_(), 1).sum().backward()


@pytest.mark.parametrize("operator", [MissingWedgeOperator, PaddedMissingWedgeOperator])
def test_an_operator_whose_mask_was_given_refuses_to_be_made_for_another_size(operator):
    physics = operator((8, 8, 8), (-60, 60))
    assert physics.resized((6, 8, 8)).volume_shape == (6, 8, 8)
    physics.update(mask=physics.mask.clone())
    with pytest.raises(ValueError, match=r"mask was given for \(8, 8, 8\) voxels"):
        physics.resized((6, 8, 8))


@pytest.mark.parametrize("operator", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("batch", [1, 2])
def test_masks_for_another_number_of_samples_are_refused(operator, batch):
    physics = operator((8, 8, 8), (-60, 60))
    physics.update(mask=physics.mask.expand(3, -1, -1, -1, -1).clone())
    assert physics.A(torch.zeros(3, 1, 8, 8, 8)).shape == (3, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=f"masks for 3 samples and was given {batch}"):
        physics.A(torch.zeros(batch, 1, 8, 8, 8))
