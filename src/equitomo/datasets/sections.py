"""Tell a tomogram from a tilt series, which are stored alike."""

from __future__ import annotations

from collections.abc import Sequence

from equitomo.geometry import Geometry
from equitomo.io import Volume, fei_tilts


def require_tomogram(volume: Volume, geometries: Sequence[Geometry]) -> None:
    """Raise an error for a file that seems to be a tilt series.

    It has one section for each of the listed tilts, or a tilt for each section in its FEI extended header.

    Parameters
    ----------
    volume
        The file.
    geometries
        The declared tilts. Continuous ranges have no number of tilts.
    """
    n_sections = volume.shape[0]
    parts = [part for geometry in geometries for part in geometry.parts]
    listed = any(not part.continuous and len(part.angles) == n_sections for part in parts)
    tilts = fei_tilts(volume.header, n_sections)
    if listed or (tilts is not None and len(set(tilts)) > 1):
        where = "" if listed else " in its FEI extended header"
        raise ValueError(
            f"{volume.path}: {n_sections} sections, {n_sections} angles{where}: a tilt series? Expected a tomogram; "
            "make two half tomograms of the series with `equitomo halves`, or pass `is_tomogram=True` if this is a "
            "tomogram that has as many sections as there are tilts"
        )
