"""Pictures of volumes, spectra, training losses and correlation curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.diagnosis import WedgeEstimate
from equitomo.fourier import cosine_edges
from equitomo.geometry import Geometry, TiltAxes, TiltGeometry
from equitomo.io import atomic_file, release
from equitomo.metrics import FourierShellCorrelation, HeldOutCorrelation
from equitomo.spots import FilledSpot
from equitomo.training.loss_table import LossHistory
from equitomo.volumes import VolumeLike, Voxels, as_voxels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ABOUT_Y = TiltAxes.about("y")
_TOGETHER = 8  # planes that are transformed at once
# The entry of a preview's metadata that gives the place of each section of the network's result in the picture.
PLACES = "Places"


def draw_slices(
    path: str | Path,
    volumes: Mapping[str, VolumeLike],
    *,
    geometry: Geometry | None = None,
    voxel_size: Sequence[float] | None = None,
) -> Path:
    """Draw the central slices of volumes along the three axes, and their power spectra across the tilt axis.

    Every volume has a row and its own grey scale. The spectra are logarithmic, averaged over the frequencies along the
    tilt axis, and share one colour scale. Dashed lines mark the outermost tilts. A dual-axis geometry has a spectrum
    for each of its tilt axes. Only a few planes of a volume are read at a time.

    Parameters
    ----------
    path
        The picture to write.
    volumes
        Titles and volumes ``(z, y, x)`` of one shape: tensors, arrays or voxels in a file.
    geometry
        The tilts. ``None`` draws the spectrum for a tilt axis along y, without lines.
    voxel_size
        Å along ``(z, y, x)``, for the aspect of the slices and a scale bar.
    """
    parts = () if geometry is None else geometry.parts
    planes = sorted({part.axes for part in parts}) or [_ABOUT_Y]
    figure, grid = figure_of(len(volumes), 3 + len(planes))
    spectra = [[log_power(volume, axes) for axes in planes] for volume in volumes.values()]
    # One scale from the weakest to the strongest: an empty wedge looks empty in one row, a filled one full in another.
    values = torch.cat([spectrum.flatten() for row in spectra for spectrum in row])
    low, high = np.percentile(values.numpy(), [2, 99.8])
    for row, (title, volume), powers in zip(grid, volumes.items(), spectra, strict=True):
        _show_slices(row[:3], as_voxels(volume), voxel_size)
        row[0].set_ylabel(title, fontsize=11)
        for axes, plane, spectrum in zip(row[3:], planes, powers, strict=True):
            _show_spectrum(axes, spectrum, plane, [part for part in parts if part.axes == plane], (low, high))
    return save_figure(figure, path)


def draw_halves(
    path: str | Path,
    view: Tensor,
    angles: Sequence[float],
    sinogram: Sequence[Tensor],
    volumes: Mapping[str, VolumeLike],
    geometries: Sequence[TiltGeometry],
    *,
    title: str = "",
    voxel_size: Sequence[float] | None = None,
) -> Path:
    """Draw a view and a sinogram of a tilt series, and central slices and spectra of the two halves made of it.

    Parameters
    ----------
    path
        The picture to write.
    view
        A view ``(along, across)`` of the tilt axis.
    angles, sinogram
        The tilts in ascending order, and one row across the tilt axis of each view.
    volumes
        Titles and volumes ``(z, y, x)`` of the halves.
    geometries
        The tilts of each half.
    title
        The title of the picture.
    voxel_size
        As for :func:`draw_slices`.
    """
    figure, grid = figure_of(1 + len(volumes), 4)
    rows = torch.stack(list(sinogram)).float().numpy()
    for axes, image in ((grid[0, 0], view.float().numpy()), (grid[0, 1], rows)):
        low, high = np.percentile(image, [0.5, 99.5])
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect="auto" if image is rows else None)
    grid[0, 0].set(xlabel="across the tilt axis", ylabel="along it")
    ticks = sorted({0, len(angles) // 2, len(angles) - 1})
    grid[0, 1].set(xlabel="across the tilt axis", ylabel="tilt / degrees", yticks=ticks)
    grid[0, 1].set_yticklabels([f"{angles[n]:.0f}" for n in ticks])
    for axes in grid[0, 2:]:
        axes.axis("off")
    spectra = [log_power(one, geometry.axes) for one, geometry in zip(volumes.values(), geometries, strict=True)]
    low, high = np.percentile(torch.cat([spectrum.flatten() for spectrum in spectra]).numpy(), [2, 99.8])
    for row, (name, volume), geometry, spectrum in zip(grid[1:], volumes.items(), geometries, spectra, strict=True):
        _show_slices(row[:3], as_voxels(volume), voxel_size)
        release(volume)
        row[0].set_ylabel(name, fontsize=11)
        _show_spectrum(row[3], spectrum, geometry.axes, [geometry], (low, high))
    figure.suptitle(title)
    return save_figure(figure, path)


def draw_spots(
    path: str | Path,
    spots: Sequence[FilledSpot],
    volumes: Mapping[str, VolumeLike],
    *,
    geometry: Geometry,
    most: int = 6,
    side: int = 64,
) -> Path:
    """Draw the surroundings of spots across the tilt axis, in several volumes with one grey scale.

    Parameters
    ----------
    path
        The picture to write.
    spots
        The spots, of which the first ``most`` are drawn.
    volumes
        Titles and volumes ``(z, y, x)`` of one shape, such as a reconstruction and its two parts.
    geometry
        The tilts; of a dual-axis geometry the planes are across the first tilt axis.
    most
        Spots that are drawn at most.
    side
        Voxels along the sides of a picture at most.
    """
    shown, along = spots[:most], geometry.parts[0].axes.along + 3
    figure, grid = figure_of(max(len(shown), 1), len(volumes))
    for row, spot in zip(grid, shown, strict=False):
        place: list[Any] = [slice(max(n - side // 2, 0), n + side // 2) for n in spot.position]
        place[along] = spot.position[along]
        down, across = (n - cut.start for n, cut in zip(spot.position, place, strict=True) if isinstance(cut, slice))
        planes = [np.array(as_voxels(volume)[tuple(place)], np.float32) for volume in volumes.values()]
        # Parts of a volume lack its mean: each is shown about its own middle, all with the range of the first.
        reach = float(np.ptp(np.percentile(planes[0], [0.5, 99.5]))) / 2 or 1.0
        for axes, plane in zip(row, planes, strict=True):
            middle = float(np.median(plane))
            axes.imshow(plane, cmap="gray", vmin=middle - reach, vmax=middle + reach, interpolation="nearest")
            axes.plot(across, down, "o", markersize=16, markerfacecolor="none", markeredgecolor="tab:orange")
        z, y, x = spot.position
        row[0].set_ylabel(f"z {z}, y {y}, x {x}")
    for axes, title in zip(grid[0], volumes, strict=True):
        axes.set_title(title, fontsize=10)
    if not shown:
        figure.suptitle("no spot is shown by the filled part alone")
    return save_figure(figure, path)


def draw_preview(path: str | Path, cube: Tensor, output: Tensor, title: str) -> Path:
    """Draw the central slices of a cube ``(z, y, x)`` and of the network's output for it.

    A PNG file also states its title and where in it the output is.
    """
    figure, grid = figure_of(2, 3)
    for row, name, volume in zip(grid, ("input", "network"), (cube, output), strict=True):
        _show_slices(row, as_voxels(volume), None)
        row[0].set_ylabel(name)
    figure.suptitle(title)
    figure.draw_without_rendering()
    places = ";".join(" ".join(f"{share:.4f}" for share in axes.get_position().extents) for axes in grid[1])
    return save_figure(figure, path, {"Title": title, PLACES: places})


def draw_losses(path: str | Path, losses: str | Path) -> Path:
    """Draw every loss of a run's ``losses.csv`` over the steps, and its running mean over a fiftieth of them.

    A loss that is zero at all steps took no part in the training and is left out. The scale is logarithmic unless a
    loss is negative.

    Parameters
    ----------
    path
        The picture to write.
    losses
        A table with the column ``step`` and one column for each loss. Columns named ``learning_rate`` and ``skipped``
        are not drawn.
    """
    history = LossHistory.read(Path(losses))
    figure, ((axes,),) = figure_of(1, 1, size=(8, 4))
    drawn = {name: loss for name, loss in history.losses.items() if loss.any()}
    for number, (name, loss) in enumerate(drawn.items()):
        axes.plot(history.steps, loss, color=f"C{number}", alpha=0.25, linewidth=0.6)
        axes.plot(history.steps, running_mean(loss, max(len(loss) // 50, 1)), color=f"C{number}", label=name)
    if drawn:
        axes.legend(frameon=False)
        if any((loss > 0).any() for loss in drawn.values()) and not any((loss < 0).any() for loss in drawn.values()):
            axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    return save_figure(figure, path)


def draw_correlations(
    path: str | Path,
    curves: Mapping[str, FourierShellCorrelation],
    *,
    voxel_size: float | None = None,
    thin: Collection[str] = (),
) -> Path:
    """Draw Fourier shell correlation curves, with lines at the thresholds 0.5 and 0.143.

    With a ``voxel_size`` in Å the axis is labelled with resolutions in place of frequencies. The curves whose names are
    in ``thin`` are drawn with thin dashed lines.
    """
    figure, ((axes,),) = figure_of(1, 1, size=(7, 4))
    for name, curve in curves.items():
        width, style = (1.0, "--") if name in thin else (2.0, "-")
        axes.plot(curve.frequency, curve.correlation, label=name, linewidth=width, linestyle=style)
    for threshold in (0.5, 0.143):
        axes.axhline(threshold, color="grey", linewidth=0.7, linestyle="--")
    axes.set(ylim=(-0.1, 1.02), ylabel="Fourier shell correlation")
    label_frequencies(axes, voxel_size)
    return save_figure(figure, path)


def draw_held_out(
    path: str | Path, curves: Mapping[str, HeldOutCorrelation], *, voxel_size: float | None = None
) -> Path:
    """Draw the estimated correlation with the truth in held-out sectors, in each shell with its standard error.

    Dotted lines show what the measured mean of the halves scores, the root of its reliability. With a ``voxel_size`` in
    Å the axis is labelled with resolutions.
    """
    figure, ((axes,),) = figure_of(1, 1, size=(7, 4))
    for number, (name, found) in enumerate(curves.items()):
        bars = {"yerr": found.correlation_error, "color": f"C{number}", "capsize": 2, "linewidth": 1.2}
        axes.errorbar(found.frequency, found.correlation, **bars, label=f"filled, {name}: {found.estimate:.2f}")
        measured = found.shell_reliability.clamp(min=0).sqrt().where(found.correlation.isfinite(), math.nan)
        axes.plot(found.frequency, measured, color=f"C{number}", linestyle=":", label="measured, noisy")
    axes.axhline(0, color="grey", linewidth=0.7, linestyle="--", label="empty")
    lowest = min(-0.3, *(float(found.correlation.nan_to_num(0).min()) - 0.1 for found in curves.values()))
    axes.set(ylim=(lowest, 1.1), ylabel="correlation with the truth (estimate)")
    label_frequencies(axes, voxel_size)
    return save_figure(figure, path)


def draw_wedge(path: str | Path, estimate: WedgeEstimate, geometry: Geometry) -> Path:
    """Draw the power over the direction across the tilt axis, with the outermost tilts as declared and as estimated.

    Parameters
    ----------
    path
        The picture to write.
    estimate
        The wedge that :func:`equitomo.estimate_wedge` found in the spectrum.
    geometry
        The declared tilts.

    Raises
    ------
    ValueError
        If no wedge could be estimated, so that there is nothing to draw.
    """
    if estimate.tilt_range is None:
        raise ValueError(f"the wedge cannot be drawn: {estimate.reason}")
    figure, ((axes,),) = figure_of(1, 1, size=(8, 4))
    # From 0 to 180 degrees the missing sector about the beam is in one piece; 100 degrees are a tilt of -80.
    axes.semilogy(estimate.angle, np.maximum(estimate.power, 1e-5), color="tab:blue")
    declared = [tilt for part in geometry.parts for tilt in part.tilt_range]
    for tilts, colour, name in ((estimate.tilt_range, "tab:blue", "estimated"), (declared, "tab:red", "declared")):
        for number, tilt in enumerate(tilts):
            label = None if number else name
            axes.axvline(tilt % 180, color=colour, linewidth=0.8, linestyle="--", label=label)
    axes.set_xticks(range(0, 181, 30), [f"{angle if angle <= 90 else angle - 180}°" for angle in range(0, 181, 30)])
    axes.set(xlim=(0, 180), xlabel=f"tilt about {estimate.tilt_axis}, beam along {estimate.beam_axis}")
    axes.set_ylabel("power relative to the measured part")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return save_figure(figure, path)


def log_power(volume: VolumeLike, axes: TiltAxes = _ABOUT_Y, *, n_planes: int = 256) -> Tensor:
    """Return the logarithm (base 10) of the power over the plane across the tilt axis, zero frequency in the middle.

    The power is the mean over the frequencies along the tilt axis, ``(z, x)``, or ``(z, y)`` for a tilt axis along x.
    At most ``n_planes`` planes are used, from the middle of the tilt axis, and the faces of the volume are tapered.
    """
    along = axes.along + 3
    shape = list(volume.shape)
    shape[along] = min(shape[along], n_planes)
    total = sum(float(planes.sum(dtype=torch.float64)) for planes in _planes(volume, along, n_planes))
    mean = total / math.prod(shape)
    edges = list(cosine_edges(shape))
    weights = torch.split(edges.pop(along), _TOGETHER)
    window, power = edges[0][:, None] * edges[1], torch.zeros(())
    for planes, weight in zip(_planes(volume, along, n_planes), weights, strict=True):
        # By Parseval's theorem the mean over the frequencies along the tilt axis is the mean over the planes.
        spectra = torch.fft.fft2((planes - mean) * weight[:, None, None] * window, norm="ortho")
        power = power + spectra.abs().square().sum(0) / shape[along]
    shifted: Tensor = torch.fft.fftshift(torch.log10(power + power.max() * 1e-12))
    return shifted


def _planes(volume: VolumeLike, along: int, n_planes: int) -> Iterator[Tensor]:
    """Yield a few planes at a time from the middle of an axis, which becomes the first one."""
    voxels = as_voxels(volume)
    n = min(voxels.shape[along], n_planes)
    first = (voxels.shape[along] - n) // 2
    for begin in range(first, first + n, _TOGETHER):
        cut = voxels[(*(slice(None),) * along, slice(begin, min(begin + _TOGETHER, first + n)))]
        yield torch.from_numpy(np.array(cut, np.float32)).movedim(along, 0)
        release(volume)


def _show_slices(row: Sequence[Axes], voxels: Voxels, voxel_size: Sequence[float] | None) -> None:
    """Show the sections through the middles of the three axes, with one grey scale."""
    slices = [np.array(voxels[(*(slice(None),) * axis, voxels.shape[axis] // 2)], np.float32) for axis in range(3)]
    low, high = np.percentile(np.concatenate([plane.ravel() for plane in slices]), [0.5, 99.5])
    for axes, plane, axis in zip(row, slices, range(3), strict=True):
        down, across = (other for other in range(3) if other != axis)
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(f"{'zyx'[down]}{'zyx'[across]} at {'zyx'[axis]} = {voxels.shape[axis] // 2}", fontsize=9)
        if voxel_size is not None:
            _scale_bar(axes, voxels.shape[across], voxel_size[across])
            axes.set_aspect(voxel_size[down] / voxel_size[across])


def _show_spectrum(
    axes: Axes, spectrum: Tensor, plane: TiltAxes, parts: Sequence[TiltGeometry], limits: tuple[float, float]
) -> None:
    axes.imshow(spectrum.numpy(), cmap="magma", vmin=limits[0], vmax=limits[1], extent=(-0.5, 0.5, 0.5, -0.5))
    axes.set_title(f"log power, k{'zyx'[plane.across]} across, kz down", fontsize=9)
    for tilt in (tilt for part in parts for tilt in part.tilt_range):
        slope = np.array([np.cos(np.radians(tilt)), np.sin(np.radians(tilt))])
        ends = np.outer([-1, 1], slope * 0.5 / np.abs(slope).max())
        axes.plot(ends[:, 0], ends[:, 1], color="white", linewidth=0.7, linestyle="--")


def label_frequencies(axes: Axes, voxel_size: float | None) -> None:
    """Label an axis of frequencies up to Nyquist, with resolutions where the voxel size is known, and the curves."""
    axes.set(xlim=(0, 0.5), xlabel="cycles per voxel")
    if voxel_size is not None:
        ticks = axes.get_xticks()
        axes.set_xticks(ticks[ticks > 0], [f"{voxel_size / tick:.0f}" for tick in ticks if tick > 0])
        axes.set_xlabel("resolution in Å")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _scale_bar(axes: Axes, n_voxels: int, voxel_size: float) -> None:
    """Draw a bar of a round length, about a fifth of the picture."""
    wanted = n_voxels * voxel_size / 10 / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    bar = length * 10 / voxel_size
    axes.plot([3, 3 + bar], [3, 3], color="white", linewidth=3, solid_capstyle="butt")
    axes.text(3, 5, f"{length:g} nm", color="white", fontsize=8, va="top")


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the finite ones among the last ``window`` values, NaN where there is none."""
    finite = np.isfinite(values)
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(stops - window, 0)
    total, number = (np.cumsum(np.insert(v, 0, 0.0)) for v in (np.where(finite, values, 0.0), finite))
    mean = np.full(len(values), np.nan)
    np.divide(
        total[stops] - total[starts], number[stops] - number[starts], out=mean, where=number[stops] > number[starts]
    )
    return mean


def figure_of(rows: int, columns: int, size: tuple[float, float] | None = None) -> tuple[Figure, Any]:
    # The object interface works without a display and leaves pyplot's global figures alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (3.1 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    if size is None:
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
    return figure, grid


def save_figure(figure: Figure, path: str | Path, texts: Mapping[str, str] | None = None) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lstrip(".").lower()
    with atomic_file(path, overwrite=True) as file:
        figure.savefig(file, dpi=110, format=kind, metadata=texts if kind == "png" else None)
    return path
