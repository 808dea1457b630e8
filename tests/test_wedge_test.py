"""The wedge test of a run: what it trains on, what it reports, and which inputs it refuses."""

from __future__ import annotations

import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch
from commanding import TINY, files_in, run
from making import noisy_pair
from tested_run import CONFIG, GEOMETRY, small_halves, trained_run

from equitomo import Run, TomogramPair, TrainingConfig, write_volume
from equitomo.fourier import rfftn
from equitomo.run import WedgeTest, WedgeTestResult, WedgeTestSettings
from equitomo.training import TrainingInterruptedError, load_network


@pytest.fixture(scope="module")
def halves():
    return small_halves()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(trained.path, tmp_path / "run")


def test_the_run_stays_as_it_is_and_the_result_is_one_number_with_its_error(trained):
    before, weights = files_in(trained.path), [w.clone() for w in trained.network.parameters()]
    result = trained.wedge_test()
    assert 0 < result.error < 0.5
    assert -1 < result.estimate < 1
    assert 0.5 < result.measured < 1
    assert files_in(trained.path) == before
    assert all(torch.equal(*both) for both in zip(weights, trained.network.parameters(), strict=True))


def test_the_same_test_gives_the_same_number(trained):
    assert trained.wedge_test().estimate == trained.wedge_test().estimate


def test_a_test_that_is_stopped_does_not_promise_to_continue(trained):
    with pytest.raises(TrainingInterruptedError, match="the wedge test was stopped after step 2, and nothing was kept"):
        trained.wedge_test(step_progress=lambda step, losses: step == 2 and signal.raise_signal(signal.SIGTERM))


def test_the_training_never_sees_the_sector(trained):
    (fold,) = WedgeTest.of(trained).folds()
    assert fold.held_out.pair.geometry.tilt_range == (-48, 48)
    (pair,) = fold.trainer.dataset.pairs
    sector = fold.held_out.sector.expand(24, 24, 13)
    empty = rfftn(pair.volumes)[:, sector]
    torch.testing.assert_close(empty, torch.zeros_like(empty), atol=1e-5, rtol=0)
    # Without the emptying the sector would be full.
    assert rfftn(fold.held_out.measured)[:, sector].abs().mean() > 0.1


def test_a_training_that_learns_nothing_scores_nothing(trained):
    (fold,) = WedgeTest.of(trained).folds()
    empty = fold.held_out.pair.restore(fold.held_out.pair.volumes).mean(0)
    assert fold.judge(empty).correlation.estimate == 0


@pytest.mark.parametrize(("folds", "ranges"), [(2, [(-36, 60), (-60, 36)]), (3, [(-48, 48), (-36, 60), (-60, 36)])])
def test_each_fold_leaves_other_ends_out(trained, folds, ranges):
    test = WedgeTest.of(trained, settings=WedgeTestSettings(folds=folds))
    assert [fold.held_out.pair.geometry.tilt_range for fold in test.folds()] == ranges


def test_the_number_of_several_folds_is_their_mean(trained):
    result = trained.wedge_test(settings=WedgeTestSettings(folds=2, steps=1))
    low, high = (fold.correlation for fold in result.folds)
    assert result.estimate == pytest.approx((low.estimate + high.estimate) / 2)
    assert result.error == pytest.approx(math.hypot(low.error, high.error) / 2)
    assert "All sectors together" in str(result)


@pytest.mark.parametrize(
    ("settings", "steps", "warmup", "minutes"),
    [
        ({}, 6, 4, None),
        ({"steps": 3}, 3, 2, None),
        ({"steps": 9}, 9, 4, None),
        ({"start": "run"}, 1, 1, None),
        ({"minutes": 0.5}, 6, 4, 0.5),
    ],
)
def test_the_training_is_as_long_as_that_of_the_run_or_as_wished(trained, settings, steps, warmup, minutes):
    (fold,) = WedgeTest.of(trained, settings=WedgeTestSettings(**settings)).folds()
    config = fold.trainer.config
    assert (config.steps, config.warmup, config.minutes) == (steps, warmup, minutes)


def test_a_test_imitates_the_steps_that_were_done(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, CONFIG).train(until=2)
    (fold,) = WedgeTest.of(made).folds()
    assert fold.trainer.config.steps == 2


def test_a_start_from_the_run_has_its_weights_and_a_warning(trained):
    test = WedgeTest.of(trained, settings=WedgeTestSettings(start="run"))
    (fold,) = test.folds()
    for one, other in zip(fold.trainer.learner.network.parameters(), trained.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert "the estimate may be too high" in str(test.run())


def test_the_shipped_weights_see_a_dark_specimen_bright(tmp_path, halves):
    config = TrainingConfig.preset("tiny", side=16, steps=1, margin=4, batch=1, device="cpu", precision="float32")
    found = []
    for sign in (1, -1):
        pair = TomogramPair(sign * halves.first, sign * halves.second, GEOMETRY)
        made = Run.create(tmp_path / f"run{sign}", pair, config).train()
        found.append(made.wedge_test(settings=WedgeTestSettings(start="cryo")).estimate)
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert found[0] > 0.3


def test_a_test_starts_from_the_weights_of_the_package_if_the_run_did(tmp_path, halves):
    config = TrainingConfig.preset("tiny", side=16, steps=1, margin=4, batch=1, device="cpu", precision="float32")
    pair = TomogramPair(halves.first, halves.second, GEOMETRY)
    made = Run.create(tmp_path / "run", pair, config, init="cryo").train()
    (fold,) = WedgeTest.of(made).folds()
    (other,) = WedgeTest.of(made, settings=WedgeTestSettings(start="seed")).folds()
    shipped = load_network("cryo").state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in fold.trainer.network.state_dict().items())
    assert not all(torch.equal(value, shipped[name]) for name, value in other.trainer.network.state_dict().items())


def test_a_run_that_had_a_start_of_its_own_is_not_imitated_silently(trained, tmp_path):
    made = Run.create(tmp_path / "run", trained.pairs, CONFIG, init=trained.path).train()
    with pytest.warns(UserWarning, match="had started from the weights of .* pass `start='"):
        WedgeTest.of(made)


def test_a_run_that_was_opened_finds_its_halves_by_its_record(trained):
    opened = Run.open(trained.path)
    test = WedgeTest.of(opened)
    assert opened.wedge_test(settings=WedgeTestSettings(steps=2)).estimate == pytest.approx(
        trained.wedge_test(settings=WedgeTestSettings(steps=2)).estimate, abs=1e-6
    )
    (fold,) = test.folds()
    assert fold.trainer.config.steps == 6


def test_a_half_that_has_changed_or_is_gone_is_refused(trained, copied):
    record = json.loads((copied / "manifest.json").read_text())
    path = copied.parent / "even.mrc"
    record["inputs"]["first"]["path"] = str(path)
    (copied / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(FileNotFoundError, match=r"even.mrc, the first of the run .* is not there any more: give the"):
        WedgeTest.of(Run.open(copied))
    write_volume(path, np.zeros((24, 24, 24), np.float32))
    with pytest.raises(ValueError, match=r"even.mrc, the first of the run .* has changed since it was trained: give"):
        WedgeTest.of(Run.open(copied))


@pytest.mark.parametrize("content", [None, "[", "[]", '{"inputs": {}, "geometries": []}'])
def test_a_record_that_names_no_halves_is_refused(copied, content):
    manifest = copied / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(
        ValueError, match=r"manifest.json does not name the two halves of one tomogram: give the halves"
    ):
        WedgeTest.of(Run.open(copied))


def test_a_mask_that_was_found_is_found_again(halves, tmp_path):
    paths = [tmp_path / "even.mrc", tmp_path / "odd.mrc"]
    for path, half in zip(paths, (halves.first, halves.second), strict=True):
        write_volume(path, half.numpy(), voxel_size=10.0)
    assert run("train", *paths, "--tilts=-60,60", "--mask", "auto", *TINY, "--out", tmp_path / "run") == 0
    (fold,) = WedgeTest.of(Run.open(tmp_path / "run")).folds()
    assert fold.held_out.pair.mask is not None


def test_of_several_tomograms_one_must_be_chosen(tmp_path, trained):
    pairs = [*trained.pairs, noisy_pair((24, 24, 24), seed=3)]
    made = Run.create(tmp_path / "run", pairs, CONFIG).train(until=1)
    with pytest.raises(ValueError, match="the run has 2 tomograms: pass one of them as `pair`"):
        made.wedge_test()
    assert made.wedge_test(pairs[0]).folds[0].steps == 1


def test_a_single_volume_is_refused(trained, halves):
    with pytest.raises(ValueError, match="two halves with independent noise"):
        trained.wedge_test(TomogramPair(halves.first, None, GEOMETRY))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.0}, "`keep` is a share of the tilt range"),
        ({"folds": 4}, "`folds` is 1, 2 or 3, got 4"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"steps": 1, "minutes": 1.0}, "give one of them"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WedgeTestSettings(**settings)


def test_a_network_and_an_operator_of_ones_own_are_tested(trained, tmp_path):
    def network():
        return torch.nn.Conv3d(1, 1, 3, padding=1, bias=False)

    made = Run.create(tmp_path / "run", trained.pairs, CONFIG, network=network).train()
    expected = made.wedge_test().estimate
    opened = Run.open(tmp_path / "run", network=network)
    assert opened.wedge_test(trained.pairs[0]).estimate == pytest.approx(expected, abs=1e-6)


def test_halves_that_do_not_agree_give_no_number_but_a_reason(trained, tmp_path):
    noise = torch.randn((2, 24, 24, 24), generator=torch.Generator().manual_seed(4))
    result = trained.wedge_test(TomogramPair(*noise, GEOMETRY), WedgeTestSettings(steps=1))
    assert math.isnan(result.estimate)
    assert math.isnan(result.error)
    assert "The halves do not agree in the sector" in str(result)
    written = json.loads(result.write(tmp_path / "result.json").read_text())
    assert written["estimate"] is None
    assert written["empty"] == 0


def test_the_text_says_what_it_is_worth_beside_nothing_and_the_measurement(trained):
    result = trained.wedge_test(settings=WedgeTestSettings(steps=1))
    found = result.folds[0].correlation
    text = str(result)
    assert f"{found.estimate:.3f} ± {found.error:.3f}" in text
    assert f"An empty sector scores 0, and the measured, noisy mean of the halves {result.measured:.3f}." in text
    assert f"{found.limit:.2f} cycles per voxel ({10 / found.limit:.0f} Å)" in text


def test_command_writes_the_result_into_the_run(copied, trained, capsys):
    picture = copied.parent / "curve.png"
    assert run("wedge-test", copied, "--steps", "2", "--picture", picture) == 0
    written = json.loads((copied / "wedge_test.json").read_text())
    expected = trained.wedge_test(settings=WedgeTestSettings(steps=2))
    assert written["estimate"] == pytest.approx(expected.estimate, abs=1e-6)
    assert written["folds"][0]["kept_tilts"]["angles"] == list(range(-48, 49, 6))
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Training without what lies beyond the tilts -48 to 48 degrees about y" in out
    assert "estimated as" in out


def test_command_takes_other_files_than_those_of_the_record(copied, trained, capsys):
    folder = trained.path.parent
    (copied / "manifest.json").write_text("{}")
    assert run("wedge-test", copied, "--steps", "1") == 2
    assert "does not name the two halves" in capsys.readouterr().err
    assert run("wedge-test", copied, folder / "even.mrc", folder / "odd.mrc", "--steps", "1") == 0


def test_a_later_run_in_the_folder_removes_the_result(copied, trained):
    (copied / "wedge_test.json").write_text("{}")
    Run.create(copied, trained.pairs, CONFIG, overwrite=True).train(until=1)
    assert not (copied / "wedge_test.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "1"], "--keep is a share"),
        (["--steps", "1", "--minutes", "1"], "give one of them"),
        (["even.mrc"], "needs both halves"),
        (["--start", "nowhere"], "no sound checkpoint in nowhere"),
        (["--picture", "curve.pdf"], "name of a .png file"),
    ],
)
def test_command_refuses_what_it_cannot_use(copied, words, message, capsys):
    assert run("wedge-test", copied, *words) == 2
    assert message in capsys.readouterr().err
    assert not (copied / "wedge_test.json").exists()


def test_command_refuses_a_single_checkpoint(copied, capsys):
    (checkpoint,) = (copied / "checkpoints").iterdir()
    assert run("wedge-test", checkpoint) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_an_empty_result_has_no_number():
    result = WedgeTestResult((), "seed")
    assert math.isnan(result.estimate)
    assert math.isnan(result.measured)


def test_the_weights_of_a_run_that_knows_bright_specimens_see_a_dark_one_bright(tmp_path, trained, halves):
    config = TrainingConfig.preset("tiny", side=16, steps=1, margin=4, batch=1, device="cpu", precision="float32")
    bright = Run.create(tmp_path / "bright", TomogramPair(halves.first, halves.second, GEOMETRY), config, init="cryo")
    bright.train()
    dark = TomogramPair(-halves.first, -halves.second, GEOMETRY)
    made = Run.create(tmp_path / "dark", dark, config).train()
    (fold,) = WedgeTest.of(made, settings=WedgeTestSettings(start=str(bright.path), steps=1)).folds()
    assert (fold.held_out.measured * halves.first).sum() > 0


def test_weights_that_do_not_fit_are_refused_by_the_name_of_the_argument(trained):
    with pytest.raises(ValueError, match=r"`start='cryo'`: the network cryo has `width` 32 and not 4.* `start='seed'`"):
        WedgeTest.of(trained, settings=WedgeTestSettings(start="cryo"))
