"""Formats of materials science: axes with units in and out, tilts, and damaged files."""

import sys
import types

import h5py
import numpy as np
import pytest
import tifffile
from making import DATA, real_data

from equitomo.io import (
    FileFormatError,
    FileFormatWarning,
    bytes_to_create,
    creating_volume,
    read_series,
    read_stack,
    read_volume,
    write_volume,
)

IMAGES = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
ANGLES = (-60.0, -20.0, 20.0, 61.0)


def hspy(path, data=IMAGES, axes=(("tilt", "", 1, 0), ("y", "nm", 3.36, 0), ("x", "nm", 3.36, 0)), **datasets):
    """Write a signal as HyperSpy lays it out: axes are groups, their values attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["file_format"], file.attrs["file_format_version"] = "HyperSpy", "3.3"
        signal = file.create_group("Experiments/__unnamed__")
        signal["data"] = data
        for n, (name, units, scale, offset) in enumerate(axes):
            signal.create_group(f"axis-{n}").attrs.update(
                {"name": name, "units": units, "scale": float(scale), "offset": float(offset), "size": data.shape[n]}
            )
        for name, values in datasets.items():
            signal[name.replace("__", "/")] = values
    return path


def emd(path, data=IMAGES, dims=None, root="data/tomography"):
    """Write an array as tomviz does: each axis is a dataset with its name and unit."""
    dims = dims or [("angles", "[deg]", ANGLES), ("y", "[n_m]", 2.5 * np.arange(5)), ("x", "[n_m]", 2.5 * np.arange(6))]
    with h5py.File(path, "w") as file:
        group = file.create_group(root)
        group["data"] = data
        for n, (name, units, values) in enumerate(dims, 1):
            axis = group.create_dataset(f"dim{n}", data=np.asarray(values, np.float32))
            axis.attrs["name"], axis.attrs["units"] = name, units
    return path


def etspy(path):
    with h5py.File(hspy(path), "a") as file:
        file["Experiments/__unnamed__/metadata/Tomography/_sig_tilts/data"] = np.array(ANGLES)[:, None]
    return path


@pytest.mark.parametrize(("write", "name", "size"), [(etspy, "a.hspy", 33.6), (emd, "a.emd", 25.0)])
def test_images_come_with_their_tilts_and_pixel_size_in_angstrom(tmp_path, write, name, size):
    path = write(tmp_path / name)
    volume, angles = read_stack(path)
    np.testing.assert_array_equal(volume.data, IMAGES)
    assert angles == pytest.approx(ANGLES)
    assert volume.voxel_size == pytest.approx((0.0, size, size))
    series = read_series(path)
    assert (series.angles, series.stack, series.image_shape, series.ctf_state) == (angles, path, (5, 6), "none")
    assert series.pixel_size == pytest.approx(size)


@pytest.mark.parametrize(
    ("units", "scale", "offset"), [("degrees", 20, -60), ("deg", 20, -60), ("rad", np.pi / 9, -np.pi / 3)]
)
def test_an_axis_of_angles_gives_degrees(tmp_path, units, scale, offset):
    axes = (("tilt", units, scale, offset), ("y", "nm", 1, 0), ("x", "nm", 1, 0))
    assert read_stack(hspy(tmp_path / "a.hspy", axes=axes))[1] == (-60.0, -40.0, -20.0, 0.0)


def test_an_axis_of_angles_is_brought_to_the_front(tmp_path):
    data = IMAGES.transpose(1, 2, 0)
    dims = [("y", "nm", [0, 2]), ("x", "nm", [0, 2]), ("tilt", "deg", ANGLES)]
    volume, angles = read_stack(emd(tmp_path / "a.emd", data, dims))
    np.testing.assert_array_equal(volume.data, IMAGES)
    assert (angles, volume.voxel_size) == (ANGLES, (0.0, 20.0, 20.0))


@pytest.mark.parametrize(
    ("unit", "size"), [("nm", 20.0), ("Å", 2.0), ("µm", 2e4), ("um", 2e4), ("[n_m]", 20.0), ("px", 0.0), ("", 0.0)]
)
def test_lengths_in_all_units_become_angstrom(tmp_path, unit, size):
    path = hspy(tmp_path / "a.hspy", axes=((("z", unit, 2, 0), ("y", unit, 2, 0), ("x", unit, 2, 0))))
    if size:
        assert read_volume(path).voxel_size == (size,) * 3
    else:
        with pytest.warns(FileFormatWarning, match="no unit of length for each axis; lengths are in voxels"):
            assert read_volume(path).voxel_size == (0.0,) * 3


@pytest.mark.parametrize("name", ["a.hspy", "a.emd"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_volume_goes_out_in_nanometres_and_comes_back(tmp_path, name, dtype):
    before = read_volume(hspy(tmp_path / "in.hspy", axes=(("z", "nm", 3, 1), ("y", "nm", 2, 0), ("x", "nm", 1, 4))))
    path = write_volume(tmp_path / name, before.data, like=before, dtype=dtype)
    after = read_volume(path)
    np.testing.assert_array_equal(after.data, IMAGES)
    assert (after.voxel_size, after.header.origin) == ((30.0, 20.0, 10.0), (10.0, 0.0, 40.0))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_volume(path, before.data)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["in.hspy", name])


def test_the_layout_of_hyperspy_names_its_axes_and_navigates_along_z(tmp_path):
    with h5py.File(write_volume(tmp_path / "a.hspy", IMAGES, voxel_size=10.0)) as file:
        assert file.attrs["file_format"] == "HyperSpy"
        (signal,) = file["Experiments"].values()
        axes = [dict(signal[f"axis-{n}"].attrs) for n in range(3)]
    assert [(axis["name"], axis["units"], axis["scale"], axis["navigate"]) for axis in axes] == [
        ("z", "nm", 1.0, True),
        ("y", "nm", 1.0, False),
        ("x", "nm", 1.0, False),
    ]


def test_the_layout_of_tomviz_has_x_first(tmp_path):
    with h5py.File(write_volume(tmp_path / "a.emd", IMAGES, voxel_size=10.0)) as file:
        group = file["data/tomography"]
        assert group["data"].shape == (6, 5, 4)
        assert [group[f"dim{n}"].attrs["name"] for n in (1, 2, 3)] == ["x", "y", "z"]
        assert group["dim1"].attrs["units"] == "[n_m]"


@pytest.mark.parametrize("name", ["a.hspy", "a.emd"])
def test_a_volume_is_created_piece_by_piece_or_not_at_all(tmp_path, name):
    path = tmp_path / name
    with creating_volume(path, IMAGES.shape, voxel_size=10.0) as data:
        data[...] = IMAGES
        assert not path.exists()
    np.testing.assert_array_equal(read_volume(path).data, IMAGES)
    with pytest.raises(RuntimeError), creating_volume(path, IMAGES.shape, overwrite=True):
        raise RuntimeError
    np.testing.assert_array_equal(read_volume(path).data, IMAGES)
    assert bytes_to_create(path, IMAGES.shape) >= 2 * IMAGES.nbytes


def test_images_in_one_piece_are_mapped_and_compressed_ones_read(tmp_path):
    assert isinstance(read_stack(etspy(tmp_path / "a.hspy"))[0].data, np.memmap)
    with h5py.File(tmp_path / "a.hspy", "a") as file:
        signal = file["Experiments/__unnamed__"]
        del signal["data"]
        signal.create_dataset("data", data=IMAGES, compression="gzip")
    np.testing.assert_array_equal(read_stack(tmp_path / "a.hspy")[0].data, IMAGES)


def test_a_tilt_series_is_never_taken_for_a_tomogram(tmp_path):
    with pytest.raises(FileFormatError, match=r"a\.hspy: 4 images with 4 tilts: a tilt series, not a tomogram"):
        read_volume(etspy(tmp_path / "a.hspy"))


def cut(path, size=-200):
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: cut(etspy(p / "a.hspy")),
            r"a\.hspy: truncated HDF5 file \(eof = \d+.*stored_eof = \d+\); copy or export",
        ),
        (lambda p: cut(etspy(p / "a.hspy"), 50), r"a\.hspy: (truncated|damaged) HDF5 file"),
        (
            lambda p: hspy(p / "a.hspy", IMAGES[0], (("y", "nm", 1, 0), ("x", "nm", 1, 0))),
            r"shape \(5, 6\), expected three",
        ),
        (lambda p: hspy(p / "a.hspy", IMAGES.astype(complex)), "holds complex128, expected real numbers"),
        (lambda p: hspy(p / "a.hspy", metadata__Tomography__tilts=[1.0, 2.0]), "has 2 tilts for 4 images"),
        (lambda p: hspy(p / "a.hspy"), "holds 4 images without tilts; give the file of the tilts too"),
        (
            lambda p: emd(p / "a.emd", IMAGES[0], [("y", "nm", [0, 1]), ("x", "nm", [0, 1])]),
            "without a calibrated array",
        ),
        (lambda p: tiff(p / "a.tif"), "holds 4 images without tilts"),
        (lambda p: cut(tiff(p / "a.tif"), 150), r"a\.tif: damaged TIFF file"),
        (
            lambda p: tiff(p / "a.tif", np.zeros((5, 6, 3), np.uint8), photometric="rgb"),
            "images of colour, expected a stack",
        ),
        (lambda p: tiff(p / "a.tif", IMAGES[0]), r"images of shape \(5, 6\), expected a stack of grey images"),
    ],
)
def test_a_damaged_or_unsuitable_file_is_refused_with_the_reason(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_series(path)
    assert str(path) in str(caught.value)


def tiff(path, data=IMAGES, **settings):
    tifffile.imwrite(path, data, **{"photometric": "minisblack"} | settings)
    return path


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"imagej": True, "resolution": (0.5, 0.5), "metadata": {"unit": "nm"}}, 20.0),
        ({"imagej": True, "resolution": (500, 500), "metadata": {"unit": "micron"}}, 20.0),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.002, "PhysicalSizeY": 0.002, "axes": "ZYX"}}, 20.0),
        ({"resolution": (5e6, 5e6), "resolutionunit": "CENTIMETER"}, 20.0),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, 0.0),
        ({}, 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no unit of length:equitomo.io.FileFormatWarning")
def test_the_pixel_size_of_a_tiff_is_read_where_it_is_one(tmp_path, settings, size):
    volume, angles = read_stack(tiff(tmp_path / "a.tif", **settings))
    np.testing.assert_array_equal(volume.data, IMAGES)
    assert (angles, volume.voxel_size[1:]) == (None, pytest.approx((size, size)))


def test_a_compressed_tiff_is_read(tmp_path):
    with pytest.warns(FileFormatWarning, match="no unit of length"):
        volume, _ = read_stack(tiff(tmp_path / "a.tif", compression="zlib"))
    np.testing.assert_array_equal(volume.data, IMAGES)


def plug_in(monkeypatch, signals):
    module = types.ModuleType("rsciio.digitalmicrograph")
    module.file_reader = lambda path: signals
    monkeypatch.setitem(sys.modules, "rsciio", types.ModuleType("rsciio"))
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", module)


def dm(path):
    path.write_bytes(b"\0\0\0\x03" + bytes(40))
    return path


def test_digital_micrograph_needs_the_plug_in_of_the_user(tmp_path, monkeypatch):
    path = dm(tmp_path / "a.dm3")
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", None)
    with pytest.raises(FileFormatError, match=r"a\.dm3: is a file of DigitalMicrograph.*pip install rosettasciio"):
        read_series(path)
    axes = [
        {"name": "z", "units": "deg", "scale": 2.0, "offset": -3.0},
        {"name": "y", "units": "µm", "scale": 0.018, "offset": 0.0},
        {"name": "x", "units": "µm", "scale": 0.018, "offset": 0.0},
    ]
    plug_in(monkeypatch, [{"data": IMAGES, "axes": axes}])
    series = read_series(path)
    assert (series.angles, series.pixel_size, series.program) == ((-3.0, -1.0, 1.0, 3.0), pytest.approx(180.0), "dm")
    plug_in(monkeypatch, [{"data": IMAGES[0], "axes": axes[1:]}])
    with pytest.raises(FileFormatError, match=r"holds \(5, 6\), expected a stack of images"):
        read_series(path)


@real_data
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
def test_the_stack_of_the_needle_has_its_tilts():
    volume, angles = read_stack(DATA / "etspy_needle" / "HAADF.mrc")
    assert (volume.shape, len(angles), angles[0], angles[-1]) == ((77, 256, 256), 77, -76.0, 76.0)
    assert volume.voxel_size[1:] == pytest.approx((33.6, 33.6), rel=1e-3)
