"""Pictures of volumes, spectra, losses and correlation curves, and the page that shows a reconstruction."""

from equitomo.report.drawing import (
    draw_correlations,
    draw_halves,
    draw_held_out,
    draw_losses,
    draw_preview,
    draw_slices,
    draw_spots,
    draw_wedge,
    log_power,
)
from equitomo.report.figures import (
    Chart,
    Curve,
    Spectrum,
    TiltCurve,
    draw_curves,
    draw_loss_curves,
    draw_svg,
    draw_tilts,
    spectra,
)
from equitomo.report.history import preview_pictures
from equitomo.report.left_out import LeftOutRow, draw_left_out
from equitomo.report.page import Chapter, FileEntry, Link, Page, Table
from equitomo.report.sections import Cut, Grey, Panel, Shown, cut_volumes

__all__ = [
    "Chapter",
    "Chart",
    "Curve",
    "Cut",
    "FileEntry",
    "Grey",
    "LeftOutRow",
    "Link",
    "Page",
    "Panel",
    "Shown",
    "Spectrum",
    "Table",
    "TiltCurve",
    "cut_volumes",
    "draw_correlations",
    "draw_curves",
    "draw_halves",
    "draw_held_out",
    "draw_left_out",
    "draw_loss_curves",
    "draw_losses",
    "draw_preview",
    "draw_slices",
    "draw_spots",
    "draw_svg",
    "draw_tilts",
    "draw_wedge",
    "log_power",
    "preview_pictures",
    "spectra",
]
