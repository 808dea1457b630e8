"""Pictures of volumes, spectra and training runs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.fourier import cosine_edges
from equitomo.geometry import TiltGeometry
from equitomo.io import atomic_file, release
from equitomo.metrics import FourierShellCorrelation
from equitomo.volumes import VolumeLike as Volume
from equitomo.wedge_estimate import WedgeEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The spectrum of this many planes tells the wedge; a few of them are transformed together.
_MOST_PLANES, _TOGETHER = 256, 8
_PLANES = (("z", "y", "x"), ("y", "z", "x"), ("x", "z", "y"))


def draw_slices(
    path: str | Path,
    volumes: Mapping[str, Volume],
    *,
    geometry: TiltGeometry | None = None,
    voxel_size: Sequence[float] | None = None,
) -> Path:
    """Central slices along the three axes, and the power over the plane across the tilt axis.

    One row for each volume, each with its own grey scale. The spectra are logarithmic, averaged over the
    frequencies along the tilt axis, with one colour scale; lines mark the outermost tilts. A few planes of a volume
    are looked at together, whatever its size.

    Parameters
    ----------
    path
        The picture to write.
    volumes
        Titles and volumes ``(z, y, x)`` of one shape: tensors, arrays, maps of files.
    geometry
        Draws the outermost tilts, and says which axis is the tilt axis.
    voxel_size
        Ångström along ``(z, y, x)``, for a scale bar.
    """
    figure, grid = _figure(len(volumes), 4)
    spectra = [log_power(volume, geometry) for volume in volumes.values()]
    # The quietest and the loudest of all, so that an empty wedge looks empty in one row and full in the other.
    low, high = np.percentile(torch.stack(spectra).numpy(), [2, 99.8])
    for row, (title, volume), spectrum in zip(grid, volumes.items(), spectra, strict=True):
        planes = [_central_plane(volume, number) for number in range(3)]
        limits = np.percentile(np.concatenate([plane.ravel() for plane in planes]), [0.5, 99.5])
        for number, axes in enumerate(row[:3]):
            _show_slice(axes, planes[number], volume.shape, number, limits, voxel_size)
        row[0].set_ylabel(title, fontsize=11)
        _show_spectrum(row[3], spectrum, geometry, (low, high))
    return _save(figure, path)


def draw_preview(path: str | Path, cube: Tensor, seen: Tensor, title: str) -> Path:
    """A cube and what the network makes of it, central slices of both."""
    figure, grid = _figure(2, 3)
    for row, name, volume in zip(grid, ("input", "network"), (cube, seen), strict=True):
        limits = np.percentile(volume.numpy(), [0.5, 99.5])
        for number, axes in enumerate(row):
            _show_slice(axes, _central_plane(volume, number), volume.shape, number, limits, None)
        row[0].set_ylabel(name)
    figure.suptitle(title)
    return _save(figure, path)


def draw_losses(path: str | Path, losses: str | Path) -> Path:
    """The two losses of a run's ``losses.csv`` over the steps, and their running mean."""
    with Path(losses).open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, ((axes,),) = _figure(1, 1, size=(8, 4))
    steps = np.array([int(row["step"]) for row in rows])
    names = {"data": "data, (4)", "equivariance": "equivariance, (5), weighted"}
    for colour, (column, label) in zip(("tab:blue", "tab:orange"), names.items(), strict=True):
        values = np.array([float(row[column]) for row in rows])
        if len(values) and not values.any() and column == "data":  # left out of the training
            continue
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.6)
        axes.plot(steps, _running_mean(values, max(len(values) // 50, 1)), color=colour, label=label)
    if any(float(row[column]) > 0 for row in rows for column in names):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="mean squared residual")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def draw_correlations(
    path: str | Path, curves: Mapping[str, FourierShellCorrelation], *, voxel_size: float | None = None
) -> Path:
    """Fourier shell correlation curves, with the thresholds 0.5 and 0.143."""
    figure, ((axes,),) = _figure(1, 1, size=(7, 4))
    for name, curve in curves.items():
        axes.plot(curve.frequency, curve.correlation, label=name)
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color="grey", linewidth=0.7, linestyle="--")
    axes.set(ylim=(-0.1, 1.02), xlim=(0, 0.5), xlabel="cycles per voxel", ylabel="Fourier shell correlation")
    if voxel_size is not None:
        ticks = axes.get_xticks()
        axes.set_xticks(ticks[ticks > 0], [f"{voxel_size / tick:.0f}" for tick in ticks if tick > 0])
        axes.set_xlabel("resolution in Å")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def draw_wedge(path: str | Path, estimate: WedgeEstimate, geometry: TiltGeometry) -> Path:
    """Power over the direction in the plane across the tilt axis, with the declared and the found ends of the tilts.

    Raises
    ------
    ValueError
        If the spectrum does not tell the wedge: there is nothing to draw.
    """
    if estimate.tilt_range is None:
        raise ValueError(f"the wedge cannot be drawn: {estimate.reason}")
    figure, ((axes,),) = _figure(1, 1, size=(8, 4))
    # With the beam in the middle the empty sector is in one piece; 100 degrees are a tilt of -80.
    axes.semilogy(estimate.angle, np.maximum(estimate.power, 1e-5), color="tab:blue")
    for tilts, colour, name in (
        (estimate.tilt_range, "tab:blue", "found"),
        (geometry.tilt_range, "tab:red", "declared"),
    ):
        for tilt in tilts:
            axes.axvline(
                tilt % 180, color=colour, linewidth=0.8, linestyle="--", label=name if tilt == tilts[0] else None
            )
    axes.set_xticks(range(0, 181, 30), [f"{angle if angle <= 90 else angle - 180}°" for angle in range(0, 181, 30)])
    axes.set(xlim=(0, 180), xlabel=f"tilt about {estimate.tilt_axis}, beam along {estimate.beam_axis}")
    axes.set_ylabel("power relative to the measured part")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def log_power(volume: Volume, geometry: TiltGeometry | None = None) -> Tensor:
    """Logarithm (base 10) of the power over the plane across the tilt axis, zero frequency in the middle.

    Returns
    -------
    Tensor
        ``(z, x)``, or ``(z, y)`` for a tilt axis along x: the mean over the frequencies along the tilt axis, of the
        256 planes in the middle of a volume that has more.
    """
    along = 1 if geometry is None or geometry.tilt_axis == "y" else 2
    shape = list(volume.shape)
    shape[along] = min(shape[along], _MOST_PLANES)
    mean = sum(float(planes.sum(dtype=torch.float64)) for planes in _planes(volume, along)) / math.prod(shape)
    edges = list(cosine_edges(shape))
    weights = torch.split(edges.pop(along), _TOGETHER)
    window, power = edges[0][:, None] * edges[1], torch.zeros(())
    for planes, weight in zip(_planes(volume, along), weights, strict=True):
        # By Parseval's theorem along the tilt axis the mean over the frequencies is that over the planes.
        spectra = torch.fft.fft2((planes - mean) * weight[:, None, None] * window, norm="ortho")
        power = power + spectra.abs().square().sum(0) / shape[along]
    shifted: Tensor = torch.fft.fftshift(torch.log10(power + power.max() * 1e-12))
    return shifted


def _planes(volume: Volume, along: int) -> Iterator[Tensor]:
    """The planes in the middle of an axis, which comes first, a few at a time."""
    n = min(volume.shape[along], _MOST_PLANES)
    first = (volume.shape[along] - n) // 2
    for begin in range(first, first + n, _TOGETHER):
        cut = volume[(*(slice(None),) * along, slice(begin, min(begin + _TOGETHER, first + n)))]
        planes = cut.detach().float().cpu() if isinstance(cut, Tensor) else torch.from_numpy(np.array(cut, np.float32))
        yield planes.movedim(along, 0)
        release(volume)


def _central_plane(volume: Volume, number: int) -> NDArray[np.float32]:
    """The section through the middle of an axis."""
    index: list[int | slice] = [slice(None)] * 3
    index[number] = volume.shape[number] // 2
    plane = volume[tuple(index)]
    return plane.detach().float().cpu().numpy() if isinstance(plane, Tensor) else np.array(plane, np.float32)


def _show_slice(
    axes: Axes,
    plane: NDArray[np.float32],
    shape: Sequence[int],
    number: int,
    limits: Any,
    voxel_size: Sequence[float] | None,
) -> None:
    through, down, across = _PLANES[number]
    axes.imshow(plane, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_title(f"{down}{across} at {through} = {shape[number] // 2}", fontsize=9)
    if voxel_size is not None:
        _scale_bar(axes, shape["zyx".index(across)], voxel_size["zyx".index(across)])
        axes.set_aspect(voxel_size["zyx".index(down)] / voxel_size["zyx".index(across)])


def _show_spectrum(axes: Axes, spectrum: Tensor, geometry: TiltGeometry | None, limits: tuple[float, float]) -> None:
    across = "x" if geometry is None or geometry.tilt_axis == "y" else "y"
    axes.imshow(spectrum.numpy(), cmap="magma", vmin=limits[0], vmax=limits[1], extent=(-0.5, 0.5, 0.5, -0.5))
    axes.set_title(f"log power, k{across} across, kz down", fontsize=9)
    for tilt in geometry.tilt_range if geometry is not None else ():
        slope = np.array([np.cos(np.radians(tilt)), np.sin(np.radians(tilt))])
        ends = np.outer([-1, 1], slope * 0.5 / np.abs(slope).max())
        axes.plot(ends[:, 0], ends[:, 1], color="white", linewidth=0.7, linestyle="--")


def _scale_bar(axes: Axes, n_voxels: int, voxel_size: float) -> None:
    """A bar of a round length, about a fifth of the picture."""
    wanted = n_voxels * voxel_size / 10 / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    bar = length * 10 / voxel_size
    axes.plot([3, 3 + bar], [3, 3], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(3, 5, f"{length:g} nm", color="white", fontsize=8, va="top")


def _running_mean(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    sums = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    stops = np.arange(1, len(values) + 1)
    mean: np.ndarray[Any, Any] = (sums[stops] - sums[starts]) / (stops - starts)
    return mean


def _figure(rows: int, columns: int, size: tuple[float, float] | None = None) -> tuple[Figure, Any]:
    # The object interface draws without a display and without pyplot's global figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (3.1 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    if size is None:
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
    return figure, grid


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, overwrite=True) as file:
        figure.savefig(file, dpi=110, format=path.suffix.lstrip("."))
    return path
