"""Tables of tomograms: what their lines say, and what is refused."""

import re
from pathlib import Path

import pytest

from equitomo.io import FileFormatError, TableRow, read_table

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


def test_the_table_of_relion_is_read(tmp_path):
    first, second = read_table(put(tmp_path, RELION, "tomograms.star"))
    half, other = tmp_path / "a_half1.mrc", tmp_path / "a_half2.mrc"
    assert first == TableRow(12, half, other, f"{tmp_path}/tilt_series/TS_01.star", None, None)
    assert (second.line, second.first) == (13, tmp_path / "b_half1.mrc")


def test_the_table_of_isonet_is_read(tmp_path):
    first, second = read_table(put(tmp_path, ISONET, "tomograms.star"))
    assert (first.tilts, first.mask) == ("-60,54", f"{tmp_path}/masks/a.mrc")
    assert (second.tilts, second.mask) == ("-51,51", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("# nothing\n\n,,\n", "names no tomogram"),
        ("first,second\n", "names no tomogram"),
        ("first,mask\na,b\n", "line 1: the column 'second' is missing"),
        ("a.mrc,b.mrc\n", "line 1: there is no column 'a.mrc'; expected is a table"),
        ("first,second,masks\n", "line 1: there is no column 'masks'"),
        ("first,second,first\n", "line 1: a column is named twice"),
        ("first,second,tilts\na,b,-60,60\n", "line 2 has 4 values, the head names 3 columns.*quotes"),
        ("first,second\n\na\n", "line 3 has 1 values"),
        ("first,second\na,\n", "line 2: no second half"),
        ("first,second,tilt_axis\na,b,z\n", "line 2: tilt_axis is y or x, got 'z'"),
        ("first,second\na,b\nc,d\ne,a\n", r"line 4: .*/a stands in line 2 already"),
        ("first,second\na,a\n", r"line 2: .*/a stands in line 2 already"),
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
    with pytest.raises(FileFormatError, match=r"the extension '\.xlsx' does not tell a table; expected.*\.csv"):
        read_table(put(tmp_path, "", "table.xlsx"))


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"table\.csv"):
        read_table(tmp_path / "table.csv")
