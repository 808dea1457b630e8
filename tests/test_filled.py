"""The measured and the filled part of a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equitomo.filled import data_consistent, full_wedge_mask, measured_operator, measured_part
from equitomo.geometry import TiltGeometry
from equitomo.metrics import region_masks

ABOUT_X = TiltGeometry.from_range(-50, 60, "x")
WEIGHTED = TiltGeometry(range(-60, 61, 6), weights=[0.2 + 0.03 * n for n in range(21)])
GEOMETRIES = [TiltGeometry.from_range(-60, 60), ABOUT_X, WEIGHTED, TiltGeometry.from_range(-45, 60) | ABOUT_X]
SHAPES = [(12, 10, 14), (9, 11, 13), (16, 7, 8)]


def volumes(shape, n=2):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_measured_part_is_an_orthogonal_projection_whatever_the_weights(geometry, shape):
    f, g = volumes(shape)
    once = measured_part(f, geometry)
    np.testing.assert_allclose(measured_part(once, geometry), once, atol=2e-6)
    assert np.vdot(once, g) == pytest.approx(np.vdot(f, measured_part(g, geometry)), abs=1e-3)
    assert np.vdot(once, f - once) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_data_consistent_volume_has_the_measured_part_of_the_data_and_the_filled_part_of_the_result(geometry, shape):
    f, y = volumes(shape)
    both = data_consistent(f, y, geometry)
    np.testing.assert_allclose(measured_part(both, geometry), measured_part(y, geometry), atol=5e-6)
    np.testing.assert_allclose(both - measured_part(both, geometry), f - measured_part(f, geometry), atol=5e-6)


def test_a_data_consistent_volume_needs_volumes_of_one_shape():
    with pytest.raises(ValueError, match=r"`measured` must have the shape of `volume`, \(8, 8, 8\), got \(8, 8, 9\)"):
        data_consistent(np.zeros((8, 8, 8)), np.zeros((8, 8, 9)), (-60.0, 60.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_full_mask_is_the_one_that_numpy_multiplies_spectra_with(geometry, shape):
    (f,) = volumes(shape, 1)
    mask = full_wedge_mask(shape, geometry)
    expected = measured_part(f, geometry)
    np.testing.assert_allclose(np.fft.ifftn(np.fft.fftn(f) * mask), expected, atol=5e-6)
    half = mask[..., : shape[2] // 2 + 1]
    np.testing.assert_allclose(np.fft.irfftn(np.fft.rfftn(f) * half, shape, axes=(0, 1, 2)), expected, atol=5e-6)
    # The order (x, y, z), in which the half is taken along the beam.
    half = mask.T[..., : shape[0] // 2 + 1]
    turned = np.fft.irfftn(np.fft.rfftn(f.T) * half, shape[::-1], axes=(0, 1, 2))
    np.testing.assert_allclose(turned.T, expected, atol=5e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_coefficient_counts_as_measured_as_in_the_scores(geometry):
    regions = region_masks((12, 10, 14), geometry)
    mask = measured_operator(geometry, (12, 10, 14)).mask[0, 0].expand(12, 10, 8) != 0
    assert torch.equal(mask & regions.overall, regions.measured)


def test_the_parts_are_written_into_files_in_place(tmp_path):
    (f,) = volumes((12, 10, 14), 1)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=f.shape)
    measured = measured_part(f, GEOMETRIES[3], out=out, scratch=tmp_path)
    assert measured is out
    np.testing.assert_allclose(out, measured_part(f, GEOMETRIES[3]), atol=1e-6)
