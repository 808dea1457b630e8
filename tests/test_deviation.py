"""The network that predicts standard deviations: its laws, what it sees, and whole volumes."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from making import noisy_halves

from equitomo import TiledPredictor
from equitomo.deviation import (
    NORMAL,
    PARTS,
    LearnedDeviation,
    deviation_inputs,
    deviations,
    learned_deviation,
)
from equitomo.filled import measured_operator
from equitomo.geometry import TiltGeometry

RANGE = (-60.0, 60.0)
SHAPES = [(16, 16, 16), (17, 18, 23), (10, 24, 16)]


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return TiledPredictor(torch.nn.Conv3d(1, 1, 3, padding=1, bias=False), tile=16, margin=2, passes=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LearnedDeviation(width=4, levels=2).double()


def drawn(shape, dtype=torch.float32, seed=0):
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_deviations_are_positive_and_there_is_one_of_each_part(model, shape):
    found = model(drawn(shape, torch.float64)[None])
    assert found.shape == (1, len(PARTS), *shape)
    assert (found > 0).all()


@pytest.mark.parametrize("c", [1e-2, 3.0, 1e3])
def test_what_is_scaled_has_deviations_that_are_scaled_alike(model, c):
    x = drawn((16, 16, 16), torch.float64)[None]
    torch.testing.assert_close(model(c * x), c * model(x))


def test_the_network_of_the_package_is_small_and_its_90_percent_intervals_are_those_of_a_normal_distribution():
    model = learned_deviation()
    assert len(resources.files("equitomo").joinpath("weights", "deviation.safetensors").read_bytes()) < 500_000
    assert model.factors.shape == (len(PARTS), len(NORMAL))
    torch.testing.assert_close(model.factors[:, 2], torch.full((len(PARTS),), NORMAL[0.9]), rtol=1e-3, atol=0)
    assert (model.factors.diff(dim=1) > 0).all()


def test_the_network_sees_halves_result_and_their_measured_parts_on_the_scale_of_training(predictor):
    first, second = (500 + 40 * half for half in noisy_halves((12, 16, 18)))
    ours = {"intensities": (500.0, 40.0)}
    found = deviation_inputs(predictor, first, second, RANGE, (500.0, 40.0))
    result, one, other = ((predictor(*h, **ours) - 500) / 40 for h in ((first, second), (first,), (second,)))
    project = measured_operator(RANGE, first.shape).A
    expected = [(first + second) / 80 - 12.5, (first - second) / 80, result, (one - other) / 2]
    expected += [project(volume[None, None])[0, 0] for volume in expected[2:]]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_volumes_have_one_deviation_of_each_part_per_voxel(shape):
    found = deviations(learned_deviation(), drawn(shape), RANGE)
    assert found.shape == (len(PARTS), *shape)
    assert (found > 0).all()


def test_deviations_hardly_depend_on_the_tiles():
    inputs = drawn((72, 24, 96))
    whole, tiled = (deviations(learned_deviation(), inputs, RANGE, tile=tile) for tile in (160, 72))
    # Tiles discard 32 voxels, and the network reaches a little farther.
    assert float((tiled - whole).norm() / whole.norm()) < 0.02


def test_a_specimen_that_was_tilted_about_x_has_the_turned_deviations():
    inputs = drawn((16, 18, 24))
    about_x = TiltGeometry.from_range(*RANGE, "x")
    turned = deviations(learned_deviation(), inputs.transpose(-1, -2), about_x)
    torch.testing.assert_close(turned, deviations(learned_deviation(), inputs, RANGE).transpose(-1, -2))
