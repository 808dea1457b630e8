"""A zero of the contrast transfer function in the noise of two half tomograms, which a Wiener filter leaves there."""

from __future__ import annotations

import torch

from equitomo.checks import spatial_shape
from equitomo.datasets.statistics import MIDDLE
from equitomo.fourier import frequency_radius, hann, multiplicity, rfftn
from equitomo.volumes import VolumeLike, middle_of

_LEAST = 32  # voxels of the shortest side; the shells of smaller volumes are too wide to show a zero
# The first shell that may be a zero. Those below hold too few coefficients: their power varies by more than 10 %.
_FIRST = 8
# The ratio of the power on either side to that of a zero. In simulated volumes of 64 voxels with pixels of 10 to 13 Å
# it was 2.1 to 3.3 after deconvolution, and at most 1.2 before; in real and realistic tomograms at most 1.2.
_DEPTH = 1.7


def find_noise_zero(first: VolumeLike, second: VolumeLike) -> float | None:
    r"""Return the frequency of the deepest zero in the noise of two halves, or None if their noise has no clear zero.

    The difference of the halves contains their noise alone. Its power in shells,

    .. math:: N(k) = \bigl\langle |F_1(k) - F_2(k)|^2 \bigr\rangle,

    rises or falls evenly in a tomogram, whatever low-pass filter or dose weighting was applied, with and without phase
    flipping. A Wiener filter and a deconvolution multiply it by a function that is zero where the contrast transfer
    function is. A shell counts as such a zero if on either side of it, at lower and at higher frequencies, there is a
    shell with 1.7 times its power. The middle 192 voxels along each axis are used, under a Hann window.

    A filter is not found if its first zero lies beyond Nyquist, or if it has removed everything beyond the first
    zero. Halves from different tilts that have almost no noise show the zeros of their signal.

    Parameters
    ----------
    first, second
        Volumes ``(z, y, x)`` of one shape.

    Returns
    -------
    float or None
        The frequency in cycles per voxel.

    Examples
    --------
    >>> from equitomo.physics import ContrastTransfer, deconvolve
    >>> first, second = torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> find_noise_zero(first, second)
    >>> ctf = ContrastTransfer(50000, pixel_size=10.0)  # zeros at 0.32 and 0.45 cycles per voxel
    >>> round(find_noise_zero(*(deconvolve(half, ctf, convention="warp") for half in (first, second))), 2)
    0.45
    """
    one, other = middle_of(first, MIDDLE), middle_of(second, MIDDLE)
    shape = spatial_shape(one.shape)
    if min(shape) < _LEAST:
        return None
    window = hann(shape)
    noise = one - other
    noise = (noise - (noise * window).sum() / window.sum()) * window
    n_shells = min(shape) // 2
    shell = (frequency_radius(shape, dtype=torch.float32) * 2 * n_shells).round().long()
    inside = shell <= n_shells
    count = multiplicity(shape[2]).expand(shell.shape)
    energy = rfftn(noise).abs().square() * count
    sums, counts = (
        torch.bincount(shell[inside], values[inside].double(), minlength=n_shells + 1) for values in (energy, count)
    )
    power = sums / counts
    depths: dict[int, float] = {}
    for number in range(_FIRST, n_shells):
        # The lowest two shells hold what is left of the mean.
        sides = min(float(power[2:number].max()), float(power[number + 1 :].max()))
        is_lowest = power[number] <= power[number - 1] and power[number] <= power[number + 1]
        if is_lowest and sides > _DEPTH * float(power[number]) > 0:
            depths[number] = sides / float(power[number])
    # Where the signal is strong a filter also leaves a dip between its zeros, which is less deep.
    return max(depths, key=lambda number: depths[number]) / (2 * n_shells) if depths else None
