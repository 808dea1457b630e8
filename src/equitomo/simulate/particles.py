"""Simulated nanoparticles of one material in vacuum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.simulate.scene import device_of, normal

# The faces of a truncated octahedron, the usual shape of small crystals of face-centred cubic metals. The distances of
# {100} and {111} faces from the centre have the ratio of Wulff's construction for gold, about 1.15.
_CUBE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_OCTAHEDRON = ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0))
_RATIO = 1.15


def simulate_particles(
    shape: Sequence[int],
    *,
    n_particles: int = 12,
    radii: tuple[float, float] = (4.0, 9.0),
    density: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Simulate separate particles of constant density on a background of exactly zero.

    Every second particle is a truncated octahedron and the others are ellipsoids; orientations and places are random.
    All particles lie inside the largest ball in the volume, so that a detector as wide as the volume sees all of them
    at every tilt. Edges are one voxel wide: a voxel that is partly inside a particle has a part of the density.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``.
    n_particles
        Number of particles; fewer are placed if no space is left.
    radii
        The smallest and the largest radius in voxels, which are drawn uniformly.
    density
        The density inside.
    generator
        Source of randomness, on the device to compute on; ``None`` takes torch's default generator on the CPU.

    Returns
    -------
    Tensor
        The density ``(z, y, x)`` in float32.

    Raises
    ------
    ValueError
        If an argument is out of its range, or the largest particle does not fit into the volume.

    Examples
    --------
    >>> particles = simulate_particles((32, 32, 32), n_particles=3, generator=torch.Generator().manual_seed(0))
    >>> particles.shape, float(particles.min()), float(particles.max())
    (torch.Size([32, 32, 32]), 0.0, 1.0)
    """
    volume_shape = spatial_shape(shape)
    smallest, largest = radii
    reach = (min(volume_shape) - 1) / 2 - 1
    if n_particles < 1:
        raise ValueError(f"`n_particles` must be at least 1, got {n_particles}")
    if not 1 <= smallest <= largest <= reach / 1.5:
        raise ValueError(
            f"`radii` must be 1 <= smallest <= largest <= {reach / 1.5:g} voxels for a volume of {volume_shape}, got "
            f"{radii}"
        )
    if not 0 < density < math.inf:
        raise ValueError(f"`density` must be positive, got {density}")
    device = device_of(generator)
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in volume_shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    volume = torch.zeros(volume_shape, device=device)
    spheres: list[tuple[Tensor, float]] = []
    for n in range(n_particles):
        radius = smallest + (largest - smallest) * float(torch.rand(1, generator=generator, device=device))
        # Corners of a truncated octahedron, and the long axes of an ellipsoid, reach further than the radius.
        bound = 1.45 * radius
        centre = _free_place(spheres, bound, reach - bound, generator)
        if centre is None:
            continue
        spheres.append((centre, bound))
        frame = torch.linalg.qr(normal((3, 3), generator)).Q
        depth = _depth_in_crystal if n % 2 == 0 else _depth_in_ellipsoid
        box = tuple(
            slice(max(0, math.floor(c + (n - 1) / 2 - bound - 1)), math.ceil(c + (n - 1) / 2 + bound + 2))
            for c, n in zip(centre.tolist(), volume_shape, strict=True)
        )
        inside = (depth((places[box] - centre) @ frame, radius) + 0.5).clamp(0, 1)
        volume[box] = torch.maximum(volume[box], inside)
    return density * volume


def _free_place(
    spheres: Sequence[tuple[Tensor, float]], bound: float, room: float, generator: torch.Generator | None
) -> Tensor | None:
    """Return the centre of a sphere that meets no other one, or None if none is found."""
    for _ in range(200):
        direction = torch.nn.functional.normalize(normal((3,), generator), dim=0)
        length = room * float(torch.rand(1, generator=generator, device=device_of(generator))) ** (1 / 3)
        centre: Tensor = direction * length
        if all(float((centre - other).norm()) > bound + taken for other, taken in spheres):
            return centre
    return None


def _depth_in_crystal(offsets: Tensor, radius: float) -> Tensor:
    """Return the distance to the nearest face of a truncated octahedron, positive inside."""
    depths = []
    for normals, distance in ((_CUBE, _RATIO * radius), (_OCTAHEDRON, radius)):
        directions = torch.nn.functional.normalize(torch.tensor(normals, device=offsets.device), dim=1)
        depths.append(distance - (offsets @ directions.T).abs().amax(dim=-1))
    return torch.minimum(*depths)


def _depth_in_ellipsoid(offsets: Tensor, radius: float) -> Tensor:
    """Return about the distance to the surface of an ellipsoid with axes of 1.2, 1 and 0.9 radii, positive inside."""
    axes = radius * torch.tensor([1.2, 1.0, 0.9], device=offsets.device)
    length = (offsets / axes).norm(dim=-1)
    # The distance to first order: the function over the length of its gradient.
    gradient = (offsets / axes**2).norm(dim=-1) / length.clamp(min=1e-3)
    depth: Tensor = (1 - length) / gradient.clamp(min=1e-3)
    return depth
