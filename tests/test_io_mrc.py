"""MRC files: what is read, what is refused and why, what is written."""

import ast
import bz2
import gzip
import io
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from faults import numbered
from hypothesis import given
from hypothesis import strategies as st
from making import DATA, real_data
from mrcfile.dtypes import HEADER_DTYPE

import equitomo.io
from equitomo.io import FileFormatError, FileFormatWarning, read_volume, write_volume

SHAPE = (4, 5, 6)
TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
# Without the time, which would be in the names of tests.
gzipped = partial(gzip.compress, mtime=0)
PACK = {"": bytes, ".gz": gzipped, ".bz2": bz2.compress}
IMOD_STAMP = 1146047817


def values(dtype, shape=SHAPE):
    """Every voxel different, and the types' full ranges in use."""
    size = int(np.prod(shape))
    if np.dtype(dtype).kind == "f":
        return np.linspace(-7.5, 11.25, size).astype(dtype).reshape(shape)
    limits = np.iinfo(dtype)
    return np.linspace(limits.min, limits.max, size).astype(dtype).reshape(shape)


def header(shape=SHAPE, order="<", **fields):
    """A valid MRC2014 header, with some fields set to something else."""
    record = np.zeros((), np.dtype(HEADER_DTYPE).newbyteorder(order))
    nz, ny, nx = shape
    usual = {"nx": nx, "ny": ny, "nz": nz, "mode": 2, "mx": nx, "my": ny, "mz": nz, "mapc": 1, "mapr": 2}
    usual |= {"maps": 3, "ispg": 1, "nversion": 20141, "map": b"MAP ", "cellb": (90, 90, 90), "nlabl": 1}
    usual |= {"cella": (10.0 * nx, 20.0 * ny, 30.0 * nz), "dmin": -8, "dmax": 12}
    usual |= {"label": [b"made by a test"] + [b""] * 9}
    usual |= {"machst": (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)}
    for name, value in (usual | fields).items():
        record[name] = value
    return record.tobytes()


def imod_flags(flags, order="<"):
    extra = bytearray(84)
    extra[40:48] = np.array([IMOD_STAMP, flags], order + "i4").tobytes()
    return np.void(bytes(extra))


def content(order="<", dtype="f4", **fields):
    voxels = values(dtype)
    return header(order=order, **fields) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()


def put(folder, data, name="volume.mrc"):
    path = folder / name
    path.write_bytes(data)
    return path


def assert_only(folder, *names):
    """Nothing partial is left behind."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(names)


# Reading


@pytest.mark.fault(4, 7, 8)
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", TYPES)
def test_every_mode_byte_order_and_packing_reads_the_same_voxels(tmp_path, mode, order, packed):
    path = put(tmp_path, PACK[packed](content(order, TYPES[mode], mode=mode)), "volume.mrc" + packed)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, values(TYPES[mode]), strict=True)
    np.testing.assert_array_equal(volume.data, mrcfile.read(path))
    assert volume.data.dtype.isnative
    assert volume.voxel_size == (30.0, 20.0, 10.0)
    np.testing.assert_array_equal(np.asarray(volume.data, np.float32), values(TYPES[mode]).astype("f4"), strict=True)


@pytest.mark.parametrize("extension", [".mrc", ".rec", ".st", ".ali", ".map", ".MRC", ""])
def test_the_content_decides_not_the_extension(tmp_path, extension):
    assert read_volume(put(tmp_path, content(), "volume" + extension)).data.shape == SHAPE


def test_a_plain_native_file_is_memory_mapped_read_only(tmp_path):
    volume = read_volume(put(tmp_path, content()))
    assert isinstance(volume.data, np.memmap)
    assert not volume.data.flags.writeable


def test_without_memory_map_the_array_belongs_to_the_caller(tmp_path):
    volume = read_volume(put(tmp_path, content()), memory_map=False)
    assert type(volume.data) is np.ndarray
    volume.data[0] = 0


def test_an_odd_extended_header_still_gives_aligned_voxels(tmp_path):
    raw = header(nsymbt=3) + b"abc" + values("f4").tobytes()
    volume = read_volume(put(tmp_path, raw))
    assert volume.data.flags.aligned
    np.testing.assert_array_equal(volume.data, values("f4"))
    assert volume.header.extended == b"abc"


@pytest.mark.fault(14)
@pytest.mark.parametrize("axes", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])
def test_permuted_axes_are_brought_into_z_y_x(tmp_path, axes):
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    index = (100 * z + 10 * y + x).astype("f4")
    lengths, starts = {3: 4, 2: 5, 1: 6}, {3: 30, 2: 20, 1: 10}
    sections = axes[::-1]  # slowest first: maps, mapr, mapc
    stored = index.transpose([3 - axis for axis in sections])
    raw = header(
        tuple(lengths[axis] for axis in sections),
        **dict(zip(("mapc", "mapr", "maps"), axes, strict=True)),
        **dict(zip(("nxstart", "nystart", "nzstart"), (starts[axis] for axis in axes), strict=True)),
        **{"mx": 6, "my": 5, "mz": 4, "cella": (6.0, 10.0, 12.0)},
    )
    path = put(tmp_path, raw + stored.tobytes())
    if axes == (1, 2, 3):
        volume = read_volume(path)
    else:
        with pytest.warns(FileFormatWarning, match=r"mapc, mapr, maps.*reordered to \(z, y, x\)"):
            volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, index)
    assert volume.voxel_size == (3.0, 2.0, 1.0)
    assert volume.header.start == (30, 20, 10)
    again = read_volume(write_volume(tmp_path / "again.mrc", volume.data, like=volume))
    np.testing.assert_array_equal(again.data, index)
    assert again.header.start == (30, 20, 10)


@pytest.mark.fault(14)
def test_unset_axes_mean_the_usual_order(tmp_path):
    path = put(tmp_path, content(mapc=0, mapr=0, maps=0))
    np.testing.assert_array_equal(read_volume(path).data, values("f4"))


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"extra2": imod_flags(0)}, "u1"),
        ({"extra2": imod_flags(1)}, "i1"),
        ({"dmin": 0, "dmax": 200}, "u1"),
        ({"dmin": -5, "dmax": 100}, "i1"),
    ],
)
def test_bytes_are_signed_unless_the_header_says_otherwise(tmp_path, fields, dtype):
    raw = np.arange(120, dtype="u1").reshape(SHAPE) * 2
    path = put(tmp_path, header(mode=0, **fields) + raw.tobytes())
    if dtype == "u1":
        with pytest.warns(FileFormatWarning, match="read as unsigned bytes, because"):
            volume = read_volume(path)
    else:
        volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, raw.view(dtype), strict=True)


@pytest.mark.fault(6)
def test_the_imod_flag_is_read_in_the_file_s_byte_order(tmp_path):
    raw = np.full(SHAPE, 255, "u1")
    path = put(tmp_path, header(order=">", mode=0, extra2=imod_flags(0, ">")) + raw.tobytes())
    with pytest.warns(FileFormatWarning, match="IMOD's flag"):
        np.testing.assert_array_equal(read_volume(path).data, raw)


@pytest.mark.fault(3)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("stamp", [(0, 0, 0, 0), (1, 2, 3, 4)])
def test_an_unknown_machine_stamp_is_settled_by_the_size(tmp_path, stamp, order):
    path = put(tmp_path, content(order, machst=stamp))
    with pytest.warns(FileFormatWarning, match="unknown machine stamp"):
        np.testing.assert_array_equal(read_volume(path).data, values("f4"))


def old_style(order="<", x=10.0, **fields):
    """The layout before 2000: z origin, x origin and y origin where the mark and the stamp are now."""
    raw = bytearray(content(order, **fields))
    raw[208:220] = np.array([30.0, x, 20.0], order + "f4").tobytes()
    return bytes(raw)


@pytest.mark.fault(2)
def test_a_plainly_valid_old_header_is_read(tmp_path):
    with pytest.warns(FileFormatWarning, match="old header without the MAP mark"):
        volume = read_volume(put(tmp_path, old_style()))
    np.testing.assert_array_equal(volume.data, values("f4"))
    assert volume.header.origin == (30.0, 20.0, 10.0)


@pytest.mark.fault(2)
@pytest.mark.filterwarnings("ignore:.*old header without the MAP mark")
@pytest.mark.parametrize("packed", [".gz", ".bz2"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", [0, 2])
def test_an_old_header_is_read_from_a_packed_file(tmp_path, mode, order, packed):
    raw = old_style(order=order, dtype=TYPES[mode], mode=mode)
    volume = read_volume(put(tmp_path, PACK[packed](raw), "volume.mrc" + packed))
    np.testing.assert_array_equal(volume.data, values(TYPES[mode]), strict=True)
    np.testing.assert_array_equal(gathered(volume, 1), volume.data)
    assert volume.header.origin == (30.0, 20.0, 10.0)


@pytest.mark.fault(2)
def test_permissive_reads_any_unmarked_header_whose_sizes_agree(tmp_path):
    path = put(tmp_path, old_style(nlabl=-3))
    with pytest.raises(FileFormatError, match=r"pass `permissive=True`"):
        read_volume(path)
    with pytest.warns(FileFormatWarning, match="old header"):
        np.testing.assert_array_equal(read_volume(path, permissive=True).data, values("f4"))


@pytest.mark.fault(28)
@pytest.mark.parametrize("trouble", [{"cella": (0, 0, 0)}, {"mx": 0, "my": 0, "mz": 0}])
def test_a_missing_voxel_size_is_zero_with_a_warning(tmp_path, trouble):
    with pytest.warns(FileFormatWarning, match="no voxel size"):
        assert read_volume(put(tmp_path, content(**trouble))).voxel_size == (0, 0, 0)


@pytest.mark.fault(15)
@pytest.mark.parametrize(("packed", "n"), [("", 17), ("", 1 << 20), (".gz", 1 << 16), (".bz2", 1 << 16)])
def test_trailing_bytes_are_ignored_with_a_warning(tmp_path, packed, n):
    path = put(tmp_path, PACK[packed](content() + bytes(n)))
    with pytest.warns(FileFormatWarning, match=f"{n} bytes after the voxels"):
        np.testing.assert_array_equal(read_volume(path).data, values("f4"))


def test_oblique_cell_angles_are_warned_of(tmp_path):
    with pytest.warns(FileFormatWarning, match="not right angles"):
        read_volume(put(tmp_path, content(cellb=(90, 94, 90))))


@pytest.mark.fault(18)
def test_an_image_stack_is_a_volume_with_a_warning_unless_written_as_imod_does(tmp_path):
    assert read_volume(put(tmp_path, content(ispg=0))).data.shape == SHAPE
    with pytest.warns(FileFormatWarning, match="stack of 4 images"):
        volume = read_volume(put(tmp_path, content(ispg=0, mz=1, cella=(60.0, 50.0, 40.0))))
    assert volume.voxel_size == (10.0, 10.0, 10.0)


def compressed(**fields):
    return gzipped(content(**fields))


# Fault number of docs/faults.md, content of the file, what the message says.
REFUSED = [
    (1, content()[:-1], r"truncated: the header asks for 1504 bytes, found 1503"),
    (1, content()[:1025], r"truncated: the header asks for 1504 bytes, found 1025"),
    (1, gzipped(content()[:-1]), r"truncated: the header asks for 1504 bytes, found 1503"),
    (1, gzipped(content()[:300]), r"gzip file does not begin with an MRC header"),
    (1, compressed()[:-9], r"gzip file is damaged"),
    (2, old_style()[:-4], r"no MAP mark at byte 208, and its 1500 bytes are not"),
    (
        2,
        b"PK\x03\x04" + bytes(2000),
        r"not an MRC file \(it looks like .*\): no MAP mark at byte 208, and its 2004 bytes",
    ),
    (2, b"PK\3\4" + bytes(2000), r"not an MRC file \(it looks like a zip archive\)"),
    (2, b"\x93NUMPY" + bytes(2000), r"not an MRC file \(it looks like NumPy\).* Export the tomogram as MRC"),
    (2, gzipped(old_style()[:-4]), r"no MAP mark at byte 208, and its 1500 bytes are not"),
    (2, gzipped(old_style(mode=7)), r"an MRC header, so it is unknown to how much.* unpack it first"),
    (3, content(machst=(0, 0, 0, 0)) + b"more", r"unknown machine stamp 00 00 00 00"),
    (5, content(mode=7), r"mode 7: unknown\. Modes 0, 1, 2, 6 and 12"),
    (5, compressed(mode=7), r"mode 7: unknown\. Modes 0, 1, 2, 6 and 12"),
    (5, content(mode=-1), r"mode -1: unknown.* convert the file to mode 2"),
    (9, content(mode=3), r"mode 3: complex numbers \(a transform, not a volume\)"),
    (9, content(mode=4), r"mode 4: complex numbers"),
    (10, content(mode=101), r"mode 101: packed 4-bit numbers; unpack them first, with IMOD: newstack"),
    (10, content(mode=0, extra2=imod_flags(16)), r"packed 4-bit numbers; .* newstack"),
    (11, content(nx=-6), r"nx, ny, nz = -6, 5, 4"),
    (11, content(nz=0), r"nx, ny, nz = 6, 5, 0"),
    (12, content(nx=2**31 - 1), r"asks for 171798692784 bytes, found 1504"),
    (12, compressed(nx=2**31 - 1, ny=2**31 - 1), r"truncated"),
    (13, content(nsymbt=2**31 - 1), r"asks for 2147485151 bytes, found 1504"),
    (13, content(nsymbt=-80), r"extended header of -80 bytes"),
    (14, content(mapc=1, mapr=1, maps=3), r"mapc, mapr, maps = \(1, 1, 3\) must be"),
    (16, b"", r"is empty; an MRC file begins"),
    (16, b"tilt angles\n", r"has only 12 bytes \(it looks like text\)"),
    (16, b"tilt angles\n" * 200, r"not an MRC file \(it looks like text\)"),
    (16, b"\x89HDF" + bytes(2000), r"not an MRC file \(it looks like HDF5\)"),
    (17, gzipped(content() + bytes(1 << 20)), r"unpacks to more than the 1504 bytes"),
    (17, bz2.compress(content() + bytes(1 << 20)), r"unpacks to more than the 1504 bytes"),
    (17, gzipped(old_style() + bytes(1 << 20)), r"unpacks to more than the 1504 bytes"),
    # Of mode 0 both byte orders make sense of the sizes; that of terabytes must not set the limit.
    (17, gzipped(old_style(mode=0) + bytes(1 << 23)), r"unpacks to more than the 1144 bytes"),
    # An origin of 784 (44 44 00 00) looks like the stamp of the other byte order.
    (17, gzipped(old_style(">", 784, mode=0) + bytes(1 << 23)), r"unpacks to more than the 1144 bytes"),
    (17, b"BZh9" + bytes(50), r"bzip2 file is damaged"),
    (18, content(ispg=401), r"stack of volumes \(ispg 401\)"),
    (17, gzipped(content() + bytes((1 << 16) + 1)), r"unpacks to more than the 1504 bytes"),
    (18, header((1, 5, 6)) + bytes(120), r"single section \(nz = 1\)"),
]


@pytest.mark.parametrize(("fault", "raw", "message"), numbered(REFUSED))
def test_a_bad_file_is_refused_with_its_name_and_the_reason(tmp_path, fault, raw, message):
    path = put(tmp_path, raw)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert_only(tmp_path, "volume.mrc")


@pytest.mark.fault(17)
@pytest.mark.parametrize("packer", [gzip.GzipFile, bz2.BZ2File])
def test_unpacking_stops_soon_after_what_the_header_states(tmp_path, monkeypatch, packer):
    packed = (gzip if packer is gzip.GzipFile else bz2).compress(content() + bytes(1 << 25))
    sizes, read = [], packer.read

    def counted(self, size=-1):
        sizes.append(len(part := read(self, size)))
        return part

    monkeypatch.setattr(packer, "read", counted)
    with pytest.raises(FileFormatError, match="unpacks to more"):
        read_volume(put(tmp_path, packed))
    assert sum(sizes) <= len(content()) + (1 << 22)


@pytest.mark.fault(12, 17)
@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit on memory as Linux does")
def test_terabytes_are_refused_without_allocating_them(tmp_path):
    """12, 17: with half a gigabyte to spare, any such allocation would fail."""
    path = put(tmp_path, compressed(nx=2**31 - 1, ny=100))
    program = (
        "import resource, sys; from equitomo.io import read_volume\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)\n"
        "try: read_volume(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "truncated" in done.stdout


def test_a_missing_file_a_folder_and_a_pipe_say_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; check the name.*nowhere\.mrc"):
        read_volume(tmp_path / "nowhere.mrc")
    with pytest.raises(IsADirectoryError, match="a folder, not a file"):
        read_volume(tmp_path)
    os.mkfifo(tmp_path / "pipe.mrc")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_volume(tmp_path / "pipe.mrc")


def test_a_file_without_permission_says_so(tmp_path, monkeypatch):
    path = put(tmp_path, content())

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError, match=r"no permission to read.*volume\.mrc"):
        read_volume(path)


def test_no_module_here_imports_torch_or_the_rest_of_the_package():
    for module in Path(equitomo.io.__file__).parent.glob("*.py"):
        nodes = [
            node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert not {name.split(".")[0] for name in names} & {"torch", "deepinv", "equitomo"}
        assert all(node.level < 2 for node in nodes if isinstance(node, ast.ImportFrom))


VALID = content(nsymbt=8)[:1024] + b"extended" + values("f4").tobytes()
PLACES = st.one_of(st.integers(0, 27).map(lambda i: 4 * i), st.integers(28, 54).map(lambda i: 4 * i))
WORDS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 6, 12, 401, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x7F800000]),
    st.integers(0, 2**32 - 1),
)


@given(st.lists(st.tuples(PLACES, WORDS), max_size=4), st.integers(0, len(VALID)), st.booleans(), st.booleans())
def test_any_header_is_either_read_or_refused(tmp_path, changes, cut, is_cut, permissive):
    raw = bytearray(VALID)
    for place, word in changes:
        raw[place : place + 4] = word.to_bytes(4, "little")
    path = put(tmp_path, bytes(raw[:cut] if is_cut else raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileFormatWarning)
        try:
            volume = read_volume(path, permissive=permissive)
        except FileFormatError as error:
            assert str(path) in str(error)
        else:
            assert volume.data.ndim == 3
            assert all(size >= 0 for size in volume.voxel_size)
            write_volume(tmp_path / "copy.mrc", np.zeros(SHAPE), like=volume, overwrite=True)


# From front to back


def gathered(volume, n_bytes):
    """The voxels of a volume's file, put together from slabs."""
    found = np.full(volume.shape, -99, volume.dtype)
    for place, block in volume.slabs(n_bytes):
        assert block.shape == found[place].shape
        found[place] = block
    return found


@pytest.mark.parametrize("n_bytes", [1, 300, 1 << 25])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", [1, 2])
def test_slabs_hold_the_voxels_of_the_file(tmp_path, mode, order, packed, n_bytes):
    path = put(tmp_path, PACK[packed](content(order, TYPES[mode], mode=mode)), "volume.mrc" + packed)
    np.testing.assert_array_equal(gathered(read_volume(path), n_bytes), values(TYPES[mode]))


@pytest.mark.filterwarnings("ignore:.*axes are stored in another order")
@pytest.mark.parametrize("axes", [(1, 3, 2), (2, 3, 1), (3, 1, 2)])
def test_slabs_of_permuted_axes_find_their_place(tmp_path, axes):
    volume = read_volume(put(tmp_path, content(mapc=axes[0], mapr=axes[1], maps=axes[2])))
    assert volume.shape == volume.data.shape
    np.testing.assert_array_equal(gathered(volume, 1), volume.data)


@pytest.mark.parametrize("packed", PACK)
def test_voxels_belong_to_the_reader_and_not_to_the_file_when_they_are_replaced(tmp_path, packed):
    volume = read_volume(put(tmp_path, PACK[packed](content()), "volume.mrc" + packed))
    np.testing.assert_array_equal(gathered(replace(volume, voxels=volume.data + 1), 1), values("f4") + 1)


@pytest.mark.parametrize("packed", PACK)
def test_a_file_cut_after_it_was_opened_is_named(tmp_path, packed):
    path = put(tmp_path, PACK[packed](content()), "volume.mrc" + packed)
    volume = read_volume(path)
    path.write_bytes(PACK[packed](content()[:-1]))
    for act in (lambda: list(volume.slabs()), lambda: volume.data, lambda: volume[0]):
        with pytest.raises(OSError, match=r"ends before byte 1504: it was cut or replaced.*volume\.mrc"):
            act()


@pytest.mark.parametrize("packed", PACK)
def test_another_file_in_the_place_of_the_one_opened_is_not_read(tmp_path, packed):
    path = put(tmp_path, PACK[packed](content()), "volume.mrc" + packed)
    volume = read_volume(path)
    path.write_bytes(PACK[packed](content(mode=1, dtype="i2") + bytes(1000)))
    for act in (lambda: list(volume.slabs()), lambda: volume.data):
        with pytest.raises(OSError, match=r"was replaced by another file after it was opened.*volume\.mrc"):
            act()


def test_a_file_gone_after_it_was_opened_is_named(tmp_path):
    path = put(tmp_path, content())
    volume = read_volume(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"volume\.mrc"):
        list(volume.slabs())


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux does")
def test_no_file_is_kept_open_before_its_voxels_are_asked_for(tmp_path):
    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = n_open()
    volumes = [read_volume(put(tmp_path, content(), f"{n}.mrc")) for n in range(20)]
    for volume in volumes:
        gathered(volume, 1)
    assert n_open() < before + 5


def test_reading_a_packed_file_holds_sections_and_not_the_volume(tmp_path):
    shape = (64, 256, 256)
    path = put(tmp_path, gzipped(header(shape) + bytes(1 << 24)), "volume.mrc.gz")
    tracemalloc.start()
    for _ in read_volume(path).slabs(1 << 16):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


# Writing


def assert_valid(path):
    report = io.StringIO()
    assert mrcfile.validate(path, print_file=report), report.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (7, 3, 5), (2, 1, 9)])
def test_a_written_volume_is_valid_and_reads_back_the_same(tmp_path, shape, dtype):
    data = values("f4", shape)
    path = write_volume(tmp_path / "out.mrc", data, voxel_size=(3.0, 2.0, 1.5), dtype=dtype)
    assert_valid(path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, data.astype(dtype), strict=True)
    assert volume.voxel_size == (3.0, 2.0, 1.5)
    assert volume.header.ispg == 1
    copy = write_volume(tmp_path / "copy.mrc", volume.data, voxel_size=(3.0, 2.0, 1.5), dtype=dtype)
    assert copy.read_bytes() == path.read_bytes()


def test_statistics_are_those_of_the_voxels_over_many_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr("equitomo.io.mrc_write.SLAB_BYTES", 150)
    data = np.random.default_rng(0).normal(1e4, 1.0, (9, 5, 6)).astype("f4")
    record = read_volume(write_volume(tmp_path / "out.mrc", data, voxel_size=1)).header.record
    exact = data.astype("f8")
    found = [float(record[name]) for name in ("dmin", "dmax", "dmean", "rms")]
    np.testing.assert_allclose(found, [exact.min(), exact.max(), exact.mean(), exact.std()], rtol=1e-6)


def test_statistics_are_marked_unknown_if_there_are_nans(tmp_path):
    data = values("f4")
    data[1, 2, 3] = np.nan
    volume = read_volume(write_volume(tmp_path / "out.mrc", data, voxel_size=1))
    assert volume.header.record["dmin"] > volume.header.record["dmax"]
    assert volume.header.record["rms"] < 0
    np.testing.assert_array_equal(volume.data, data)


def test_half_floats_of_real_size_are_valid_and_do_not_state_their_deviation(tmp_path):
    """In half floats, as validation computes it, the sum of their squares is infinite."""
    data = np.random.default_rng(0).normal(0, 1, (64, 64, 64)).astype("f4")
    path = write_volume(tmp_path / "out.mrc", data, voxel_size=1, dtype="float16")
    assert_valid(path)
    record = read_volume(path).header.record
    assert record["rms"] == -1
    stored = data.astype("f2")
    assert (record["dmin"], record["dmax"]) == (stored.min(), stored.max())
    np.testing.assert_allclose(record["dmean"], stored.mean(dtype="f8"), rtol=1e-5)


@pytest.mark.parametrize("order", "<>")
def test_the_rest_of_the_header_is_kept(tmp_path, order):
    extra = imod_flags(4, order)
    fields = {"nxstart": 7, "nystart": -8, "nzstart": 9, "origin": (1.5, -2.5, 3.5), "extra2": extra}
    fields |= {"mx": 60, "my": 50, "mz": 40, "cella": (90.0, 100.0, 120.0), "cellb": (90, 90, 90)}
    raw = header(order=order, nsymbt=12, exttyp=b"SERI", **fields) + b"\x00\x01 anything" + bytes(1)
    before = read_volume(put(tmp_path, raw + values("f4").astype(order + "f4").tobytes()))
    path = write_volume(tmp_path / "out.mrc", before.data * 2, like=before, label="doubled")
    assert_valid(path)
    after = read_volume(path)
    np.testing.assert_array_equal(after.data, values("f4") * 2)
    assert after.voxel_size == before.voxel_size == (3.0, 2.0, 1.5)
    assert after.header.start == (9, -8, 7)
    assert after.header.origin == (3.5, -2.5, 1.5)
    assert after.header.extended == before.header.extended
    assert after.header.exttyp == "SERI"
    assert after.header.byte_order == order
    assert after.header.labels == ("made by a test", "doubled")
    for name in ("mx", "my", "mz", "cella", "cellb", "extra2"):
        assert after.header.record[name] == before.header.record[name]


def test_another_shape_keeps_the_voxel_size(tmp_path):
    before = read_volume(put(tmp_path, content()))
    after = read_volume(write_volume(tmp_path / "out.mrc", np.zeros((8, 9, 10)), like=before))
    assert after.voxel_size == before.voxel_size
    assert int(after.header.record["mx"]) == 10


def test_the_extended_header_may_be_left_out(tmp_path):
    raw = header(nsymbt=8, exttyp=b"SERI") + b"whatever" + values("f4").tobytes()
    before = read_volume(put(tmp_path, raw))
    bare = replace(before, header=replace(before.header, extended=b""))
    path = write_volume(tmp_path / "out.mrc", before.data, like=bare)
    assert_valid(path)
    np.testing.assert_array_equal(read_volume(path).data, before.data)


@pytest.mark.parametrize(
    ("extended", "declared", "written"),
    [
        (b"X,Y,Z".ljust(80), b"", "CCP4"),
        (b"\x00\xff" * 40, b"", "MRCO"),
        (b"\x00\xff" * 40, b"    ", "MRCO"),
        (b"\x00\xff" * 40, b"AGAR", "AGAR"),
    ],
    ids=["text", "numbers", "blanks", "declared"],
)
def test_an_extended_header_is_kept_byte_for_byte_and_its_kind_declared(tmp_path, extended, declared, written):
    raw = header(nsymbt=80, exttyp=declared) + extended + values("f4").tobytes()
    before = read_volume(put(tmp_path, raw))
    path = write_volume(tmp_path / "out.mrc", before.data, like=before)
    assert_valid(path)
    after = read_volume(path).header
    assert (after.extended, after.exttyp) == (extended, written)


def test_unset_cell_angles_become_right_angles(tmp_path):
    before = read_volume(put(tmp_path, content(cellb=(0, 0, 0))))
    after = read_volume(write_volume(tmp_path / "out.mrc", before.data, like=before))
    assert after.header.record["cellb"].item() == (90, 90, 90)


def test_a_given_voxel_size_goes_before_the_one_of_like(tmp_path):
    before = read_volume(put(tmp_path, content()))
    path = write_volume(tmp_path / "out.mrc", before.data, like=before, voxel_size=4)
    assert read_volume(path).voxel_size == (4.0, 4.0, 4.0)


@pytest.mark.fault(18)
def test_a_stack_of_images_is_written_as_a_volume(tmp_path):
    with pytest.warns(FileFormatWarning, match="stack of 4 images"):
        before = read_volume(put(tmp_path, content(ispg=0, mz=1, cella=(60.0, 50.0, 40.0))))
    after = read_volume(write_volume(tmp_path / "out.mrc", before.data, like=before))
    assert (after.header.ispg, int(after.header.record["mz"])) == (1, 4)
    assert after.voxel_size == (10.0, 10.0, 10.0)


def test_the_label_replaces_the_last_of_ten(tmp_path):
    labels = [f"label {i}".encode() for i in range(10)]
    before = read_volume(put(tmp_path, content(nlabl=10, label=labels)))
    path = write_volume(tmp_path / "out.mrc", before.data, like=before, label="mine")
    assert_valid(path)
    assert read_volume(path).header.labels == (*(f"label {i}" for i in range(9)), "mine")


@pytest.mark.parametrize("label", ["", "x" * 81, "two\nlines", "ångström"])
def test_a_label_that_does_not_fit_is_refused(tmp_path, label):
    with pytest.raises(ValueError, match="`label` must be 1 to 80 printable ASCII characters"):
        write_volume(tmp_path / "out.mrc", values("f4"), label=label)
    assert_only(tmp_path)


@pytest.mark.fault(72)
@pytest.mark.parametrize(
    "data",
    [
        values("f4")[::-1, :, ::-2],
        values("f8").transpose(2, 0, 1),
        values(">f4"),
        values("i2"),
        np.ones(SHAPE, bool),
    ],
)
def test_any_real_array_can_be_written(tmp_path, data):
    path = write_volume(tmp_path / "out.mrc", data, voxel_size=1)
    np.testing.assert_array_equal(read_volume(path).data, data.astype("f4"))


@pytest.mark.fault(53, 54, 55)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": np.zeros((5, 6))}, ValueError, r"`data` must have three axes \(z, y, x\)"),
        ({"data": np.zeros((0, 5, 6))}, ValueError, r"none empty, got shape \(0, 5, 6\)"),
        ({"data": np.zeros(SHAPE, complex)}, TypeError, r"real numbers, got complex128"),
        ({"dtype": "int8"}, ValueError, r'`dtype` must be "float32" or "float16"'),
        ({"voxel_size": (1.0, 2.0)}, ValueError, r"`voxel_size` must be one number or \(z, y, x\)"),
        ({"voxel_size": -1}, ValueError, r"not negative, got -1"),
        ({"voxel_size": float("nan")}, ValueError, r"`voxel_size` must be"),
        ({"data": np.full(SHAPE, 7e4), "dtype": "float16"}, ValueError, r"reaches 70000.*pass `dtype='float32'`"),
        ({"data": np.full(SHAPE, -1e39)}, ValueError, r"reaches 1e\+39, more than float32 can hold"),
        ({"path": "out.mrc.gz"}, ValueError, r"packed files are not written; choose a name without \.gz"),
        ({"path": "no\0name.mrc"}, ValueError, r"must not be empty or contain NUL characters"),
        ({"path": "missing/out.mrc"}, FileNotFoundError, r"Give one that exists and is writable"),
        ({"path": "file/out.mrc"}, NotADirectoryError, r"cannot write in the folder"),
        ({"path": "loop/out.mrc"}, OSError, r"cannot write in the folder.*symbolic links"),
        ({"path": "folder"}, IsADirectoryError, r"the name is taken by a folder"),
        ({"path": "file"}, FileExistsError, r"pass `overwrite=True` to replace it.*file"),
        ({"path": "loop"}, FileExistsError, r"exists already"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, arguments, error, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    arguments = {"path": "out.mrc", "data": values("f4")} | arguments
    with pytest.raises(error, match=message):
        write_volume(tmp_path / arguments.pop("path"), **arguments)
    assert_only(tmp_path, "file", "folder", "loop")
    assert (tmp_path / "file").read_text() == "precious"


def test_infinities_that_were_there_before_may_be_written_as_float16(tmp_path):
    data = values("f4")
    data[0, 0, 0] = np.inf
    path = write_volume(tmp_path / "out.mrc", data, voxel_size=1, dtype="float16")
    assert np.isinf(read_volume(path).data[0, 0, 0])


@pytest.mark.fault(54)
def test_an_existing_target_is_noticed_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "out.mrc").symlink_to("nowhere")
    monkeypatch.setattr(os, "open", pytest.fail)
    with pytest.raises(FileExistsError, match="exists already"):
        write_volume(tmp_path / "out.mrc", values("f4"))


@pytest.mark.fault(55)
def test_a_folder_without_permission_says_so(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError, match=r"cannot write in the folder.*Permission denied.*out\.mrc"):
        write_volume(tmp_path / "out.mrc", values("f4"))


@pytest.mark.fault(57)
def test_a_full_disk_is_noticed_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 0, 1000))
    with pytest.raises(OSError, match="the disk has 1000 bytes left, the file needs 1504"):
        write_volume(tmp_path / "out.mrc", values("f4"))
    assert_only(tmp_path)


@pytest.mark.fault(57, 59)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_partial(tmp_path, monkeypatch, overwrite, error):
    if overwrite:
        put(tmp_path, b"precious", "out.mrc")

    def fail(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        write_volume(tmp_path / "out.mrc", values("f4"), overwrite=overwrite)
    assert_only(tmp_path, *(["out.mrc"] if overwrite else []))
    assert not overwrite or (tmp_path / "out.mrc").read_bytes() == b"precious"


@pytest.mark.fault(54)
@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, has_links):
    sync, link = os.fsync, os.link

    def another_program_is_quicker(descriptor):
        (tmp_path / "out.mrc").write_text("precious")
        sync(descriptor)

    def no_links(*args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "fsync", another_program_is_quicker)
    monkeypatch.setattr(os, "link", link if has_links else no_links)
    with pytest.raises(FileExistsError, match="exists already"):
        write_volume(tmp_path / "out.mrc", values("f4"))
    assert_only(tmp_path, "out.mrc")
    assert (tmp_path / "out.mrc").read_text() == "precious"


def test_a_file_system_without_links_is_written_all_the_same(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    path = write_volume(tmp_path / "out.mrc", values("f4"), voxel_size=1)
    assert_valid(path)
    assert_only(tmp_path, "out.mrc")


@pytest.mark.fault(56)
def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path, monkeypatch):
    victim = put(tmp_path, b"precious", "victim")
    (tmp_path / "out.mrc.00.partial").symlink_to(victim)
    monkeypatch.setattr("secrets.token_hex", lambda n: "00")
    with pytest.raises(FileExistsError, match="cannot write"):
        write_volume(tmp_path / "out.mrc", values("f4"))
    assert victim.read_bytes() == b"precious"
    assert_only(tmp_path, "victim", "out.mrc.00.partial")


@pytest.mark.fault(56)
def test_overwriting_a_link_replaces_the_link_not_what_it_points_to(tmp_path):
    victim = put(tmp_path, b"precious", "victim")
    (tmp_path / "out.mrc").symlink_to(victim)
    write_volume(tmp_path / "out.mrc", values("f4"), overwrite=True)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "out.mrc").is_symlink()


def test_a_volume_can_be_written_over_the_file_it_is_mapped_from(tmp_path):
    before = read_volume(put(tmp_path, content()))
    write_volume(before.path, before.data, like=before, overwrite=True)
    np.testing.assert_array_equal(read_volume(before.path).data, values("f4"))


# Real files


@pytest.mark.fault(2, 6)
@real_data
def test_a_real_old_header_is_read_as_unsigned_bytes():
    with pytest.warns(FileFormatWarning, match=r"old header|unsigned bytes") as caught:
        volume = read_volume(DATA / "files" / "old_style_header.mrc")
    assert len(caught) == 2
    assert (volume.data.shape, volume.data.dtype) == ((78, 64, 32), np.uint8)
    assert (volume.data.min(), volume.data.max()) == (141, 163)
    np.testing.assert_allclose(volume.voxel_size, 23.2, rtol=1e-5)


@real_data
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
@pytest.mark.parametrize("packed", [".gz", ".bz2"])
def test_a_real_old_header_is_read_from_a_packed_file(tmp_path, packed):
    plain = DATA / "files" / "old_style_header.mrc"
    volume = read_volume(put(tmp_path, PACK[packed](plain.read_bytes()), "volume.mrc" + packed))
    np.testing.assert_array_equal(volume.data, read_volume(plain).data, strict=True)


@real_data
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
@pytest.mark.parametrize("name", ["files/old_style_header.mrc", "files/EMD-3001.map", "cryo_tiny_mid/even.mrc"])
def test_a_real_file_is_kept_through_a_round_trip(tmp_path, name):
    before = read_volume(DATA / name)
    path = write_volume(tmp_path / "out.mrc", np.asarray(before.data, np.float32), like=before)
    assert_valid(path)
    after = read_volume(path)
    np.testing.assert_array_equal(after.data, before.data)
    assert after.voxel_size == before.voxel_size
    assert after.header.start == before.header.start
    assert after.header.origin == before.header.origin
    assert after.header.extended == before.header.extended


@real_data
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
def test_the_oblong_cell_of_a_real_map_is_read_along_z_y_x():
    volume = read_volume(DATA / "files" / "EMD-3001.map")
    assert volume.data.shape == (73, 25, 43)
    assert volume.header.start == (0, -12, -21)
    np.testing.assert_allclose(volume.voxel_size, (33.03 / 72, 4.71 / 12, 17.93 / 40), rtol=1e-6)
    with mrcfile.open(DATA / "files" / "EMD-3001.map") as file:
        np.testing.assert_array_equal(volume.data, file.data.transpose(2, 0, 1))
