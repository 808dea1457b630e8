"""Tilt angles: what each format gives, and what is refused instead of guessed."""

import os
import warnings

import pytest
from faults import numbered
from hypothesis import given
from hypothesis import strategies as st
from making import DATA, real_data

from equitomo.geometry import TiltGeometry
from equitomo.io import FileFormatError, FileFormatWarning, read_tilts

LIST = "# degrees\n-60\n\n -57.5  # dark?\n+.5\r\n6e1\n"

MDOC = """\
PixelSpacing = 3.42
ImageFile = TS_01.mrc
TiltAngle = 77

[T = SerialEM: Digitized on somewhere]

[ZValue = 0]
TiltAngle = 0.01
TiltAngleOffset = 5
StagePosition = -142.8 -457.4

[ZValue = 1]
StagePosition = 1 2
TiltAngle = 3.02
[ZValue = 2]
TiltAngle = -2.98
[MontSection = 0]
TiltAngle = 50
"""

ALN = """\
# AreTomo Alignment / Priims bprmMn
# RawSize = 512 512 4
# NumPatches = 1
# DarkFrame =     0    0   -55.00
# AlphaOffset =     3.00
# BetaOffset =    -1.50
# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT
    2    85.2000    1.00000      2.969     13.163     1.00     1.00     1.00     0.00    -48.99
    1    85.2000    1.00000      0.643      7.221     1.00     1.00     1.00     0.00    -51.99
    3    85.2000    1.00000      1.688     11.949     1.00     1.00     1.00     0.00     45.99
# Local Alignment
   0   0   -31.15   -12.05     2.33     1.53   1.0
"""

STAR = """\
# version 50001

data_TS_01

loop_
_rlnMicrographName #1
_rlnTomoNominalStageTiltAngle #2
_rlnTomoYTilt #3
"frames/TS 01 000.mrc"   0.001   0.51
frames/TS_01_001.mrc     3.002   3.52

frames/TS_01_002.mrc    -2.998  -2.49
"""

XF = "   0.99 -0.01 0.01 0.99  10.5  -3.25\n   0.99 -0.01 0.01 0.99  11.5  -2.25\n"


def put(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    ("name", "text", "angles"),
    [
        ("a.tlt", LIST, (-60.0, -57.5, 0.5, 60.0)),
        ("a.rawtlt", LIST, (-60.0, -57.5, 0.5, 60.0)),
        ("a.TXT", LIST, (-60.0, -57.5, 0.5, 60.0)),
        ("a.tlt", b"\xef\xbb\xbf-3\n3\n", (-3.0, 3.0)),
        ("a.mrc.mdoc", MDOC, (-2.98, 0.01, 3.02)),
        ("a.aln", ALN, (-51.99, -48.99, 45.99)),
        ("a.star", STAR, (-2.49, 0.51, 3.52)),
        ("a.star", STAR.replace("_rlnTomoYTilt", "_rlnOther"), (-2.998, 0.001, 3.002)),
    ],
)
def test_every_format_gives_its_angles_in_ascending_order(tmp_path, name, text, angles):
    found = read_tilts(put(tmp_path, name, text))
    assert found == angles
    assert TiltGeometry(found).tilt_range == (angles[0], angles[-1])


def test_dark_views_are_left_out_and_offsets_not_added_again(tmp_path):
    text = "Hello\n" + ALN.replace("=     3.00", "=     9.00")
    assert read_tilts(put(tmp_path, "a.aln", text)) == read_tilts(put(tmp_path, "b.aln", ALN))
    assert -55.0 not in read_tilts(tmp_path / "a.aln")


@pytest.mark.fault(31)
@pytest.mark.parametrize("name", ["a.xf", "b.XF"])
def test_transforms_go_with_the_list_beside_them(tmp_path, name):
    put(tmp_path, name[0] + ".tlt", "-57.5\n60\n")
    path = put(tmp_path, name, XF)
    assert read_tilts(path) == (-57.5, 60.0)
    put(tmp_path, name[0] + ".tlt", "-57.5\n0\n60\n")
    with pytest.raises(FileFormatError, match=r"\.tlt: has 3 angles, but there are 2 transforms in the .xf beside it"):
        read_tilts(path)
    put(tmp_path, name[0] + ".tlt", "-57.5\n120\n")
    with pytest.raises(FileFormatError, match=r"\.tlt: line 2: 120 is not a tilt"):
        read_tilts(path)


@pytest.mark.fault(31)
def test_an_alignment_that_was_cut_short_is_warned_of(tmp_path):
    path = put(tmp_path, "a.aln", ALN.replace("512 4", "512 5"))
    with pytest.warns(FileFormatWarning, match="lists 3 views and 1 dark ones, of 5 in the stack; was it cut short"):
        read_tilts(path)


def test_without_sorting_the_order_is_that_of_the_file(tmp_path):
    assert read_tilts(put(tmp_path, "a.aln", ALN), sort=False) == (-48.99, -51.99, 45.99)


@real_data
@pytest.mark.parametrize("name", ["cryo_tiny_mid", "cryo_dose_mid", "real_mt13pf"])
def test_the_real_lists_are_read(name):
    angles = read_tilts(DATA / name / f"{name}.tlt", n_expected=41)
    assert (len(angles), angles[0], angles[-1]) == (41, -60.0, 60.0)


SERIES = STAR + STAR.replace("data_TS_01", "data_TS_02").replace("-2.49", "-20")
NAMED = "data_tilts\nloop_\n_rlnTomoName #1\n_rlnTomoYTilt #2\nA -1\nA 5\nB -40\nB 40\n"


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("text", "name", "low"), [(SERIES, "TS_01", -2.49), (SERIES, "TS_02", -20.0), (NAMED, "B", -40.0)]
)
def test_a_star_file_of_several_series_needs_a_name(tmp_path, text, name, low):
    path = put(tmp_path, "a.star", text)
    with pytest.raises(FileFormatError, match=r"holds 2 tilt series; choose one with `name`: (TS_01, TS_02|A, B)"):
        read_tilts(path)
    with pytest.raises(FileFormatError, match=r"no tilt series 'C'; `name` must be one of"):
        read_tilts(path, name="C")
    assert read_tilts(path, name=name)[0] == low


GLOBAL = "data_global\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesStarFile #2\nTS_01 tilt_series/TS_01.star\n"

# Fault number of docs/faults.md, name, content, what the message says.
REFUSED = [
    (30, "a.tlt", "", "the tilt file is empty"),
    (30, "a.tlt", " \n\n", "the tilt file is empty"),
    (30, "a.tlt", "# nothing\n", r"0 different tilt angle\(s\)"),
    (31, "a.tlt", "-3\nnan\n3\n", "line 2: 'nan' is not a tilt angle"),
    (31, "a.tlt", "-3\n\n3\ninf\n", "line 4: 'inf' is not a tilt angle"),
    (31, "a.tlt", "-3\n1_0\n", "line 2: '1_0'"),
    (31, "a.tlt", "-3\n2,5\n", "line 2: '2,5'"),
    (31, "a.tlt", "tilt angles\n-3\n", "line 1: 'tilt angles'"),
    (31, "a.tlt", "-3\n٣\n", "line 2: '٣'"),
    (31, "a.mdoc", "[ZValue = 0]\nTiltAngle = nan\n", "line 2: 'nan'"),
    (31, "a.aln", ALN.replace("45.99", "nan"), "line 10: 'nan'"),
    (31, "a.star", STAR.replace("3.52", "None"), "line 10: 'None'"),
    (31, "a.tlt", b"\x00\x01\x02", "not a text file"),
    (32, "a.tlt", "-3\n", r"1 different tilt angle\(s\), expected those of a tilt series"),
    (32, "a.tlt", "-3\n-3\n", r"1 different tilt angle\(s\)"),
    (32, "a.tlt", "-60\n-60.0000001\n", r"span 1e-07 degrees, expected at least 1.*radians or degrees"),
    (32, "a.tlt", "-60\n-59.01\n", r"span 0\.99 degrees, expected at least 1"),
    (
        36,
        "a.tlt",
        "-1.04\n0\n1.04\n",
        r"between -1\.04 and 1\.04, so they seem to be radians.*by 57",
    ),
    (36, "a.tlt", "-0.5\n0.5\n", "seem to be radians, expected degrees"),
    (35, "a.tlt", "-3\n91\n", r"line 2: 91 is not a tilt between -90 and 90 degrees; radians or degrees\?"),
    (35, "a.tlt", "-90\n0\n90\n", "span 180 degrees, expected less than 180; radians or degrees"),
    (
        35,
        "a.aln",
        ALN.replace("45.99", "1567301525373690323140608.00"),
        r"line 10: 1\.5673e\+24 is not a tilt",
    ),
    (31, "a.txt", "0 -60\n1 -57\n", "line 1 has 2 columns, expected one angle per line"),
    (31, "a.tlt", "-60 -57 -54\n", "line 1 has 3 columns"),
    (31, "a.txt", ALN, "line 8 has 10 columns.*must be named .aln"),
    (31, "a.txt", XF, "line 1 has 6 columns.*transforms hold no angles"),
    (31, "a.xf", XF, r"a\.xf: IMOD's transforms hold no tilt angles, and there is no a\.tlt beside them; give the"),
    (31, "a.xf", XF.replace("10.5", ""), r"a\.xf: line 1 is not one of IMOD's transforms, which are six numbers"),
    (31, "a.xf", LIST, r"a\.xf: line 1 is not one of IMOD's transforms"),
    (31, "a.prexf", XF, r"a\.prexf: IMOD's transforms hold no tilt angles; give the \.tlt file beside it"),
    (31, "a.xml", "<TiltSeries/>", "no <Angles>, so nothing is known about the tilts"),
    (31, "a.xml", "<Movie/>", "<Movie> is not the XML of a tilt series of Warp.*give the .xml of the tilt series"),
    (31, "a.xml", "<TiltSeries><Angles>1", "a.xml: damaged XML"),
    (31, "a.xml", "<TiltSeries><Angles>1\nx</Angles></TiltSeries>", "<Angles>: could not convert"),
    (31, "a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><TiltSeries/>", "declares entities"),
    (31, "a.dat", "-3\n3\n", r"extension '\.dat' is not that of .* files that can be read are lists of angles"),
    (31, "a.tomostar", STAR, "no table with the column _wrpAngleTilt"),
    (31, "a_TLT.txt", "-3 1 2 4\n3 2 2 4\n", "line 1 has 4 columns, expected 1 to 3 of AreTomo's table of tilts"),
    (31, "angles", "-3\n3\n", r"extension '' is not that of"),
    (31, "a.mdoc", "-3\n3\n", r"no \[ZValue = n\] and no \[FrameSet = 0\] sections"),
    (
        31,
        "a.mdoc",
        "[FrameSet = 0]\nTiltAngle = 3\n",
        r"frames of one tilt \(\[FrameSet = 0\]\).*give the .mdoc of the whole",
    ),
    (31, "a.mdoc", MDOC.replace("TiltAngle = 3.02", ""), r"line 12: this section has no TiltAngle"),
    (
        31,
        "a.mdoc",
        "[ZValue = 0]\nTiltAngle = 1\n[ZValue = 1]\nDose = 3\n",
        "line 3: this section has no Tilt",
    ),
    (
        31,
        "a.mdoc",
        MDOC.replace("StagePosition = 1 2", "TiltAngle = 3"),
        r"line 14: a second TiltAngle in this section",
    ),
    (31, "a.aln", XF, "no table '# SEC ... TILT'"),
    (31, "a.aln", ALN.replace(" 1.00     0.00    -51.99", "-51.99"), "line 9 has 8 columns, expected 10"),
    (31, "a.star", "-3\n3\n", "line 1: expected data_, loop_ or a label, so this is not a STAR file"),
    (31, "a.star", STAR + "frames/x.mrc 4\n", "line 13 has 2 values, the table has 3 columns"),
    (31, "a.star", STAR.replace("Tilt", "Tlt"), "no table with one of the columns _rlnTomoYTilt, _rln"),
    (31, "a.star", GLOBAL, "give the file of one series, named in its column rlnTomoTiltSeriesStarFile"),
]


@pytest.mark.parametrize(("fault", "name", "text", "message"), numbered(REFUSED))
def test_a_bad_tilt_file_is_refused_with_its_name_and_the_reason(tmp_path, fault, name, text, message):
    path = put(tmp_path, name, text)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_tilts(path)
    assert str(path) in str(caught.value)


SURPRISING = [
    (33, "0\n3\n-3\n", "not in ascending order", (-3.0, 0.0, 3.0)),
    (34, "-3\n3\n3\n5\n5\n", r"angles repeat \(3, 5\); are two series mixed", (-3.0, 3.0, 3.0, 5.0, 5.0)),
]


@pytest.mark.parametrize(("fault", "text", "message", "angles"), numbered(SURPRISING))
def test_a_surprising_tilt_file_is_read_with_a_warning(tmp_path, fault, text, message, angles):
    with pytest.warns(FileFormatWarning, match=message):
        assert read_tilts(put(tmp_path, "a.tlt", text)) == angles


@pytest.mark.fault(38)
def test_a_number_of_angles_other_than_of_images_is_warned_of(tmp_path):
    path = put(tmp_path, "a.tlt", "-3\n0\n3\n")
    assert len(read_tilts(path, n_expected=3)) == 3
    with pytest.warns(FileFormatWarning, match="has 3 angles, but the stack has 4 images"):
        read_tilts(path, n_expected=4)


@pytest.mark.fault(30)
def test_a_missing_tilt_file_a_folder_and_a_pipe_say_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; check the name and the folder.*a\.tlt"):
        read_tilts(tmp_path / "a.tlt")
    (tmp_path / "b.tlt").mkdir()
    with pytest.raises(IsADirectoryError, match="give the name of a tilt file in it"):
        read_tilts(tmp_path / "b.tlt")
    os.mkfifo(tmp_path / "c.tlt")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_tilts(tmp_path / "c.tlt")


def test_a_file_too_large_for_angles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("equitomo.io.opening.MAX_TEXT_BYTES", 100)
    with pytest.raises(FileFormatError, match="not a text file"):
        read_tilts(put(tmp_path, "a.tlt", "1\n" * 100))


SEEDS = {".tlt": LIST, ".xf": XF, ".mdoc": MDOC, ".aln": ALN, ".star": SERIES}
PIECES = st.one_of(st.text(max_size=8), st.sampled_from(["\n", "loop_", "data_", "[ZValue = 9]", "1e999", "#", '"']))


@given(st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 700), PIECES), max_size=5))
def test_any_text_is_either_read_or_refused(tmp_path, extension, changes):
    text = SEEDS[extension]
    for place, piece in changes:
        text = text[:place] + piece + text[place + 2 :]
    path = put(tmp_path, "a" + extension, text.encode("utf-8", "replace"))
    if extension == ".xf":
        put(tmp_path, "a.tlt", "-60\n60\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileFormatWarning)
        try:
            angles = read_tilts(path)
        except FileFormatError as error:
            assert str(path.with_suffix("")) in str(error)
        else:
            assert list(angles) == sorted(angles)
            TiltGeometry(angles)
