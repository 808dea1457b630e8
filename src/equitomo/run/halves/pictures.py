"""The picture of two halves beside the views that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from equitomo import report
from equitomo.io import read_volume
from equitomo.run.halves.preparing import Prepared


def draw_made(path: Path, prepared: Prepared, files: Sequence[Path]) -> Path:
    """Draw the middle view, the sinogram of the middle row, and slices and spectra of both halves."""
    angles = [(angle, half, n) for half in prepared.halves for n, angle in enumerate(half.angles)]
    middle, half, number = min(angles, key=lambda one: abs(one[0]))
    row = half.shape[0] // 2
    ordered = sorted(angles, key=lambda one: one[0])
    sinogram = [one.projections[n, row] for _, one, n in ordered]
    volumes = {
        f"{name}, {one.n_views} views": read_volume(file)
        for name, one, file in zip(("first half", "second half"), prepared.halves, files, strict=True)
    }
    size = prepared.halves[0].pixel_size
    return report.draw_halves(
        path,
        half.projections[number],
        [angle for angle, *_ in ordered],
        sinogram,
        volumes,
        [one.geometry for one in prepared.halves],
        title=f"{prepared.name}: the view at {middle:.1f} degrees, and row {row} of all views",
        voxel_size=None if size is None else (size, size, size),
    )
