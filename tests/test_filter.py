"""Operators of any mask: given or made for a shape, weighted or signed, one per sample and view."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from asserting import (
    RANGES,
    SHAPES,
    assert_close,
    assert_differs,
    assert_real_operator,
    assert_self_adjoint,
    dense,
    normal,
)
from deepinv.physics import GaussianNoise

from equitomo import TiledPredictor
from equitomo.fourier import frequencies, mirrored
from equitomo.geometry import TiltGeometry, WedgeMask, wedge_mask
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator, apply_by_planes, streamed

KINDS = [MissingWedgeOperator, PaddedMissingWedgeOperator]
TINY = [(4, 4, 4), (3, 3, 3), (3, 4, 5)]
GEOMETRIES = [
    TiltGeometry.from_range(-50, 20),
    TiltGeometry.from_range(-60, 60, "x"),
    TiltGeometry([-60, 0, 50], weights=[0.3, 1.0, 0.5]),
    TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 20, "x"),
]


def contrast(shape):
    """A signed weight inside a wedge: what defocus does to a projection, without an envelope."""
    kz, ky, kx = frequencies(shape)
    return wedge_mask(shape, (-50.0, 30.0)) * torch.cos(9 * math.pi * (kz**2 + 0.8 * ky**2 + kx**2))


def envelope(shape):
    """A weight between 0 and 1 that is constant along y."""
    kz, _, kx = frequencies(shape)
    return wedge_mask(shape, (-60.0, 60.0)) * torch.exp(-3 * (kz**2 + kx**2))


def along_beam(shape):
    """A weight that is constant along x and y."""
    return torch.cos(frequencies(shape)[0])


MAKERS = [contrast, envelope, along_beam, WedgeMask((-60.0, 40.0), support="ball")]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_maker = pytest.mark.parametrize("maker", MAKERS, ids=["contrast", "envelope", "along beam", "wedge"])
each_shape = pytest.mark.parametrize("shape", SHAPES)


@each_kind
@each_shape
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_mask_of_a_geometry_may_be_given_as_a_function(kind, shape, geometry):
    made, given = kind(shape, geometry), kind(shape, mask=lambda grid: wedge_mask(grid, geometry, support="ball"))
    assert torch.equal(made.mask, given.mask)
    other = (7, 5, 6)
    assert torch.equal(made.resized(other).mask, given.resized(other).mask)
    assert (made.geometry, given.geometry) == (geometry, None)
    assert made.resized(other).geometry == geometry
    whole = kind(shape, mask=WedgeMask(geometry, support="ball"))
    assert torch.equal(whole.mask, made.mask)
    assert whole.geometry == geometry


@each_kind
@each_maker
@each_shape
def test_an_operator_of_any_mask_is_real_and_self_adjoint(kind, maker, shape):
    physics = kind(shape, mask=maker).double()
    assert_real_operator(physics)
    assert_self_adjoint(physics)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@each_shape
def test_only_without_weights_it_is_a_projection(geometry, shape):
    physics = MissingWedgeOperator(shape, geometry).double()
    y = physics.A(normal(1, 1, *shape))
    if any(part.weights for part in geometry.parts):
        assert_differs(physics.A(y), y, 0.05)
    else:
        assert_close(physics.A(y), y)


@each_maker
@pytest.mark.parametrize("shape", TINY)
def test_the_pseudo_inverse_is_that_of_the_matrix(maker, shape):
    physics = MissingWedgeOperator(shape, mask=maker).double()
    inverse = torch.linalg.pinv(dense(physics.A, shape), rcond=1e-6)
    y = normal(2, 1, *shape)
    expected = (inverse @ y.flatten(1).T).T.reshape(y.shape)
    assert_close(physics.A_dagger(y), expected, 1e-8)


@each_kind
@each_maker
@pytest.mark.parametrize("shape", TINY)
def test_the_proximal_step_solves_its_equations_for_any_mask(kind, maker, shape):
    physics = kind(shape, mask=maker, max_iter=300, tol=1e-13).double()
    matrix = dense(physics.A, shape)
    y, z, gamma = normal(1, 1, *shape), normal(1, 1, *shape, seed=1), 2.5
    left = gamma * matrix.T @ matrix + torch.eye(len(matrix), dtype=torch.float64)
    expected = torch.linalg.solve(left, gamma * matrix.T @ y.flatten() + z.flatten()).reshape(y.shape)
    # Conjugate gradients in deepinv stall at residuals of about 1e-5.
    assert_close(physics.prox_l2(z, y, gamma), expected, 1e-12 if kind is MissingWedgeOperator else 1e-4)


def test_noise_is_added_to_what_was_measured_and_keeps_its_size():
    shape = (8, 8, 8)
    noise = GaussianNoise(0.5, rng=torch.Generator().manual_seed(0))
    physics = MissingWedgeOperator(shape, mask=envelope, noise_model=noise).double()
    x, support = normal(400, 1, *shape), MissingWedgeOperator(shape, mask=lambda s: (envelope(s) > 0).float()).double()
    added = physics(x) - physics.A(x)
    assert_close(support.A(added), added)
    share = (physics.mask != 0).double().expand(1, 1, 8, 1, 5)[..., [0, 1, 2, 3, 4, 3, 2, 1]].mean()
    assert_close(added.std(), 0.5 * share.sqrt(), 0.01)


# Streaming and other shapes


@each_kind
@each_maker
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7), (6, 9, 8), (12, 5, 11)])
def test_by_planes_it_is_the_same_operator_from_whatever_size(kind, maker, shape, tmp_path):
    x = normal(*shape, dtype=torch.float32).numpy()
    expected = kind(shape, mask=maker).A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    for size in (shape, (5, 6, 7)):
        out = np.empty_like(x)
        apply_by_planes(kind(size, mask=maker), x, out, scratch=tmp_path)
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@each_kind
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("support", ["ball", "box"])
def test_by_planes_a_union_or_a_weighted_geometry_is_the_same_operator(kind, geometry, support):
    x = normal(9, 12, 10, dtype=torch.float32).numpy()
    out, operator = np.empty_like(x), kind((5, 6, 7), geometry, support=support)
    apply_by_planes(operator, x, out)
    expected = operator.resized(x.shape).A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@each_kind
@pytest.mark.parametrize("wedge", ["global", "tile"])
def test_a_predictor_empties_the_wedge_with_any_mask(kind, wedge):
    x = normal(12, 12, 12, dtype=torch.float32)
    operator = kind((4, 4, 4), mask=contrast)
    settings = {"tile": 12, "margin": 0, "blend": 0, "precision": "float32"}
    found = TiledPredictor(torch.nn.Identity(), operator, wedge=wedge, **settings)(x)
    assert_close(found, operator.resized((12, 12, 12)).A(x[None, None])[0, 0], 1e-5)


def test_a_mask_with_planes_of_its_own_is_never_made_as_a_whole():
    class Wedge(WedgeMask):
        largest = 0

        def __call__(self, shape, volume=None):
            Wedge.largest = max(Wedge.largest, math.prod(shape))
            return super().__call__(shape, volume)

    class Mine:
        """Not a wedge mask for the operator, which asks any object alike."""

        def __init__(self, wedge):
            self.wedge, self.planes = wedge, wedge.planes

        def __call__(self, shape):
            return self.wedge(shape)

    wedge = Wedge((-60.0, 40.0), support="ball")
    x = normal(9, 12, 10, dtype=torch.float32).numpy()
    for maker in (wedge, Mine(wedge)):
        out = np.empty_like(x)
        apply_by_planes(MissingWedgeOperator((4, 4, 4), mask=maker), x, out)
        assert Wedge.largest == 64
    expected = MissingWedgeOperator(x.shape, (-60.0, 40.0)).A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_the_memory_of_a_mask_is_counted_before_it_is_made():
    calls = []

    def maker(shape):
        calls.append(shape)
        return contrast(shape)

    operator, shape = MissingWedgeOperator((4, 4, 4), mask=maker), (64, 60, 62)
    memory, _ = streamed.streaming_needs(operator, shape)
    geometry_memory, _ = streamed.streaming_needs(MissingWedgeOperator((4, 4, 4), (-60.0, 60.0)), shape)
    assert calls == [(4, 4, 4)]
    assert memory - geometry_memory == pytest.approx(4 * 64 * 60 * 32, rel=0.1)


@each_kind
def test_a_mask_given_as_a_tensor_is_of_its_shape_only(kind):
    shape = (6, 9, 8)
    grid = kind(shape, (-60, 60)).grid_shape
    physics = kind(shape, mask=contrast(grid).float())
    x = normal(*shape, dtype=torch.float32)
    expected = kind(shape, mask=contrast).A(x[None, None])
    assert torch.equal(physics.A(x[None, None]), expected)
    out = np.empty(shape, np.float32)
    apply_by_planes(physics, x.numpy(), out)
    np.testing.assert_allclose(out, expected[0, 0].numpy(), rtol=0, atol=2e-6 * expected.abs().max().item())
    assert torch.equal(physics.resized(shape).mask, physics.mask)
    message = r"mask was given for \(6, 9, 8\) voxels .* give `mask` as a function from a shape to a mask"
    for use in (physics.resized, physics.planes):
        with pytest.raises(ValueError, match=message):
            use((8, 8, 8))


# Masks per sample and view


def per_view(kind, shape, *, ranges=(RANGES, [(-30, 45), (-60, 40)])):
    """Operators of several ranges, samples by views, and their masks in one operator."""
    separate = [[kind(shape, limits).double() for limits in sample] for sample in ranges]
    mixed = separate[0][0].clone()
    mixed.update(mask=torch.cat([torch.cat([p.mask for p in sample], 1) for sample in separate]))
    return separate, mixed


@each_kind
@each_shape
def test_a_mask_per_view_is_an_operator_per_view(kind, shape):
    separate, mixed = per_view(kind, shape)
    x = normal(2, 2, *shape)
    for name in ("A", "A_adjoint"):
        found = getattr(mixed, name)(x)
        for b, v in itertools.product(range(2), repeat=2):
            assert_close(found[b, v], getattr(separate[b][v], name)(x[b, v][None, None])[0, 0])
    one = separate[0][0].clone()
    one.update(mask=mixed.mask[:1])
    assert_close(one.A(x)[1, 1], separate[0][1].A(x[1, 1][None, None])[0, 0])


def test_a_mask_per_view_has_its_pseudo_inverse_and_proximal_step():
    separate, mixed = per_view(MissingWedgeOperator, (6, 5, 4))
    mixed.update(mask=0.5 * mixed.mask)
    y, gamma = normal(2, 2, 6, 5, 4), torch.tensor([0.3, 2.0]).double()
    inverse, step = mixed.A_dagger(y), mixed.prox_l2(y, y, gamma)
    for b, v in itertools.product(range(2), repeat=2):
        own = separate[b][v]
        own.update(mask=0.5 * own.mask)
        each = y[b, v][None, None]
        assert_close(inverse[b, v], own.A_dagger(each)[0, 0])
        assert_close(step[b, v], own.prox_l2(each, each, gamma[b].item())[0, 0])


def test_the_inside_with_a_mask_per_view_is_an_operator_per_view():
    separate, mixed = per_view(PaddedMissingWedgeOperator, (6, 9, 8), ranges=[RANGES])
    x = normal(3, 2, 6, 9, 8)
    for v in range(2):
        assert_close(mixed.A_inside(x, 2)[:, [v]], separate[0][v].A_inside(x[:, [v]], 2))


@each_kind
@pytest.mark.parametrize(("batch", "views"), [(2, 1), (2, 3), (1, 2), (3, 2)])
def test_masks_for_other_samples_or_views_are_refused(kind, batch, views):
    _, mixed = per_view(kind, (4, 4, 4))
    given = f"{batch} samples" + (f" of {views} views" if views > 1 else "")
    x = normal(batch, views, 4, 4, 4)
    uses = [mixed.A] + ([lambda u: mixed.A_inside(u, 1)] if kind is PaddedMissingWedgeOperator else [mixed.A_dagger])
    for use in uses:
        with pytest.raises(ValueError, match=f"masks for 2 samples of 2 views and was given {given}:"):
            use(x)


@each_kind
@pytest.mark.parametrize("support", ["ball", "box"])
def test_masks_of_other_geometries_are_made_on_the_operators_grid(kind, support):
    shape = (6, 9, 8)
    first, second = TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.5]), TiltGeometry.from_range(-50, 20, "x")
    physics = kind(shape, first | second, support=support).double()
    masks = [physics.mask_for(geometry) for geometry in (first, second)]
    assert masks[0].shape == masks[1].shape
    physics.update(mask=torch.cat(masks, 1))
    # It was the last mask that was given: those of geometries are made as before.
    assert torch.equal(physics.mask_for(first), masks[0])
    x = normal(1, 2, *shape)
    for v, geometry in enumerate((first, second)):
        assert_close(physics.A(x)[:, [v]], kind(shape, geometry, support=support).double().A(x[:, [v]]))


def test_masks_about_the_operators_own_axis_stay_short():
    physics = PaddedMissingWedgeOperator((6, 9, 8), (-60, 60), support="box")
    assert physics.mask_for((-40, 50)).shape == physics.mask.shape == (1, 1, 12, 1, 9)
    with pytest.raises(ValueError, match=r"was made for -60 to 60 degrees about y .* union of the geometries"):
        physics.mask_for(TiltGeometry.from_range(-40, 50, "x"))


@each_kind
def test_an_operator_of_a_mask_makes_none_for_a_geometry(kind):
    with pytest.raises(ValueError, match="make the operator from a `geometry`"):
        kind((6, 9, 8), mask=contrast).mask_for((-60, 60))


# What cannot be meant


@each_kind
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "either a `geometry` or a `mask`, and not both"),
        ({"geometry": (-60, 60), "mask": contrast}, ValueError, "either a `geometry` or a `mask`, and not both"),
        ({"mask": contrast, "low_pass": 0.3}, ValueError, "`low_pass`, `sampling` and `extent` belong to a `geometry`"),
        ({"mask": lambda s: torch.ones(3, 4, 5)}, ValueError, "`mask` must be .* the half spectrum"),
        ({"mask": lambda s: np.ones((3, 4, 5))}, TypeError, "mask must be a torch tensor, got ndarray"),
        ({"mask": lambda s: contrast(s).bool()}, TypeError, r"got torch.bool: call mask.float\(\)"),
        ({"mask": lambda s: contrast(s).roll(1, -3)}, ValueError, "`mask` must be even"),
    ],
)
def test_an_operator_without_a_mask_that_fits_is_refused(kind, settings, error, message):
    with pytest.raises(error, match=message):
        kind((8, 8, 8), **settings)


def test_rounding_makes_no_mask_uneven():
    def astigmatic(shape):
        kz, ky, kx = frequencies(shape, dtype=torch.float32)
        azimuth = torch.atan2(ky + 0 * kz, kx + 0 * kz)
        return torch.cos(20 * (kz**2 + ky**2 + kx**2) * (1 + 0.2 * torch.cos(2 * (azimuth - 0.3))))

    def even(shape):
        mask = astigmatic(shape)
        planes = mask[..., [0, -1]]
        mask[..., [0, -1]] = (planes + mirrored(planes, (-3, -2))) / 2 + 1e-7 * torch.randn(planes.shape)
        return mask

    MissingWedgeOperator((8, 8, 8), mask=even)
