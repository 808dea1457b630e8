"""A wedge test that is interrupted and continued: the same numbers, nothing done twice, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import pytest
from commanding import files_in, run
from tested_run import CONFIG, GEOMETRY, small_halves, trained_run

from equitomo import Run, TomogramPair, TrainingConfig
from equitomo.run import WedgeTestSettings
from equitomo.training import Trainer, TrainingInterruptedError
from equitomo.training.gradient import BatchGradient


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("trained"), replace(CONFIG, steps=5, warmup=2))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained.path, tmp_path / "run")


class Stopping:
    """A signal to this process after some steps of a training, and a record of the steps that were shown."""

    def __init__(self, after, number=signal.SIGTERM):
        self.after, self.number, self.steps = after, number, []

    def __call__(self, step, losses):
        self.steps.append(step)
        if len(self.steps) == self.after:
            os.kill(os.getpid(), self.number)


def steps_of(monkeypatch):
    """Return a list to which every step of a training adds itself."""
    steps, gradient = [], BatchGradient.gradient

    def noting(self, indices, n_at_once):
        steps.append(indices.start // CONFIG.batch)
        return gradient(self, indices, n_at_once)

    monkeypatch.setattr(BatchGradient, "gradient", noting)
    return steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_test_that_is_interrupted_and_continued_gives_the_numbers_of_an_unbroken_one(trained, tmp_path, number):
    settings = WedgeTestSettings(folds=2)
    unbroken = trained.wedge_test(settings=settings)
    stopping = Stopping(7, number)
    with pytest.raises(TrainingInterruptedError, match=r"stopped after step 2; repeat it as you began it to continue"):
        trained.wedge_test(settings=settings, folder=tmp_path / "kept", step_progress=stopping)
    rest = Stopping(0)
    continued = trained.wedge_test(settings=settings, folder=tmp_path / "kept", step_progress=rest)
    # The first sector was trained on to the end before, and of the second one two steps.
    assert stopping.steps + rest.steps == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert continued.as_dict() == unbroken.as_dict()
    assert not (tmp_path / "kept").exists()


def test_a_test_that_was_killed_before_its_first_checkpoint_begins_again(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        # As a process that is killed, this one saves nothing.
        patched.setattr(Trainer, "save", lambda self: None)
        with pytest.raises(TrainingInterruptedError):
            trained.wedge_test(folder=tmp_path / "kept", step_progress=Stopping(2))
    assert trained.wedge_test(folder=tmp_path / "kept").as_dict() == trained.wedge_test().as_dict()


def test_more_folds_begin_with_what_an_interrupted_test_of_fewer_had_trained(trained, tmp_path):
    settings = WedgeTestSettings(keep_trained=True)
    trained.wedge_test(settings=settings, folder=tmp_path / "kept")
    rest = Stopping(0)
    trained.wedge_test(settings=WedgeTestSettings(folds=3), folder=tmp_path / "kept", step_progress=rest)
    assert rest.steps == [1, 2, 3, 4, 5] * 2


def test_trainings_are_kept_on_request_as_runs_that_predict(trained, tmp_path):
    trained.wedge_test(settings=WedgeTestSettings(keep_trained=True), folder=tmp_path / "kept")
    opened = Run.open(tmp_path / "kept" / "both")
    assert opened.step == 5
    assert opened.geometry().tilt_range == (-48, 48)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 3}, "`steps` was 5, now 3"),
        ({"keep": 0.7}, "`keep` was 0.8, now 0.7"),
        ({"start": "run", "steps": 5}, "`start` was same, now run"),
    ],
)
def test_an_interrupted_test_with_other_settings_is_refused_and_stays(trained, tmp_path, changed, message):
    with pytest.raises(TrainingInterruptedError):
        trained.wedge_test(folder=tmp_path / "kept", step_progress=Stopping(2))
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=rf"kept/both holds a training of another wedge test, .*: .*{message}"):
        trained.wedge_test(settings=WedgeTestSettings(**changed), folder=tmp_path / "kept")
    assert files_in(tmp_path) == before


def test_an_interrupted_test_of_another_tomogram_is_refused(trained, tmp_path):
    with pytest.raises(TrainingInterruptedError):
        trained.wedge_test(folder=tmp_path / "kept", step_progress=Stopping(2))
    halves = small_halves(seed=2)
    other = TomogramPair(halves.first, halves.second, GEOMETRY)
    with pytest.raises(ValueError, match="kept: the tomogram was another one"):
        trained.wedge_test(other, folder=tmp_path / "kept")


def test_an_interrupted_test_from_other_weights_is_refused(trained, tmp_path):
    settings = WedgeTestSettings(start="run", steps=2)
    with pytest.raises(TrainingInterruptedError):
        trained.wedge_test(settings=settings, folder=tmp_path / "kept", step_progress=Stopping(1))
    halves = small_halves(seed=2)
    other = Run.create(tmp_path / "other", TomogramPair(halves.first, halves.second, GEOMETRY), trained.config).train()
    with pytest.raises(ValueError, match="kept: the weights to start from were others"):
        other.wedge_test(trained.pairs[0], settings, folder=tmp_path / "kept")


def test_the_command_says_how_to_continue_and_does(copied, trained, monkeypatch, capsys):
    save = Trainer.save

    def stopping(self):
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", stopping)
        assert run("wedge-test", copied, "--folds", "2") == 130
    assert "stopped after step 5; repeat it as you began it to continue" in capsys.readouterr().err
    assert not (copied / "wedge_test.json").exists()
    assert run("wedge-test", copied, "--folds", "2", "--keep", "0.7") == 2
    error = capsys.readouterr().err
    assert "--keep was 0.8, now 0.7" in error
    assert "pass --overwrite to replace it" in error
    steps = steps_of(monkeypatch)
    assert run("wedge-test", copied, "--folds", "2") == 0
    # Only the second sector was left to be trained on.
    assert steps == list(range(5))
    assert "Continuing after step 5 of 5 without what lies beyond the tilts -36 to 60" in capsys.readouterr().out
    assert (copied / "wedge_test.json").exists()
    assert not (copied / "wedge_test").exists()


def test_the_command_replaces_an_interrupted_test_on_request(copied, trained, capsys):
    trained.wedge_test(settings=WedgeTestSettings(keep_trained=True), folder=copied / "wedge_test")
    assert run("wedge-test", copied, "--steps", "2", "--overwrite", "--keep-trained") == 0
    assert Run.open(copied / "wedge_test" / "both").step == 2


def test_a_prediction_that_is_interrupted_is_repeated_and_the_training_is_not(trained, tmp_path):
    settings = WedgeTestSettings()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterruptedError, match="stopped while it predicted; repeat it"):
        trained.wedge_test(settings=settings, folder=tmp_path / "kept", progress=interrupt)
    rest = Stopping(0)
    continued = trained.wedge_test(settings=settings, folder=tmp_path / "kept", step_progress=rest)
    assert rest.steps == []
    assert continued.as_dict() == trained.wedge_test().as_dict()


def test_two_tests_do_not_share_a_folder(trained, tmp_path):
    def again(step, losses):
        with pytest.raises(OSError, match="in use by process"):
            trained.wedge_test(folder=tmp_path / "kept")

    trained.wedge_test(settings=WedgeTestSettings(steps=1), folder=tmp_path / "kept", step_progress=again)


def test_a_run_that_stops_when_nothing_changes_is_tested_with_the_steps_it_took(trained, tmp_path):
    settings = {"held_out": 8, "stop_when_stable": True, "schedule": "constant", "side": 8, "margin": 2}
    config = TrainingConfig.from_dict(CONFIG.as_dict() | settings)
    made = Run.create(tmp_path / "run", trained.pairs, config).train(until=2)
    assert made.wedge_test().folds[0].steps == 2


def test_a_later_run_in_the_folder_removes_the_trainings(copied, trained):
    trained.wedge_test(settings=WedgeTestSettings(keep_trained=True), folder=copied / "wedge_test")
    Run.create(copied, trained.pairs, trained.config, overwrite=True).train(until=1)
    assert not (copied / "wedge_test").exists()
