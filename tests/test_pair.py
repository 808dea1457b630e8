"""Pairs of halves in files: one class, lazy or in memory, that reads each file no oftener than it must."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from making import noisy_halves

from equitomo import TiltGeometry, TomogramPair, diagnose, read_volume, specimen_mask, write_volume
from equitomo.datasets import HalfStatistics, ReadingStoppedError, read_geometry
from equitomo.volumes import as_voxels, middle_of

TILTS = (-60.0, 60.0)


def write_pair(folder, shape=(12, 12, 12), *, voxel_size=(10.0, 10.0), dtype=np.float32, suffix="mrc"):
    paths = []
    for label, half, size in zip(("even", "odd"), noisy_halves(shape), voxel_size, strict=True):
        data = (40 * half + 300).numpy().astype(dtype)
        paths.append(write_volume(folder / f"{label}.{suffix}", data, voxel_size=size))
    return paths


def lazy(paths, **settings):
    return TomogramPair.read(*paths, lazy=True, **{"tilts": TILTS} | settings)


class Counted:
    """Voxels that count the passes over them, and the voxels that were read otherwise."""

    def __init__(self, volume):
        self._voxels = as_voxels(volume)
        self.shape, self.dtype = self._voxels.shape, self._voxels.dtype
        self.passes, self.sliced = 0, 0

    def __getitem__(self, index):
        block = self._voxels[index]
        self.sliced += block.size
        return block

    def slabs(self, n_bytes=1000):
        self.passes += 1
        return self._voxels.slabs(n_bytes)


# Lazy and in memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12, 12), (9, 11, 14)])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("is_lazy", [True, False])
def test_a_pair_of_files_is_the_pair_of_their_voxels(tmp_path, shape, dtype, is_lazy):
    paths = write_pair(tmp_path, shape, dtype=dtype)
    pair = TomogramPair.read(*paths, tilts=TILTS, lazy=is_lazy)
    assert pair.is_lazy == is_lazy
    expected = TomogramPair(*(np.array(read_volume(path).data) for path in paths), TILTS, voxel_size=10.0)
    assert torch.equal(pair.volumes, expected.volumes)
    assert not pair.is_lazy
    assert pair.scale == expected.scale
    assert (pair.shape, pair.voxel_size, pair.geometries) == (shape, (10.0, 10.0, 10.0), expected.geometries)
    assert pair.n_bytes == 8 * np.prod(shape)


@pytest.mark.parametrize("normalization", ["robust", "scale"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_reading_again_gives_the_same_voxels_to_the_bit(tmp_path, normalization, dtype):
    pair = TomogramPair.read(*write_pair(tmp_path, dtype=dtype), tilts=TILTS, normalization=normalization)
    assert torch.equal(pair.load_volumes(), pair.volumes)
    volumes = pair.volumes
    pair.release()
    assert pair.is_lazy
    assert torch.equal(pair.volumes, volumes)


def test_the_scale_comes_first_or_with_the_volumes(tmp_path):
    paths = write_pair(tmp_path)
    before, after = lazy(paths), lazy(paths)
    assert before.scale == TomogramPair.read(*paths, tilts=TILTS).scale
    assert torch.equal(before.load_volumes(), after.load_volumes())
    assert before.scale == after.scale


def test_halves_are_given_back_as_they_came(tmp_path):
    paths = write_pair(tmp_path)
    pair = lazy(paths)
    for path, half in zip(paths, pair.halves, strict=True):
        assert np.array_equal(half[:, 2:5, :], read_volume(path).data[:, 2:5])
    assert pair.files["first"].path == paths[0]
    assert pair.labels == tuple(map(str, paths))
    assert pair.name == f"{paths[0]} and {paths[1]}"


def test_a_volume_with_other_voxels_is_not_read_from_its_file(tmp_path):
    first, second = (read_volume(path) for path in write_pair(tmp_path))
    changed = replace(first, voxels=first.data + 1)
    expected = TomogramPair(changed.data, second.data, TILTS)
    assert torch.equal(TomogramPair(changed, second, TILTS).volumes, expected.volumes)
    assert torch.equal(TomogramPair(changed, second, TILTS, lazy=True).volumes, expected.volumes)


@pytest.mark.parametrize("asked", ["first reading", "reading again"])
def test_reading_stops_where_it_is_told_to(tmp_path, asked):
    pair = lazy(write_pair(tmp_path))
    if asked == "reading again":
        assert pair.scale
    with pytest.raises(ReadingStoppedError):
        pair.load_volumes(lambda: True)
    assert pair.load_volumes().shape == (2, 12, 12, 12)


# How often a file is read ----------------------------------------------------------------------------


def counted(shape=(40, 36, 44)):
    return [Counted(half) for half in noisy_halves(shape)]


def test_one_pass_serves_volumes_scale_and_diagnosis():
    halves = counted()
    pair = TomogramPair(*halves, TILTS)
    assert diagnose(pair)
    assert pair.statistics[0].middle.shape == (40, 36, 44)
    assert [(half.passes, half.sliced) for half in halves] == [(1, 0), (1, 0)]


def test_a_lazy_pair_reads_nothing_until_asked_then_once_for_all_statistics():
    halves = counted()
    pair = TomogramPair(*halves, TILTS, lazy=True)
    assert (pair.shape, pair.n_bytes, pair.geometry.tilt_range) == ((40, 36, 44), 8 * 40 * 36 * 44, TILTS)
    assert [half.passes for half in halves] == [0, 0]
    assert diagnose(pair)
    assert pair.scale
    assert diagnose(pair)
    assert [(half.passes, half.sliced) for half in halves] == [(1, 0), (1, 0)]
    assert pair.volumes is pair.volumes
    assert [half.passes for half in halves] == [2, 2]


def test_a_pair_that_was_released_remembers_its_scale():
    halves = counted()
    pair = TomogramPair(*halves, TILTS, nan="mean")
    pair.release()
    assert pair.scale
    assert pair.load_volumes().shape == (2, 40, 36, 44)
    assert [half.passes for half in halves] == [2, 2]


# Voxels that are NaN ---------------------------------------------------------------------------------


@pytest.mark.fault(19)
@pytest.mark.parametrize("is_lazy", [True, False])
def test_invalid_voxels_hold_the_mean_of_their_file_if_asked(tmp_path, is_lazy):
    paths = write_pair(tmp_path)
    data = np.array(read_volume(paths[0]).data)
    mean = data[1:].mean(dtype=np.float64)
    data[0, :, :6], data[0, :, 6:] = np.nan, np.inf
    write_volume(paths[0], data, voxel_size=10.0, overwrite=True)
    with pytest.raises(ValueError, match=r"even\.mrc holds 144 voxels that are NaN.*`nan='mean'`"):
        _ = lazy(paths).volumes
    pair = TomogramPair.read(*paths, tilts=TILTS, nan="mean", lazy=is_lazy)
    data[0] = mean
    expected = TomogramPair(data, read_volume(paths[1]).data, TILTS)
    torch.testing.assert_close(pair.volumes, expected.volumes, rtol=1e-6, atol=1e-6)
    assert torch.equal(pair.load_volumes(), pair.volumes)
    assert np.array_equal(pair.halves[0][0], data[0])
    assert pair.halves[1][:].shape == (12, 12, 12)


@pytest.mark.fault(19)
def test_a_half_of_nothing_but_nan_is_refused_in_any_case():
    first, _ = noisy_halves()
    with pytest.raises(ValueError, match="the second half of the pair holds 4096 voxels that are NaN"):
        TomogramPair(first, torch.full_like(first, torch.nan), TILTS, nan="mean")


def test_an_unknown_choice_for_nan_is_refused():
    with pytest.raises(ValueError, match="`nan` is 'refuse' or 'mean', got 'zero'"):
        TomogramPair(*noisy_halves(), TILTS, nan="zero")


# Masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_lazy", [True, False])
def test_the_mask_is_read_or_found(tmp_path, is_lazy):
    paths = write_pair(tmp_path)
    inside = np.zeros((12, 12, 12), np.float32)
    inside[2:9] = 1
    path = write_volume(tmp_path / "mask.mrc", inside, voxel_size=10.0)
    given = TomogramPair.read(*paths, tilts=TILTS, mask=path, lazy=is_lazy)
    assert torch.equal(given.mask, torch.from_numpy(inside) > 0)
    assert given.files["mask"].path == path
    found = TomogramPair.read(*paths, tilts=TILTS, mask="auto", lazy=is_lazy)
    assert torch.equal(found.mask, specimen_mask(found.volumes.mean(0)))
    assert TomogramPair.read(*paths, tilts=TILTS, lazy=is_lazy).mask is None


@pytest.mark.fault(45)
def test_a_mask_on_another_grid_is_refused_before_anything_is_read():
    halves = counted()
    with pytest.raises(ValueError, match=r"mask has shape \(4, 4, 4\).*pass `mask='auto'`"):
        TomogramPair(*halves, TILTS, mask=np.ones((4, 4, 4)), lazy=True)
    assert [half.passes for half in halves] == [0, 0]


# What does not belong together -----------------------------------------------------------------------


@pytest.mark.fault(26)
def test_one_file_for_both_halves_is_refused(tmp_path):
    even, _ = write_pair(tmp_path)
    with pytest.raises(ValueError, match="are the same file"):
        lazy([even, even])


@pytest.mark.fault(22, 23)
def test_halves_on_two_grids_are_refused(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    even, _ = write_pair(tmp_path / "a")
    _, shorter = write_pair(tmp_path / "b", (12, 12, 11))
    _, finer = write_pair(tmp_path / "c", voxel_size=(9.0, 9.0))
    with pytest.raises(ValueError, match=r"differ in shape.*\(12, 12, 12\).*\(12, 12, 11\)"):
        lazy([even, shorter])
    with pytest.raises(ValueError, match="differ in voxel size"):
        lazy([even, finer])


@pytest.mark.fault(24)
def test_equal_halves_in_two_files_are_refused_when_they_are_read(tmp_path):
    even, odd = write_pair(tmp_path)
    odd.write_bytes(even.read_bytes())
    pair = lazy([even, odd])
    with pytest.raises(ValueError, match=r"even\.mrc and .*odd\.mrc: the halves are not independent"):
        _ = pair.scale


# Tilts and views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilts", ["-50,60", (-50.0, 60.0), TiltGeometry.from_range(-50, 60)])
def test_tilts_are_a_range_or_a_geometry(tmp_path, tilts):
    pair = lazy(write_pair(tmp_path), tilts=tilts)
    assert pair.geometries == (TiltGeometry.from_range(-50, 60),) * 2
    assert "tilts" not in pair.files


def test_tilts_are_read_from_a_file_which_is_remembered(tmp_path):
    path = tmp_path / "a.tlt"
    path.write_text("-60\n0\n50\n")
    pair = lazy(write_pair(tmp_path), tilts=path, tilt_axis="x")
    assert pair.geometry == TiltGeometry([-60, 0, 50], "x")
    assert pair.files["tilts"] == path


def test_tilts_that_are_neither_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`tilts` is a file or LOW,HIGH in degrees such as -60,60, got '60'"):
        read_geometry("60")
    with pytest.raises(FileNotFoundError):
        read_geometry(str(tmp_path / "nowhere.tlt"))


def test_each_half_has_tilts_of_its_own_if_given(tmp_path):
    pair = lazy(write_pair(tmp_path), tilts=(-60, 40), second_tilts=(-40, 60))
    assert [geometry.tilt_range for geometry in pair.geometries] == [(-60, 40), (-40, 60)]
    assert pair.geometry == pair.geometries[0]


def test_a_single_volume_is_a_pair_of_one(tmp_path):
    path, _ = write_pair(tmp_path)
    pair = TomogramPair.read(path, tilts=TILTS)
    assert (pair.n_views, pair.volumes.shape, pair.n_bytes) == (1, (1, 12, 12, 12), 4 * 12**3)
    assert pair.labels == (str(path),)
    assert len(pair.halves) == len(pair.geometries) == len(pair.statistics) == 1
    assert pair.volumes.std(correction=0) == pytest.approx(1, abs=1e-3)


@pytest.mark.fault(20)
def test_a_single_volume_that_is_constant_is_refused():
    with pytest.raises(ValueError, match="the volume is constant"):
        TomogramPair(torch.ones(8, 8, 8), None, TILTS)


# Statistics ------------------------------------------------------------------------------------------


class Boxes:
    """Voxels that come in boxes, in a wild order, as from the chunks of a Zarr store."""

    def __init__(self, values, box):
        self._values, self._box = values, box
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, index):
        return self._values[index]

    def slabs(self, n_bytes=0):
        corners = list(np.ndindex(*(-(-n // side) for n, side in zip(self.shape, self._box, strict=True))))
        for corner in sorted(corners, key=lambda corner: hash(corner) % 7):
            starts = [i * side for i, side in zip(corner, self._box, strict=True)]
            place = tuple(slice(a, min(a + side, n)) for a, side, n in zip(starts, self._box, self.shape, strict=True))
            yield place, self._values[place]


def values_of(shape):
    return (np.random.default_rng(0).normal(5, 2, shape)).astype(np.float32)


def plain_blocks(values):
    return [
        values[z : z + 4, y : y + 4, x : x + 4].mean(dtype=np.float64)
        for z in range(0, values.shape[0], 4)
        for y in range(0, values.shape[1], 4)
        for x in range(0, values.shape[2], 4)
    ]


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 11, 14), (5, 3, 2)])
@pytest.mark.parametrize("box", [(1, 99, 99), (3, 99, 99), (4, 4, 4), (5, 3, 7), (99, 1, 99)])
@pytest.mark.parametrize("most_samples", [10**6, 100, 7])
def test_statistics_do_not_depend_on_the_pieces(shape, box, most_samples):
    values = values_of(shape)
    found = HalfStatistics.of(Boxes(values, box), most_samples=most_samples)
    step = -(-values.size // most_samples) | 1
    assert np.array_equal(found.samples, values.reshape(-1)[::step])
    assert found.extremes == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(dtype=np.float64))
    assert torch.equal(found.middle, torch.from_numpy(values))
    whole = HalfStatistics.of(values, most_samples=most_samples)
    np.testing.assert_allclose(found.block_means, whole.block_means, rtol=1e-6)
    if most_samples == 10**6:
        np.testing.assert_allclose(found.block_means, plain_blocks(values), rtol=1e-5)


@pytest.mark.parametrize("box", [(1, 99, 99), (5, 3, 7)])
def test_invalid_voxels_are_counted_wherever_the_pieces_end(box):
    values = values_of((9, 11, 14))
    values[2, 3, 4], values[2, 3, 5], values[8, 0, 0] = np.nan, np.inf, -np.inf
    found = HalfStatistics.of(Boxes(values, box))
    assert (found.n_invalid, found.first_invalid) == (3, (2, 3, 4))
    valid = values[np.isfinite(values)]
    assert found.extremes == (valid.min(), valid.max())
    assert found.mean == pytest.approx(valid.mean(dtype=np.float64))
    filled = np.where(np.isfinite(values), values, np.float32(found.mean))
    assert np.array_equal(found.samples, filled.reshape(-1))
    assert torch.equal(found.middle, torch.from_numpy(filled))
    np.testing.assert_allclose(found.block_means, plain_blocks(filled), rtol=1e-5)


@pytest.mark.parametrize("shape", [(200, 4, 5), (3, 195, 4)])
def test_the_middle_is_that_of_the_volume(shape):
    values = values_of(shape)
    found = HalfStatistics.of(Boxes(values, (7, 50, 50)))
    assert torch.equal(found.middle, middle_of(values, 192))


def test_block_means_of_large_volumes_are_evenly_spread_layers():
    values = values_of((16, 8, 8))
    found = HalfStatistics.of(values, most_samples=8)
    np.testing.assert_allclose(found.block_means, np.array(plain_blocks(values))[[0, 1, 2, 3, 8, 9, 10, 11]], rtol=1e-5)
