"""Fourier shell correlation inside a mask of real space, corrected for the correlation that the mask itself brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

from equitomo.checks import spatial_shape
from equitomo.fourier import frequency_radius, irfftn, rfftn
from equitomo.metrics.correlation import FourierShellCorrelation, number_of_shells, shell_correlations
from equitomo.metrics.regions import Array, as_batch
from equitomo.volumes import Shape

# Above this share of the correlation that the mask alone brings, the correction would multiply noise by 20 and more.
_HIDDEN = 0.95


@dataclass(frozen=True)
class MaskedCorrelation:
    """The curves that :func:`masked_fsc` returns, and the frequency from which phases were randomised.

    Parameters
    ----------
    corrected
        The estimate of the correlation without the influence of the mask.
    masked
        The correlation of the masked volumes.
    randomized
        The correlation of the masked volumes after their phases were randomised: what the mask brings by itself.
    unmasked
        The correlation of the volumes without the mask.
    cutoff
        Cycles per voxel from which on phases were randomised; infinite if none were.
    """

    corrected: FourierShellCorrelation
    masked: FourierShellCorrelation
    randomized: FourierShellCorrelation
    unmasked: FourierShellCorrelation
    cutoff: float


def masked_fsc(
    first: Array,
    second: Array,
    window: Array,
    *,
    voxel_size: float | None = None,
    mask: Tensor | None = None,
    n_shells: int | None = None,
    threshold: float = 0.8,
    generator: torch.Generator | None = None,
) -> MaskedCorrelation:
    r"""Return the correlation of two volumes inside a mask of real space, corrected by randomised phases.

    .. math:: \mathrm{FSC}_\text{true} = \frac{\mathrm{FSC}_t - \mathrm{FSC}_n}{1 - \mathrm{FSC}_n}

    (:cite:t:`chen2013high`). A mask :math:`w` removes the noise outside of the specimen, but it also convolves both
    spectra with its own. This carries correlation from low frequencies, where the volumes agree, to high ones, where
    they may be nothing but noise. :math:`\mathrm{FSC}_t` is the correlation of :math:`w x_1` and :math:`w x_2`.
    :math:`\mathrm{FSC}_n` is that of volumes with the same amplitudes, whose phases are random from the frequency on at
    which the correlation without a mask falls below ``threshold``: nothing but the mask makes them correlate there.
    Below this frequency the result is :math:`\mathrm{FSC}_t`. It is NaN where :math:`\mathrm{FSC}_n` exceeds 0.95, so
    that the mask hides whether the volumes agree. (RELION shows :math:`\mathrm{FSC}_t` in two more shells.)

    If only a part of Fourier space is compared, the phases are randomised in this part only. What the mask blends into
    the missing wedge from the measured part then counts as an effect of the mask, too.

    Parameters
    ----------
    first, second, voxel_size, mask, n_shells
        As for :func:`fourier_shell_correlation`.
    window
        The mask of real space, ``(z, y, x)``, zero outside of the specimen. It should fall smoothly: a sharp edge
        blends more distant frequencies. A constant one changes nothing, and the result is the plain correlation.
    threshold
        The correlation below which phases are randomised.
    generator
        Source of the random phases.

    Raises
    ------
    ValueError
        If the volumes or the window differ in shape or are not ``(z, y, x)``, the window is zero everywhere, or there
        is no shell.

    Examples
    --------
    >>> from equitomo.fourier import cosine_taper
    >>> first, second = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> window = cosine_taper((32, 32, 32), 12)
    >>> curve = masked_fsc(first, second, window).corrected  # of nothing but noise
    >>> bool(curve.correlation[4:].abs().max() < 0.2)
    True
    """
    curves = masked_correlations(
        first,
        second,
        window,
        {"": mask},
        voxel_size=voxel_size,
        n_shells=n_shells,
        threshold=threshold,
        generator=generator,
    )
    return curves[""]


def masked_correlations(
    first: Array,
    second: Array,
    window: Array,
    masks: Mapping[str, Tensor | None],
    *,
    voxel_size: float | None = None,
    n_shells: int | None = None,
    threshold: float = 0.8,
    generator: torch.Generator | None = None,
) -> dict[str, MaskedCorrelation]:
    """Return what :func:`masked_fsc` does for each of several parts of Fourier space, given by name."""
    if not first.shape == second.shape == window.shape:
        got = ", ".join(str(tuple(one.shape)) for one in (first, second, window))
        raise ValueError(f"two volumes and a mask of the same shape are needed, got {got}")
    volumes = [as_batch(one)[0, 0] for one in (first, second)]
    shape, weights = spatial_shape(volumes[0].shape), as_batch(window)[0, 0].to(volumes[0])
    if not weights.any():
        raise ValueError("the mask is zero everywhere: it must be non-zero where the specimen is")

    def compared(pair: list[Tensor], parts: Mapping[str, Tensor | None]) -> dict[str, FourierShellCorrelation]:
        return shell_correlations(pair[0], pair[1], parts, voxel_size=voxel_size, n_shells=n_shells)

    unmasked = compared(volumes, masks)
    if weights.min() == weights.max():
        return {name: _unchanged(curve) for name, curve in unmasked.items()}
    masked = compared([_masked(volume, weights) for volume in volumes], masks)
    spectra, n = [rfftn(volume) for volume in volumes], number_of_shells(shape, n_shells)
    results = {}
    for name, mask in masks.items():
        begin = _first_below(unmasked[name], threshold)
        if begin is None:
            results[name] = replace(_unchanged(masked[name]), unmasked=unmasked[name])
            continue
        chosen = _from_shell(begin, n, shape, mask, weights.device)
        random = [irfftn(_with_random_phases(one, chosen, shape, generator), shape) for one in spectra]
        noise = compared([_masked(volume, weights) for volume in random], {name: mask})[name]
        corrected = _corrected(masked[name], noise, begin)
        cutoff = float(unmasked[name].frequency[begin])
        results[name] = MaskedCorrelation(corrected, masked[name], noise, unmasked[name], cutoff)
    return results


def soft_mask(mask: Array, width: int = 6) -> Tensor:
    """Return a mask ``(z, y, x)`` whose edges rise smoothly from 0 to 1 over about ``width`` voxels.

    The mask is averaged over its surroundings with the weights of a Hann window. It continues beyond its faces.

    Examples
    --------
    >>> soft_mask(torch.tensor([[[0.0] * 4 + [1.0] * 4]]), 3).flatten().round(decimals=2).tolist()
    [0.0, 0.0, 0.0, 0.25, 0.75, 1.0, 1.0, 1.0]
    """
    if width < 1:
        raise ValueError(f"`width` must be at least one voxel, got {width}")
    soft = as_batch(mask).float()
    half = width // 2
    weights = torch.hann_window(2 * half + 3, periodic=False, device=soft.device)[1:-1]
    weights = weights / weights.sum()
    for axis in range(3):
        kernel = weights.reshape([-1 if n == axis else 1 for n in range(3)])[None, None]
        sides = [half if n // 2 == 2 - axis else 0 for n in range(6)]
        soft = conv3d(pad(soft, sides, mode="replicate"), kernel)
    return soft[0, 0].clamp(0, 1)


def _unchanged(curve: FourierShellCorrelation) -> MaskedCorrelation:
    """Return a curve that needs no correction."""
    nothing = replace(curve, correlation=torch.zeros_like(curve.correlation))
    return MaskedCorrelation(curve, curve, nothing, curve, float("inf"))


def _masked(volume: Tensor, window: Tensor) -> Tensor:
    """Return a volume in a window, without the mean there, which would give all volumes the spectrum of the window."""
    mean = (volume * window).sum(dtype=torch.float64) / window.sum(dtype=torch.float64)
    return (volume - mean.to(volume)) * window


def _first_below(curve: FourierShellCorrelation, threshold: float) -> int | None:
    """Return the first shell whose correlation is below a threshold."""
    below = (curve.correlation < threshold).nonzero()
    return int(below[0]) if len(below) else None


def _from_shell(begin: int, n: int, shape: Shape, mask: Tensor | None, device: torch.device) -> Tensor:
    """Return where on the half spectrum phases are randomised: in a part of it, from one of n shells up to corners."""
    beyond = 2 * n * frequency_radius(shape, device=device) > begin + 0.5
    return beyond if mask is None else beyond & (mask.to(device) != 0)


def _with_random_phases(spectrum: Tensor, chosen: Tensor, shape: Shape, generator: torch.Generator | None) -> Tensor:
    """Return a half spectrum with random phases at chosen coefficients: those of the spectrum of real white noise."""
    device = "cpu" if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, device=device, dtype=spectrum.real.dtype)
    phases = torch.sgn(rfftn(noise.to(spectrum.device)))
    return torch.where(chosen, spectrum.abs() * phases, spectrum)


def _corrected(masked: FourierShellCorrelation, noise: FourierShellCorrelation, begin: int) -> FourierShellCorrelation:
    """Return the corrected curve, which is the masked one before shell ``begin``."""
    value = (masked.correlation - noise.correlation) / (1 - noise.correlation)
    value = value.where(noise.correlation <= _HIDDEN, torch.nan)
    kept = torch.arange(len(value), device=value.device) < begin
    return replace(masked, correlation=torch.where(kept, masked.correlation, value))
