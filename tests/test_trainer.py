"""The training loop: the losses it minimises, the runs it repeats to the bit, and what stops it."""

import csv
import os
import re
import shutil
import signal
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from making import noisy_pair
from torch import nn

from equitomo import (
    CubeRotationGroup,
    IcecreamTrainer,
    MaskedEquivarianceLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    TomogramPair,
    TrainingConfig,
    load_network,
)
from equitomo.draws import ELEMENTS, draw_integers
from equitomo.methods import method_of
from equitomo.training import Trainer, TrainingDivergedError, TrainingInterruptedError, engine
from equitomo.training.budget import learning_rate
from equitomo.training.checkpoint import CheckpointError, load_checkpoint, write_checkpoint
from equitomo.training.judging import StartJudge
from equitomo.training.optimizer import optimizer_tensors
from equitomo.training.skipped import SkippedSteps
from equitomo.training.stopping import StepAbandonedError, abandoned_on, freed_on_failure, stop_signals

TINY = {
    "side": 16,
    "batch": 1,
    "width": 4,
    "levels": 2,
    "steps": 12,
    "margin": 4,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "checkpoint_every": 5,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


@pytest.fixture(scope="module")
def pair():
    return noisy_pair((20, 20, 20))


def weights(trainer):
    return {name: value.clone() for name, value in trainer.learner.network.state_dict().items()}


def group_of(trainer):
    """The rotations that the equivariance loss draws from."""
    (loss,) = [loss for loss in trainer.objective.terms[0].losses if isinstance(loss, MaskedEquivarianceLoss)]
    return loss.transform


def optimizer_state(trainer):
    return optimizer_tensors(trainer.learner.optimizer, trainer.learner.network)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_runs(one, other):
    """Weights, averages, optimiser, counters and losses of two finished runs are the same to the bit."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    assert all(equal(a.tensors[group], b.tensors[group]) for group in a.tensors)
    assert (one / "losses.csv").read_bytes() == (other / "losses.csv").read_bytes()


@pytest.fixture(scope="module")
def unbroken(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    IcecreamTrainer(pair, tiny(), out=folder).train()
    return folder


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_trains_to_the_same_weights_under_the_same_names(pair, monkeypatch):
    """The backend traces and then runs the trace, so that no compiler is needed."""
    compiled, real = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m: compiled.append(m) or real(m, backend="eager"))
    plain, other = (IcecreamTrainer(pair, tiny(compile=c)).train(until=2) for c in (False, True))
    assert [type(m) for m in compiled] == [ScaleEquivariantUNet3D]
    assert equal(weights(plain), weights(other))


def test_checkpointing_changes_no_weight(pair):
    runs = [IcecreamTrainer(pair, tiny(checkpointing=c)).train(until=3) for c in (False, True)]
    assert runs[1].learner.network.checkpointing
    assert equal(*map(weights, runs))


# Learning --------------------------------------------------------------------------------------------


def test_the_loss_falls(pair, tmp_path):
    IcecreamTrainer(pair, tiny(steps=60, learning_rate=3e-3), out=tmp_path).train()
    total = [float(row["data"]) + float(row["equivariance"]) for row in rows(tmp_path)]
    assert sum(total[-15:]) < 0.8 * sum(total[:15])


def test_every_weight_moves_at_every_step(pair):
    trainer = IcecreamTrainer(pair, tiny())
    before = weights(trainer)
    trainer.train(until=1)
    assert not any(torch.equal(before[name], value) for name, value in weights(trainer).items())


def residuals(network, pair, y, element, config):
    """Both losses of one cube by equations (4) and (5), written out with the mask turned."""
    physics = PaddedMissingWedgeOperator((config.side,) * 3, pair.geometry, padding=config.padding)
    group, element = CubeRotationGroup(), torch.tensor([element])
    first, second = y[None, :1], y[None, 1:]
    window = (..., *[slice(config.margin, config.side - config.margin)] * 3)
    data = equivariance = 0.0
    for seen, other in ((first, second), (second, first)):
        x_net, x_other = network(seen), network(other)
        data += physics.A(x_net - other)[window].square().mean() / 2
        again = network(physics.A(group.apply(x_net, element)))
        difference = group.apply(again - group.apply(x_other, element), element, inverse=True)
        equivariance += physics.A(difference)[window].square().mean() / 2
    return data.item(), config.equivariance_weight * equivariance.item()


def test_a_step_over_tomograms_of_different_tilts_has_the_losses_of_the_equations(tmp_path):
    pairs = [
        noisy_pair((16, 16, 20), seed=0, geometry=(-60.0, 60.0)),
        noisy_pair((16, 20, 16), seed=1, geometry=(-40.0, 55.0)),
    ]
    config = tiny(batch=6, steps=1)
    trainer = IcecreamTrainer(pairs, config, out=tmp_path)
    network = trainer.network
    cubes, sources = trainer.dataset.batch(range(6))
    assert set(sources) == {0, 1}
    group = group_of(trainer)
    drawn = draw_integers(config.seed, range(6), len(group.elements), ELEMENTS)
    with torch.no_grad():
        expected = [
            residuals(network, pairs[source], cube, group.elements[index], config)
            for cube, source, index in zip(cubes, sources, drawn, strict=True)
        ]
    trainer.train()
    data, equivariance = torch.tensor(expected).mean(0).tolist()
    assert float(rows(tmp_path)[0]["data"]) == pytest.approx(data, rel=1e-4)
    assert float(rows(tmp_path)[0]["equivariance"]) == pytest.approx(equivariance, rel=1e-4)


@pytest.mark.parametrize("data_weight", [0.0, 0.5])
def test_the_method_fast_takes_the_data_as_source_and_target(pair, tmp_path, data_weight):
    config = tiny(method="fast", batch=24, steps=1, data_weight=data_weight, equivariance_weight=3.0)
    # The cubes as they are cut: their changes have tests of their own.
    trainer = Trainer(pair, replace(method_of(config), augmentations=()), config, out=tmp_path)
    network, group = trainer.network, group_of(trainer)
    physics = PaddedMissingWedgeOperator((config.side,) * 3, pair.geometry, support="box")
    cubes, _ = trainer.dataset.batch(range(24))
    drawn = draw_integers(config.seed, range(24), len(group.elements), ELEMENTS)
    elements = torch.tensor([group.elements[index] for index in drawn])
    window = (..., *[slice(config.margin, config.side - config.margin)] * 3)
    data = equivariance = 0.0
    with torch.no_grad():
        for view, other in ((0, 1), (1, 0)):
            y, goal = cubes[:, [view]], cubes[:, [other]]
            x_net = network(y)
            data += data_weight * physics.A(x_net - goal)[window].square().mean().item() / 2
            again = network(physics.A(group.apply(y + x_net - physics.A(x_net), elements)))
            difference = group.apply(again, elements, inverse=True) - goal
            equivariance += 3.0 * physics.A(difference)[window].square().mean().item() / 2
    trainer.train()
    (row,) = rows(tmp_path)
    assert float(row["data"]) == pytest.approx(data, rel=1e-4)
    assert float(row["equivariance"]) == pytest.approx(equivariance, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "calls", "learning"),
    [
        ({"method": "icecream"}, 2, 2),
        ({"method": "icecream", "data_weight": 0.0}, 2, 2),
        ({"method": "icecream", "equivariance_weight": 0.0}, 1, 1),
        ({"method": "fast"}, 2, 2),
        # The estimate only fills the wedge of the source, without a gradient.
        ({"method": "fast", "data_weight": 0.0}, 2, 1),
        ({"method": "fast", "equivariance_weight": 0.0}, 1, 1),
        ({"method": "noise2noise", "equivariance_weight": 0.0}, 1, 1),
        ({"method": "equivariant_imaging"}, 2, 2),
        ({"method": "equivariant_imaging", "equivariance_weight": 0.0}, 1, 1),
        # The estimate is compared with the network's answer to its rotation, so both calls learn.
        ({"method": "equivariant_imaging", "data_weight": 0.0}, 2, 2),
    ],
    ids=str,
)
def test_the_network_is_called_and_learns_no_more_often_than_the_losses_need(pair, settings, calls, learning):
    trainer, grad = IcecreamTrainer(pair, tiny(**settings)), []
    trainer.learner.network.register_forward_hook(lambda module, x, out: grad.append(out.requires_grad))
    trainer.train(until=1)
    assert (len(grad), sum(grad)) == (calls, learning)


def test_the_loss_of_a_weight_of_zero_has_a_column_of_zeros(pair, tmp_path):
    IcecreamTrainer(pair, tiny(equivariance_weight=0.0, steps=2), out=tmp_path).train()
    assert [float(row["equivariance"]) for row in rows(tmp_path)] == [0.0, 0.0]
    assert all(float(row["data"]) > 0 for row in rows(tmp_path))


def test_losses_without_any_weight_are_refused(pair):
    with pytest.raises(ValueError, match="nothing to learn from: at least one loss with a weight other than zero"):
        IcecreamTrainer(pair, tiny(data_weight=0.0, equivariance_weight=0.0))


def test_the_averaged_weights_lag_behind_the_last_ones(pair):
    trainer = IcecreamTrainer(pair, tiny(ema_decay=0.99, learning_rate=1e-2)).train()
    start = IcecreamTrainer(pair, tiny()).network.state_dict()
    averaged, last = trainer.network.state_dict(), weights(trainer)
    for name in start:
        assert 0 < (averaged[name] - start[name]).norm() < (last[name] - start[name]).norm()


def test_the_average_forgets_quickly_at_first_and_then_by_its_decay(pair):
    trainer = IcecreamTrainer(pair, tiny(ema_decay=0.4))
    expected = weights(trainer)
    for step in range(12):
        trainer.train(until=step + 1)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = {name: value.lerp(weights(trainer)[name], 1 - decay) for name, value in expected.items()}
    torch.testing.assert_close(dict(trainer.network.state_dict()), expected, rtol=1e-5, atol=1e-7)


def test_the_average_keeps_a_share_of_the_weights_that_the_training_started_from(pair):
    init = IcecreamTrainer(pair, tiny(seed=7)).network
    plain, blended = (IcecreamTrainer(pair, tiny(start_share=share), init=init).train() for share in (0.0, 0.3))
    expected = {name: value.lerp(init.state_dict()[name], 0.3) for name, value in plain.network.state_dict().items()}
    torch.testing.assert_close(dict(blended.network.state_dict()), expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(weights(plain)[name], value) for name, value in weights(blended).items())


def test_a_training_from_the_seed_keeps_no_share_of_it(pair):
    plain, blended = (IcecreamTrainer(pair, tiny(start_share=share)).train() for share in (0.0, 0.3))
    torch.testing.assert_close(blended.network.state_dict(), plain.network.state_dict(), rtol=0, atol=0)


def test_a_share_of_the_start_survives_an_interruption(pair, tmp_path):
    init = IcecreamTrainer(pair, tiny(seed=7)).network
    config = tiny(start_share=0.3)
    whole = IcecreamTrainer(pair, config, init=init).train()
    IcecreamTrainer(pair, config, init=init, out=tmp_path).train(until=2)
    resumed = IcecreamTrainer(pair, config, out=tmp_path, resume=True).train()
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


def test_the_share_of_the_start_is_chosen_by_how_well_the_halves_fit():
    class Start(torch.nn.Module):
        """Returns its input times a weight: 1 keeps the noise of a half, 0 removes the signal."""

        def __init__(self, weight):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(float(weight)))

        def forward(self, x):
            return self.weight * x

    # The halves are as strong in signal as in noise, so that half of a half is the best guess.
    signal, *noise = torch.randn(3, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    pair = TomogramPair(*(signal + one for one in noise), (-60.0, 60.0))
    judge = StartJudge([pair], "float32")
    kept = [judge.share(lambda share, a=a: Start(0.5 + a * share)) for a in (0.0, 0.3, 3.0)]
    assert kept[0] == 0.6 and 0 < kept[1] < 0.6 and kept[2] == 0


def test_a_chosen_share_is_in_the_checkpoint(pair, tmp_path):
    init = IcecreamTrainer(pair, tiny(seed=7)).network
    config = tiny(start_share=None, learning_rate=1e-8)
    trainer = IcecreamTrainer(pair, config, init=init, out=tmp_path).train()
    # Nothing was learned, so every share is as good.
    assert trainer.learner.start_share == 0.6
    loaded = load_network(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), trainer.network.state_dict(), rtol=0, atol=0)
    resumed = IcecreamTrainer(pair, config, out=tmp_path, resume=True)
    torch.testing.assert_close(resumed.network.state_dict(), trainer.network.state_dict(), rtol=0, atol=0)


def test_the_averaged_network_has_a_lower_loss_than_the_initial_one(pair):
    config = tiny(steps=40, learning_rate=3e-3)
    trainer = IcecreamTrainer(pair, config)
    before, after = trainer.network, trainer.train().network
    cubes, _ = IcecreamTrainer(pair, tiny(seed=99)).dataset.batch(range(6))

    def loss(network):
        with torch.no_grad():
            return sum(sum(residuals(network, pair, cube, element, config)) for element, cube in enumerate(cubes, 7))

    assert loss(after) < 0.9 * loss(before)


def test_without_ema_decay_the_network_is_the_last_one(pair):
    trainer = IcecreamTrainer(pair, tiny(ema_decay=0.0)).train()
    assert equal(dict(trainer.network.state_dict()), weights(trainer))


def test_the_seed_alone_decides_the_result(pair):
    one, same, other = (IcecreamTrainer(pair, tiny(steps=3, seed=seed)).train() for seed in (1, 1, 2))
    assert equal(weights(one), weights(same))
    assert not equal(weights(one), weights(other))


def test_torch_s_own_generator_is_left_alone(pair, tmp_path):
    state = torch.get_rng_state()
    trainer = IcecreamTrainer(pair, tiny(preview_every=1, steps=3), out=tmp_path, preview=lambda *seen: None).train()
    assert trainer.network is not None
    load_network(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_torch_s_own_generator_does_not_matter(pair):
    torch.manual_seed(1)
    one = IcecreamTrainer(pair, tiny(steps=2)).train()
    torch.manual_seed(2)
    assert equal(weights(one), weights(IcecreamTrainer(pair, tiny(steps=2)).train()))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.854, 0.5, 0.146]),
    ],
)
def test_the_step_size_rises_and_then_follows_its_schedule(schedule, expected):
    config = tiny(schedule=schedule, warmup=4, steps=8, learning_rate=2.0)
    assert [learning_rate(config, step) / 2 for step in range(8)] == pytest.approx(expected, abs=1e-3)


def test_the_step_size_of_every_step_is_the_optimiser_s(pair, tmp_path):
    trainer = IcecreamTrainer(pair, tiny(schedule="cosine", warmup=3), out=tmp_path)
    for step in range(1, 6):
        trainer.train(until=step)
        assert trainer.learner.optimizer.param_groups[0]["lr"] == float(rows(tmp_path)[-1]["learning_rate"])


# Stopping and resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(pair, tmp_path, precision, optimizer):
    config = tiny(precision=precision, schedule="cosine", warmup=2, optimizer=optimizer)
    IcecreamTrainer(pair, config, out=tmp_path / "one").train()
    IcecreamTrainer(pair, config, out=tmp_path / "two").train(until=6)
    IcecreamTrainer(pair, config, out=tmp_path / "two", resume=True).train()
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_finished_run_that_is_given_more_steps_is_an_unbroken_one_of_as_many_to_the_bit(pair, tmp_path, optimizer):
    config = {"precision": "float16", "warmup": 8, "optimizer": optimizer}
    IcecreamTrainer(pair, tiny(**config), out=tmp_path / "one").train()
    IcecreamTrainer(pair, tiny(**config, steps=6), out=tmp_path / "two").train()
    IcecreamTrainer(pair, tiny(**config), out=tmp_path / "two", resume=True).train()
    assert load_checkpoint(tmp_path / "two").state["config"]["steps"] == 12
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("schedule", "until"), [("constant", 6), ("cosine", 4)])
def test_another_number_of_steps_is_taken_where_no_step_done_would_have_been_another(pair, tmp_path, schedule, until):
    """With cosine these are the steps of the warm-up."""
    config = {"schedule": schedule, "warmup": 4}
    IcecreamTrainer(pair, tiny(**config, steps=10), out=tmp_path / "one").train()
    IcecreamTrainer(pair, tiny(**config), out=tmp_path / "two").train(until=until)
    IcecreamTrainer(pair, tiny(**config, steps=10), out=tmp_path / "two", resume=True).train()
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.fault(61)
def test_fewer_steps_than_are_done_are_refused(pair, unbroken):
    with pytest.raises(CheckpointError, match=r"is at step 12 of a run of 12, which is now to have 11: give at least"):
        IcecreamTrainer(pair, tiny(steps=11), out=unbroken, resume=True)


@pytest.mark.fault(61)
def test_another_number_of_steps_under_a_schedule_that_depends_on_it_is_refused(pair, tmp_path):
    IcecreamTrainer(pair, tiny(schedule="cosine"), out=tmp_path).train(until=1)
    message = r"run of 12, .*have 24: .*cosine.*`steps`.*Resume it with `steps=12`, or start.*as `init`"
    with pytest.raises(CheckpointError, match=message):
        IcecreamTrainer(pair, tiny(schedule="cosine", steps=24), out=tmp_path, resume=True)


@pytest.mark.fault(58)
def test_a_run_killed_after_its_last_checkpoint_repeats_the_lost_steps(pair, unbroken, tmp_path):
    IcecreamTrainer(pair, tiny(), out=tmp_path).train(until=8)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000008")
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("1")  # of 10, cut off in the middle of a row
    resumed = IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True)
    assert resumed.step == 5
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    resumed.train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(60)
def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_one_before(pair, unbroken, tmp_path):
    IcecreamTrainer(pair, tiny(), out=tmp_path).train(until=10)
    (tmp_path / "checkpoints" / "step_00000010" / "optimizer.safetensors").write_bytes(b"")
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(59)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_after_the_step_and_the_run_can_go_on(pair, unbroken, tmp_path, number):
    def stop(step, *seen):
        if step == 7:
            os.kill(os.getpid(), number)

    trainer = IcecreamTrainer(pair, tiny(preview_every=1), out=tmp_path, preview=stop)
    with pytest.raises(TrainingInterruptedError, match=rf"{number.name} after step 7 of 12; resume to continue"):
        trainer.train()
    assert load_checkpoint(tmp_path).state["step"] == 7
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(59)
@pytest.mark.parametrize("step", [0, 6])
def test_a_signal_during_a_step_saves_the_state_before_it(pair, unbroken, tmp_path, step):
    trainer = IcecreamTrainer(pair, tiny(), out=tmp_path)
    draw = trainer.dataset.batch

    def batch(indices):
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(indices)

    trainer.dataset.batch = batch
    with pytest.raises(TrainingInterruptedError, match=rf"SIGTERM after step {step} of 12; resume to continue"):
        trainer.train()
    assert load_checkpoint(tmp_path).state["step"] == step
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(59)
def test_a_signal_during_a_backward_pass_ends_it():
    """It ends in the middle: the later half has its gradient, and the earlier half gets none."""
    early, late = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with stop_signals() as stop, abandoned_on(stop):
        between = early.exp()
        between.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGTERM))
        loss = (between * late).exp().sum()
        with pytest.raises(StepAbandonedError):
            loss.backward()
    assert late.grad is not None
    assert early.grad is None


class Held(torch.autograd.Function):
    """The identity, with something that lives as long as its place in the graph."""

    @staticmethod
    def forward(ctx, x, held):
        ctx.held = held
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize("n_looks", [1, 4, 8])
def test_a_backward_pass_that_is_left_leaves_nothing_in_memory(n_looks):
    """Nothing stays in torch's queue, nor in cycles of results that hold themselves."""
    held, looks = [], iter(range(n_looks))

    class Token:
        pass

    def hold(x):
        token = Token()
        held.append(weakref.ref(token))
        return Held.apply(x, token)

    class Stop:
        def __bool__(self):
            return len(held) == 6 and next(looks, None) is None

    def fail():
        x, y, z = (hold(torch.ones(3, requires_grad=True).exp()) for _ in range(3))
        (hold((x * y).exp()) * hold((y * z).exp()) + hold((z * x).exp())).sum().backward()

    with pytest.raises(StepAbandonedError), abandoned_on(Stop()), freed_on_failure():
        fail()
    assert [token() for token in held] == [None] * 6


@pytest.mark.fault(59)
def test_a_signal_during_the_last_step_still_stops(pair, tmp_path):
    def stop(step, losses):
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = IcecreamTrainer(pair, tiny(), out=tmp_path, progress=stop)
    with pytest.raises(TrainingInterruptedError, match="after step 12 of 12"):
        trainer.train()
    assert load_checkpoint(tmp_path).state["step"] == 12


@pytest.mark.fault(59)
def test_a_second_interrupt_stops_at_once(pair, tmp_path):
    def stop(step, *seen):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        IcecreamTrainer(pair, tiny(preview_every=1), out=tmp_path, preview=stop).train()
    assert load_checkpoint(tmp_path).state["step"] == 5


def test_a_patient_run_stops_at_no_second_interrupt():
    """torchrun passes on what the terminal has sent already."""
    with stop_signals(patient=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop == [signal.SIGINT] * 2


def test_signal_handlers_are_given_back(pair):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    IcecreamTrainer(pair, tiny(steps=1)).train()
    assert {number: signal.getsignal(number) for number in before} == before


def test_training_works_outside_the_main_thread(pair):
    trainer = IcecreamTrainer(pair, tiny(steps=2))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.step == 2


def test_a_finished_run_is_resumed_without_a_step(pair, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


def test_a_run_killed_between_its_last_checkpoint_and_the_removal_of_an_older_one_is_tidied(pair, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    latest = max((tmp_path / "checkpoints").iterdir())
    shutil.copytree(latest, tmp_path / "checkpoints" / "step_00000001")
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    left = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (tmp_path, unbroken)]
    assert left[0] == left[1]


def test_resuming_where_nothing_is_starts_from_the_beginning(pair, tmp_path):
    assert IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).step == 0


@pytest.mark.fault(58)
def test_losses_of_a_run_that_has_no_checkpoint_are_written_anew(pair, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints")
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(54)
def test_a_folder_with_a_run_is_refused(pair, unbroken):
    with pytest.raises(
        FileExistsError, match=f"{re.escape(str(unbroken))} holds a training run already: pass `resume=True` or"
    ):
        IcecreamTrainer(pair, tiny(), out=unbroken)


@pytest.mark.fault(61)
def test_resuming_with_other_settings_is_refused_with_each_of_them(pair, unbroken):
    with pytest.raises(CheckpointError, match=r"`learning_rate` was 0\.001, now 0\.5, `seed` was 0, now 3"):
        IcecreamTrainer(pair, tiny(learning_rate=0.5, seed=3), out=unbroken, resume=True)


@pytest.mark.fault(61)
def test_resuming_with_another_network_is_refused(pair, unbroken):
    with pytest.raises(CheckpointError, match="`width` was 4, now 6"):
        IcecreamTrainer(pair, tiny(width=6), out=unbroken, resume=True)


def drop_settings(folder, *names):
    """Remove settings from the last checkpoint, as if it were older than they are."""
    last = load_checkpoint(folder)
    config = {name: value for name, value in last.state["config"].items() if name not in names}
    write_checkpoint(last.path, last.tensors, last.state | {"config": config})


def test_a_checkpoint_that_is_older_than_a_setting_is_resumed_as_before(pair, unbroken, tmp_path):
    IcecreamTrainer(pair, tiny(), out=tmp_path).train(until=6)
    drop_settings(tmp_path, "micro_batch", "exchange_every", "method")
    IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train()
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.fault(61)
def test_a_checkpoint_that_is_older_than_a_setting_is_not_resumed_with_another(pair, tmp_path):
    IcecreamTrainer(pair, tiny(), out=tmp_path).train(until=6)
    drop_settings(tmp_path, "padding")
    with pytest.raises(CheckpointError, match=r"`padding` was 2\.0, now 1\.5"):
        IcecreamTrainer(pair, tiny(padding=1.5), out=tmp_path, resume=True)


@pytest.mark.fault(75)
def test_resuming_with_other_tilts_is_refused_with_both(unbroken):
    other = noisy_pair((20, 20, 20), geometry=(-50.0, 50.0))
    with pytest.raises(CheckpointError, match=r"run with other tilts: .*\[-60\.0, 60\.0\].*now .*\[-50\.0, 50\.0\]"):
        IcecreamTrainer(other, tiny(), out=unbroken, resume=True)


def test_resuming_a_network_without_its_training_is_refused(pair, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    last = load_checkpoint(tmp_path)
    write_checkpoint(last.path, {"weights": last.tensors["weights"]}, last.state)
    with pytest.raises(CheckpointError, match="no training to resume"):
        IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True)


@pytest.mark.parametrize("lost", ["all", "some"])
def test_losses_that_are_gone_are_warned_of(pair, tmp_path, lost):
    IcecreamTrainer(pair, tiny(), out=tmp_path).train(until=8)
    path = tmp_path / "losses.csv"
    path.unlink() if lost == "all" else path.write_text("".join(path.read_text().splitlines(True)[:4]))
    n_kept = 0 if lost == "all" else 3
    message = rf"losses\.csv has rows for {n_kept} of the 8 steps so far: the losses of the others are lost"
    with pytest.warns(UserWarning, match=message):
        resumed = IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True)
    assert [row["step"] for row in rows(resumed.train().out)][-4:] == ["9", "10", "11", "12"]


def test_losses_of_another_program_are_not_taken_for_those_of_the_run(pair, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    (tmp_path / "losses.csv").write_text("epoch;loss\none;2\n")
    with pytest.raises(CheckpointError, match=r"losses\.csv holds rows that this program did not write: move it away"):
        IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True)


def test_checkpoints_at_multiples_of_a_number_are_kept(pair, tmp_path):
    IcecreamTrainer(pair, tiny(checkpoint_every=5, keep_every=4), out=tmp_path).train()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}" for step in (4, 8, 10, 12)]


def test_the_state_before_the_first_step_is_not_kept(pair, tmp_path):
    """It is written if a signal arrives at once, and no multiple of `keep_every` of an unbroken run is step 0."""
    trainer = IcecreamTrainer(pair, tiny(checkpoint_every=2, keep_every=4, steps=8), out=tmp_path)
    trainer.save()
    trainer.train()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{step:08d}" for step in (4, 6, 8)]


def test_a_run_says_how_much_it_writes_at_most(pair, tmp_path):
    trainer = IcecreamTrainer(pair, tiny(checkpoint_every=4, keep_every=4), out=tmp_path).train()
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    # One more checkpoint while it is written, and the last two besides those kept for good.
    assert written < trainer.bytes_to_write < 3 * written + 600_000


@pytest.mark.fault(65)
@pytest.mark.parametrize(("before", "after"), [("float32", "float16"), ("float16", "float32"), ("float16", "bfloat16")])
def test_the_precision_may_change_when_a_run_is_resumed(pair, tmp_path, before, after):
    IcecreamTrainer(pair, tiny(precision=before), out=tmp_path).train(until=2)
    resumed = IcecreamTrainer(pair, tiny(precision=after, checkpoint_every=2), out=tmp_path, resume=True)
    assert resumed.train(until=4).step == 4


def test_a_run_without_a_folder_writes_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = IcecreamTrainer(pair, tiny()).train()
    assert trainer.save() is None
    assert list(tmp_path.iterdir()) == []


# Steps that are not finite ---------------------------------------------------------------------------


def spoil(trainer, steps, value=float("nan")):
    """Put NaN into the cubes of some steps."""
    draw = trainer.dataset.batch

    def spoilt(indices):
        cubes, sources = draw(indices)
        if indices.start // trainer.config.batch in steps:
            cubes[0, 0, 0, 0, 0] = value
        return cubes, sources

    trainer.dataset.batch = spoilt
    return trainer


def state(trainer):
    """Return everything that a step may change: weights, averages, optimiser."""
    optimizer = {name: value.clone() for name, value in optimizer_state(trainer).items()}
    ema = {f"ema {name}": value.clone() for name, value in trainer.learner.ema.items()}
    return weights(trainer) | optimizer | ema


@pytest.mark.fault(65)
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(pair, tmp_path, value, precision, optimizer):
    config = tiny(precision=precision, optimizer=optimizer)
    trainer = spoil(IcecreamTrainer(pair, config, out=tmp_path), {3}, value)
    trainer.train(until=3)
    before = state(trainer)
    trainer.train(until=4)
    assert equal(state(trainer), before)
    assert trainer.skipped == 1
    trainer.train()
    assert not equal(state(trainer), before)
    assert [row["skipped"] for row in rows(tmp_path)] == ["0"] * 3 + ["1"] + ["0"] * 8


@pytest.mark.fault(65)
def test_a_gradient_that_is_not_finite_is_skipped_too(pair):
    trainer = IcecreamTrainer(pair, tiny())
    weight = next(trainer.objective.parameters())
    weight.register_hook(lambda gradient: gradient * float("nan") if trainer.step == 2 else gradient)
    trainer.train(until=2)
    before = state(trainer)
    trainer.train(until=3)
    assert equal(state(trainer), before)
    assert trainer.skipped == 1


@pytest.mark.fault(65)
def test_skipped_steps_with_good_ones_between_do_not_stop_a_run(pair):
    trainer = spoil(IcecreamTrainer(pair, tiny(checkpoint_every=1)), {2, 3, 5, 6, 8, 9}).train()
    assert (trainer.step, trainer.skipped) == (12, 6)


@pytest.mark.fault(65)
def test_a_step_after_a_skipped_one_is_that_of_a_run_without_it(pair):
    trainer = spoil(IcecreamTrainer(pair, tiny()), {3}).train(until=4)
    steps = {value.item() for name, value in optimizer_state(trainer).items() if name.endswith(".step")}
    assert steps == {3.0}


@pytest.mark.fault(65)
@pytest.mark.parametrize("ema", [True, False])
def test_several_bad_steps_in_a_row_stop_the_run_with_the_good_weights_saved(pair, tmp_path, ema):
    good = IcecreamTrainer(pair, tiny()).train(until=6)
    trainer = spoil(IcecreamTrainer(pair, tiny(), out=tmp_path), set(range(6, 12)))
    message = (
        r"no finite gradient in 3 steps in a row, up to step 9: lower `learning_rate` or pass "
        r"`precision='float32'`.*step_"
    )
    with pytest.raises(TrainingDivergedError, match=message):
        trainer.train()
    expected = good.network.state_dict() if ema else weights(good)
    assert equal(dict(load_network(tmp_path, ema=ema).state_dict()), dict(expected))


@pytest.mark.fault(65)
def test_a_run_ends_with_the_step_that_is_one_too_many_and_its_losses_are_written(pair, tmp_path):
    with pytest.raises(TrainingDivergedError):
        spoil(IcecreamTrainer(pair, tiny(checkpoint_every=100), out=tmp_path), range(5, 12)).train()
    assert [load_checkpoint(tmp_path).state[name] for name in ("step", "skipped", "consecutive")] == [8, 3, 0]
    assert [row["skipped"] for row in rows(tmp_path)] == ["0"] * 5 + ["1"] * 3


@pytest.mark.fault(65)
def test_a_row_of_bad_steps_ends_a_run_also_where_good_ones_came_before_losses_were_read(pair, tmp_path, monkeypatch):
    """As on a GPU, which is not waited for after every step."""
    monkeypatch.setattr(engine, "read_every", lambda device: 20)
    trainer = spoil(IcecreamTrainer(pair, tiny(), out=tmp_path), {5, 6, 7, 8})
    with pytest.raises(TrainingDivergedError, match="4 steps in a row, up to step 10"):
        trainer.train()
    saved = load_checkpoint(tmp_path)
    assert equal(saved.tensors["weights"], weights(trainer))
    assert [saved.state[name] for name in ("step", "skipped", "consecutive")] == [10, 4, 0]
    resumed = IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True)
    assert resumed.train().step == trainer.train().step == 12


@pytest.mark.fault(65)
def test_many_skipped_steps_with_good_ones_between_are_warned_of_once(pair, caplog):
    bad = {step for step in range(60) if step % 3}
    assert spoil(IcecreamTrainer(pair, tiny(steps=60)), bad).train().skipped == 40
    (said,) = [record.message for record in caplog.records if "finite" in record.message]
    assert said.startswith("33 of the 50 steps so far had no finite gradient and were skipped: lower `learning_rate`")


@pytest.mark.fault(65)
@pytest.mark.parametrize(("n_skipped", "n_steps", "warned"), [(5, 50, False), (6, 50, True), (49, 49, False)])
def test_a_tenth_of_the_steps_may_be_skipped_without_a_word(caplog, n_skipped, n_steps, warned):
    skipped = SkippedSteps(patience=100)
    skipped.count([1.0] * n_skipped)
    skipped.warn_of_many(n_steps)
    assert bool(caplog.records) == warned


@pytest.mark.fault(65)
def test_a_run_that_diverged_can_be_resumed(pair, tmp_path):
    with pytest.raises(TrainingDivergedError):
        spoil(IcecreamTrainer(pair, tiny(), out=tmp_path), set(range(6, 12))).train()
    assert IcecreamTrainer(pair, tiny(), out=tmp_path, resume=True).train().step == 12


@pytest.mark.fault(65)
def test_bad_steps_are_counted_across_a_resumption(pair, tmp_path):
    spoil(IcecreamTrainer(pair, tiny(), out=tmp_path), {4, 5}).train(until=6)
    resumed = spoil(IcecreamTrainer(pair, tiny(checkpoint_every=1), out=tmp_path, resume=True), {6})
    assert resumed.skipped == 2
    with pytest.raises(TrainingDivergedError, match="3 steps in a row, up to step 7"):
        resumed.train()


@pytest.mark.fault(67)
def test_a_float16_overflow_is_skipped_and_counted_until_the_scale_fits(pair, tmp_path):
    trainer = IcecreamTrainer(pair, tiny(precision="float16"), out=tmp_path)
    trainer.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34)
    before = state(trainer)
    trainer.train(until=1)
    assert equal(before, {name: value for name, value in state(trainer).items() if name in before})
    assert trainer.skipped == 1
    trainer.train()
    assert 1 < trainer.skipped < 12
    assert sum(int(row["skipped"]) for row in rows(tmp_path)) == trainer.skipped
    assert trainer.learner.scaler.get_scale() == 2.0 ** (34 - trainer.skipped)
    assert not equal(state(trainer), before)


@pytest.mark.slow
@pytest.mark.fault(67)
def test_a_float16_overflow_that_no_scale_mends_ends_the_run(pair, tmp_path):
    trainer = spoil(IcecreamTrainer(pair, tiny(precision="float16", steps=40), out=tmp_path), set(range(6, 40)), 1e30)
    with pytest.raises(TrainingDivergedError, match=r"no finite gradient in 20 steps in a row, up to step 26"):
        trainer.train()
    assert all(torch.isfinite(value).all() for value in load_network(tmp_path).state_dict().values())


@pytest.mark.fault(67)
def test_float16_scales_its_losses(pair):
    trainer = IcecreamTrainer(pair, tiny(precision="float16")).train(until=2)
    assert trainer.learner.scaler.is_enabled()
    assert trainer.learner.scaler.get_scale() > 1


# Start and report ------------------------------------------------------------------------------------


def test_training_starts_from_the_given_weights(pair):
    torch.manual_seed(5)
    donor = ScaleEquivariantUNet3D(width=4, levels=2)
    trainer = IcecreamTrainer(pair, tiny(), init=donor)
    assert equal(weights(trainer), dict(donor.state_dict()))
    assert equal(dict(trainer.network.state_dict()), dict(donor.state_dict()))


def test_the_given_network_is_not_trained_itself(pair):
    donor = ScaleEquivariantUNet3D(width=4, levels=2)
    before = {name: value.clone() for name, value in donor.state_dict().items()}
    IcecreamTrainer(pair, tiny(steps=2), init=donor).train()
    assert equal(dict(donor.state_dict()), before)


@pytest.mark.fault(61)
def test_given_weights_of_another_width_are_refused(pair):
    message = r"weights of the given network do not fit.*parameters differ.*`width`, `levels` and `unshuffle`"
    with pytest.raises(CheckpointError, match=message):
        IcecreamTrainer(pair, tiny(), init=ScaleEquivariantUNet3D(width=6, levels=2))


@pytest.mark.fault(61)
def test_something_else_than_the_network_is_refused(pair):
    with pytest.raises(CheckpointError, match="weights of the given network do not fit"):
        IcecreamTrainer(pair, tiny(), init=nn.Conv3d(1, 1, 3))


def test_progress_is_told_every_step_and_its_losses(pair, tmp_path):
    seen = {}
    IcecreamTrainer(pair, tiny(), out=tmp_path, progress=seen.__setitem__).train()
    assert list(seen) == list(range(1, 13))
    last = rows(tmp_path)[-1]
    assert seen[12] == {"data": float(last["data"]), "equivariance": float(last["equivariance"]), "skipped": 0}


def test_the_preview_is_the_network_s_view_of_the_central_cube(pair):
    seen = []
    trainer = IcecreamTrainer(pair, tiny(preview_every=6), preview=lambda *args: seen.append(args)).train()
    assert [step for step, _, _ in seen] == [6, 12]
    cube = pair.volumes[:, 2:18, 2:18, 2:18].mean(0)
    assert torch.equal(seen[-1][1], cube)
    with torch.no_grad():
        expected = trainer.network(cube[None, None])[0, 0]
    torch.testing.assert_close(seen[-1][2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpux", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(pair, device):
    with pytest.raises(ValueError, match=rf"device '{device}' cannot be used here.*use 'auto' or 'cpu'"):
        IcecreamTrainer(pair, tiny(device=device))


@pytest.mark.fault(40)
def test_cubes_that_do_not_fit_are_refused(pair):
    with pytest.raises(ValueError, match=r"cubes of 24 voxels do not fit.*largest side that does is 20"):
        IcecreamTrainer(pair, tiny(side=24))


@pytest.mark.fault(39)
def test_a_tilt_range_with_nothing_missing_is_refused():
    with pytest.raises(ValueError, match="nothing is missing"):
        IcecreamTrainer(noisy_pair(geometry=(-90.0, 89.9999)), tiny())


def test_a_run_saves_the_tilts_of_its_tomograms(pair, tmp_path):
    IcecreamTrainer([pair, noisy_pair(geometry=(-40.0, 50.0))], tiny(steps=1), out=tmp_path).train()
    saved = load_checkpoint(tmp_path).state["geometries"]
    assert [geometry["angles"] for geometry in saved] == [[-60.0, 60.0], [-40.0, 50.0]]
