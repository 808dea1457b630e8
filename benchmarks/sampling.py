"""Cubes per second from memory, the time before the first step, and what importing costs.

``python -m benchmarks.sampling``
"""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from equitomo import CubeRotationGroup, PaddedMissingWedgeOperator, SubtomogramDataset, TomogramPair

_SIDE = 72


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


_EVERYTHING = "import torch, deepinv, equitomo; [getattr(equitomo, name) for name in equitomo.__all__]"


def _pair_with_a_sparse_mask() -> TomogramPair:
    """A volume of which about two of a hundred starts hold enough specimen."""
    generator = torch.Generator().manual_seed(0)
    shape = (200, 400, 400)
    specimen = torch.randn(shape, generator=generator)
    mask = torch.zeros(shape)
    mask[70:130, 160:224, 160:224] = 1
    halves = (specimen + torch.randn(shape, generator=generator) for _ in range(2))
    return TomogramPair(*halves, (-60.0, 60.0), mask=mask)


def _all_starts(pair: TomogramPair) -> int:
    z, y, x = (n - _SIDE + 1 for n in pair.shape)
    return z * y * x


def _seconds(code: str) -> float:
    """The best of three in a fresh interpreter, user time."""
    timed = f"import os; {code}; print(os.times().user)"
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main()
