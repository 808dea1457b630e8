"""Disks that fill while the work goes on: small file systems in memory, and a file that takes what is left of them."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from commanding import run
from kills import assert_equal_runs
from making import noisy_halves

import equitomo
from equitomo import read_volume, report, write_volume
from equitomo.io import bytes_to_create, creating_volume, files
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.training.checkpoint import load_checkpoint

SETTINGS = [
    *("--preset", "tiny", "--side", "16", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--margin", "4"),
    *("--batch", "1"),
    *("--steps", "4", "--warmup", "0", "--checkpoint_every", "1", "--preview_every", "2"),
    *("--device", "cpu", "--precision", "float32"),
]
TILED = ["--tile", "24", "--tile_margin", "4"]
SHAPE = (18, 20, 22)
PAGE = 4096
UNSHARED = ["unshare", "--map-root-user", "--mount"]


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of 4 MB and return its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, leave=0):
    """Fill the disk but for ``leave`` bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - leave))


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    pair = zip(("even", "odd"), noisy_halves(SHAPE), strict=True)
    return [write_volume(folder / f"{name}.mrc", half.numpy(), voxel_size=10.0) for name, half in pair]


@pytest.fixture(scope="module")
def whole(halves, tmp_path_factory):
    """Make a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run("reconstruct", *halves, "--tilts", "-60,60", "--out", out, *SETTINGS, *TILED) == 0
    return out


def reconstruct(halves, out, *arguments):
    return run("reconstruct", *halves, "--tilts", "-60,60", "--out", out, *SETTINGS, *TILED, *arguments)


def assert_sound(out, steps):
    """Make sure that exactly these checkpoints exist and load, and that nothing is half written."""
    assert not [name for name in names_in(out.parent) if "partial" in name or name.endswith(".lock")]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [f"step_{step:08d}" for step in steps]
    for step in steps:
        assert load_checkpoint(out / "checkpoints" / f"step_{step:08d}").state["step"] == step


def assert_goes_on(halves, out, whole):
    (out.parent / "filler").unlink()
    assert reconstruct(halves, out, "--resume") == 0
    assert_equal_runs(out, whole)
    assert (out / "reconstruction.mrc").read_bytes() == (whole / "reconstruction.mrc").read_bytes()


# Nothing is left, or the third checkpoint finds room for a part of itself.
@pytest.mark.fault(57)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("leave", [0, 5 * PAGE])
def test_training_ends_with_its_checkpoints_whole_and_goes_on(disk, halves, whole, monkeypatch, capsys, leave):
    with monkeypatch.context() as patch:
        patch.setattr(report, "draw_preview", lambda path, *seen: fill(disk, leave))
        assert reconstruct(halves, disk / "run") == 74
    assert "No space left on device" in (said := capsys.readouterr().err)
    assert "free some space and continue with --resume" in said
    assert_sound(disk / "run", [1, 2])
    assert_goes_on(halves, disk / "run", whole)


@pytest.mark.fault(57)
@pytest.mark.filterwarnings("default")
def test_a_picture_for_which_there_is_no_room_is_not_begun(disk, halves, whole, monkeypatch):
    draw = report.draw_preview

    def after_filling(*seen):
        fill(disk)
        draw(*seen)

    with monkeypatch.context() as patch:
        patch.setattr(report, "draw_preview", after_filling)
        assert reconstruct(halves, disk / "run") == 74
    assert_sound(disk / "run", [1, 2])
    assert not list((disk / "run" / "previews").iterdir())
    assert_goes_on(halves, disk / "run", whole)


@pytest.mark.fault(57)
@pytest.mark.filterwarnings("default")
def test_a_result_for_which_there_is_no_room_any_more_is_not_left_half(disk, halves, whole, monkeypatch, capsys):
    looked = files.require_writable

    def then_filled(path, **settings):
        looked(path, **settings)
        fill(disk, PAGE)

    with monkeypatch.context() as patch:
        patch.setattr(files, "require_writable", then_filled)
        assert reconstruct(halves, disk / "run") == 74
    assert "continue with --resume" in capsys.readouterr().err
    assert "run/reconstruction.mrc" not in names_in(disk)
    assert_sound(disk / "run", [3, 4])
    assert_goes_on(halves, disk / "run", whole)


def predict(halves, whole, out, *arguments):
    return run("predict", *halves, "--run", whole, "--out", out, *SETTINGS[-4:], *TILED, *arguments)


def filling_while_it_predicts(disk, patch):
    forward = ScaleEquivariantUNet3D.forward

    def filling(self, x):
        fill(disk)
        return forward(self, x)

    patch.setattr(ScaleEquivariantUNet3D, "forward", filling)


@pytest.mark.fault(57)
def test_a_prediction_has_its_room_from_the_beginning(disk, halves, whole, monkeypatch):
    with monkeypatch.context() as patch:
        filling_while_it_predicts(disk, patch)
        assert predict(halves, whole, disk / "a.mrc") == 0
    assert names_in(disk) == {"a.mrc", "filler"}
    assert mrcfile.validate(disk / "a.mrc")
    np.testing.assert_allclose(read_volume(disk / "a.mrc").data, read_volume(whole / "reconstruction.mrc").data, 1e-5)


@pytest.mark.fault(57)
@pytest.mark.parametrize("before", [False, True])
def test_a_prediction_without_room_leaves_the_file_that_was_there(disk, halves, whole, monkeypatch, capsys, before):
    (disk / "a.mrc").write_bytes(b"precious")
    looked = files.require_writable

    def then_filled(path, **settings):
        looked(path, **settings)
        fill(disk)

    with monkeypatch.context() as patch:
        if before:
            patch.setattr(files, "require_writable", then_filled)
        else:
            # Sixteen bits are rounded at the end, into a file for which no room could be claimed before.
            filling_while_it_predicts(disk, patch)
        assert predict(halves, whole, disk / "a.mrc", "--dtype", "float16", "--overwrite") == 74
    assert names_in(disk) == {"a.mrc", "filler"}
    assert (disk / "a.mrc").read_bytes() == b"precious"
    said = capsys.readouterr().err
    assert "free some space and try again" in said
    assert "--resume" not in said


@pytest.mark.fault(57)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["a.mrc", "a.zarr"])
def test_the_room_that_is_asked_for_is_enough(disk, name, dtype):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    noise = np.random.default_rng(0).standard_normal((72, 64, 64), dtype=np.float32)
    # A page of each of the store's files and folders is not counted.
    fill(disk, bytes_to_create(disk / name, noise.shape, dtype) + 20 * PAGE)
    with creating_volume(disk / name, noise.shape, voxel_size=10.0, dtype=dtype) as data:
        data[:] = noise
    np.testing.assert_allclose(read_volume(disk / name).data, noise, atol=0 if dtype == "float32" else 3e-3)


@pytest.mark.fault(57)
def test_a_store_is_not_begun_without_room_for_what_it_is_made_from(disk):
    """The file system's own error would come late and leave something behind."""
    pytest.importorskip("zarr")
    fill(disk, bytes_to_create(disk / "a.zarr", (72, 64, 64)) - 16 * PAGE)
    with pytest.raises(OSError, match="the disk has") as refused, creating_volume(disk / "a.zarr", (72, 64, 64)):
        pytest.fail("nothing can be written")
    assert refused.value.errno == errno.ENOSPC
    assert names_in(disk) == {"filler"}


@pytest.mark.fault(57)
def test_all_of_this_is_tried_where_only_a_user_of_ones_own_may_mount():
    """A user who may not mount a file system may do so in a namespace, in which these tests run again."""
    trial = [*UNSHARED, sys.executable, "-c", ""]
    if os.geteuid() == 0 or shutil.which(trial[0]) is None or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("mounting is allowed without a namespace, or not even in one")
    environment = os.environ | {"PYTHONPATH": str(Path(equitomo.__file__).parents[1])}
    command = [*UNSHARED, sys.executable, "-m", "pytest", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout
