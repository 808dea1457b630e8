"""Whether a specimen is brighter or darker than its background."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.volumes import VolumeLike, middle_of

Contrast = Literal["given", "bright", "inverted"]
# Standard deviation in voxels of the blur that leaves the specimen and little of the noise.
_BLUR = 2.0
# Voxels along an axis of the part that is looked at. Larger volumes need not be read for it.
_MIDDLE = 128


def is_dark(*views: VolumeLike) -> bool:
    """Return whether the specimen is darker than its background.

    Most of a tomogram is background, so the blurred mean of its views has a longer tail on the side of the specimen:
    its skewness is negative for a dark one. No more than the middle 128 voxels along each axis are read.

    Parameters
    ----------
    *views
        The halves ``(z, y, x)`` of one tomogram, or one volume. Voxels that are NaN or infinite count as background.

    Examples
    --------
    >>> specimen = torch.zeros(16, 16, 16)
    >>> specimen[6:9, 6:9, 6:9] = 1
    >>> is_dark(specimen, specimen), is_dark(-specimen)
    (False, True)
    """
    mean = torch.stack([_centred(middle_of(view, _MIDDLE)) for view in views]).mean(0)
    shape = (mean.shape[0], mean.shape[1], mean.shape[2])
    radius = frequency_radius(shape, dtype=torch.float32)
    blurred = irfftn(rfftn(mean) * torch.exp(-2 * (math.pi * _BLUR * radius) ** 2), shape)
    return bool((blurred - blurred.mean()).pow(3).mean() < 0)


def _centred(volume: Tensor) -> Tensor:
    """Return a volume without its mean, and with zero in place of invalid voxels."""
    valid = torch.isfinite(volume)
    mean = volume[valid].mean() if valid.any() else volume.new_zeros(())
    return torch.where(valid, volume - mean, 0)
