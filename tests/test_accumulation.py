"""Gradients from a few cubes at a time are those of the whole batch, and fewer go at once when memory runs out."""

import csv
import itertools

import pytest
import torch
from making import noisy_pair

from equitomo import IcecreamTrainer, TrainingConfig
from equitomo.draws import Draws
from equitomo.training.memory import IN_BACKWARD, bytes_of_step, cubes_at_once

TINY = {
    "side": 16,
    "batch": 5,
    "width": 4,
    "levels": 2,
    "steps": 4,
    "margin": 4,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


@pytest.fixture(scope="module")
def pairs():
    """Two tomograms of different tilts, so that each cube of a batch has its own mask."""
    geometries = [(-60.0, 60.0), (-40.0, 55.0)]
    return [noisy_pair((20, 20, 20), seed=seed, geometry=geometry) for seed, geometry in enumerate(geometries)]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.learner.network.state_dict().items()}


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def in_float64(trainer):
    draw = trainer.dataset.batch
    trainer.dataset.batch = lambda indices: (draw(indices)[0].double(), draw(indices)[1])
    trainer.objective.double()
    return trainer


def gradients(trainer):
    return {name: p.grad for name, p in trainer.objective.named_parameters()}


@pytest.mark.parametrize("n_at_once", [1, 2, 3, 4, 5, 8])
def test_the_gradient_is_that_of_the_mean_over_the_whole_batch(pairs, n_at_once):
    trainer = in_float64(IcecreamTrainer(pairs, tiny()))
    indices = range(10, 15)
    losses = trainer.gradient(indices, n_at_once)
    found = gradients(trainer)

    y, sources = trainer.dataset.batch(indices)
    assert set(sources) == {0, 1}
    trainer.objective.zero_grad()
    expected = trainer.objective(y, [pairs[source].geometries for source in sources], Draws(0, indices)).mean(1)
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found, gradients(trainer), rtol=1e-11, atol=1e-16)


@pytest.mark.fault(64)
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
    trainer.learner.network.register_forward_hook(lambda module, x, out: seen.append(len(x[0]) // 2))
    trainer.train(until=1)
    assert seen == [2, 2, 2, 2, 1, 1]


def test_the_cubes_at_once_may_change_when_a_run_is_resumed(pairs, tmp_path):
    unbroken = IcecreamTrainer(pairs, tiny()).train()
    IcecreamTrainer(pairs, tiny(), out=tmp_path).train(until=2)
    resumed = IcecreamTrainer(pairs, tiny(micro_batch=2), out=tmp_path, resume=True).train()
    torch.testing.assert_close(weights(resumed), weights(unbroken), rtol=0, atol=1e-6)


@pytest.mark.fault(65, 67)
def test_one_bad_part_makes_its_step_change_nothing(pairs):
    trainer = IcecreamTrainer(pairs, tiny(micro_batch=2, precision="float16", steps=3))
    scale, draw = None, trainer.dataset.batch

    def spoilt(indices):
        cubes, sources = draw(indices)
        # The last part of the second step.
        return (cubes * float("nan") if indices == range(9, 10) else cubes), sources

    trainer.dataset.batch = spoilt
    before, scale = weights(trainer.train(until=1)), trainer.learner.scaler.get_scale()
    after = weights(trainer.train(until=2))
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Once a step and not once a part.
    assert (trainer.skipped, trainer.learner.scaler.get_scale()) == (1, scale / 2)


# The memory ladder -----------------------------------------------------------------------------------


FULL = torch.OutOfMemoryError("CUDA out of memory")


def limit(trainer, cubes, *, checkpointed=0, error=FULL):
    """Let memory run out in the backward pass, after it has begun, where more cubes than these go at once."""
    network, at_once, seen = trainer.learner.network, [0], []

    def note(module, inputs):
        # In a recomputation for the gradient it is called again.
        if torch.is_grad_enabled():
            at_once[0] = len(inputs[0]) // 2

    def fail(gradient):
        seen.append(at_once[0])
        if at_once[0] > (checkpointed if network.checkpointing else cubes) and trainer.step >= 1:
            raise error
        return gradient

    network.register_forward_pre_hook(note)
    # The first layer is the last to get its gradient: by then the others have theirs.
    next(network.parameters()).register_hook(fail)
    return seen


def assert_same_result(one, other):
    assert one.skipped == other.skipped
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=0, atol=1e-6)


@pytest.mark.fault(64)
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("cubes", [4, 2, 1])
def test_a_run_that_ran_out_of_memory_equals_one_that_did_not(pairs, caplog, cubes, optimizer):
    undisturbed = IcecreamTrainer(pairs, tiny(optimizer=optimizer)).train()
    trainer = IcecreamTrainer(pairs, tiny(optimizer=optimizer))
    seen = limit(trainer, cubes)
    assert_same_result(trainer.train(), undisturbed)
    # What did not fit is tried once in the run.
    assert sum(n > cubes for n in seen[1:]) == len(caplog.records) == {4: 1, 2: 2, 1: 3}[cubes]
    halves = [(5, 3), (3, 2), (2, 1)]
    said = [f"out of memory with {a} cubes at once: retrying with {b} cube" for a, b in halves]
    assert all(text in record.message for text, record in zip(said, caplog.records, strict=False))


@pytest.mark.slow
@pytest.mark.fault(64)
def test_a_float16_run_keeps_its_scale_when_memory_runs_out(pairs):
    undisturbed, trainer = (IcecreamTrainer(pairs, tiny(precision="float16")) for _ in range(2))
    limit(trainer, 2)
    scales = [run.train().learner.scaler.get_scale() for run in (undisturbed, trainer)]
    assert scales[0] == scales[1]
    assert trainer.skipped == undisturbed.skipped == 0


@pytest.mark.fault(44, 64)
@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_activation_checkpointing_is_the_last_rung(pairs, caplog, error):
    undisturbed, trainer = (IcecreamTrainer(pairs, tiny(batch=2)) for _ in range(2))
    limit(trainer, 0, checkpointed=1, error=error)
    assert_same_result(trainer.train(), undisturbed.train())
    assert "with 1 cube at once: retrying with 1 cube at once and activation checkpointing" in caplog.text
    assert len(caplog.records) == 2


@pytest.mark.fault(44, 64)
def test_a_cube_that_does_not_fit_alone_is_an_error_that_says_what_was_tried(pairs, tmp_path):
    trainer = IcecreamTrainer(pairs, tiny(batch=3, checkpoint_every=1), out=tmp_path)
    limit(trainer, 0)
    message = (
        r"out of memory with 1 cube at once and activation checkpointing\. .*`side` or `width`.*"
        r"`precision='bfloat16'`.*`batch`"
    )
    with pytest.raises(torch.OutOfMemoryError, match=message):
        trainer.train()
    # The checkpoint of before is whole.
    assert IcecreamTrainer(pairs, tiny(batch=3, checkpoint_every=1), out=tmp_path, resume=True).train().step == 4


@pytest.mark.fault(64)
def test_another_error_is_not_taken_for_a_lack_of_memory(pairs):
    trainer = IcecreamTrainer(pairs, tiny())
    limit(trainer, 0, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.train()
    assert trainer.plan.n_at_once == 5


@pytest.mark.parametrize(
    ("device", "settings", "n"),
    [
        ("cuda", {}, 8),
        # One operation of the paper's step takes seconds with one cube.
        ("cpu", {}, 1),
        ("cpu", {"micro_batch": 8}, 8),
        ("cpu", {"side": 32, "width": 16, "margin": 2}, 32),
    ],
)
def test_large_cubes_go_one_by_one_through_a_cpu_unless_configured_otherwise(device, settings, n):
    assert cubes_at_once(TrainingConfig(**settings), torch.device(device)) == n


@pytest.mark.parametrize(
    ("method", "equivariance_weight"),
    [("noise2noise", 0.0), *itertools.product(("icecream", "fast", "equivariant_imaging"), (0.0, 2.0))],
)
def test_the_memory_of_a_step_is_known_from_the_settings(pairs, method, equivariance_weight):
    config = tiny(method=method, equivariance_weight=equivariance_weight, width=8, levels=3)
    trainer = IcecreamTrainer(pairs[0], config)
    another_cube = trainer.bytes_kept(2) - trainer.bytes_kept(1)
    assert bytes_of_step(config, torch.float32, 1) / IN_BACKWARD == pytest.approx(another_cube, rel=0.2)
