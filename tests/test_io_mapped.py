"""Volumes written piece by piece, and arrays that live in files."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from equitomo.io import creating_volume, read_volume, release, scratch_array, write_volume

SHAPE = (4, 5, 6)
STATUS = Path("/proc/self/status")
VALUES = np.linspace(-7.5, 11.25, 120).astype(np.float32).reshape(SHAPE)


def fill(array):
    """In an order in which no file is written."""
    for z in (2, 0, 3, 1):
        array[z, :, 3:] = VALUES[z, :, 3:]
        array[z, :, :3] += VALUES[z, :, :3]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_in_pieces_a_file_is_written_as_at_once(dtype, order, tmp_path):
    record = read_volume(write_volume(tmp_path / "a.mrc", VALUES, voxel_size=(3.0, 2.0, 1.0))).header.record
    record = record.astype(record.dtype.newbyteorder(order))
    record["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    (tmp_path / "in.mrc").write_bytes(record.tobytes() + VALUES.astype(f"{order}f4").tobytes())
    like = read_volume(tmp_path / "in.mrc")
    whole = write_volume(tmp_path / "whole.mrc", VALUES, like=like, dtype=dtype, label="a label")
    with creating_volume(tmp_path / "pieces.mrc", SHAPE, like=like, dtype=dtype, label="a label") as data:
        assert data.dtype.itemsize == 4
        fill(data)
    assert (tmp_path / "pieces.mrc").read_bytes() == whole.read_bytes()


@pytest.mark.fault(59)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_in_pieces_is_valid_at_real_sizes(dtype, tmp_path):
    made = np.random.default_rng(0).normal(0, 1, (64, 64, 64))
    with creating_volume(tmp_path / "out.mrc", made.shape, voxel_size=1, dtype=dtype) as data:
        data[:] = made
    report = io.StringIO()
    assert mrcfile.validate(tmp_path / "out.mrc", print_file=report), report.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_block_that_is_left_by_an_error_leaves_the_old_file_alone(dtype, error, tmp_path):
    path = write_volume(tmp_path / "out.mrc", VALUES, voxel_size=1)
    before = path.read_bytes()
    with pytest.raises(error), creating_volume(path, SHAPE, dtype=dtype, overwrite=True) as data:
        fill(data)
        raise error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_has_no_name_before_the_end(tmp_path):
    with creating_volume(tmp_path / "out.mrc", SHAPE, voxel_size=1) as data:
        fill(data)
        assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.mrc"]


@pytest.mark.fault(57)
def test_room_on_the_disk_is_claimed_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), creating_volume(tmp_path / "out.mrc", SHAPE):
        raise AssertionError("no work may begin")
    with pytest.raises(OSError, match="cannot keep 480 bytes of intermediate results there: No space left") as caught:
        scratch_array(tmp_path, SHAPE)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_claim_room_is_used_all_the_same(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    array = scratch_array(tmp_path, SHAPE)
    fill(array)
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.fault(53, 55)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": (4, 5)}, ValueError, "three axes"),
        ({"shape": (4, 0, 5)}, ValueError, "none empty"),
        ({"dtype": "int8"}, ValueError, "float32"),
        ({"path": "a.mrc.gz"}, ValueError, "packed files are not written"),
        ({"path": "nowhere/a.mrc"}, FileNotFoundError, "cannot write in the folder"),
    ],
)
def test_a_file_that_cannot_be_is_refused(arguments, error, message, tmp_path):
    arguments = {"path": "a.mrc", "shape": SHAPE} | arguments
    path, shape = tmp_path / arguments.pop("path"), arguments.pop("shape")
    with pytest.raises(error, match=message), creating_volume(path, shape, **arguments):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [True, False])
def test_a_scratch_array_holds_zeros_and_leaves_no_name(folder, tmp_path):
    array = scratch_array(tmp_path if folder else None, SHAPE, np.complex64)
    assert isinstance(array, np.memmap) == folder
    assert array.shape == SHAPE
    assert array.dtype == np.complex64
    assert not array.any()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_releasing_keeps_what_was_written(mode, tmp_path):
    path = tmp_path / "a.raw"
    np.zeros(SHAPE, np.float32).tofile(path)
    array = np.memmap(path, np.float32, mode, shape=SHAPE)
    fill(array)
    release(array, array[1:, ::2].transpose(2, 0, 1), VALUES, None)
    np.testing.assert_array_equal(array, VALUES)


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux to say what is resident")
def test_releasing_gives_memory_back(tmp_path):
    def resident():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))

    array = scratch_array(tmp_path, (64, 256, 512))
    before = resident()
    array += 1
    assert resident() - before > 0.9 * array.nbytes
    # A view reaches the same file.
    release(array[3:, ::2].swapaxes(0, 2))
    assert resident() - before < 0.1 * array.nbytes
    assert float(array[63, 255, 511]) == 1
