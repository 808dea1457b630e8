"""Trainings that start from the network that comes with the package."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from commanding import run, write
from making import noisy_halves

from equitomo import TomogramPair, TrainingConfig, load_network, read_volume
from equitomo.cli.parsing import parse
from equitomo.run import Prediction, Run
from equitomo.run.initial import shipped_network
from equitomo.training.checkpoint import load_checkpoint

GIVEN = ["train", "a.mrc", "b.mrc", "--out", "run"]
# A training with the network of the package that takes little time.
QUICK = ["--preset", "tiny", "--side", "16", "--batch", "1", "--margin", "4", "--precision", "float32"]
QUICK += ["--device", "cpu", "--preview-every", "0"]
TILES = ["--tile", "24", "--tile-margin", "8"]
SETTINGS = {"side": 16, "batch": 1, "margin": 4, "precision": "float32", "device": "cpu", "preview_every": 0}


def halves():
    """Return halves of a small bright specimen on a large background."""
    specimen = torch.full((20, 20, 24), 5.0)
    specimen[6:12, 6:12, 8:14] = 8
    first, second = noisy_halves((20, 20, 24))
    return specimen + 0.3 * first, specimen + 0.3 * second


@pytest.fixture
def files(tmp_path):
    """Return the paths of bright halves."""
    return written(tmp_path, "bright", 1)


def written(folder, name, sign):
    return [
        write(folder / f"{name}_{which}.mrc", sign * half)
        for which, half in zip(("even", "odd"), halves(), strict=True)
    ]


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


def trained(folder, *words):
    return run("train", *words, "--tilts=-60,60", "--out", folder, *QUICK)


# The choice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "init"),
    [
        (["--preset", "fast"], "cryo"),
        (["--preset", "tiny"], "cryo"),
        (["--preset", "tiny", "--init", "none"], "none"),
        (["--preset", "paper"], None),
        (["--preset", "fast", "--width", "16"], None),
        (["--preset", "fast", "--levels", "2"], None),
        (["--preset", "fast", "--unshuffle", "1"], None),
        (["--preset", "fast", "--negative-slope", "0"], None),
        (["--preset", "fast", "--method", "noise2noise"], None),
        (["--preset", "fast", "--normalization", "scale"], None),
        (["--preset", "fast", "--init", "another"], "another"),
    ],
)
def test_the_quick_presets_start_from_the_network_of_the_package_where_it_fits(words, init):
    assert parse([*GIVEN, *words]).folder.init == init


@pytest.mark.parametrize("preset", ["fast", "tiny"])
def test_a_start_changes_the_steps_of_a_preset_and_what_is_given_changes_them_again(preset):
    started, scratch = TrainingConfig.preset(preset, start="cryo"), TrainingConfig.preset(preset)
    assert started.steps < scratch.steps
    assert parse([*GIVEN, "--preset", preset]).config == started
    for words in (["--init", "none"], ["--init", "another"]):
        assert parse([*GIVEN, "--preset", preset, *words]).config == scratch
    assert parse([*GIVEN, "--preset", preset, "--steps", "7", "--warmup", "3"]).config.steps == 7


@pytest.mark.parametrize("preset", ["fast", "tiny"])
def test_the_guide_states_the_steps_of_the_presets(preset):
    guide = (Path(__file__).resolve().parents[1] / "docs" / "guide.md").read_text()
    stated = re.search(rf"^\| `{preset}` \|.* ([\d,]+), or ([\d,]+) with `--init none` \|", guide, re.MULTILINE)
    steps = [f"{TrainingConfig.preset(preset, start=start).steps:,}" for start in ("cryo", None)]
    assert list(stated.groups()) == steps


def test_a_configuration_file_chooses_as_the_command_line_does(tmp_path):
    for text, init in (("preset: fast\n", "cryo"), ("preset: fast\nwidth: 16\n", None), ("init: none\n", "none")):
        (tmp_path / "c.yaml").write_text(text)
        assert parse([*GIVEN, "--config", str(tmp_path / "c.yaml")]).folder.init == init


def test_the_presets_fit_the_networks_that_they_start_from():
    network = load_network("cryo")
    config = TrainingConfig.preset("fast", start="cryo")
    assert network.settings["width"] == config.width and len(network.encoders) == config.levels


# The training -----------------------------------------------------------------------------------------


def test_training_starts_from_the_weights_of_the_package_and_says_so(files, tmp_path, capsys):
    assert trained(tmp_path / "run", *files, "--steps", "1", "--learning-rate", "1e-30", "--ema-decay", "0") == 0
    weights = load_network(tmp_path / "run").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in load_network("cryo").state_dict().items())
    assert "starts from the network cryo that comes with the package; --init none" in capsys.readouterr().out
    content = resources.files("equitomo").joinpath("weights", "cryo.safetensors").read_bytes()
    expected = {"network": "cryo", "sha256": hashlib.sha256(content).hexdigest()}
    assert record(tmp_path / "run")["init"] == expected
    assert record(tmp_path / "run")["configuration"]["contrast"] == "bright"


def test_training_from_scratch_says_why_if_that_was_not_asked_for(files, tmp_path, capsys):
    assert trained(tmp_path / "narrow", *files, "--steps", "1", "--width", "4") == 0
    assert "Training starts from scratch: the network cryo has --width 32 and not 4\n" in capsys.readouterr().out
    assert trained(tmp_path / "none", *files, "--steps", "1", "--init", "none") == 0
    assert "scratch" not in capsys.readouterr().out
    for name in ("narrow", "none"):
        assert record(tmp_path / name)["init"] is None and load_checkpoint(tmp_path / name).config.contrast == "auto"


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    ("words", "reason"), [(["--width", "4"], "--width 32 and not 4"), (["--levels", "2"], "--levels")]
)
def test_a_start_that_does_not_fit_is_refused_if_it_was_asked_for(files, tmp_path, capsys, words, reason):
    assert trained(tmp_path / "run", *files, "--steps", "1", "--init", "cryo", *words) == 2
    shown = capsys.readouterr().err
    assert reason in shown and "--init none" in shown
    assert not (tmp_path / "run").exists()


def test_folders_with_the_names_of_starts_are_named_by_their_path(files, tmp_path, capsys, monkeypatch):
    assert trained(tmp_path / "cryo", *files, "--steps", "1", "--init", "none") == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    settings = {**SETTINGS, "steps": 1, "learning_rate": 1e-30, "ema_decay": 0.0}
    config = TrainingConfig.preset("tiny", **settings)
    pair = TomogramPair(*halves(), (-60.0, 60.0))
    for init, source in (("cryo", load_network("cryo")), ("./cryo", load_network(tmp_path / "cryo"))):
        begun = Run.create(tmp_path / "run", pair, config, init=init)
        weights = begun.network.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in source.state_dict().items())
        assert any("--init ./cryo" in note or "`init='./cryo'`" in note for note in begun.notes) == (init == "cryo")


def test_the_network_is_turned_for_tilts_about_x(tmp_path):
    about_y = TomogramPair(*halves(), (-60.0, 60.0))
    turned = TomogramPair(*(half.transpose(1, 2) for half in halves()), about_y.geometry.from_range(-60, 60, "x"))
    volume = about_y.volumes[:1, None]
    expected = shipped_network("cryo", [about_y])(volume)
    found = shipped_network("cryo", [turned])(volume.transpose(3, 4)).transpose(3, 4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    plain = load_network("cryo")(volume.transpose(3, 4)).transpose(3, 4)
    assert (plain - expected).norm() > 0.01 * expected.norm()


# The contrast -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_on_inverted_halves_gives_the_same_weights_and_the_inverted_result(tmp_path, capsys):
    results = []
    for name, sign in (("bright", 1), ("dark", -1)):
        words = [*written(tmp_path, name, sign), "--steps", "3", "--tilts=-60,60", *QUICK, *TILES]
        assert run("reconstruct", *words, "--out", tmp_path / name) == 0
        results.append(np.array(read_volume(tmp_path / name / "reconstruction.mrc").data))
        assert ("darker than the background" in capsys.readouterr().out) == (sign < 0)
        assert record(tmp_path / name)["inverted"] == [sign < 0]
    assert np.array_equal(results[1], -results[0])
    weights = [load_network(tmp_path / name).state_dict() for name in ("bright", "dark")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_each_tomogram_of_a_table_and_of_a_prediction_has_a_contrast_of_its_own(tmp_path, capsys):
    named = {name: written(tmp_path, name, sign) for name, sign in (("bright", 1), ("dark", -1))}
    lines = [f'{first},{second},"-60,60"' for first, second in named.values()]
    (tmp_path / "table.csv").write_text("\n".join(["first,second,tilts", *lines]) + "\n")
    assert run("train", "--table", tmp_path / "table.csv", "--out", tmp_path / "run", "--steps", "2", *QUICK) == 0
    assert "1 of 2 specimens are darker" in capsys.readouterr().out
    assert record(tmp_path / "run")["inverted"] == load_checkpoint(tmp_path / "run").state["inverted"] == [False, True]
    found = []
    for name, paths in named.items():
        out = tmp_path / f"{name}.mrc"
        words = [*paths, "--tilts=-60,60", "--run", tmp_path / "run", "--out", out, *TILES]
        assert run("predict", *words) == 0
        assert ("is inverted for the network" in "".join(capsys.readouterr())) == (name == "dark")
        found.append(np.array(read_volume(out).data))
    assert np.array_equal(found[1], -found[0])


def test_a_script_predicts_in_the_contrast_that_the_network_knows(tmp_path):
    both = [[sign * half for half in halves()] for sign in (1, -1)]
    bright, dark = (TomogramPair(*one, (-60.0, 60.0), voxel_size=10.0) for one in both)
    config = TrainingConfig.preset("tiny", **SETTINGS, steps=1)
    begun = Run.create(tmp_path / "run", bright, config, init="cryo").train()
    tiles = Prediction(tile=24, tile_margin=8)
    for one in (begun, Run.open(tmp_path / "run")):
        pairs = {"bright.mrc": bright, "dark.mrc": dark}
        paths = [one.predict(pair, tmp_path / name, tiles, overwrite=True) for name, pair in pairs.items()]
        found = [np.array(read_volume(path).data) for path in paths]
        assert np.array_equal(found[1], -found[0])


def test_the_contrast_of_a_run_holds_for_a_training_that_starts_from_it(tmp_path):
    dark = TomogramPair(*(-half for half in halves()), (-60.0, 60.0))
    config = TrainingConfig.preset("tiny", **SETTINGS, steps=1)
    Run.create(tmp_path / "one", dark, config, init="cryo").train()
    two = Run.create(tmp_path / "two", dark, config, init=tmp_path / "one")
    assert two.config.contrast == "bright" and two.trainer.inverted == [True]
    assert Run.create(tmp_path / "three", dark, config).trainer.inverted == [False]
    given = TrainingConfig.preset("tiny", **SETTINGS, steps=1, contrast="given")
    assert Run.create(tmp_path / "four", dark, given, init="cryo").trainer.inverted == [False]


@pytest.mark.slow
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_that_is_resumed_starts_from_what_it_began_with(tmp_path, has_checkpoint):
    paths = written(tmp_path, "dark", -1)
    assert trained(tmp_path / "whole", *paths, "--steps", "4") == 0
    words = [*paths, "--steps", "4", "--checkpoint-every", "2"]
    assert trained(tmp_path / "broken", *words) == 0
    for step in (4,) if has_checkpoint else (2, 4):
        for path in (tmp_path / "broken" / "checkpoints" / f"step_{step:08d}").iterdir():
            path.unlink()
        path.parent.rmdir()
    assert trained(tmp_path / "broken", *words, "--resume") == 0
    for name in ("weights", "ema", "optimizer"):
        one, other = (load_checkpoint(tmp_path / run).tensors[name] for run in ("whole", "broken"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert record(tmp_path / "broken")["init"]["network"] == "cryo"


def test_a_resumed_run_keeps_a_contrast_that_would_be_judged_otherwise_now(tmp_path, monkeypatch):
    dark = TomogramPair(*(-half for half in halves()), (-60.0, 60.0))
    config = TrainingConfig.preset("tiny", **SETTINGS, steps=2)
    Run.create(tmp_path / "run", dark, config, init="cryo").train(until=1)
    monkeypatch.setattr("equitomo.datasets.pair.is_dark", lambda *views: False)
    again = TomogramPair(*(-half for half in halves()), (-60.0, 60.0))
    resumed = Run.create(tmp_path / "run", again, config, init="cryo", resume=True)
    assert resumed.config.contrast == "bright" and resumed.trainer.inverted == [True]


def test_a_run_from_scratch_is_resumed_from_scratch(files, tmp_path):
    words = [*files, "--steps", "2", "--init", "none"]
    assert trained(tmp_path / "run", *words) == 0
    assert trained(tmp_path / "run", *words[:-2], "--resume") == 0
    assert parse([*GIVEN[:-1], str(tmp_path / "run"), "--preset", "fast", "--resume"]).folder.init == "none"


# The demonstration ------------------------------------------------------------------------------------


def test_the_demonstration_has_a_time_unless_steps_are_given(tmp_path):
    demo = parse(["demo", "--out", "demo"])
    assert demo.folder.init == "cryo" and 0 < demo.config.minutes < 3
    assert parse(["demo", "--out", "demo", "--steps", "7"]).config.minutes is None
    assert parse(["demo", "--out", "demo", "--minutes", "7"]).config.minutes == 7
    (tmp_path / "c.yaml").write_text("steps: 7\n")
    config = parse(["demo", "--out", "demo", "--config", str(tmp_path / "c.yaml")]).config
    assert (config.steps, config.minutes) == (7, None)
