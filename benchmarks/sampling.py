"""Measure cubes per second from memory, files and pools, the time before the first step, and the time of importing.

``python -m benchmarks.sampling``
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from equitomo import (
    CubeRotationGroup,
    PaddedMissingWedgeOperator,
    SubtomogramDataset,
    SubtomogramPool,
    TomogramPair,
    read_volume,
    write_volume,
)

_SIDE = 72
_COLD_CUBES, _TURNS = 5, 6


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    pair = _pair_with_a_sparse_mask()
    start = time.perf_counter()
    dataset = SubtomogramDataset(pair, _SIDE, length=10**6, min_fraction=0.3)
    print(f"table of starts: {time.perf_counter() - start:.2f} s, {dataset.n_starts} of {_all_starts(pair)} valid")
    dataset.batch(range(64))
    rates = []
    for number in range(5):
        start = time.process_time()
        for first in range(0, 1024, 8):
            dataset.batch(range(number * 1024 + first, number * 1024 + first + 8))
        rates.append(1024 / (time.process_time() - start))
    middle, low, high = sorted(rates)[2], min(rates), max(rates)
    print(f"pairs of {_SIDE}^3 cubes a second on one core: {middle:.0f} ({low:.0f} to {high:.0f})")
    start = time.perf_counter()
    CubeRotationGroup.moving(PaddedMissingWedgeOperator((_SIDE,) * 3, (-60.0, 60.0)))
    print(f"operator and group at cube {_SIDE}: {time.perf_counter() - start:.2f} s")
    torch_and_deepinv = _seconds("import torch, deepinv")
    beyond = _seconds(_EVERYTHING) - torch_and_deepinv
    print(f"every public name of equitomo: {beyond:+.2f} s beyond torch and deepinv")
    with tempfile.TemporaryDirectory(dir=os.environ.get("EQUITOMO_BENCHMARK_DISK")) as folder:
        _files(Path(folder))


_EVERYTHING = "import torch, deepinv, equitomo; [getattr(equitomo, name) for name in equitomo.__all__]"


def _pair_with_a_sparse_mask() -> TomogramPair:
    """Return a pair in which about two of a hundred starts hold enough specimen."""
    generator = torch.Generator().manual_seed(0)
    shape = (200, 400, 400)
    specimen = torch.randn(shape, generator=generator)
    mask = torch.zeros(shape)
    mask[70:130, 160:224, 160:224] = 1
    halves = (specimen + torch.randn(shape, generator=generator) for _ in range(2))
    return TomogramPair(*halves, (-60.0, 60.0), mask=mask)


def _files(folder: Path) -> None:
    """Reading with nothing in the page cache, and tomograms in turns."""
    generator = np.random.default_rng(0)
    shape = (200, 400, 400)
    specimen = generator.standard_normal(shape, np.float32)
    paths = [
        write_volume(folder / f"{name}.mrc", specimen + generator.standard_normal(shape, np.float32), voxel_size=10.0)
        for name in ("a_even", "a_odd", "b_even", "b_odd", "c_even", "c_odd")
    ]
    _cold(paths[:2], shape, generator)
    _in_turns(paths)


def _cold(paths: list[Path], shape: tuple[int, int, int], generator: np.random.Generator) -> None:
    megabytes = 4 * np.prod(shape) / 1e6
    target = np.empty(shape, np.float32)

    def front_to_back() -> None:
        stored = read_volume(paths[0])
        assert stored is not None
        for place, block in stored.slabs():
            target[place] = block

    def through_the_map() -> None:
        target[...] = read_volume(paths[0]).data

    def cubes_through_the_map() -> None:
        halves = [read_volume(path).data for path in paths]
        for _ in range(_COLD_CUBES):
            z, y, x = (slice(o, o + _SIDE) for o in (int(generator.integers(n - _SIDE + 1)) for n in shape))
            for half in halves:
                np.array(half[z, y, x])

    print("cold files, medians of six, the ways by turns:")
    times = _by_turns([front_to_back, through_the_map, cubes_through_the_map], paths)
    print(f"  one half of {megabytes:.0f} MB, front to back: {megabytes / times[0]:.0f} MB/s")
    print(f"  one half of {megabytes:.0f} MB, through the memory map: {megabytes / times[1]:.0f} MB/s")
    print(f"  the first {_COLD_CUBES} pairs of cubes, through the memory map: {_COLD_CUBES / times[2]:.0f} pairs/s")


def _by_turns(ways: list[Callable[[], None]], paths: list[Path]) -> list[float]:
    """Return the median seconds of each way to read, with the files outside the page cache each time."""
    times: list[list[float]] = [[] for _ in ways]
    # The order alternates, because the host of a virtual machine has its own cache.
    for number in range(_TURNS):
        for way, found in list(zip(ways, times, strict=True))[:: 1 - 2 * (number % 2)]:
            for path in paths:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            way()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def _in_turns(paths: list[Path]) -> None:
    volumes = [read_volume(path) for path in paths]
    pairs = [TomogramPair(*volumes[n : n + 2], (-60.0, 60.0), lazy=True) for n in (0, 2, 4)]
    start = time.perf_counter()
    pool = SubtomogramPool(pairs, _SIDE, length=4000, memory=2 * pairs[0].n_bytes, exchange_every=400)
    print(
        f"pool of three tomograms of {pairs[0].n_bytes / 1e6:.0f} MB: looked at in {time.perf_counter() - start:.1f} s"
    )
    within, at = [], []
    for first in range(0, pool.length, 8):
        if first % pool.exchange_every == 0:
            # The time that a network would take, in which the next tomogram is read.
            time.sleep(3)
        start, used = time.perf_counter(), time.thread_time()
        pool.batch(range(first, first + 8))
        if first and first % pool.exchange_every == 0:
            at.append(time.perf_counter() - start)
        elif first % pool.exchange_every > pool.exchange_every // 2:
            within.append(8 / (time.thread_time() - used))
    pool.close()
    print(f"  pairs of {_SIDE}^3 cubes a second on one core: {statistics.median(within):.0f}")
    print(f"  longest wait of a batch of 8 at an exchange, read ahead for 3 s: {1e3 * max(at):.0f} ms")


def _all_starts(pair: TomogramPair) -> int:
    z, y, x = (n - _SIDE + 1 for n in pair.shape)
    return z * y * x


def _seconds(code: str) -> float:
    """Return the user time in a new interpreter, the best of three."""
    timed = f"import os; {code}; print(os.times().user)"
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main()
