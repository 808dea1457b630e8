"""OME-Zarr stores: what is read, what is written, and what is refused."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from equitomo.io import FileFormatError, FileFormatWarning, creating_volume, read_volume, require_writable, write_volume

zarr = pytest.importorskip("zarr")

SHAPE = (10, 12, 14)
VALUES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
ANGSTROM = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
SCALE = [{"type": "scale", "scale": [10.0, 9.0, 8.0]}]


def make_store(
    path, values=VALUES, *, axes=ANGSTROM, transforms=SCALE, of_all=(), chunks=None, version="0.4", **settings
):
    """A store as another program would write it, with one level."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    chunks = chunks or tuple(min(n, 4) for n in values.shape)
    array = group.create_array(
        "0", shape=values.shape, chunks=chunks, dtype=values.dtype, config={"write_empty_chunks": True}, **settings
    )
    array[...] = values
    image = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": list(transforms)}]}
    if of_all:
        image["coordinateTransformations"] = list(of_all)
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    return path


def edit(path, change):
    """Change the JSON of a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["f4", ">f4", "f2", "i2", "u1", "i1", "f8"])
def test_a_store_is_read_like_an_mrc_file(version, dtype, tmp_path):
    values = (VALUES * 20).astype(dtype) if dtype != "u1" else (VALUES * 20).clip(0).astype(dtype)
    volume = read_volume(make_store(tmp_path / "a.zarr", values, version=version))
    assert volume.shape == SHAPE
    assert volume.voxel_size == (10.0, 9.0, 8.0)
    assert volume.data.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(volume.data), values)
    np.testing.assert_array_equal(np.asarray(volume.data, np.float32), values.astype(np.float32))


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        np.int64(9),
        (slice(2, 9), slice(None, 5), slice(-3, None)),
        (slice(2, 9), 4),
        (5, 6, 7),
        (slice(None), slice(3, 3)),
        (..., 2),
        (0, ...),
        slice(4, 100),
    ],
)
def test_a_part_is_what_numpy_would_give(index, tmp_path):
    data = read_volume(make_store(tmp_path / "a.zarr", chunks=(3, 5, 4))).data
    np.testing.assert_array_equal(data[index], VALUES[index])


@pytest.mark.parametrize("index", [10, -11, (slice(0, 5, 2),), (np.arange(3),), (slice(None), 12)])
def test_an_index_that_cannot_be_read_is_refused(index, tmp_path):
    with pytest.raises(IndexError):
        read_volume(make_store(tmp_path / "a.zarr")).data[index]


@pytest.mark.parametrize("n_bytes", [1, 1000, 1 << 22])
@pytest.mark.parametrize("order", [None, "xyz", "tczyx"])
def test_slabs_cover_the_volume_once(n_bytes, order, tmp_path):
    values, axes = VALUES, ANGSTROM
    if order == "xyz":
        values, axes = VALUES.transpose(2, 1, 0), ANGSTROM[::-1]
    if order == "tczyx":
        values = VALUES[None, None]
        axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *ANGSTROM]
    scale = [
        {"type": "scale", "scale": {3: [10, 9, 8], 5: [1, 1, 10, 9, 8]}[len(axes)][:: 1 if order != "xyz" else -1]}
    ]
    volume = read_volume(make_store(tmp_path / "a.zarr", values, axes=axes, transforms=scale))
    assert volume.voxel_size == (10.0, 9.0, 8.0)
    found, count = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, int)
    for place, block in volume.slabs(n_bytes):
        found[place] = block
        count[place] += 1
    assert (count == 1).all()
    np.testing.assert_array_equal(found, VALUES)


def test_reading_holds_chunks_and_not_the_volume(tmp_path):
    values = np.random.default_rng(1).standard_normal((64, 128, 128)).astype(np.float32)
    volume = read_volume(make_store(tmp_path / "a.zarr", values, chunks=(8, 64, 64)))
    for _ in range(2):  # the first time the package imports its codecs
        total = 0.0
        tracemalloc.start()
        for _, block in volume.slabs(1 << 18):
            total += float(block.sum(dtype=np.float64))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert total == pytest.approx(float(values.sum(dtype=np.float64)), abs=1e-3)
    row = 8 * 128 * 128 * 4
    assert peak < 3.5 * row < values.nbytes / 2


@pytest.mark.parametrize(
    ("unit", "factor"), [("angstrom", 1), ("nanometer", 10), ("micrometer", 1e4), ("parsec", 0), (None, 0)]
)
def test_lengths_are_in_angstrom(unit, factor, tmp_path):
    axes = [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in "zyx"]
    transforms = [*SCALE, {"type": "translation", "translation": [1.0, 2.0, -3.0]}]
    path = make_store(tmp_path / "a.zarr", axes=axes, transforms=transforms)
    if factor:
        volume = read_volume(path)
    else:
        with pytest.warns(FileFormatWarning, match="no voxel size in the metadata"):
            volume = read_volume(path)
    assert volume.voxel_size == (10 * factor, 9 * factor, 8 * factor)
    assert volume.header.origin == (factor, 2 * factor, -3 * factor)


def test_what_holds_for_all_levels_is_applied_after_the_level(tmp_path):
    own = [*SCALE, {"type": "translation", "translation": [1.0, 2.0, 3.0]}]
    of_all = [{"type": "scale", "scale": [2.0] * 3}, {"type": "translation", "translation": [5.0, 0.0, 0.0]}]
    volume = read_volume(make_store(tmp_path / "a.zarr", transforms=own, of_all=of_all))
    assert volume.voxel_size == (20.0, 18.0, 16.0)
    assert volume.header.origin == (7.0, 4.0, 6.0)


def test_a_level_is_named_by_the_path(tmp_path):
    path = write_volume(tmp_path / "a.zarr", VALUES, voxel_size=(10, 9, 8))
    for level, factor in enumerate((1, 2, 4)):
        volume = read_volume(path / str(level))
        assert volume.shape == tuple(-(-n // factor) for n in SHAPE)
        assert volume.voxel_size == (10.0 * factor, 9.0 * factor, 8.0 * factor)
        assert volume.header.origin == tuple((factor - 1) / 2 * size for size in (10.0, 9.0, 8.0))
    assert read_volume(path).shape == SHAPE
    with pytest.raises(FileFormatError, match="no level '7', only: 0, 1, 2"):
        read_volume(path / "7")


def test_an_image_may_be_a_group_inside_of_a_store(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    make_store(tmp_path / "a.zarr" / "even")
    assert read_volume(tmp_path / "a.zarr" / "even").shape == SHAPE
    with pytest.raises(FileFormatError, match=r"no image of OME-Zarr.*it holds even; give .*a.zarr/NAME"):
        read_volume(tmp_path / "a.zarr")


def test_a_store_without_the_extension_is_known_by_its_content(tmp_path):
    assert read_volume(make_store(tmp_path / "even")).shape == SHAPE


def test_an_mrc_file_in_a_folder_that_is_called_zarr_stays_one(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    path = write_volume(tmp_path / "a.zarr" / "a.mrc", VALUES, voxel_size=1)
    assert isinstance(read_volume(path).data, np.memmap)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_coarser_levels_are_means(dtype, tmp_path):
    values = VALUES[:9, :11, :13]
    path = write_volume(tmp_path / "a.zarr", values, voxel_size=1, dtype=dtype)
    fine = np.asarray(read_volume(path).data)
    assert fine.dtype == dtype
    coarse = np.asarray(read_volume(path / "1").data)
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(coarse[1, 2, 3], fine[2:4, 4:6, 6:8].mean(dtype=float), atol=tolerance)
    # At an odd end over what there is.
    np.testing.assert_allclose(coarse[-1, -1, -1], fine[-1, -1, -1], atol=tolerance)


def test_levels_are_the_same_whatever_the_chunks(tmp_path, monkeypatch):
    whole = write_volume(tmp_path / "whole.zarr", VALUES, voxel_size=1)
    monkeypatch.setattr("equitomo.io.zarr_write._CHUNK", 4)
    parts = write_volume(tmp_path / "parts.zarr", VALUES, voxel_size=1)
    assert json.loads((parts / "0" / ".zarray").read_text())["chunks"] == [4, 4, 4]
    for level in "012":
        one, other = (np.asarray(read_volume(path / level).data) for path in (whole, parts))
        np.testing.assert_array_equal(one, other)


def test_what_is_written_is_laid_out_as_on_the_portal(tmp_path):
    values = np.zeros((130, 3, 4), np.float32)
    path = write_volume(tmp_path / "a.zarr", values, voxel_size=7.84)
    array = json.loads((path / "0" / ".zarray").read_text())
    assert (array["zarr_format"], array["dimension_separator"], array["chunks"]) == (2, "/", [128, 3, 4])
    assert json.loads((path / ".zgroup").read_text()) == {"zarr_format": 2}
    (image,) = json.loads((path / ".zattrs").read_text())["multiscales"]
    assert image["version"] == "0.4"
    assert image["axes"] == ANGSTROM
    assert [dataset["path"] for dataset in image["datasets"]] == ["0", "1", "2"]
    assert [dataset["coordinateTransformations"][0] for dataset in image["datasets"]] == [
        {"type": "scale", "scale": [7.84 * factor] * 3} for factor in (1, 2, 4)
    ]
    # Zeros too: a chunk that is left out could not be told from a lost one.
    assert (path / "0" / "1" / "0" / "0").is_file()


@pytest.mark.parametrize("route", [("a.zarr", "b.zarr"), ("a.mrc", "b.zarr"), ("a.zarr", "b.mrc")])
def test_voxel_size_and_origin_go_from_format_to_format(route, tmp_path):
    first, second = (tmp_path / name for name in route)
    seed = read_volume(write_volume(tmp_path / "seed.mrc", VALUES, voxel_size=(10, 9, 8)))
    seed.header.record["origin"]["z"], seed.header.record["origin"]["x"] = 12.5, -40
    before = read_volume(write_volume(first, VALUES, like=seed))
    after = read_volume(write_volume(second, np.asarray(before.data), like=before))
    for volume in (before, after):
        assert volume.voxel_size == (10.0, 9.0, 8.0)
        assert volume.header.origin == (12.5, 0.0, -40.0)
        np.testing.assert_array_equal(np.asarray(volume.data), VALUES)


def test_an_unknown_voxel_size_stays_unknown(tmp_path):
    path = write_volume(tmp_path / "a.zarr", VALUES)
    with pytest.warns(FileFormatWarning, match="no voxel size"):
        assert read_volume(path).voxel_size == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_in_pieces_a_store_is_written_as_at_once(dtype, tmp_path):
    whole = write_volume(tmp_path / "whole.zarr", VALUES, voxel_size=3, dtype=dtype)
    with creating_volume(tmp_path / "pieces.zarr", SHAPE, voxel_size=3, dtype=dtype) as data:
        data[:, :, 7:] = VALUES[:, :, 7:]
        data[:, :, :7] += VALUES[:, :, :7]
        assert not (tmp_path / "pieces.zarr").exists()
    one, other = (
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in (whole, tmp_path / "pieces.zarr")
    )
    assert one.pop(Path(".zattrs")) != other.pop(Path(".zattrs"))  # the name
    assert one == other


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_is_left_by_an_error_leaves_the_old_store_alone(error, tmp_path):
    path = write_volume(tmp_path / "a.zarr", VALUES, voxel_size=1)
    with pytest.raises(error), creating_volume(path, SHAPE, overwrite=True) as data:
        data += 1
        raise error
    np.testing.assert_array_equal(np.asarray(read_volume(path).data), VALUES)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(54)
def test_a_store_is_replaced_only_if_asked_for(tmp_path):
    path = write_volume(tmp_path / "a.zarr", VALUES, voxel_size=1)
    with pytest.raises(FileExistsError, match="exists already"):
        write_volume(path, VALUES + 1)
    with pytest.raises(FileExistsError, match="exists already"):
        require_writable(path)
    require_writable(path, overwrite=True)
    write_volume(path, VALUES + 1, voxel_size=1, overwrite=True)
    np.testing.assert_array_equal(np.asarray(read_volume(path).data), VALUES + 1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_store_is_never_replaced(kind, tmp_path):
    path = tmp_path / "a.zarr"
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    elif kind == "file":
        path.write_text("years of work")
    else:
        path.symlink_to(write_volume(tmp_path / "b.zarr", VALUES, voxel_size=1))
    with pytest.raises(FileExistsError, match="is not a Zarr store, so it is not replaced"):
        write_volume(path, VALUES, overwrite=True)


def test_a_failing_rename_puts_the_old_store_back(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.zarr", VALUES, voxel_size=1)
    rename = Path.rename

    def failing(self, target):
        if (
            Path(target) == path
            and (self / ".zattrs").exists()
            and '"description": "new"' in (self / ".zattrs").read_text()
        ):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_volume(path, VALUES + 1, label="new", overwrite=True)
    np.testing.assert_array_equal(np.asarray(read_volume(path).data), VALUES)
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="more than float16 can hold"):
        write_volume(tmp_path / "a.zarr", VALUES * 1e6, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def break_metadata(change):
    return lambda path: edit(path / ".zattrs", change)


def break_array(**entries):
    return lambda path: edit(path / "0" / ".zarray", lambda content: content.update(entries))


def image_of(content):
    return content["multiscales"][0]


BROKEN = {
    "no multiscales": (break_metadata(dict.clear), "no image of OME-Zarr.*it holds 0"),
    "two images": (break_metadata(lambda c: c["multiscales"].append({})), "holds 2 images, expected one"),
    "not a list": (break_metadata(lambda c: c.update(multiscales=3)), "holds a int, expected one"),
    "no axes": (break_metadata(lambda c: image_of(c).pop("axes")), "no 'axes' that is a list"),
    "other axes": (break_metadata(lambda c: image_of(c)["axes"][0].update(name="t")), "expected z, y and x, each once"),
    "no datasets": (break_metadata(lambda c: image_of(c).update(datasets=[])), "no level '', only: none"),
    "a path outside": (
        break_metadata(lambda c: image_of(c)["datasets"][0].update(path="../b.zarr/0")),
        "outside of the store; refused",
    ),
    "a path to nothing": (
        break_metadata(lambda c: image_of(c)["datasets"][0].update(path="5")),
        "names an array .*5, but there is none",
    ),
    "a scale of words": (
        break_metadata(
            lambda c: image_of(c)["datasets"][0].update(
                coordinateTransformations=[{"type": "scale", "scale": ["a"] * 3}]
            )
        ),
        "cannot use the transformation",
    ),
    "a scale of zero": (
        break_metadata(
            lambda c: image_of(c)["datasets"][0].update(
                coordinateTransformations=[{"type": "scale", "scale": [0, 1, 1]}]
            )
        ),
        "scales positive",
    ),
    "a rotation": (
        break_metadata(lambda c: image_of(c)["datasets"][0].update(coordinateTransformations=[{"type": "rotation"}])),
        "cannot use the transformation",
    ),
    "damaged JSON": (lambda path: (path / ".zattrs").write_text("{"), "damaged .*expected the JSON object"),
    "JSON too deep": (lambda path: (path / ".zattrs").write_text("[" * 100000), "damaged"),
    "a JSON list": (lambda path: (path / ".zattrs").write_text("[1]"), "holds a list"),
    "no JSON": (lambda path: (path / ".zattrs").write_bytes(b"\0\1"), "not a text file"),
    "damaged array": (lambda path: (path / "0" / ".zarray").write_text("{}"), "not an array that can be read"),
    "two dimensions": (break_array(shape=[12, 14], chunks=[4, 4]), "expected one volume"),
    "one section": (break_array(shape=[1, 12, 14]), "give the tomogram, not a slice"),
    "an empty axis": (break_array(shape=[10, 0, 14]), "give the tomogram, not a slice"),
    "a huge shape": (break_array(shape=[10**9] * 3), "chunk .* is missing"),
    "huge chunks": (break_array(shape=[10**5] * 3, chunks=[10**5] * 3), "chunks of .* take .* bytes"),
    "complex numbers": (break_array(dtype="<c8", fill_value=[0.0, 0.0]), "expected real numbers"),
    "a pickle": (break_array(compressor={"id": "pickle"}), "packed by pickle, which cannot be read"),
    "a filter": (break_array(filters=[{"id": "pickle"}]), "packed by pickle, which cannot be read"),
    "a missing chunk": (lambda path: (path / "0" / "1.2.3").unlink(), "chunk .*1.2.3 is missing; copy the store again"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_malformed_store_is_refused_by_name_and_with_a_remedy(how, tmp_path):
    path = make_store(tmp_path / "a.zarr")
    damage, message = BROKEN[how]
    damage(path)
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=message) as caught:
        read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "a.zarr" in str(caught.value)
    assert peak < 1 << 24


def test_a_store_that_is_not_there_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such Zarr store"):
        read_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40])
def test_a_damaged_chunk_is_an_error_where_it_is_read(content, tmp_path):
    volume = read_volume(make_store(tmp_path / "a.zarr"))
    (tmp_path / "a.zarr" / "0" / "2.0.0").write_bytes(content)
    assert volume.data[0].shape == SHAPE[1:]
    with pytest.raises(FileFormatError, match=r"a.zarr: a chunk of '0' is damaged .*copy the store again"):
        for _ in volume.slabs():
            pass


def test_a_chunk_that_is_lost_after_opening_is_an_error(tmp_path):
    volume = read_volume(make_store(tmp_path / "a.zarr"))
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    with pytest.raises(FileFormatError, match="is missing"):
        volume.data[0]


def test_chunks_that_were_left_out_are_read_if_asked_for(tmp_path):
    path = make_store(tmp_path / "a.zarr", fill_value=0)
    (path / "0" / "0.0.0").unlink()
    with pytest.warns(FileFormatWarning, match="chunks are missing, the first is 0.0.0"):
        volume = read_volume(path, permissive=True)
    assert not volume.data[:4, :4, :4].any()
    np.testing.assert_array_equal(volume.data[4:], VALUES[4:])


def test_shards_are_read(tmp_path):
    path = make_store(tmp_path / "a.zarr", chunks=(4, 4, 4), shards=(8, 8, 8), version="0.5")
    np.testing.assert_array_equal(np.asarray(read_volume(path).data), VALUES)
    (path / "0" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(FileFormatError, match="is missing"):
        read_volume(path)


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    path = make_store(tmp_path / "a.zarr")
    imported = builtins.__import__

    def without(name, *rest):
        if name == "zarr":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for act in (lambda: read_volume(path), lambda: require_writable(tmp_path / "b.zarr")):
        with pytest.raises(
            FileFormatError, match=r"\.zarr: Zarr stores need the package zarr: pip install 'equitomo\[zarr\]'"
        ):
            act()


@pytest.mark.slow
def test_the_package_is_imported_only_for_such_stores(tmp_path):
    code = (
        "import sys, numpy as np\nfrom equitomo import read_volume, write_volume, TiledPredictor, TomogramPair\n"
        f"read_volume(write_volume({str(tmp_path / 'a.mrc')!r}, np.ones((3, 4, 5)), voxel_size=1))\n"
        "sys.exit('zarr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_raises_no_warning(tmp_path):
    path = make_store(tmp_path / "a.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.asarray(read_volume(path).data)
