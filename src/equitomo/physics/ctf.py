"""The contrast transfer function of tilted views: its application, phase flipping, and deconvolution of a tomogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.fourier import frequencies, irfftn, rfftn

Convention = Literal["isonet", "warp"]
Hand = Literal[1, -1]

# No microscope is focused to less than this or from further away, in ångström: such numbers are in other units.
_LEAST_DEFOCUS, _MOST_DEFOCUS = 100.0, 1e6
# The decades of the signal-to-noise ratio that a strength of 1 stands for.
_DECADES: dict[Convention, float] = {"isonet": 1.0, "warp": 3.0}
# The change of defocus from one strip to the next, as a share of the one that turns the phase at Nyquist by pi / 4.
_PHASE_STEP = 0.25
_SAMPLES = 8192  # of a radial function up to Nyquist


@dataclass(frozen=True)
class ContrastTransfer:
    r"""The contrast transfer function of one view.

    .. math::

        \mathrm{CTF}(k) = \sin\bigl(\pi\lambda\,\Delta f(\alpha)\,k^2 - \tfrac\pi2 C_s\lambda^3 k^4 + \varphi
        + \arcsin a\bigr), \qquad
        \Delta f(\alpha) = \tfrac{u + v}2 + \tfrac{u - v}2 \cos 2(\alpha - \alpha_u)

    (:cite:t:`rohou2015ctffind4`) for spatial frequencies of length :math:`k` and direction :math:`\alpha`, where
    :math:`\lambda` is the wavelength of the electrons. At low frequencies it is positive, so an image keeps the
    contrast of the specimen that it was computed from.

    Parameters
    ----------
    defocus_u, defocus_v
        Defocus along the two axes of the astigmatism in ångström, positive for underfocus; ``None`` for a
        ``defocus_v`` equal to ``defocus_u``.
    astigmatism_angle
        Degrees from the last axis of the image to the axis of ``defocus_u``, growing towards the axis before it.
    phase_shift
        Phase shift of a phase plate in degrees.
    voltage
        Acceleration voltage in kilovolts.
    spherical_aberration
        In millimetres.
    amplitude_contrast
        Share of amplitude contrast, from 0 to less than 1.
    pixel_size
        Ångström per pixel of the image, after binning.

    Raises
    ------
    ValueError
        If a value cannot be in its unit.

    Examples
    --------
    >>> ctf = ContrastTransfer(30000, pixel_size=10.0)
    >>> ctf.image((64, 64)).shape, round(float(ctf.image((64, 64))[0, 0]), 3)
    (torch.Size([64, 33]), 0.07)
    """

    defocus_u: float
    defocus_v: float | None = None
    astigmatism_angle: float = 0.0
    phase_shift: float = 0.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.07
    pixel_size: float = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.defocus_v is None:
            object.__setattr__(self, "defocus_v", self.defocus_u)
        if not self.pixel_size > 0:
            raise ValueError(f"`pixel_size` must be a positive number of ångström, got {self.pixel_size}")
        if not 0 <= self.amplitude_contrast < 1:
            raise ValueError(f"`amplitude_contrast` must be from 0 to less than 1, got {self.amplitude_contrast}")
        if not 20 <= self.voltage <= 3000:
            raise ValueError(f"`voltage` must be from 20 to 3000 kilovolts, got {self.voltage}")
        if not 0 <= self.spherical_aberration <= 20:
            raise ValueError(f"`spherical_aberration` must be from 0 to 20 mm, got {self.spherical_aberration}")
        if not (math.isfinite(self.astigmatism_angle) and math.isfinite(self.phase_shift)):
            raise ValueError("`astigmatism_angle` and `phase_shift` must be finite numbers of degrees")
        if not (self.defocus == 0 or _LEAST_DEFOCUS <= abs(self.defocus) <= _MOST_DEFOCUS):
            raise ValueError(
                f"`defocus_u` and `defocus_v` must be in ångström, got a mean of {self.defocus:g}: multiply nanometres "
                "by 10 and micrometres by 10000"
            )

    @property
    def defocus(self) -> float:
        """The mean of both defocus values in ångström."""
        return (self.defocus_u + self._v) / 2

    @property
    def wavelength(self) -> float:
        """The relativistic wavelength of the electrons in ångström."""
        volts = 1e3 * self.voltage
        return 12.2643247 / math.sqrt(volts * (1 + 0.978466e-6 * volts))

    def image(
        self, shape: tuple[int, int], *, added_defocus: float = 0.0, device: torch.device | str | None = None
    ) -> Tensor:
        """Return the function on the half spectrum ``(y, x // 2 + 1)`` of an image, unshifted, in float32.

        Parameters
        ----------
        shape
            Pixels ``(y, x)`` of the image.
        added_defocus
            Ångström by which a part of the specimen is further from focus than the view.
        device
            The device to compute on.

        Raises
        ------
        ImportError
            If torch-ctf is not installed.
        """
        # torch-ctf takes the square root of the astigmatism.
        u, v, angle = self.defocus_u, self._v, self.astigmatism_angle
        if u < v:
            u, v, angle = v, u, angle + 90.0
        image: Tensor = _torch_ctf().calculate_ctf_2d(
            defocus=torch.tensor(1e-4 * ((u + v) / 2 + added_defocus), device=device),
            astigmatism=1e-4 * (u - v) / 2,
            astigmatism_angle=angle,
            voltage=self.voltage,
            spherical_aberration=self.spherical_aberration,
            amplitude_contrast=self.amplitude_contrast,
            phase_shift=self.phase_shift,
            pixel_size=self.pixel_size,
            image_shape=shape,
            rfft=True,
            fftshift=False,
        )
        return image

    def radial(self, n_samples: int, *, device: torch.device | str | None = None) -> Tensor:
        """Return the function without astigmatism at evenly spaced frequencies from zero to Nyquist, in float32.

        Raises
        ------
        ImportError
            If torch-ctf is not installed.
        """
        curve: Tensor = _torch_ctf().calculate_ctf_1d(
            defocus=torch.tensor(1e-4 * self.defocus, device=device),
            voltage=self.voltage,
            spherical_aberration=self.spherical_aberration,
            amplitude_contrast=self.amplitude_contrast,
            phase_shift=self.phase_shift,
            pixel_size=self.pixel_size,
            n_samples=n_samples,
            oversampling_factor=1,
        )
        return curve

    @property
    def _v(self) -> float:
        return self.defocus_u if self.defocus_v is None else self.defocus_v


def contrast_transfers(
    defocus: Sequence[tuple[float, float, float, float]],
    *,
    pixel_size: float,
    voltage: float | None = None,
    spherical_aberration: float | None = None,
    amplitude_contrast: float | None = None,
    turned: Sequence[float] | None = None,
) -> tuple[ContrastTransfer, ...]:
    """Return the contrast transfer functions of all views of a series, from values that were read from files.

    Parameters
    ----------
    defocus
        For each view defocus u and v in ångström, the angle of the astigmatism and the phase shift in degrees.
    pixel_size
        Ångström per pixel of the views that the functions are for, after binning.
    voltage, spherical_aberration, amplitude_contrast
        As for :class:`ContrastTransfer`, whose defaults stand for ``None``.
    turned
        Degrees by which each recorded image was turned to align it, counterclockwise with y upwards; ``None`` if the
        angles already refer to the aligned views. An image whose tilt axis lies at an angle was turned by minus that
        angle.

    Raises
    ------
    ValueError
        If a value cannot be in its unit or the numbers of entries disagree.

    Examples
    --------
    >>> first, second = contrast_transfers([(30000, 29000, 10, 0), (31000, 30000, 10, 0)], pixel_size=8, turned=[5, 5])
    >>> second.defocus, second.astigmatism_angle, second.voltage
    (30500.0, 15, 300.0)
    """
    if turned is not None and len(turned) != len(defocus):
        raise ValueError(f"one angle per view is needed, got {len(turned)} `turned` for {len(defocus)} `defocus`")
    settings = {
        name: value
        for name, value in (
            ("voltage", voltage),
            ("spherical_aberration", spherical_aberration),
            ("amplitude_contrast", amplitude_contrast),
        )
        if value is not None
    }
    turns = [0.0] * len(defocus) if turned is None else turned
    return tuple(
        ContrastTransfer(u, v, angle + turn, phase_shift, pixel_size=pixel_size, **settings)
        for (u, v, angle, phase_shift), turn in zip(defocus, turns, strict=True)
    )


def transfer_contrast(
    views: Tensor,
    ctfs: ContrastTransfer | Sequence[ContrastTransfer],
    angles: Sequence[float],
    *,
    hand: Hand | None = -1,
) -> Tensor:
    r"""Return views as the microscope shows them, with the contrast transfer function of each applied.

    The defocus changes across the tilt axis as in :func:`flip_phases`, whose arguments these are.

    Examples
    --------
    >>> views = torch.randn(2, 32, 32)
    >>> transfer_contrast(views, ContrastTransfer(30000, pixel_size=8.0), [-40, 40]).shape
    torch.Size([2, 32, 32])
    """
    return _filtered_in_strips(views, ctfs, angles, hand, lambda ctf: ctf)


def flip_phases(
    views: Tensor,
    ctfs: ContrastTransfer | Sequence[ContrastTransfer],
    angles: Sequence[float],
    *,
    hand: Hand | None = -1,
) -> Tensor:
    r"""Return views whose phases were flipped where the contrast transfer function is negative.

    .. math:: \hat p'(k) = \operatorname{sgn} \mathrm{CTF}(k)\; \hat p(k)

    A specimen in the plane of the tilt axis lies along the beam at :math:`s = z\cos\theta - x\sin\theta = -t\tan\theta`
    where it projects to the detector coordinate :math:`t`, because :math:`t = x\cos\theta + z\sin\theta` and
    :math:`z = 0`. Its defocus there is

    .. math:: \Delta f(t) = \Delta f_0 + h\, s\, p = \Delta f_0 - h\, p\, t\tan\theta, \qquad h = \pm 1,

    with the pixel size :math:`p`, and with :math:`\Delta f_0` at the middle of the detector. A view is therefore
    filtered in strips along the tilt axis (:cite:t:`xiong2009ctf`). The strips overlap by half, and the results are
    blended linearly. The defocus changes by at most :math:`p^2/4\lambda` from one strip to the next, so the phase is
    wrong by at most :math:`\pi/32` at Nyquist, between the centres of two strips. Views are continued at
    their borders by reflection. One strip is held in memory at a time besides the views and the result, and views of a
    long series may be given one after the other.

    Parameters
    ----------
    views
        The series ``(tilt, along the tilt axis, detector)``, real, aligned.
    ctfs
        The contrast transfer function of each view, or one for all.
    angles
        The tilts in degrees, in the order of the views.
    hand
        The sign :math:`h` with which the defocus grows along the beam, the handedness of the tilts as RELION defines
        it in ``rlnTomoHand``. RELION's default is -1. ``None`` takes the same defocus everywhere.

    Returns
    -------
    Tensor
        The series, in float32, or in float64 if it was.

    Raises
    ------
    ValueError
        If the shapes or numbers disagree.
    ImportError
        If torch-ctf is not installed.

    Examples
    --------
    >>> views = torch.randn(2, 32, 32)
    >>> ctf = ContrastTransfer(30000, pixel_size=8.0)
    >>> flip_phases(transfer_contrast(views, ctf, [-40, 40]), ctf, [-40, 40]).shape
    torch.Size([2, 32, 32])
    """
    # The sign of zero is that of low frequencies, or a phase plate's mean would be lost.
    return _filtered_in_strips(views, ctfs, angles, hand, lambda ctf: torch.where(ctf < 0, -1.0, 1.0))


def deconvolve(
    volume: Tensor,
    ctf: ContrastTransfer,
    *,
    convention: Convention,
    strength: float = 1.0,
    falloff: float = 1.0,
    highpass: float = 0.02,
    phase_flipped: bool = False,
) -> Tensor:
    r"""Return a tomogram after Wiener-like deconvolution of its contrast transfer function.

    .. math::

        W(r) = \frac{c(r)}{c(r)^2 + 1 / \mathrm{SNR}(r)}, \qquad
        \mathrm{SNR}(r) = e^{-100\, r f / p}\; 10^{\,d s}\; \bigl(1 - \cos(\pi \min(1, r / h))\bigr)

    for frequencies :math:`r` as a share of Nyquist, voxels of :math:`p` ångström, strength :math:`s`, falloff
    :math:`f` and high-pass :math:`h`. In Warp (:cite:t:`tegunov2019realtime`) the strength counts in steps of
    :math:`d = 3` decades, in IsoNet (:cite:t:`liu2022isotropic`) in steps of :math:`d = 1`. Beyond Nyquist the value
    there is taken. Zero frequency, and with it the mean, becomes zero.

    This is for looking at a result. Halves should not be deconvolved before training, as the guide explains.

    Parameters
    ----------
    volume
        The tomogram ``(z, y, x)``, real.
    ctf
        The function at the tilt of zero, with the voxel size of the tomogram. Astigmatism is ignored.
    convention
        ``"isonet"`` or ``"warp"``, the number of decades in a unit of ``strength``.
    strength
        Exponent of the signal-to-noise ratio.
    falloff
        How fast the signal-to-noise ratio falls with the frequency.
    highpass
        Frequency as a share of Nyquist below which the signal is damped.
    phase_flipped
        Whether phases were flipped, so that :math:`c` is the absolute value of the function.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    ImportError
        If torch-ctf is not installed.

    Examples
    --------
    >>> volume = torch.randn(16, 16, 16)
    >>> sharper = deconvolve(volume, ContrastTransfer(30000, pixel_size=8.0), convention="warp")
    >>> sharper.shape, abs(float(sharper.mean())) < 1e-5
    (torch.Size([16, 16, 16]), True)
    """
    if volume.ndim != 3:
        raise ValueError(f"`volume` must be (z, y, x), got shape {tuple(volume.shape)}")
    if convention not in _DECADES:
        raise ValueError(f"`convention` must be 'isonet' or 'warp', got {convention!r}")
    if not (highpass > 0 and falloff >= 0 and math.isfinite(strength)):
        raise ValueError(
            f"`highpass` must be positive, `falloff` not negative and `strength` finite, got {highpass}, {falloff} and "
            f"{strength}"
        )
    shape = spatial_shape(volume.shape)
    c = ctf.radial(_SAMPLES, device=volume.device)
    c = c.abs() if phase_flipped else c
    r = torch.linspace(0, 1, _SAMPLES, device=volume.device)
    snr = torch.exp(-100 * r * falloff / ctf.pixel_size) * 10 ** (_DECADES[convention] * strength)
    snr = snr * (1 - torch.cos(math.pi * (r / highpass).clamp_max(1)))
    wiener = c * snr / (c**2 * snr + 1)
    spectrum = rfftn(volume)
    kz, ky, kx = frequencies(shape, device=volume.device, dtype=torch.float32)
    # One plane after the other: the filter of the whole volume would take as much memory as its spectrum.
    for z, height in enumerate(kz):
        place = ((height**2 + ky[0] ** 2 + kx[0] ** 2).sqrt() * (2 * (_SAMPLES - 1))).clamp_max(_SAMPLES - 1)
        below = place.long().clamp_max(_SAMPLES - 2)
        spectrum[z] *= torch.lerp(wiener[below], wiener[below + 1], place - below)
    return irfftn(spectrum, shape)


Response = Callable[[Tensor], Tensor]


def _filtered_in_strips(
    views: Tensor,
    ctfs: ContrastTransfer | Sequence[ContrastTransfer],
    angles: Sequence[float],
    hand: Hand | None,
    response: Response,
) -> Tensor:
    """Return views multiplied in Fourier space by a function of the contrast transfer function of each strip."""
    if views.ndim != 3 or not torch.is_floating_point(views):
        raise ValueError(
            "`views` must be real numbers (tilt, along the tilt axis, detector), got shape "
            f"{tuple(views.shape)} of {views.dtype}"
        )
    angles = [float(angle) for angle in angles]
    each = [ctfs] * len(angles) if isinstance(ctfs, ContrastTransfer) else list(ctfs)
    if not len(views) == len(angles) == len(each):
        raise ValueError(
            f"one angle and one CTF per view are needed, got {len(angles)} `angles` and {len(each)} `ctfs` for "
            f"{len(views)} `views`"
        )
    if not all(-90 < angle < 90 for angle in angles):
        raise ValueError(f"`angles` must lie between -90 and 90 degrees, got {min(angles):g} to {max(angles):g}")
    if hand not in (1, -1, None):
        raise ValueError(f"`hand` must be 1, -1 or None, got {hand!r}")
    result = torch.empty_like(views, dtype=torch.float64 if views.dtype == torch.float64 else torch.float32)
    for view, ctf, angle, out in zip(views, each, angles, result, strict=True):
        slope = 0.0 if hand is None else -hand * ctf.pixel_size * math.tan(math.radians(angle))
        out[:] = _filtered_view(view.to(result.dtype), ctf, slope, response)
    return result


def _filtered_view(view: Tensor, ctf: ContrastTransfer, slope: float, response: Response) -> Tensor:
    """Return one view, filtered in strips; the defocus grows by ``slope`` ångström per pixel across the tilt axis."""
    n_along, n_across = view.shape
    span = abs(slope) * (n_across - 1)
    # The defocus of a strip is exact at its centre. The first and the last centre are at the borders.
    n_steps = min(n_across - 1, math.ceil(span / (_PHASE_STEP * ctf.pixel_size**2 / ctf.wavelength)))
    n_strips = n_steps + 1 if n_steps > 1 else 1
    step = (n_across - 1) / max(1, n_strips - 1)
    farthest = max(abs(ctf.defocus_u), abs(ctf._v)) + span / 2
    # Half of the margin is as wide as the point spread function, in the other half the view fades out.
    margin = 2 * (math.ceil(ctf.wavelength * farthest / (2 * ctf.pixel_size**2)) + 8)
    at_zero = float(response(ctf.image((1, 1)))[0, 0])
    mean = view.mean()
    padded = _reflected(view - mean, margin)
    before, before_across = ((padded.shape[axis] - view.shape[axis]) // 2 for axis in (0, 1))
    result = torch.full_like(view, float(mean) * at_zero)
    along = _fading(padded.shape[0], before)[:, None].to(view)
    for number in range(n_strips):
        centre = (n_across - 1) / 2 if n_strips == 1 else number * step
        low = 0 if n_strips == 1 else max(0, math.ceil(centre - step))
        high = n_across if n_strips == 1 else min(n_across, math.floor(centre + step) + 1)
        strip = padded[:, low : high + 2 * before_across]
        shape = (_round_up(strip.shape[0]), _round_up(strip.shape[1]))
        transfer = response(ctf.image(shape, added_defocus=slope * (centre - (n_across - 1) / 2), device=view.device))
        faded = strip * along * _fading(strip.shape[1], before_across).to(view)
        filtered = torch.fft.irfft2(torch.fft.rfft2(faded, s=shape) * transfer, s=shape)
        t = torch.arange(low, high, device=view.device, dtype=view.dtype)
        weight = torch.ones_like(t) if n_strips == 1 else 1 - (t - centre).abs() / step
        result[:, low:high] += weight * filtered[before : before + n_along, before_across : before_across + len(t)]
    return result


def _reflected(view: Tensor, margin: int) -> Tensor:
    """Return a view continued at its borders by reflection, by the margin or as far as its size allows."""
    along, across = (min(margin, n - 1) for n in view.shape)
    padded: Tensor = torch.nn.functional.pad(view[None, None], (across, across, along, along), mode="reflect")[0, 0]
    return padded


def _fading(n: int, margin: int) -> Tensor:
    """Return a window that rises from zero to one over the outer half of the margin at both ends."""
    width = margin // 2
    rise = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(width, dtype=torch.float64) + 0.5) / max(1, width))
    return torch.cat((rise, torch.ones(n - 2 * width, dtype=torch.float64), rise.flip(0)))


def _round_up(n: int) -> int:
    """Return the next multiple of 32, as prime lengths of a transform take several times longer."""
    return -(-n // 32) * 32


def _torch_ctf() -> ModuleType:
    """Return the module torch_ctf, imported when it is first needed."""
    try:
        import torch_ctf
    except ImportError as error:
        raise ImportError(
            'contrast transfer functions need the package torch-ctf: pip install "equitomo[series]"'
        ) from error
    return torch_ctf
