"""The Fourier shell correlation of two volumes in files, in parts of Fourier space, directions and a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equitomo import report
from equitomo.datasets import TomogramPair, require_usable
from equitomo.geometry import Geometry, TiltGeometry
from equitomo.io import Volume
from equitomo.metrics import (
    FourierShellCorrelation,
    cone_masks,
    masked_correlations,
    region_masks,
    shell_correlations,
    soft_mask,
)
from equitomo.run.settings import ComparedFiles
from equitomo.run.table import Tomogram

# Degrees between the axis and the side of a cone (3DFSC's).
_HALF_ANGLE = 20.0
_SEED = 0


class Comparison:
    """Two volumes in files to be compared, which are checked at once.

    Parameters
    ----------
    files
        The files of the volumes; the tilts and a mask are optional.

    Raises
    ------
    ValueError
        If there is only one volume, or the volumes or the mask cannot be used.
    OSError
        If a file cannot be read.
    """

    def __init__(self, files: ComparedFiles) -> None:
        if files.second is None:
            raise ValueError("give two volumes, FIRST and SECOND")
        if files.second_tilts is not None and files.tilts is None:
            raise ValueError("`second_tilts` are those of the second half: pass `tilts`, those of the first, too")
        tomogram = Tomogram(files)
        self.geometry = None if files.tilts is None else tomogram.geometry()
        # The correlation of whole volumes needs no tilts, but a pair has some.
        self.pair = tomogram.read(self.geometry or TiltGeometry.from_range(-60, 60), lazy=True)
        for label, statistics in zip(self.pair.labels, self.pair.statistics, strict=True):
            require_usable(statistics, label, nan=self.pair.nan)
        self._window = window_of(self.pair)

    @property
    def voxel_size(self) -> float | None:
        """The shortest side of a voxel in ångström, if it is known."""
        return None if self.pair.voxel_size is None else min(self.pair.voxel_size)

    def curves(self) -> dict[str, FourierShellCorrelation]:
        """Return what :func:`correlations` does for the two volumes."""
        second = None if self.geometry is None else self.pair.geometries[1]
        return correlations(self.pair, self.geometry, self._window, second_geometry=second)

    def table(self, curves: dict[str, FourierShellCorrelation]) -> str:
        """Return the resolutions at which curves fall below 0.5 and 0.143, as a table."""
        unit = "voxels" if self.voxel_size is None else "Å"
        lines = [f"{'region':>10} {'0.5':>10} {'0.143':>10}   resolution in {unit} where the correlation falls below"]
        for name, curve in curves.items():
            lines.append(f"{name:>10} {curve.resolution(0.5):10.1f} {curve.resolution(0.143):10.1f}")
        return "\n".join(lines)

    def draw(self, path: str | Path, curves: dict[str, FourierShellCorrelation]) -> Path:
        """Draw curves into a PNG file, those of directions and of the mask with thin lines; return its path."""
        thin = curves.keys() - {"whole", "measured", "wedge"}
        return report.draw_correlations(path, curves, voxel_size=self.voxel_size, thin=thin)


def correlations(
    pair: TomogramPair,
    geometry: Geometry | None = None,
    window: Tensor | None = None,
    *,
    second_geometry: Geometry | None = None,
) -> dict[str, FourierShellCorrelation]:
    """Return the correlation of two volumes in all of Fourier space and about each axis, by name.

    Parameters
    ----------
    pair
        The volumes. Both are read as a whole.
    geometry
        With tilts, the correlation in the measured part and in the wedge is given, too.
    window
        With a mask of real space, the curves are those inside it, corrected by randomised phases. For the whole of
        Fourier space there are also the curve without a mask, with it, and with randomised phases.
    second_geometry
        The tilts of the second volume where they differ. The measured part is then what both volumes have measured, and
        the wedge what neither has.
    """
    first, second = (np.asarray(half[:, :, :], np.float32) for half in pair.halves)
    masks: dict[str, Tensor | None] = {"whole": None}
    if geometry is not None:
        regions = region_masks(pair.shape, geometry, second_geometry=second_geometry)
        masks |= {"measured": regions.measured, "wedge": regions.wedge}
    masks |= {f"along {axis}": cone for axis, cone in cone_masks(pair.shape, _HALF_ANGLE, None).items()}
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    if window is None:
        return shell_correlations(first, second, masks, voxel_size=size)
    draws = torch.Generator().manual_seed(_SEED)
    curves = masked_correlations(first, second, window, masks, voxel_size=size, generator=draws)
    whole = curves["whole"]
    corrected = {name: curve.corrected for name, curve in curves.items()}
    return corrected | {"unmasked": whole.unmasked, "masked": whole.masked, "randomised": whole.randomized}


def window_of(pair: TomogramPair) -> Tensor | None:
    """Return the values of a pair's mask, with soft edges if it has only zeros and ones; ``None`` without a mask."""
    inside = pair.mask
    if inside is None:
        return None
    given = pair.files.get("mask")
    if pair.mask_is_binary is False and isinstance(given, Volume):
        return torch.from_numpy(np.array(given[:, :, :], np.float32))
    return soft_mask(inside)
