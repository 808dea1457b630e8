"""Volumes in memory and in files behind one protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equitomo.io import read_volume, release, write_volume
from equitomo.volumes import Filled, Voxels, as_voxels, middle_of

SHAPE = (6, 7, 8)
INDICES = [(slice(1, 4), slice(None), slice(2, 3)), (3, slice(None), slice(1, 5)), (0,), slice(2, 5)]


def numbers(dtype="f4"):
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def in_file(folder, suffix):
    return read_volume(write_volume(folder / f"volume{suffix}", numbers(), voxel_size=1.0))


def as_map(folder):
    array = np.memmap(folder / "voxels", "f4", "w+", shape=SHAPE)
    array[...] = numbers()
    return array


KINDS = {
    "array": lambda folder: numbers(),
    "reversed": lambda folder: numbers()[:, ::-1][:, ::-1],
    "columns first": lambda folder: np.asfortranarray(numbers()),
    "map": as_map,
    "tensor": lambda folder: torch.from_numpy(numbers()),
    "with gradient": lambda folder: torch.from_numpy(numbers()).requires_grad_(),
    "bfloat16": lambda folder: torch.from_numpy(numbers()).bfloat16(),
    "mrc": lambda folder: in_file(folder, ".mrc"),
    "zarr": lambda folder: in_file(folder, ".zarr"),
    "zarr voxels": lambda folder: in_file(folder, ".zarr").data,
    "filled": lambda folder: Filled(in_file(folder, ".mrc"), 0.0),
}


@pytest.fixture(params=KINDS)
def given(request, tmp_path):
    if "zarr" in request.param:
        pytest.importorskip("zarr")
    return KINDS[request.param](tmp_path)


def expected(given):
    return torch.from_numpy(numbers()).bfloat16().float().numpy() if "bfloat16" in str(given.dtype) else numbers()


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_slices_are_those_of_the_array(given, index):
    voxels = as_voxels(given)
    assert isinstance(voxels, Voxels)
    assert (voxels.shape, voxels.dtype) == (SHAPE, np.dtype("f4"))
    block = voxels[index]
    assert isinstance(block, np.ndarray)
    np.testing.assert_array_equal(block, expected(given)[index])


@pytest.mark.parametrize("n_bytes", [1, 500, 1 << 20])
def test_slabs_hold_every_voxel_once_and_are_no_larger_than_asked(given, n_bytes):
    found, times = np.zeros(SHAPE, "f4"), np.zeros(SHAPE, int)
    for place, block in as_voxels(given).slabs(n_bytes):
        assert block.shape == found[place].shape
        assert "zarr" in str(type(given)) or block.nbytes <= max(n_bytes, 4 * 8 * 8 * 7)
        found[place] = block
        times[place] += 1
    np.testing.assert_array_equal(found, expected(given))
    assert (times == 1).all()


def test_the_middle_is_float32_on_the_cpu(given):
    middle = middle_of(given, 4)
    assert (middle.dtype, middle.shape) == (torch.float32, (4, 4, 4))
    np.testing.assert_array_equal(middle.numpy(), expected(given)[1:5, 1:5, 2:6])
    assert middle_of(given, 100).shape == SHAPE


def test_the_middle_is_a_copy():
    array = numbers()
    middle_of(array, 100).zero_()
    np.testing.assert_array_equal(array, numbers())


def test_what_satisfies_the_protocol_is_not_wrapped(tmp_path):
    volume = in_file(tmp_path, ".mrc")
    assert as_voxels(volume) is volume


@pytest.mark.fault(19)
def test_voxels_that_are_no_numbers_may_be_filled():
    array = numbers()
    array[1, 2, 3], array[5, 0, 0] = np.nan, np.inf
    filled = Filled(as_voxels(array), 4.5)
    wanted = np.where(np.isfinite(array), array, 4.5)
    np.testing.assert_array_equal(filled[:, :, :], wanted)
    for place, block in filled.slabs(100):
        np.testing.assert_array_equal(block, wanted[place])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([[[1.0]]], TypeError, "must be a tensor, an array or voxels in a file, got list"),
        (np.zeros((4, 4)), ValueError, r"must have the axes \(z, y, x\), got shape \(4, 4\)"),
        (torch.zeros(1, 4, 4, 4), ValueError, r"got shape \(1, 4, 4, 4\)"),
    ],
)
def test_what_is_no_volume_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        as_voxels(given)


STATUS = Path("/proc/self/status")


def resident():
    """Bytes of maps of files that are in memory."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux to say what is resident")
@pytest.mark.parametrize(
    "wrap", [lambda volume: volume, lambda volume: as_voxels(volume.data), lambda volume: Filled(volume, 0.0)]
)
def test_the_memory_of_a_map_is_released_whatever_is_around_it(wrap, tmp_path):
    shape = (64, 256, 256)
    path = tmp_path / "volume.mrc"
    voxels = wrap(read_volume(write_volume(path, np.ones(shape, np.float32), voxel_size=1.0)))
    before = resident()
    assert float(voxels[:, :, :].sum()) == 1 << 22
    assert resident() - before > 0.9 * (4 << 22)
    release(voxels)
    assert resident() - before < 0.1 * (4 << 22)


def test_releasing_what_is_not_mapped_does_nothing(tmp_path):
    volume = in_file(tmp_path, ".mrc")
    release(volume, Filled(volume, 0.0), as_voxels(numbers()), as_voxels(torch.from_numpy(numbers())))
    np.testing.assert_array_equal(volume[0], numbers()[0])
