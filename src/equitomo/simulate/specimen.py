"""A simulated piece of a cell, made of beads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from equitomo.checks import spatial_shape
from equitomo.simulate.scene import ACTIN, MICROTUBULE, Scene

Content = Literal["microtubules", "vesicles", "actin", "particles", "gold", "complexes", "threads", "sheets", "support"]

_N_SPECIES = 8
_VOLUME_PER_LARGE_OBJECT = 2e8  # Å^3 of specimen for each vesicle and each filament of a kind


def simulate_specimen(
    shape: Sequence[int],
    *,
    voxel_size: float = 10.0,
    crowding: float = 0.25,
    thickness: float = 0.8,
    contents: Collection[Content] = ("microtubules", "vesicles", "actin", "particles"),
    n_large: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Simulate a crowded piece of a cell with vesicles, microtubules, thin filaments and several species of particles.

    The density is zero in the background and about 1 inside protein, with edges one or two voxels wide. Particles are
    copies of a few irregular molecules in random orientations. Only membranes and their proteins overlap. The specimen
    fills a slab of ice along z and is cut off by the other faces of the volume.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``.
    voxel_size
        Å per voxel. Molecules have their natural sizes: microtubules are 25 nm wide, particles 5 to 20 nm.
    crowding
        Share of the slab that the spheres around the particles take up, from 0 to 0.3. Fewer particles are placed if
        no space is left.
    thickness
        Thickness of the slab as a share of the volume's extent along z, more than 0 and at most 1.
    contents
        What the specimen is made of. ``"gold"`` stands for fiducials of 10 nm with six times the density of protein,
        ``"complexes"`` for particles with a rotational symmetry and density that varies inside, ``"threads"`` for
        strands like DNA, ``"sheets"`` for nearly flat membranes, and ``"support"`` for the edge of a carbon film.
        Without any contents there is only ice.
    n_large
        How many vesicles, filaments of a kind and fiducials there are, relative to the default. There is at least one
        of each kind in ``contents``, if there is space for it.
    generator
        Source of randomness, on the device to compute on; ``None`` takes torch's default generator on the CPU.

    Returns
    -------
    Tensor
        The density ``(z, y, x)`` in float32.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> specimen = simulate_specimen((32, 48, 48), generator=generator)
    >>> specimen.shape, bool(specimen.min() >= 0), bool(specimen.max() > 1)
    (torch.Size([32, 48, 48]), True, True)
    """
    if not voxel_size > 0:
        raise ValueError(f"`voxel_size` must be a positive number of ångström, got {voxel_size}")
    if not 0 <= crowding <= 0.3:
        raise ValueError(f"`crowding` must be from 0 to 0.3 (random spheres hardly pack more densely), got {crowding}")
    if not 0 < thickness <= 1:
        raise ValueError(f"`thickness` must be more than 0 and at most 1, got {thickness}")
    if unknown := set(contents) - set(get_args(Content)):
        raise ValueError(f"`contents` may name {', '.join(get_args(Content))}, got {', '.join(sorted(unknown))}")
    if not n_large > 0:
        raise ValueError(f"`n_large` must be positive, got {n_large}")
    scene = Scene(spatial_shape(shape), voxel_size, thickness, generator)
    for _ in range(max(1, round(n_large * scene.volume * voxel_size**3 / _VOLUME_PER_LARGE_OBJECT))):
        if "microtubules" in contents:
            scene.add_filament(MICROTUBULE)
        if "vesicles" in contents:
            scene.add_vesicle()
        if "actin" in contents:
            scene.add_filament(ACTIN)
        if "gold" in contents:
            scene.add_fiducial()
        if "sheets" in contents:
            scene.add_sheet()
        if "threads" in contents:
            scene.add_thread()
    if "support" in contents:
        scene.add_support()
    if "complexes" in contents:
        scene.add_particles([scene.complex_of(16 + 100 * i / (_N_SPECIES - 1)) for i in range(_N_SPECIES)], crowding)
    if "particles" in contents:
        sizes = [13.0 * 2.5 ** (i / (_N_SPECIES - 1)) for i in range(_N_SPECIES)]
        scene.add_particles([scene.molecule(size, 3 + int(6 * scene.uniform(1))) for size in sizes], crowding)
    return scene.render()
