"""Pairs in files, and the pool in which tomograms take turns."""

import re
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from making import noisy_halves

from equitomo import (
    SubtomogramDataset,
    SubtomogramPool,
    TomogramPair,
    read_volume,
    write_volume,
)
from equitomo.datasets import cubes_of

TILTS = (-60.0, 60.0)
ONE = 8 * 12 * 12 * 12  # bytes of a pair of 12 x 12 x 12 voxels


def write_pair(folder, name, shape=(12, 12, 12), *, seed=0, voxel_size=10.0, dtype=np.float32):
    paths = []
    for label, half in zip(("even", "odd"), noisy_halves(shape, seed=seed), strict=True):
        data = (40 * half + 300).numpy().astype(dtype)
        paths.append(write_volume(folder / f"{name}_{label}.mrc", data, voxel_size=voxel_size))
    return paths


def lazy(paths, geometry=TILTS, **settings):
    return TomogramPair.read(*paths, tilts=geometry, lazy=True, **settings)


@pytest.fixture
def tomograms(tmp_path):
    """Four pairs of 343, 49, 98 and 196 places for cubes of 6 voxels."""
    shapes = [(12, 12, 12), (12, 12, 6), (12, 12, 7), (12, 12, 9)]
    return [lazy(write_pair(tmp_path, f"t{n}", shape, seed=n)) for n, shape in enumerate(shapes)]


def pool_of(pairs, *, memory=2 * ONE, exchange_every=20, length=2000, seed=3, **settings):
    return SubtomogramPool(pairs, 6, length=length, memory=memory, exchange_every=exchange_every, seed=seed, **settings)


def reads(monkeypatch):
    """The names of the pairs that are read from now on."""
    seen = []
    load = TomogramPair.load_volumes
    monkeypatch.setattr(
        TomogramPair, "load_volumes", lambda self, *arguments: (seen.append(self.name), load(self, *arguments))[1]
    )
    return seen


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reading ")]


# What the pool draws ---------------------------------------------------------------------------------


def test_cubes_are_cut_from_the_tomogram_that_is_named(tomograms):
    pool = pool_of(tomograms)
    cubes, sources = pool.batch(range(300))
    volumes = [pair.load_volumes() for pair in tomograms]
    assert set(sources) == {0, 1, 2, 3}
    for cube, source in zip(cubes[::29], sources[::29], strict=True):
        windows = volumes[source].unfold(1, 6, 1).unfold(2, 6, 1).unfold(3, 6, 1)
        assert bool((windows == cube[:, None, None, None]).flatten(4).all(-1).all(0).any())


def test_tomograms_are_drawn_in_proportion_to_their_valid_starts(tomograms):
    pool = pool_of(tomograms, length=40_000)
    starts = np.array([343, 49, 98, 196])
    assert [table.count for table in pool._starts] == starts.tolist()
    places = np.bincount([pool.tomogram_at(place) for place in range(2000)], minlength=4)
    # A golden rotation keeps within a few of the proportion, however long: chance alone would differ by tens.
    assert np.abs(places - 2000 * starts / starts.sum()).max() < 4


def test_the_cubes_themselves_follow_that_proportion(tomograms):
    pool = pool_of(tomograms, length=3000, exchange_every=5)
    drawn = np.bincount(pool.batch(range(3000))[1], minlength=4)
    expected = 3000 * np.array([343, 49, 98, 196]) / 686
    assert (np.abs(drawn - expected) < 5 * expected**0.5).all()


def test_within_a_tomogram_every_start_is_drawn_alike(tmp_path):
    shape = (7, 8, 8)
    pair = lazy(write_pair(tmp_path, "a", shape))
    pool = pool_of([pair], length=3600)
    volumes = pair.load_volumes()
    place = {float(volumes[0, z, y, x]): (z, y, x) for z in range(2) for y in range(3) for x in range(3)}
    corners = pool.batch(range(3600))[0][:, 0, 0, 0, 0]
    counts = np.array([int((corners == value).sum()) for value in place])
    # The 99.99 % quantile of chi-square with 17 degrees of freedom.
    assert counts.sum() == 3600
    assert ((counts - 200) ** 2 / 200).sum() < 47.6


def test_a_mask_restricts_the_pool_too(tmp_path):
    inside = np.zeros((12, 12, 12), np.float32)
    inside[:6, :6, :7] = 1
    mask = read_volume(write_volume(tmp_path / "mask.mrc", inside, voxel_size=10.0))
    pool = pool_of([lazy(write_pair(tmp_path, "a"), mask=mask)], min_fraction=1.0)
    assert pool.n_starts == 2
    assert len(torch.unique(pool.batch(range(50))[0], dim=0)) == 2


@pytest.mark.parametrize(("memory", "n_held"), [(2 * ONE, 1), (2.4 * ONE, 2)])
def test_an_item_depends_on_the_seed_and_its_number_alone(tomograms, memory, n_held):
    pool = pool_of(tomograms, memory=int(memory))
    assert pool.n_held == n_held
    whole, sources = pool.batch(range(200))
    # Begun in the middle of an interval, at the seam of two, backwards, and of a longer run.
    for first, last in ((47, 61), (60, 80), (10, 30), (199, 200)):
        for pool in (pool_of(tomograms, memory=memory), pool_of(tomograms, memory=memory, length=9000)):
            cubes, found = pool.batch(range(first, last))
            assert torch.equal(cubes, whole[first:last])
            assert found == sources[first:last]
    pool = pool_of(tomograms, memory=memory)
    for first, last in ((150, 170), (0, 20), (90, 110)):
        assert torch.equal(pool.batch(range(first, last))[0], whole[first:last])
    assert torch.equal(pool[33]["y"], whole[33])


def test_another_seed_draws_other_cubes_of_other_tomograms(tomograms):
    one, other = (pool_of(tomograms, seed=seed) for seed in (3, 4))
    assert [one.tomogram_at(n) for n in range(40)] != [other.tomogram_at(n) for n in range(40)]
    assert not torch.equal(one.batch(range(4))[0], other.batch(range(4))[0])


def test_the_example_is_the_middle_of_the_first_tomogram(tomograms):
    pool = pool_of(tomograms)
    assert torch.equal(pool.example, tomograms[0].load_volumes()[:, 3:9, 3:9, 3:9])
    assert torch.equal(pool.example, SubtomogramDataset(tomograms[0], 6, length=1).example)


# What the pool holds ---------------------------------------------------------------------------------


def test_no_more_is_held_than_memory_allows(tmp_path):
    pairs = [lazy(write_pair(tmp_path, f"t{n}", seed=n)) for n in range(6)]
    pool = pool_of(pairs, memory=3 * ONE + 5, exchange_every=4)
    assert pool.n_held == 2
    most = 0
    for first in range(0, 400, 4):
        pool.batch(range(first, first + 4))
        ahead = 0 if pool._ahead is None else 1
        most = max(most, len(pool._held) + ahead)
    assert most == 3


def test_every_exchange_reads_one_tomogram_and_that_ahead(tmp_path, monkeypatch):
    pairs = [lazy(write_pair(tmp_path, f"t{n}", seed=n)) for n in range(6)]
    pool = pool_of(pairs, memory=3 * ONE, exchange_every=4, length=80)
    seen = reads(monkeypatch)
    pool.batch(range(4))
    for interval in range(1, 20):
        before = len(seen)
        ahead = pool._ahead
        needed = {pool.tomogram_at(interval), pool.tomogram_at(interval + 1)}
        assert ahead is None or ahead.source in needed
        if ahead is not None:
            ahead._thread.join()
        pool.batch(range(4 * interval, 4 * interval + 4))
        # What was needed had been read: what is read now is for later.
        assert len(seen) - before <= 1
    assert pool._ahead is None


def test_too_little_memory_is_refused_with_what_would_do(tomograms):
    with pytest.raises(ValueError, match=r"the two largest.*allow that much") as caught:
        pool_of(tomograms, memory=ONE)
    needed = float(re.search(r"take ([\d.]+): allow", str(caught.value))[1])
    assert pool_of(tomograms, memory=int(needed * 2**30)).n_held >= 1


def test_the_two_largest_must_fit_to_the_byte(tomograms):
    largest = 8 * (12 * 12 * 12 + 12 * 12 * 9)
    assert pool_of(tomograms, memory=largest).n_held == 1
    with pytest.raises(ValueError, match="the two largest"):
        pool_of(tomograms, memory=largest - 1)


def test_tomograms_take_turns_only_if_they_do_not_fit_together(tomograms):
    total = sum(pair.n_bytes for pair in tomograms)
    settings = {"length": 100, "exchange_every": 10}
    assert isinstance(cubes_of(tomograms, 6, memory=total - 1, **settings), SubtomogramPool)
    assert isinstance(cubes_of(tomograms, 6, memory=total, **settings), SubtomogramDataset)
    assert isinstance(cubes_of(tomograms, 6, memory=None, **settings), SubtomogramDataset)


def test_a_run_too_short_for_all_tomograms_is_warned_of(tomograms):
    with pytest.warns(UserWarning, match="of 4 tomograms will be visited in 2 intervals"):
        pool_of(tomograms, length=40)


def test_an_interval_of_nothing_is_refused(tomograms):
    with pytest.raises(ValueError, match="`exchange_every` must be at least one cube, got 0"):
        pool_of(tomograms, exchange_every=0)


def test_no_tomogram_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        pool_of([])


@pytest.mark.parametrize("kind", ["pool", "dataset"])
def test_mixed_voxel_sizes_are_refused_unless_allowed(tmp_path, kind):
    pairs = [lazy(write_pair(tmp_path, f"t{n}", seed=n, voxel_size=size)) for n, size in enumerate((10.0, 10.05, 12.0))]

    def make(**settings):
        return cubes_of(pairs, 6, length=200, exchange_every=5, memory=2 * ONE if kind == "pool" else None, **settings)

    with pytest.raises(ValueError, match=r"t0_even.*and.*t2_even.*differ, \(10\.0.*\(12\.0.*mixed_voxel_sizes"):
        make()
    assert make(mixed_voxel_sizes=True).n_starts == 3 * 343
    pairs.pop()
    assert make().n_starts == 2 * 343


# The thread ------------------------------------------------------------------------------------------


def slow(monkeypatch):
    """Let reading ahead last until it is told to stop."""
    begun = threading.Event()
    load = TomogramPair.load_volumes

    def wait(self, stopped=lambda: False):
        if threading.current_thread() is threading.main_thread():
            return load(self, stopped)
        begun.set()
        while not stopped():
            threading.Event().wait(0.001)
        return load(self, stopped)

    monkeypatch.setattr(TomogramPair, "load_volumes", wait)
    return begun


def test_closing_ends_the_thread_and_drawing_goes_on_after_it(tomograms, monkeypatch):
    with closing(pool_of(tomograms)) as whole:
        expected = whole.batch(range(60))[0]
    pool = pool_of(tomograms)
    with monkeypatch.context() as patch:
        begun = slow(patch)
        first, _ = pool.batch(range(20))
        assert begun.wait(60)
        assert len(readers()) == 1
        pool.close()
        assert not readers()
    rest, _ = pool.batch(range(20, 60))
    assert torch.equal(torch.cat([first, rest]), expected)
    pool.close()


def test_a_file_that_is_gone_is_named(tomograms, tmp_path):
    pool = pool_of(tomograms)
    pool.batch(range(20))
    for path in tmp_path.glob("*_odd.mrc"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"t\d_odd\.mrc"):
        pool.batch(range(20, 2000))
    pool.close()


def test_a_file_that_was_cut_is_named_by_the_thread_that_read_it(tomograms, tmp_path):
    pool = pool_of(tomograms)
    contents = {path: path.read_bytes() for path in tmp_path.glob("*.mrc")}
    for path, content in contents.items():
        path.write_bytes(content[:-100])
    with pytest.raises(OSError, match=r"was cut or replaced.*t\d_even\.mrc|t\d_even\.mrc.*cut or replaced"):
        pool.batch(range(20))
    # Once it is whole again, so is what is drawn.
    for path, content in contents.items():
        path.write_bytes(content)
    with closing(pool_of(tomograms)) as other:
        assert torch.equal(pool.batch(range(20))[0], other.batch(range(20))[0])
    pool.close()


def test_any_other_error_of_the_thread_names_the_tomogram(tomograms, monkeypatch):
    pool = pool_of(tomograms)
    pool.batch(range(20))
    pool.close()

    def fail(self, stopped):
        raise MemoryError

    monkeypatch.setattr(TomogramPair, "load_volumes", fail)
    with pytest.raises(OSError, match=r"t\d_even\.mrc and .*t\d_odd\.mrc could not be read again: MemoryError"):
        pool.batch(range(20, 2000))
