"""Tests of the projector and of the tilt series as an operator, against closed forms, in float64 where it matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from projecting import blob, compact_specimen, project, seeded
from torch import Tensor

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.geometry import TiltAxis
from equitomo.physics import Projector, full_detector

TILT_AXES: list[TiltAxis] = ["y", "x"]
SHAPES = [(24, 24, 24), (25, 25, 25), (20, 25, 31)]
SHAPE, DETECTOR = (48, 40, 64), 91
ANGLES = range(-60, 61, 3)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
def test_backprojection_is_the_adjoint_of_projection(tilt_axis):
    physics = TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES, tilt_axis), detector=DETECTOR, tilt_axis_offset=3.3)
    for seed in range(4):
        x = normal(2, 1, *SHAPE, seed=seed)
        y = normal(2, 1, *physics.series_shape, seed=seed + 10)
        Ax, Aty = physics.A(x), physics.A_adjoint(y)
        difference = (Ax.double() * y).sum() - (x.double() * Aty).sum()
        assert difference.abs() < 1e-6 * Ax.double().norm() * y.double().norm()


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
def test_every_voxel_that_the_detector_records_has_weight_one_in_each_view(tilt_axis):
    geometry = TiltGeometry(ANGLES, tilt_axis)
    physics = TiltSeriesPhysics(SHAPE, geometry, detector=full_detector(SHAPE, geometry))
    ones = physics.A_adjoint(torch.ones(1, 1, *physics.series_shape)) / len(ANGLES)
    assert (ones - 1).abs().max() < 1e-5


# torch's own forward-mode differentiation warns so when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize(("detector", "offset"), [(5, 0.0), (8, 0.7), (12, -1.2)])
def test_both_directions_are_differentiable_twice(detector, offset, tilt_axis):
    projector = Projector(
        (5, 3, 6), torch.tensor([-90.0, -50.0, 0.0, 13.0, 70.0]), tilt_axis=tilt_axis, detector=detector, offsets=offset
    )
    x = normal(2, 1, 5, 3, 6, dtype=torch.float64).requires_grad_()
    y = projector.project(x).detach().requires_grad_()
    for apply, argument in ((projector.project, x), (projector.backproject, y)):
        assert torch.autograd.gradcheck(apply, argument, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda v, apply=apply: apply(v).pow(2), argument)


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
def test_projections_of_gaussian_blobs_are_those_of_the_closed_form(tilt_axis):
    geometry, width = TiltGeometry(ANGLES, tilt_axis), 2.5
    physics = TiltSeriesPhysics(SHAPE, geometry, detector=DETECTOR, tilt_axis_offset=1.5)
    z, y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in SHAPE)
    volume, expected = torch.zeros(SHAPE, dtype=torch.float64), torch.zeros(physics.series_shape, dtype=torch.float64)
    t = torch.arange(DETECTOR, dtype=torch.float64) - (DETECTOR - 1) / 2
    for cz, cy, cx in ((4.3, -3.1, 6.7), (-9.2, 5.0, -8.4), (0.5, 8.0, 12.25)):
        profiles = [torch.exp(-((axis - c) ** 2) / (2 * width**2)) for axis, c in ((z, cz), (y, cy), (x, cx))]
        volume += torch.einsum("z,y,x->zyx", *profiles)
        along, across = (profiles[1], cx) if tilt_axis == "y" else (profiles[2], cy)
        for view, angle in zip(expected, geometry.angles, strict=True):
            tilt = math.radians(angle)
            centre = across * math.cos(tilt) + cz * math.sin(tilt) + 1.5
            view += (
                width * math.sqrt(2 * math.pi) * torch.outer(along, torch.exp(-((t - centre) ** 2) / (2 * width**2)))
            )
    found = physics.A(volume[None, None])[0, 0]
    assert (found - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_point_is_projected_to_x_cos_plus_z_sin(shape, tilt_axis):
    z, y, x = 5.0, -3.0, 4.0
    geometry = TiltGeometry([-70, -35, 0, 20, 60], tilt_axis=tilt_axis)
    series = project(blob(shape, (z, y, x)), geometry)
    along, across = (y, x) if tilt_axis == "y" else (x, y)
    for view, angle in zip(series, geometry.angles, strict=True):
        positions = [torch.arange(n, dtype=view.dtype) - (n - 1) / 2 for n in view.shape]
        tilt = math.radians(angle)
        t = across * math.cos(tilt) + z * math.sin(tilt)
        centre = ((view.sum(1) @ positions[0]) / view.sum(), (view.sum(0) @ positions[1]) / view.sum())
        torch.testing.assert_close(torch.stack(centre), view.new_tensor([along, t]), atol=0.02, rtol=0)


@pytest.mark.parametrize("tilt_axis", TILT_AXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_untilted_projection_is_the_sum_along_the_beam(shape, tilt_axis):
    volume = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    untilted = project(volume, TiltGeometry([-10, 0], tilt_axis=tilt_axis))[1]
    # Half of the samples may lie between two voxels, but the cubic weights of every voxel add up to one.
    torch.testing.assert_close(untilted, volume.sum(0) if tilt_axis == "y" else volume.sum(0).T)


def test_a_narrower_detector_records_the_middle_of_a_wider_one():
    volume = torch.randn(12, 4, 16, generator=seeded())
    geometry = TiltGeometry(range(-60, 61, 20))
    wide = project(volume, geometry, detector=20)
    torch.testing.assert_close(project(volume, geometry), wide[..., 2:-2])


def test_every_projection_on_a_wide_detector_shows_the_whole_specimen():
    volume = compact_specimen((25, 4, 25), width=3.0).abs()
    series = project(volume, TiltGeometry(range(-80, 81, 20)), detector=40)
    torch.testing.assert_close(series.sum((1, 2)), volume.sum().expand(9), rtol=0.01, atol=0)


def test_projections_are_those_of_scikit_image():
    transform = pytest.importorskip("skimage.transform")
    shape = (41, 1, 41)
    volume = blob(shape, (4.0, 0.0, -6.0), 2.0) + blob(shape, (-7.0, 0.0, 3.0), 2.0)
    volume[volume < 1e-5] = 0  # radon wants zero outside the circle
    geometry = TiltGeometry(range(-60, 61, 15))
    # radon rotates in the other direction about pixel n // 2, which is the centre of an odd image.
    angles = -np.array(geometry.angles)
    expected = transform.radon(volume[:, 0].numpy(), theta=angles, circle=True, preserve_range=True)
    ours = project(volume, geometry)[:, 0].numpy().T
    # radon interpolates linearly.
    assert np.abs(ours - expected).max() < 0.03 * expected.max()


def test_the_inside_of_a_cylinder_has_the_length_of_its_chords():
    n, radius = 64, 24.0
    fine = (torch.arange(8 * n, dtype=torch.float64) + 0.5) / 8 - n / 2
    inside = (fine[:, None] ** 2 + fine**2 < radius**2).double()
    disc = inside.reshape(n, 8, n, 8).mean((1, 3))
    series = project(disc[:, None], TiltGeometry(ANGLES))[:, 0]
    t = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    inner = t.abs() < 0.8 * radius
    chords = 2 * (radius**2 - t[inner] ** 2).sqrt()
    assert ((series[:, inner] - chords) / chords).abs().max() < 0.01


def test_a_batch_may_mix_geometries():
    geometries = [TiltGeometry(range(-60, 61, 20)), TiltGeometry(range(-50, 41, 15))]
    x = normal(2, 3, 12, 5, 14)
    mixed = TiltSeriesPhysics((12, 5, 14), geometries)
    alone = [TiltSeriesPhysics((12, 5, 14), geometry) for geometry in geometries]
    y = torch.cat([physics.A(own[None]) for physics, own in zip(alone, x, strict=True)])
    torch.testing.assert_close(mixed.A(x), y)
    updated = alone[0]
    torch.testing.assert_close(updated.A(x, tilts=mixed.tilts), y)
    for name in ("A_adjoint", "A_dagger"):
        back = torch.cat(
            [
                getattr(TiltSeriesPhysics((12, 5, 14), geometry), name)(own[None])
                for geometry, own in zip(geometries, y, strict=True)
            ]
        )
        torch.testing.assert_close(getattr(mixed, name)(y), back)
    with pytest.raises(ValueError, match="tilts of 2 samples and was given 3"):
        mixed.A(normal(3, 1, 12, 5, 14))


def test_a_shift_of_the_tilt_axis_by_whole_pixels_shifts_the_views():
    x, geometry = normal(1, 1, 12, 5, 14), TiltGeometry(ANGLES)
    shifted = TiltSeriesPhysics((12, 5, 14), geometry, detector=40, tilt_axis_offset=3).A(x)
    plain = TiltSeriesPhysics((12, 5, 14), geometry, detector=40).A(x)
    torch.testing.assert_close(shifted, plain.roll(3, -1), atol=1e-5, rtol=1e-5)


def test_parts_of_the_tilt_axis_and_weights_made_anew_change_nothing(monkeypatch):
    x, geometry = normal(2, 1, *SHAPE), TiltGeometry(ANGLES)
    physics = TiltSeriesPhysics(SHAPE, geometry)
    y = physics.A(x)
    for name, value in (("KEPT_WEIGHTS", 0), ("BLOCK_WEIGHTS", 1 << 14), ("SLAB_BYTES", 1 << 18)):
        monkeypatch.setattr(f"equitomo.physics.projector.{name}", value)
    small = TiltSeriesPhysics(SHAPE, geometry)
    torch.testing.assert_close(small.A(x), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.A_adjoint(y), physics.A_adjoint(y), atol=1e-4, rtol=1e-5)


def test_autocast_changes_nothing():
    physics, x = TiltSeriesPhysics((12, 5, 14), TiltGeometry(ANGLES)), normal(1, 1, 12, 5, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = physics.A(x)
        back, dagger = physics.A_adjoint(y), physics.A_dagger(y)
    assert torch.equal(y, physics.A(x)) and torch.equal(back, physics.A_adjoint(y))
    torch.testing.assert_close(dagger, physics.A_dagger(y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry.from_range(-60, 60)), "list of tilts"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES) | TiltGeometry(ANGLES, "x")), "one tilt axis"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES), detector=0), "`detector`"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES), tilt_axis_offset=[1, 2]), "`tilt_axis_offset`"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES), window="none"), "`window`"),
        (lambda: TiltSeriesPhysics(SHAPE, [TiltGeometry([0, 10]), TiltGeometry([0, 10, 20])]), "one number of tilts"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES)).A(torch.ones(1, 1, 8, 8, 8)), "was made for"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES)).A_adjoint(torch.ones(1, 1, 8, 8, 8)), "was made for"),
        (lambda: TiltSeriesPhysics(SHAPE, TiltGeometry(ANGLES)).update(tilts=torch.ones(1, 3)), "`tilts`"),
    ],
)
def test_what_cannot_be_projected_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
