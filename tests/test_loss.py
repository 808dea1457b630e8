"""The losses against the paper's formulas with explicit turned operators, at sizes where all can be written out."""

from __future__ import annotations

import itertools

import deepinv
import pytest
import torch
from asserting import assert_close, assert_differs, normal, operator, small_network
from deepinv.loss import EILoss
from deepinv.transform import Reflect, Rotate, Shift
from torch import Tensor, nn

from equitomo.draws import ELEMENTS, Draws, draw_integers
from equitomo.fourier import full_spectrum
from equitomo.geometry import TiltGeometry
from equitomo.loss import MaskedEquivarianceLoss, Noise2NoiseLoss
from equitomo.models import TwoViewReconstructor
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.transform import CubeRotationGroup

OPERATORS = [MissingWedgeOperator, PaddedMissingWedgeOperator]
GROUP = CubeRotationGroup()
UNION = TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 20, "x")
AXES = (-3, -2, -1)
each_operator = pytest.mark.parametrize("kind", OPERATORS)
each_range = pytest.mark.parametrize("tilts", [(-60.0, 60.0), (-50.0, 20.0)])
each_side = pytest.mark.parametrize("side", [4, 5])


@pytest.fixture
def model():
    return TwoViewReconstructor(small_network())


def wedge(kind, side: int, tilts, axis: str = "y"):
    return operator(kind, ((side,) * 3, tilts, axis, "ball"))


def turned_operator(physics, g: int):
    """A_g = R_g A R_g^-1 as one would write it down."""
    return lambda u: GROUP.transform(physics.A(GROUP.inverse(u, element=g)), element=g)


def turned_mask_operator(physics, g: int):
    """A_g from a turned mask: the coefficient at k moves to M_g k, on the operator's own full grid."""
    (n,) = set(physics.grid_shape)
    mask = full_spectrum(physics.mask, n)[0, 0].expand(n, n, n)
    index = torch.cartesian_prod(*[torch.arange(n)] * 3)
    target = (index @ GROUP.matrices()[g].T) % n
    turned = torch.empty_like(mask)
    turned[tuple(target.T)] = mask[tuple(index.T)]

    def apply(u: Tensor) -> Tensor:
        z, y, x = u.shape[-3:]
        spectrum = turned * torch.fft.fftn(u, s=(n,) * 3, dim=AXES)
        return torch.fft.ifftn(spectrum, dim=AXES).real[..., :z, :y, :x]

    return apply


def textbook(network: nn.Module, physics, y: Tensor, move, masked) -> Tensor:
    """Equation (5) for one sample y (2, z, y, x): a sum over the two views, four network calls."""
    value = torch.zeros((), dtype=y.dtype)
    for view in (0, 1):
        own, other = (network(y[None, [v]]) for v in (view, 1 - view))
        again = network(physics.A(move(own)))
        value = value + 0.5 * masked(again - move(other)).square().mean()
    return value


def parameter_gradient(value: Tensor, model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in gradients])


# Noise2Noise


@each_operator
@each_range
@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (4, 5, 6)])
def test_noise2noise_is_equation_four(kind, tilts, shape, model):
    physics, y = operator(kind, (shape, tilts, "y", "ball")), normal(3, 2, *shape)
    x_net = model(y)
    expected = []
    for sample, reconstruction in zip(y, x_net, strict=True):
        value = 0.0
        for view in (0, 1):
            value += 0.5 * (sample[1 - view] - physics.A(reconstruction[None, [view]])[0, 0]).square().mean()
        expected.append(value)
    assert_close(Noise2NoiseLoss()(x_net=x_net, y=y, physics=physics), torch.stack(expected))


def test_noise2noise_compares_with_the_other_view(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 60)), normal(1, 2, 4, 4, 4)
    y = physics.A(y)
    assert Noise2NoiseLoss()(x_net=y.flip(1), y=y, physics=physics) < 1e-28
    assert Noise2NoiseLoss()(x_net=y, y=y, physics=physics) > 0.1


@each_operator
def test_a_masked_target_is_measured_too(kind, model):
    physics, y = wedge(kind, 5, (-60, 40)), normal(2, 2, 5, 5, 5)
    x_net = model(y)
    expected = (physics.A(x_net) - physics.A(y.flip(1))).square().mean(dim=(1, 2, 3, 4))
    assert_close(Noise2NoiseLoss(mask_target=True)(x_net=x_net, y=y, physics=physics), expected)


def test_for_a_projection_masking_the_target_changes_no_gradient(model):
    physics, y = wedge(MissingWedgeOperator, 5, (-60, 40)), normal(2, 2, 5, 5, 5)
    values = [Noise2NoiseLoss(mask_target=m)(x_net=model(y), y=y, physics=physics).sum() for m in (False, True)]
    assert_differs(values[0], values[1])
    assert_close(parameter_gradient(values[0], model), parameter_gradient(values[1], model))


@pytest.mark.parametrize("make", [MissingWedgeOperator, lambda *a: PaddedMissingWedgeOperator(*a, padding=1)])
def test_where_nothing_is_cut_no_volume_is_filtered(make, monkeypatch):
    physics, y = make((6, 6, 6), (-60, 40)).double(), normal(2, 2, 6, 6, 6)
    x_net = normal(2, 2, 6, 6, 6, seed=1)
    expected = physics.A(x_net - y.flip(1)).square().mean(dim=(1, 2, 3, 4))
    monkeypatch.setattr(type(physics), "A", None)
    assert_close(Noise2NoiseLoss(mask_target=True)(x_net=x_net, y=y, physics=physics), expected)


@each_operator
def test_noise2noise_with_a_margin_looks_at_the_centre(kind, model):
    physics, y = wedge(kind, 6, (-60, 40)), normal(2, 2, 6, 6, 6)
    x_net = model(y)
    inside = (physics.A(x_net) - y.flip(1))[..., 2:4, 2:4, 2:4]
    expected = 3 * inside.square().mean(dim=(1, 2, 3, 4))
    assert_close(Noise2NoiseLoss(3.0, margin=2)(x_net=x_net, y=y, physics=physics), expected)


def test_noise2noise_needs_two_views():
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 60)), normal(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"needs two views or more.* got y \(1, 1, 4, 4, 4\)"):
        Noise2NoiseLoss()(x_net=y, y=y, physics=physics)


def test_noise2noise_needs_a_reconstruction_of_each_view():
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 60)), normal(1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"x_net \(1, 1, 4, 4, 4\)"):
        Noise2NoiseLoss()(x_net=y[:, :1], y=y, physics=physics)


def per_view(kind, shape, ranges) -> tuple[list, deepinv.physics.LinearPhysics]:
    """An operator for each view, and one with all their masks."""
    separate = [operator(kind, (shape, tilts, "y", "ball")) for tilts in ranges]
    mixed = separate[0].clone()
    mixed.update(mask=torch.cat([physics.mask for physics in separate], 1))
    return separate, mixed


RANGES_OF_VIEWS = [(-60.0, 60.0), (-50.0, 20.0), (-30.0, 45.0)]
each_margin = pytest.mark.parametrize("margin", [0, 1])


@each_operator
@each_margin
@pytest.mark.parametrize("mask_target", [False, True])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (4, 5, 6)])
def test_noise2noise_masks_a_residual_by_the_view_it_is_compared_with(kind, margin, mask_target, views, shape, model):
    separate, mixed = per_view(kind, shape, RANGES_OF_VIEWS[:views])
    y = normal(2, views, *shape)
    x_net = model(y)
    pairs = []
    for v, w in itertools.permutations(range(views), 2):
        goal = separate[w].A(y[:, [w]]) if mask_target else y[:, [w]]
        residual = separate[w].A(x_net[:, [v]]) - goal
        z, h, x = (slice(margin, n - margin) for n in shape)
        pairs.append(residual[..., z, h, x].square().mean(dim=(1, 2, 3, 4)))
    loss = Noise2NoiseLoss(margin=margin, mask_target=mask_target)
    actual, expected = loss(x_net=x_net, y=y, physics=mixed), torch.stack(pairs).mean(0)
    assert len(pairs) == views * (views - 1)
    assert_close(actual, expected)
    assert_close(parameter_gradient(actual.sum(), model), parameter_gradient(expected.sum(), model))


# Masked equivariance


@each_operator
@each_range
@each_side
@pytest.mark.parametrize("explicit", [turned_operator, turned_mask_operator])
def test_masked_equivariance_is_equation_five_for_every_element(kind, tilts, side, explicit, model):
    """All 48 elements, one per sample: each value, and the gradient of a random combination of them."""
    physics, y = wedge(kind, side, tilts), normal(48, 2, side, side, side)
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0)
    actual = loss(x_net=model(y), y=y, physics=physics, model=model, elements=torch.arange(48))
    expected = torch.stack(
        [
            textbook(model.network, physics, sample, lambda u, g=g: GROUP.transform(u, element=g), explicit(physics, g))
            for g, sample in enumerate(y)
        ]
    )
    assert_close(actual, expected)
    weights = normal(48, seed=5)
    assert_close(parameter_gradient(actual @ weights, model), parameter_gradient(expected @ weights, model))


@each_operator
@pytest.mark.parametrize("geometry", [TiltGeometry.from_range(-60, 60), UNION], ids=str)
def test_in_thin_cubes_it_is_equation_five_for_every_element_that_moves(kind, geometry, model):
    physics = kind((4, 6, 6), geometry).double()
    group = CubeRotationGroup.moving(physics)
    y = normal(len(group.elements), 2, 4, 6, 6)
    actual = MaskedEquivarianceLoss(group, weight=1.0)(
        x_net=model(y), y=y, physics=physics, model=model, elements=torch.tensor(group.elements)
    )
    expected = [
        textbook(
            model.network,
            physics,
            sample,
            lambda u, g=g: GROUP.transform(u, element=g),
            turned_operator(physics, g),
        )
        for g, sample in zip(group.elements, y, strict=True)
    ]
    assert_close(actual, torch.stack(expected))


@each_operator
def test_controls_with_another_element_or_an_unturned_mask_differ(kind, model):
    physics, y, g = wedge(kind, 5, (-50.0, 20.0)), normal(1, 2, 5, 5, 5), 13
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0)
    actual = loss(x_net=model(y), y=y, physics=physics, model=model, elements=torch.tensor([g]))[0]
    for other, masked in ((g + 1, turned_operator(physics, g + 1)), (g, physics.A)):

        def move(u, g=other):
            return GROUP.transform(u, element=g)

        assert_differs(actual, textbook(model.network, physics, y[0], move, masked))


@each_operator
def test_a_batch_has_the_values_of_its_samples(kind, model):
    physics, y, elements = wedge(kind, 4, (-50, 20)), normal(4, 2, 4, 4, 4), torch.tensor([3, 40, 0, 21])
    loss = MaskedEquivarianceLoss(GROUP, margin=1)
    batch = loss(x_net=model(y), y=y, physics=physics, model=model, elements=elements)
    for i, value in enumerate(batch):
        single = loss(x_net=model(y[[i]]), y=y[[i]], physics=physics, model=model, elements=elements[[i]])
        assert_close(value, single[0])


@each_operator
def test_a_mask_per_sample_is_an_operator_per_sample(kind, model):
    parts = [wedge(kind, 4, tilts) for tilts in ((-60, 60), (-50, 20), (-30, 45))]
    mixed, y, elements = parts[0].clone(), normal(3, 2, 4, 4, 4), torch.tensor([3, 40, 21])
    mixed.update(mask=torch.cat([part.mask for part in parts]))
    for loss, extra in ((Noise2NoiseLoss(), {}), (MaskedEquivarianceLoss(GROUP), {"elements": elements})):
        actual = loss(x_net=model(y), y=y, physics=mixed, model=model, **extra)
        for i, part in enumerate(parts):
            own = {key: value[[i]] for key, value in extra.items()}
            value = loss(x_net=model(y[[i]]), y=y[[i]], physics=part, model=model, **own)
            assert_close(actual[i], value[0])


@each_operator
@each_margin
@pytest.mark.parametrize(("source", "target"), [("estimate", "estimate"), ("data", "data")])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_equivariance_masks_a_residual_by_the_view_it_is_compared_with(kind, margin, source, target, views, model):
    """Explicitly, view by view: each is measured again with its own mask and compared where the other was measured."""
    separate, mixed = per_view(kind, (4, 4, 4), RANGES_OF_VIEWS[:views])
    y, chosen = normal(2, views, 4, 4, 4), (17, 40)
    x_net = model(y)
    expected = []
    for b, g in enumerate(chosen):
        pairs = []
        for v, w in itertools.permutations(range(views), 2) if views > 1 else [(0, 0)]:
            own, other, seen = x_net[b, v][None, None], x_net[b, w][None, None], y[b, v][None, None]
            filled = seen + own - separate[v].A(own) if source == "data" else own
            again = model(separate[v].A(GROUP.transform(filled, element=g)))
            goal = GROUP.transform(y[b, w][None, None] if target == "data" else other, element=g)
            masked = turned_operator(separate[w], g)(again - goal)
            n = slice(margin, 4 - margin)
            pairs.append(masked[..., n, n, n].square().mean())
        expected.append(torch.stack(pairs).mean())
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0, margin=margin, source=source, target=target)
    actual = loss(x_net=x_net, y=y, physics=mixed, model=model, elements=torch.tensor(chosen))
    assert_close(actual, torch.stack(expected))
    assert_close(parameter_gradient(actual.sum(), model), parameter_gradient(sum(expected), model))


def test_the_weight_multiplies_and_is_the_papers_two(model):
    physics, y, elements = wedge(MissingWedgeOperator, 4, (-60, 60)), normal(2, 2, 4, 4, 4), torch.tensor([3, 5])

    def value(**settings):
        return MaskedEquivarianceLoss(GROUP, **settings)(
            x_net=model(y), y=y, physics=physics, model=model, elements=elements
        )

    assert_close(value(), 2 * value(weight=1.0))


def test_a_margin_looks_at_the_centre(model):
    physics, y, g = wedge(PaddedMissingWedgeOperator, 6, (-60, 40)), normal(1, 2, 6, 6, 6), 17
    x_net = model(y)
    again = model(physics.A(GROUP.transform(x_net, element=g)))
    turned = turned_operator(physics, g)(again - GROUP.transform(x_net.flip(1), element=g))
    expected = turned[..., 2:4, 2:4, 2:4].square().mean()
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0, margin=2)
    actual = loss(x_net=x_net, y=y, physics=physics, model=model, elements=torch.tensor([g]))
    assert_close(actual[0], expected)


@pytest.mark.parametrize("terms", ["estimate", "data"])
def test_a_stopped_gradient_leaves_the_value_and_a_path_out(terms, model):
    physics, y, elements = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(2, 2, 4, 4, 4), torch.tensor([3, 30])
    x_net = model(y)

    def loss(stop):
        loss = MaskedEquivarianceLoss(GROUP, weight=1.0, stop_gradient=stop, source=terms, target=terms)
        value = loss(x_net=x_net, y=y, physics=physics, model=model, elements=elements).sum()
        (through,) = torch.autograd.grad(value, x_net, retain_graph=True, allow_unused=True)
        assert (through is not None and bool(through.abs().max() > 0)) == loss.needs_estimate_gradient
        return value

    def expected(source, target):
        again = model(physics.A(GROUP.apply(source, elements)))
        residual = physics.A(GROUP.apply(again, elements, inverse=True) - target)
        return residual.square().mean(dim=(1, 2, 3, 4)).sum()

    source = x_net if terms == "estimate" else y + x_net - physics.A(x_net)
    target = x_net.flip(1) if terms == "estimate" else y.flip(1)
    for stop, one, other in (
        ("none", source, target),
        ("source", source.detach(), target),
        ("target", source, target.detach()),
        ("both", source.detach(), target.detach()),
    ):
        assert_close(loss(stop), expected(one, other))
        assert_close(parameter_gradient(loss(stop), model), parameter_gradient(expected(one, other), model))


@each_operator
@each_range
@pytest.mark.parametrize(("source", "target"), [("data", "estimate"), ("estimate", "data"), ("data", "data")])
def test_data_stand_in_for_estimates(kind, tilts, source, target, model):
    physics, y, chosen = wedge(kind, 4, tilts), normal(3, 2, 4, 4, 4), (3, 40, 21)
    x_net = model(y)
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0, source=source, target=target)
    actual = loss(x_net=x_net, y=y, physics=physics, model=model, elements=torch.tensor(chosen))
    expected = []
    for sample, reconstruction, g in zip(y, x_net, chosen, strict=True):
        value = 0.0
        for view in (0, 1):
            seen, other = sample[None, [view]], sample[None, [1 - view]]
            own, crossed = reconstruction[None, [view]], reconstruction[None, [1 - view]]
            filled = seen + (own - physics.A(own)) if source == "data" else own
            again = model(physics.A(GROUP.transform(filled, element=g)))
            goal = GROUP.transform(other if target == "data" else crossed, element=g)
            value = value + 0.5 * turned_operator(physics, g)(again - goal).square().mean()
        expected.append(value)
    expected = torch.stack(expected)
    assert_close(actual, expected)
    assert_close(parameter_gradient(actual.sum(), model), parameter_gradient(expected.sum(), model))


def test_a_perfect_reconstruction_of_complete_data_has_no_loss():
    """With all of Fourier space measured and equal halves, the identity is right and the data say so."""
    physics, y = wedge(MissingWedgeOperator, 5, (-60, 60)), normal(2, 1, 5, 5, 5)
    physics.update(mask=torch.ones_like(physics.mask))
    y = y.expand(-1, 2, -1, -1, -1)
    model = TwoViewReconstructor(nn.Identity())
    loss = MaskedEquivarianceLoss(GROUP, source="data", target="data")
    assert loss(x_net=model(y), y=y, physics=physics, model=model, elements=torch.tensor([5, 30])).max() < 1e-28


@pytest.mark.parametrize("settings", [{"source": "y"}, {"target": "network"}, {"stop_gradient": True}])
def test_unknown_terms_are_refused(settings):
    with pytest.raises(ValueError, match=r"is one of .*, got"):
        MaskedEquivarianceLoss(GROUP, **settings)


def test_data_cannot_judge_all_of_fourier_space():
    with pytest.raises(ValueError, match="needs `masked=True`"):
        MaskedEquivarianceLoss(GROUP, masked=False, target="data")


@pytest.mark.parametrize("settings", [{"source": "data"}, {"target": "data"}])
def test_data_that_are_no_volumes_like_the_reconstructions_are_refused(settings, model):
    physics, x_net = wedge(MissingWedgeOperator, 4, (-60, 60)), normal(1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4, 4\), got y \(1, 2, 4, 4, 5\)"):
        MaskedEquivarianceLoss(GROUP, **settings)(
            x_net=x_net, y=normal(1, 2, 4, 4, 5), physics=physics, model=model, elements=torch.tensor([3])
        )


def test_several_draws_are_averaged(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(2, 2, 4, 4, 4)
    group = CubeRotationGroup(n_trans=3, rng=torch.Generator().manual_seed(4))
    actual = MaskedEquivarianceLoss(group)(x_net=model(y), y=y, physics=physics, model=model)
    group.rng.manual_seed(4)
    values = [
        MaskedEquivarianceLoss(GROUP)(x_net=model(y), y=y, physics=physics, model=model, elements=group.draw(2))
        for _ in range(3)
    ]
    assert_close(actual, torch.stack(values).mean(0))


def test_elements_are_drawn_from_the_seed_and_the_index_of_each_sample(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(6, 2, 4, 4, 4)
    group = CubeRotationGroup.moving(physics)
    loss = MaskedEquivarianceLoss(group)

    def values(part, draws):
        return loss(x_net=model(y[part]), y=y[part], physics=physics, model=model, draws=draws)

    whole = values(slice(None), Draws(3, range(10, 16)))
    drawn = draw_integers(3, range(10, 16), len(group.elements), ELEMENTS)
    elements = torch.tensor([group.elements[i] for i in drawn])
    assert_close(whole, loss(x_net=model(y), y=y, physics=physics, model=model, elements=elements))
    parts = [values(slice(2), Draws(3, range(10, 12))), values(slice(2, None), Draws(3, range(12, 16)))]
    assert_close(torch.cat(parts), whole)
    assert_differs(values(slice(None), Draws(4, range(10, 16))), whole)
    # The group's own generator is left alone.
    state = group.rng.get_state()
    values(slice(None), Draws(3, range(6)))
    assert torch.equal(group.rng.get_state(), state)


def test_the_draws_of_one_sample_differ(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(1, 2, 4, 4, 4)
    several = MaskedEquivarianceLoss(CubeRotationGroup(n_trans=3))
    actual = several(x_net=model(y), y=y, physics=physics, model=model, draws=Draws(3, range(1)))
    one = MaskedEquivarianceLoss(GROUP)(x_net=model(y), y=y, physics=physics, model=model, draws=Draws(3, range(1)))
    assert_differs(actual, one)


@pytest.mark.parametrize(
    "make", [lambda: Shift(), lambda: CubeRotationGroup() * Shift(), lambda: Reflect(dim=[-2, -1])]
)
def test_other_transforms_draw_from_the_seed_and_the_first_index(make, model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(2, 2, 4, 4, 4)
    transform = make()
    states = [part.rng.get_state() for part in transform.modules()]

    def value(draws, transform):
        return MaskedEquivarianceLoss(transform)(x_net=model(y), y=y, physics=physics, model=model, draws=draws)

    draws = [Draws(3, range(first, first + 2)) for first in range(12)]
    values = [value(d, transform) for d in draws]
    for one, d in zip(values, draws, strict=True):
        assert torch.equal(value(d, make()), one)
    assert len({tuple(one.tolist()) for one in values}) > 2
    assert all(
        torch.equal(part.rng.get_state(), state) for part, state in zip(transform.modules(), states, strict=True)
    )


def test_every_sample_draws_its_own_element(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(1, 2, 4, 4, 4).expand(8, -1, -1, -1, -1)
    group = CubeRotationGroup(rng=torch.Generator().manual_seed(4))
    values = MaskedEquivarianceLoss(group)(x_net=model(y), y=y, physics=physics, model=model)
    assert len(set(values.tolist())) > 4


TRANSFORMS = {
    "shift": lambda rng: Shift(rng=rng),
    # deepinv folds z into the channels: its axes -2 and -1 are y and x.
    "reflect y and x": lambda rng: Reflect(dim=[-2, -1], rng=rng),
    # To reach z, tell it that volumes are no videos.
    "reflect z": lambda rng: Reflect(dim=[-3, -2, -1], flatten_video_input=False, rng=rng),
    "rotate about z": lambda rng: Rotate(multiples=90, positive=True, rng=rng),
    "cube and shift": lambda rng: CubeRotationGroup(rng=rng) * Shift(rng=rng),
}
each_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())


@each_transform
@each_operator
def test_any_deepinv_transform_that_moves_voxels_gives_equation_five(make, kind, model):
    transform = make(torch.Generator().manual_seed(1))
    physics, y = wedge(kind, 5, (-50, 20)), normal(2, 2, 5, 5, 5)
    loss = MaskedEquivarianceLoss(transform, weight=1.0)
    actual = loss(x_net=model(y), y=y, physics=physics, model=model)
    params = make(torch.Generator().manual_seed(1)).get_params(model(y))

    def move(u):
        return transform.transform(u, **params)

    def masked(u):
        return move(physics.A(transform.inverse(u, **params)))

    expected = torch.stack([textbook(model.network, physics, sample, move, masked) for sample in y])
    assert_close(actual, expected)


def test_draws_of_a_deepinv_transform_are_averaged(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(2, 2, 4, 4, 4)
    transform = Reflect(dim=[-2, -1], n_trans=4)
    actual = MaskedEquivarianceLoss(transform)(x_net=model(y), y=y, physics=physics, model=model)
    # Its four draws are its four elements.
    values = []
    for dims in ([], [-1], [-2], [-2, -1]):
        g = next(g for g in range(48) if torch.equal(GROUP.transform(y, element=g), y.flip(dims)))
        elements = torch.full((2,), g)
        values.append(
            MaskedEquivarianceLoss(GROUP)(x_net=model(y), y=y, physics=physics, model=model, elements=elements)
        )
    assert_close(actual, torch.stack(values).mean(0))


@pytest.mark.parametrize("g", [0, 9, 33])
def test_unmasked_with_one_view_it_is_deepinvs_equivariant_loss(g, model):
    physics, y = wedge(MissingWedgeOperator, 5, (-60, 40)), normal(3, 1, 5, 5, 5)
    x_net = model(y, physics)
    loss = MaskedEquivarianceLoss(GROUP, weight=1.5, masked=False)
    actual = loss(x_net=x_net, y=y, physics=physics, model=model, elements=torch.full((3,), g)).mean()
    theirs = EILoss(lambda u: GROUP.transform(u, element=g), apply_noise=False, weight=1.5)
    expected = theirs(x_net=x_net, physics=physics, model=model)
    assert_close(actual, expected)
    assert_close(parameter_gradient(actual, model), parameter_gradient(expected, model))


@each_transform
def test_unmasked_with_a_deepinv_transform_it_draws_as_deepinvs_loss_does(make, model):
    physics, y = wedge(MissingWedgeOperator, 5, (-60, 40)), normal(3, 1, 5, 5, 5)
    x_net = model(y, physics)
    ours = MaskedEquivarianceLoss(make(torch.Generator().manual_seed(2)), weight=1.0, masked=False)
    theirs = EILoss(make(torch.Generator().manual_seed(2)), apply_noise=False)
    actual = ours(x_net=x_net, y=y, physics=physics, model=model).mean()
    assert_close(actual, theirs(x_net=x_net, physics=physics, model=model))


def test_the_losses_take_a_physics_of_deepinv(model):
    """Missing voxels in place of missing frequencies: the same formulas with another A."""
    keep = (normal(1, 5, 5, 5) > 0).double()
    physics = deepinv.physics.Inpainting(img_size=(1, 5, 5, 5), mask=keep)
    y = physics.A(normal(2, 2, 5, 5, 5, seed=1))
    x_net, g = model(y), 9
    data = (keep * x_net - y.flip(1)).square().mean(dim=(1, 2, 3, 4))
    assert_close(Noise2NoiseLoss()(x_net=x_net, y=y, physics=physics), data)
    turned_keep = GROUP.transform(keep[None], element=g)
    again = model(keep * GROUP.transform(x_net, element=g))
    residual = turned_keep * (again - GROUP.transform(x_net.flip(1), element=g))
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0)
    actual = loss(x_net=x_net, y=y, physics=physics, model=model, elements=torch.tensor([g, g]))
    assert_close(actual, residual.square().mean(dim=(1, 2, 3, 4)))


def test_a_step_with_both_losses_calls_the_network_twice(model):
    physics, y, batches = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(3, 2, 4, 4, 4), []
    model.network.register_forward_hook(lambda module, inputs, output: batches.append(tuple(inputs[0].shape)))
    arguments = {"y": y, "physics": physics, "model": model}
    x_net = model(y, physics)
    total = Noise2NoiseLoss()(x_net=x_net, **arguments) + MaskedEquivarianceLoss(GROUP)(x_net=x_net, **arguments)
    total.mean().backward()
    assert batches == [(6, 1, 4, 4, 4)] * 2


@pytest.mark.parametrize("loss", [Noise2NoiseLoss(), MaskedEquivarianceLoss(GROUP)], ids=["data", "equi"])
def test_deepinv_calls_the_losses_with_more_than_they_need(loss, model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(2, 2, 4, 4, 4)
    assert loss.adapt_model(model) is model
    value = loss(x=None, x_net=model(y), y=y, physics=physics, model=model, epoch=3)
    assert value.shape == (2,)


@each_operator
def test_an_evaluation_in_inference_mode_leaves_training_as_it_was(kind, model):
    physics, y, elements = wedge(kind, 6, (-60, 40)), normal(1, 2, 6, 6, 6), torch.tensor([5])
    loss = MaskedEquivarianceLoss(GROUP, margin=1)
    with torch.inference_mode():
        before = float(loss(x_net=model(y), y=y, physics=physics, model=model, elements=elements))
    value = loss(x_net=model(y), y=y, physics=physics, model=model, elements=elements).sum()
    value.backward()
    assert float(value.detach()) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_squares_are_not_lost_in_sixteen_bits(dtype):
    """An unmasked residual may be in half precision; its square of 4e-9 would be zero or coarse there."""
    x_net = torch.full((1, 2, 4, 4, 4), 2.0**-14, dtype=dtype)
    loss = MaskedEquivarianceLoss(GROUP, weight=1.0, masked=False)
    physics = MissingWedgeOperator((4, 4, 4), (-60, 60))
    value = loss(x_net=x_net, y=x_net, physics=physics, model=lambda y, physics: torch.zeros_like(y, dtype=dtype))
    assert value.dtype == torch.float32
    assert_close(value, torch.tensor([2.0**-28]), 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise2NoiseLoss(margin=-1), "`margin` must be a whole number of voxels, zero or more, got -1"),
        (lambda: MaskedEquivarianceLoss(GROUP, margin=1.5), "`margin` must be a whole number of voxels"),
    ],
)
def test_a_margin_that_is_no_count_of_voxels_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [Noise2NoiseLoss(margin=2), MaskedEquivarianceLoss(GROUP, margin=2)])
def test_a_margin_that_leaves_nothing_is_refused(loss, model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"a `margin` of 2 voxels leaves nothing of \(4, 4, 4\)"):
        loss(x_net=y, y=y, physics=physics, model=model)


def test_elements_for_a_transform_that_has_none_are_refused(model):
    physics, y = wedge(MissingWedgeOperator, 4, (-60, 40)), normal(1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match="`elements` belong to a CubeRotationGroup, the transform is a Shift"):
        MaskedEquivarianceLoss(Shift())(x_net=y, y=y, physics=physics, model=model, elements=torch.tensor([1]))


@pytest.mark.fault(73)
def test_a_reconstruction_that_is_no_batch_of_volumes_is_refused(model):
    physics = wedge(MissingWedgeOperator, 4, (-60, 40))
    with pytest.raises(ValueError, match=r"x_net must be a non-empty batch of volumes"):
        MaskedEquivarianceLoss(GROUP)(x_net=torch.ones(4, 4, 4), y=None, physics=physics, model=model)
