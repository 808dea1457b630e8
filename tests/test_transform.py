"""The 48 rotations and mirror images: group axioms, exact permutations, which of them move a wedge, deepinv's rules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from asserting import CASES, RANGES, assert_close, boxes, normal, operator
from deepinv.transform import Shift

from equitomo.fourier import frequencies
from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.transform import CubeRotationGroup

GROUP = CubeRotationGroup()
ALL = range(48)
SIDE = 3
CUBES = [case for case in CASES if len(set(case[0])) == 1]


def index_cube(side: int = SIDE) -> torch.Tensor:
    """A volume whose voxels all differ: what an element does to it, it does to every volume."""
    return torch.arange(float(side**3)).reshape(1, 1, side, side, side)


def turned(g: int, x: torch.Tensor) -> torch.Tensor:
    return GROUP.transform(x, element=g)


IMAGES = torch.cat([turned(g, index_cube()) for g in ALL])


def number_of(image: torch.Tensor) -> int:
    """The element that turned the index cube into ``image``."""
    (matches,) = (image == IMAGES).flatten(1).all(1).nonzero(as_tuple=True)
    assert len(matches) == 1
    return int(matches)


def moves(g: int, physics, tolerance: float = 1e-10) -> bool:
    """Whether R A R^-1 is another operator than A, from its action on random volumes."""
    x = normal(1, 1, *physics.volume_shape)
    moved = GROUP.transform(physics.A(GROUP.inverse(x, element=g)), element=g)
    return not torch.allclose(moved, physics.A(x), rtol=0, atol=tolerance)


def test_the_elements_act_differently_from_one_another():
    assert len({tuple(image.flatten().tolist()) for image in IMAGES}) == 48


def test_element_zero_is_the_identity():
    assert torch.equal(IMAGES[0], index_cube()[0])


def test_rotations_come_first():
    determinants = torch.linalg.det(GROUP.matrices().double())
    assert_close(determinants, torch.cat((torch.ones(24), -torch.ones(24))).double())


def test_composing_is_acting_one_after_the_other():
    """Closure and homomorphism over all 48 x 48 pairs, on a cube whose voxels all differ."""
    for h in ALL:
        after = torch.cat([turned(g, IMAGES[[h]]) for g in ALL])
        assert [number_of(image) for image in after] == [GROUP.compose(g, h) for g in ALL]


def test_the_product_is_that_of_the_matrices():
    matrices = GROUP.matrices()
    for g in ALL:
        products = matrices[g] @ matrices
        assert torch.equal(products, matrices[[GROUP.compose(g, h) for h in ALL]])


@pytest.mark.parametrize("g", ALL)
def test_the_inverse_undoes(g):
    assert GROUP.compose(g, GROUP.invert(g)) == GROUP.compose(GROUP.invert(g), g) == 0
    x = normal(2, 3, 4, 4, 4)
    assert torch.equal(GROUP.inverse(turned(g, x), element=g), x)
    assert torch.equal(turned(g, GROUP.inverse(x, element=g)), x)


@pytest.mark.parametrize("side", [3, 4])
def test_an_element_carries_the_voxel_at_an_offset_from_the_centre_to_its_matrix_times_the_offset(side):
    x, centre = index_cube(side), (side - 1) / 2
    for g in ALL:
        image, matrix = turned(g, x), GROUP.matrices()[g].double()
        for index in boxes(side, side, side):
            offset = torch.tensor(index, dtype=torch.float64) - centre
            target = (matrix @ offset + centre).round().long().tolist()
            assert image[0, 0, *target] == x[0, 0, *index]


def test_matrices_are_a_copy():
    GROUP.matrices().zero_()
    assert torch.equal(GROUP.matrices()[0], torch.eye(3, dtype=torch.int64))


@pytest.mark.parametrize("g", ALL)
def test_an_action_is_orthogonal(g):
    u, v = normal(1, 1, 5, 5, 5), normal(1, 1, 5, 5, 5, seed=1)
    assert_close((turned(g, u) * v).sum(), (u * GROUP.inverse(v, element=g)).sum())


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("case", CUBES, ids=str)
def test_the_moving_elements_are_those_that_change_the_operator(kind, case):
    physics = operator(kind, case)
    assert CubeRotationGroup.moving(physics).elements == tuple(g for g in ALL if moves(g, physics))


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("side", [16, 15])
@pytest.mark.parametrize(("tilts", "n_all", "n_rotations"), [((-60, 60), 40, 20), ((-60, 50), 44, 22)])
def test_forty_elements_move_a_symmetric_wedge_and_forty_four_another(kind, axis, side, tilts, n_all, n_rotations):
    physics = kind((side,) * 3, TiltGeometry.from_range(*tilts, axis))
    assert len(CubeRotationGroup.moving(physics).elements) == n_all
    assert len(CubeRotationGroup.moving(physics, flips=False).elements) == n_rotations


def test_the_moving_elements_are_closed_under_inversion():
    elements = CubeRotationGroup.moving(MissingWedgeOperator((8, 8, 8), (-60, 50))).elements
    assert {GROUP.invert(g) for g in elements} == set(elements)


def test_without_flips_only_rotations_move():
    group = CubeRotationGroup.moving(MissingWedgeOperator((8, 8, 8), (-60, 60)), flips=False)
    assert max(group.elements) < 24
    assert CubeRotationGroup(flips=False).elements == tuple(range(24))


def test_a_range_of_ninety_degrees_is_moved_by_quarter_turns_to_its_complement():
    """At -45 to 45 exchanging beam and detector maps measured to missing: more elements move, none less."""
    physics = operator(MissingWedgeOperator, ((7, 7, 7), (-45.0, 45.0), "y", "box"))
    assert CubeRotationGroup.moving(physics).elements == tuple(g for g in ALL if moves(g, physics))


@pytest.mark.parametrize("support", ["ball", "box"])
@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("shape", [(6, 9, 6), (6, 8, 8), (9, 9, 6)])
@pytest.mark.parametrize("tilts", RANGES)
def test_only_axes_of_equal_length_are_exchanged(kind, support, shape, tilts):
    """Of the elements that keep an oblong shape, all those that change the operator are drawn, and no others."""
    physics = operator(kind, (shape, tilts, "y", support))
    keeping = [g for g in ALL if torch.equal(GROUP.matrices()[g].abs() @ torch.tensor(shape), torch.tensor(shape))]
    assert len(keeping) == 16
    assert CubeRotationGroup.moving(physics).elements == tuple(g for g in keeping if moves(g, physics))


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 8, 8), (6, 8, 10)])
@pytest.mark.parametrize("support", ["ball", "box"])
def test_nothing_moves_where_nothing_is_missing(shape, support):
    physics = MissingWedgeOperator(shape, (-90.0, 89.99999), support=support)
    with pytest.raises(ValueError, match=r"no rotation of .* moves the measured region"):
        CubeRotationGroup.moving(physics)


def contrast(shape):
    """A signed weight inside a wedge, with the symmetries of the wedge up to rounding."""
    kz, ky, kx = frequencies(shape, dtype=torch.float32)
    return wedge_mask(shape, (-60.0, 60.0)) * torch.cos(31.3 * (kz**2 + ky**2 + kx**2))


MASKS = {
    "union": lambda kind, shape: kind(shape, TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 20, "x")),
    "symmetric union": lambda kind, shape: kind(
        shape, TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-60, 60, "x"), support="box"
    ),
    "weighted": lambda kind, shape: kind(shape, TiltGeometry([-60, 0, 60], weights=[0.2, 0.9, 0.7])),
    "symmetric weights": lambda kind, shape: kind(shape, TiltGeometry([-60, 0, 60], weights=[0.2, 0.9, 0.2])),
    "contrast": lambda kind, shape: kind(shape, mask=contrast),
}


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("shape", [(7, 7, 7), (8, 8, 8), (6, 8, 8)])
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_the_moving_elements_of_any_mask_are_those_that_change_the_operator(kind, shape, make):
    physics = make(kind, shape).double()
    keeping = [g for g in ALL if torch.equal(GROUP.matrices()[g].abs() @ torch.tensor(shape), torch.tensor(shape))]
    expected = tuple(g for g in keeping if moves(g, physics, 1e-5))
    assert 0 not in expected
    if expected:
        assert CubeRotationGroup.moving(physics).elements == expected
    else:
        with pytest.raises(ValueError, match=r"no rotation of .* moves the measured region"):
            CubeRotationGroup.moving(physics)


def test_rounding_moves_no_mask():
    physics = MissingWedgeOperator((8, 8, 8), (-60.0, 60.0))
    expected = CubeRotationGroup.moving(physics).elements
    physics.mask[..., 1:4] *= 1 + 1e-7 * torch.randn(physics.mask[..., 1:4].shape)
    assert CubeRotationGroup.moving(physics).elements == expected


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("axis", [0, 1], ids=["per sample", "per view"])
def test_an_element_that_moves_one_of_several_masks_is_drawn(kind, axis):
    separate = [operator(kind, ((8, 8, 8), tilts, "y", "ball")) for tilts in ((-60.0, 60.0), (-50.0, 20.0))]
    mixed = separate[0].clone()
    mixed.update(mask=torch.cat([physics.mask for physics in separate], axis))
    expected = set().union(*(CubeRotationGroup.moving(physics).elements for physics in separate))
    assert set(CubeRotationGroup.moving(mixed).elements) == expected


def test_an_oblong_volume_is_refused_by_an_element_that_would_change_its_shape():
    x = normal(1, 1, 4, 5, 4)
    g = next(g for g in ALL if GROUP.matrices()[g, 0, 1] != 0)
    with pytest.raises(ValueError, match=rf"element {g} .* of \(4, 5, 4\) voxels .*cut cubes, or draw with .*moving"):
        turned(g, x)
    half_turn = next(g for g in range(1, 24) if GROUP.matrices()[g].diagonal().abs().sum() == 3)
    assert turned(half_turn, x).shape == x.shape


@pytest.mark.parametrize("inverse", [False, True])
def test_each_sample_gets_its_own_element(inverse):
    x, elements = normal(48, 2, 4, 4, 4), torch.arange(48).flip(0)
    act = GROUP.inverse if inverse else GROUP.transform
    expected = torch.cat([act(x[[i]], element=int(g)) for i, g in enumerate(elements)])
    assert torch.equal(GROUP.apply(x, elements, inverse=inverse), expected)


def test_one_element_per_sample_is_needed():
    with pytest.raises(ValueError, match="2 samples, 3 elements"):
        GROUP.apply(normal(2, 1, 4, 4, 4), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("elements", [[-1], [48], [1.5]])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_number_that_is_no_element_is_refused(elements, inverse):
    with pytest.raises(ValueError, match="`elements` are whole numbers from 0 to 47"):
        GROUP.apply(normal(1, 1, 3, 3, 3), torch.tensor(elements), inverse=inverse)
    with pytest.raises(ValueError, match="`elements` are whole numbers from 0 to 47"):
        GROUP.transform(normal(1, 1, 3, 3, 3), element=torch.tensor(elements))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": ()}, "non-empty selection of 0 to 47"),
        ({"elements": (3, 48)}, "non-empty selection of 0 to 47"),
        ({"n_trans": 0}, "`n_trans` must lie between 1 and the 48 elements"),
        ({"n_trans": 25, "flips": False}, "`n_trans` must lie between 1 and the 24 elements"),
    ],
)
def test_a_group_that_cannot_be_drawn_from_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CubeRotationGroup(**settings)


@pytest.mark.fault(73)
@pytest.mark.parametrize("x", [torch.ones(2, 2, 2), torch.ones(1, 1, 2, 2)])
def test_what_is_no_batch_of_volumes_is_refused(x):
    with pytest.raises(ValueError, match=r"batch of volumes|4D or 5D"):
        GROUP.transform(x, element=1)


def test_draws_repeat_with_the_generators_seed():
    def draws(seed: int) -> list[int]:
        group = CubeRotationGroup(rng=torch.Generator().manual_seed(seed))
        return [*group.draw(20).tolist(), *group.get_params(index_cube())["element"].tolist()]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_a_generator_of_ones_own_leaves_the_groups_alone():
    group = CubeRotationGroup(rng=torch.Generator().manual_seed(1))
    state = group.rng.get_state()
    first = group.draw(20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, group.draw(20, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(group.rng.get_state(), state)


def test_draws_are_uniform_over_the_elements_chosen():
    group = CubeRotationGroup(elements=(3, 7, 31), rng=torch.Generator().manual_seed(0))
    counts = torch.bincount(group.draw(3000), minlength=48)
    assert counts.nonzero().flatten().tolist() == [3, 7, 31]
    assert counts[[3, 7, 31]].min() > 900
    assert {int(group.get_params(index_cube())["element"]) for _ in range(60)} == {3, 7, 31}


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    CubeRotationGroup().draw(5)
    CubeRotationGroup()(index_cube())
    assert torch.equal(torch.get_rng_state(), state)


def test_n_trans_different_elements_are_stacked_along_the_batch():
    group = CubeRotationGroup(n_trans=48)
    x = torch.cat((index_cube(), -index_cube()))
    elements = group.get_params(x)["element"]
    assert sorted(elements.tolist()) == list(ALL)
    out = group.transform(x, element=elements)
    assert torch.equal(out, torch.cat([turned(int(g), x) for g in elements]))


@pytest.mark.parametrize("n_trans", [1, 3])
@pytest.mark.parametrize("average", [False, True])
def test_the_identity_of_deepinv_is_one(n_trans, average):
    x = normal(2, 3, 4, 4, 4)
    out = CubeRotationGroup(n_trans=n_trans).identity(x, average=average)
    assert_close(out, x if average else x.repeat(n_trans, 1, 1, 1, 1))


@pytest.mark.parametrize("collate", [True, False])
def test_symmetrising_over_all_elements_makes_a_function_equivariant(collate):
    group = CubeRotationGroup(n_trans=48)
    weight = normal(4, 4, 4)
    symmetric = group.symmetrize(lambda u: weight * u.roll(1, -1), average=True, collate_batch=collate)
    x = normal(2, 1, 4, 4, 4)
    for g in (1, 17, 30):
        assert_close(symmetric(turned(g, x)), turned(g, symmetric(x)))


def test_parameters_are_iterated_with_their_inverses():
    group = CubeRotationGroup(n_trans=5)
    x = normal(1, 1, 4, 4, 4)
    params = group.get_params(x)
    each = group.iterate_params(params)
    assert [int(p["element"]) for p in each] == params["element"].tolist()
    for p in each:
        assert int(-p["element"]) == GROUP.invert(int(p["element"]))
        assert torch.equal(group.inverse(group.transform(x, **p), **p), x)


def test_negating_and_inverting_parameters_agree():
    params = CubeRotationGroup(n_trans=48).get_params(index_cube())
    inverted = GROUP.invert_params(params)["element"]
    assert torch.equal(torch.Tensor(-params["element"]), torch.Tensor(inverted))
    assert [GROUP.invert(int(g)) for g in params["element"]] == inverted.tolist()


def test_parameters_of_other_transforms_pass_through():
    x = normal(1, 1, 4, 4, 4)
    assert torch.equal(GROUP.transform(x, element=5, theta=3), turned(5, x))
    assert torch.equal(GROUP.transform(x, theta=3), x)


def test_a_chain_with_a_shift_turns_first_and_shifts_the_last_two_axes():
    chain = CubeRotationGroup() * Shift()
    x = normal(2, 3, 4, 4, 4)
    params = chain.get_params(x)
    out = chain.transform(x, **params)
    shifts = (int(params["y_shift"]), int(params["x_shift"]))
    assert torch.equal(out, turned(int(params["element"]), x).roll(shifts, (-2, -1)))
    assert torch.equal(chain.inverse(out, **params), x)


@pytest.mark.parametrize("restore", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["copy", "pickle"])
def test_a_copy_draws_what_the_original_will(restore):
    group = CubeRotationGroup(elements=(1, 2, 3), n_trans=2, rng=torch.Generator().manual_seed(3))
    group.draw(4)
    other = restore(group)
    assert (other.elements, other.n_trans) == (group.elements, group.n_trans)
    assert torch.equal(other.draw(50), group.draw(50))


def test_gradients_pass_through_an_action():
    x, weight = normal(2, 1, 4, 4, 4).requires_grad_(), normal(2, 1, 4, 4, 4, seed=1)
    elements = torch.tensor([7, 40])
    (gradient,) = torch.autograd.grad((GROUP.apply(x, elements) * weight).sum(), x)
    assert torch.equal(gradient, GROUP.apply(weight, elements, inverse=True))
