"""Draw the two plots of the benchmarks' page: ``python -m benchmarks.plots STUDY --out FOLDER [--speed FILE]``.

STUDY is what ``benchmarks.start`` wrote. The first plot shows the quality that a training has reached after so many
seconds; the means over seeds are drawn, and single trainings as points. The second shows the voxels per second of a
preview over the size of the volume. It is drawn from FILE; sizes that FILE lacks are measured first, on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.start import Case, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Processor seconds of a training by the reference program, and its scores: measured on the same kind of machine.
REFERENCE = {"cryo_tiny_mid": (1385.0, {"all": 0.655, "measured": 0.837, "wedge": 0.370})}
# Voxels per second of our reimplementation of its tiling, for 256 x 352 x 352 voxels.
REFERENCE_SPEED = (256 * 352 * 352, 19300.0)
_REGIONS = {"all": "all of Fourier space", "measured": "measured part", "wedge": "missing wedge"}
_STARTS = {"cryo": ("from the shipped network", "C0"), "none": ("from scratch", "C1")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for quality.svg and speed.svg")
    parser.add_argument("--speed", type=Path, help="JSON lines with the voxels and seconds of previews")
    parser.add_argument("--sides", nargs="*", type=int, default=[64, 96, 128, 160, 192, 224, 256])
    given = parser.parse_args(arguments)
    draw_quality(given.out / "quality.svg", list(read(given.study)))
    if given.speed is not None:
        draw_speed(given.out / "speed.svg", measured_speeds(given.speed, given.sides))


def draw_quality(path: Path, results: Sequence[tuple[Case, dict[str, float]]]) -> None:
    """Draw scores over seconds, a row of panels for each set."""
    from matplotlib.figure import Figure

    sets = sorted({case.set for case, _ in results})
    figure = Figure(figsize=(10, 3.1 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), 3, squeeze=False)
    for row, name in zip(panels, sets, strict=True):
        for axes, (region, title) in zip(row, _REGIONS.items(), strict=True):
            _draw_panel(axes, region, [(case, values) for case, values in results if case.set == name])
            axes.set_title(f"{name}: {title}", fontsize=9)
            if name in REFERENCE:
                seconds, scores = REFERENCE[name]
                axes.plot(seconds, scores[region], "x", color="C3", label="reference program")
        row[0].set_ylabel("correlation with the truth")
        row[0].legend(fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("seconds of one core, training and prediction")
    figure.savefig(path)


def _draw_panel(axes: Axes, region: str, results: Sequence[tuple[Case, dict[str, float]]]) -> None:
    """Draw the trainings of one set, those from the same start as one line."""
    for start, (label, colour) in _STARTS.items():
        chosen = [(case, values) for case, values in results if case.start == start]
        times, scores = [], []
        for steps in sorted({case.steps for case, _ in chosen}):
            group = [values for case, values in chosen if case.steps == steps]
            # The prediction alone takes a few seconds; logarithms need more than none.
            times.append(max(5.0, statistics.fmean(values["seconds"] for values in group)))
            scores.append(statistics.fmean(values[region] for values in group))
            axes.plot([times[-1]] * len(group), [values[region] for values in group], ".", color=colour, alpha=0.5)
        axes.plot(times, scores, color=colour, label=label)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)


def measured_speeds(path: Path, sides: Sequence[int]) -> list[tuple[int, float]]:
    """Return voxels and seconds of previews, which are measured and added to a file if they are not in it."""
    import torch

    from equitomo import TiltGeometry, TomogramPair
    from equitomo.run.prediction import predictor_for
    from equitomo.run.settings import ReconstructionSettings
    from equitomo.training import TrainingConfig, load_network

    torch.set_num_threads(1)
    found = [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    network, geometry = load_network("cryo").eval(), TiltGeometry.from_range(-60, 60)
    for side in sides:
        if side**3 in dict(found):
            continue
        first, second = torch.randn(2, side, side, side, generator=torch.Generator().manual_seed(side))
        pair = TomogramPair(first, second, geometry)
        predictor = predictor_for(network, geometry, ReconstructionSettings(), TrainingConfig.preset("fast"))
        start = time.process_time()
        predictor(*pair.volumes)
        found.append((side**3, round(time.process_time() - start, 2)))
        with path.open("a") as file:
            file.write(json.dumps(found[-1]) + "\n")
    return sorted(found)


def draw_speed(path: Path, speeds: Sequence[tuple[int, float]]) -> None:
    """Draw thousand voxels per second over the number of voxels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([n for n, _ in speeds], [n / seconds / 1000 for n, seconds in speeds], "o-", label="preview, one core")
    axes.plot(REFERENCE_SPEED[0], REFERENCE_SPEED[1] / 1000, "x", color="C3", label="reference program")
    axes.set(xscale="log", yscale="log", xlabel="voxels", ylabel="thousand voxels per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
