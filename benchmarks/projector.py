"""Compare the projector with scikit-image and deepinv: ``python -m benchmarks.projector [SIDE TILTS]``.

Runs are interleaved on one thread. The table has process times and medians of the ratios. scikit-image is needed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import deepinv
import numpy as np
import skimage
import torch
from skimage.transform import iradon

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.solvers import filtered_backprojection

ROUNDS = 5


def main(side: int = 64, n_tilts: int = 41) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    geometry = TiltGeometry(np.linspace(-60, 60, n_tilts))
    shape = (side, side, side)
    physics = TiltSeriesPhysics(shape, geometry)
    x, y = torch.randn(1, 1, *shape), torch.randn(1, 1, *physics.series_shape)
    # Its slices are channels, and its tilts are on the last axis.
    theirs = deepinv.physics.Tomography(
        angles=-torch.tensor(geometry.angles), img_width=side, circle=False, normalize=False, adjoint_via_backprop=True
    )
    slices = x[:, 0].transpose(1, 2)
    views = theirs.A(slices)
    series = y[0, 0].permute(1, 2, 0).numpy()

    def slice_by_slice(interpolation: str) -> None:
        for sinogram in series:
            iradon(sinogram, theta=-np.array(geometry.angles), circle=True, interpolation=interpolation)

    def fbp(physics: TiltSeriesPhysics) -> None:
        filtered_backprojection(y, physics)

    def anew() -> TiltSeriesPhysics:
        return TiltSeriesPhysics(shape, geometry)

    print(
        f"volume of side {side}, {n_tilts} tilts, one thread, torch {torch.__version__}, "
        f"deepinv {deepinv.__version__}, scikit-image {skimage.__version__}, {ROUNDS} rounds"
    )
    print("| what | other | ours | ratio | lowest to highest |\n| --- | --- | --- | --- | --- |")
    _compare("filtered backprojection: `iradon`, linear", lambda: slice_by_slice("linear"), lambda: fbp(physics))
    _compare("the same, weights made anew", lambda: slice_by_slice("linear"), lambda: fbp(anew()))
    _compare("filtered backprojection: `iradon`, cubic", lambda: slice_by_slice("cubic"), lambda: fbp(physics))
    _compare("A: deepinv's `Tomography`", lambda: theirs.A(slices), lambda: physics.A(x))
    _compare("the same, weights made anew", lambda: theirs.A(slices), lambda: anew().A(x))
    _compare("adjoint: deepinv's `Tomography`", lambda: theirs.A_adjoint(views), lambda: physics.A_adjoint(y))
    _compare("the same, weights made anew", lambda: theirs.A_adjoint(views), lambda: anew().A_adjoint(y))
    _compare("filtered backprojection: deepinv", lambda: theirs.A_dagger(views), lambda: fbp(physics))


def _compare(name: str, other: Callable[[], object], ours: Callable[[], object]) -> None:
    times: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        pair = (_seconds(other), _seconds(ours))
        if number:
            times.append(pair)
    ratios = [a / b for a, b in times]
    medians = [statistics.median(column) * 1e3 for column in zip(*times, strict=True)]
    print(
        f"| {name} | {medians[0]:.1f} ms | {medians[1]:.1f} ms | {statistics.median(ratios):.1f} | "
        f"{min(ratios):.1f} to {max(ratios):.1f} |",
        flush=True,
    )


def _seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
