"""A simulated specimen with its half tomograms, to try the method on without data."""

from __future__ import annotations

from pathlib import Path

import torch

from equitomo.datasets import TomogramPair
from equitomo.geometry import TiltGeometry
from equitomo.io import write_atomically, write_volume
from equitomo.run.folder import RUN_FILES
from equitomo.run.settings import SpecimenSettings
from equitomo.simulate import simulate_halves

# The names that a demonstration writes in its folder.
DEMO_FILES = (*RUN_FILES, "even.mrc", "odd.mrc", "truth.mrc", "tilts.tlt")
_VOXEL_SIZE = 10.0


class Demonstration:
    """A simulated specimen, tilted from -60 to 60 degrees in steps of 3, and its two half tomograms.

    Parameters
    ----------
    settings
        Size and noise.
    seed
        Seed of the specimen and the noise.

    Attributes
    ----------
    pair : TomogramPair
        The half tomograms.
    truth : Tensor
        The specimen.

    Examples
    --------
    >>> Demonstration(SpecimenSettings(size=24)).pair.shape
    (24, 24, 24)
    """

    def __init__(self, settings: SpecimenSettings, seed: int = 0) -> None:
        self._geometry = TiltGeometry(range(-60, 61, 3))
        generator = torch.Generator().manual_seed(seed)
        shape = (settings.size, settings.size, settings.size)
        self._halves = simulate_halves(shape, self._geometry, snr=settings.snr, generator=generator)
        self.truth = self._halves.truth
        self.pair = TomogramPair(
            self._halves.first, self._halves.second, self._geometry, voxel_size=_VOXEL_SIZE, name="the demonstration"
        )

    def write(self, folder: Path) -> None:
        """Write halves, truth and tilts, in the place of those of an earlier demonstration."""
        for name, volume in (("even", self._halves.first), ("odd", self._halves.second), ("truth", self.truth)):
            write_volume(folder / f"{name}.mrc", volume.numpy(), voxel_size=_VOXEL_SIZE, overwrite=True)
        angles = "".join(f"{angle:.2f}\n" for angle in self._geometry.angles)
        write_atomically(folder / "tilts.tlt", angles.encode(), overwrite=True)
