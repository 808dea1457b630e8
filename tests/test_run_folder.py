"""A run's folder: one process at a time, nothing else harmed, and a record that knows the inputs again."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from commanding import run
from kills import assert_equal_runs
from making import noisy_halves

from equitomo import ScaleEquivariantUNet3D, read_volume, report, write_volume
from equitomo.run import Run
from equitomo.run.folder import RunFolder
from equitomo.training import checkpoint

TINY = [
    *("--preset", "tiny", "--side", "16", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--margin", "4"),
    *("--batch", "1"),
    *("--steps", "2", "--warmup", "0", "--preview_every", "0", "--device", "cpu", "--precision", "float32"),
]
FOUR_STEPS = [*TINY, "--steps", "4", "--checkpoint_every", "1"]
TILED = ["--tile", "24", "--tile_margin", "4"]


def given(folder):
    """Return the arguments that name the tomogram."""
    return [folder / "even.mrc", folder / "odd.mrc", "--tilts", folder / "series.tlt"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Write two halves and their tilts, and make a run that stopped after one step of two."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "in").mkdir()
    (folder / "in" / "series.tlt").write_text("-60\n0\n60\n")
    for name, half in zip(("even.mrc", "odd.mrc"), noisy_halves((18, 18, 18)), strict=True):
        write_volume(folder / "in" / name, half.numpy(), voxel_size=10.0)
    assert run("train", *given(folder / "in"), "--out", folder / "run", *TINY, "--checkpoint_every", "1") == 0
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000002")
    return folder


@pytest.fixture
def halves(original, tmp_path):
    return given(shutil.copytree(original / "in", tmp_path / "in"))


@pytest.fixture
def trained(original, tmp_path):
    return shutil.copytree(original / "run", tmp_path / "run")


def resume(halves, out, *arguments):
    return run("train", *halves, "--out", out, *TINY, "--checkpoint_every", "1", "--resume", *arguments)


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


# One process at a time -------------------------------------------------------------------------------

HOLD = """
import os, sys
from pathlib import Path
from filelock import FileLock
path = Path({path!r})
path.parent.mkdir()
lock = FileLock(path)
lock.acquire()
path.write_text(f"process {{os.getpid()}} on a machine since yesterday\\n")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Return a folder that another process uses, and the process."""
    folder = tmp_path_factory.mktemp("runs") / "held"
    command = [sys.executable, "-c", HOLD.format(path=str(folder / "run.lock"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield folder, process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.fault(70)
def test_the_lock_says_whose_it_is(tmp_path):
    with RunFolder(tmp_path / "run").held():
        text = (tmp_path / "run" / "run.lock").read_text()
    assert re.fullmatch(rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\n", text)
    assert list(tmp_path.iterdir()) == []


# In this order: the last of them kills the process.
@pytest.mark.fault(70)
def test_a_second_process_is_refused_and_told_of_the_first(held, halves, capsys):
    folder, process = held
    before = names_in(folder)
    assert run("train", *halves, "--out", folder, *TINY) == 2
    message = rf"in use by process {process.pid} on a machine since yesterday: wait for it, .*--break-lock.*{folder}"
    assert re.search(message, capsys.readouterr().err)
    assert names_in(folder) == before == {"run.lock"}


@pytest.mark.fault(71)
def test_a_lock_may_be_broken_if_that_is_asked_for(held, halves):
    folder, _ = held
    assert run("train", *halves, "--out", folder, *TINY, "--break_lock") == 0
    assert "losses.csv" in names_in(folder)
    assert "run.lock" not in names_in(folder)


@pytest.mark.fault(71)
def test_the_lock_of_a_killed_process_does_not_keep_others_out(held, halves):
    folder, process = held
    process.kill()
    process.wait()
    (folder / "run.lock").write_text("process 1 on elsewhere")
    assert run("train", *halves, "--out", folder, *TINY, "--overwrite") == 0


def test_the_lock_is_gone_when_the_work_is_done_or_failed(halves, tmp_path, monkeypatch):
    seen = []

    def fail(*arguments, **settings):
        seen.append((tmp_path / "run" / "run.lock").exists())
        raise OSError(5, "input/output error")

    monkeypatch.setattr(Run, "train", fail)
    assert run("train", *halves, "--out", tmp_path / "run", *TINY) == 74
    assert seen == [True]
    assert names_in(tmp_path / "run") == {"manifest.json"}


# Nothing else is harmed ------------------------------------------------------------------------------


def test_a_refused_input_leaves_no_folder(halves, tmp_path):
    before = names_in(tmp_path)
    assert run("train", halves[0], "missing.mrc", *halves[2:], "--out", tmp_path / "a" / "b", *TINY) == 2
    assert names_in(tmp_path) == before


def test_a_refused_input_leaves_a_folder_that_was_there(halves, tmp_path):
    (tmp_path / "run").mkdir()
    assert run("train", halves[0], "missing.mrc", *halves[2:], "--out", tmp_path / "run", *TINY) == 2
    assert (tmp_path / "run").is_dir()


@pytest.mark.fault(54)
def test_demo_does_not_replace_tomograms_that_are_there(halves, capsys):
    folder = halves[0].parent
    before = halves[0].read_bytes()
    assert run("demo", "--out", folder, "--size", "24", *TINY, *TILED) == 2
    assert re.search(r"holds a run already \(even\.mrc, odd\.mrc\)", capsys.readouterr().err)
    assert halves[0].read_bytes() == before


@pytest.mark.fault(58)
def test_what_a_killed_process_left_half_written_is_removed(halves, trained):
    (trained / "reconstruction.mrc.0a1b2c3d.partial").write_bytes(b"half")
    (trained / "previews").mkdir()
    (trained / "previews" / "step_0000001.png.0a1b2c3d.partial").write_bytes(b"half")
    (trained / "mine.partial").write_bytes(b"precious")
    assert resume(halves, trained) == 0
    assert [name for name in names_in(trained) if name.endswith(".partial")] == ["mine.partial"]


@pytest.mark.fault(56)
@pytest.mark.parametrize("name", ["losses.csv", "checkpoints"])
def test_a_run_is_not_resumed_through_a_link(halves, trained, tmp_path, capsys, name):
    outside = tmp_path / "outside"
    (trained / name).rename(outside)
    (trained / name).symlink_to(outside)
    before = names_in(tmp_path)
    assert resume(halves, trained) == 2
    assert re.search(rf"symbolic links would be written through \({name}\)", capsys.readouterr().err)
    assert names_in(tmp_path) == before


@pytest.mark.fault(56)
@pytest.mark.parametrize("name", ["losses.csv", "checkpoints", "reconstruction.mrc", "manifest.json"])
def test_overwriting_removes_a_link_and_not_what_it_points_to(halves, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(outside if name == "checkpoints" else outside / "file")
    assert run("train", *halves, "--out", tmp_path / "run", *TINY, "--overwrite") == 0
    assert names_in(outside) == {"file"}
    assert (outside / "file").read_text() == "precious"


@pytest.mark.fault(56)
def test_a_link_that_takes_the_place_of_the_losses_is_not_followed(halves, tmp_path, monkeypatch, capsys):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    draw = report.draw_preview

    def swap(path, *seen):
        if path.name == "step_0000001.png":
            (tmp_path / "run" / "losses.csv").symlink_to(victim)
        draw(path, *seen)

    monkeypatch.setattr(report, "draw_preview", swap)
    arguments = ["--preview_every", "1", "--checkpoint_every", "9"]
    assert run("train", *halves, "--out", tmp_path / "run", *TINY, *arguments) == 74
    assert re.search(r"symbolic links.*losses\.csv", capsys.readouterr().err)
    assert victim.read_text() == "precious"


@pytest.mark.fault(54)
def test_the_result_of_a_prediction_does_not_take_the_place_of_its_input(halves, trained, capsys):
    before = halves[0].read_bytes()
    arguments = ["--run", trained, "--out", halves[0], "--device", "cpu", "--overwrite", *TILED]
    assert run("predict", halves[0], *arguments) == 2
    assert re.search(r"even\.mrc is one of the inputs: choose another name", capsys.readouterr().err)
    assert halves[0].read_bytes() == before


@pytest.mark.fault(54)
def test_a_picture_is_replaced_only_if_that_is_asked_for(halves, tmp_path, capsys):
    picture = tmp_path / "fsc.png"
    picture.write_bytes(b"precious")
    assert run("fsc", *halves[:2], "--picture", picture) == 2
    assert re.search(r"exists already.*overwrite.*fsc\.png", capsys.readouterr().err)
    assert picture.read_bytes() == b"precious"
    assert run("fsc", *halves[:2], "--picture", picture, "--overwrite") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_equal_names_in_different_folders_do_not_collide(halves, tmp_path, trained):
    results = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        data = read_volume(halves[0]).data * (1 if name == "a" else 3)
        write_volume(folder / "tomogram.mrc", data, voxel_size=10.0)
        results.append(folder / "reconstruction.mrc")
        arguments = ["--run", trained, "--out", results[-1], "--device", "cpu", *TILED]
        assert run("predict", folder / "tomogram.mrc", *arguments) == 0
    one, other = (read_volume(path).data for path in results)
    np.testing.assert_allclose(3 * one, other, rtol=1e-3, atol=1e-3)


# Room on the disk ------------------------------------------------------------------------------------


@pytest.mark.fault(57)
def test_a_prediction_is_refused_if_the_disk_has_no_room_for_it(halves, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 10**5))
    arguments = ["--run", trained, "--out", tmp_path / "a.mrc", "--device", "cpu", *TILED]
    assert run("predict", halves[0], *arguments) == 2
    assert re.search(r"the disk has 100000 bytes left, the file needs \d+.*a\.mrc", capsys.readouterr().err)


def test_what_lies_between_the_passes_of_a_reconstruction_needs_room(halves, tmp_path, monkeypatch):
    asked = []

    def note(self, n_bytes):
        asked.append(n_bytes)
        if len(asked) % 2 == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "require_space", note)
    for passes in ("1", "2"):
        assert run("reconstruct", *halves, "--out", tmp_path / "run", *TINY, *TILED, "--passes", passes) == 2
    # The training alone, and with the reconstruction. The two volumes of floats are what each of the passes makes.
    assert asked[0] == asked[2] < asked[1]
    assert asked[3] - asked[1] >= 2 * 4 * 18**3


@pytest.mark.fault(57)
def test_what_a_run_left_counts_as_room_for_its_next_try(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9000, 8500, 500))
    RunFolder(tmp_path).require_space(1500)
    with pytest.raises(OSError, match=r"the disk has 1\.5 kB for this run, which needs about 1\.5 kB"):
        RunFolder(tmp_path).require_space(1501)


@pytest.mark.fault(57)
def test_every_checkpoint_that_is_kept_needs_room(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 10**7))
    out = tmp_path / "run"
    assert run("train", *halves, "--out", out, *TINY, "--keep_every", "1", "--steps", "100000") == 2
    assert "keep fewer checkpoints (--keep-every)" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture(scope="module")
def whole(original, tmp_path_factory):
    """Make a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("train", *given(original / "in"), "--out", out, *FOUR_STEPS) == 0
    return out


@pytest.mark.fault(57)
@pytest.mark.parametrize("n_written", [0, 6])
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(halves, whole, tmp_path, monkeypatch, capsys, n_written):
    out, written, put = tmp_path / "run", [], checkpoint._write_bytes

    def full(path, content):
        # Of 5 files a checkpoint: the first checkpoint is written, the second or a later one is not.
        if len(written) == 5 + n_written:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        put(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_bytes", full)
        assert run("train", *halves, "--out", out, *FOUR_STEPS) == 74
    assert "free some space and continue with --resume" in capsys.readouterr().err
    assert not [name for name in names_in(out) if "partial" in name]
    assert record(out)["invocations"][0]["outcome"].startswith("failed: [Errno 28] No space left")
    assert run("train", *halves, "--out", out, *FOUR_STEPS, "--resume") == 0
    a, b = checkpoint.load_checkpoint(out), checkpoint.load_checkpoint(whole)
    assert a.state == b.state
    for group, tensors in a.tensors.items():
        assert all(torch.equal(value, b.tensors[group][name]) for name, value in tensors.items())
    assert (out / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


# The record ------------------------------------------------------------------------------------------


def test_the_record_says_what_went_in_and_what_it_was_done_with(original):
    found, halves = record(original / "run"), given(original / "in")
    assert found["configuration"]["seed"] == 0
    assert found["configuration"]["side"] == 16
    assert found["inputs"].keys() == {"first", "second", "tilts"}
    for role, path in (("first", halves[0]), ("second", halves[1]), ("tilts", halves[3])):
        assert found["inputs"][role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found["inputs"][role]["bytes"] == path.stat().st_size
        assert found["inputs"][role]["path"] == str(path)
    header = found["inputs"]["second"]["header"]
    assert (header["shape"], header["voxel_size"], header["type"]) == ([18, 18, 18], [10.0] * 3, "float32")
    (entry,) = found["invocations"]
    assert entry["command"][:3] == ["equitomo", "train", str(halves[0])]
    assert entry["options"]["tilts"] == str(halves[3])
    assert found["geometries"][0]["tilt_axis"] == "y"
    assert entry["outcome"] == "finished"
    assert entry["versions"].keys() >= {"equitomo", "torch", "deepinv", "python"}
    assert entry["hardware"]["cores"] == os.cpu_count()
    assert entry["started"] <= entry["ended"]
    assert entry["seconds"] > 0


def test_the_record_is_there_while_the_run_works_and_tells_how_it_ended(halves, tmp_path, monkeypatch):
    outcomes = []

    def interrupt(*arguments, **settings):
        outcomes.append(record(tmp_path / "run")["invocations"][0]["outcome"])
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "train", interrupt)
    assert run("train", *halves, "--out", tmp_path / "run", *TINY) == 130
    outcomes.append(record(tmp_path / "run")["invocations"][0]["outcome"])
    assert outcomes == ["running", "interrupted"]


def test_a_resumed_run_is_recorded_beside_the_first_try(halves, trained):
    assert resume(halves, trained) == 0
    assert [entry["outcome"] for entry in record(trained)["invocations"]] == ["finished", "finished"]


@pytest.mark.parametrize("command", ["train", "reconstruct"])
def test_a_run_that_is_given_more_steps_is_an_unbroken_one_of_as_many_to_the_bit(halves, tmp_path, command):
    constant = [*FOUR_STEPS, "--schedule", "constant"]
    if command == "reconstruct":
        constant += [*TILED, "--no-test-time-mirrors"]
    assert run(command, *halves, "--out", tmp_path / "one", *constant) == 0
    assert run(command, *halves, "--out", tmp_path / "two", *constant, "--steps", "2") == 0
    assert run(command, *halves, "--out", tmp_path / "two", *constant, "--resume") == 0
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    if command == "reconstruct":
        results = [read_volume(tmp_path / name / "reconstruction.mrc").data for name in ("one", "two")]
        assert np.array_equal(*results)
    found = record(tmp_path / "two")
    assert found["configuration"]["steps"] == 4
    assert [entry["outcome"] for entry in found["invocations"]] == ["finished", "finished"]


def test_the_remedy_is_named_where_the_schedule_depends_on_the_number_of_steps(halves, trained, capsys):
    assert resume(halves, trained, "--steps", "9") == 2
    assert re.search(r"run of 2, .*have 9: .*cosine.*start another run .*--init", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["train", "reconstruct"])
def test_the_record_says_which_weights_a_run_began_with(halves, trained, tmp_path, command):
    more = [*TILED, "--no-test-time-mirrors"] if command == "reconstruct" else []
    assert run(command, *halves, "--out", tmp_path / "new", *TINY, *more, "--init", trained) == 0
    # The newest checkpoint, and of that the averaged weights.
    path = trained / "checkpoints" / "step_00000001"
    content = (path / "ema.safetensors").read_bytes()
    expected = {"path": str(path), "step": 1, "sha256": hashlib.sha256(content).hexdigest()}
    assert record(tmp_path / "new")["init"] == expected
    assert record(trained)["init"] is None


def test_the_record_says_of_which_file_the_weights_were_converted(halves, tmp_path):
    network = ScaleEquivariantUNet3D(width=4, levels=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert run("convert", tmp_path / "model.pt", "--out", tmp_path / "converted", "--axes", "zyx") == 0
    assert run("train", *halves, "--out", tmp_path / "run", *TINY, "--init", tmp_path / "converted") == 0
    content = [(tmp_path / name).read_bytes() for name in ("converted/weights.safetensors", "model.pt")]
    weights, pickle = (hashlib.sha256(each).hexdigest() for each in content)
    expected = {"path": str(tmp_path / "converted"), "step": 0, "sha256": weights}
    expected["converted_from"] = {"name": "model.pt", "sha256": pickle}
    assert record(tmp_path / "run")["init"] == expected


@pytest.mark.parametrize("repeated", [True, False])
def test_a_run_is_resumed_without_what_it_began_with_and_the_record_still_says_it(halves, trained, tmp_path, repeated):
    arguments = [*halves, "--out", tmp_path / "new", *TINY]
    assert run("train", *arguments, "--checkpoint_every", "1", "--init", trained) == 0
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "step_00000002")
    began = record(tmp_path / "new")["init"]
    shutil.rmtree(trained)
    assert run("train", *arguments, *(["--init", trained] if repeated else []), "--resume") == 0
    assert record(tmp_path / "new")["init"] == began is not None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("readable", [True, False])
def test_a_record_that_does_not_say_what_a_run_began_with_is_not_taken_for_one_that_says_nothing(
    halves, trained, readable
):
    older = {name: value for name, value in record(trained).items() if name != "init"}
    (trained / "manifest.json").write_text(json.dumps(older) if readable else "")
    assert resume(halves, trained) == 0
    assert record(trained)["init"] == "not recorded"


# A run without a checkpoint ---------------------------------------------------------------------------


@pytest.fixture
def begun(original, tmp_path):
    """Return the folder of a run that was killed before its first checkpoint."""
    folder = shutil.copytree(original / "run", tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    return folder


def test_a_run_without_a_checkpoint_begins_again_and_is_an_unbroken_one(halves, begun, original, tmp_path, capsys):
    assert run("train", *halves, "--out", tmp_path / "unbroken", *TINY, "--checkpoint_every", "1") == 0
    assert resume(halves, begun) == 0
    assert f"{begun} has no checkpoint yet: the run begins at step 0" in capsys.readouterr().out
    assert_equal_runs(begun, tmp_path / "unbroken")
    assert [entry["outcome"] for entry in record(begun)["invocations"]] == ["finished", "finished"]


def other_seed(halves):
    halves += ["--seed", "5"]


def with_weights(halves):
    network = ScaleEquivariantUNet3D(width=4, levels=2)
    torch.save(network.state_dict(), halves[0].parent / "model.pt")
    converted = ["--out", halves[0].parent / "converted", "--axes", "zyx"]
    assert run("convert", halves[0].parent / "model.pt", *converted) == 0
    halves += ["--init", halves[0].parent / "converted"]


def change_a_voxel(halves):
    data = read_volume(halves[1]).data.copy()
    status = halves[1].stat()
    data[3, 4, 5] += 1e-3
    write_volume(halves[1], data, voxel_size=10.0, overwrite=True)
    # Neither its size nor its time gives it away.
    os.utime(halves[1], ns=(status.st_atime_ns, status.st_mtime_ns))


def swap_the_halves(halves):
    halves[:2] = halves[1::-1]


def change_the_tilts(halves):
    halves[3].write_text("-60\n10\n60\n")


def replace_the_tilt_file_by_a_range(halves):
    halves[3] = "-60,60"


def add_a_mask(halves):
    halves += ["--mask", write_volume(halves[0].parent / "mask.mrc", np.ones((18, 18, 18)), voxel_size=10.0)]


CHANGES = {
    "a voxel": (change_a_voxel, r"odd\.mrc is not the second that the run was started with: it was .*odd\.mrc of \d+"),
    "swapped": (swap_the_halves, r"odd\.mrc is not the first that the run was started with: it was .*even\.mrc"),
    "tilts": (change_the_tilts, r"other tilts: they were .*0\.0.*now .*10\.0.*start another one"),
    "a range": (replace_the_tilt_file_by_a_range, r"other tilts: they were .*now"),
    "a mask": (add_a_mask, r"the mask of the run was none, now .*mask\.mrc: give what the run was started with"),
}


@pytest.mark.fault(75)
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_resumed_with_another_input(halves, trained, capsys, name):
    change, message = CHANGES[name]
    change(halves)
    before = (trained / "losses.csv").read_bytes()
    assert resume(halves, trained) == 2
    assert re.search(message, capsys.readouterr().err)
    assert len(record(trained)["invocations"]) == 1
    assert (trained / "losses.csv").read_bytes().startswith(before[:40])


BEGINNINGS = CHANGES | {
    "a setting": (other_seed, r"manifest\.json is of a run with other settings: --seed was 0, now 5"),
    "initial weights": (
        with_weights,
        r"began with weights drawn from the seed, now with those of .*converted, step 0: give",
    ),
}


@pytest.mark.fault(75)
@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_run_without_a_checkpoint_does_not_begin_again_with_another_input(halves, begun, capsys, name):
    change, message = BEGINNINGS[name]
    change(halves)
    assert resume(halves, begun) == 2
    assert re.search(message, capsys.readouterr().err)
    assert len(record(begun)["invocations"]) == 1


@pytest.mark.fault(75)
def test_a_run_without_a_checkpoint_needs_the_weights_it_began_with(halves, begun, tmp_path, capsys):
    with_weights(halves)
    out = tmp_path / "new"
    assert run("train", *halves, "--out", out, *TINY, "--checkpoint_every", "1") == 0
    shutil.copytree(out, tmp_path / "unbroken")
    shutil.rmtree(out / "checkpoints")
    assert resume(halves[:-2], out) == 2
    message = r"began with those of .*converted, step 0, now with weights drawn from the seed: give"
    assert re.search(message, capsys.readouterr().err)
    assert resume(halves, out) == 0
    assert_equal_runs(out, tmp_path / "unbroken")


@pytest.mark.fault(75)
@pytest.mark.filterwarnings("default")
def test_a_run_without_a_checkpoint_and_with_an_unreadable_record_begins_again(halves, begun, capsys):
    (begun / "manifest.json").write_text("")
    assert resume(halves, begun) == 0
    assert "manifest.json cannot be read" in capsys.readouterr().err


@pytest.mark.fault(54)
@pytest.mark.parametrize(("how", "remedy"), [([], "already"), (["--resume"], "to resume from")])
def test_what_is_no_run_is_replaced_and_not_resumed(halves, begun, capsys, how, remedy):
    (begun / "manifest.json").unlink()
    assert run("train", *halves, "--out", begun, *TINY, *how) == 2
    said = capsys.readouterr().err
    assert re.search(rf"{remedy} ?\(losses\.csv, .*\): replace it with --overwrite, or choose another --out", said)
    assert "--resume" not in said


@pytest.mark.fault(75)
def test_inputs_may_be_moved_before_a_run_is_resumed(halves, trained):
    halves[1] = halves[1].rename(halves[1].with_name("moved.mrc"))
    assert resume(halves, trained) == 0


@pytest.mark.fault(75)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("content", [None, "", "[]", '{"inputs": {"first": 3}, "invocations": []}'])
def test_a_record_that_cannot_be_read_is_warned_of_and_made_anew(halves, trained, capsys, content):
    path = trained / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    assert resume(halves, trained) == 0
    assert re.search(r"warning: .*manifest\.json cannot be read .*inputs are still those", capsys.readouterr().err)
    assert record(trained)["inputs"].keys() == {"first", "second", "tilts"}


def test_what_is_checked_of_the_folder_is_checked_before_anything_is_made(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="no checkpoint in"),
        RunFolder(tmp_path / "a" / "b").held(resume=True),
    ):
        pytest.fail("it was taken")
    assert list(tmp_path.iterdir()) == []
