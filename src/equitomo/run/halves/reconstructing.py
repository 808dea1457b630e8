"""Reconstruction of one half of a tilt series into a file, in pieces along the tilt axis that fit into the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from equitomo import resources
from equitomo.datasets import TiltSeries
from equitomo.datasets.views import extended
from equitomo.io import creating_volume, release
from equitomo.physics import TiltSeriesPhysics, full_detector
from equitomo.run.halves.preparing import Prepared, middle_planes, offsets
from equitomo.run.memory import readable
from equitomo.run.settings import HalvesSettings
from equitomo.solvers import filtered_backprojection, sirt

# Floats of a plane across the tilt axis that are held at once, per float of its views and of its voxels: filtering pads
# the views to twice their width, and SIRT keeps the weights and the iterates of both.
_COPIES = {"fbp": (12, 3), "sirt": (6, 8)}
# The projector keeps its weights, 12 bytes each, where they are few, and works in slabs of its own.
_PROJECTOR = 6e8
LONGEST = 64  # planes after which progress is reported


def bytes_of_views(prepared: Prepared) -> int:
    """Return the bytes that the views of both halves take."""
    return sum(half.n_bytes for half in prepared.halves)


def planes_at_once(prepared: Prepared, settings: HalvesSettings) -> tuple[int, float]:
    """Return how many planes across the tilt axis are reconstructed at once, and the memory in bytes that this takes.

    Raises
    ------
    ValueError
        If the given memory does not hold a single one.
    """
    free = resources.free_memory()
    given = settings.memory * 2**30 or (math.inf if free is None else free / 2)
    of_views, of_voxels = _COPIES[settings.method]
    plane, continued = 0, 0
    for half in prepared.halves:
        detector = _detector(prepared, half)
        continued = max(continued, 4 * half.n_views * half.shape[0] * detector)
        n_beam, n_across = prepared.shape[0], _n_across(prepared, half)
        plane = max(plane, 4 * (of_views * half.n_views * detector + of_voxels * n_beam * n_across))
    base = bytes_of_views(prepared) + continued + _PROJECTOR
    n = int((given - base) // plane) if math.isfinite(given) else LONGEST
    if n < 1:
        raise ValueError(
            f"{prepared.name}: its views take {readable(bytes_of_views(prepared))} and a plane {readable(plane)}, with "
            f"the projector {readable(base + plane)} in all, and {readable(given)} are allowed: raise `memory`, or "
            "pass a larger `bin`"
        )
    n = min(n, LONGEST, _n_along(prepared, prepared.halves[0]))
    return n, base + n * plane


def reconstruct_half(
    path: Path,
    prepared: Prepared,
    half: TiltSeries,
    settings: HalvesSettings,
    *,
    n_planes: int,
    label: str,
    overwrite: bool,
    progress: Callable[[int], None],
) -> None:
    """Reconstruct one half into a file; ``progress`` is called with the number of planes after each piece."""
    margin = (_detector(prepared, half) - half.shape[1]) // 2
    # All at once: the continuation is smooth along the tilt axis.
    views = extended(middle_planes(half, _n_along(prepared, half)), margin)
    n_along, along = views.shape[1], half.geometry.axes.along
    size = half.pixel_size or 0.0
    with creating_volume(path, prepared.shape, voxel_size=size, label=label, overwrite=overwrite) as volume:
        physics: TiltSeriesPhysics | None = None
        for start in range(0, n_along, n_planes):
            piece = views[:, start : start + n_planes]
            if physics is None or physics.n_along != piece.shape[1]:
                physics = _physics(prepared, half, piece.shape)
            y = piece[None, None]
            with torch.no_grad():
                if settings.method == "sirt":
                    x = sirt(y, physics, iterations=settings.iterations, positive=settings.positive)
                else:
                    x = filtered_backprojection(y, physics)
            place: list[slice] = [slice(None)] * 3
            place[along] = slice(start, start + piece.shape[1])
            volume[tuple(place)] = x[0, 0].numpy()
            # Pages of the file would otherwise stay in memory.
            release(volume)
            progress(start + piece.shape[1])


def _physics(prepared: Prepared, half: TiltSeries, views: Sequence[int]) -> TiltSeriesPhysics:
    """Return the operator for some planes, whose views have this shape."""
    _, n_planes, detector = views
    shape = list(prepared.shape)
    shape[half.geometry.axes.along] = n_planes
    return TiltSeriesPhysics(shape, half.geometry, detector=detector, tilt_axis_offset=offsets(half, prepared.centre))


def _n_along(prepared: Prepared, half: TiltSeries) -> int:
    return prepared.shape[half.geometry.axes.along]


def _n_across(prepared: Prepared, half: TiltSeries) -> int:
    return prepared.shape[half.geometry.axes.across]


def _detector(prepared: Prepared, half: TiltSeries) -> int:
    """Return the pixels across the tilt axis of views that are continued as far as the volume reaches at any tilt."""
    own = half.shape[1]
    reach = max(abs(offset) for offset in offsets(half, prepared.centre))
    needed = full_detector(prepared.shape, half.geometry, tilt_axis_offset=reach)
    return own + 2 * max(0, -(-(needed - own) // 2))
