"""Operators by planes: the same operator, in whatever pieces, from and to files."""

from __future__ import annotations

import itertools
import logging
import re

import numpy as np
import pytest
import torch
from asserting import RANGES, normal
from crowding import CUDA

from equitomo.fourier import mirrored
from equitomo.geometry import MaskPlanes, TiltGeometry, WedgeMask, WedgePlanes
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator, apply_by_planes, streamed

KINDS = [MissingWedgeOperator, PaddedMissingWedgeOperator]
SHAPES = [(8, 8, 8), (7, 7, 7), (6, 9, 8), (12, 5, 11)]
GEOMETRIES = [
    *(TiltGeometry.from_range(*limits, axis) for limits in RANGES for axis in "yx"),
    TiltGeometry([-40, 0, 50], weights=[0.2, 1, 0.6]),
    TiltGeometry.from_range(-60, 60) | TiltGeometry([-40, 0, 50], "x", weights=[0.2, 1, 0.6]),
]


def mapped(path, values):
    values.tofile(path)
    return np.memmap(path, values.dtype, "r+", shape=values.shape)


def assert_same(actual, operator, x):
    expected = operator.A(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "shape", "axis"), list(itertools.product(KINDS, SHAPES, "yx")))
@pytest.mark.parametrize("support", ["ball", "box"])
@pytest.mark.parametrize("low_pass", [None, 0.3])
# One step at a time, a few, and all at once.
@pytest.mark.parametrize("slab", [1, 1500, 1 << 24])
def test_by_planes_it_is_the_same_operator(kind, shape, axis, support, low_pass, slab, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "SLAB_BYTES", slab)
    geometry = TiltGeometry.from_range(-50, 20, axis)
    x = normal(*shape, dtype=torch.float32).numpy()
    whole = kind(shape, geometry, support=support, low_pass=low_pass)
    in_place = mapped(tmp_path / "x.raw", x)
    # From an operator of another size, which has no mask of this one, and from that of this size.
    apply_by_planes(kind((5, 6, 7), geometry, support=support, low_pass=low_pass), in_place, in_place, scratch=tmp_path)
    assert_same(in_place, whole, x)
    out = np.empty_like(x)
    apply_by_planes(whole, x, out)
    assert_same(out, whole, x)
    assert [path.name for path in tmp_path.iterdir()] == ["x.raw"]


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_of_the_callers_need_not_be_symmetric_along_the_tilt_axis(shape, axis):
    operator = MissingWedgeOperator(shape, TiltGeometry.from_range(-50, 20, axis))
    x = normal(*shape, dtype=torch.float32).numpy()
    mask = normal(*shape, seed=1).abs()
    # Even, but along no axis alone.
    mask = (mask + mirrored(mask, (0, 1, 2)))[..., : shape[2] // 2 + 1]
    operator.update(mask=mask[None, None].float())
    out = np.empty_like(x)
    apply_by_planes(operator, x, out)
    assert_same(out, operator, x)


@pytest.mark.parametrize("axis", ["y", "x"])
def test_a_fan_has_the_extent_of_the_volume(axis):
    geometry = TiltGeometry([-40, -10, 0, 15, 50], axis)
    x = normal(9, 12, 10, dtype=torch.float32).numpy()
    operator = PaddedMissingWedgeOperator((4, 4, 4), geometry, sampling="fan", padding=1.5)
    out = np.empty_like(x)
    apply_by_planes(operator, x, out)
    assert_same(out, operator.resized(x.shape), x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"support": "ball"}, {"low_pass": 0.2}], ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_planes_are_those_of_the_mask_and_the_rest_is_empty(shape, geometry, settings, whole):
    wedge = WedgeMask(geometry, **settings)
    half = wedge(shape)
    planes = MaskPlanes(lambda: half, shape, half.shape) if whole else WedgePlanes(shape, wedge)
    assert planes.constant == (not settings and isinstance(geometry, TiltGeometry))
    expected = half.expand(shape[0], shape[1], shape[2] // 2 + 1).movedim(planes.axes.along, 0)
    expected = expected[: shape[planes.axes.along] // 2 + 1]
    if planes.constant:
        expected, n_planes = expected[:1], 1
    else:
        n_planes = planes.n_planes
    found = planes(0, n_planes)
    assert torch.equal(found[..., : expected.shape[-1]], expected[:n_planes])
    assert torch.equal(planes(n_planes - 1, n_planes)[0], found[-1])
    assert not expected[n_planes:].any()
    # Nothing is known beforehand of a mask that is made as a whole.
    assert whole or found[-1].any()


def test_a_mask_that_cannot_be_made_is_refused():
    x = np.zeros((6, 6, 6), np.float32)
    given = MissingWedgeOperator((8, 8, 8), (-60.0, 60.0))
    given.update(mask=given.mask)
    with pytest.raises(ValueError, match="mask was given for"):
        apply_by_planes(given, x, x)
    several = MissingWedgeOperator((6, 6, 6), (-60.0, 60.0))
    several.update(mask=several.mask.repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="masks for 2 samples and was given one volume"):
        apply_by_planes(several, x, x)


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path):
    x = np.zeros((6, 6, 6), np.float32)
    with pytest.raises(FileNotFoundError, match=r"cannot keep 1152 bytes of intermediate results .*nowhere"):
        apply_by_planes(MissingWedgeOperator((6, 6, 6), (-60.0, 60.0)), x, x, scratch=tmp_path / "nowhere")


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("support", ["ball", "box"])
def test_the_scratch_file_is_as_large_as_said(axis, support, monkeypatch):
    made = []
    monkeypatch.setattr(streamed, "scratch_array", lambda folder, *wanted: made.append(np.zeros(*wanted)) or made[-1])
    operator = PaddedMissingWedgeOperator((8, 8, 8), TiltGeometry.from_range(-60, 60, axis), support=support)
    x = np.zeros((6, 7, 9), np.float32)
    apply_by_planes(operator, x, x)
    assert streamed.streaming_needs(operator, x.shape)[1] == sum(array.nbytes for array in made)


# Out of memory


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("support", ["ball", "box"])
# Room for a few planes of the grid, and for not a single one.
@pytest.mark.parametrize(("room", "ends"), [(1024, "on cuda"), (100, "on cpu")])
def test_out_of_memory_makes_slabs_smaller_and_changes_nothing(axis, support, room, ends, crowded, caplog, tmp_path):
    geometry = TiltGeometry.from_range(-50, 20, axis)
    x = normal(12, 11, 10, dtype=torch.float32).numpy()
    operator = PaddedMissingWedgeOperator((8, 8, 8), geometry, support=support)
    in_place = mapped(tmp_path / "x.raw", x)
    crowded(room)
    apply_by_planes(operator, in_place, in_place, scratch=tmp_path, device=CUDA)
    assert_same(in_place, operator.resized(x.shape), x)
    messages = [record.message for record in caplog.records]
    assert messages[-1].endswith(ends)
    voxels = "12 x 11 x 10 voxels on cuda"
    first = rf"out of memory with 1[12] (sections|planes) of {voxels}: retrying with [56] \1 of {voxels}"
    assert re.fullmatch(first, messages[0])
    # What did not fit once is not tried again.
    assert len(set(messages)) == len(messages)
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def failing(error, monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise error

    monkeypatch.setattr(torch.fft, "rfft", fail)
    return calls


@pytest.mark.parametrize(("error", "n_calls"), [(MemoryError("nothing left"), 4), (RuntimeError("wrong sizes"), 1)])
def test_what_cannot_be_made_smaller_and_other_errors_are_raised(error, n_calls, monkeypatch):
    """On the CPU: with 8, 4, 2 and 1 planes."""
    calls = failing(error, monkeypatch)
    x = np.zeros((8, 8, 8), np.float32)
    with pytest.raises(type(error), match=str(error)):
        apply_by_planes(MissingWedgeOperator((8, 8, 8), (-60.0, 60.0), support="box"), x, x)
    assert len(calls) == n_calls
