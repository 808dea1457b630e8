"""The picture of tilts that were left out: what was measured there, what was predicted, and how both correlate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from equitomo.metrics import HeldOutCorrelation, RawCorrelation
from equitomo.report.drawing import figure_of, label_frequencies, save_figure


@dataclass(frozen=True)
class LeftOutRow:
    """What is drawn of one tilt.

    Parameters
    ----------
    title
        Its name.
    images
        Titles and images ``(along, across)`` of the tilt axis, with the measured one first.
    pixels
        The first pixel across the tilt axis that counts, and the one after the last.
    curves
        The correlations of images with what was measured, by their titles.
    """

    title: str
    images: Mapping[str, Tensor]
    pixels: tuple[int, int]
    curves: Mapping[str, HeldOutCorrelation | RawCorrelation]


def draw_left_out(path: str | Path, rows: Sequence[LeftOutRow], *, voxel_size: float | None = None) -> Path:
    """Draw the images of each tilt that was left out beside each other, and their correlations in each ring.

    Dashed lines enclose the pixels that count. Curves are estimates of the correlation with noise-free images, or the
    correlation with noisy ones where a tilt was measured once. With a ``voxel_size`` in Å the axis is labelled with
    resolutions.
    """
    figure, grid = figure_of(len(rows), 1 + len(rows[0].images))
    for line, row in zip(grid, rows, strict=True):
        for axes, (name, image) in zip(line, row.images.items(), strict=False):
            pixels = image.float().numpy()
            low, high = np.percentile(pixels, [0.5, 99.5])
            axes.imshow(pixels, cmap="gray", vmin=low, vmax=high)
            if row.pixels != (0, pixels.shape[1]):
                for place in row.pixels:
                    axes.axvline(place - 0.5, color="tab:orange", linewidth=0.8, linestyle="--")
            axes.set_title(name, fontsize=9)
        line[0].set_ylabel(row.title, fontsize=11)
        axes, is_raw = line[-1], False
        for number, (name, curve) in enumerate(row.curves.items()):
            is_raw = isinstance(curve, RawCorrelation)
            value = curve.raw if isinstance(curve, RawCorrelation) else curve.estimate
            axes.errorbar(
                curve.frequency,
                curve.correlation,
                yerr=curve.correlation_error,
                color=f"C{number}",
                capsize=2,
                linewidth=1.2,
                label=f"{name}: {'not known' if math.isnan(value) else f'{value:.2f}'}",
            )
        axes.axhline(0, color="grey", linewidth=0.7, linestyle="--")
        axes.set(ylim=(-0.6, 1.2), yticks=[-0.5, 0, 0.5, 1])
        axes.set_title("correlation, " + ("with the noisy image" if is_raw else "estimated"), fontsize=9)
        # The panels of a grid have no ticks of their own.
        axes.set_xticks([0.1, 0.2, 0.3, 0.4, 0.5])
        label_frequencies(axes, voxel_size)
        axes.tick_params(labelsize=7)
        axes.legend(frameon=False, fontsize=7)
    return save_figure(figure, path)
