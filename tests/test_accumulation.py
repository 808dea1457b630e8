"""Gradients from a few cubes at a time: those of the whole batch, with what memory there is."""

import csv

import pytest
import torch
from making import noisy_pair

from equitomo import IcecreamTrainer, TrainingConfig
from equitomo._draws import ELEMENTS, draw_integers

TINY = {
    "side": 16,
    "batch": 5,
    "width": 4,
    "levels": 2,
    "steps": 4,
    "margin": 4,
    "learning_rate": 1e-3,
    "averaging": 0.9,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


@pytest.fixture(scope="module")
def pairs():
    """Of different tilts, so that cubes of one batch have masks of their own."""
    geometries = [(-60.0, 60.0), (-40.0, 55.0)]
    return [noisy_pair((20, 20, 20), seed=seed, geometry=geometry) for seed, geometry in enumerate(geometries)]


def weights(trainer):
    return {name: value.clone() for name, value in trainer._module.model.network.state_dict().items()}


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def in_float64(trainer):
    draw = trainer.dataset.batch
    trainer.dataset.batch = lambda indices: (draw(indices)[0].double(), draw(indices)[1])
    trainer._module.double()
    trainer._masks = {geometry: mask.double() for geometry, mask in trainer._masks.items()}
    return trainer


def gradients(trainer):
    return {name: p.grad for name, p in trainer._module.named_parameters()}


@pytest.mark.parametrize("n_at_once", [1, 2, 3, 4, 5, 8])
def test_the_gradient_is_that_of_the_mean_over_the_whole_batch(pairs, n_at_once):
    trainer = in_float64(IcecreamTrainer(pairs, tiny()))
    indices = range(10, 15)
    losses = trainer._gradient(indices, n_at_once)
    found = gradients(trainer)

    y, sources = trainer.dataset.batch(indices)
    assert set(sources) == {0, 1}
    trainer.physics.update(mask=torch.cat([trainer._masks[pairs[source].geometry] for source in sources]))
    drawn = draw_integers(0, indices, len(trainer.group.elements), ELEMENTS)
    trainer._module.zero_grad()
    expected = trainer._module(y, torch.tensor([trainer.group.elements[i] for i in drawn])).mean(1)
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found, gradients(trainer), rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("n_at_once", [1, 2, 3])
def test_a_run_in_parts_equals_one_of_whole_batches(pairs, tmp_path, n_at_once, optimizer):
    configs = [tiny(optimizer=optimizer, micro_batch=n) for n in (0, n_at_once)]
    whole, parts = (
        IcecreamTrainer(pairs, config, out=tmp_path / str(config.micro_batch)).train() for config in configs
    )
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.network.state_dict(), whole.network.state_dict(), rtol=0, atol=1e-6)
    for one, other in zip(rows(tmp_path / "0"), rows(tmp_path / str(n_at_once)), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_no_more_cubes_than_said_go_through_the_network_at_once(pairs):
    trainer, seen = IcecreamTrainer(pairs, tiny(micro_batch=2)), []
    # Each cube has two views, and the network is called twice.
    trainer._module.model.network.register_forward_hook(lambda module, x, out: seen.append(len(x[0]) // 2))
    trainer.train(until=1)
    assert seen == [2, 2, 2, 2, 1, 1]


def test_the_cubes_at_once_may_change_when_a_run_is_resumed(pairs, tmp_path):
    unbroken = IcecreamTrainer(pairs, tiny()).train()
    IcecreamTrainer(pairs, tiny(), out=tmp_path).train(until=2)
    resumed = IcecreamTrainer(pairs, tiny(micro_batch=2), out=tmp_path, resume=True).train()
    torch.testing.assert_close(weights(resumed), weights(unbroken), rtol=0, atol=1e-6)


def test_one_bad_part_makes_its_step_change_nothing(pairs):
    trainer = IcecreamTrainer(pairs, tiny(micro_batch=2, precision="float16", steps=3))
    scale, draw = None, trainer.dataset.batch

    def spoilt(indices):
        cubes, sources = draw(indices)
        # The last part of the second step.
        return (cubes * float("nan") if indices == range(9, 10) else cubes), sources

    trainer.dataset.batch = spoilt
    before, scale = weights(trainer.train(until=1)), trainer._scaler.get_scale()
    after = weights(trainer.train(until=2))
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Once a step and not once a part.
    assert (trainer.skipped, trainer._scaler.get_scale()) == (1, scale / 2)
