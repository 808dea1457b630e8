"""Charts and spectra for the page: SVG in the colours of its style sheet, so that they follow light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equitomo.geometry import Geometry, TiltAxes
from equitomo.metrics import FourierShellCorrelation
from equitomo.report.drawing import log_power, running_mean
from equitomo.report.sections import shrunk, webp_uri
from equitomo.volumes import VolumeLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that stand for those of the style sheet until the SVG is written.
_INK, _ACCENT, _MUTED, _RULE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--ink", _ACCENT: "--accent", _MUTED: "--muted", _RULE: "--rule"}
_LINES = ((_ACCENT, "-"), (_INK, "-"), (_MUTED, "--"), (_INK, ":"), (_ACCENT, "--"), (_MUTED, "-."))
_SIZE = (5.4, 3.0)
_SPECTRUM = 256  # pixels along each side
_POINTS = 400  # of a curve of losses


@dataclass(frozen=True)
class Chart:
    """A drawing with its title and a sentence on how to read it; ``svg`` is put into the page as it is."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Spectrum:
    """The power of a volume over the plane across a tilt axis.

    ``outline`` is the path around the missing wedge in cycles per voxel, empty where no tilts are known.
    """

    name: str
    picture: str
    across: str
    outline: str


def spectra(volumes: Mapping[str, VolumeLike], geometry: Geometry) -> list[Spectrum]:
    """Return the logarithmic spectra of volumes across each tilt axis, on one colour scale, with the wedge outlined."""
    from matplotlib import colormaps

    planes = sorted({part.axes for part in geometry.parts})
    powers = {(name, axes): log_power(volume, axes).numpy() for name, volume in volumes.items() for axes in planes}
    low, high = np.percentile(np.concatenate([power.ravel() for power in powers.values()]), [2, 99.8])
    found = []
    for (name, axes), power in powers.items():
        small = shrunk(power, min(power.shape[1], _SPECTRUM), min(power.shape[0], _SPECTRUM))
        colours = colormaps["magma"]((small - low) / max(float(high - low), 1e-12), bytes=True)[..., :3]
        outline = _outline(geometry, axes)
        found.append(Spectrum(name, webp_uri(np.ascontiguousarray(colours)), "zyx"[axes.across], outline))
    return found


@dataclass(frozen=True)
class Curve:
    """Values over the frequency in cycles per voxel, with their standard errors where these are known."""

    frequency: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float] | None = None

    @classmethod
    def of(cls, found: FourierShellCorrelation) -> Curve:
        """Return the curve of a Fourier shell correlation."""
        return cls(found.frequency.tolist(), found.correlation.tolist())


@dataclass(frozen=True)
class TiltCurve:
    """Values at tilts in degrees, with their standard errors."""

    tilts: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float]


def draw_curves(
    curves: Mapping[str, Curve],
    *,
    title: str,
    caption: str,
    voxel_size: float | None = None,
    thresholds: Sequence[float] = (0.143,),
    low: float = -0.1,
) -> Chart:
    """Return a chart of correlations over the frequency, labelled with resolutions where the voxel size is known.

    Standard errors are drawn as a band of 95 % around a curve. The axis begins at the correlation ``low``.
    """

    def draw(axes: Axes) -> None:
        for (name, curve), (colour, line) in zip(curves.items(), _LINES, strict=False):
            frequency, values = np.array(curve.frequency, np.float64), np.array(curve.values, np.float64)
            axes.plot(frequency, values, color=colour, linestyle=line, label=name)
            if curve.errors is not None:
                reach = 1.96 * np.array(curve.errors, np.float64)
                axes.fill_between(frequency, values - reach, values + reach, color=colour, alpha=0.18, linewidth=0)
        for threshold in thresholds:
            axes.axhline(threshold, color=_MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
            axes.text(0.498, threshold, f"{threshold:g}", color=_MUTED, ha="right", va="bottom", fontsize=8)
        axes.set(xlim=(0, 0.5), ylim=(low, 1.03), ylabel="correlation", xlabel="cycles per voxel")
        if voxel_size:
            ticks = (0.1, 0.2, 0.3, 0.4, 0.5)
            axes.set_xticks(ticks, [f"{voxel_size / tick:.3g}" for tick in ticks])
            axes.set_xlabel("resolution / Å")
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)

    return Chart(title, draw_svg(draw, title), caption)


def draw_tilts(curves: Mapping[str, TiltCurve], *, title: str, caption: str, low: float = -0.1) -> Chart:
    """Return a chart of correlations over the tilt, with intervals of 95 %, whose axis begins at ``low``."""

    def draw(axes: Axes) -> None:
        for n, ((name, curve), (colour, line)) in enumerate(zip(curves.items(), _LINES, strict=False)):
            # Side by side, so that intervals at one tilt do not hide each other.
            tilts = np.array(curve.tilts, np.float64) + 0.6 * (n - (len(curves) - 1) / 2)
            values, reach = np.array(curve.values, np.float64), 1.96 * np.array(curve.errors, np.float64)
            axes.errorbar(tilts, values, reach, color=colour, fmt="o" if line == "-" else "s", label=name)
        axes.set(ylim=(low, 1.03), ylabel="correlation", xlabel="tilt / degrees")
        # Above the axes, as intervals may be anywhere in them.
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Chart(title, draw_svg(draw, title), caption)


def draw_loss_curves(steps: Sequence[int] | NDArray[Any], losses: Mapping[str, ArrayLike]) -> Chart:
    """Return a chart of running means of losses over a fiftieth of the steps; losses that are always 0 are left out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = {name: np.array(loss, np.float64) for name, loss in losses.items()}
    drawn = {name: loss for name, loss in values.items() if np.nan_to_num(loss).any()}
    window = max(len(steps) // 50, 1)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(_POINTS, len(steps))).round().astype(int))

    def draw(axes: Axes) -> None:
        for (name, loss), (colour, line) in zip(drawn.items(), _LINES * (len(drawn) // len(_LINES) + 1), strict=False):
            mean = running_mean(loss, window)
            axes.plot(np.array(steps)[chosen], mean[chosen], color=colour, linestyle=line, label=name)
        if drawn and all((loss[np.isfinite(loss)] > 0).all() for loss in drawn.values()):
            axes.set_yscale("log")
            # Powers of ten would be written as formulas.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="step", ylabel="loss")
        if drawn:
            axes.legend(frameon=False, labelcolor=_INK, fontsize=9)

    return Chart(
        "Losses", draw_svg(draw, "Losses over the steps"), f"Running means over {window} steps." if window > 1 else ""
    )


def draw_svg(draw: Callable[[Axes], None], name: str, *, size: tuple[float, float] = _SIZE) -> str:
    """Return what a function draws into axes as an SVG element, with ``name`` for those who cannot see it.

    The colours of the page are the module's ``_INK``, ``_ACCENT``, ``_MUTED`` and ``_RULE``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    look = {
        # Text stays text, and a name with a dollar sign is not taken for mathematics.
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": _RULE,
        "axes.labelcolor": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.grid(color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Return an SVG file as an element of a page, with the page's colours and font and without a fixed size."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1))
    # Groups are numbered alike in all charts, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _outline(geometry: Geometry, axes: TiltAxes) -> str:
    """Return the path around both sectors that no tilt about an axis measures, in cycles per voxel, kz downward."""
    paths = []
    for part in geometry.parts:
        if part.axes != axes:
            continue
        low, high = part.tilt_range
        # The corners of the square lie at 45 and 135 degrees.
        angles = sorted({high, *(angle for angle in (45.0, 135.0) if high < angle < 180 + low), 180 + low})
        for turn in (1, -1):
            ends = [(turn * math.cos(math.radians(angle)), turn * math.sin(math.radians(angle))) for angle in angles]
            corners = [f"{0.5 * x / max(abs(x), abs(z)):.4f},{0.5 * z / max(abs(x), abs(z)):.4f}" for x, z in ends]
            paths.append(f"M0,0 L{' L'.join(corners)} Z")
    return " ".join(paths)
