"""Tables of tomograms: what their lines say, and what is refused."""

import re
from pathlib import Path

import pytest

from equitomo.io import FileFormatError, FileFormatWarning, TableRow, read_table

RELION = """
# version 50001

data_global

loop_
_rlnTomoName #1
_rlnVoltage #2
_rlnTomoTiltSeriesStarFile #3
_rlnTomoReconstructedTomogramHalf1 #4
_rlnTomoReconstructedTomogramHalf2 #5
TS_01  300.0  tilt_series/TS_01.star  a_half1.mrc  a_half2.mrc
TS_02  300.0  tilt_series/TS_02.star  b_half1.mrc  b_half2.mrc
"""
ISONET = """
data_
loop_
_rlnIndex #1
_rlnTomoReconstructedTomogramHalf1 #2
_rlnTomoReconstructedTomogramHalf2 #3
_rlnMaskName #4
_rlnTiltMin #5
_rlnTiltMax #6
1 even/a.mrc odd/a.mrc masks/a.mrc -60 54
2 even/b.mrc odd/b.mrc None -51 51
"""


def put(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "comma"), [("table.csv", ","), ("TABLE.CSV", ", "), ("table.tsv", "\t")])
def test_each_line_is_a_tomogram_with_paths_beside_the_table(tmp_path, name, comma):
    lines = [
        "# two tomograms",
        comma.join(["first", "second", "tilts", "mask", "tilt_axis"]),
        comma.join(["a/even.mrc", "a/odd.mrc", '"-60,54.5"', "auto", ""]),
        "",
        comma.join(["/data/even.mrc", "b odd.mrc", "b.tlt", "b_mask.mrc", "x"]),
    ]
    assert read_table(put(tmp_path, "\n".join(lines) + "\n", name)) == [
        TableRow(3, tmp_path / "a/even.mrc", tmp_path / "a/odd.mrc", "-60,54.5", None, "auto"),
        TableRow(5, Path("/data/even.mrc"), tmp_path / "b odd.mrc", f"{tmp_path}/b.tlt", "x", f"{tmp_path}/b_mask.mrc"),
    ]


def test_columns_may_be_left_out(tmp_path):
    (row,) = read_table(put(tmp_path, "second,first\no.mrc,e.mrc\n"))
    assert row == TableRow(2, tmp_path / "e.mrc", tmp_path / "o.mrc", None, None, None)


def put_all(folder, *names):
    """Files of these names, with the folders they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a file")


def test_the_table_of_relion_is_read(tmp_path):
    put_all(tmp_path, *re.findall(r"\S+\.(?:mrc|star)", RELION))
    first, second = read_table(put(tmp_path, RELION, "tomograms.star"))
    half, other = tmp_path / "a_half1.mrc", tmp_path / "a_half2.mrc"
    assert first == TableRow(12, half, other, f"{tmp_path}/tilt_series/TS_01.star", None, None)
    assert (second.line, second.first) == (13, tmp_path / "b_half1.mrc")


def test_the_table_of_isonet_is_read(tmp_path):
    put_all(tmp_path, *re.findall(r"\S+\.mrc", ISONET))
    first, second = read_table(put(tmp_path, ISONET, "tomograms.star"))
    assert (first.tilts, first.mask) == ("-60,54", f"{tmp_path}/masks/a.mrc")
    assert (second.tilts, second.mask) == ("-51,51", None)


# As RELION 5 leaves it: all paths are relative to the folder of the project.
JOB = """
data_global

loop_
_rlnTomoName #1
_rlnTomoTiltSeriesStarFile #2
_rlnTomoReconstructedTomogramHalf1 #3
_rlnTomoReconstructedTomogramHalf2 #4
_rlnMaskName #5
TS_01 Tomograms/job010/tilt_series/TS_01.star Tomograms/job010/tomograms/rec_TS_01_half1.mrc \\
Tomograms/job010/tomograms/rec_TS_01_half2.mrc masks/TS_01.zarr
""".replace("\\\n", "")
JOB_FILES = ["tilt_series/TS_01.star", "tomograms/rec_TS_01_half1.mrc", "tomograms/rec_TS_01_half2.mrc"]


@pytest.fixture
def project(tmp_path):
    """The folder of a project of RELION, with one reconstruction in it and a mask, which is a folder."""
    folder = tmp_path / "project"
    job = folder / "Tomograms" / "job010"
    put_all(job, *JOB_FILES)
    put_all(folder, "masks/TS_01.zarr/.zattrs")
    put(job, JOB, "tomograms.star")
    return folder


def assert_in(project, row):
    job = project / "Tomograms" / "job010"
    tilts, first, second = (job / name for name in JOB_FILES)
    assert row == TableRow(10, first, second, str(tilts), None, str(project / "masks" / "TS_01.zarr"))


def test_a_star_table_is_read_where_relion_left_it(project):
    (row,) = read_table(project / "Tomograms" / "job010" / "tomograms.star")
    assert_in(project, row)


@pytest.mark.parametrize(("here", "given"), [("Tomograms/job010", ""), ("masks", "../Tomograms/job010/")])
def test_a_star_table_may_be_named_from_anywhere(project, monkeypatch, here, given):
    monkeypatch.chdir(project / here)
    (row,) = read_table(f"{given}tomograms.star")
    assert_in(project, row)


def test_a_star_table_is_read_in_a_folder_that_is_a_link_to_another_disk(project, tmp_path):
    (project / "Tomograms").rename(tmp_path / "large_disk")
    (project / "Tomograms").symlink_to(tmp_path / "large_disk")
    (row,) = read_table(project / "Tomograms" / "job010" / "tomograms.star")
    assert_in(project, row)


def test_files_beside_a_star_table_go_before_those_of_a_folder_above(project):
    job = project / "Tomograms" / "job010"
    (job / "Tomograms").symlink_to(project / "Tomograms")
    put_all(job, "masks/TS_01.zarr/.zattrs")
    (row,) = read_table(job / "tomograms.star")
    assert (row.first, row.mask) == (job / "Tomograms/job010" / JOB_FILES[1], str(job / "masks/TS_01.zarr"))


def test_the_nearest_folder_above_a_star_table_counts(project, tmp_path):
    put_all(tmp_path, "masks/TS_01.zarr/.zattrs")
    (row,) = read_table(project / "Tomograms" / "job010" / "tomograms.star")
    assert_in(project, row)


def test_a_file_that_is_nowhere_is_warned_of_with_where_it_was_looked_for(project):
    job = project / "Tomograms" / "job010"
    (job / JOB_FILES[2]).unlink()
    message = (
        rf"tomograms\.star: line 10: Tomograms/job010/{JOB_FILES[2]} is neither in {job} nor in a folder above it; "
        "leave the table where it was written, or correct its paths"
    )
    with pytest.warns(FileFormatWarning, match=message):
        (row,) = read_table(job / "tomograms.star")
    assert row.second == job / "Tomograms/job010" / JOB_FILES[2]


def test_a_file_of_a_star_table_with_its_full_name_is_looked_for_nowhere_else(project):
    text = JOB.replace("masks/TS_01.zarr", "/nowhere/mask.mrc")
    (row,) = read_table(put(project / "Tomograms" / "job010", text, "tomograms.star"))
    assert row.mask == "/nowhere/mask.mrc"


def test_paths_of_other_tables_are_beside_the_table_alone(project):
    (row,) = read_table(put(project / "Tomograms", "first,second,mask\na.mrc,b.mrc,masks/TS_01.zarr\n"))
    assert row.mask == str(project / "Tomograms" / "masks/TS_01.zarr")


SINGLE = """
data_global
loop_
_rlnTomoName #1
_rlnTomoReconstructedTomogram #2
TS_01 a.mrc
TS_02 b.mrc
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "first,tilts\na.mrc,\nb.mrc,\n"),
        ("t.csv", "first,second\na.mrc,\nb.mrc,none\n"),
        ("t.star", SINGLE),
        ("t.star", SINGLE.replace("Tomogram #2", "TomogramHalf1 #2")),
        ("t.star", SINGLE.replace("#2", "#2\n_rlnTomoReconstructedTomogramHalf2 #3").replace(".mrc", ".mrc None")),
    ],
)
def test_volumes_need_no_second_half_where_none_is_needed(tmp_path, name, text):
    put_all(tmp_path, "a.mrc", "b.mrc")
    path = put(tmp_path, text, name)
    rows = read_table(path, need_second=False)
    assert [(row.first, row.second) for row in rows] == [(tmp_path / "a.mrc", None), (tmp_path / "b.mrc", None)]
    with pytest.raises(FileFormatError):
        read_table(path)


def test_a_table_may_hold_halves_and_volumes(tmp_path):
    path = put(tmp_path, "first,second\na,b\nc,\n")
    assert [row.second for row in read_table(path, need_second=False)] == [tmp_path / "b", None]


def test_halves_are_taken_before_the_tomogram_made_of_them(tmp_path):
    put_all(tmp_path, *(f"{name}_half{k}.mrc" for name in "ab" for k in (1, 2)))
    put_all(tmp_path, *(f"tilt_series/TS_0{k}.star" for k in (1, 2)))
    both = RELION.replace("data_global", f"{SINGLE}\ndata_global")
    both = both.replace("#5", "#5\n_rlnTomoReconstructedTomogram #6").replace("_half2.mrc", "_half2.mrc all.mrc")
    rows = read_table(put(tmp_path, both, "tomograms.star"), need_second=False)
    assert [row.second for row in rows] == [tmp_path / "a_half2.mrc", tmp_path / "b_half2.mrc"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "second\na\n",
            "line 1: the column 'first' is missing; .*with the column first, and optionally second, t",
        ),
        ("t.csv", "first,second\n,a\n", "line 2: no first half; give its file"),
        ("t.csv", "first,second\na,\nb,a\n", r"line 3: .*/a is named in line 2 already"),
        ("t.csv", "first\na\na\n", r"line 3: .*/a is named in line 2 already"),
        (
            "t.star",
            SINGLE.replace("rlnTomoReconstructedTomogram", "rlnTomoFrames"),
            "no table with the column _rlnTomoRecon",
        ),
    ],
)
def test_a_first_volume_is_always_needed(tmp_path, name, text, message):
    path = put(tmp_path, text, name)
    with pytest.raises(FileFormatError, match=message):
        read_table(path, need_second=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("# nothing\n\n,,\n", "names no tomogram"),
        ("first,second\n", "names no tomogram"),
        (
            "first,mask\na,b\n",
            "line 1: the column 'second' is missing; .* columns first and second, and optionally tilts, ",
        ),
        ("a.mrc,b.mrc\n", "line 1: there is no column 'a.mrc'; expected a table"),
        ("first,second,masks\n", "line 1: there is no column 'masks'"),
        ("first,second,first\n", "line 1: a column is named twice"),
        ("first,second,tilts\na,b,-60,60\n", "line 2 has 4 values, the head names 3 columns.*quotes"),
        pytest.param("first,second\n\na\n", "line 3 has 1 values", marks=pytest.mark.fault(27)),
        pytest.param("first,second\na,\n", "line 2: no second half", marks=pytest.mark.fault(27)),
        ("first,second,tilt_axis\na,b,z\n", "line 2: tilt_axis must be y or x, got 'z'"),
        ("first,second\na,b\nc,d\ne,a\n", r"line 4: .*/a is named in line 2 already"),
        ("first,second\na,a\n", r"line 2: .*/a is named in line 2 already"),
        ("first\0second", "not a text file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path, text, message):
    path = put(tmp_path, text)
    with pytest.raises(FileFormatError, match=f"{re.escape(str(path))}: .*{message}"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RELION.replace("Half2", "Half3"), "no table with the columns _rlnTomoReconstructedTomogramHalf1 and"),
        (RELION.replace("a_half2.mrc", ""), "line 12 has 4 values, the table has 5 columns"),
    ],
)
def test_a_star_file_without_halves_is_refused(tmp_path, text, message):
    with pytest.raises(FileFormatError, match=message):
        read_table(put(tmp_path, text, "tomograms.star"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"the extension '\.xlsx' is not that of a table; expected.*\.csv"):
        read_table(put(tmp_path, "", "table.xlsx"))


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.csv"):
        read_table(tmp_path / "table.csv")
