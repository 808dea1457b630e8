"""Pickled checkpoints: read in one place, which says so, and never run."""

import hashlib
import os
import re

import numpy as np
import pytest
import torch
from commanding import run
from einops import rearrange
from making import noisy_halves

from equitomo import ScaleEquivariantUNet3D, load_network, read_volume, write_volume
from equitomo.training.checkpoint import load_checkpoint

SETTINGS = {"width": 4, "levels": 2}
TINY = [
    *("--preset", "tiny", "--side", "16", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--margin", "4"),
    *("--batch", "1"),
    *("--steps", "1", "--warmup", "0", "--preview_every", "0", "--device", "cpu", "--precision", "float32"),
]


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return ScaleEquivariantUNet3D(**SETTINGS | settings)


def put(folder, content):
    path = folder / "model_iteration_100.pt"
    torch.save(content, path)
    return path


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def pickled(tmp_path):
    """Write a checkpoint as a compiled, distributed run of the reference program does."""
    made = network()
    state = {f"module._orig_mod.{key}": value for key, value in made.state_dict().items()}
    optimizer = torch.optim.Adam(made.parameters()).state_dict()
    histories = {"loss_set": [0.5], "diff_loss_set": [0.25], "loss_avg_set": [np.mean([1.0, 2.0])]}
    return put(tmp_path, {"model_state_dict": state, "optimizer_state_dict": optimizer, **histories})


@pytest.mark.parametrize("axes", [None, "yxz", "zyx"])
def test_a_checkpoint_of_torch_save_becomes_one_of_this_package(pickled, tmp_path, axes):
    given = [] if axes is None else ["--axes", axes]
    assert run("convert", pickled, "--out", tmp_path / "converted", *given) == 0
    found, expected = load_network(tmp_path / "converted").state_dict(), network().state_dict()
    for name, value in expected.items():
        # The reference program's volumes are (y, x, z).
        assert torch.equal(found[name], rearrange(value, "o i y x z -> o i z y x") if axes != "zyx" else value)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model_state_dict": state, "loss_set": [0.5]}])
def test_the_axes_of_a_network_of_ones_own_must_be_said(tmp_path, capsys, wrap):
    path = put(tmp_path, wrap(network().state_dict()))
    assert run("convert", path, "--out", tmp_path / "converted") == 2
    said = capsys.readouterr().err
    assert re.search(r"model_iteration_100\.pt does not say in which order the axes .*so --axes must", said)
    assert re.search(r"--axes yxz if it was trained on volumes \(y, x, z\).*--axes zyx .*\(z, y, x\)", said)
    assert names_in(tmp_path) == {path.name}
    assert run("convert", path, "--out", tmp_path / "converted", "--axes", "zyx") == 0


@pytest.mark.fault(62)
def test_converting_says_that_the_file_is_a_pickle(pickled, tmp_path, capsys):
    assert run("convert", pickled, "--out", tmp_path / "converted") == 0
    captured = capsys.readouterr()
    assert re.search(r"model_iteration_100\.pt is a pickle.*nothing in it is run", captured.err)
    assert "a network of width 4 with 2 levels, for --init and predict --run" in captured.out


def test_a_converted_checkpoint_remembers_its_origin(pickled, tmp_path):
    run("convert", pickled, "--out", tmp_path / "converted")
    found = load_checkpoint(tmp_path / "converted").state["converted_from"]
    assert found == {"name": pickled.name, "sha256": hashlib.sha256(pickled.read_bytes()).hexdigest()}


@pytest.mark.parametrize("levels", [2, 5])
def test_a_network_of_any_depth_is_converted(tmp_path, levels):
    path = put(tmp_path, network(width=2, levels=levels).state_dict())
    assert run("convert", path, "--out", tmp_path / "converted", "--axes", "zyx") == 0
    assert len(load_network(tmp_path / "converted").encoders) == levels


def test_a_converted_checkpoint_starts_a_training_and_predicts(pickled, tmp_path, capsys):
    converted = tmp_path / "converted"
    run("convert", pickled, "--out", converted)
    halves = [tmp_path / "even.mrc", tmp_path / "odd.mrc"]
    for path, half in zip(halves, noisy_halves((18, 18, 18)), strict=True):
        write_volume(path, half.numpy(), voxel_size=10.0)
    arguments = ["--tilts", "-60,60", "--out", tmp_path / "run", *TINY, "--learning_rate", "1e-30", "--ema_decay", "0"]
    assert run("train", *halves, *arguments, "--init", converted) == 0
    before, after = load_network(converted).state_dict(), load_network(tmp_path / "run").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    predict = ["predict", halves[0], "--run", converted, "--out", tmp_path / "a.mrc", "--device", "cpu"]
    predict += ["--tile", "24", "--tile_margin", "4"]
    assert run(*predict) == 2
    assert "was converted and knows no tilts: pass --tilts" in capsys.readouterr().err
    assert run(*predict, "--tilts", "-60,60") == 0
    assert read_volume(tmp_path / "a.mrc").data.shape == (18, 18, 18)


class Malicious:
    """An object whose pickle makes a folder if it is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.fault(62)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, capsys):
    path = put(tmp_path, {"model": network().state_dict(), "extra": Malicious(tmp_path / "trace")})
    assert run("convert", path, "--out", tmp_path / "converted") == 2
    assert "cannot be read safely as a checkpoint" in capsys.readouterr().err
    assert names_in(tmp_path) == {path.name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": [1]}, "holds no weights of the reference"),
        (network(in_channels=2).state_dict(), "network with 2 channels in and 1 out; volumes here have one"),
        (network().state_dict() | {"final_conv.bias": torch.zeros(1)}, "was trained with biases"),
    ],
)
def test_what_is_no_network_of_one_channel_is_refused(tmp_path, capsys, content, message):
    path = put(tmp_path, content)
    assert run("convert", path, "--out", tmp_path / "converted", "--axes", "zyx") == 2
    assert re.search(rf"model_iteration_100\.pt.* {message}", capsys.readouterr().err)
    assert names_in(tmp_path) == {path.name}


@pytest.mark.fault(54)
def test_a_checkpoint_is_replaced_only_if_that_is_asked_for(pickled, tmp_path, capsys):
    out = tmp_path / "converted"
    run("convert", pickled, "--out", out)
    put(tmp_path, network(1).state_dict())
    assert run("convert", pickled, "--out", out, "--axes", "zyx") == 2
    assert re.search(r"exists already: choose another name, or pass --overwrite.*converted", capsys.readouterr().err)
    assert run("convert", pickled, "--out", out, "--axes", "zyx", "--overwrite") == 0
    assert torch.equal(load_network(out).final_conv.weight, network(1).final_conv.weight)
    assert {name for name in names_in(tmp_path) if "partial" in name} == set()


@pytest.mark.fault(54)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_checkpoint_is_never_replaced(pickled, tmp_path, capsys, kind):
    out = tmp_path / "precious"
    if kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("keep me")
    elif kind == "file":
        out.write_text("keep me")
    else:
        out.symlink_to(tmp_path)
    before = names_in(tmp_path)
    assert run("convert", pickled, "--out", out, "--overwrite") == 2
    assert re.search(r"exists and is no checkpoint: choose another name.*precious", capsys.readouterr().err)
    assert names_in(tmp_path) == before


@pytest.mark.fault(62)
def test_nothing_but_convert_opens_a_pickle(monkeypatch, pickled, tmp_path, capsys):
    monkeypatch.setattr(torch, "load", pytest.fail)
    for path, half in zip(("even.mrc", "odd.mrc"), noisy_halves((18, 18, 18)), strict=True):
        write_volume(tmp_path / path, half.numpy(), voxel_size=10.0)
    halves = [tmp_path / "even.mrc", tmp_path / "odd.mrc"]
    train = ["train", *halves, "--tilts", "-60,60", "--out", tmp_path / "run", *TINY]
    assert run(*train, "--init", pickled) == 2
    assert "equitomo convert" in capsys.readouterr().err
    assert run("predict", halves[0], "--run", pickled, "--out", tmp_path / "a.mrc") == 2
    assert "no sound checkpoint in" in capsys.readouterr().err
