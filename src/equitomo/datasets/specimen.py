"""A mask of the specimen in a tomogram."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_SAMPLES = 4_000_000


def specimen_mask(
    volume: Tensor,
    *,
    window: int = 9,
    density_percentage: float = 50.0,
    deviation_percentage: float = 50.0,
) -> Tensor:
    """Return a mask of the voxels with strong density nearby and strong local variation, without ice and vacuum.

    Two criteria in the manner of IsoNet (:cite:t:`liu2022isotropic`): the largest deviation of the
    smoothed volume from its median within the window, and the local standard deviation over the window. A
    voxel is kept if it ranks among the given percentages in both. Contrast may be dark or bright.

    Parameters
    ----------
    volume
        A tomogram ``(z, y, x)``. The mean of the two halves has the least noise.
    window
        Side of the neighbourhood in voxels, odd.
    density_percentage, deviation_percentage
        Percentages of voxels that each criterion keeps; 50 are IsoNet's defaults, 100 switches one off.

    Returns
    -------
    Tensor
        Boolean, of the volume's shape.

    Raises
    ------
    ValueError
        If the volume is not ``(z, y, x)``, for an even window or percentages outside (0, 100].

    Examples
    --------
    >>> volume = torch.zeros(24, 24, 24)
    >>> volume[8:16, 8:16, 8:16] = torch.rand(8, 8, 8)
    >>> mask = specimen_mask(volume, density_percentage=20, deviation_percentage=20)
    >>> bool(mask[12, 12, 12]), bool(mask[0, 0, 0])
    (True, False)
    """
    if volume.ndim != 3:
        raise ValueError(f"`volume` must be (z, y, x), got shape {tuple(volume.shape)}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"`window` must be an odd number of voxels, got {window}")
    for percentage in (density_percentage, deviation_percentage):
        if not 0 < percentage <= 100:
            raise ValueError(f"`density_percentage` and `deviation_percentage` must lie in (0, 100], got {percentage}")
    x = volume.float()[None, None]
    smooth = _local_mean(_local_mean(x, 3), 3)
    density = F.max_pool3d((smooth - smooth.median()).abs(), window, stride=1, padding=window // 2)
    # Variance about the global mean first: squares of large offsets would cancel badly.
    centred = x - x.mean()
    variance = _local_mean(centred.square(), window) - _local_mean(centred, window).square()
    kept = (density >= _threshold(density, density_percentage)) & (
        variance >= _threshold(variance, deviation_percentage)
    )
    return kept[0, 0]


def _local_mean(x: Tensor, window: int) -> Tensor:
    return F.avg_pool3d(x, window, stride=1, padding=window // 2, count_include_pad=False)


def _threshold(values: Tensor, percentage: float) -> Tensor:
    """Return the value that the given percentage of voxels reach, above the lowest value if most voxels hold that."""
    flat = values.flatten()
    step = -(-flat.numel() // _SAMPLES) | 1
    threshold = torch.sort(flat[::step]).values[int((1 - percentage / 100) * (len(flat[::step]) - 1))]
    if percentage < 100 and threshold <= flat.min():
        return torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
    return threshold
