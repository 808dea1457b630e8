"""The choice between settings by the wedge test: what is compared, what is chosen, and the command that uses it."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from commanding import run
from tested_run import CONFIG, GEOMETRY, small_halves, trained_run

from equitomo import Run, TomogramPair, TrainingConfig, read_volume
from equitomo.run import Prediction, WedgeChoice, WedgeChoiceSettings, WedgeTestSettings
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training import TrainingInterruptedError

STARTED = TrainingConfig.preset(
    "tiny", start="cryo", side=16, steps=4, margin=4, batch=1, warmup=2, device="cpu", precision="float32"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("trained"), replace(CONFIG, keep_every=2))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run that started from the network of the package."""
    return trained_run(tmp_path_factory.mktemp("started"), STARTED, init="cryo")


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained.path, tmp_path / "run")


def chosen(made, choose, trainings=None, **settings):
    return WedgeChoice.of(made, None, WedgeChoiceSettings(choose=choose, **settings), trainings).run()


def names(result):
    return [row.candidate.name for row in result.rows]


# What is compared ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        ("passes", ["1 pass", "2 passes"]),
        ("mirrors", ["two mirror images", "no mirror images", "all mirror images"]),
        ("steps", ["6 steps", "3 steps", "1 step"]),
    ],
)
def test_the_present_setting_stands_first(trained, choose, expected):
    result = chosen(trained, choose)
    assert names(result) == expected
    assert result.rows[0].difference == 0
    assert all(row.error > 0 for row in result.rows[1:])


def test_a_setting_that_is_none_of_the_usual_ones_is_compared_too(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, replace(CONFIG, passes=3, steps=1)).train()
    assert names(chosen(made, "passes")) == ["3 passes", "1 pass", "2 passes"]


def test_the_present_setting_scores_what_the_wedge_test_does(trained):
    expected = trained.wedge_test()
    for choose in ("passes", "mirrors", "steps"):
        total = chosen(trained, choose).rows[0].total
        assert (total.estimate, total.error) == (expected.estimate, expected.error)


def test_a_candidate_scores_what_the_wedge_test_of_such_a_run_does(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, replace(CONFIG, passes=2)).train()
    assert chosen(trained, "passes").rows[1].total.estimate == pytest.approx(made.wedge_test().estimate, abs=1e-6)
    shorter = trained.wedge_test(settings=WedgeTestSettings(steps=3))
    assert chosen(trained, "steps").rows[1].total.estimate == pytest.approx(shorter.estimate, abs=1e-6)


def test_the_differences_are_those_of_the_estimates(trained):
    result = chosen(trained, "mirrors", folds=2)
    for row in result.rows:
        assert row.difference == pytest.approx(row.total.estimate - result.rows[0].total.estimate, abs=1e-9)


def test_shares_of_the_start_are_compared_by_one_training(started):
    result = chosen(started, "share")
    assert names(result) == ["share as trained", *(f"share {share}" for share in ("0", "0.2", "0.4", "0.6", "0.8"))]
    assert len({row.total.estimate for row in result.rows}) > 3


def test_checkpoints_are_those_of_the_run(trained, tmp_path):
    trainings = WedgeTrainings(tmp_path / "kept")
    with trainings.held():
        result = chosen(trained, "checkpoints", trainings, keep_trained=True)
        assert names(result) == ["step 6", "step 4", "step 2"]
        assert len({row.total.estimate for row in result.rows}) == 3
        # What the last one scores is what the test does.
        assert result.rows[0].total.estimate == trained.wedge_test().estimate
    opened = Run.open(tmp_path / "kept" / "both" / "checkpoints" / "step_00000002")
    assert opened.step == 2


# What is chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose", ["passes", "mirrors"])
def test_another_setting_is_chosen_only_if_it_is_clearly_better(trained, choose):
    result = chosen(trained, choose)
    better = [row for row in result.rows[1:] if row.difference > 1.96 * row.error]
    assert result.chosen is (max(better, key=lambda row: row.difference) if better else result.rows[0])
    words = f"Choose {result.chosen.candidate.name}" if better else f"Keep {result.rows[0].candidate.name}"
    assert words in str(result)


def test_a_network_that_was_trained_longer_is_chosen(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, replace(CONFIG, steps=48, learning_rate=1e-2)).train()
    result = chosen(made, "steps")
    assert result.chosen.candidate.name == "48 steps"
    assert result.rows[2].difference < -1.96 * result.rows[2].error


def test_halves_that_do_not_agree_leave_the_present_setting(trained):
    noise = torch.randn((2, 24, 24, 24), generator=torch.Generator().manual_seed(4))
    settings = WedgeChoiceSettings(choose="passes", steps=1)
    result = WedgeChoice.of(trained, TomogramPair(*noise, GEOMETRY), settings).run()
    assert result.chosen is result.rows[0]
    assert math.isnan(result.rows[1].difference)
    assert "The halves do not agree in the sector that was held out, so that nothing can be chosen" in str(result)
    assert result.as_dict()["candidates"][1]["difference"] is None


# The commands that use it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "number", "words"),
    [
        ("passes", 1, ["--passes", "2"]),
        ("mirrors", 1, ["--no-test-time-mirrors"]),
        ("mirrors", 2, ["--test-time-mirrors", "--mirror-images", "all"]),
    ],
)
def test_the_command_of_a_candidate_predicts_with_it(trained, tmp_path, choose, number, words):
    candidate = chosen(trained, choose).rows[number].candidate
    given = shlex.split(candidate.command)
    assert given[-len(words) :] == words
    assert run(*[str(tmp_path / "a.mrc") if word == "FILE" else word for word in given[1:]]) == 0
    pair = trained.pairs[0]
    trained.predict(pair, tmp_path / "b.mrc", Prediction(**candidate.changes))
    first, second = (torch.tensor(read_volume(tmp_path / name).data[:]) for name in ("a.mrc", "b.mrc"))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_the_command_of_a_share_predicts_with_it(started, tmp_path):
    candidate = next(row.candidate for row in chosen(started, "share").rows if row.candidate.share == 0.8)
    words = shlex.split(candidate.command)
    assert words[-2:] == ["--start-share", "0.8"]
    assert run(*[str(tmp_path / "a.mrc") if word == "FILE" else word for word in words[1:]]) == 0
    started.with_share(0.8).predict(started.pairs[0], tmp_path / "b.mrc")
    started.with_share(0.0).predict(started.pairs[0], tmp_path / "c.mrc")
    volumes = [torch.tensor(read_volume(tmp_path / f"{name}.mrc").data[:]) for name in "abc"]
    torch.testing.assert_close(volumes[0], volumes[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(volumes[0], volumes[2], rtol=1e-2)


def test_the_command_of_a_checkpoint_names_its_folder(trained, tmp_path):
    trainings = WedgeTrainings(tmp_path / "kept")
    with trainings.held():
        candidate = chosen(trained, "checkpoints", trainings).rows[2].candidate
    words = shlex.split(candidate.command)
    assert Run.open(words[words.index("--run") + 1]).step == 2


def test_the_command_of_another_number_of_steps_is_that_of_the_run(tmp_path, trained):
    folder = trained.path.parent
    given = ["train", folder / "even.mrc", folder / "odd.mrc", f"--tilts={folder / 'series.tlt'}", "--preset", "tiny"]
    given += ["--side", "16", "--width", "4", "--levels", "2", "--unshuffle", "1"]
    given += ["--steps=4", "--margin", "4", "--batch", "1"]
    given += ["--device", "cpu", "--precision", "float32", "--out", tmp_path / "run"]
    assert run(*given) == 0
    result = chosen(Run.open(tmp_path / "run"), "steps")
    words = shlex.split(result.rows[1].candidate.command)
    assert words[0] == "equitomo"
    assert run(*words[1:]) == 0
    again = Run.open(f"{tmp_path / 'run'}_2")
    assert again.step == 2
    assert again.config.side == 16


def test_a_run_that_a_script_made_has_no_command_for_other_steps(trained):
    assert chosen(trained, "steps").rows[1].candidate.command == "train with `steps=3`"


# The command line ------------------------------------------------------------------------------------


def test_command_prints_the_table_and_writes_the_choice(copied, capsys):
    picture = copied.parent / "curves.png"
    assert run("wedge-test", copied, "--choose", "passes", "--picture", picture) == 0
    out = capsys.readouterr().out
    assert "1 pass " in out
    assert "present" in out
    written = json.loads((copied / "wedge_choice.json").read_text())
    assert [one["candidate"] for one in written["candidates"]] == ["1 pass", "2 passes"]
    assert written["chosen"] in ("1 pass", "2 passes")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (copied / "wedge_test").exists()
    assert not (copied / "wedge_test.json").exists()


def test_command_compares_anew_without_training_what_was_kept(copied, capsys):
    assert run("wedge-test", copied, "--choose", "passes", "--keep-trained") == 0
    assert run("wedge-test", copied, "--choose", "mirrors") == 0
    assert "Continuing after step 6 of 6" in capsys.readouterr().out


def test_a_choice_of_steps_that_is_interrupted_continues(trained, tmp_path):
    unbroken, steps = chosen(trained, "steps"), []
    trainings = WedgeTrainings(tmp_path / "kept")

    def stop(step, losses):
        steps.append(step)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = WedgeChoiceSettings(choose="steps")
    with trainings.held(), pytest.raises(TrainingInterruptedError, match="repeat it as you began it to continue"):
        WedgeChoice.of(trained, None, settings, trainings).run(step_progress=stop)
    with trainings.held():
        continued = WedgeChoice.of(trained, None, settings, trainings).run(step_progress=stop)
    assert steps == [1, 2, 3, 4, 5, 6, 1, 2, 3, 1]
    assert [row.difference for row in continued.rows] == [row.difference for row in unbroken.rows]
    assert not (tmp_path / "kept").exists()


# What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choose": "wedge"}, "`choose` is one of passes, mirrors, share, checkpoints, steps, got 'wedge'"),
        ({"choose": "steps", "minutes": 1.0}, "give `steps` in place of `minutes`"),
        ({"choose": "share", "start": "run"}, "leave out `start='run'`"),
        ({"choose": "checkpoints", "steps": 3}, "leave out `steps` and `minutes`"),
        ({"choose": "checkpoints", "start": "cryo"}, "leave out `start`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WedgeChoiceSettings(**settings)


def test_a_run_from_the_seed_has_no_share_to_choose(trained):
    with pytest.raises(ValueError, match="did not start from given weights, of which `start_share` could be a share"):
        chosen(trained, "share")
    with pytest.raises(ValueError, match="holds no weights that its training started from"):
        chosen(Run.open(trained.path), "share")


def test_a_run_with_one_checkpoint_has_none_to_choose(tmp_path, trained):
    made = Run.create(tmp_path / "run", trained.pairs, replace(CONFIG, steps=1)).train()
    trainings = WedgeTrainings(tmp_path / "kept")
    with trainings.held(), pytest.raises(ValueError, match="a training with `keep_every` keeps more to choose from"):
        chosen(made, "checkpoints", trainings)


def test_a_training_that_was_kept_without_its_checkpoints_cannot_be_chosen_from(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, replace(CONFIG, checkpoint_every=3)).train()
    trainings = WedgeTrainings(tmp_path / "kept")
    with trainings.held():
        chosen(made, "passes", trainings, keep_trained=True)
        with pytest.raises(ValueError, match="`keep_every` was 0, now 3"):
            chosen(made, "checkpoints", trainings)


def test_checkpoints_need_a_folder(trained):
    with pytest.raises(ValueError, match="needs a folder that keeps them: pass `trainings`"):
        chosen(trained, "checkpoints")


def test_command_refuses_a_share_of_nothing(copied, capsys):
    assert run("wedge-test", copied, "--choose", "share") == 2
    assert "holds no weights that its training started from" in capsys.readouterr().err
    assert not (copied / "wedge_test").exists()


def test_halves_of_different_tilts_cannot_be_passed_twice(tmp_path):
    halves = small_halves()
    pair = TomogramPair(halves.first, halves.second, GEOMETRY, second_geometry=(-40.0, 40.0))
    config = replace(CONFIG, test_time_mirrors=False, steps=1)
    made = Run.create(tmp_path / "run", pair, config).train()
    with pytest.raises(ValueError, match="different tilts, and a prediction with several passes"):
        chosen(made, "passes")
