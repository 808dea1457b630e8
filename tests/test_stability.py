"""Tests of since when nothing changes: on synthetic curves, and in trainings that stop by it."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from making import noisy_pair

from equitomo import IcecreamTrainer, TiledPredictor, TrainingConfig
from equitomo.metrics import CrossHalfError, rows_to_beat
from equitomo.run import advice
from equitomo.training import stability
from equitomo.training.checkpoint import load_checkpoint
from equitomo.training.stability import Stability, stable_since

STEPS = np.arange(1, 3001)


def noise(scale: float, n: int = len(STEPS), seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(n)


# Synthetic curves


@pytest.mark.parametrize("scale", [0, 0.02, 0.1])
@pytest.mark.parametrize("time", [50, 200])
def test_a_curve_that_settles_is_stable_since_about_then(time, scale):
    found = stable_since(STEPS, 1 + np.exp(-STEPS / time) + noise(scale), tolerance=0.02)
    # After four of its times a curve still falls by 0.02.
    assert 2 * time < found < 8 * time + 300


@pytest.mark.parametrize(
    "curve",
    [1 - STEPS / 3000, STEPS**-0.5, np.exp(-STEPS / 3000)],
    ids=["straight", "a power of the steps", "a slow exponential"],
)
@pytest.mark.parametrize("scale", [0, 0.02])
def test_a_curve_that_still_falls_is_not_stable(curve, scale):
    assert stable_since(STEPS, curve + noise(scale), tolerance=0.002) is None


def test_noise_in_which_a_fall_could_hide_is_not_called_stable():
    flat = np.ones(300)
    steps = np.arange(1, 301)
    assert stable_since(steps, flat + noise(0.01, 300), tolerance=0.01) is not None
    assert stable_since(steps, flat + noise(1, 300), tolerance=0.01) is None


def test_noise_that_hangs_together_counts_for_fewer_points():
    """A random walk about a level wanders by more than independent values of the same deviation."""
    draws, wandering = noise(0.02), np.zeros(len(STEPS))
    for n in range(1, len(STEPS)):
        wandering[n] = 0.99 * wandering[n - 1] + draws[n]
    shuffled = np.random.default_rng(1).permutation(wandering)
    assert stable_since(STEPS, shuffled, tolerance=0.03) is not None
    assert stable_since(STEPS, wandering, tolerance=0.03) is None


def test_a_curve_that_rises_again_is_not_improved_by_more_steps():
    found = stable_since(STEPS, np.abs(STEPS - 1000) / 3000 + noise(0.01), tolerance=0.01)
    assert found is not None


def test_the_last_third_is_the_least_that_must_be_stable():
    late = np.where(STEPS < 2500, 1 - STEPS / 2500, 0.0)
    assert stable_since(STEPS, late, tolerance=0.001) is None
    early = np.where(STEPS < 1500, 1 - STEPS / 1500, 0.0)
    assert 1350 < stable_since(STEPS, early, tolerance=0.001) <= 2001


def test_neither_a_factor_nor_an_offset_of_the_curve_matters():
    curve = 1 + np.exp(-STEPS / 100) + noise(0.02)
    found = stable_since(STEPS, curve, tolerance=0.02)
    assert found == stable_since(STEPS, 8 * curve + 5, tolerance=0.16)


def test_values_that_are_not_finite_are_left_out():
    curve = np.exp(-STEPS / 50.0)
    holes = np.where(STEPS % 7 == 0, np.nan, curve)
    assert stable_since(STEPS, holes, tolerance=0.01) is not None
    assert stable_since(STEPS, np.full(3000, np.nan), tolerance=0.01) is None
    assert stable_since([], [], tolerance=0.01) is None


def test_seven_points_are_too_few():
    assert stable_since(np.arange(7), np.ones(7), tolerance=1) is None
    assert stable_since(np.arange(1, 9), np.ones(8), tolerance=1) == 1


def test_a_training_is_stable_when_the_last_of_its_curves_is():
    losses = {"step": STEPS, "data": np.exp(-STEPS / 20), "equivariance": 2 * np.exp(-STEPS / 150)}
    found = Stability.of(losses)
    assert found.since["data"] < found.since["equivariance"] == found.step
    assert found.improving == []


def test_a_loss_that_took_no_part_is_left_out_and_one_that_never_fell_keeps_a_training_from_being_stable():
    falling = np.exp(-STEPS / 50)
    assert Stability.of({"step": STEPS, "data": falling, "idle": 0 * falling}).step is not None
    found = Stability.of({"step": STEPS, "data": falling, "mine": 1 + STEPS / 3000})
    assert (found.step, found.improving) == (None, ["mine"])


def test_the_error_on_the_held_out_block_is_judged_by_the_power_of_the_signal():
    losses = {"step": STEPS, "data": np.exp(-STEPS / 20)}
    steps = np.arange(100, 3001, 100)
    network = 0.6 - 0.003 * steps / 3000

    def judged(nothing):
        held_out = {"step": steps, "network": network, "nothing": np.full(30, nothing)}
        return Stability.of(losses, held_out).since["held-out error"]

    assert judged(0.5 + 0.5) is not None
    assert judged(0.5 + 0.05) is None


# In a training

SETTINGS = {
    "side": 16,
    "batch": 1,
    "width": 4,
    "levels": 2,
    "steps": 60,
    "margin": 4,
    "learning_rate": 3e-3,
    "held_out": 8,
    "judge_every": 2,
    "checkpoint_every": 10,
    "preview_every": 0,
    "precision": "float32",
    "device": "cpu",
}


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**SETTINGS | changes)


@pytest.fixture(scope="module")
def pair():
    return noisy_pair((16, 26, 28))


def rows(folder, name):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_error_on_the_held_out_block_is_recorded(pair, tmp_path):
    trainer = IcecreamTrainer(pair, config(steps=5), out=tmp_path).train()
    recorded = rows(tmp_path, "held_out.csv")
    assert [int(row["step"]) for row in recorded] == [2, 4]
    held_out = trainer.dataset.held_out
    halves = held_out.volumes[(slice(None), *held_out.inner)]
    expected = rows_to_beat(halves, trainer.judge.metric)
    assert [float(recorded[0][name]) for name in ("gaussian", "sigma", "nothing")] == pytest.approx(expected)
    predictor = TiledPredictor(trainer.network, passes=1, margin=8, precision="float32")
    result = torch.stack([predictor(half)[held_out.inner] for half in held_out.volumes])
    error = CrossHalfError(pair.geometry, taper=2)(result[None], halves[None])
    assert trainer.judge.error(trainer.network, "float32") == pytest.approx(error.item())


def test_holding_out_changes_nothing_but_the_cubes(pair, tmp_path):
    """The errors are measured beside the training: with another interval it is the same to the bit."""
    often = IcecreamTrainer(pair, config(steps=6), out=tmp_path / "often").train()
    seldom = IcecreamTrainer(pair, config(steps=6, judge_every=100), out=tmp_path / "seldom").train()
    for one, other in zip(often.network.parameters(), seldom.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "seldom" / "held_out.csv").exists()


def test_a_resumed_run_records_the_same_errors(pair, tmp_path):
    IcecreamTrainer(pair, config(steps=14), out=tmp_path / "unbroken").train()
    IcecreamTrainer(pair, config(steps=14), out=tmp_path / "broken").train(until=7)
    # As if the run had been killed after it had recorded more than its last checkpoint holds.
    with (tmp_path / "broken" / "held_out.csv").open("a") as file:
        file.write("8,0.1,0.1,0.1,0.1\n")
    IcecreamTrainer(pair, config(steps=14), out=tmp_path / "broken", resume=True).train()
    one, other = ((tmp_path / name / "held_out.csv").read_bytes() for name in ("unbroken", "broken"))
    assert one == other


@pytest.fixture
def easily_content(monkeypatch):
    """Let a fall by 30 times of what a curve has fallen count as nothing."""
    monkeypatch.setattr(stability, "TOLERANCE", 30.0)


def test_a_stable_training_stops_by_itself_and_says_so(pair, tmp_path, easily_content):
    trainer = IcecreamTrainer(pair, config(stop_when_stable=True), out=tmp_path).train()
    assert 20 < trainer.step < 60
    assert trainer.is_finished
    assert load_checkpoint(tmp_path).state["step"] == trainer.step
    assert f"this is step {trainer.step}, before the 60 that were planned" in advice(trainer)


@pytest.mark.slow
def test_a_training_goes_on_without_the_wish_to_stop(pair, tmp_path, easily_content):
    assert IcecreamTrainer(pair, config(steps=40), out=tmp_path).train().step == 40


@pytest.mark.slow
def test_a_training_that_still_improves_does_not_stop(pair, tmp_path):
    trainer = IcecreamTrainer(pair, config(steps=40, stop_when_stable=True), out=tmp_path).train()
    assert trainer.step == 40
    assert "Still improving" in advice(trainer)


@pytest.mark.slow
def test_a_broken_training_stops_where_the_unbroken_one_does(pair, tmp_path, easily_content):
    settings = config(stop_when_stable=True)
    unbroken = IcecreamTrainer(pair, settings, out=tmp_path / "unbroken").train()
    broken = tmp_path / "broken"
    for until in (11, unbroken.step - 1, None):
        trainer = IcecreamTrainer(pair, settings, out=broken, resume=True).train(until=until)
    assert trainer.step == unbroken.step
    for name in ("losses.csv", "held_out.csv"):
        assert (broken / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    for one, other in zip(trainer.network.parameters(), unbroken.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_training_that_stopped_stays_stopped_until_it_is_told_to_go_on(pair, tmp_path, easily_content):
    stopped = IcecreamTrainer(pair, config(stop_when_stable=True), out=tmp_path / "run").train()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    again = IcecreamTrainer(pair, config(stop_when_stable=True), out=tmp_path / "run", resume=True)
    assert again.is_finished
    assert again.train().step == stopped.step
    assert IcecreamTrainer(pair, config(), out=tmp_path / "other", resume=True).train().step == 60


def test_a_training_without_a_folder_cannot_stop_by_its_records(pair):
    with pytest.raises(ValueError, match="pass `out`, a folder"):
        IcecreamTrainer(pair, config(stop_when_stable=True))


# The advice

REST = (0.7, 1.2, 1.5)


def told(tmp_path, pair, *, held_out=None, losses=None, **changes) -> str:
    """Return the advice on a training of one step whose tables are replaced."""
    trainer = IcecreamTrainer(pair, config(steps=1, **changes), out=tmp_path).train()
    if held_out is not None:
        lines = ["step,network,gaussian,sigma,nothing", *(",".join(map(str, row)) for row in held_out)]
        (tmp_path / "held_out.csv").write_text("\n".join(lines) + "\n")
    if losses is not None:
        lines = ["step,data,equivariance,learning_rate,skipped"]
        lines += [f"{step},{loss},{loss},0.1,0" for step, loss in enumerate(losses, 1)]
        (tmp_path / "losses.csv").write_text("\n".join(lines) + "\n")
    return advice(trainer)


def test_the_advice_gives_the_error_beside_the_rows_to_beat(pair, tmp_path):
    said = told(tmp_path, pair, held_out=[(100, 0.9, 0.7, 1.2, 1.5), (200, 0.6, 0.7, 1.2, 1.5)])
    assert "error against the other half is 0.6000 at step 200" in said
    assert "Gaussian filter, of 1.2 voxels, reaches 0.7000" in said
    assert "10% of the signal's power in the measured part are wrong there; 20% with the filter" in said
    assert "not better" not in said


def test_the_advice_warns_of_a_network_that_a_filter_beats(pair, tmp_path):
    assert "not better than this filter" in told(tmp_path, pair, held_out=[(100, 0.9, 0.7, 1.2, 1.5)])


def test_the_advice_tells_when_the_network_began_to_learn_the_noise(pair, tmp_path):
    said = told(tmp_path, pair, held_out=[(100, 0.6, *REST), (200, 0.58, *REST), (300, 0.62, *REST)])
    assert "lowest at step 200, with 8%, and has risen since" in said


def test_the_advice_does_not_speak_of_a_rise_by_less_than_one_per_cent(pair, tmp_path):
    said = told(tmp_path, pair, held_out=[(100, 0.6, *REST), (200, 0.58, *REST), (300, 0.585, *REST)])
    assert "risen" not in said


def test_the_advice_says_since_when_nothing_improved(pair, tmp_path):
    curve = np.exp(-np.arange(1, 2001) / 100)
    said = told(tmp_path, pair, losses=curve, held_out=[(step, 0.6, 0.7, 1.2, 1.5) for step in range(100, 2001, 100)])
    assert "nothing improved by more than 1%" in said
    assert 200 < int(said.split("Since step ")[1].split()[0]) < 800


def test_nothing_is_said_about_the_length_where_the_learning_rate_falls_to_zero(pair, tmp_path):
    curve = np.exp(-np.arange(1, 2001) / 100)
    assert told(tmp_path, pair, losses=curve, schedule="cosine") == ""
