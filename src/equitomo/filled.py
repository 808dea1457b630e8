r"""The two parts of a reconstruction: what was measured, and what was filled into the missing wedge.

Let :math:`A` be the orthogonal projection onto the measured Fourier coefficients of the whole volume. Then

.. math:: f = \underbrace{A f}_\text{measured} + \underbrace{(I - A) f}_\text{filled}.

The filled part lies in the null space of the measurement: no projection shows anything of it, so it comes from what the
network learned and from nothing else. :cite:t:`bhadra2021hallucinations` call this part of a reconstruction its
hallucination map. The measured part can be compared with the data, and replaced by them: with the mean :math:`y` of the
halves, :math:`A y + (I - A) f` agrees with everything that was measured, noise included, and is filled elsewhere.

A coefficient counts as measured if its direction lies between the outermost tilts and has a weight other than zero, up
to the corners of the spectrum, as in :func:`equitomo.metrics.region_masks`. :math:`A` continues a volume periodically,
because only then it is a projection; jumps between opposite faces therefore reach a few voxels into both parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from equitomo.checks import Shape, spatial_shape
from equitomo.fourier import mirrored
from equitomo.geometry import Geometry, MeasuredMask
from equitomo.io import release, slabs_of
from equitomo.physics import MissingWedgeOperator, apply_by_planes
from equitomo.volumes import VolumeLike, as_voxels


def measured_operator(
    geometry: Geometry | tuple[float, float], shape: Sequence[int] = (8, 8, 8)
) -> MissingWedgeOperator:
    """Return the orthogonal projection onto the measured coefficients, for volumes of any shape.

    Parameters
    ----------
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    shape
        Voxels ``(z, y, x)``; the operator's method ``resized`` makes that of another shape.

    Examples
    --------
    >>> A = measured_operator((-60.0, 60.0), (8, 9, 10)).A
    >>> x = torch.randn(1, 1, 8, 9, 10)
    >>> torch.allclose(A(A(x)), A(x), atol=1e-6)
    True
    """
    return MissingWedgeOperator(shape, mask=MeasuredMask(geometry))


def measured_part(
    volume: VolumeLike,
    geometry: Geometry | tuple[float, float],
    *,
    out: NDArray[np.float32] | None = None,
    scratch: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Return the part of a volume that the tilts measure; the rest of the volume is its filled part.

    Parameters
    ----------
    volume
        A volume ``(z, y, x)``, also in a file.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    out
        An array to write into, which may be a memory map; ``None`` makes one. With this and ``scratch`` the memory
        hardly depends on the size of the volume.
    scratch
        A folder for intermediate results; ``None`` keeps them in memory.
    device
        The device to compute on.

    Returns
    -------
    numpy.ndarray
        The measured part in float32, ``out`` if it was given.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(12, 10, 14)).astype(np.float32)
    >>> measured = measured_part(volume, (-60.0, 60.0))
    >>> bool(np.square(measured).sum() < np.square(volume).sum())
    True
    """
    voxels = as_voxels(volume)
    result = np.empty(voxels.shape, np.float32) if out is None else out
    for place, block in voxels.slabs():
        result[place] = block
    apply_by_planes(measured_operator(geometry), result, result, scratch=scratch, device=device)
    return result


def data_consistent(
    volume: VolumeLike,
    measured: VolumeLike,
    geometry: Geometry | tuple[float, float],
    *,
    out: NDArray[np.float32] | None = None,
    scratch: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    r"""Return what was measured with the wedge of a reconstruction, :math:`A y + (I - A) f`.

    Parameters
    ----------
    volume
        The reconstruction :math:`f`, ``(z, y, x)``.
    measured
        The tomogram :math:`y` that it was made from, as the mean of two halves, on the same intensity scale.
    geometry, out, scratch, device
        As for :func:`measured_part`.

    Raises
    ------
    ValueError
        If the volumes differ in shape.

    Examples
    --------
    >>> f, y = np.random.default_rng(0).normal(size=(2, 12, 10, 14)).astype(np.float32)
    >>> both = data_consistent(f, y, (-60.0, 60.0))
    >>> np.allclose(measured_part(both, (-60.0, 60.0)), measured_part(y, (-60.0, 60.0)), atol=1e-5)
    True
    """
    f, y = as_voxels(volume), as_voxels(measured)
    if f.shape != y.shape:
        raise ValueError(f"`measured` must have the shape of `volume`, {f.shape}, got {y.shape}")
    result = np.empty(f.shape, np.float32) if out is None else out
    # f + A (y - f) needs one filter.
    for place, block in f.slabs():
        result[place] = np.subtract(y[place], block, dtype=np.float32)
        release(measured)
    apply_by_planes(measured_operator(geometry), result, result, scratch=scratch, device=device)
    for place, block in slabs_of(result):
        block += f[place]
        release(volume)
    return result


def full_wedge_mask(
    shape: Sequence[int],
    geometry: Geometry | tuple[float, float],
    *,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the mask of the measured coefficients on the full spectrum of a volume, 1 where one is measured.

    Zero frequency is the first voxel, and the axes are those of the volume, so that ``ifftn(fftn(volume) * mask)`` of
    NumPy is the measured part. pyTME (``tme.filters``) multiplies spectra in this layout, or its half
    ``mask[..., : x // 2 + 1]`` for ``rfftn``. pytom-match-pick has its arrays in the order ``(x, y, z)`` and takes
    ``rfftn`` of them, so that its half is ``mask.T[..., : z // 2 + 1]``. Both programs make their masks from the tilts
    by themselves and read none from a file on their command lines.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``: those of a tomogram, or of the box of a template.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    out
        An array to write into, which may be a memory map; ``None`` makes one.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(12, 10, 14)).astype(np.float32)
    >>> mask = full_wedge_mask(volume.shape, (-60.0, 60.0))
    >>> filtered = np.fft.ifftn(np.fft.fftn(volume) * mask).real
    >>> np.allclose(filtered, measured_part(volume, (-60.0, 60.0)), atol=1e-5)
    True
    """
    grid: Shape = spatial_shape(shape)
    planes = MeasuredMask(geometry).planes(grid)
    result = np.empty(grid, np.float32) if out is None else out
    across: NDArray[Any] = np.moveaxis(result, planes.axes.along, 0)
    if planes.constant:
        across[:] = planes(0, 1)[0].numpy()
        return result
    for k in range(len(across) // 2 + 1):
        plane = planes(k, k + 1)[0]
        across[k] = plane.numpy()
        # m(-k) = m(k), and on an even grid the Nyquist plane is its own opposite.
        across[-k] = mirrored(plane, (-2, -1)).numpy()
        release(out)
    return result
