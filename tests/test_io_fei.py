"""Extended headers of FEI: the pixel size and the tilts that a microscope writes for every image."""

from __future__ import annotations

import warnings

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import DATA, NO_DATA
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

from equitomo.io import FileFormatError, FileFormatWarning, read_tilts, read_volume, write_volume

ANGLES = (-60.0, -20.0, 20.0, 60.5)
NEEDLE = DATA / "etspy_needle" / "HAADF.mrc"
KINDS = ["FEI1", "FEI2", "old"]


def metadata(kind, order="<", angles=ANGLES, pixel=(3.36e-9, 1.68e-9)):
    """The extended header of a series with pixels of different lengths along x and y, in metres."""
    if kind == "old":
        numbers = np.zeros((1024, 32), order + "f4")
        numbers[: len(angles), 0], numbers[: len(angles), 11] = angles, pixel[0]
        return numbers.tobytes()
    records = np.zeros(len(angles), get_ext_header_dtype(kind.encode(), order))
    records["Metadata size"], records["Alpha tilt"] = records.itemsize, angles
    records["Pixel size X"], records["Pixel size Y"] = pixel
    return records.tobytes()


def put(folder, kind="FEI1", order="<", *, size=1.0, extended=None, name="series.mrc", **fields):
    extended = metadata(kind, order) if extended is None else extended
    record = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    fields = {"nx": 6, "ny": 5, "nz": 4, "mx": 6, "my": 5, "mz": 4, "mode": 2, "nsymbt": len(extended)} | fields
    fields |= {"cella": (6 * size, 5 * size, 4 * size), "cellb": (90, 90, 90), "mapc": 1, "mapr": 2, "maps": 3}
    if kind == "old":
        extra = bytearray(84)
        extra[16:20] = np.array([0, 32], order + "i2").tobytes()
        label = [b"    Fei Company (c) Copyright 2003"] + [b""] * 9
        fields |= {"nlabl": 1, "label": label, "extra2": np.void(bytes(extra))}
    else:
        fields |= {"map": b"MAP ", "machst": (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)}
        fields |= {"exttyp": kind.encode(), "nversion": 20140}
    for name_of_field, value in fields.items():
        record[name_of_field] = value
    path = folder / name
    path.write_bytes(record.tobytes() + extended + bytes(4 * 6 * 5 * 4))
    return path


def read(path):
    """The volume and what was said about its voxel size."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = read_volume(path)
    return volume, [text for text in (str(warning.message) for warning in caught) if "voxel size" in text]


@pytest.mark.fault(28)
@pytest.mark.parametrize("size", [1.0, 0.0])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixel_size_is_read_where_the_header_states_none(tmp_path, kind, order, size):
    volume, said = read(put(tmp_path, kind, order, size=size))
    y = 33.6 if kind == "old" else 16.8
    np.testing.assert_allclose(volume.voxel_size, (33.6, y, 33.6), rtol=1e-6)
    assert len(said) == 1
    assert "33.6 Å is taken from the FEI extended header" in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_voxel_size_that_the_header_states_goes_first(tmp_path, kind):
    volume, said = read(put(tmp_path, kind, size=7.5))
    assert volume.voxel_size == (7.5, 7.5, 7.5)
    assert not said


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["series.mrc", "series.st", "series.ST"])
def test_the_tilts_of_a_series_are_read(tmp_path, kind, order, name):
    assert read_tilts(put(tmp_path, kind, order, name=name), n_expected=4) == ANGLES


def test_the_order_may_be_that_of_the_images(tmp_path):
    path = put(tmp_path, extended=metadata("FEI1", angles=(20.0, -20.0, 40.0, -40.0)))
    assert read_tilts(path, sort=False) == (20.0, -20.0, 40.0, -40.0)
    assert read_tilts(path) == (-40.0, -20.0, 20.0, 40.0)


def test_mrcfile_reads_the_same(tmp_path):
    path = put(tmp_path, "FEI2")
    with mrcfile.open(path) as file:
        assert tuple(file.indexed_extended_header["Alpha tilt"]) == read_tilts(path)


def broken(**fields):
    records = np.frombuffer(metadata("FEI1"), get_ext_header_dtype(b"FEI1", "<")).copy()
    for name, value in fields.items():
        records[name.replace("_", " ")] = value
    return records.tobytes()


@pytest.mark.fault(31, 35)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "SERI"}, "has no FEI extended header with a tilt angle for each section"),
        ({"extended": b""}, "has no FEI extended header"),
        ({"extended": metadata("FEI1")[:-1]}, "has no FEI extended header"),
        ({"extended": broken(Metadata_size=700)}, "has no FEI extended header"),
        ({"extended": broken(Alpha_tilt=[1, 2, np.nan, 3])}, "section 2: nan is not a tilt angle"),
        ({"extended": broken(Alpha_tilt=[1, 2, 3, 91])}, "section 3: 91 is not a tilt between -90 and 90 degrees"),
        ({"extended": broken(Alpha_tilt=0)}, r"1 different tilt angle\(s\)"),
    ],
)
def test_a_file_without_tilts_is_refused(tmp_path, settings, message):
    settings = {"extended": metadata("FEI1")} | settings
    with pytest.raises(FileFormatError, match=rf"series\.mrc: {message}"):
        read_tilts(put(tmp_path, **settings))


@pytest.mark.parametrize("pixel", [(0.0, 0.0), (np.nan, 1e-9), (1e-9, -1e-9), (np.inf, np.inf), (1.0, 1.0)])
def test_a_pixel_size_that_cannot_be_one_is_left_alone(tmp_path, pixel):
    volume, said = read(put(tmp_path, extended=metadata("FEI1", pixel=pixel)))
    assert volume.voxel_size == (1.0, 1.0, 1.0)
    assert not said


def test_what_was_read_stays_in_a_copy(tmp_path):
    before, _ = read(put(tmp_path, "old"))
    path = write_volume(tmp_path / "copy.mrc", before.data, like=before)
    after, said = read(path)
    np.testing.assert_allclose(after.voxel_size, 33.6, rtol=1e-6)
    assert not said
    assert read_tilts(path) == ANGLES


@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=6))
def test_any_metadata_is_either_read_or_refused(tmp_path, kind, changes):
    extended = bytearray(metadata(kind))
    for place, byte in changes:
        extended[place] = byte
    path = put(tmp_path, kind, extended=bytes(extended))
    volume, _ = read(path)
    assert all(0 < size < 1e7 for size in volume.voxel_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileFormatWarning)
        try:
            assert len(read_tilts(path)) == 4
        except FileFormatError as error:
            assert str(path) in str(error)


@pytest.mark.skipif(not NEEDLE.is_file(), reason=NO_DATA)
def test_a_real_tilt_series_has_its_pixel_size_and_its_tilts():
    volume, said = read(NEEDLE)
    np.testing.assert_allclose(volume.voxel_size, 33.6, rtol=1e-6)
    assert len(said) == 1
    assert read_tilts(NEEDLE, n_expected=77) == read_tilts(NEEDLE.with_suffix(".rawtlt"))
