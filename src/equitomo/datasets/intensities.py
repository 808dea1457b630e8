"""The intensity scale of volumes, and whether their intensities can be used at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from equitomo.datasets.statistics import HalfStatistics, without_outliers
from equitomo.volumes import VolumeLike

Normalization = Literal["robust", "scale"]
Nan = Literal["refuse", "mean"]


@dataclass(frozen=True)
class IntensityScale:
    """An affine map of intensities to zero mean and unit deviation, and back.

    Parameters
    ----------
    mean, scale
        A volume ``v`` becomes ``(v - mean) / scale``. A negative scale inverts the contrast, which :meth:`restore`
        inverts back.

    Examples
    --------
    >>> scale = IntensityScale.of(torch.tensor([1.0, 3.0]).reshape(1, 1, 2))
    >>> scale.mean, scale.scale
    (2.0, 1.0)
    >>> scale.restore(scale.apply(torch.tensor([5.0])))
    tensor([5.])
    """

    mean: float
    scale: float

    @classmethod
    def of(cls, *volumes: VolumeLike | HalfStatistics, normalization: Normalization = "robust") -> IntensityScale:
        """Return the common scale of volumes, which hot pixels and gold do not move.

        Values more than six robust standard deviations (from the median absolute deviation) from the median
        are clipped before mean and deviation are taken. If more than 1 % of the voxels lie beyond, or most voxels are
        equal, the volume is nearly empty and those voxels are its specimen: then only the farthest hundredth of them
        is clipped. ``"scale"`` leaves the mean at zero, for data with a true zero.

        Parameters
        ----------
        *volumes
            Volumes ``(z, y, x)`` in memory or in files, or their statistics.
        normalization
            ``"robust"`` or ``"scale"``.

        Raises
        ------
        ValueError
            If the volumes are constant, or ``normalization`` is unknown.
        """
        if normalization not in ("robust", "scale"):
            raise ValueError(f"`normalization` is 'robust' or 'scale', got {normalization!r}")
        statistics = [v if isinstance(v, HalfStatistics) else HalfStatistics.of(v) for v in volumes]
        values = np.concatenate([one.samples for one in statistics]).astype(np.float64)
        _require_contrast(values, "the volume")
        values = without_outliers(values)
        return cls(float(values.mean()) if normalization == "robust" else 0.0, float(values.std()))

    def inverted(self) -> IntensityScale:
        """Return the map to inverted intensities of the same mean and deviation."""
        return IntensityScale(self.mean, -self.scale)

    def apply(self, volume: Tensor) -> Tensor:
        """Return a volume on the common scale."""
        return (volume - self.mean) / self.scale

    def restore(self, volume: Tensor) -> Tensor:
        """Return a volume in the intensities of the input."""
        return volume * self.scale + self.mean


def require_usable(volume: VolumeLike | HalfStatistics, name: str, *, nan: Nan = "refuse") -> None:
    """Refuse a volume, or the one with these statistics, if it is constant or has invalid voxels.

    With ``nan="mean"`` voxels that are NaN or infinite are allowed, unless all are.
    """
    statistics = volume if isinstance(volume, HalfStatistics) else HalfStatistics.of(volume)
    if nan == "refuse" or not np.isfinite(statistics.mean):
        require_finite(statistics, name, "reconstruct it anew, or pass `nan='mean'` to replace them by the mean")
    _require_contrast(statistics.samples.astype(np.float64), name)


def require_finite(statistics: HalfStatistics, name: str, remedy: str) -> None:
    """Refuse a volume with voxels that are NaN or infinite; their number and the first place are in the error."""
    if place := statistics.first_invalid:
        raise ValueError(
            f"{name} holds {statistics.n_invalid} voxels that are NaN or infinite, the first at z {place[0]}, "
            f"y {place[1]}, x {place[2]} (counted from 0): {remedy}"
        )


def _require_contrast(values: np.ndarray[tuple[int], np.dtype[np.float64]], name: str) -> None:
    if not values.std() > 1e-6 * abs(values.mean()):
        raise ValueError(
            f"{name} is constant ({values[0]:g} throughout), so there is nothing to reconstruct: check that it is the "
            "right file and was written to its end"
        )
