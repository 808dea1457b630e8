"""What makes two volumes halves of one tomogram: independent noise, one specimen in one place, one scale."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.datasets.agreement import SURE, compare_halves
from equitomo.datasets.intensities import Samples, clipped, sampled, sections

_EQUAL = 0.999
# Halves of unequal dose differ by less: a tenth of the tilts more in one is 5 %.
_SCALES, _OFFSETS = 1.5, 0.5
_BLOCK = 4  # voxels per side of what is averaged before halves are correlated


def judge_halves(first: Samples, second: Samples, name: str) -> list[str]:
    """What is wrong with two halves that can be used all the same, and how to mend it.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of one shape, in memory or in files, which are read section by section.
    name
        What an error calls them.

    Raises
    ------
    ValueError
        If they are equal, or all but equal: nothing can be learned from their difference.
    """
    # A few hot voxels must neither hide what the halves share nor pass for it.
    one, other = (clipped(sampled(volume).astype(np.float64)) for volume in (first, second))
    correlation = float(np.corrcoef(one, other)[0, 1])
    if correlation > _EQUAL:
        raise ValueError(
            f"{name}: the halves are not independent, their voxels correlate to {correlation:.4f}: give the two half "
            "tomograms (odd/even tilts or frames), not the same volume twice"
        )
    return [complaint for complaint in (_of_content(first, second), _of_scale(one, other)) if complaint]


def _of_content(first: Samples, second: Samples) -> str:
    agreement = compare_halves(first, second)
    if agreement.complaint or agreement.peak > SURE:
        return agreement.complaint
    # What is too small, too alike in all directions or too noisy for a peak.
    one, other = (clipped(_coarse(volume)) for volume in (first, second))
    correlation = float(np.corrcoef(one, other)[0, 1])
    # Thrice what chance gives this many blocks: a small volume says little about its contrast.
    chance = max(0.05, 3 / len(one) ** 0.5)
    said = f"({correlation:.2f} after averaging 4x4x4 voxels)"
    if correlation < -chance:
        return f"the halves are anticorrelated {said}: is the contrast of one inverted?"
    if correlation < 0.05:
        return f"the halves hardly correlate {said}: do they show the same specimen, unshifted?"
    return ""


def _of_scale(first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    deviations, means = (first.std(), second.std()), (first.mean(), second.mean())
    said = " and ".join(f"{mean:.4g} +- {deviation:.4g}" for mean, deviation in zip(means, deviations, strict=True))
    remedy = (
        "one scale is taken for both, so reconstruct both alike, or bring the second to the mean and the deviation of "
        "the first"
    )
    if max(deviations) > _SCALES * min(deviations):
        return f"the intensities of the halves differ in scale, {said}: {remedy}"
    if abs(means[0] - means[1]) > _OFFSETS * min(deviations):
        return f"the intensities of the halves differ in their mean, {said}: {remedy}"
    return ""


def _coarse(volume: Samples) -> NDArray[np.float64]:
    """The means of all blocks of 4x4x4 voxels, those at the far faces of what is left."""
    blocks: list[Tensor] = []
    held: list[Tensor] = []
    for z, section in sections(volume):
        held.append(torch.nn.functional.avg_pool2d(section[None], _BLOCK, ceil_mode=True)[0])
        if len(held) == _BLOCK or z + 1 == len(volume):
            blocks.append(torch.stack(held).double().mean(0))
            held.clear()
    means: NDArray[np.float64] = torch.stack(blocks).flatten().cpu().numpy()
    return means
