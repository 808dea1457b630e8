"""The value that holds everything that files tell about one tilt series."""

import dataclasses
import math

import numpy as np
import pytest

from equitomo.io import Defocus, FileFormatError, SeriesMetadata


def series(**changes):
    known = {
        "angles": (0.0, 3.0, -3.0, 6.0),
        "acquisition_order": (0, 1, 2, 3),
        "dose": (0.0, 2.0, 4.0, 6.0),
        "tilt_axis_angle": (85.0,) * 4,
        "shifts": ((1.0, 2.0), (3.0, -1.0), (0.0, 0.0), (5.0, 5.0)),
        "defocus": tuple(Defocus(3e4 + n, 2.9e4) for n in range(4)),
        "excluded": (1,),
    }
    return SeriesMetadata("TS_01", **known | changes)


def test_images_angles_and_everything_else_are_reordered_together():
    ordered = series().in_order("tilt")
    assert ordered.angles == (-3.0, 0.0, 3.0, 6.0)
    assert ordered.sections == (2, 0, 1, 3)
    assert ordered.dose == (4.0, 0.0, 2.0, 6.0)
    assert ordered.shifts == ((0.0, 0.0), (1.0, 2.0), (3.0, -1.0), (5.0, 5.0))
    assert [view.u for view in ordered.defocus] == [30002, 30000, 30001, 30003]
    assert ordered.excluded == (2,)
    assert ordered.in_order("acquisition") == series()


def test_excluded_views_go_from_every_field_at_once():
    kept = series(half_images=(tuple("abcd"), tuple("efgh"))).without_excluded()
    assert (kept.angles, kept.sections, kept.excluded) == ((0.0, -3.0, 6.0), (0, 2, 3), ())
    assert kept.half_images == (("a", "c", "d"), ("e", "g", "h"))
    assert series().kept == (0, 2, 3)


def test_the_order_of_acquisition_must_be_known_to_sort_by_it():
    with pytest.raises(ValueError, match="TS_01: the order of acquisition is not known; give the"):
        series(acquisition_order=None).in_order("acquisition")


def test_the_transforms_shift_the_image_and_turn_the_tilt_axis_upright():
    transforms = series().view_transforms()
    angle = math.radians(85)
    # The axis, 85 degrees counterclockwise from y, ends on y.
    np.testing.assert_allclose(transforms[0, :, :2] @ [-math.sin(angle), math.cos(angle)], [0, 1], atol=1e-12)
    # The point that the shift brings to the centre stays there.
    np.testing.assert_allclose(
        transforms[:, :, :2] @ [-1, -2] + transforms[:, :, 2],
        transforms[:, :, :2] @ [-1, -2] + np.einsum("vij,vj->vi", transforms[:, :, :2], series().shifts),
        atol=1e-12,
    )
    np.testing.assert_allclose(transforms[0, :, :2] @ [-1, -2] + transforms[0, :, 2], 0, atol=1e-12)


def test_transforms_of_imod_are_taken_as_they_are_and_unknown_alignments_are_the_identity():
    given = series(transforms=((0.9, -0.1, 0.1, 0.9, 10.0, -3.0),) * 4).view_transforms()
    np.testing.assert_array_equal(given[2], [[0.9, -0.1, 10], [0.1, 0.9, -3]])
    unknown = series(tilt_axis_angle=None, shifts=None).view_transforms()
    np.testing.assert_array_equal(unknown, np.broadcast_to(np.eye(2, 3), (4, 2, 3)))


@pytest.mark.parametrize(
    "name", ["sections", "images", "acquisition_order", "dose", "tilt_axis_angle", "x_tilt", "movies"]
)
def test_a_value_for_each_view_must_be_there_for_each(name):
    with pytest.raises(FileFormatError, match=f"TS_01: 3 {name.replace('_', ' ')} for 4 tilt angles, expected one"):
        series(**{name: (0, 1, 2)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"half_images": (("a",), ("b",) * 4)}, "1 half images for 4 tilt angles"),
        ({"sections": (0, 1, 1, 2)}, "expected different numbers from 0"),
        ({"excluded": (4,)}, r"the excluded views \(4,\) are not all among the 4 views"),
        ({"excluded": (0, 1, 2)}, "1 of 4 views are left; exclude fewer"),
        ({"dose": (0, 1, 2, math.nan)}, "dose has values that are not finite"),
        ({"dose": (0, 1, 2, -3)}, "a dose of -3, expected electrons per square"),
        ({"pixel_size": 0.0}, "pixel size of 0, expected 0.01 to 100000 ångström"),
        ({"voltage": 300000.0}, "voltage of 300000, expected 20 to 3000 kilovolts"),
        ({"defocus": (Defocus(3.1, 3.0),) * 4}, r"median defocus is 3.05.*nanometres \(multiply by 10\) or micro"),
        ({"angles": (0.0, 0.5, -0.5, 1.0)}, "TS_01: all angles lie between -0.5 and 1, so they seem to be radians"),
        ({"angles": (0.0, 50, -0.5, 100)}, "view 3: 100 is not a tilt between -90 and 90"),
    ],
)
def test_values_that_cannot_be_of_a_tilt_series_are_refused(changes, message):
    with pytest.raises(FileFormatError, match=message):
        series(**changes)


def test_states_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="`ctf_state` must be one of none, flipped, wiener, unknown, got 'ctf'"):
        series(ctf_state="ctf")
    assert dataclasses.replace(series(), ctf_state="wiener").ctf_state == "wiener"
