"""A made-up specimen, its tilt series and its two half tomograms, for demonstrations and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from equitomo._checks import spatial_shape
from equitomo.fourier import frequencies, irfftn, rfftn
from equitomo.geometry import TiltAxis, TiltGeometry


@dataclass(frozen=True)
class SimulatedHalves:
    """Two half tomograms of one specimen, with the truth that they were made from.

    Parameters
    ----------
    truth
        The specimen, ``(z, y, x)``.
    first, second
        Filtered backprojections of the two dose halves, ``(z, y, x)``: the same signal, independent noise.
    geometry
        The tilts of both series.
    """

    truth: Tensor
    first: Tensor
    second: Tensor
    geometry: TiltGeometry


def simulate_halves(
    shape: Sequence[int],
    geometry: TiltGeometry,
    *,
    snr: float,
    voxel_size: float = 10.0,
    generator: torch.Generator | None = None,
) -> SimulatedHalves:
    r"""Two half tomograms of a simulated specimen, as a dose-split tilt series gives them.

    Each half is reconstructed from the same noise-free projections :math:`p` with white Gaussian noise of
    its own. With half of the electrons each, their noise has twice the variance of the full dose:

    .. math::

        y_i = \operatorname{FBP}(p + n_i), \qquad \operatorname{Var}(n_i) = 2\sigma^2, \qquad
        \mathrm{snr} = \operatorname{Var}(p) / \sigma^2.

    :math:`\operatorname{Var}(p)` is the variance over the pixels of a projection, averaged over the tilts;
    only the pixels of a detector as wide as the volume count. The detector itself is wide enough for every
    voxel to be seen at every tilt. Outside the volume there is nothing.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``.
    geometry
        The list of tilts and the tilt axis.
    snr
        Signal-to-noise ratio per projection of the full dose; ``inf`` for halves without noise.
    voxel_size
        Ångström per voxel; see :func:`simulate_specimen`.
    generator
        Source of randomness, on the device to compute on; ``None`` draws from torch's default on the CPU.

    Raises
    ------
    ValueError
        If ``snr`` is not positive or the geometry is a continuous range.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> geometry = TiltGeometry(range(-60, 61, 6))
    >>> halves = simulate_halves((24, 24, 24), geometry, snr=0.8, voxel_size=20.0, generator=generator)
    >>> halves.first.shape, torch.equal(halves.first, halves.second)
    (torch.Size([24, 24, 24]), False)
    """
    if not snr > 0:
        raise ValueError(f"snr must be positive (inf for no noise), got {snr}")
    truth = simulate_specimen(shape, voxel_size=voxel_size, generator=generator)
    n_across = truth.shape[2] if geometry.tilt_axis == "y" else truth.shape[1]
    n_spare = math.ceil((math.hypot(truth.shape[0], n_across) - n_across) / 2)
    series = project(truth, geometry, width=n_across + 2 * n_spare)
    power = series[..., n_spare : n_spare + n_across].var(dim=(1, 2)).mean()
    deviation = (2 * power / snr).sqrt()
    first, second = (
        filtered_backprojection(series + deviation * _normal(series.shape, generator), geometry, truth.shape)
        for _ in range(2)
    )
    return SimulatedHalves(truth=truth, first=first, second=second, geometry=geometry)


def project(volume: Tensor, geometry: TiltGeometry, *, width: int | None = None) -> Tensor:
    r"""Tilt series of a volume: its line integrals along the tilted beam.

    .. math::

        p_\theta(y, t) = \int x(t\sin\theta + s\cos\theta,\; y,\; t\cos\theta - s\sin\theta)\, ds,
        \qquad t = x\cos\theta + z\sin\theta,

    with ``z, x, t`` measured from the centre, ``(n - 1) / 2``, and growing with the index
    (:cite:t:`kak1988principles`, chapter 3, eq. 2). With the tilt axis along x, y takes the place of x. The
    line is sampled once a voxel, with cubic interpolation; outside the volume is zero.

    Parameters
    ----------
    volume
        ``(z, y, x)``.
    geometry
        The list of tilts and the tilt axis.
    width
        Detector pixels across the tilt axis; ``None`` for as many as the volume has voxels. What falls
        beside the detector is not recorded.

    Returns
    -------
    Tensor
        ``(tilt, along the tilt axis, detector)``, tilts ascending as in ``geometry.angles``.

    Raises
    ------
    ValueError
        If the volume is not ``(z, y, x)`` or the geometry is a continuous range.

    Examples
    --------
    >>> volume = torch.zeros(9, 2, 9)
    >>> volume[6, 0, 4] = 1.0  # two voxels above the centre: t = 2 sin(tilt)
    >>> series = project(volume, TiltGeometry([-90, 0, 89]))
    >>> series.shape, series[:, 0].argmax(dim=-1).tolist()
    (torch.Size([3, 2, 9]), [2, 4, 6])
    """
    if volume.ndim != 3:
        raise ValueError(f"volume must be (z, y, x), got shape {tuple(volume.shape)}")
    tilts = _tilts(geometry)
    planes = _to_planes(volume, geometry.tilt_axis)
    n_beam = math.ceil(math.hypot(*planes.shape[-2:])) + 1
    s = _from_centre(n_beam, volume)[:, None]
    t = _from_centre(planes.shape[-1] if width is None else width, volume)
    views = [
        _sample(planes, t * math.sin(tilt) + s * math.cos(tilt), t * math.cos(tilt) - s * math.sin(tilt))
        for tilt in tilts
    ]
    return torch.stack([view.sum(dim=-2) for view in views])


def filtered_backprojection(series: Tensor, geometry: TiltGeometry, shape: Sequence[int]) -> Tensor:
    r"""Volume from a tilt series, in true scale wherever the series measures it.

    .. math::

        x(z, y, x) = \sum_i \Delta\theta_i\, (h * p_{\theta_i})(y, x\cos\theta_i + z\sin\theta_i), \qquad
        \hat h(k) = \lvert k \rvert

    with the band-limited ramp of Ramachandran and Lakshminarayanan (:cite:t:`kak1988principles`, chapter 3,
    eq. 61) and cubic interpolation. :math:`\Delta\theta_i` in radians is half the gap between the neighbours
    of tilt :math:`i`, the whole step at the two ends: the inverse Radon transform restricted to the measured
    directions, so that these have gain 1 for every tilt range and the missing wedge stays empty. Above half
    of Nyquist interpolation lowers the gain, to about 0.7 at Nyquist.

    Parameters
    ----------
    series
        ``(tilt, along the tilt axis, detector)``, tilts ascending as in ``geometry.angles``.
    geometry
        The list of tilts and the tilt axis.
    shape
        Voxels ``(z, y, x)`` to reconstruct; the detector may be wider or narrower.

    Raises
    ------
    ValueError
        If the series does not fit the geometry and shape, or the geometry is a continuous range.

    Examples
    --------
    >>> geometry = TiltGeometry(range(-60, 61, 3))
    >>> series = project(torch.ones(8, 4, 16), geometry)
    >>> filtered_backprojection(series, geometry, (8, 4, 16)).shape
    torch.Size([8, 4, 16])
    """
    z, y, x = spatial_shape(shape)
    tilts = _tilts(geometry)
    n_along, n_across = (y, x) if geometry.tilt_axis == "y" else (x, y)
    if series.ndim != 3 or series.shape[:2] != (len(tilts), n_along):
        raise ValueError(
            f"series must be (tilt, along the tilt axis, detector) with {len(tilts)} tilts and {n_along} "
            f"along the {geometry.tilt_axis} axis, got shape {tuple(series.shape)}"
        )
    filtered = _ramp_filter(series)
    z_beam, across = _from_centre(z, series)[:, None], _from_centre(n_across, series)
    planes = series.new_zeros(n_along, z, n_across)
    for view, tilt, step in zip(filtered, tilts, _angular_steps(tilts), strict=True):
        t = across * math.cos(tilt) + z_beam * math.sin(tilt)
        planes += step * _sample(view[:, None], torch.zeros_like(t), t)
    return _from_planes(planes, geometry.tilt_axis)


def _tilts(geometry: TiltGeometry) -> list[float]:
    """Tilts in radians."""
    if geometry.continuous:
        raise ValueError("a tilt series needs a list of tilts, not a continuous range: TiltGeometry(angles)")
    return [math.radians(angle) for angle in geometry.angles]


def _angular_steps(tilts: list[float]) -> list[float]:
    """Radians that each tilt stands for."""
    before, after = tilts[:1] + tilts[:-1], tilts[1:] + tilts[-1:]
    steps = [(right - left) / 2 for left, right in zip(before, after, strict=True)]
    # The end tilts have a neighbour on one side only, but measure as far to the other side.
    return [2 * steps[0], *steps[1:-1], 2 * steps[-1]]


def _ramp_filter(series: Tensor) -> Tensor:
    """The band-limited ramp along the detector, without wrapping round."""
    n = series.shape[-1]
    lag = torch.arange(-n, n, device=series.device, dtype=series.dtype)
    # Sampling |k| itself instead would set the zero frequency to zero and sink the whole reconstruction.
    kernel = torch.where(lag % 2 == 0, 0.0, -1 / (math.pi * lag) ** 2)
    kernel[n] = 0.25
    response = torch.fft.rfft(kernel.roll(n)).real
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(series, n=2 * n) * response, n=2 * n)
    return filtered[..., :n]


def _from_centre(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype) - (n - 1) / 2


def _to_planes(volume: Tensor, tilt_axis: TiltAxis) -> Tensor:
    """The planes across the tilt axis, ``(along the tilt axis, z, across)``."""
    return rearrange(volume, "z y x -> y z x" if tilt_axis == "y" else "z y x -> x z y")


def _from_planes(planes: Tensor, tilt_axis: TiltAxis) -> Tensor:
    return rearrange(planes, "y z x -> z y x" if tilt_axis == "y" else "x z y -> z y x").contiguous()


def _sample(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Planes ``(n, rows, columns)`` at positions from their centre; zero outside."""
    n_rows, n_columns = planes.shape[-2:]
    grid = torch.stack((2 * columns / n_columns, 2 * rows / n_rows), dim=-1)
    # Linear interpolation, in projection and backprojection, would leave a gain of 0.75 at half of Nyquist.
    return torch.nn.functional.grid_sample(planes[None], grid[None], mode="bicubic", align_corners=False)[0]


# The specimen ----------------------------------------------------------------------------------------

_EDGE_WIDTH = 0.8  # standard deviation of the blur at every edge, in voxels
_BEADS_PER_VOXEL = 4.0
_N_SPECIES = 8
_MEMBRANE_HALF_WIDTH = 18.0  # from the middle of a bilayer to the heads of a leaflet, in Å
_MEMBRANE_DENSITY = 1.6  # of a leaflet, per square voxel, where protein has 1 per voxel
_VOLUME_PER_LARGE_OBJECT = 2e8  # Å^3 of specimen for each vesicle and each filament of a kind


@dataclass(frozen=True)
class _Helix:
    """Subunits on one helix; lengths in Å, twist in degrees."""

    radius: float
    rise: float
    twist: float
    subunit_radius: float


# The lattice of 13 protofilaments with a monomer every 40 Å is one steep helix through all monomers.
_MICROTUBULE = _Helix(radius=112.0, rise=40.0 / 13, twist=-4 * 360.0 / 13, subunit_radius=21.0)
_ACTIN = _Helix(radius=18.0, rise=27.5, twist=-166.7, subunit_radius=24.0)


def simulate_specimen(
    shape: Sequence[int],
    *,
    voxel_size: float = 10.0,
    crowding: float = 0.25,
    thickness: float = 0.8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A crowded piece of cell: vesicles, microtubules, thin filaments and particles of several species.

    Density is positive on a background of zero, about 1 inside protein, with edges a voxel or two wide.
    Particles are copies of a few irregular molecules, in random orientation. Nothing overlaps but membranes
    and their proteins. The specimen fills a slab of ice and is cut by the other faces of the volume.

    Parameters
    ----------
    shape
        Voxels ``(z, y, x)``.
    voxel_size
        Ångström per voxel. Sizes are those of molecules: microtubules 25 nm, particles 5 to 20 nm wide.
    crowding
        Share of the slab inside the spheres around the particles, 0 to 0.3; less if no room is left.
    thickness
        Thickness of the slab as a share of the volume's extent along z, more than 0 and at most 1.
    generator
        Source of randomness, on the device to compute on; ``None`` draws from torch's default on the CPU.

    Returns
    -------
    Tensor
        float32 ``(z, y, x)``.

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
        raise ValueError(f"voxel_size must be positive, in ångström, got {voxel_size}")
    if not 0 <= crowding <= 0.3:
        raise ValueError(
            f"crowding must be from 0 to 0.3 (random spheres hardly pack denser), got {crowding}"
        )
    if not 0 < thickness <= 1:
        raise ValueError(f"thickness must be more than 0 and at most 1, got {thickness}")
    scene = _Scene(spatial_shape(shape), voxel_size, thickness, generator)
    for _ in range(max(1, round(scene.volume * voxel_size**3 / _VOLUME_PER_LARGE_OBJECT))):
        scene.add_filament(_MICROTUBULE)
        scene.add_vesicle()
        scene.add_filament(_ACTIN)
    scene.add_particles(crowding)
    return scene.render()


class _Scene:
    """Weighted beads and the room they take, in voxels from the centre of the volume."""

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
        self.device = _device(generator)
        self.half_size = torch.tensor([shape[0] * thickness, shape[1], shape[2]], device=self.device) / 2
        self.volume = math.prod(shape) * thickness
        self.beads: list[Tensor] = []  # rows of z, y, x, weight
        self.taken = torch.empty(0, 5, device=self.device)  # rows of z, y, x, inner radius, outer radius

    def add_filament(self, helix: _Helix, n_attempts: int = 50) -> None:
        """A gently curved filament across the volume, where there is room."""
        width = (helix.radius + helix.subunit_radius) / self.voxel_size
        length = 2 * math.hypot(*self.shape)
        for _ in range(n_attempts):
            centre = 0.8 * self.half_size * self._uniform(3, low=-1)
            frame, bend = self._rotation(), length * (1 + 4 * self._uniform(1))
            axis, _ = _arc(torch.arange(-length / 2, length / 2, width / 2, device=self.device), frame, bend)
            axis = axis[self._inside(axis + centre, width)] + centre
            if self._take(axis, 0.0, width):
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
        """A closed, slightly dented bilayer with proteins in it, where there is room."""
        thickest = 2 * self.half_size[0].item() * self.voxel_size
        for _ in range(n_attempts):
            radius = (140 + 140 * self._uniform(1).item()) * min(1.0, thickest / 700)
            outer = (1.1 * radius + 90) / self.voxel_size
            room = self.half_size - torch.tensor([outer, 0.0, 0.0], device=self.device)
            centre = room.clamp(min=0) * self._uniform(3, low=-1)
            if self._take(centre[None], (0.9 * radius - 60) / self.voxel_size, outer):
                break
        else:
            return
        dents = (self._directions(3), self._uniform(3, low=-1) * 0.12)

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

    def add_particles(self, crowding: float) -> None:
        """Randomly turned copies of every species, the largest first, in equal shares of the room."""
        species = [self._molecule(13.0 * 2.5 ** (i / (_N_SPECIES - 1))) for i in range(_N_SPECIES)]
        for offsets, radii in reversed(species):
            bound = (offsets.norm(dim=-1) + radii).max().item()
            wanted = round(crowding * self.volume / _N_SPECIES / (4 / 3 * math.pi * bound**3))
            reach = self.half_size + bound * torch.tensor([-1.0, 1.0, 1.0], device=self.device)
            centres = reach.clamp(min=0) * self._uniform(10 * wanted, 3, low=-1)
            n_placed = 0
            for centre in centres:
                if n_placed == wanted:
                    break
                if self._take(centre[None], 0.0, bound):
                    self._add_balls(centre + offsets @ self._rotation(), radii)
                    n_placed += 1

    def render(self) -> Tensor:
        """The density of all beads, each smeared over the voxels around it."""
        margin = math.ceil(5 * _EDGE_WIDTH)
        shape = (self.shape[0] + 2 * margin, self.shape[1] + 2 * margin, self.shape[2] + 2 * margin)
        sharp = _splat(torch.cat(self.beads), shape)
        kz, ky, kx = frequencies(shape, device=self.device, dtype=torch.float32)
        blur = torch.exp(-2 * (math.pi * _EDGE_WIDTH) ** 2 * (kz**2 + ky**2 + kx**2))
        smooth = irfftn(rfftn(sharp) * blur, shape)[margin:-margin, margin:-margin, margin:-margin]
        return smooth.clamp(min=0).contiguous()

    def _take(self, centres: Tensor, inner: float, outer: float) -> bool:
        """Take the room of spheres (hollow up to ``inner``) if all of it is free."""
        distance = torch.cdist(centres, self.taken[:, :3])
        if not ((distance > self.taken[:, 4] + outer) | (distance < self.taken[:, 3] - outer)).all():
            return False
        radii = torch.tensor([inner, outer], device=self.device).expand(len(centres), 2)
        self.taken = torch.cat((self.taken, torch.cat((centres, radii), dim=1)))
        return True

    def _molecule(self, size: float) -> tuple[Tensor, Tensor]:
        """Offsets and radii in voxels of a molecule without symmetry: touching balls of about ``size`` Å."""
        n = 3 + int(6 * self._uniform(1))
        radii = size / self.voxel_size * (0.7 + 0.6 * self._uniform(n))
        offsets = torch.zeros(n, 3, device=self.device)
        for i in range(1, n):
            parent = int(i * self._uniform(1))
            step = 0.8 * (radii[i] + radii[parent])
            # Of several places beside its parent a ball takes the one nearest to the middle that is free.
            places = offsets[parent] + step * self._directions(16)
            overlap = (0.8 * (radii[i] + radii[:i]) - torch.cdist(places, offsets[:i])).amax(dim=1)
            off_centre = (places - offsets[:i].mean(dim=0)).norm(dim=-1)
            offsets[i] = places[(10 * overlap.clamp(min=0) + off_centre).argmin()]
        return offsets - offsets.mean(dim=0), radii

    def _add_balls(self, centres: Tensor, radii: Tensor) -> None:
        """Solid balls of density 1."""
        volume = 4 / 3 * math.pi * radii**3
        n_beads = (_BEADS_PER_VOXEL * volume).ceil().long()
        n = int(n_beads.sum())
        inside = self._directions(n) * self._uniform(n, 1) ** (1 / 3)
        beads = centres.repeat_interleave(n_beads, dim=0) + inside * radii.repeat_interleave(n_beads)[:, None]
        self._add_beads(beads, (volume / n_beads).repeat_interleave(n_beads))

    def _add_beads(self, positions: Tensor, weights: Tensor) -> None:
        kept = self._inside(positions, 0.0)
        self.beads.append(torch.cat((positions, weights[:, None]), dim=1)[kept])

    def _inside(self, positions: Tensor, margin: float) -> Tensor:
        # What lies just outside the volume's side faces still blurs into it; outside the slab is no specimen.
        reach = self.half_size + torch.tensor([0.0, 3.0, 3.0], device=self.device) + margin
        return (positions.abs() <= reach).all(dim=-1)

    def _uniform(self, *size: int, low: float = 0.0) -> Tensor:
        return low + (1 - low) * torch.rand(*size, generator=self.generator, device=self.device)

    def _directions(self, n: int) -> Tensor:
        return torch.nn.functional.normalize(_normal((n, 3), self.generator), dim=-1)

    def _rotation(self) -> Tensor:
        """A uniformly random right-handed frame, its axes in rows."""
        first, other = self._directions(2)
        third = torch.nn.functional.normalize(torch.linalg.cross(first, other), dim=0)
        return torch.stack((first, torch.linalg.cross(third, first), third))


def _arc(length: Tensor, frame: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
    """Points on a circle of radius ``bend`` in the plane of the first two axes of ``frame``, and normals."""
    angle = (length / bend)[:, None]
    normal = angle.cos() * frame[1] - angle.sin() * frame[0]
    return bend * (frame[1] - normal), normal


def _splat(beads: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Beads shared linearly among their eight neighbours."""
    centre = (torch.tensor(shape, device=beads.device) - 1) / 2
    corner, rest = (beads[:, :3] + centre).floor().long(), (beads[:, :3] + centre) % 1
    grid = torch.zeros(math.prod(shape), device=beads.device)
    for step in torch.cartesian_prod(*[torch.arange(2, device=beads.device)] * 3):
        share = torch.where(step == 1, rest, 1 - rest).prod(dim=-1)
        z, y, x = (corner + step).unbind(-1)
        grid.index_add_(0, (z * shape[1] + y) * shape[2] + x, share * beads[:, 3])
    return grid.reshape(shape)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _normal(size: Sequence[int], generator: torch.Generator | None) -> Tensor:
    return torch.randn(*size, generator=generator, device=_device(generator))
