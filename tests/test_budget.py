"""Training for a time: the number of steps follows a clock, which the tests turn by hand."""

import csv
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from making import noisy_pair

from equitomo import IcecreamTrainer, TrainingConfig
from equitomo.training.budget import Budget, Plan, learning_rate
from equitomo.training.checkpoint import CheckpointError, load_checkpoint

SETTINGS = {
    "side": 16,
    "batch": 1,
    "width": 2,
    "levels": 2,
    "margin": 4,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup": 4,
    "ema_decay": 0.9,
    "checkpoint_every": 5,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
    "minutes": 0.5,
}


def timed(**changes):
    return TrainingConfig(**SETTINGS | changes)


class Clock:
    """A clock that goes on by the seconds of a step each time that a step was done."""

    def __init__(self, seconds=lambda step: 1.0):
        self.now, self.seconds = 1000.0, seconds

    def __call__(self):
        return self.now

    def step(self, step):
        self.now += self.seconds(step)


def train(pair, config, clock, until=None, **options):
    trainer = IcecreamTrainer(pair, config, clock=clock, **options)
    gradient = trainer.batches.gradient

    def timed_gradient(*given):
        clock.step(trainer.step)
        return gradient(*given)

    trainer.batches.gradient = timed_gradient
    return trainer.train(until)


@pytest.fixture(scope="module")
def pair():
    return noisy_pair((20, 20, 20))


def rates(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [float(row["learning_rate"]) for row in csv.DictReader(file)]


def assert_equal_weights(one, other):
    for name, value in one.learner.network.state_dict().items():
        assert torch.equal(value, other.learner.network.state_dict()[name]), name


def simulated(config, seconds):
    """Return the budget after a training whose steps take ``seconds(step)``, and its learning rates."""
    clock = Clock(seconds)
    budget, step, found = Budget(config, clock), 0, []
    budget.start()
    while budget.plan.steps is None or step < budget.plan.steps:
        found.append(learning_rate(config, step, budget.plan))
        clock.step(step)
        step += 1
        budget.look(step)
    return budget, found


def test_a_time_holds_as_many_steps_as_the_clock_says(pair, tmp_path):
    clock = Clock()
    trainer = train(pair, timed(), clock, out=tmp_path)
    assert (trainer.step, trainer.steps, clock.now) == (30, 30, 1030.0)


@pytest.mark.parametrize("change", [0.2, 0.5, 2.0, 4.0])
def test_a_machine_that_changes_its_speed_ends_within_a_twentieth_of_the_time(change):
    budget, _ = simulated(timed(minutes=10), lambda step: 0.5 if step < 400 else 0.5 * change)
    assert budget.seconds == pytest.approx(600, rel=0.05)


def test_the_first_step_which_sets_things_up_is_not_taken_for_the_time_of_a_step():
    budget, _ = simulated(timed(minutes=10), lambda step: 100.0 if step == 0 else 1.0)
    assert (budget.plan.steps, budget.seconds) == (501, 600)


def test_the_step_size_falls_to_zero_at_the_end_and_never_jumps():
    config = timed(minutes=10, warmup=40, learning_rate=1.0)
    _, found = simulated(config, lambda step: 0.5 if step < 400 else 1.5)
    assert max(abs(b - a) for a, b in pairwise(found)) < 0.03
    assert sorted(found[40:], reverse=True) == found[40:]
    assert found[-1] < 1e-3


def test_the_warm_up_takes_a_tenth_of_the_steps_at_most():
    budget, found = simulated(timed(minutes=1, warmup=100, learning_rate=1.0), lambda step: 1.0)
    assert budget.plan.warmup == 6
    assert found.index(max(found)) == 5


def test_a_time_that_is_over_after_the_first_step_ends_the_training_with_it(pair, tmp_path):
    assert train(pair, timed(minutes=0.01), Clock(), out=tmp_path).step == 1


def test_a_clock_that_stands_still_makes_no_infinite_number():
    budget = Budget(timed(), lambda: 0.0)
    budget.start()
    budget.look(1)
    budget.look(2)
    assert budget.plan.steps == 30_002


def test_a_number_of_steps_looks_at_no_clock():
    budget = Budget(replace(timed(), minutes=None, steps=7), lambda: pytest.fail("the clock was looked at"))
    budget.start()
    budget.look(3)
    assert (budget.plan, budget.state()) == (Plan(7, 4, 4), {})


@pytest.mark.parametrize("until", [2, 3, 10, 29])
def test_a_run_resumed_after_it_chose_is_an_unbroken_one_to_the_bit(pair, tmp_path, until):
    whole = train(pair, timed(), Clock(), out=tmp_path / "one")
    train(pair, timed(), Clock(), until, out=tmp_path / "two")
    resumed = train(pair, timed(), Clock(), out=tmp_path / "two", resume=True)
    assert resumed.steps == whole.steps
    assert_equal_weights(resumed, whole)
    assert rates(tmp_path / "two") == rates(tmp_path / "one")


def test_a_resumed_run_keeps_the_number_of_steps_whatever_the_clock_says(pair, tmp_path):
    train(pair, timed(), Clock(), 10, out=tmp_path)
    assert train(pair, timed(), Clock(lambda step: 50.0), out=tmp_path, resume=True).step == 30


def test_a_run_that_had_not_chosen_takes_the_time_that_is_left(pair, tmp_path):
    train(pair, timed(), Clock(lambda step: 10.0), 1, out=tmp_path)
    assert train(pair, timed(), Clock(), out=tmp_path, resume=True).step == 21


def test_a_run_resumed_with_another_time_chooses_for_what_is_left_of_it(pair, tmp_path):
    train(pair, timed(), Clock(), 10, out=tmp_path)
    assert train(pair, timed(minutes=1), Clock(), out=tmp_path, resume=True).step == 60
    assert load_checkpoint(tmp_path).state["budget"]["seconds"] == 60


@pytest.mark.fault(61)
@pytest.mark.parametrize(("before", "after"), [(None, 0.5), (0.5, None)])
def test_a_time_and_a_number_of_steps_are_different_runs(pair, tmp_path, before, after):
    train(pair, timed(minutes=before, steps=4), Clock(), 2, out=tmp_path)
    with pytest.raises(CheckpointError, match=f"`minutes` was {before}, now {after}"):
        train(pair, timed(minutes=after, steps=4), Clock(), out=tmp_path, resume=True)


def test_the_number_of_steps_and_the_time_are_in_the_checkpoint(pair, tmp_path):
    train(pair, timed(), Clock(), 10, out=tmp_path)
    state = load_checkpoint(tmp_path).state["budget"]
    assert (state["seconds"], state["plan"]["steps"]) == (10, 30)
