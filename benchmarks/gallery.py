"""Reconstruct real tilt series of materials science and draw them: ``python -m benchmarks.gallery NAME OUT [STEPS]``.

NAME is ``liquid``, six gold particles in a liquid cell with several scans of each tilt from -46 to 44 degrees, or
``needle``, a needle tilted from -76 to 76 degrees whose images are not aligned. The series are read from the folder in
EQUITOMO_DATA. Filtered backprojection, SIRT, total variation and our network with and without its refinement are drawn
into ``OUT/NAME.png``, and the surfaces of the particles into ``OUT/liquid_surfaces.png``. For the particles a table
tells how long each is along the beam, relative to its width. scikit-image and scipy must be installed. One thread.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import LightSource
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, find_objects, label
from skimage.measure import marching_cubes

from equitomo import (
    IcecreamTrainer,
    TiledPredictor,
    TiltSeries,
    TiltSeriesPhysics,
    TomogramPair,
    TrainingConfig,
    diagnose,
    split_by_scan,
    split_by_tilt,
)
from equitomo.datasets import registered_scans
from equitomo.refinement import MeasuredSeries, refine
from equitomo.solvers import filtered_backprojection, sirt, total_variation

SIDE = 128
WEIGHTS = (0.1, 0.3, 1.0)
Volumes = dict[str, NDArray[np.float32]]


def main(name: str, out: str, steps: str = "400") -> None:
    """Reconstruct and draw."""
    torch.set_num_threads(1)
    mpl.use("Agg")
    folder = Path(os.environ["EQUITOMO_DATA"])
    Path(out).mkdir(parents=True, exist_ok=True)
    kept = Path(out) / f"{name}.npz"
    if not kept.exists():
        first, second = {"liquid": _liquid, "needle": _needle}[name](folder)
        np.savez(kept, **_volumes(first, second, int(steps)))
    volumes: Volumes = dict(np.load(kept))
    if name == "liquid":
        _draw_liquid(Path(out), volumes)
    else:
        _draw_slices(Path(out) / "needle.png", volumes, {"across the needle": (2, 64), "along the beam": (0, 64)})


def _liquid(folder: Path) -> tuple[TiltSeries, TiltSeries]:
    """Return the halves by scan, with the background of each view at zero."""
    stack, tilts = folder / "liquid_n6" / "all_scans.mrc", folder / "liquid_n6" / "all_scans.tlt"
    series = registered_scans(TiltSeries.read(stack, tilts=tilts, binning=2))
    return split_by_scan(_on_zero(series, border=8))


def _needle(folder: Path) -> tuple[TiltSeries, TiltSeries]:
    """Return the halves by tilt, aligned by their centres of mass."""
    series = TiltSeries.read(folder / "etspy_needle" / "HAADF.mrc", tilt_axis="x", align="mass", binning=2)
    return split_by_tilt(_on_zero(series, border=0))


def _on_zero(series: TiltSeries, *, border: int) -> TiltSeries:
    """Subtract the median of each view, which is background, and set a border to zero where images are padded."""
    inner = series.projections[:, border : SIDE - border, border : SIDE - border]
    views = torch.zeros_like(series.projections)
    level = inner.flatten(1).median(dim=1).values if border else inner.flatten(1).quantile(0.2, dim=1)
    views[:, border : SIDE - border, border : SIDE - border] = inner - level[:, None, None]
    return series.with_projections(views)


def _volumes(first: TiltSeries, second: TiltSeries, steps: int) -> Volumes:
    """Return the reconstructions by name."""
    shape = (SIDE,) * 3
    views = torch.cat([first.projections, second.projections])
    both = TiltSeries(views, [*first.angles, *second.angles], first.tilt_axis)
    physics, y = TiltSeriesPhysics(shape, both.geometry), both.projections[None, None]
    own = [TiltSeriesPhysics(shape, half.geometry) for half in (first, second)]
    halves = [
        filtered_backprojection(h.projections[None, None], p)[0, 0] for h, p in zip((first, second), own, strict=True)
    ]
    results = {"filtered backprojection": (halves[0] + halves[1]) / 2}
    results["SIRT, 30 iterations"] = sirt(y, physics, iterations=30, positive=True)[0, 0]
    weight = _weight(first, second)
    found = total_variation(y, physics, weight=2 * weight, positive=True, iterations=100)
    results["total variation"] = found[0, 0]
    # The exchange of tilts between the halves presumes equal ones; those of one half lie between those of the other.
    pair = TomogramPair(*halves, both.geometry, normalization="scale")
    for finding in diagnose(pair):
        print(finding.severity, finding.subject, finding.message, finding.remedy or "")
    start = time.process_time()
    trainer = IcecreamTrainer(pair, TrainingConfig.preset("tiny", normalization="scale", steps=steps))
    trainer.train()
    print(f"trained {steps} steps in {time.process_time() - start:.0f} s", flush=True)
    predictor = TiledPredictor(trainer.network, passes=1, average_first=True)
    result = pair.scale.restore(predictor(*pair.volumes))
    results["ours"] = result
    results["ours, refined"] = torch.from_numpy(refine(result, MeasuredSeries(both.projections, both.geometry)))
    return {name: np.asarray(volume, np.float32) for name, volume in results.items()}


def _weight(first: TiltSeries, second: TiltSeries) -> float:
    """Return the weight with which the volume of one half predicts the other half best, without knowing the truth."""
    # Some planes suffice, and the weight grows with the scale of the views.
    middle = slice(SIDE // 2 - 24, SIDE // 2 + 8)
    y, other = (half.projections[None, None, :, middle].contiguous() for half in (first, second))
    shape = [SIDE, SIDE, SIDE]
    shape[first.geometry.axes.along] = y.shape[-2]
    physics, theirs = (TiltSeriesPhysics(shape, half.geometry) for half in (first, second))
    scale, errors = float(y.abs().max()), {}
    for weight in WEIGHTS:
        found = total_variation(y, physics, weight=weight * scale, positive=True, iterations=100)
        errors[weight * scale] = float((theirs.A(found) - other).norm() / other.norm())
        print(
            f"total variation of weight {weight:g} predicts the other half to {errors[weight * scale]:.4f}", flush=True
        )
    return min(errors, key=errors.__getitem__)


def _draw_liquid(out: Path, volumes: Volumes) -> None:
    """Draw slices through the particles and their surfaces, and print how long the particles are along the beam."""
    box = (slice(43, 91), slice(34, 76), slice(47, 89))
    inner = {name: volume[box] for name, volume in volumes.items()}
    pieces, _ = label(inner["ours, refined"] > _level(inner["ours, refined"]))
    sizes = np.bincount(pieces.ravel())[1:]
    largest = 1 + int(sizes.argmax())
    z, y, _ = (round(c) for c in center_of_mass(pieces == largest))
    _draw_slices(out / "liquid.png", inner, {"along the beam (y, x)": (0, z), "across the tilt axis (z, x)": (1, y)})
    print("| way | particles | length along the beam / width |\n| --- | --- | --- |")
    for name, volume in inner.items():
        ratios = _elongations(volume)
        print(f"| {name} | {len(ratios)} | {np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    _draw_surfaces(out / "liquid_surfaces.png", inner)


def _level(volume: NDArray[np.float32]) -> float:
    """Return half of the intensity inside the particles."""
    return float(np.quantile(volume, 0.998)) / 2


def _elongations(volume: NDArray[np.float32]) -> list[float]:
    """Return for each particle its extent along z over the mean of those along y and x, at half of its intensity."""
    pieces, _ = label(volume > _level(volume))
    ratios = []
    for number, place in enumerate(find_objects(pieces), 1):
        inside = np.argwhere(pieces[place] == number)
        if len(inside) >= 30:
            z, y, x = inside.std(axis=0)
            ratios.append(float(2 * z / (y + x)))
    return ratios


def _draw_slices(path: Path, volumes: Volumes, places: dict[str, tuple[int, int]]) -> None:
    """Draw a row of slices for each place, (axis, index), with one column for each volume."""
    figure, axes = plt.subplots(
        len(places), len(volumes), figsize=(2.3 * len(volumes), 2.45 * len(places)), layout="constrained", squeeze=False
    )
    for column, (name, volume) in enumerate(volumes.items()):
        top = float(np.quantile(volume, 0.9995))
        for row, (title, (axis, index)) in enumerate(places.items()):
            panel = axes[row, column]
            panel.imshow(volume.take(index, axis=axis), cmap="gray", vmin=-0.05 * top, vmax=top, origin="lower")
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(name, fontsize=9)
            if column == 0:
                panel.set_ylabel(title, fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_surfaces(path: Path, volumes: Volumes) -> None:
    """Draw the surfaces at half of the intensity, seen from the side: the beam points up."""
    figure = plt.figure(figsize=(2.2 * len(volumes), 3.0))
    for column, (name, volume) in enumerate(volumes.items()):
        panel = figure.add_subplot(1, len(volumes), column + 1, projection="3d", proj_type="ortho")
        corners, faces, _, _ = marching_cubes(volume, _level(volume))
        # Axes (z, y, x) of the volume become (x, y, z) of the picture.
        triangles = corners[:, ::-1][faces]
        shade = LightSource(azdeg=220, altdeg=40)
        panel.add_collection3d(
            Poly3DCollection(triangles, facecolors="goldenrod", edgecolor="none", shade=True, lightsource=shade)
        )
        z, y, x = volume.shape
        panel.set(xlim=(5, x - 5), ylim=(5, y - 5), zlim=(4, z - 4))
        panel.set_box_aspect((x - 10, y - 10, z - 8), zoom=1.5)
        panel.view_init(elev=15, azim=-35)
        panel.set_axis_off()
        panel.set_title(name, fontsize=9, y=0.98)
    figure.subplots_adjust(0, 0, 1, 0.93, wspace=0)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
