"""Masks against brute force over signed frequencies, and against projections of plane waves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from asserting import CASES, SHAPES, assert_close

from equitomo.fourier import full_spectrum, is_even, mirrored
from equitomo.geometry import TiltGeometry, TiltUnion, as_geometry, shared_axes, wedge_mask

AXES = (-3, -2, -1)
TILTS = (-60.0, -37.0, -5.0, 0.0, 12.0, 41.0)


def full(shape, geometry, **settings):
    return full_spectrum(wedge_mask(shape, geometry, **settings), shape[2]).expand(shape)


def directions(shape, axis):
    """Beam and across-axis frequencies of the full grid."""
    kz, ky, kx = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in shape), indexing="ij")
    return kz, (kx if axis == "y" else ky), (kz**2 + ky**2 + kx**2).sqrt()


def within(angle: float, low: float, high: float) -> bool:
    return any(low - 1e-9 <= angle + turn <= high + 1e-9 for turn in (-360, -180, 0, 180, 360))


def project(volume: torch.Tensor, tilt: float, axis: str) -> torch.Tensor:
    """The projection of a volume (z, y, x) at one tilt, detector t = x cos T + z sin T, by a real line integral.

    Along the beam, which in the specimen's frame is (z, x) = (cos T, -sin T), linear interpolation of each plane
    across the tilt axis; returns (tilt axis, detector).
    """
    planes = volume.movedim(1, 0) if axis == "y" else volume.movedim(2, 0)
    n_z, n_x = planes.shape[1:]
    t = torch.arange(n_x, dtype=torch.float64) - n_x // 2
    s = torch.arange(n_z, dtype=torch.float64) - n_z // 2
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    x = t[None, :] * cos - s[:, None] * sin
    z = t[None, :] * sin + s[:, None] * cos
    half = torch.tensor([(n_x - 1) / 2, (n_z - 1) / 2], dtype=torch.float64)
    place = (torch.stack((x + n_x // 2, z + n_z // 2), dim=-1) - half) / half
    sampled = torch.nn.functional.grid_sample(
        planes[:, None], place.expand(len(planes), -1, -1, -1), mode="bilinear", align_corners=True
    )
    return sampled[:, 0].sum(1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_coefficient_is_kept_iff_it_and_its_mirror_image_lie_in_the_range(case):
    shape, (low, high), axis, support = case
    kz, across, radius = directions(shape, axis)
    angle = torch.rad2deg(torch.atan2(kz, across))
    inside = torch.tensor([within(a, low, high) for a in angle.flatten().tolist()]).reshape(shape)
    inside |= (kz == 0) & (across == 0)
    inside &= mirrored(inside, AXES)
    if support == "ball":
        inside &= radius <= 0.5 + 1e-9
    kept = full(shape, TiltGeometry.from_range(low, high, axis), support=support)
    assert torch.equal(kept, inside.float())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sampling", ["range", "fan"])
def test_masks_are_even(case, sampling):
    shape, (low, high), axis, support = case
    geometry = TiltGeometry([low, 3, high], axis)
    assert is_even(wedge_mask(shape, geometry, support=support, sampling=sampling), shape[2])


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("tilt", [-50.0, -20.0, 10.0, 20.0, 35.0, 60.0])
def test_a_plane_wave_is_kept_iff_a_projection_within_the_range_sees_it(axis, tilt):
    """The sign of the tilt: a wave along (kx, kz) ~ (cos T, sin T) survives integration at tilt T and no other."""
    n, low, high = 32, -25.0, 45.0
    along = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(along, along, along, indexing="ij")
    across = x if axis == "y" else y
    # The grid frequency next to the direction, and its tilt.
    m_x, m_z = (round(6 * f(math.radians(tilt))) for f in (math.cos, math.sin))
    exact = math.degrees(math.atan2(m_z, m_x))
    wave = torch.cos(2 * torch.pi * (m_x * across + m_z * z) / n)
    wave = wave * torch.exp(-(z**2 + across**2) / 60)
    strength = {t: project(wave, t, axis).abs().max().item() for t in (exact, -exact, exact + 90)}
    assert strength[exact] > 5 * max(strength[-exact], strength[exact + 90])
    index = (m_z, 0, m_x) if axis == "y" else (m_z, m_x, 0)
    kept = full((n, n, n), TiltGeometry.from_range(low, high, axis))[index]
    assert kept == float(low <= exact <= high)


def test_the_line_of_the_tilt_axis_is_measured_whatever_the_range():
    assert full((6, 8, 7), TiltGeometry.from_range(30, 50))[0, :, 0].all()
    assert full((6, 8, 7), TiltGeometry.from_range(30, 50, "x"))[0, 0, :].all()


def test_nyquist_coefficients_of_one_sign_are_dropped():
    """Index 4 of 8 stands for +1/2 and -1/2: with tilts from 20 to 60 only one of the two is measured."""
    mask = full((8, 8, 8), (20.0, 60.0))
    assert mask[2, 0, 2] == 1
    assert mask[4, 0, 3] == mask[3, 0, 4] == 0
    assert full((8, 8, 8), (-60.0, 60.0))[3, 0, 4] == 1


@pytest.mark.parametrize(("shape", "length"), [((8, 6, 7), (8, 1, 4)), ((7, 5, 8), (7, 1, 5))])
def test_a_mask_has_length_one_along_the_tilt_axis(shape, length):
    assert wedge_mask(shape, (-60.0, 60.0)).shape == length


def test_a_mask_of_tilts_about_x_has_length_one_along_x():
    assert wedge_mask((8, 6, 7), TiltGeometry.from_range(-60, 60, "x")).shape == (8, 6, 1)


def test_the_two_tilt_axes_give_one_mask_with_axes_exchanged():
    about_y = full((8, 7, 6), (-50.0, 20.0), support="ball")
    about_x = full((8, 6, 7), TiltGeometry.from_range(-50, 20, "x"), support="ball")
    assert torch.equal(about_y.transpose(1, 2), about_x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("low_pass", [0.2, 0.45, 0.7])
def test_a_low_pass_keeps_frequencies_up_to_its_own(shape, low_pass):
    _, _, radius = directions(shape, "y")
    expected = full(shape, (-60.0, 60.0)) * (radius <= low_pass + 1e-9)
    assert torch.equal(full(shape, (-60.0, 60.0), low_pass=low_pass), expected.float())


def test_a_ball_limits_a_low_pass_beyond_nyquist():
    ball = wedge_mask((8, 8, 8), (-60.0, 60.0), support="ball")
    assert torch.equal(wedge_mask((8, 8, 8), (-60.0, 60.0), support="ball", low_pass=0.7), ball)


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 15, 15), (12, 17, 20)])
def test_a_fan_keeps_the_plane_of_every_tilt(shape, axis):
    """A coefficient nearest to a measured plane, within half a Fourier voxel of the extent, is kept."""
    kept = full(shape, TiltGeometry(TILTS, axis), sampling="fan")
    across = shape[2] if axis == "y" else shape[1]
    for tilt in TILTS:
        slope = math.tan(math.radians(tilt))
        for m in range(1, (across - 1) // 2):
            k_beam = slope * m / across
            index = round(k_beam * shape[0])
            distance = abs(index / shape[0] - k_beam) * math.cos(math.radians(tilt))
            if abs(index) < shape[0] / 2 and distance <= 0.5 / min(shape[0], across):
                assert kept[(index, 0, m) if axis == "y" else (index, m, 0)] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fan_is_the_even_part_of_slabs_about_its_planes(shape):
    kz, kx, _ = directions(shape, "y")
    expected = torch.zeros(shape, dtype=torch.bool)
    for tilt in map(math.radians, TILTS):
        expected |= (kz * math.cos(tilt) - kx * math.sin(tilt)).abs() <= 0.5 / 5 + 1e-9
    expected &= mirrored(expected, AXES)
    assert torch.equal(full(shape, TiltGeometry(TILTS), sampling="fan", extent=5), expected.float())


def test_a_dense_fan_lies_in_the_range_widened_by_half_a_voxel_and_fills_it():
    shape, step = (24, 4, 24), 1.0
    geometry = TiltGeometry([-60 + step * i for i in range(121)])
    fan, inside = full(shape, geometry, sampling="fan"), full(shape, geometry)
    # Nearer than half a voxel to the outermost planes a fan reaches beyond them, never farther.
    assert (inside <= fan).all()
    kz, kx, radius = directions(shape, "y")
    beyond = torch.rad2deg(torch.atan2(kz.abs(), kx.abs())) - 60
    distance = radius * torch.sin(torch.deg2rad(beyond.clamp(min=0)))
    planar = (kz**2 + kx**2).sqrt()
    assert (planar * torch.sin(torch.deg2rad(beyond.clamp(min=0))))[fan == 1].max() <= 0.5 / 24 + 1e-9
    assert distance.max() > 0.5 / 24


def test_the_extent_of_a_fan_is_the_shorter_length_across_the_tilt_axis():
    geometry = TiltGeometry(TILTS)
    for shape, extent in (((12, 5, 20), 12), ((20, 5, 12), 12)):
        expected = wedge_mask(shape, geometry, sampling="fan", extent=extent)
        assert torch.equal(wedge_mask(shape, geometry, sampling="fan"), expected)
    about_x = TiltGeometry(TILTS, "x")
    expected = wedge_mask((12, 9, 5), about_x, sampling="fan", extent=9)
    assert torch.equal(wedge_mask((12, 9, 5), about_x, sampling="fan"), expected)


def test_a_smaller_extent_makes_thicker_planes():
    geometry = TiltGeometry(TILTS)
    thin, thick = (full((16, 16, 16), geometry, sampling="fan", extent=e) for e in (16, 8))
    assert (thin <= thick).all()
    assert thin.sum() < thick.sum()


def test_a_share_of_the_range_is_kept():
    """Of a disc of directions the share (high - low) / 180 is measured, up to the grid."""
    kept = full((64, 1, 64), (-60.0, 60.0), support="ball")
    _, _, radius = directions((64, 1, 64), "y")
    assert_close(kept.sum() / (radius <= 0.5).sum(), torch.tensor(2 / 3), 0.02)


# Weights

WEIGHTED = TiltGeometry([-50.0, -20.0, 10.0, 20.0], weights=[0.25, 1.0, 0.5, 0.75])
ABOUT_X = TiltGeometry([-40.0, 0.0, 61.0], "x", weights=[1.0, 0.5, 1.0])
UNIONS = [
    TiltGeometry.from_range(-60, 60) | TiltGeometry.from_range(-50, 20, "x"),
    TiltGeometry.from_range(-60, -20) | TiltGeometry.from_range(10, 55),
    WEIGHTED | ABOUT_X,
]
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_union = pytest.mark.parametrize("union", UNIONS, ids=str)
each_support = pytest.mark.parametrize("settings", [{}, {"support": "ball"}, {"low_pass": 0.3}], ids=str)


@each_shape
@each_support
@pytest.mark.parametrize("sampling", ["range", "fan"])
def test_weights_of_one_are_no_weights(shape, settings, sampling):
    plain, ones = TiltGeometry(TILTS), TiltGeometry(TILTS, weights=[1.0] * len(TILTS))
    expected = wedge_mask(shape, plain, sampling=sampling, **settings)
    assert torch.equal(wedge_mask(shape, ones, sampling=sampling, **settings), expected)


@each_shape
def test_between_two_tilts_the_weight_is_interpolated_in_the_angle(shape):
    kz, kx, _ = directions(shape, "y")
    knots = list(zip(WEIGHTED.angles, WEIGHTED.weights, strict=True))
    expected = torch.zeros(shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist():
        k = kz[tuple(index)].item(), kx[tuple(index)].item()
        if k == (0, 0):
            expected[tuple(index)] = 1.0
            continue
        angles = [math.degrees(math.atan2(*k)) + turn for turn in (-180, 0, 180)]
        for angle in angles:
            for (left, a), (right, b) in itertools.pairwise(knots):
                if left - 1e-9 <= angle <= right + 1e-9:
                    expected[tuple(index)] = a + (b - a) * (angle - left) / (right - left)
    # At Nyquist a coefficient stands for both signs, and the smaller weight counts.
    expected = torch.minimum(expected, mirrored(expected, AXES))
    assert_close(full(shape, WEIGHTED).double(), expected, 1e-7)
    assert len(expected.unique()) > 4


def test_a_weighted_range_has_the_weights_of_its_ends():
    mask = full((33, 1, 33), TiltGeometry((-45, 45), continuous=True, weights=(0.2, 0.6)))
    assert_close(mask[[-8, 0, 8], 0, [8, 8, 8]], torch.tensor([0.2, 0.4, 0.6]), 1e-6)


def test_tilts_of_equal_angle_count_with_their_mean_weight():
    twice = TiltGeometry([-40, 10, 10, 40], weights=[1, 0.2, 0.6, 1])
    once = TiltGeometry([-40, 10, 40], weights=[1, 0.4, 1])
    assert torch.equal(full((8, 8, 8), twice), full((8, 8, 8), once))


@each_shape
def test_where_the_planes_of_a_fan_overlap_the_largest_weight_counts(shape):
    weights = (0.3, 1.0, 0.2, 0.4, 0.1, 0.7)
    kz, kx, _ = directions(shape, "y")
    expected = torch.zeros(shape, dtype=torch.float64)
    for tilt, weight in zip(map(math.radians, TILTS), weights, strict=True):
        inside = (kz * math.cos(tilt) - kx * math.sin(tilt)).abs() <= 0.5 / 5 + 1e-9
        expected = torch.maximum(expected, weight * inside)
    expected = torch.minimum(expected, mirrored(expected, AXES))
    expected[(kz == 0) & (kx == 0)] = 1.0
    found = full(shape, TiltGeometry(TILTS, weights=weights), sampling="fan", extent=5)
    assert_close(found.double(), expected, 1e-7)


def test_weights_follow_their_angles_into_order():
    geometry = TiltGeometry([30, -10, 5], weights=[0.3, 0.1, 0.5])
    assert (geometry.angles, geometry.weights) == ((-10.0, 5.0, 30.0), (0.1, 0.5, 0.3))


# Unions


@each_shape
@each_union
@each_support
def test_the_mask_of_a_union_is_the_maximum_over_its_parts_and_even(shape, union, settings):
    masks = [full(shape, part, **settings) for part in union.parts]
    found = full(shape, union, **settings)
    assert torch.equal(found, torch.stack(masks).amax(0))
    assert is_even(wedge_mask(shape, union, **settings), shape[2])
    assert all(not torch.equal(found, mask) for mask in masks)


@each_shape
def test_a_fan_may_be_a_union_with_an_extent_for_each_part(shape):
    union = TiltGeometry(TILTS) | TiltGeometry(TILTS, "x")
    parts = [full(shape, part, sampling="fan") for part in union.parts]
    assert torch.equal(full(shape, union, sampling="fan"), torch.maximum(*parts))


@each_union
def test_parts_may_be_exchanged_and_repeated(union):
    first, second = union.parts
    assert second | first == first | second == union == TiltUnion([second, union]) == union | first
    assert len({second | first, union}) == 1
    assert first | first == first


def test_parts_about_one_axis_keep_the_mask_constant_along_it():
    one, two, other = UNIONS[1].parts[0], TiltGeometry.from_range(0, 40), TiltGeometry.from_range(0, 40, "x")
    assert wedge_mask((8, 6, 7), one | two).shape == (8, 1, 4)
    assert wedge_mask((8, 6, 7), one | other).shape == (8, 6, 4)
    assert shared_axes(one | two) == one.axes
    assert shared_axes(one | other) is None


@pytest.mark.parametrize("geometry", [*UNIONS, WEIGHTED, TiltGeometry.from_range(-60, 60)], ids=str)
def test_a_geometry_goes_through_json(geometry):
    assert as_geometry(json.loads(json.dumps(geometry.as_dict()))) == geometry


def test_angles_are_kept_in_order():
    geometry = TiltGeometry([10, -40, 20])
    assert geometry.angles == (-40.0, 10.0, 20.0)
    assert geometry.tilt_range == (-40.0, 20.0)
    assert geometry.missing_angle == 120.0


def test_geometries_are_values():
    geometry = TiltGeometry((-60, 0, 60), "x")
    assert geometry == TiltGeometry((60, 0, -60), "x")
    assert len({geometry, TiltGeometry((-60, 0, 60), "x"), TiltGeometry((-60, 0, 60))}) == 2
    assert dataclasses.replace(geometry, tilt_axis="y") == TiltGeometry((-60, 0, 60))
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.tilt_axis = "y"


def test_a_pair_of_degrees_is_a_continuous_range_about_y():
    assert as_geometry((-60, 50)) == TiltGeometry.from_range(-60, 50) == TiltGeometry((-60, 50), continuous=True)
    geometry = TiltGeometry((-60, 0, 50), "x")
    assert as_geometry(geometry) is geometry


@pytest.mark.fault(32, 35, 37, 39)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TiltGeometry([5]), "at least two different angles"),
        (lambda: TiltGeometry([5, 5]), "at least two different angles"),
        (lambda: TiltGeometry([0, float("nan")]), "finite numbers of degrees"),
        (lambda: TiltGeometry([-100, 20]), "within -90 and 90 degrees and span less than 180, got -100 to 20"),
        (lambda: TiltGeometry([0, 91]), "within -90 and 90"),
        (lambda: TiltGeometry([-90, 90]), "span less than 180"),
        (lambda: TiltGeometry([0, 1], "z"), "`tilt_axis` must be 'y' or 'x'"),
        (lambda: TiltGeometry.from_range(60, -60), r"lower tilt must be below the higher one, got \(60, -60\)"),
        (lambda: TiltGeometry([0, 1], weights=[1.0]), "one weight per tilt is needed, got 1 `weights` for 2 `angles`"),
        (lambda: TiltGeometry([0, 1], weights=[1.0, 2.0]), "`weights` must lie between 0 and 1 .* divide them by the"),
        (lambda: TiltGeometry([0, 1], weights=[0.0, 0.0]), "not all be 0"),
        (lambda: TiltGeometry([0, 1], weights=[float("nan"), 1.0]), "`weights` must lie between 0 and 1"),
        (lambda: TiltUnion([TiltGeometry([0, 10])] * 2), "at least two different tilt series, got 1"),
        (lambda: as_geometry((1, 2, 3)), r"pair \(low, high\)"),
        (lambda: wedge_mask((8, 8), (-60.0, 60.0)), r"shape must be \(z, y, x\)"),
        (lambda: wedge_mask((8, 0, 8), (-60.0, 60.0)), "positive lengths"),
        (lambda: wedge_mask((8, 8, 8), (-60.0, 60.0), sampling="fan"), "a fan needs the list of tilts"),
        (lambda: wedge_mask((8, 8, 8), TiltGeometry(TILTS), sampling="fan", extent=0), "`extent` must be a positive"),
        (lambda: wedge_mask((8, 8, 8), (-60.0, 60.0), low_pass=0), "`low_pass` must be a positive"),
        (
            lambda: wedge_mask((8, 8, 8), (-60.0, 60.0), support="cube"),
            "`support` 'ball' or 'box', got 'range', 'cube'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
