"""Preparation of the views of a tilt series: alignment, binning, intensities, borders and dose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import reduce
from torch import Tensor, nn

Binning = Literal["fourier", "mean"]
ViewNormalization = Literal["views", "background", "none"]

# A cubic spline through an image depends on pixels farther away than this by less than 1e-5 of their value.
_REACH = 10
# Above these quantiles of a view are gold and hot pixels, which must not set its scale.
_CLIPPED = 0.005
# A row or column is a border if its deviation is less than this part of the usual one and its mean is off the
# background by more than this part of the view's deviation; and the pixels beside a border that are filled too.
_EVEN, _OFF, _MIXED = 0.2, 0.2, 2


def transformed(views: Tensor, transforms: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    r"""Return views that are rotated, scaled and shifted in one interpolation with cubic splines.

    .. math:: p' = M\,p + d, \qquad (M \mid d) = \text{transform}

    takes a position :math:`p = (x, y)` in the given view to the position in the returned one. Both are pixels relative
    to the centre :math:`(n - 1) / 2` of their own image, x along the last axis and y along the one before it, as
    ``SeriesMetadata.view_transforms`` returns them. Positions outside of a view get the value of its nearest edge,
    because zeros would put a step into the projections.

    Parameters
    ----------
    views
        The views ``(view, rows, columns)``.
    transforms
        One transform for each view, ``(view, 2, 3)``.
    shape
        Rows and columns of the result. None takes those of the views.

    Examples
    --------
    >>> view = torch.zeros(1, 5, 5).index_put((torch.tensor(0), torch.tensor(2), torch.tensor(1)), torch.tensor(1.0))
    >>> shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]])  # two columns on, one row back
    >>> divmod(int(transformed(view, shift).argmax()), 5)
    (1, 3)
    """
    if transforms.shape != (len(views), 2, 3):
        raise ValueError(
            f"`transforms` must have shape {(len(views), 2, 3)}, one (2, 3) for each view, got "
            f"{tuple(transforms.shape)}"
        )
    shape = tuple(views.shape[-2:]) if shape is None else tuple(shape)
    rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape)
    target = torch.stack((columns.expand(*shape), rows[:, None].expand(*shape)))
    result = views.new_empty((len(views), *shape))
    for place, view, transform in zip(result, views, transforms.double().cpu(), strict=True):
        matrix, shift = transform[:, :2], transform[:, 2, None, None]
        source = torch.einsum("ij,jyx->iyx", torch.linalg.inv(matrix), target - shift).to(view.device)
        place.copy_(_interpolated(view, *source))
    return result


def binned(views: Tensor, factor: int, method: Binning = "fourier") -> Tensor:
    """Return views with pixels that are ``factor`` times as large.

    The middle of the views stays in the middle. Rows and columns that do not fill a large pixel are cut from both ends.

    Parameters
    ----------
    views
        The views ``(..., rows, columns)``.
    factor
        The number of pixels along each axis that become one.
    method
        ``"fourier"`` keeps the frequencies below the new Nyquist frequency and drops those above it, without aliasing;
        ``"mean"`` averages the pixels, which cannot make negative values of positive ones.

    Examples
    --------
    >>> binned(torch.arange(16.0).reshape(1, 4, 4), 2, "mean")
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    """
    if factor < 1 or factor > min(views.shape[-2:]):
        raise ValueError(f"`binning` must be from 1 to the size of the images, {min(views.shape[-2:])}, got {factor}")
    if factor == 1:
        return views
    rows, columns = (n // factor for n in views.shape[-2:])
    views = cropped(views, (rows * factor, columns * factor))
    if method == "mean":
        return reduce(views, "... (y a) (x b) -> ... y x", "mean", a=factor, b=factor)
    if method != "fourier":
        raise ValueError(f"the method of binning must be 'fourier' or 'mean', got {method!r}")
    for axis, length in ((-1, columns), (-2, rows)):
        spectrum = torch.fft.rfft(views, dim=axis).narrow(axis, 0, length // 2 + 1)
        k = torch.arange(length // 2 + 1, device=views.device, dtype=torch.float64)
        # The first large pixel is centred between the pixels that it replaces and not on the first of these.
        phase = torch.exp(1j * math.pi * k * (factor - 1) / (length * factor))
        if length % 2 == 0:
            phase[-1] = phase[-1].real.clone()
        phase = (phase / factor).to(spectrum.dtype)
        views = torch.fft.irfft((spectrum.movedim(axis, -1) * phase).movedim(-1, axis), n=length, dim=axis)
    return views


def cropped(views: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the middle of the views, of ``shape`` rows and columns.

    Examples
    --------
    >>> cropped(torch.arange(5.0).expand(1, 1, 5), (1, 3))
    tensor([[[1., 2., 3.]]])
    """
    rows, columns = views.shape[-2:]
    if not (1 <= shape[0] <= rows and 1 <= shape[1] <= columns):
        raise ValueError(
            f"`size` must be at most that of the images, {rows} rows and {columns} columns, and positive; got "
            f"{tuple(shape)}"
        )
    top, left = (rows - shape[0]) // 2, (columns - shape[1]) // 2
    return views[..., top : top + shape[0], left : left + shape[1]]


def normalized(views: Tensor, normalization: ViewNormalization) -> Tensor:
    r"""Return views on one scale of intensities.

    Parameters
    ----------
    views
        The views ``(view, rows, columns)``.
    normalization
        ``"views"`` gives each view the mean 0 and the median of all deviations, as suits images of transmitted
        electrons, whose brightness falls with the thickness. ``"background"`` subtracts the background of each view and
        changes nothing else, as suits dark-field images, where the background is a true zero and intensities are
        amounts of matter. ``"none"`` leaves them as they are.

    Examples
    --------
    >>> views = torch.randn(2, 32, 32) * torch.tensor([1.0, 2.0])[:, None, None] + 5
    >>> same = normalized(views, "views")
    >>> torch.allclose(same.mean((1, 2)), torch.zeros(2), atol=0.01)
    True
    """
    if normalization == "none":
        return views
    if normalization == "background":
        return views - background(views)[:, None, None]
    if normalization != "views":
        raise ValueError(f"`normalization` must be 'views', 'background' or 'none', got {normalization!r}")
    flat = views.flatten(1)
    low, high = (_quantile(flat, share)[:, None] for share in (_CLIPPED, 1 - _CLIPPED))
    inside = torch.minimum(torch.maximum(flat, low), high)
    mean, deviation = inside.mean(1, keepdim=True), inside.std(1, keepdim=True)
    if not bool((deviation > 0).all()):
        raise ValueError(f"view {int(deviation.flatten().argmin())} is constant; leave it out with `exclude`")
    return ((flat - mean) * (deviation.median() / deviation)).view_as(views)


def background(views: Tensor) -> Tensor:
    """Return the level of the background of each dark-field view.

    It is the most frequent value, smoothed, among the darker half of the pixels. Empty borders, where all pixels have
    the lowest value of the view, do not count unless they are all there is.

    Parameters
    ----------
    views
        The views ``(view, rows, columns)``.

    Examples
    --------
    >>> background(torch.full((1, 16, 16), 7.0) + 0.01 * torch.randn(1, 16, 16)).round().tolist()
    [7.0]
    """
    levels = []
    for view in views.flatten(1):
        values = view[view > view.min()]
        values = view if len(values) < len(view) // 4 else values
        dark = values.sort().values[: max(len(values) // 2, 1)]
        # Half of the dark pixels lie within the shortest interval that holds half of them.
        width = max(len(dark) // 2, 1)
        starts = len(dark) - width + 1
        narrowest = int((dark[width - 1 :] - dark[:starts]).argmin())
        levels.append(dark[narrowest : narrowest + width].mean())
    return torch.stack(levels)


def filled(views: Tensor) -> Tensor:
    """Return views whose empty borders are filled with the outermost pixels that were measured.

    Aligned images often have borders of one value, where nothing was recorded. Their edges would become bright rims in
    a reconstruction. A border is a row or column at an end of the image whose pixels hardly differ and lie off the
    background; two more are filled beside it, which binning has mixed with it. A view of which less than half would be
    left is not changed.

    Parameters
    ----------
    views
        The views ``(view, rows, columns)``.

    Examples
    --------
    >>> view = torch.nn.functional.pad(torch.randn(1, 28, 32) + 9, (0, 0, 4, 0))
    >>> bool((filled(view)[:, 0] > 3).all()), bool((filled(view)[:, 8:] == view[:, 8:]).all())
    (True, True)
    """
    levels = background(views)
    result = views.clone()
    for place, view, level in zip(result, views, levels, strict=True):
        spread = view.std()
        sides = []
        for lines in (view, view.T):
            deviation, mean = lines.std(1), lines.mean(1)
            is_empty = (deviation < _EVEN * deviation.median()) & ((mean - level).abs() > _OFF * spread)
            before, after = (int(ends.long().cumprod(0).sum()) for ends in (is_empty, is_empty.flip(0)))
            sides.append([n + _MIXED if n else 0 for n in (before, after)])
        (top, bottom), (left, right) = sides
        inside = view[top : len(view) - bottom, left : view.shape[1] - right]
        if inside.numel() < view.numel() and 2 * inside.numel() > view.numel():
            place.copy_(nn.functional.pad(inside[None, None], (left, right, top, bottom), mode="replicate")[0, 0])
    return result


def extended(views: Tensor, margin: int) -> Tensor:
    r"""Return views that continue across the tilt axis by ``margin`` pixels at either end and fade out there.

    A tilted specimen that is larger than the field of view is cut off by the edges of the detector. The ramp filter
    turns this step into a bright rim. The continuation begins with the mean of the outermost pixels and falls to the
    level of the view as half a period of a cosine.

    Parameters
    ----------
    views
        The views ``(view, along the tilt axis, across)``.
    margin
        Pixels to add at either end.

    Examples
    --------
    >>> extended(torch.ones(1, 1, 4), 2).shape
    torch.Size([1, 1, 8])
    """
    if margin < 0:
        raise ValueError(f"`margin` must not be negative, got {margin}")
    if margin == 0:
        return views
    n_edge = min(4, views.shape[-1])
    # Along the axis the specimen changes slowly: without noise, the continuation has no stripes.
    left, right = (_smooth(edge.mean(-1)) for edge in (views[..., :n_edge], views[..., -n_edge:]))
    level = views.mean((-2, -1), keepdim=True)[..., 0]
    fade = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(margin, device=views.device) + 0.5) / margin).to(views.dtype)
    before, after = (((edge - level)[..., None] * fade + level[..., None]) for edge in (left, right))
    return torch.cat((before, views, after.flip(-1)), -1)


def dose_filtered(views: Tensor, dose: Sequence[float], pixel_size: float, *, voltage: float = 300.0) -> Tensor:
    r"""Return views whose frequencies are weighted by what the dose has left of them.

    .. math:: q(k, N) = \exp\Bigl(-\frac{N}{2 N_c(k)}\Bigr), \qquad N_c(k) = 0.245\,k^{-1.665} + 2.81

    with the frequency :math:`k` in 1/Å and the dose :math:`N` in electrons/Å² that the specimen had received
    (:cite:t:`grant2015measuring`, eqs. 3 and 5). At 200 kV the critical dose :math:`N_c` is 0.8 times as large; other
    voltages are scaled linearly between these two.

    Parameters
    ----------
    views
        The views ``(view, rows, columns)``.
    dose
        Electrons/Å² that the specimen had received before each view.
    pixel_size
        In ångström.
    voltage
        In kilovolts.

    Examples
    --------
    >>> views = torch.randn(2, 16, 16)
    >>> filtered = dose_filtered(views, [0.0, 100.0], 2.0)
    >>> torch.allclose(filtered[0], views[0], atol=1e-5), bool(filtered[1].std() < views[1].std())
    (True, True)
    """
    if len(dose) != len(views):
        raise ValueError(f"`dose` must have one value for each of the {len(views)} views, got {len(dose)}")
    if not (pixel_size > 0 and voltage > 0):
        raise ValueError(
            f"the dose filter needs a positive `pixel_size` and `voltage`, got {pixel_size} Å and {voltage} kV"
        )
    rows, columns = views.shape[-2:]
    ky, kx = torch.fft.fftfreq(rows)[:, None], torch.fft.rfftfreq(columns)
    k = ((ky**2 + kx**2).sqrt() / pixel_size).to(views.device)
    critical = (0.245 * k.clamp_min(1e-9) ** -1.665 + 2.81) * (1 - 0.2 * (300.0 - voltage) / 100.0)
    result = torch.empty_like(views)
    for place, view, received in zip(result, views, dose, strict=True):
        weight = torch.exp(-received / (2 * critical))
        place.copy_(torch.fft.irfft2(torch.fft.rfft2(view) * weight, s=(rows, columns)))
    return result


def _interpolated(view: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the values of one view at positions relative to its centre."""
    rows, columns = view.shape
    coefficients = _spline_coefficients(view)
    result = torch.zeros_like(x)
    positions = []
    for position, length in ((y, rows), (x, columns)):
        # Beyond the edge the value of the edge holds.
        position = (position + (length - 1) / 2).clamp(0, length - 1) + _REACH
        start = position.floor()
        positions.append((start.long() - 1, _spline_weights(position - start)))
    (row, row_weights), (column, column_weights) = positions
    for j, row_weight in enumerate(row_weights):
        for i, column_weight in enumerate(column_weights):
            result += row_weight * column_weight * coefficients[row + j, column + i]
    return result.to(view.dtype)


def _spline_weights(t: Tensor) -> tuple[Tensor, ...]:
    """Return the weights of the four coefficients around a position, a part t of a pixel behind the second one."""
    return (
        (1 - t) ** 3 / 6,
        2 / 3 - t**2 + t**3 / 2,
        2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2,
        t**3 / 6,
    )


def _spline_coefficients(view: Tensor) -> Tensor:
    """Return the coefficients of the cubic spline through the pixels, continued beyond the edges."""
    padded = nn.functional.pad(view.double()[None, None], (2 * _REACH,) * 4, mode="replicate")[0, 0]
    for axis in (-2, -1):
        k = torch.fft.rfftfreq(padded.shape[axis], device=view.device, dtype=torch.float64)
        gain = (2 + torch.cos(2 * math.pi * k)) / 3
        spectrum = torch.fft.rfft(padded, dim=axis).movedim(axis, -1) / gain
        padded = torch.fft.irfft(spectrum.movedim(-1, axis), n=padded.shape[axis], dim=axis)
    return padded[_REACH:-_REACH, _REACH:-_REACH]


def _smooth(edge: Tensor, width: int = 9) -> Tensor:
    """Return the moving average along the last axis."""
    padded = nn.functional.pad(edge[:, None], (width // 2,) * 2, mode="replicate")
    return nn.functional.avg_pool1d(padded, width, stride=1)[:, 0]


def _quantile(flat: Tensor, share: float) -> Tensor:
    """Return a quantile of each row, of which torch.quantile refuses long ones."""
    return flat.kthvalue(1 + round(share * (flat.shape[1] - 1)), dim=1).values
