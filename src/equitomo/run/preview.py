"""A reconstruction without training, by the network that comes with the package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from equitomo.datasets import TomogramPair
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.run.prediction import Plan, predictor_for, require_one_wedge
from equitomo.run.settings import ReconstructionSettings
from equitomo.training import TrainingConfig, load_network

PREVIEW_LABEL = "equitomo preview: prior learned on simulations, not trained on this data"
# Standard deviation in voxels of the blur that leaves the specimen and little of the noise.
_BLUR = 2.0


class Preview:
    """The preview of a tomogram, for which all is checked and the disk has room.

    The network that comes with the package was trained on simulated specimens, and not on the data. Training on the
    data gives a better result; a preview takes seconds and needs only one volume. Where there are two halves, their
    mean is reconstructed. The network knows specimens that are brighter than their background, so the intensities of
    others are inverted for it (see :func:`is_dark`) and the result is inverted back.

    Parameters
    ----------
    pair
        The tomogram.
    out
        The file to write.
    settings
        The tiles, and how the result is written.
    overwrite
        Replace the file if it exists.

    Attributes
    ----------
    is_dark : bool
        Whether the specimen was found to be darker than its background.

    Raises
    ------
    ValueError, OSError
        As for :class:`~equitomo.run.Plan`, or if the halves have different tilts.
    """

    def __init__(
        self,
        pair: TomogramPair,
        out: str | Path,
        settings: ReconstructionSettings | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        settings = settings or ReconstructionSettings()
        config = TrainingConfig.preset("fast")
        require_one_wedge(pair, config)
        self.is_dark = is_dark(pair.volumes)
        network = load_network("cryo").eval()
        predictor = predictor_for(_Inverted(network) if self.is_dark else network, pair.geometry, settings, config)
        self.plan = Plan(pair, out, predictor, settings, overwrite=overwrite, label=PREVIEW_LABEL)

    def write(self) -> Path:
        """Write the preview and return its path."""
        return self.plan.write()


def is_dark(volumes: Tensor) -> bool:
    """Return whether the specimen is darker than its background in volumes ``(views, z, y, x)``.

    Most of a tomogram is background, so the blurred mean of the views has a longer tail on the side of the specimen:
    its skewness is negative for a dark one.

    Examples
    --------
    >>> specimen = torch.zeros(1, 16, 16, 16)
    >>> specimen[..., 6:9, 6:9, 6:9] = 1
    >>> is_dark(specimen), is_dark(-specimen)
    (False, True)
    """
    mean = volumes.mean(0)
    shape = (mean.shape[0], mean.shape[1], mean.shape[2])
    radius = frequency_radius(shape, device=mean.device, dtype=torch.float32)
    blurred = irfftn(rfftn(mean) * torch.exp(-2 * (math.pi * _BLUR * radius) ** 2), shape)
    return bool((blurred - blurred.mean()).pow(3).mean() < 0)


class _Inverted(nn.Module):
    """Applies a network to inverted intensities and inverts the result."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.stride = getattr(network, "stride", 1)
        self.maps_at_once = getattr(network, "maps_at_once", None)

    def forward(self, x: Tensor) -> Tensor:
        return -cast(Tensor, self.network(-x))
