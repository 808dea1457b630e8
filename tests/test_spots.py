"""Spots that only the filled part of a reconstruction shows."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from equitomo import spots as module
from equitomo.filled import measured_part
from equitomo.geometry import TiltGeometry
from equitomo.spots import FilledSpot, filled_spots, measured_share, write_spots

RANGES = [(-60.0, 60.0), (-40.0, 60.0), TiltGeometry.from_range(-60, 60, "x")]
SHAPES = [(48, 48, 48), (70, 56, 47)]
REAL = [(12, 10, 30), (20, 30, 12), (30, 20, 35), (10, 35, 20)]
INVENTED = (26, 38, 26)


def blobs(shape, places, radius=2.0):
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    volume = torch.zeros(shape)
    for place in places:
        volume += torch.exp(-sum((axis - n) ** 2 for axis, n in zip(axes, place, strict=True)) / (2 * radius**2))
    return volume


def with_invented(shape, geometry):
    """Return real blobs with one that exists only in the wedge, and the measured part of them."""
    invented = blobs(shape, [INVENTED])
    volume = blobs(shape, REAL) + 2.5 * (invented - torch.from_numpy(measured_part(invented, geometry)))
    return volume, torch.from_numpy(measured_part(volume, geometry))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("geometry", RANGES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_blob_that_exists_only_in_the_wedge_is_found_at_its_place_and_no_real_one(geometry, shape, sign):
    volume, measured = with_invented(shape, geometry)
    spot, *others = filled_spots(sign * volume, sign * measured, geometry)
    assert spot.position == INVENTED
    assert sign * spot.filled > 0
    assert abs(spot.measured) < 0.2 * abs(spot.contrast)
    # The wedge also gives it side lobes, but they are weaker, and none lies on a real blob.
    for other in others:
        assert abs(other.filled) < abs(spot.filled)
        assert all(np.linalg.norm(np.subtract(other.position, place)) > 4 for place in REAL)


@pytest.mark.parametrize("geometry", RANGES, ids=str)
def test_blobs_that_were_measured_are_not_listed(geometry):
    volume = blobs(SHAPES[0], [*REAL, INVENTED])
    assert filled_spots(volume, measured_part(volume, geometry), geometry) == []


def test_nothing_is_listed_at_the_faces_where_both_parts_depend_on_the_opposite_face():
    volume = blobs(SHAPES[0], [(2, 20, 20), (20, 20, 45), (24, 30, 24)])
    spots = filled_spots(volume, torch.zeros(SHAPES[0]), RANGES[0])
    assert [spot.position for spot in spots] == [(24, 30, 24)]


def test_sections_are_taken_a_few_at_a_time_with_the_same_result(monkeypatch):
    volume, measured = with_invented(SHAPES[1], RANGES[0])
    whole = filled_spots(volume, measured, RANGES[0], share=2)
    monkeypatch.setattr(module, "SLAB_BYTES", 4 * 56 * 47)
    parts = filled_spots(volume, measured, RANGES[0], share=2)
    assert len(whole) > 3
    assert [spot.position for spot in parts] == [spot.position for spot in whole]
    np.testing.assert_allclose([s.filled for s in parts], [s.filled for s in whole], rtol=1e-4)


def test_the_measured_share_of_a_blob_is_what_its_measured_part_shows():
    for geometry in RANGES:
        blob = blobs(SHAPES[0], [(24, 24, 24)], radius=0.5)
        # Now it counts as shown only if the measured part has ten times its share.
        (spot,) = filled_spots(blob, measured_part(blob, geometry), geometry, share=10)
        assert spot.measured / spot.contrast == pytest.approx(measured_share(geometry), abs=0.02)


def test_the_table_has_voxels_and_lengths(tmp_path):
    spots = [FilledSpot((1, 2, 3), 5.0, 1.0), FilledSpot((4, 5, 6), 2.0, -1.0)]
    path = write_spots(tmp_path / "spots.csv", spots, voxel_size=(10.0, 10.0, 12.5))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["filled"] for row in rows] == ["4", "3"]
    assert [rows[0][name] for name in ("z", "y", "x", "z_angstrom", "x_angstrom")] == ["1", "2", "3", "10", "37.5"]
    with path.open() as file, pytest.raises(FileExistsError):
        write_spots(path, spots)
    write_spots(path, [], overwrite=True)
    assert path.read_text() == "z,y,x,contrast,measured,filled\n"


@pytest.mark.parametrize("name", ["radius", "contrast", "share"])
def test_settings_of_spots_are_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got 0"):
        filled_spots(torch.zeros(8, 8, 8), torch.zeros(8, 8, 8), (-60.0, 60.0), **{name: 0})


def test_spots_need_volumes_of_one_shape():
    with pytest.raises(ValueError, match="`measured` must have the shape of `volume`"):
        filled_spots(torch.zeros(8, 8, 8), torch.zeros(8, 8, 9), (-60.0, 60.0))


def test_an_even_volume_has_no_spots():
    assert filled_spots(torch.ones(16, 16, 16), torch.ones(16, 16, 16), (-60.0, 60.0)) == []
