"""Prediction from and to files: the result is that in memory, and the stated memory suffices."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from asserting import assert_differs, normal
from crowding import on_device
from torch import nn

import equitomo
from equitomo.geometry import TiltGeometry
from equitomo.inference import Footprint, TiledPredictor, margin_errors, measured_margin
from equitomo.io import ZarrVoxels, creating_volume, read_volume
from equitomo.io.zarr_metadata import Level
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator, streamed
from equitomo.volumes import Filled

TILTS = (-60.0, 40.0)
SHAPES = [(24, 24, 24), (23, 23, 23), (27, 13, 31)]


class Identity(nn.Module):
    """A network of stride four that returns its input."""

    stride = 4

    def forward(self, x):
        return x


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ScaleEquivariantUNet3D(width=2, levels=2)


def predictor(model=None, physics=TILTS, **settings) -> TiledPredictor:
    settings = {"tile": 16, "margin": 4, "precision": "float32", "wedge": "global"} | settings
    return TiledPredictor(network() if model is None else model, physics, **settings)


def mapped(path, values, dtype=np.float32):
    values.astype(dtype).tofile(path)
    return np.memmap(path, dtype, "r", shape=values.shape)


def half(shape, seed=0):
    return normal(*shape, seed=seed, dtype=torch.float32).numpy()


# Every shape in both modes, the other variants with one shape.
CASES = [(shape, wedge, 2, "ball") for shape in SHAPES for wedge in ("local", "global", "tile")]
CASES += [(SHAPES[-1], "global", 2, "box"), (SHAPES[-1], "global", 1, "ball"), (SHAPES[-1], "global", 3, "ball")]
CASES += [(SHAPES[-1], "local", 3, "box")]


@pytest.mark.parametrize(("shape", "wedge", "passes", "support"), CASES)
@pytest.mark.parametrize("average_first", [False, True])
def test_from_and_to_files_it_is_the_same(shape, wedge, passes, average_first, support, tmp_path):
    physics = PaddedMissingWedgeOperator((8, 8, 8), TILTS, support=support)
    predict = predictor(physics=physics, wedge=wedge, passes=passes, average_first=average_first)
    halves = [half(shape, seed) for seed in (0, 1)]
    expected = predict(*halves)
    out = np.memmap(tmp_path / "out.raw", np.float32, "w+", shape=shape)
    out[:] = 7  # what is there must not count
    maps = [mapped(tmp_path / f"{seed}.raw", values) for seed, values in enumerate(halves)]
    assert predict(*maps, out=out, scratch=tmp_path) is out
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.raw", "1.raw", "out.raw"]
    for values, source in zip(halves, maps, strict=True):
        np.testing.assert_array_equal(values, source)


@pytest.mark.parametrize("shape", [(1, 9, 10), (8, 1, 3), (9, 10, 1), (2, 9, 2), (3, 2, 11)])
@pytest.mark.parametrize(("support", "low_pass"), [("ball", None), ("box", None), ("ball", 0.3), ("box", 0.3)])
def test_thin_volumes_tilted_about_x_are_the_same_from_files(shape, support, low_pass, tmp_path):
    geometry = TiltGeometry.from_range(*TILTS, tilt_axis="x")
    physics = PaddedMissingWedgeOperator((8, 8, 8), geometry, support=support, low_pass=low_pass)
    x = half(shape)
    source = mapped(tmp_path / "x.raw", x)
    for wedge, passes in itertools.product(("local", "global", "tile"), (1, 2, 3)):
        predict = predictor(Identity(), physics, tile=8, margin=0, wedge=wedge, passes=passes, local_tile=8)
        out = np.memmap(tmp_path / "out.raw", np.float32, "w+", shape=shape)
        predict(source, out=out, scratch=tmp_path)
        np.testing.assert_allclose(out, predict(x), rtol=0, atol=1e-6 * np.abs(x).max())
        if wedge == "global":
            # In memory too it goes by planes: the operator of the whole volume is the other way to the same.
            expected = torch.from_numpy(x)[None, None]
            for _ in range(passes - 1):
                expected = physics.resized(shape).A(expected)
            np.testing.assert_allclose(out, expected[0, 0], rtol=0, atol=1e-6 * np.abs(x).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("support", ["ball", "box"])
@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
def test_with_the_identity_two_passes_are_the_operator(shape, support, kind, tmp_path):
    x = half(shape)
    operator = kind(shape, TILTS, support=support)
    out = np.memmap(tmp_path / "out.raw", np.float32, "w+", shape=shape)
    predictor(Identity(), kind((9, 8, 7), TILTS, support=support))(x, out=out, scratch=tmp_path)
    expected = operator.A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6 * np.abs(x).max())


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, ">f4"])
def test_intensities_are_scaled_where_they_are_read_and_back_where_they_are_written(border, dtype, tmp_path):
    raw = np.rint(100 * half((20, 18, 22)) + 40)
    predict = predictor(border=border, passes=2)
    expected = predict((raw.astype(np.float32) - 40) / 100) * 100 + 40
    found = predict(mapped(tmp_path / "a.raw", raw, dtype), intensities=(40.0, 100.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.fault(59)
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    x = half((24, 24, 24))
    with pytest.raises(KeyboardInterrupt), creating_volume(tmp_path / "out.mrc", x.shape) as out:
        predictor()(x, out=out, scratch=tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tiles_go_into_the_file_that_a_whole_volume_gives(dtype, tmp_path):
    x = half((24, 20, 28))
    predict = predictor()
    with creating_volume(tmp_path / "out.mrc", x.shape, dtype=dtype, voxel_size=8.0) as out:
        predict(x, out=out, scratch=tmp_path)
    expected = predict(x)
    np.testing.assert_allclose(read_volume(tmp_path / "out.mrc").data, expected.astype(dtype), rtol=1e-3, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mrc"]


@pytest.mark.parametrize("suffix", ["mrc", "zarr"])
def test_a_volume_of_a_file_is_read_tile_by_tile(suffix, tmp_path):
    pytest.importorskip("zarr")
    x = half((24, 20, 28))
    equitomo.write_volume(tmp_path / f"x.{suffix}", x, voxel_size=8.0)
    given, predict = read_volume(tmp_path / f"x.{suffix}"), predictor()
    for source in (given, Filled(given, 0.0)):
        np.testing.assert_array_equal(predict(source), predict(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: np.zeros((5, 5, 5), np.float32),
            r"`out` must be float32 of shape \(9, 9, 9\), got float32",
        ),
        (lambda x: np.zeros(x.shape, np.float16), "`out` must be float32 of shape .* got float16"),
        (lambda x: x, "`out` must not be the input"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(make, message):
    x = half((9, 9, 9))
    with pytest.raises(ValueError, match=message):
        predictor()(x, out=make(x))


# Out of memory


class Limited(nn.Module):
    """A network on a device that holds only so many voxels at once."""

    def __init__(self, limit, error, inner) -> None:
        super().__init__()
        self.limit, self.error, self.inner, self.seen = limit, error, inner, []
        self.stride = inner.stride

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        if x.numel() > self.limit:
            raise self.error
        return self.inner(x)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.fault(64)
@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "host", "allocator"])
@pytest.mark.parametrize("wedge", ["global", "tile"])
def test_out_of_memory_first_halves_the_batch(error, wedge, caplog):
    x = half((24, 24, 24))
    limited = Limited(16**3, error, network())
    settings = {"tile": 16, "margin": 4, "wedge": wedge}
    expected = predictor(batch=1, **settings)(x)
    found = predictor(limited, batch=4, **settings)(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert {shape[2:] for shape in limited.seen} == {(16, 16, 16)}
    # What did not fit once is not tried again.
    assert [len(np.flatnonzero([shape[0] == n for shape in limited.seen])) for n in (4, 2)] == [1, 1]
    assert "out of memory with 4 tiles of 16 x 16 x 16 voxels on cpu: retrying with 2 tiles of" in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.fault(64)
def test_out_of_memory_then_divides_the_tile_without_a_trace(caplog):
    """Parts overlap by the margin of ten voxels that this network needs: its reach, so all is the same."""
    x = half((40, 37, 17))
    settings = {"tile": 48, "margin": 10, "batch": 2, "passes": 1}
    expected = predictor(**settings)(x)
    limited = Limited(30_000, ERRORS[0], network())
    found = predictor(limited, **settings)(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert max(np.prod(shape) for shape in limited.seen[-4:]) <= limited.limit
    assert "retrying with 1 tile of 40 x 40 x 38 voxels in 2 overlapping parts" in caplog.text


def test_without_the_overlap_there_would_be_a_trace():
    """The control: the same parts without what lies around them differ."""
    x = half((24, 24, 48))
    settings = {"tile": 48, "margin": 0, "passes": 1}
    limited = Limited(24 * 24 * 40, MemoryError(), network())
    whole, parts = (torch.from_numpy(predictor(model, **settings)(x)) for model in (network(), limited))
    assert_differs(parts, whole, 1e-2)


@pytest.mark.fault(64)
def test_what_cannot_be_divided_further_raises_what_the_device_said():
    limited = Limited(100, MemoryError("nothing left"), network())
    with pytest.raises(MemoryError, match="nothing left"):
        predictor(limited)(half((20, 20, 20)))
    assert min(np.prod(shape) for shape in limited.seen) < 16**3


@pytest.mark.fault(64)
def test_other_errors_are_not_taken_for_a_lack_of_memory():
    limited = Limited(0, RuntimeError("expected 2 channels"), network())
    with pytest.raises(RuntimeError, match="channels"):
        predictor(limited, batch=4)(half((20, 20, 20)))
    assert len(limited.seen) == 1


@pytest.mark.parametrize("wedge", ["local", "global", "tile"])
def test_tiles_for_which_the_device_has_no_room_go_there_in_smaller_batches(wedge, crowded, caplog):
    """The device holds neither the batch nor the joined results of its halves."""
    x = half((24, 24, 40))
    settings = {"physics": MissingWedgeOperator((8, 8, 8), TILTS), "wedge": wedge, "local_tile": 16}
    network = nn.Conv3d(1, 1, 1)
    expected = predictor(network, **settings)(x)
    crowded(2 * 16**3)
    found = predictor(on_device(network), batch=4, **settings)(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert "out of memory with 4 tiles of 16 x 16 x 16 voxels on cuda: retrying with 2 tiles of" in caplog.text


@pytest.mark.parametrize("wedge", ["local", "tile"])
def test_a_wedge_for_which_the_device_has_no_room_is_emptied_on_the_cpu(wedge, crowded, caplog):
    """A tile cannot be cut for it, and in its padded grid it is eight times as large as for the network."""
    x = half((24, 24, 24))
    network = nn.Conv3d(1, 1, 1)
    expected = predictor(network, wedge=wedge)(x)
    crowded(16**3)
    found = predictor(on_device(network), wedge=wedge)(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    tile = "1 tile of 16 x 16 x 16 voxels"
    said = f"out of memory with {tile} on cuda: retrying with {tile} on cpu"
    assert [record.message for record in caplog.records if "tile" in record.message] == [said]


@pytest.mark.parametrize("wedge", ["local", "tile"])
def test_a_wedge_for_which_the_cpu_has_no_room_raises_what_torch_said(wedge, monkeypatch):
    def full(operator, x):
        raise MemoryError("nothing left")

    monkeypatch.setattr(PaddedMissingWedgeOperator, "A", full)
    with pytest.raises(MemoryError, match="nothing left"):
        predictor(wedge=wedge)(half((20, 20, 20)))


# Margins


@pytest.mark.parametrize(("n", "reach"), [(1, 0), (3, 1), (5, 2), (9, 4)])
def test_the_margin_measured_is_the_reach_of_a_convolution(n, reach):
    torch.manual_seed(0)
    model = nn.Conv3d(1, 1, n, padding=n // 2, bias=False)
    predict = predictor(model)
    x = half((20, 33, 18))
    assert measured_margin(predict, x, 1e-5, largest=8, core=8) == reach
    errors = margin_errors(predict, torch.from_numpy(x), largest=8, core=8)
    assert list(errors) == list(range(8))
    assert all((error < 1e-5) == (margin >= reach) for margin, error in errors.items())


def test_margins_are_multiples_of_the_stride_and_looser_tolerances_give_smaller_ones():
    predict = predictor()
    x = half((40, 40, 40))
    errors = margin_errors(predict, x, largest=16, core=16, centre=(5, 20, 39))
    assert list(errors) == list(range(0, 16, 2))
    assert errors[0] > errors[4] > errors[10]
    assert errors[10] < 1e-6
    tolerance = (errors[4] + errors[6]) / 2
    assert measured_margin(predict, x, tolerance, largest=16, core=16, centre=(5, 20, 39)) == 6


@pytest.mark.parametrize(
    ("volume", "tolerance", "message"),
    [(np.zeros((20, 20, 20), np.float32), 1e-3, "gives zeros around voxel"), (half((20, 20, 20)), 0.0, "no margin up")],
)
def test_margins_that_cannot_be_measured_are_refused(volume, tolerance, message):
    with pytest.raises(ValueError, match=message):
        measured_margin(predictor(), volume, tolerance, largest=6, core=8)


# Memory

_MEASURED = """
import sys
import numpy as np, torch
from pathlib import Path
from equitomo import TiledPredictor, read_volume
from equitomo.inference import Footprint
from equitomo.io import creating_volume
from equitomo.physics import streamed

def peak():
    # Not ru_maxrss, which starts with that of the process that started this one.
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

class Identity(torch.nn.Module):
    stride = 8
    def forward(self, x):
        return x

torch.set_num_threads(1)
# Slabs scaled down as the volume is.
streamed.SLAB_BYTES = 1 << 20
folder, wedge, batch, dtype, *stores = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
shape = (96, 192, 256)
halves = []
for name in ("first.raw", "second.raw"):
    with (folder / name).open("wb") as file:
        file.truncate(4 * 96 * 192 * 256)
    halves.append(np.memmap(folder / name, np.float32, "r", shape=shape))
if stores:
    halves = [read_volume(store).data for store in stores]
predict = TiledPredictor(Identity(), (-60.0, 60.0), tile=64, margin=8, wedge=wedge, precision="float32", batch=batch)
predict(np.zeros((40, 40, 40), np.float32))
before = peak()
with creating_volume(folder / "out.mrc", shape, dtype=dtype) as out:
    predict(*halves, out=out, scratch=folder)
print(peak() - before, Footprint.of(predict, shape, sources=halves).memory)
"""

MEASURED = [
    ("local", 1, "float32", False),
    ("global", 4, "float16", False),
    ("tile", 1, "float32", False),
    ("global", 1, "float32", True),
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux states them")
@pytest.mark.parametrize(("wedge", "batch", "dtype", "in_stores"), MEASURED)
def test_the_memory_stated_is_kept(wedge, batch, dtype, in_stores, tmp_path):
    stores = [str(tmp_path / f"{name}.zarr") for name in ("first", "second")] if in_stores else []
    for store in stores:
        pytest.importorskip("zarr")
        # Of chunks of 128 in all sections: six times as large as a tile.
        equitomo.write_volume(store, half((96, 192, 256)), voxel_size=10.0)
    # The sources under test, whatever is installed.
    environment = os.environ | {"PYTHONPATH": str(Path(equitomo.__file__).parents[1])}
    command = [sys.executable, "-c", _MEASURED, str(tmp_path), wedge, str(batch), dtype, *stores]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    taken, stated = map(int, done.stdout.split())
    assert 0 < taken <= stated


@pytest.mark.parametrize("wedge", ["local", "global"])
def test_the_memory_stated_is_less_than_what_lies_in_files(wedge, monkeypatch):
    """Halves, result, the volume between the passes and its planes are six volumes; in files they do not count."""
    monkeypatch.setattr(streamed, "SLAB_BYTES", 1 << 20)
    predict = TiledPredictor(nn.Identity(), (-60.0, 60.0), tile=64, margin=8, wedge=wedge, stride=8)
    assert Footprint.of(predict, (96, 192, 256)).memory < 4 * 4 * 96 * 192 * 256


def in_store(folder, shape, chunks):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(folder / "x.zarr", shape=shape, chunks=chunks, dtype="f4")
    array[:] = half(shape)
    level = Level(folder / "x.zarr", (0, 1, 2), 3, (1.0,) * 3, (0.0,) * 3)
    return ZarrVoxels(folder / "x.zarr", array, level, permissive=True)


def test_the_footprint_counts_the_chunks_that_are_decoded_for_a_tile(tmp_path):
    stored = in_store(tmp_path, (40, 40, 100), (20, 40, 30))
    predict = predictor(Identity(), passes=1, batch=2)
    plain, counted = (Footprint.of(predict, stored.shape, sources=sources).memory for sources in ([], [stored]))
    # A tile of 16 lies in two chunks along z and x; up to four copies, and as much again for the allocator.
    assert counted - plain == 2 * 2 * 8 * 4 * 20 * 40 * 30
    # There are no more chunks than the volume has, nor more at once than the package decodes.
    assert stored.bytes_to_read((40, 40, 100)) == 2 * 1 * 4 * 8 * 4 * 20 * 40 * 30
    small = in_store(tmp_path / "small", (40, 40, 100), (4, 4, 4))
    assert small.bytes_to_read((40, 40, 100)) == 10 * 8 * 4 * 4**3


def test_a_warning_is_issued_for_chunks_far_larger_than_a_tile(tmp_path):
    stored = in_store(tmp_path, (40, 44, 48), (40, 44, 48))
    predict = predictor(Identity(), passes=1)
    with pytest.warns(UserWarning, match=r"x.zarr: whole chunks of \(40, 44, 48\) voxels are decoded anew for each"):
        found = predict(stored)
    np.testing.assert_allclose(found, half((40, 44, 48)), rtol=0, atol=1e-6)


def test_more_voxels_need_hardly_more_memory_and_more_disk():
    predict = predictor(Identity(), tile=160, margin=24)
    small, large = Footprint.of(predict, (232, 464, 464)), Footprint.of(predict, (464, 928, 928))
    assert large.memory < 2 * small.memory
    assert large.memory < 2**30
    assert 7.9 * small.disk < large.disk < 8 * small.disk
    in_memory = Footprint.of(predict, (464, 928, 928), streamed=False)
    assert in_memory.memory > 5e9
    assert in_memory.disk == 0


def test_the_footprint_counts_what_is_between_passes():
    shape, volume = (30, 40, 50), 4 * 30 * 40 * 50
    box = PaddedMissingWedgeOperator((8, 8, 8), TILTS, support="box")
    disks = [Footprint.of(predictor(Identity(), box, passes=n), shape).disk for n in (1, 2, 3, 4)]
    assert disks == [0, volume, 2 * volume, 2 * volume]
    assert Footprint.of(predictor(Identity(), wedge="tile"), shape).disk == 0
    # The estimate of the first pass and that of the second, for as many passes as there are.
    disks = [Footprint.of(predictor(Identity(), box, passes=n, wedge="local"), shape).disk for n in (1, 2, 3)]
    assert disks == [0, 2 * volume, 2 * volume]
    planes = 8 * 41 * 30 * 50
    assert Footprint.of(predictor(Identity()), shape).disk == volume + planes


def test_margins_can_be_measured_in_the_intensities_of_a_file():
    predict = predictor()
    x = half((40, 40, 40))
    settings = {"largest": 16, "core": 16}
    expected = margin_errors(predict, x, **settings)
    found = margin_errors(predict, 300 + 40 * x, intensities=(300.0, 40.0), **settings)
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-5)
    assert margin_errors(predict, 300 + 40 * x, **settings) != pytest.approx(expected, rel=1e-2, abs=1e-5)
