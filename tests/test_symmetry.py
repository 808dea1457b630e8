"""Averages over mirror images: what they are equivariant to, and that they leave the wedge alone."""

import pytest
import torch
from asserting import assert_close, assert_differs, normal, small_network
from torch import nn

from equitomo import MirrorAveraged, MissingWedgeOperator, ScaleEquivariantUNet3D, TiledPredictor, TiltGeometry

GEOMETRIES = [
    pytest.param(TiltGeometry.from_range(low, high, tilt_axis=axis), flips, number, id=f"{low} {high} {axis} {flips}")
    for low, high, flips, number in [(-60, 60, True, 8), (-60, 60, False, 4), (-60, 40, True, 4), (-60, 40, False, 2)]
    for axis in ("y", "x")
]
SYMMETRIC, ASYMMETRIC = TiltGeometry.from_range(-60, 60), TiltGeometry.from_range(-60, 40)
SYMMETRIC_X, ASYMMETRIC_X = TiltGeometry.from_range(-50, 50, "x"), TiltGeometry.from_range(-50, 30, "x")
GEOMETRIES += [
    pytest.param(geometry, flips, number, id=f"{geometry} {flips}")
    for geometry, flips, number in [
        (SYMMETRIC | SYMMETRIC_X, True, 8),
        (SYMMETRIC | SYMMETRIC_X, False, 4),
        (SYMMETRIC | ASYMMETRIC_X, True, 4),
        (ASYMMETRIC | ASYMMETRIC_X, True, 2),
        (ASYMMETRIC | ASYMMETRIC_X, False, 1),
        (TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.5]), True, 8),
        (TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.9]), True, 4),
    ]
]


@pytest.mark.parametrize(("geometry", "flips", "number"), GEOMETRIES)
def test_the_average_turns_with_its_input_and_the_wedge_stays(geometry, flips, number):
    network, x = MirrorAveraged(small_network(), geometry, flips=flips), normal(2, 1, 6, 5, 4)
    physics = MissingWedgeOperator((6, 5, 4), geometry, support="box").double()
    assert len(set(network.mirrors)) == number
    for axes in network.mirrors:
        assert_close(network(x.flip(axes)), network(x).flip(axes))
        assert_close(physics.A(x.flip(axes)), physics.A(x).flip(axes))
    left_out = {(-3,), (-2,), (-1,), (-3, -2), (-3, -1), (-2, -1), (-3, -2, -1)} - set(network.mirrors)
    for axes in left_out if flips else ():
        assert_differs(physics.A(x.flip(axes)), physics.A(x).flip(axes))


def test_the_average_is_that_of_the_mirrored_predictions():
    network, x = small_network(), normal(1, 1, 5, 5, 5)
    images = [network(x.flip(axes)).flip(axes) for axes in MirrorAveraged(network, (-60, 60)).mirrors]
    assert_close(MirrorAveraged(network, (-60, 60))(x), torch.stack(images).mean(0))


def test_tilts_that_are_symmetric_but_for_the_stage_count_as_symmetric():
    assert len(MirrorAveraged(nn.Identity(), TiltGeometry([-59.4, 0, 60.1])).mirrors) == 8
    assert len(MirrorAveraged(nn.Identity(), TiltGeometry([-57.0, 0, 60.0])).mirrors) == 4


def test_weights_that_are_symmetric_but_for_noise_count_as_symmetric():
    assert len(MirrorAveraged(nn.Identity(), TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.54])).mirrors) == 8
    assert len(MirrorAveraged(nn.Identity(), TiltGeometry([-60, 0, 60], weights=[0.5, 1, 0.56])).mirrors) == 4


def test_sixteen_bits_are_summed_in_float32():
    network, x = MirrorAveraged(nn.Identity(), (-60, 60)), torch.full((1, 1, 2, 2, 2), 1.0078125)
    assert torch.equal(network(x.bfloat16()), x)


def test_a_predictor_takes_it_with_the_stride_of_its_network():
    network = ScaleEquivariantUNet3D(width=4, levels=2)
    model, settings = MirrorAveraged(network, (-60, 60)), {"tile": 12, "margin": 0, "passes": 1, "precision": "float32"}
    predictor = TiledPredictor(model, (-60, 60), **settings)
    assert predictor.stride == network.stride == 2
    x = torch.randn(12, 12, 12)
    assert_close(predictor(x.flip(0)), predictor(x).flip(0), 1e-5)


TWO = [(TiltGeometry.from_range(-60, 60), True), (TiltGeometry.from_range(-40, 60), True)]
TWO += [(geometry, False) for geometry, _ in TWO]


@pytest.mark.parametrize(("geometry", "flips"), TWO)
def test_of_two_images_the_other_one_reverses_most_axes_and_leaves_the_wedge(geometry, flips):
    every = MirrorAveraged(nn.Identity(), geometry, flips=flips).mirrors
    own, other = MirrorAveraged(nn.Identity(), geometry, flips=flips, images="two").mirrors
    assert own == ()
    assert other in every
    assert len(other) == (3 if flips else 2)
