"""Since when nothing changes any more in a training, from what it has recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The last part of a curve, over which nothing may change, is at least this share of its steps, and has so many points.
_SHARE, _FEWEST = 1 / 3, 8
# The starts of the last part that are tried.
_STARTS = 20
# A loss counts as learned from here on: before, it falls from what random weights give.
_EARLY = slice(20, 100)
# Changes of less than this are nothing.
TOLERANCE = 0.01

Curve = Sequence[float] | NDArray[Any]


def stable_since(steps: Curve, values: Curve, *, tolerance: float) -> int | None:
    r"""Return the first step after which a curve falls by no more than a tolerance; ``None`` if it still falls.

    A straight line is fitted to the curve from a step :math:`N` to its end. It counts as stable since :math:`N` if

    .. math:: -\Delta + 2 s \sqrt{\frac{1 + \rho}{1 - \rho}} \le \text{tolerance} ,

    where :math:`\Delta` is the change of the line over these steps, :math:`s` its standard error for independent
    residuals, and :math:`\rho` the correlation of neighbouring residuals. A noisy curve is thus not called stable
    before there are enough points to say so. The last third of the steps, and eight points, are the least that is
    fitted. A curve that rises counts as stable: more steps do not improve it either.

    Parameters
    ----------
    steps, values
        The curve, in ascending order of the steps. Values that are not finite are left out.
    tolerance
        The fall that counts as nothing, in the unit of the values.

    Examples
    --------
    >>> steps = np.arange(1, 1001)
    >>> stable_since(steps, 1 + np.exp(-steps / 50), tolerance=0.01)
    211
    >>> stable_since(steps, 1 - steps / 1000, tolerance=0.01) is None
    True
    """
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not len(x):
        return None
    for start in np.linspace(0, (1 - _SHARE) * x[-1], _STARTS):
        inside = x > start
        if inside.sum() >= _FEWEST and _most_fall(x[inside], y[inside]) <= tolerance:
            return int(x[inside][0])
    return None


def _most_fall(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return by how much a curve fell at most, with a probability of about 95 %."""
    centred = x - x.mean()
    power = (centred**2).sum()
    slope = (centred * y).sum() / power
    residuals = y - y.mean() - slope * centred
    variance = (residuals**2).sum()
    # A curve that is straight to rounding has residuals without meaning.
    if variance <= (1e-12 * np.abs(y).max()) ** 2 * len(y):
        return float(-slope * (x[-1] - x[0]))
    rho = float(np.clip((residuals[1:] * residuals[:-1]).sum() / variance, 0, 0.95))
    error = math.sqrt(variance / (len(x) - 2) / power * (1 + rho) / (1 - rho))
    return float((2 * error - slope) * (x[-1] - x[0]))


@dataclass(frozen=True)
class Stability:
    """Since when each recorded curve of a training is stable.

    Parameters
    ----------
    since
        By the name of a curve, the step since which it is stable, ``None`` if it still improves.
    """

    since: Mapping[str, int | None]

    @property
    def step(self) -> int | None:
        """The step since which all curves are stable; ``None`` if one of them still improves or there are none."""
        known = [step for step in self.since.values() if step is not None]
        return max(known) if known and len(known) == len(self.since) else None

    @property
    def improving(self) -> list[str]:
        """The names of the curves that still improve."""
        return [name for name, step in self.since.items() if step is None]

    @classmethod
    def of(cls, losses: Mapping[str, Curve], held_out: Mapping[str, Curve] | None = None) -> Stability:
        """Judge recorded curves.

        Parameters
        ----------
        losses
            The column ``step`` of ``losses.csv``, and each loss by name. A loss counts as stable if it falls by no more
            than 1 % of what it has fallen since its first hundred steps. One that is zero throughout took no part.
        held_out
            The columns of ``held_out.csv``. The error counts as stable if the power of the error falls by no more than
            1 % of the power of the signal.
        """
        steps, since = losses["step"], dict[str, int | None]()
        for name, curve in losses.items():
            values = np.asarray(curve, np.float64)
            if name != "step" and values.any():
                fallen = _mean(values[_EARLY]) - _mean(values[len(values) * 2 // 3 :])
                since[name] = stable_since(steps, values, tolerance=TOLERANCE * fallen) if fallen > 0 else None
        if held_out is not None and len(held_out["step"]):
            signal = float(held_out["nothing"][-1]) - 0.5
            since["held-out error"] = stable_since(
                held_out["step"], held_out["network"], tolerance=TOLERANCE * max(signal, 0)
            )
        return cls(since)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the finite values, NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
