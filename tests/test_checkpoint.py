"""Checkpoints: whole or not there, checked when read, and never unpickled."""

import json
import logging
import shutil

import pytest
import safetensors.torch
import torch

from equitomo import ScaleEquivariantUNet3D, load_network
from equitomo.training import checkpoint as module
from equitomo.training.checkpoint import (
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)

SETTINGS = {"width": 4, "levels": 2}


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return ScaleEquivariantUNet3D(**SETTINGS | settings)


def save(folder, step, *, averaged=False, **options):
    """A checkpoint whose weights are those of the network seeded by its step."""
    tensors = {"weights": network(step).state_dict(), "optimizer": {"a": torch.full((3,), float(step))}}
    if averaged:
        tensors["averaged"] = network(step + 1000).state_dict()
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


def test_the_same_step_can_be_saved_again(run):
    save(run / "checkpoints", 20, averaged=True)
    assert "averaged" in load_checkpoint(run).tensors


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step_00000020"])
def test_the_latest_network_is_loaded_from_a_run_its_folder_or_one_checkpoint(run, where):
    assert equal(load_network(run / where), network(20))


def test_an_earlier_checkpoint_is_loaded_by_its_name(run):
    assert equal(load_network(run / "checkpoints" / "step_00000010"), network(10))


def test_the_averaged_weights_are_taken_unless_told_otherwise(tmp_path):
    save(tmp_path, 5, averaged=True)
    assert equal(load_network(tmp_path), network(1005))
    assert equal(load_network(tmp_path, averaged=False), network(5))


# Writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_written", [0, 1, 2])
def test_a_failure_in_the_middle_leaves_nothing_and_the_one_before_loads(run, monkeypatch, n_written):
    written = []
    write = module._write_bytes

    def full(path, content):
        if len(written) == n_written:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(module, "_write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000010", "step_00000020"]
    assert equal(load_network(run), network(20))


def test_what_a_killed_process_left_behind_is_not_taken_for_a_checkpoint(run):
    final = run / "checkpoints" / "step_00000020"
    shutil.copytree(final, run / "checkpoints" / ".step_00000030.partial")
    assert load_checkpoint(run).path == final


def test_what_a_killed_process_left_behind_is_replaced(run):
    partial = run / "checkpoints" / ".step_00000030.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    save(run / "checkpoints", 30)
    assert equal(load_network(run), network(30))
    assert not partial.exists()


def test_what_a_killed_process_left_behind_is_cleaned_by_the_next_checkpoint(run):
    partial = run / "checkpoints" / ".step_00000025.partial"
    partial.mkdir()
    save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000020", "step_00000030"]


def test_an_older_checkpoint_is_dropped_only_after_the_new_one_is_whole(run, monkeypatch):
    def fail(self, target):
        raise OSError("the disk is gone")

    monkeypatch.setattr(module.Path, "rename", fail)
    with pytest.raises(OSError, match="gone"):
        save(run / "checkpoints", 30)
    assert steps(run / "checkpoints") == ["step_00000010", "step_00000020"]


# Damage ----------------------------------------------------------------------------------------------


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit flipped": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(run, caplog, damage, name):
    DAMAGES[damage](run / "checkpoints" / "step_00000020" / name)
    with caplog.at_level(logging.WARNING, logger="equitomo"):
        assert equal(load_network(run), network(10))
    assert "step_00000020 cannot be used" in caplog.text
    assert name in caplog.text


STATES = {
    "cut short": '{"step": 2',
    "not an object": "[1, 2]",
    "without hashes": '{"step": 20}',
    "without a step": '{"sha256": {}}',
    "of other types": '{"step": "x", "sha256": 3}',
    "empty": "",
    "binary": "\udcff\udcfe",
}


@pytest.mark.parametrize("content", STATES.values(), ids=STATES.keys())
def test_a_damaged_state_is_passed_over(run, content):
    path = run / "checkpoints" / "step_00000020" / "state.json"
    path.write_text(content, errors="surrogateescape")
    assert equal(load_network(run), network(10))


def test_a_state_that_points_out_of_its_folder_is_not_followed(run):
    path = run / "checkpoints" / "step_00000020" / "state.json"
    state = json.loads(path.read_text())
    outside = run / "outside.safetensors"
    shutil.copy(path.with_name("weights.safetensors"), outside)
    state["sha256"] = {"../../outside": state["sha256"]["weights"]}
    path.write_text(json.dumps(state))
    assert load_checkpoint(run).path.name == "step_00000010"


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


def test_a_huge_safetensors_header_is_refused(run):
    folder = run / "checkpoints" / "step_00000020"
    content = (1 << 62).to_bytes(8, "little") + b"{}"
    (folder / "weights.safetensors").write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["weights"] = module.hashlib.sha256(content).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"(?i)header"):
        load_network(folder)


# Fit -------------------------------------------------------------------------------------------------


def test_weights_of_another_width_are_refused_with_what_differs():
    message = (
        r"weights of the donor do not fit.*\d+ parameters differ: .*conv\.weight \(\d+.*in place of.*width and levels"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(network(), network(width=6).state_dict(), "the donor")


def test_a_missing_and_an_additional_weight_are_named():
    weights = dict(network().state_dict())
    weights["final_conv.bias"] = weights.pop("final_conv.weight")
    with pytest.raises(CheckpointError, match=r"2 parameters differ: final_conv\.bias.*final_conv\.weight None"):
        load_weights(network(), weights, "the donor")


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
