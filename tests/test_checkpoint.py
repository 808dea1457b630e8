"""Checkpoints are complete or absent, checked when they are read, and never unpickled."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch

from equitomo import ScaleEquivariantUNet3D, load_network
from equitomo.training import checkpoint as module
from equitomo.training.checkpoint import (
    CheckpointError,
    checkpoint_bytes,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    write_checkpoint,
)

SETTINGS = {"width": 4, "levels": 2}


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return ScaleEquivariantUNet3D(**SETTINGS | settings)


def save(folder, step, *, ema=False, **options):
    """A checkpoint whose weights are those of the network seeded by its step."""
    tensors = {"weights": network(step).state_dict(), "optimizer": {"a": torch.full((3,), float(step))}}
    if ema:
        tensors["ema"] = network(step + 1000).state_dict()
    return save_checkpoint(folder, step, tensors, {"network": SETTINGS}, **options)


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints."""
    save(tmp_path / "checkpoints", 10)
    save(tmp_path / "checkpoints", 20)
    return tmp_path


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_bit_by_bit(tmp_path):
    tensors = {"weights": {"w": torch.randn(3, 4, dtype=torch.float64)}, "optimizer": {"n": torch.tensor(7)}}
    path = save_checkpoint(tmp_path, 5, tensors, {"skipped": 2})
    loaded = load_checkpoint(path)
    assert loaded.path == path
    assert (loaded.state["step"], loaded.state["skipped"]) == (5, 2)
    for name, group in tensors.items():
        torch.testing.assert_close(loaded.tensors[name], group, rtol=0, atol=0)


def test_tensors_in_any_memory_layout_are_saved(tmp_path):
    weight = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    loaded = load_checkpoint(save_checkpoint(tmp_path, 1, {"weights": {"w": weight}}, {}))
    assert torch.equal(loaded.tensors["weights"]["w"], weight)


def test_only_the_last_two_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    assert steps(tmp_path) == ["step_00000015", "step_00000020"]


def test_every_n_th_is_kept_for_good(tmp_path):
    for step in (5, 10, 15, 20, 25, 30, 35):
        save(tmp_path, step, keep_every=10)
    assert steps(tmp_path) == [f"step_{step:08d}" for step in (10, 20, 30, 35)]


def test_checkpoints_of_runs_longer_than_their_names_are_sorted_by_number(tmp_path):
    for step in (99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step)
    assert load_checkpoint(tmp_path).state["step"] == 100_000_001
    assert steps(tmp_path) == ["step_100000000", "step_100000001"]


def test_a_folder_of_another_name_is_no_checkpoint_and_is_left_alone(tmp_path):
    (tmp_path / "step_by_step").mkdir()
    for step in (5, 10, 15):
        save(tmp_path, step)
    assert load_checkpoint(tmp_path).state["step"] == 15
    assert (tmp_path / "step_by_step").is_dir()


def test_the_size_of_a_checkpoint_is_known_before(tmp_path):
    weights = dict(network().state_dict())
    optimizer = {f"{name}.{key}": value.clone() for name, value in weights.items() for key in ("exp_avg", "exp_avg_sq")}
    tensors = {"weights": weights, "optimizer": optimizer, "ema": weights}
    path = save_checkpoint(tmp_path, 1, tensors, {"network": SETTINGS})
    size = sum(file.stat().st_size for file in path.iterdir())
    assert size <= checkpoint_bytes(network(), n_kept=1) <= size + 100_000
    without = checkpoint_bytes(network(), n_kept=0)
    assert checkpoint_bytes(network(), n_kept=1) - without == sum(4 * value.numel() for value in weights.values())


def test_the_same_step_can_be_saved_again(run):
    save(run / "checkpoints", 20, ema=True)
    assert "ema" in load_checkpoint(run).tensors
    assert steps(run / "checkpoints") == ["step_00000010", "step_00000020"]


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step_00000020"])
def test_the_latest_network_is_loaded_from_a_run_its_folder_or_one_checkpoint(run, where):
    assert equal(load_network(run / where), network(20))


def test_a_network_on_blocks_of_voxels_is_rebuilt_from_its_checkpoint(tmp_path):
    saved = network(3, unshuffle=2)
    save_checkpoint(tmp_path, 1, {"weights": saved.state_dict()}, {"network": saved.settings})
    loaded = load_network(tmp_path)
    x = torch.randn(1, 1, 9, 8, 10)
    assert loaded.settings == saved.settings and torch.equal(loaded(x), saved(x))


def test_an_earlier_checkpoint_is_loaded_by_its_name(run):
    assert equal(load_network(run / "checkpoints" / "step_00000010"), network(10))


def test_the_averaged_weights_are_taken_unless_told_otherwise(tmp_path):
    save(tmp_path, 5, ema=True)
    assert equal(load_network(tmp_path), network(1005))
    assert equal(load_network(tmp_path, ema=False), network(5))


def test_the_hashes_are_those_of_the_field_s_tool(run):
    folder = run / "checkpoints" / "step_00000020"
    done = subprocess.run(["sha256sum", "-c", "state.json.sha256"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "state.json: OK\n")


# Writing ---------------------------------------------------------------------------------------------


@pytest.mark.fault(57)
@pytest.mark.parametrize("n_written", [0, 1, 2, 3])
def test_a_failure_in_the_middle_leaves_nothing_and_the_one_before_loads(run, monkeypatch, n_written):
    written = []
    sync = os.fsync

    def full(number):
        if len(written) == n_written:
            # The file is there and cut short.
            os.truncate(number, os.fstat(number).st_size // 2)
            raise OSError(28, "No space left on device")
        written.append(number)
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000010", "step_00000020"]
    assert equal(load_network(run), network(20))


@pytest.mark.fault(58)
def test_what_a_killed_process_left_behind_is_not_taken_for_a_checkpoint(run):
    final = run / "checkpoints" / "step_00000020"
    shutil.copytree(final, run / "checkpoints" / ".step_00000030.partial")
    assert load_checkpoint(run).path == final


@pytest.mark.fault(58)
def test_what_a_killed_process_left_behind_is_replaced(run):
    partial = run / "checkpoints" / ".step_00000030.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    save(run / "checkpoints", 30)
    assert equal(load_network(run), network(30))
    assert not partial.exists()


@pytest.mark.fault(58)
def test_what_a_killed_process_left_behind_is_cleaned_by_the_next_checkpoint(run):
    partial = run / "checkpoints" / ".step_00000025.partial"
    partial.mkdir()
    save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000020", "step_00000030"]


class Killed(BaseException):
    """In place of a signal that cannot be caught."""


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A run whose only checkpoint was about to be replaced when its process was killed, between the two renames."""
    save(tmp_path / "checkpoints", 20)
    rename = module.Path.rename

    def die(self, target):
        if target.name == "step_00000020":
            raise Killed
        rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module.Path, "rename", die)
        # Who is killed cleans nothing up.
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        save(tmp_path / "checkpoints", 20, ema=True)
    assert steps(tmp_path / "checkpoints") == [".step_00000020.old.partial", ".step_00000020.partial"]
    return tmp_path


@pytest.mark.fault(58)
def test_a_checkpoint_that_was_being_replaced_when_the_process_was_killed_is_loaded(killed):
    assert has_checkpoint(killed)
    assert equal(load_network(killed), network(20))
    assert steps(killed / "checkpoints") == [".step_00000020.old.partial", ".step_00000020.partial"]


@pytest.mark.fault(58)
def test_a_checkpoint_that_was_being_replaced_gets_its_name_back(killed):
    save(killed / "checkpoints", 30)
    assert steps(killed / "checkpoints") == ["step_00000020", "step_00000030"]
    assert equal(load_network(killed / "checkpoints" / "step_00000020"), network(20))


@pytest.mark.fault(57, 58)
def test_a_checkpoint_that_was_being_replaced_outlives_a_failure_of_the_next(killed, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(killed / "checkpoints", 20)
    assert equal(load_network(killed), network(20))


@pytest.mark.fault(58)
def test_a_checkpoint_that_was_being_replaced_is_replaced_by_the_next_of_its_step(killed):
    save(killed / "checkpoints", 20, ema=True)
    assert "ema" in load_checkpoint(killed).tensors
    assert steps(killed / "checkpoints") == ["step_00000020"]


@pytest.mark.fault(58)
def test_a_single_checkpoint_that_was_being_replaced_goes_when_the_new_one_has_its_name(killed):
    write_checkpoint(killed / "checkpoints" / "step_00000020", {"weights": network(1).state_dict()}, {})
    assert steps(killed / "checkpoints") == ["step_00000020"]


@pytest.mark.fault(58)
def test_a_checkpoint_that_was_replaced_before_the_kill_is_not_loaded_and_cleaned_by_the_next(run):
    folder = run / "checkpoints"
    shutil.copytree(folder / "step_00000010", folder / ".step_00000020.old.partial")
    assert equal(load_network(run), network(20))
    save(folder, 30)
    assert steps(folder) == ["step_00000020", "step_00000030"]


@pytest.mark.fault(58)
def test_an_older_checkpoint_is_dropped_only_after_the_new_one_is_whole(run, monkeypatch):
    def fail(self, target):
        raise OSError("the disk is gone")

    monkeypatch.setattr(module.Path, "rename", fail)
    with pytest.raises(OSError, match="gone"):
        save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000010", "step_00000020"]


@pytest.mark.fault(56)
@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_stands_in_place_of_the_partial_folder_is_not_written_through(run, tmp_path_factory, kind):
    outside = tmp_path_factory.mktemp("outside")
    partial = run / "checkpoints" / ".step_00000030.partial"
    partial.symlink_to(outside) if kind == "link" else partial.write_text("a file")
    with pytest.raises(FileExistsError):
        save(run / "checkpoints", 30)
    assert list(outside.iterdir()) == []
    assert load_checkpoint(run).state["step"] == 20


@pytest.mark.fault(58)
def test_files_and_then_folders_are_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, rename = module.os.fsync, module.Path.rename
    monkeypatch.setattr(module.os, "fsync", lambda number: (done.append(_name_of(number)), sync(number)))
    monkeypatch.setattr(module.Path, "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    save(tmp_path / "checkpoints", 5)
    files = ["weights.safetensors", "optimizer.safetensors", "state.json", "state.json.sha256"]
    assert done == [tmp_path.name, *files, ".step_00000005.partial", "rename", "checkpoints"]


def _name_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


# Damage ----------------------------------------------------------------------------------------------


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit flipped": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


NAMES = ["weights.safetensors", "optimizer.safetensors", "state.json", "state.json.sha256"]


@pytest.mark.fault(60)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(run, caplog, damage, name):
    DAMAGES[damage](run / "checkpoints" / "step_00000020" / name)
    with caplog.at_level(logging.WARNING, logger="equitomo"):
        assert equal(load_network(run), network(10))
    assert "step_00000020 cannot be used" in caplog.text
    assert name.removesuffix(".sha256") in caplog.text


def put_state(folder, content):
    """A state of another program, or of an attacker: its hash is right."""
    content = content.encode(errors="surrogateescape")
    (folder / "state.json").write_bytes(content)
    (folder / "state.json.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  state.json\n")


STATES = {
    "cut short": '{"step": 2',
    "not an object": "[1, 2]",
    "without hashes": '{"step": 20}',
    "without a step": '{"sha256": {}}',
    "of other types": '{"step": "x", "sha256": 3}',
    "empty": "",
    "binary": "\udcff\udcfe",
}


@pytest.mark.fault(60)
@pytest.mark.parametrize("content", STATES.values(), ids=STATES.keys())
def test_a_damaged_state_is_passed_over(run, content):
    put_state(run / "checkpoints" / "step_00000020", content)
    assert equal(load_network(run), network(10))


@pytest.mark.fault(53)
def test_a_state_that_points_out_of_its_folder_is_not_followed(run):
    path = run / "checkpoints" / "step_00000020" / "state.json"
    state = json.loads(path.read_text())
    outside = run / "outside.safetensors"
    shutil.copy(path.with_name("weights.safetensors"), outside)
    state["sha256"] = {"../../outside": state["sha256"]["weights"]}
    put_state(path.parent, json.dumps(state))
    assert load_checkpoint(run).path.name == "step_00000010"


@pytest.mark.fault(60)
def test_damage_to_all_is_an_error_that_lists_each(run):
    for step in ("step_00000010", "step_00000020"):
        flip_a_bit(run / "checkpoints" / step / "weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no sound checkpoint in .*step_00000020: weights.*step_00000010: weights"
    ):
        load_network(run)


def test_a_folder_without_checkpoints_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match=r"no sound checkpoint in .*give a run's folder"):
        load_network(tmp_path)


@pytest.mark.fault(63)
def test_a_huge_safetensors_header_is_refused(run):
    folder = run / "checkpoints" / "step_00000020"
    content = (1 << 62).to_bytes(8, "little") + b"{}"
    (folder / "weights.safetensors").write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["weights"] = hashlib.sha256(content).hexdigest()
    put_state(folder, json.dumps(state))
    with pytest.raises(CheckpointError, match=r"(?i)header"):
        load_network(folder)
    assert equal(load_network(run), network(10))


# Fit -------------------------------------------------------------------------------------------------


@pytest.mark.fault(61)
def test_weights_of_another_width_are_refused_with_what_differs():
    message = (
        r"weights of the donor do not fit.*\d+ parameters differ: .*conv\.weight \(\d+.*in place of.*"
        r"`width`, `levels` and `unshuffle`"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(network(), network(width=6).state_dict(), "the donor")


@pytest.mark.fault(61)
def test_a_missing_and_an_additional_weight_are_named():
    weights = dict(network().state_dict())
    weights["final_conv.bias"] = weights.pop("final_conv.weight")
    with pytest.raises(CheckpointError, match=r"2 parameters differ: final_conv\.bias.*final_conv\.weight None"):
        load_weights(network(), weights, "the donor")


@pytest.mark.fault(61)
def test_a_checkpoint_that_does_not_fit_its_own_settings_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"weights": network(width=6).state_dict()}, {"network": SETTINGS})
    with pytest.raises(CheckpointError, match=f"{path.name} do not fit"):
        load_network(path)


def test_a_folder_knows_whether_it_holds_a_checkpoint(run, tmp_path_factory):
    assert has_checkpoint(run)
    assert not has_checkpoint(tmp_path_factory.mktemp("other"))


def test_a_checkpoint_s_tensors_are_plain_safetensors_files(run):
    weights = safetensors.torch.load_file(run / "checkpoints" / "step_00000020" / "weights.safetensors")
    assert weights.keys() == network().state_dict().keys()
