"""Beads in space, from which specimens are simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equitomo.fourier import frequency_radius, irfftn, rfftn

_EDGE_WIDTH = 0.8  # standard deviation of the blur at every edge, in voxels
_BEADS_PER_VOXEL = 4.0
_MEMBRANE_HALF_WIDTH = 18.0  # from the middle of a bilayer to the heads of a leaflet, in Å
_MEMBRANE_DENSITY = 1.6  # of a leaflet, per square voxel, where protein has 1 per voxel
_GOLD_RADIUS = 50.0  # of a fiducial, in Å
_GOLD_DENSITY = 6.0  # where protein has 1
_THREAD_RADIUS = 11.0  # of a double strand of DNA, in Å
_PERSISTENCE = 500.0  # of a double strand of DNA, in Å
_SUPPORT_THICKNESS = 120.0  # of a carbon film, in Å


@dataclass(frozen=True)
class Helix:
    """Subunits on a helix; lengths are in Å, the twist is in degrees."""

    radius: float
    rise: float
    twist: float
    subunit_radius: float


# A lattice of 13 protofilaments with a monomer every 40 Å is one steep helix through all monomers.
MICROTUBULE = Helix(radius=112.0, rise=40.0 / 13, twist=-4 * 360.0 / 13, subunit_radius=21.0)
ACTIN = Helix(radius=18.0, rise=27.5, twist=-166.7, subunit_radius=24.0)


class Scene:
    """Weighted beads and the space they occupy, in voxels relative to the centre of the volume."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        voxel_size: float,
        thickness: float,
        generator: torch.Generator | None,
    ) -> None:
        self.shape = shape
        self.voxel_size = voxel_size
        self.generator = generator
        self.device = device_of(generator)
        self.half_size = torch.tensor([shape[0] * thickness, shape[1], shape[2]], device=self.device) / 2
        self.volume = math.prod(shape) * thickness
        self.beads = [torch.empty(0, 4, device=self.device)]  # rows of z, y, x, weight
        self.occupied = torch.empty(0, 5, device=self.device)  # rows of z, y, x, inner radius, outer radius

    def add_filament(self, helix: Helix, n_attempts: int = 50) -> None:
        """Add a slightly curved filament across the volume, if there is space for it."""
        width = (helix.radius + helix.subunit_radius) / self.voxel_size
        length = 2 * math.hypot(*self.shape)
        for _ in range(n_attempts):
            centre = 0.8 * self.half_size * self.uniform(3, low=-1)
            frame, bend = self._rotation(), length * (1 + 4 * self.uniform(1))
            axis, _ = _arc(torch.arange(-length / 2, length / 2, width / 2, device=self.device), frame, bend)
            axis = axis[self._inside(axis + centre, width)] + centre
            if self._occupy(axis, 0.0, width):
                break
        else:
            return
        n = math.ceil(length * self.voxel_size / helix.rise)
        index = torch.arange(n, device=self.device, dtype=torch.float32) - n / 2
        axis, normal = _arc(index * helix.rise / self.voxel_size, frame, bend)
        turn = torch.deg2rad(index * helix.twist)[:, None]
        around = turn.cos() * normal + turn.sin() * frame[2]
        subunits = centre + axis + helix.radius / self.voxel_size * around
        self._add_balls(subunits, torch.full_like(index, helix.subunit_radius / self.voxel_size))

    def add_vesicle(self, n_attempts: int = 50) -> None:
        """Add a closed, slightly dented bilayer with proteins in it, if there is space for it."""
        thickest = 2 * self.half_size[0].item() * self.voxel_size
        for _ in range(n_attempts):
            radius = (140 + 140 * self.uniform(1).item()) * min(1.0, thickest / 700)
            outer = (1.1 * radius + 90) / self.voxel_size
            room = self.half_size - torch.tensor([outer, 0.0, 0.0], device=self.device)
            centre = room.clamp(min=0) * self.uniform(3, low=-1)
            if self._occupy(centre[None], (0.9 * radius - 60) / self.voxel_size, outer):
                break
        else:
            return
        dents = (self._directions(3), self.uniform(3, low=-1) * 0.12)

        def surface(directions: Tensor, height: float) -> Tensor:
            shape = 1 + ((directions @ dents[0].T) ** 2 - 1 / 3) @ dents[1]
            return centre + directions * (radius * shape[:, None] + height) / self.voxel_size

        area = 4 * math.pi * (radius / self.voxel_size) ** 2
        n_beads = math.ceil(4 * _BEADS_PER_VOXEL * area)
        for height in (-_MEMBRANE_HALF_WIDTH, _MEMBRANE_HALF_WIDTH):
            leaflet = surface(self._directions(n_beads), height)
            self._add_beads(leaflet, torch.full_like(leaflet[:, 0], _MEMBRANE_DENSITY * area / n_beads))
        proteins = self._directions(max(1, round(4 * math.pi * radius**2 / 120**2)))
        for height, size in ((0.0, 20.0), (32.0, 16.0), (56.0, 24.0)):
            centres = surface(proteins + 0.03 * self._directions(len(proteins)), height)
            self._add_balls(centres, torch.full_like(centres[:, 0], size / self.voxel_size))

    def add_fiducial(self, n_attempts: int = 50) -> None:
        """Add a ball of gold, if there is space for it."""
        radius = _GOLD_RADIUS / self.voxel_size
        for _ in range(n_attempts):
            centre = (self.half_size - radius).clamp(min=0) * self.uniform(1, 3, low=-1)
            if self._occupy(centre, 0.0, radius):
                self._add_balls(centre, centre.new_tensor([radius]), density=_GOLD_DENSITY)
                return

    def add_particles(self, species: Sequence[tuple[Tensor, Tensor]], crowding: float) -> None:
        """Add randomly rotated copies of every species, the last first, with the same total volume of each."""
        for offsets, radii in reversed(species):
            bound = (offsets.norm(dim=-1) + radii).max().item()
            wanted = round(crowding * self.volume / len(species) / (4 / 3 * math.pi * bound**3))
            reach = self.half_size + bound * torch.tensor([-1.0, 1.0, 1.0], device=self.device)
            centres = reach.clamp(min=0) * self.uniform(10 * wanted, 3, low=-1)
            n_placed = 0
            for centre in centres:
                if n_placed == wanted:
                    break
                if self._occupy(centre[None], 0.0, bound):
                    self._add_balls(centre + offsets @ self._rotation(), radii)
                    n_placed += 1

    def add_sheet(self, n_attempts: int = 50) -> None:
        """Add a nearly flat bilayer across the volume, if there is space for it."""
        length = math.hypot(*self.shape)
        spacing = 2 * _MEMBRANE_HALF_WIDTH / self.voxel_size
        places = torch.arange(-length / 2, length / 2, spacing, device=self.device)
        grid = torch.cartesian_prod(places, places)
        for _ in range(n_attempts):
            centre, frame = 0.6 * self.half_size * self.uniform(3, low=-1), self._rotation()
            bends = 0.4 / length * self.uniform(2, low=-1)
            patch = centre + _bent(grid, bends) @ frame
            patch = patch[self._inside(patch, spacing)]
            if len(patch) and self._occupy(patch, 0.0, spacing):
                break
        else:
            return
        n_beads = math.ceil(2 * _BEADS_PER_VOXEL * length**2)
        for height in (-_MEMBRANE_HALF_WIDTH, _MEMBRANE_HALF_WIDTH):
            leaflet = _bent(length * (self.uniform(n_beads, 2) - 0.5), bends)
            leaflet[:, 2] += height / self.voxel_size
            weight = _MEMBRANE_DENSITY * length**2 / n_beads
            self._add_beads(centre + leaflet @ frame, torch.full_like(leaflet[:, 0], weight))

    def add_thread(self) -> None:
        """Add a strand whose direction wanders, through whatever is in its way."""
        radius = _THREAD_RADIUS / self.voxel_size
        n = math.ceil(2 * math.hypot(*self.shape) / radius)
        turns = math.sqrt(2 * _THREAD_RADIUS / _PERSISTENCE) * normal((n, 3), self.generator)
        turns[0] = 10 * self._directions(1)[0]
        places = torch.nn.functional.normalize(turns.cumsum(0), dim=1).cumsum(0) * radius
        middle = places[int(n * self.uniform(1))]
        places = places - middle + 0.8 * self.half_size * self.uniform(3, low=-1)
        self._add_balls(places, torch.full_like(places[:, 0], radius))

    def add_support(self) -> None:
        """Add the straight edge of a film that lies on the face of the slab."""
        thickness = _SUPPORT_THICKNESS / self.voxel_size
        n_beads = math.ceil(_BEADS_PER_VOXEL * thickness * self.shape[1] * self.shape[2])
        size = torch.tensor([thickness, *self.shape[1:]], device=self.device)
        beads = size * (self.uniform(n_beads, 3) - 0.5)
        weights = torch.full_like(beads[:, 0], thickness * self.shape[1] * self.shape[2] / n_beads)
        beads[:, 0] += self.half_size[0] - thickness / 2
        turn = 2 * math.pi * self.uniform(1)
        distance = beads[:, 1] * turn.cos() + beads[:, 2] * turn.sin()
        kept = distance > 0.4 * min(self.shape[1:]) * self.uniform(1, low=-1)
        self._add_beads(beads[kept], weights[kept])

    def complex_of(self, size: float) -> tuple[Tensor, Tensor]:
        """Return offsets and radii in voxels of a molecule of about ``size`` Å with a rotational symmetry.

        Its copies of one chain lie around an axis, in one ring or in two rings that face each other. Balls overlap
        and leave gaps, so the density varies inside.
        """
        fold = (1, 1, 2, 3, 4, 6, 7)[int(7 * self.uniform(1))]
        n_rings = 1 + int(1.4 * self.uniform(1))
        ball = 6.0 + 5.0 * self.uniform(1).item()
        n = round(min(60.0, max(4.0, 0.6 * (size / ball) ** 3 / (fold * n_rings))))
        offsets, radii = self.molecule(ball, n)
        reach = offsets.norm(dim=-1).max()
        offsets = offsets @ self._rotation()
        shift = torch.zeros(3, device=self.device)
        shift[0] = (n_rings - 1) * reach * (0.5 + 0.4 * self.uniform(1).item())
        if fold > 1:
            shift[1] = reach * (0.4 + 0.5 * self.uniform(1).item()) / math.sin(math.pi / fold)
        ring = [offsets + shift]
        if n_rings == 2:
            # Half a turn about an axis at right angles.
            ring.append(ring[0] * torch.tensor([-1.0, 1.0, -1.0], device=self.device))
        copies = []
        for i in range(fold):
            cos, sin = math.cos(2 * math.pi * i / fold), math.sin(2 * math.pi * i / fold)
            turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]], device=self.device)
            copies += [chain @ turn for chain in ring]
        whole = torch.cat(copies)
        return whole - whole.mean(dim=0), radii.repeat(len(copies))

    def render(self) -> Tensor:
        """Return the density of all beads, each of which is blurred over the voxels around it."""
        margin = math.ceil(5 * _EDGE_WIDTH)
        shape = (self.shape[0] + 2 * margin, self.shape[1] + 2 * margin, self.shape[2] + 2 * margin)
        sharp = _splat(torch.cat(self.beads), shape)
        radius = frequency_radius(shape, device=self.device, dtype=torch.float32)
        blur = torch.exp(-2 * (math.pi * _EDGE_WIDTH * radius) ** 2)
        smooth = irfftn(rfftn(sharp) * blur, shape)[margin:-margin, margin:-margin, margin:-margin]
        return smooth.clamp(min=0).contiguous()

    def _occupy(self, centres: Tensor, inner: float, outer: float) -> bool:
        """Occupy the space of spheres, hollow up to the radius ``inner``, and return whether all of it was free."""
        distance = torch.cdist(centres, self.occupied[:, :3])
        if not ((distance > self.occupied[:, 4] + outer) | (distance < self.occupied[:, 3] - outer)).all():
            return False
        radii = torch.tensor([inner, outer], device=self.device).expand(len(centres), 2)
        self.occupied = torch.cat((self.occupied, torch.cat((centres, radii), dim=1)))
        return True

    def molecule(self, size: float, n: int) -> tuple[Tensor, Tensor]:
        """Return offsets and radii in voxels of an asymmetric molecule of ``n`` touching balls of about ``size`` Å."""
        radii = size / self.voxel_size * (0.7 + 0.6 * self.uniform(n))
        offsets = torch.zeros(n, 3, device=self.device)
        for i in range(1, n):
            parent = int(i * self.uniform(1))
            step = 0.8 * (radii[i] + radii[parent])
            # A ball touches its parent. Of several such places the free one nearest to the middle is taken.
            places = offsets[parent] + step * self._directions(16)
            overlap = (0.8 * (radii[i] + radii[:i]) - torch.cdist(places, offsets[:i])).amax(dim=1)
            off_centre = (places - offsets[:i].mean(dim=0)).norm(dim=-1)
            offsets[i] = places[(10 * overlap.clamp(min=0) + off_centre).argmin()]
        return offsets - offsets.mean(dim=0), radii

    def _add_balls(self, centres: Tensor, radii: Tensor, density: float = 1.0) -> None:
        """Add solid balls."""
        volume = 4 / 3 * math.pi * radii**3
        n_beads = (_BEADS_PER_VOXEL * volume).ceil().long()
        n = int(n_beads.sum())
        inside = self._directions(n) * self.uniform(n, 1) ** (1 / 3)
        beads = centres.repeat_interleave(n_beads, dim=0) + inside * radii.repeat_interleave(n_beads)[:, None]
        self._add_beads(beads, (density * volume / n_beads).repeat_interleave(n_beads))

    def _add_beads(self, positions: Tensor, weights: Tensor) -> None:
        kept = self._inside(positions, 0.0)
        self.beads.append(torch.cat((positions, weights[:, None]), dim=1)[kept])

    def _inside(self, positions: Tensor, margin: float) -> Tensor:
        # Beads just beside the volume's side faces blur into it. There is no specimen above and below the slab.
        reach = self.half_size + torch.tensor([0.0, 3.0, 3.0], device=self.device) + margin
        return (positions.abs() <= reach).all(dim=-1)

    def uniform(self, *size: int, low: float = 0.0) -> Tensor:
        return low + (1 - low) * torch.rand(*size, generator=self.generator, device=self.device)

    def _directions(self, n: int) -> Tensor:
        return torch.nn.functional.normalize(normal((n, 3), self.generator), dim=-1)

    def _rotation(self) -> Tensor:
        """Return a uniformly random right-handed frame with its axes in rows."""
        first, other = self._directions(2)
        third = torch.nn.functional.normalize(torch.linalg.cross(first, other), dim=0)
        return torch.stack((first, torch.linalg.cross(third, first), third))


def _arc(length: Tensor, frame: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Return points on a circle of radius ``bend`` in the plane of the first two axes of ``frame``, and normals."""
    angle = (length / bend)[:, None]
    normal = angle.cos() * frame[1] - angle.sin() * frame[0]
    return bend * (frame[1] - normal), normal


def _bent(grid: Tensor, bends: Tensor) -> Tensor:
    """Return points ``(n, 3)`` on a parabolic sheet over the points ``(n, 2)`` of a plane."""
    return torch.cat((grid, (grid**2 @ bends)[:, None]), dim=1)


def _splat(beads: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return a grid on which each bead is distributed linearly among its eight neighbours."""
    centre = (torch.tensor(shape, device=beads.device) - 1) / 2
    corner, rest = (beads[:, :3] + centre).floor().long(), (beads[:, :3] + centre) % 1
    grid = torch.zeros(math.prod(shape), device=beads.device)
    for step in torch.cartesian_prod(*[torch.arange(2, device=beads.device)] * 3):
        share = torch.where(step == 1, rest, 1 - rest).prod(dim=-1)
        z, y, x = (corner + step).unbind(-1)
        grid.index_add_(0, (z * shape[1] + y) * shape[2] + x, share * beads[:, 3])
    return grid.reshape(shape)


def normal(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Return standard normal numbers, drawn on the generator's device."""
    return torch.randn(*size, generator=generator, device=device_of(generator))


def device_of(generator: torch.Generator | None) -> torch.device:
    """Return the device of a generator, and the CPU for None."""
    return torch.device("cpu") if generator is None else generator.device
