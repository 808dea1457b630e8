"""The methods as values: what each minimises, what it needs, and how its parts are replaced."""

import csv
from dataclasses import replace
from typing import get_args

import pytest
import torch
from making import noisy_halves, noisy_pair
from torch import nn

from equitomo import (
    CubeRotationGroup,
    IcecreamTrainer,
    MaskedEquivarianceLoss,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    SubtomogramDataset,
    SubtomogramPool,
    TomogramPair,
    TrainingConfig,
)
from equitomo.draws import ELEMENTS, Draws, draw_integers
from equitomo.methods import exchange_tilts, fast, method_of, mirror_cubes
from equitomo.training import Method, Trainer
from equitomo.training.config import MethodName

NAMES = get_args(MethodName)
TINY = {
    "side": 16,
    "batch": 2,
    "width": 4,
    "levels": 2,
    "steps": 3,
    "margin": 4,
    "learning_rate": 1e-3,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


def tiny(method="icecream", **changes):
    without = {"equivariance_weight": 0.0} if method == "noise2noise" else {}
    return TrainingConfig(method=method, **TINY | without | changes)


@pytest.fixture(scope="module")
def pair():
    return noisy_pair((20, 20, 20))


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_of_the_configuration_is_made_and_lowers_its_losses(pair, tmp_path, name):
    config = tiny(method=name, steps=40, learning_rate=3e-3)
    assert method_of(config).name == name
    IcecreamTrainer(pair, config, out=tmp_path).train()
    total = [sum(float(row[k]) for k in row if k in ("data", "equivariance")) for row in rows(tmp_path)]
    assert sum(total[-10:]) < 0.9 * sum(total[:10])


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_and_the_settings_alone_decide_the_result_of_a_method(pair, name):
    config = tiny(method=name)
    one, same = (Trainer(pair, method_of(config), config).train().network.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    changed = IcecreamTrainer(pair, tiny(method=name, seed=1)).train().network.state_dict()
    assert not any(torch.equal(one[key], changed[key]) for key in one)


def test_methods_make_the_network_of_the_configuration():
    network = method_of(tiny(width=6, levels=3, unshuffle=2, negative_slope=0.1, side=24, checkpointing=True)).network()
    assert isinstance(network, ScaleEquivariantUNet3D)
    assert (network.final_conv.in_channels, len(network.encoders), network.checkpointing) == (6, 3, True)
    assert (network.settings["unshuffle"], network.settings["negative_slope"], network.stride) == (2, 0.1, 8)


@pytest.mark.parametrize(("name", "support"), [("icecream", "ball"), ("fast", "box"), ("equivariant_imaging", "ball")])
def test_methods_make_their_operator_for_any_shape(pair, name, support):
    made = method_of(tiny(method=name, padding=1.5)).physics((12, 8, 10), pair.geometry)
    expected = PaddedMissingWedgeOperator((12, 8, 10), pair.geometry, padding=1.5, support=support)
    assert torch.equal(made.mask, expected.mask)


# The losses ------------------------------------------------------------------------------------------
# Those of icecream and fast are compared with their equations in test_trainer.py.


def test_noise2noise_compares_the_halves_in_all_of_fourier_space(pair, tmp_path):
    config = tiny(method="noise2noise", steps=1, data_weight=0.5)
    trainer = IcecreamTrainer(pair, config, out=tmp_path)
    network, (cubes, _) = trainer.network, trainer.dataset.batch(range(2))
    window, expected = (..., *[slice(4, 12)] * 3), 0.0
    with torch.no_grad():
        for view in (0, 1):
            expected += 0.5 * (network(cubes[:, [view]]) - cubes[:, [1 - view]])[window].square().mean().item() / 2
    trainer.train()
    (row,) = rows(tmp_path)
    assert list(row) == ["step", "data", "learning_rate", "skipped"]
    assert float(row["data"]) == pytest.approx(expected, rel=1e-5)


def residuals_of_chen(trainer, config, volume):
    """Both terms of equivariant imaging for the first cubes, by the paper."""
    network, (cubes, _) = trainer.network, trainer.dataset.batch(range(config.batch))
    physics = PaddedMissingWedgeOperator((16, 16, 16), volume.geometry)
    elements = CubeRotationGroup.moving(physics).elements
    drawn = [elements[k] for k in draw_integers(config.seed, range(config.batch), len(elements), ELEMENTS)]
    group, window = CubeRotationGroup(), (..., *[slice(4, 12)] * 3)
    y = cubes.mean(1, keepdim=True)
    with torch.no_grad():
        x = network(y)
        turned = group.apply(x, torch.tensor(drawn))
        again = network(physics.A(turned))
        # Turned back, so that the same window is compared as the loss looks at.
        residual = group.apply(again - turned, torch.tensor(drawn), inverse=True)
    return (physics.A(x) - y).square().mean().item(), residual[window].square().mean().item()


@pytest.mark.parametrize("n_views", [1, 2])
def test_equivariant_imaging_learns_from_one_volume_or_from_the_mean_of_two(n_views, tmp_path):
    halves = noisy_halves((20, 20, 20))
    volume = TomogramPair(halves[0], halves[1] if n_views == 2 else None, (-60.0, 60.0))
    config = tiny(method="equivariant_imaging", steps=1, data_weight=0.5, equivariance_weight=3.0)
    trainer = IcecreamTrainer(volume, config, out=tmp_path)
    data, equivariance = residuals_of_chen(trainer, config, volume)
    trainer.train()
    (row,) = rows(tmp_path)
    assert float(row["data"]) == pytest.approx(0.5 * data, rel=1e-4)
    assert float(row["equivariance"]) == pytest.approx(3.0 * equivariance, rel=1e-4)


@pytest.mark.parametrize("name", ["icecream", "fast", "noise2noise"])
def test_methods_for_halves_refuse_a_single_volume_with_the_remedy(name):
    single = TomogramPair(noisy_halves((20, 20, 20))[0], None, (-60.0, 60.0))
    with pytest.raises(ValueError, match=rf"{name} compares 2 half tomograms and got 1: .*equivariant_imaging"):
        IcecreamTrainer(single, tiny(method=name))


# Augmentation and cutting ----------------------------------------------------------------------------


def test_fast_changes_cubes_and_the_others_do_not():
    assert [len(method_of(tiny(method=name)).augmentations) for name in NAMES] == [0, 2, 0, 0]
    mirror, exchange = method_of(tiny(method="fast", flips=False)).augmentations
    assert (mirror.func, mirror.keywords, exchange) == (mirror_cubes, {"flips": False}, exchange_tilts)


class Seen(Noise2NoiseLoss):
    """Keeps the cubes that it is called with."""

    def __init__(self):
        super().__init__()
        self._cubes = []

    def forward(self, x_net, y, **given):
        self._cubes.append(y.detach().clone())
        return super().forward(x_net, y, **given)


def trained_on(pair, method, config, steps=1):
    seen = Seen()
    trainer = Trainer(pair, replace(method, losses=lambda physics: {"seen": seen}), config).train(until=steps)
    return trainer, torch.cat(seen._cubes)


def test_losses_see_cubes_as_they_are_cut_and_then_changed_in_order(pair):
    config = tiny(micro_batch=1)

    def add(y, geometries, draws):
        numbers = torch.tensor(draws.integers(1000, 77), dtype=y.dtype)
        assert (len(geometries), len(draws.indices)) == (len(y), len(y))
        return y + numbers[:, None, None, None, None]

    method = replace(method_of(config), augmentations=(add, lambda y, geometries, draws: 2 * y))
    trainer, seen = trained_on(pair, method, config)
    numbers = torch.tensor(draw_integers(0, range(2), 1000, 77))[:, None, None, None, None]
    assert torch.equal(seen, 2 * (trainer.dataset.batch(range(2))[0] + numbers))


def inside(cube, begin, shape):
    return cube[(..., *[slice(b, b + n) for b, n in zip(begin, shape, strict=True)])]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("side", "margin"), [(8, 0), (8, 2), ((4, 8, 8), 3), (8, 20)])
def test_cubes_that_are_cut_larger_hold_the_same_cubes_wherever_they_lie(side, margin, pooled):
    pairs = [noisy_pair((20, 16, 18), seed=k) for k in range(3)]
    if pooled:
        pairs = [TomogramPair(*pair.halves, (-60.0, 60.0), lazy=True) for pair in pairs]
        made = {"memory": 2 * pairs[0].n_bytes, "exchange_every": 40}
        dataset = SubtomogramPool(pairs, side, length=200, **made)
    else:
        dataset = SubtomogramDataset(pairs, side, length=200)
    expected, sources = dataset.batch(range(200))
    larger, same, begins = dataset.cut(range(200), margin)
    assert same == sources
    assert tuple(larger.shape[2:]) == tuple(
        min(n + 2 * margin, length) for n, length in zip(dataset.shape, (20, 16, 18), strict=True)
    )
    for cube, begin, own in zip(larger, begins, expected, strict=True):
        assert torch.equal(inside(cube, begin, dataset.shape), own)
    # Cubes at the faces have all of their margin on the other side.
    assert margin == 0 or {0, 2 * margin} <= {b for begin in begins for b in begin} or margin == 20


def test_larger_cubes_are_changed_first_and_then_cropped(pair):
    config, shapes = tiny(margin=1, side=8), []

    def note(y, geometries, draws):
        shapes.append(tuple(y.shape[-3:]))
        return y * (len(shapes) + 1)

    method = replace(method_of(config), augmentations=(note,), larger_augmentations=(note,), cut_margin=2)
    trainer, seen = trained_on(pair, method, config)
    assert shapes == [(12, 12, 12), (8, 8, 8)]
    assert torch.equal(seen, 6 * trainer.dataset.batch(range(2))[0])


def test_fast_exchanges_tilts_in_larger_cubes_if_it_is_given_a_margin(pair, monkeypatch):
    config = tiny(method="fast", side=8, margin=1)
    method = fast.method(config, cut_margin=2)
    assert method.larger_augmentations == (exchange_tilts,)
    _, seen = trained_on(pair, replace(method, augmentations=()), config)
    dataset, draws = SubtomogramDataset(pair, 8, length=6), Draws(0, range(2))
    larger, _, begins = dataset.cut(range(2), 2)
    exchanged = exchange_tilts(larger, pair.geometry, draws)
    assert torch.equal(seen, torch.stack([inside(*each, (8, 8, 8)) for each in zip(exchanged, begins, strict=True)]))
    # A script may set it for everything that is made by the configuration.
    monkeypatch.setattr(fast, "CUT_MARGIN", 2)
    one, same = (
        made.train().network.state_dict() for made in (Trainer(pair, method, config), IcecreamTrainer(pair, config))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_a_method_checks_its_numbers():
    method = method_of(tiny())
    for name in ("cut_margin", "n_views"):
        with pytest.raises(ValueError, match=name):
            replace(method, **{name: -1})


# Other parts -----------------------------------------------------------------------------------------


def test_parts_that_are_given_take_the_place_of_those_of_the_method(pair):
    def network():
        return nn.Conv3d(1, 1, 3, padding=1)

    def physics(shape, geometry):
        return PaddedMissingWedgeOperator(shape, geometry, padding=1)

    mine = {"mine": Noise2NoiseLoss(margin=2)}
    trainer = IcecreamTrainer(pair, tiny(), network=network, losses=mine, physics=physics)
    (terms,) = trainer.objective.terms
    assert isinstance(trainer.network, nn.Conv3d)
    assert terms.names == ("mine",)
    assert list(terms.losses) == list(mine.values())
    assert terms.physics.grid_shape == (16, 16, 16)


def test_the_losses_of_a_method_are_made_for_a_given_operator(pair):
    def physics(shape, geometry):
        return PaddedMissingWedgeOperator(shape, (-40.0, 50.0), padding=1)

    (terms,) = IcecreamTrainer(pair, tiny(), physics=physics).objective.terms
    (loss,) = [one for one in terms.losses if isinstance(one, MaskedEquivarianceLoss)]
    # An asymmetric range: 44 and not 40 rotations move it.
    assert len(loss.transform.elements) == 44


def test_a_method_of_one_s_own_is_a_value(pair, tmp_path):
    """A screen of code, with everything that the engine has."""
    method = Method(
        name="mine",
        network=lambda: nn.Conv3d(1, 1, 3, padding=1),
        physics=lambda shape, geometry: PaddedMissingWedgeOperator(shape, geometry),
        losses=lambda physics: {"n2n": Noise2NoiseLoss()},
        augmentations=(exchange_tilts,),
    )
    Trainer(pair, method, tiny(), out=tmp_path).train(until=1)
    resumed = Trainer(pair, method, tiny(), out=tmp_path, resume=True).train()
    unbroken = Trainer(pair, method, tiny()).train()
    assert torch.equal(resumed.network.weight, unbroken.network.weight)
