"""Tests of the projector and of the tilt series as an operator, against closed forms, in float64 where it matters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from equitomo import TiltGeometry, TiltSeriesPhysics
from equitomo.geometry import TiltAxis
from equitomo.physics import Projector, full_detector

TILT_AXES: list[TiltAxis] = ["y", "x"]
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


@pytest.mark.parametrize("n", [41, 24])
@pytest.mark.parametrize("tilt", [60, 70])
def test_filtered_backprojection_keeps_the_mean(n, tilt):
    x = torch.rand(1, 1, n, n, n, generator=torch.Generator().manual_seed(0))
    geometry = TiltGeometry(range(-tilt, tilt + 1, 2))
    for detector in (None, full_detector(x.shape[-3:], geometry)):
        physics = TiltSeriesPhysics((n, n, n), geometry, detector=detector)
        assert (physics.A_dagger(physics.A(x)).mean() / x.mean()).item() == pytest.approx(1, abs=0.02)


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
