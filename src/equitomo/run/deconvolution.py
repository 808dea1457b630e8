"""The deconvolution of a prediction, written beside it under a name and a label of its own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from equitomo.datasets import TomogramPair
from equitomo.io import read_volume, write_volume
from equitomo.physics import ContrastTransfer, deconvolve
from equitomo.run.finish import Finish
from equitomo.run.settings import ReconstructionSettings

# The volume, its spectrum, the filter and the result, in float32.
_BYTES_PER_VOXEL = 16


class Deconvolution(Finish):
    """The deconvolution of a prediction, checked before the prediction is made.

    The tomogram has a voxel size, and the settings have ``deconvolve="isonet"`` or ``"warp"`` and the defocus.

    Raises
    ------
    ValueError
        If the voxel size is not known, a value cannot be in its unit, or torch-ctf is missing.
    OSError
        If the file cannot be written.
    """

    words, task = ("deconvolved",), "deconvolution"
    remedy = "predict without `deconvolve`, and deconvolve on a larger machine"

    def __init__(self, pair: TomogramPair, out: Path, settings: ReconstructionSettings, *, overwrite: bool) -> None:
        if not pair.voxel_size:
            raise ValueError(f"{pair.name}: `deconvolve` needs the voxel size, which no header states")
        self._ctf = ContrastTransfer(
            settings.defocus,
            voltage=settings.voltage,
            spherical_aberration=settings.spherical_aberration,
            amplitude_contrast=settings.amplitude_contrast,
            pixel_size=float(np.mean(pair.voxel_size)),
        )
        try:
            self._ctf.radial(2)
        except ImportError as error:
            raise ValueError(str(error)) from error
        super().__init__(pair, out, settings, overwrite=overwrite, memory=_BYTES_PER_VOXEL * math.prod(pair.shape))

    def write(self) -> Path:
        """Deconvolve the file of the prediction and return the path of the result."""
        volume, settings = read_volume(self._source), self._settings
        assert settings.deconvolve != "none"
        sharper = deconvolve(
            torch.from_numpy(np.array(volume.data, np.float32)),
            self._ctf,
            convention=settings.deconvolve,
            strength=settings.deconvolution_strength,
            falloff=settings.deconvolution_falloff,
            phase_flipped=settings.phase_flipped,
        )
        label = f"equitomo: deconvolved as in {settings.deconvolve}, defocus {settings.defocus:g} A"
        return write_volume(
            self.paths[0], sharper.numpy(), like=volume, label=label, dtype=settings.dtype, overwrite=self._overwrite
        )
