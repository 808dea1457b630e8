"""What alignment programs write about a tilt series: every value with its unit, sign and order, and what is refused."""

import json
import math
import re
import warnings
from contextlib import suppress

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import DATA, real_data

from equitomo.io import FileFormatError, FileFormatWarning, SeriesMetadata, find_series, read_series, read_tilts


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def stack(folder, name, shape=(5, 6, 8), pixel_size=3.0):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.zeros(shape, np.float32))
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size
    return path


def moved(series, point, view):
    """Where a position of a recorded image lies in the aligned one."""
    transform = series.view_transforms()[view]
    return transform[:, :2] @ point + transform[:, 2]


# AreTomo ---------------------------------------------------------------------------------------------

ALN = """\
Hello
# AreTomo Alignment / Priims bprmMn
# RawSize = 8 6 5
# NumPatches = 0
# DarkFrame =     0    {dark}   -40.01
# AlphaOffset =     3.00
# BetaOffset =     0.00
# Thickness = 250
# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT
    {a}    85.2000    1.00000      2.000     -1.000     1.00     1.00     1.00     0.00    -16.99
    {b}    85.2000    1.00000      0.000      0.000     1.00     1.00     1.00     0.00      3.00
    {c}    85.2000    1.00000      4.000      1.000     1.00     1.00     1.00     0.00     23.00
    {d}    85.2000    1.00000      5.000      2.000     1.00     1.00     1.00     0.00     43.00
"""
NUMBERINGS = {
    "0 with dark": {"dark": 0, "a": 1, "b": 2, "c": 3, "d": 4},
    "1 with dark": {"dark": 1, "a": 2, "b": 3, "c": 4, "d": 5},
    "0 without dark": {"dark": 0, "a": 0, "b": 1, "c": 2, "d": 3},
    "1 without dark": {"dark": 1, "a": 1, "b": 2, "c": 3, "d": 4},
}
TLT = "-40.01 4 3.0\n-19.99 2 3.1\n0.00 1 3.0\n20.00 3 3.0\n40.00 5 3.0\n"
CTF = """\
# Columns: #1 micrograph number; #2 - defocus 1 [A]; #3 - defocus 2; #4 - azimuth of astigmatism; #5 - additional phase
   1   31000.00  30000.00   12.00    0.50   0.1000  9.0
   2   32000.00  30100.00   12.00    0.50   0.1000  9.0
   3   33000.00  30200.00   12.00    0.50   0.1000  9.0
   4   34000.00  30300.00   12.00    0.50   0.1000  9.0
   5   35000.00  30400.00   12.00    0.50   0.1000  9.0
"""


def aretomo(folder, numbering="0 with dark", **changes):
    put(folder, "TS.aln", ALN.format(**NUMBERINGS[numbering]))
    stack(folder, "TS.mrc")
    for name, text in {"TS_TLT.txt": TLT, "TS_CTF.txt": CTF, **changes}.items():
        if text is not None:
            put(folder, name, text)
    return folder / "TS.aln"


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_the_sections_of_aretomo_are_right_however_they_are_numbered(tmp_path, numbering, with_table):
    path = aretomo(tmp_path, numbering, **{} if with_table else {"TS_TLT.txt": None})
    series = read_series(path)
    assert series.sections == (0, 1, 2, 3, 4)
    assert series.excluded == (0,)
    assert series.without_excluded().angles == (-16.99, 3.0, 23.0, 43.0)
    assert series.without_excluded().sections == (1, 2, 3, 4)


def test_aretomo_gives_the_order_dose_shifts_axis_and_defocus(tmp_path):
    series = read_series(aretomo(tmp_path))
    assert series.acquisition_order == (3, 1, 0, 2, 4)
    np.testing.assert_allclose(series.dose, (9.1, 3.0, 0.0, 6.1, 12.1))
    np.testing.assert_allclose(moved(series, (2, -1), 1), 0, atol=1e-9)  # TX, TY is the place of the centre
    assert series.tilt_axis_angle[1] == 85.2
    assert series.defocus[1] == pytest.approx((32000, 30100, 12, math.degrees(0.5)))
    assert (series.pixel_size, series.image_shape, series.program) == (3.0, (6, 8), "aretomo")
    assert (series.ctf_state, series.reconstruction_method) == ("unknown", "unknown")


def test_a_table_of_the_kept_views_alone_leaves_the_dark_ones_unknown(tmp_path):
    kept = "\n".join(line for line in CTF.splitlines() if not line.startswith("   1 "))
    series = read_series(aretomo(tmp_path, **{"TS_CTF.txt": kept}))
    assert math.isnan(series.defocus[0].u)
    assert [view.u for view in series.without_excluded().defocus] == [32000, 33000, 34000, 35000]


def test_without_its_own_table_the_one_for_imod_is_read_from_nanometres(tmp_path):
    rows = "".join(f"{n}  {n}  0.00  0.00  3000.{n}  3200.00  12.00\n" for n in range(1, 6))
    path = aretomo(tmp_path, **{"TS_CTF.txt": None, "TS_CTF_Imod.txt": "1  0  0.0  0.0  0.0  3\n" + rows})
    assert read_series(path).defocus[0] == pytest.approx((32000, 30001, 12, 0))


@pytest.mark.parametrize(("wbp", "method"), [(0, "sart"), (1, "wbp")])
@pytest.mark.parametrize(("corrected", "state"), [([0, 15], "none"), ([1, 15], "wiener"), ([2, 15], "flipped")])
def test_the_session_tells_how_the_halves_were_made(tmp_path, wbp, method, corrected, state):
    parameters = {"Wbp": wbp, "CorrCTF": corrected, "kV": 300, "Cs": 2.7, "AmpContrast": 0.07}
    path = aretomo(tmp_path, **{"AreTomo3_Session.json": json.dumps({"parameters": parameters})})
    for name in ("TS_EVN.mrc", "TS_ODD.mrc", "TS_EVN_Vol.mrc", "TS_ODD_Vol.mrc"):
        stack(tmp_path, name)
    series = read_series(path)
    assert (series.reconstruction_method, series.ctf_state) == (method, state)
    assert (series.voltage, series.spherical_aberration, series.amplitude_contrast) == (300, 2.7, 0.07)
    assert series.half_stacks == (tmp_path / "TS_EVN.mrc", tmp_path / "TS_ODD.mrc")
    assert series.half_tomograms == (tmp_path / "TS_EVN_Vol.mrc", tmp_path / "TS_ODD_Vol.mrc")


@pytest.mark.parametrize(("shape", "axes"), [((4, 3, 3), "yzx"), ((3, 4, 3), "zyx"), ((2, 4, 3), "zyx")])
def test_the_axes_of_a_tomogram_are_known_from_the_length_of_the_tilt_axis(tmp_path, shape, axes):
    """The axis lies along the rows of 8 pixels, which are binned to 4."""
    path = aretomo(tmp_path)
    for name in ("TS_EVN_Vol.mrc", "TS_ODD_Vol.mrc"):
        stack(tmp_path, name, shape, 6.0)
    assert read_series(path).half_tomogram_axes == axes


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 8, 8)])
def test_the_alignment_of_another_stack_is_refused(tmp_path, shape):
    path = aretomo(tmp_path)
    (tmp_path / "TS.mrc").unlink()
    stack(tmp_path, "TS.mrc", shape)
    with pytest.raises(FileFormatError, match=r"TS\.aln: is the alignment of 5 views of 8 x 6 pixels, but TS\.mrc has"):
        read_series(path)


def test_an_alignment_with_other_tilts_than_the_table_is_refused(tmp_path):
    path = aretomo(tmp_path, **{"TS_TLT.txt": TLT.replace("20.00 3", "25.00 3")})
    with pytest.raises(FileFormatError, match=r"the tilt of 20\.00 degrees is not among the 5 of the _TLT\.txt"):
        read_series(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CTF.replace("[A]", "[nm]"), r"TS_CTF\.txt: the head does not say that defocus 1 is in ångström"),
        (
            re.sub(r"(\d\d)(\d{3})\.00", r"\1.\2", CTF),
            r"the median defocus is 3\d\.\d+, expected 2000 to 200000 ångström",
        ),
        (CTF[: CTF.index("   3 ")], r"TS_CTF\.txt: has 2 lines, expected 5, or 4 without the dark views"),
    ],
)
def test_a_table_of_the_ctf_in_other_units_or_of_other_views_is_refused(tmp_path, text, message):
    with pytest.raises(FileFormatError, match=message):
        read_series(aretomo(tmp_path, **{"TS_CTF.txt": text}))


def test_the_table_of_tilts_alone_is_a_series_too(tmp_path):
    path = put(tmp_path, "TS_TLT.txt", TLT)
    series = read_series(path)
    assert (series.name, series.angles[0], series.acquisition_order) == ("TS", -40.01, (3, 1, 0, 2, 4))
    assert read_tilts(path) == (-40.01, -19.99, 0.0, 20.0, 40.0)


# Warp ------------------------------------------------------------------------------------------------

TOMOSTAR = """\

data_

loop_
_wrpMovieName #1
_wrpAngleTilt #2
_wrpAxisAngle #3
_wrpDose #4
../frames/TS_001.tif    40.01  -93.500  6.0
../frames/TS_002.tif   0.0  -93.500   0.0
../frames/TS_003.tif   -20.0  -93.500   3.0
"""
XML = """\
<?xml version="1.0" encoding="utf-8"?>
<TiltSeries DataDirectory="/data" AreAnglesInverted="{inverted}" LevelAngleY="1.5">
  <Angles>40.01
0
-20</Angles>
  <Dose>6
0
3</Dose>
  <UseTilt>True
True
{used}</UseTilt>
  <AxisAngle>-93.5
-93.5
-93.5</AxisAngle>
  <AxisOffsetX>30
0
9</AxisOffsetX>
  <AxisOffsetY>-6
0
3</AxisOffsetY>
  <MoviePath>../frames/TS_001.tif
../frames/TS_002.tif
../frames/TS_003.tif</MoviePath>
  <CTF><Param Name="PixelSize" Value="3" /><Param Name="Voltage" Value="300" /><Param Name="Cs" Value="2.7" />
    <Param Name="Amplitude" Value="0.07" /></CTF>
  <GridCTF Width="1" Height="1" Depth="3"><Node X="0" Y="0" Z="0" Value="3.0" /><Node X="0" Y="0" Z="1" Value="3.1" />
    <Node X="0" Y="0" Z="2" Value="3.2" /></GridCTF>
  <GridCTFDefocusDelta Width="1" Height="1" Depth="3"><Node X="0" Y="0" Z="0" Value="0.2" />
    <Node X="0" Y="0" Z="1" Value="0.2" /><Node X="0" Y="0" Z="2" Value="0.2" />
  </GridCTFDefocusDelta>
  <GridCTFPhase Width="1" Height="1" Depth="3"><Node X="0" Y="0" Z="0" Value="0.5" />
    <Node X="0" Y="0" Z="1" Value="0.5" /><Node X="0" Y="0" Z="2" Value="0.5" /></GridCTFPhase>
</TiltSeries>
"""


def warp(folder, inverted="False", used="True"):
    return put(folder, "tomostar/TS.xml", XML.format(inverted=inverted, used=used))


def test_the_tilts_of_warp_get_the_sign_of_imod(tmp_path):
    table, record = put(tmp_path, "tomostar/TS.tomostar", TOMOSTAR), warp(tmp_path)
    assert read_series(table).angles == read_series(record).angles == (-40.01, 0.0, 20.0)
    assert read_tilts(table) == read_tilts(record) == (-40.01, 0.0, 20.0)
    assert read_tilts(warp(tmp_path, used="False")) == (-40.01, 0.0)


@pytest.mark.parametrize("name", ["AreAnglesInverted", "LevelAngleY", "Z"])
def test_a_damaged_attribute_of_warp_is_named(tmp_path, name):
    path = warp(tmp_path)
    path.write_text(re.sub(f'{name}="[^"]*"', f'{name}="?"', path.read_text(), count=1))
    with pytest.raises(FileFormatError, match=f"TS.xml: {name} of <"):
        read_series(path)


def test_warp_projects_as_its_record_says(tmp_path):
    """The position of a point in an image, computed with Warp's matrices, is aligned to x cos t + z sin t."""
    series = read_series(warp(tmp_path))
    point = np.array([20.0, -7.0, 11.0])  # x, y, z in pixels from the centre
    for view, (angle, offset) in enumerate(zip((40.01, 0.0, -20.0), ((30, -6), (0, 0), (9, 3)), strict=True)):
        b, g = math.radians(angle), math.radians(93.5)  # Euler(0, tilt, -axis angle)
        tilt = np.array([[math.cos(b), 0, -math.sin(b)], [0, 1, 0], [math.sin(b), 0, math.cos(b)]])
        turn = np.array([[math.cos(g), math.sin(g), 0], [-math.sin(g), math.cos(g), 0], [0, 0, 1]])
        recorded = (turn @ tilt @ point)[:2] + np.array(offset) / 3.0 + 0.5  # from the middle of an even image
        expected = 20 * math.cos(math.radians(series.angles[view])) + 11 * math.sin(math.radians(series.angles[view]))
        np.testing.assert_allclose(moved(series, recorded, view), [expected, -7], atol=1e-9)


def test_warp_gives_dose_ctf_and_the_used_views(tmp_path):
    series = read_series(warp(tmp_path, used="False"))
    assert (series.dose, series.acquisition_order, series.excluded) == ((6, 0, 3), (2, 0, 1), (2,))
    assert series.defocus[0] == pytest.approx((31000, 29000, 0, 90))
    assert (series.voltage, series.spherical_aberration, series.amplitude_contrast) == (300, 2.7, 0.07)
    assert (series.pixel_size, series.tilt_offset, series.ctf_state) == (3.0, -1.5, "flipped")


def test_inverted_angles_change_the_side_of_the_defocus_and_not_the_tilts(tmp_path):
    straight, inverted = read_series(warp(tmp_path)), read_series(warp(tmp_path, inverted="True"))
    assert (straight.defocus_handedness, inverted.defocus_handedness) == (1, -1)
    assert straight.angles == inverted.angles


def test_warp_finds_averages_half_averages_and_the_finest_halves(tmp_path):
    path = warp(tmp_path)
    for kind in ("average", "average/even", "average/odd"):
        for n in (1, 2, 3):
            stack(tmp_path, f"frames/{kind}/TS_00{n}.mrc", (1, 6, 8))
    for half in ("even", "odd"):
        for size in ("10.00", "5.00"):
            stack(tmp_path, f"tomostar/reconstruction/{half}/TS_{size}Apx.mrc")
    series = read_series(path)
    assert [file.name for file in series.images] == ["TS_001.mrc", "TS_002.mrc", "TS_003.mrc"]
    assert series.half_images[1][2].resolve() == tmp_path / "frames/average/odd/TS_003.mrc"
    assert [file.name for file in series.half_tomograms] == ["TS_5.00Apx.mrc"] * 2


# RELION ----------------------------------------------------------------------------------------------

TOMOGRAMS = """\
data_global

loop_
_rlnTomoName #1
_rlnTomoTiltSeriesStarFile #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnTomoHand #6
_rlnTomoTiltSeriesPixelSize #7
_rlnTomoSizeZ #8
_rlnTomoReconstructedTomogramHalf1 #9
_rlnTomoReconstructedTomogramHalf2 #10
TS_01 Tomograms/job1/tilt_series/TS_01.star 300 2.7 0.1 -1 3.0 500 Tomograms/job1/rec_half1.mrc Tomograms/job1/h2.mrc
TS_02 Tomograms/job1/tilt_series/TS_02.star 300 2.7 0.1 -1 3.0 500 None None
"""
VIEWS = """\
data_{name}

loop_
_rlnMicrographName #1
_rlnMicrographNameEven #2
_rlnMicrographNameOdd #3
_rlnTomoNominalStageTiltAngle #4
_rlnMicrographPreExposure #5
_rlnTomoXTilt #6
_rlnTomoYTilt #7
_rlnTomoZRot #8
_rlnTomoXShiftAngst #9
_rlnTomoYShiftAngst #10
_rlnDefocusU #11
_rlnDefocusV #12
_rlnDefocusAngle #13
_rlnPhaseShift #14
m/a.mrc m/a_even.mrc m/a_odd.mrc -20 3.0 0.5 -21.0 85 30 -6 31000 30000 10 5
m/b.mrc m/b_even.mrc m/b_odd.mrc   0 0.0 0.5  -1.0 85  0  0 31000 30000 10 5
m/c.mrc m/c_even.mrc m/c_odd.mrc  40 6.0 0.5  39.0 85  9  3 31000 30000 10 5
"""


def relion(folder):
    for name in ("TS_01", "TS_02"):
        put(folder, f"Tomograms/job1/tilt_series/{name}.star", VIEWS.format(name=name))
    for name in ("rec_half1.mrc", "h2.mrc"):
        stack(folder, f"Tomograms/job1/{name}")
    return put(folder, "Tomograms/job1/tomograms.star", TOMOGRAMS)


def test_relion_gives_every_series_with_its_halves_and_views(tmp_path):
    first, second = find_series(relion(tmp_path))
    assert (first.name, second.name) == ("TS_01", "TS_02")
    assert first.half_tomograms == (tmp_path / "Tomograms/job1/rec_half1.mrc", tmp_path / "Tomograms/job1/h2.mrc")
    assert second.half_tomograms is None
    assert (first.angles, first.dose, first.acquisition_order) == ((-21.0, -1.0, 39.0), (3, 0, 6), (1, 0, 2))
    assert first.defocus[0] == (31000, 30000, 10, 5)
    assert (first.voltage, first.pixel_size, first.thickness, first.defocus_handedness) == (300, 3.0, 500, -1)
    assert (first.x_tilt, [file.name for file in first.half_images[0]]) == (
        (0.5,) * 3,
        ["a_even.mrc", "b_even.mrc", "c_even.mrc"],
    )
    assert read_series(tmp_path / "Tomograms/job1/tomograms.star", name="TS_02").name == "TS_02"
    assert [series.name for series in find_series(tmp_path / "Tomograms/job1", program="relion")] == ["TS_01", "TS_02"]


def test_relion_projects_as_its_table_says(tmp_path):
    """The position of a point in an image by RELION's matrices, without the tilt about x, is x cos t + z sin t."""
    series = find_series(relion(tmp_path))[0]
    t, turn = math.radians(-21), math.radians(85)
    across = 20 * math.cos(t) + 11 * math.sin(t)
    recorded = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ [across, -7]
    np.testing.assert_allclose(moved(series, recorded + np.array([10.5, -1.5]), 0), [across, -7], atol=1e-9)


def test_a_table_of_views_is_read_alone_and_a_missing_one_is_named(tmp_path):
    table = relion(tmp_path)
    views = tmp_path / "Tomograms/job1/tilt_series/TS_02.star"
    series = read_series(views)
    assert (series.name, series.pixel_size, series.shifts) == ("TS_02", None, None)
    views.unlink()
    with pytest.raises(FileFormatError, match=r"tomograms\.star: line 15: .*TS_02\.star is neither in the folder"):
        find_series(table)


def test_micrographs_of_a_stack_are_its_sections(tmp_path):
    text = VIEWS.format(name="TS")
    for n, name in enumerate("abc", 1):
        text = text.replace(f"m/{name}.mrc", f"{4 - n}@m/TS.mrcs")
    stack(tmp_path, "m/TS.mrcs")
    series = read_series(put(tmp_path, "TS.star", text))
    assert (series.stack, series.sections, series.image_shape) == (tmp_path / "m/TS.mrcs", (2, 1, 0), (6, 8))


# IMOD ------------------------------------------------------------------------------------------------

TILT_COM = """\
# Command file to run Tilt
$tilt -StandardInput
InputProjections TS.ali
OutputFile TS_full.rec
IMAGEBINNED 1
FULLIMAGE 8 6
OFFSET 2.5 1.5
SHIFT 4.0 -28.9
THICKNESS 154
TILTFILE TS.tlt
XAXISTILT 1.0
XTILTFILE TS.xtilt
EXCLUDELIST 1
EXCLUDELIST2 4-5
$if (-e ./savework) ./savework
"""
NEWST_COM = "$newstack -StandardInput\nInputFile\tTS.st\nOutputFile\tTS.ali\nTransformFile\tTS.xf\n"
XF = "   0.087 0.996 -0.996 0.087  1.5  -2.5\n" * 5


def imod(folder, n=5, **changes):
    files = {
        "tilt.com": TILT_COM,
        "newst.com": NEWST_COM,
        "TS.tlt": "-40\n-20\n0\n20\n40\n",
        "TS.xf": XF,
        "TS.xtilt": "0.1\n0.2\n0.3\n0.4\n0.5\n",
        "TS.defocus": "1 0 0. 0. 0 3\n" + "".join(f"{k} {k} 0 0 300{k}.0 2900.0 45.0\n" for k in range(1, 6)),
    }
    for name, text in (files | changes).items():
        if text is not None:
            put(folder, name, text)
    stack(folder, "TS.st", (n, 6, 8))
    return folder


@pytest.mark.parametrize("name", ["", "tilt.com", "TS.tlt", "TS.xf", "TS.st"])
def test_imod_gives_the_same_from_its_folder_and_from_each_of_its_files(tmp_path, name):
    series = read_series(imod(tmp_path) / name)
    assert (series.name, series.angles, series.excluded) == ("TS", (-40, -20, 0, 20, 40), (0, 3, 4))
    assert series.transforms[2] == (0.087, 0.996, -0.996, 0.087, 1.5, -2.5)
    assert series.x_tilt == pytest.approx((1.1, 1.2, 1.3, 1.4, 1.5))
    assert (series.tilt_offset, series.tilt_axis_offset) == (2.5, 1.5)
    assert (series.thickness, series.volume_shift) == (154, (4.0, -28.9))
    assert series.defocus[2] == (30030, 29000, 45, 0)
    assert (series.stack, series.pixel_size, series.image_shape) == (tmp_path / "TS.st", 3.0, (6, 8))


def test_views_that_were_cut_are_left_out_if_they_are_still_there(tmp_path):
    folder = imod(tmp_path, **{"tilt.com": None, "TS_cutviews0.rawtlt": "-20.1\n"})
    assert read_series(folder / "TS.tlt").excluded == (1,)
    put(tmp_path, "TS_cutviews0.rawtlt", "-60\n60\n")
    series = read_series(folder / "TS.tlt")
    assert (series.excluded, series.notes) == ((), ("2 views were cut from the stack before: -60, 60",))


@pytest.mark.parametrize(
    ("text", "defocus"),
    [
        ("1 5 -40 40 3000 2\n", (30000, 30000, 0, 0)),
        ("1 2 -40 -20 2000 2\n3 5 0 40 3000\n", (30000, 30000, 0, 0)),
        ("5 0 0 0 0 3\n1 5 0 0 3000 2900 45 30\n", (30000, 29000, 45, 30)),
        ("15 0 0 0 0 3\n1 5 0 0 3000 2900 0.5 1.5\n", (30000, 29000, math.degrees(0.5), math.degrees(1.5))),
        ("4 0 0 0 0 3\n1 5 0 0 3000 30\n", (30000, 30000, 0, 30)),
    ],
)
def test_defocus_files_of_imod_are_read_by_their_version_and_flags(tmp_path, text, defocus):
    assert read_series(imod(tmp_path, **{"TS.defocus": text})).defocus[4] == pytest.approx(defocus)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TS.defocus": "1 5 -40 40 3000\n"}, r"TS\.defocus: line 1: does not end in the version 2 or 3"),
        ({"TS.defocus": "1 0 0 0 0 3\n1 5 0 0 3000\n"}, "line 2 has 1 values of the CTF, expected 3"),
        ({"TS.defocus": "1 5 -40 40 3.0 2\n"}, r"median defocus is 30, expected 2000 to 200000 ångström"),
        ({"TS.xf": XF[:40]}, "1 transforms for 5 tilt angles, expected one for each view"),
        ({"TS.xf": "1 2 3\n"}, r"TS\.xf: line 1 has 3 columns, expected 6 of a transform"),
        ({"TS.xtilt": "0.1\n"}, "1 x tilt for 5 tilt angles"),
        (
            {"tilt.com": TILT_COM.replace("4-5", "4-6")},
            r"tilt\.com: line 14: EXCLUDELIST 1,4-6 names views that are no",
        ),
        ({"tilt.com": TILT_COM.replace("4-5", "four")}, "'four' is not a list of views such as 1-3,40"),
        ({"tilt.com": TILT_COM.replace("THICKNESS 154", "THICKNESS x")}, "line 9: 'x' is not a number of THICKNESS"),
    ],
)
def test_files_of_imod_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    with pytest.raises(FileFormatError, match=message):
        read_series(imod(tmp_path, **changes))


@pytest.mark.fault(38)
def test_as_many_tilts_as_images_are_needed(tmp_path):
    with pytest.raises(
        FileFormatError, match=r"TS\.tlt: has 5 angles, but TS\.st has 6 images; take both from the same"
    ):
        read_series(imod(tmp_path, n=6))


# SerialEM --------------------------------------------------------------------------------------------

HEAD = """\
PixelSpacing = 3.42
Voltage = 300
ImageFile = TS.mrc
ImageSize = 8 6

[T = SerialEM: Digitized on somewhere]
[T =     Tilt axis angle = 85.3, binning = 1  spot = 7  camera = 1]

"""
SECTION = """\
[{kind} = {n}]
TiltAngle = {angle}
ExposureDose = 3.5
TargetDefocus = -4
SubFramePath = X:\\frames\\TS_{n}.tif
DateTime = 26-Oct-23  17:{minute}:51

"""


def section(n, angle, minute, kind="ZValue"):
    return SECTION.format(kind=kind, n=n, angle=angle, minute=f"{minute:02d}")


MDOC = HEAD + section(0, -20, 8) + section(1, 0.01, 6) + section(2, 40, 20)


def test_serialem_gives_order_dose_axis_and_frames(tmp_path):
    stack(tmp_path, "TS.mrc", (3, 6, 8))
    series = read_series(put(tmp_path, "TS.mrc.mdoc", MDOC))
    assert (series.name, series.angles, series.sections) == ("TS", (-20, 0.01, 40), (0, 1, 2))
    assert (series.acquisition_order, series.dose) == ((1, 0, 2), (3.5, 0, 7.0))
    assert (series.tilt_axis_angle, series.pixel_size, series.voltage) == ((85.3,) * 3, 3.42, 300)
    assert (series.nominal_defocus, series.movies[2].name) == (40000, "TS_2.tif")
    assert (series.stack, series.image_shape) == (tmp_path / "TS.mrc", (6, 8))


def test_a_dose_before_each_view_and_other_dates_are_read(tmp_path):
    text = MDOC.replace("ExposureDose = 3.5", "ExposureDose = 3.5\nPriorRecordDose = 2").replace(
        "26-Oct-23", "2023-Oct-26"
    )
    series = read_series(put(tmp_path, "TS.mdoc", text))
    assert (series.dose, series.acquisition_order) == ((2, 2, 2), (1, 0, 2))
    unknown = read_series(put(tmp_path, "TS.mdoc", MDOC.replace("DateTime", "Time")))
    assert (unknown.acquisition_order, unknown.dose) == (None, (0, 3.5, 7.0))


def frames(folder):
    for name, tilts in {"TS": (0, 20, -20), "TS2": (5, 10, 15)}.items():
        for n, tilt in enumerate(tilts):
            text = "Voltage = 300\n" + section(0, tilt, n + 1, "FrameSet")
            put(folder, f"{name}_{n:03d}_{tilt}.0_Oct26_17.0{n}.51.eer.mdoc", text)
    return folder / "TS_001_20.0_Oct26_17.01.51.eer.mdoc"


def test_the_files_of_single_tilts_are_joined_to_their_series(tmp_path):
    path = frames(tmp_path)
    series = read_series(path)
    assert (series.name, series.angles, series.acquisition_order) == ("TS", (0, 20, -20), (0, 1, 2))
    assert (len(series.files), series.dose) == (3, (0, 3.5, 7.0))
    assert read_tilts(path) == (-20, 0, 20)
    assert [found.name for found in find_series(tmp_path)] == ["TS2", "TS"]
    assert read_series(tmp_path, name="TS2").angles == (5, 10, 15)


@pytest.mark.fault(38)
def test_the_mdoc_of_another_stack_is_refused(tmp_path):
    stack(tmp_path, "TS.mrc", (4, 6, 8))
    with pytest.raises(FileFormatError, match=r"TS\.mrc\.mdoc: describes 3 views, but TS\.mrc has 4 images"):
        read_series(put(tmp_path, "TS.mrc.mdoc", MDOC))


# Recognising -----------------------------------------------------------------------------------------


def test_a_folder_gives_all_series_of_a_program(tmp_path):
    for name in ("A", "B"):
        put(tmp_path, f"{name}.aln", ALN.format(**NUMBERINGS["0 with dark"]))
    put(tmp_path, "C.aln", "nothing\n")
    with pytest.warns(FileFormatWarning, match=r"left out: .*C\.aln: is not recognised; files that tell about a tilt"):
        assert [series.name for series in find_series(tmp_path, program="aretomo")] == ["A", "B"]
    with pytest.raises(
        FileFormatError, match=r"has no tilt series: no \.xml or \.tomostar; give the folder of the prog"
    ):
        find_series(tmp_path, program="warp")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "is empty; files that tell about a tilt series are"),
        ("a.txt", "1 2 3\n4 5 6\n", "is not recognised; files that tell about a tilt series are AreTomo's .aln"),
        ("a.txt", "words\n", "is not recognised"),
        ("a_CTF.txt", CTF, "is a table of defocus values; give the .aln or the .tlt that belongs to it"),
        ("a.xml", "<?xml version='1.0'?><Movie/>", "give the .xml of the tilt series"),
        ("a.star", "data_\nloop_\n_rlnA #1\n1\n", "neither names tilt series .* nor lists tilts"),
        ("a.tlt", "-1.04\n0\n1.04\n", "seem to be radians, expected degrees; multiply each by 57"),
    ],
)
def test_other_files_are_refused_with_what_would_be_read(tmp_path, name, text, message):
    path = put(tmp_path, name, text)
    with pytest.raises(FileFormatError, match=message):
        read_series(path)


def test_images_without_tilts_ask_for_them(tmp_path):
    path = stack(tmp_path, "TS.mrc")
    with pytest.raises(FileFormatError, match=r"TS\.mrc: 5 images without tilts: no FEI extended header, and no \.aln"):
        read_series(path)


@real_data
def test_the_needle_is_read_with_its_tilts_and_pixel_size():
    series = read_series(DATA / "etspy_needle" / "HAADF.mrc")
    assert (series.n_views, series.angles[0], series.program) == (77, -76.0, "fei")
    assert series.pixel_size == pytest.approx(33.6, rel=1e-3)


SEEDS = {
    "TS.aln": ALN.format(**NUMBERINGS["0 with dark"]),
    "TS.xml": XML.format(inverted="True", used="False"),
    "TS.tomostar": TOMOSTAR,
    "TS.star": VIEWS.format(name="TS"),
    "TS.mdoc": MDOC,
    "tilt.com": TILT_COM,
    "TS_TLT.txt": TLT,
    "TS.defocus": "1 0 0. 0. 0 3\n1 1 0 0 3001.0 2900.0 45.0\n",
}
PIECES = st.one_of(
    st.text(max_size=6), st.sampled_from(["\n", " ", "loop_", "[ZValue = 9]", "1e999", "#", "<", "-5", "@"])
)


@given(st.sampled_from(list(SEEDS)), st.lists(st.tuples(st.integers(0, 900), PIECES), max_size=4))
def test_any_damaged_text_is_either_a_series_or_refused(tmp_path_factory, name, changes):
    folder = tmp_path_factory.mktemp("series", numbered=True)
    text = SEEDS[name]
    for place, piece in changes:
        text = text[:place] + piece + text[place + 2 :]
    path = folder / name
    path.write_bytes(text.encode("utf-8", "replace"))
    if name in ("tilt.com", "TS.defocus"):
        path = put(folder, "TS.tlt", "-40\n-20\n0\n20\n40\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileFormatWarning)
        with suppress(FileFormatError):
            assert isinstance(read_series(path), SeriesMetadata)
