"""Reports of runs and of volumes that other programs made, from the files in a folder to the page."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from commanding import run as command
from making import noisy_pair

from equitomo import Run, TiltGeometry, TomogramPair, TrainingConfig, write_volume
from equitomo.geometry import wedge_mask
from equitomo.report import Link
from equitomo.run.report_chapters import correlation_chapter, spots_chapter
from equitomo.run.report_facts import RunRecord
from equitomo.run.report_tests import tilt_test_chapter, wedge_test_chapter
from equitomo.run.reporting import RunReport, report_of
from equitomo.run.settings import ReconstructionSettings, ReportFiles
from equitomo.run.summary import FilledPart

SHAPE = (24, 20, 28)
SETTINGS = {"side": 16, "width": 2, "levels": 2, "steps": 4, "batch": 1, "device": "cpu", "preview_every": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two halves, and a finished run on them in its folder `run`."""
    folder = tmp_path_factory.mktemp("made")
    for name, half in zip(("even", "odd"), noisy_pair(SHAPE).halves, strict=True):
        write_volume(folder / f"{name}.mrc", half[:], voxel_size=10.0)
    pair = TomogramPair.read(folder / "even.mrc", folder / "odd.mrc", tilts=(-60.0, 60.0))
    run = Run.create(folder / "run", pair, TrainingConfig.preset("tiny", **SETTINGS))
    run.reconstruct(ReconstructionSettings(tile=24, tile_margin=4))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy that a test may change; the record still names the halves of the first one."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def text_of(path):
    """The words of a page, without its pictures and tags."""
    html = re.sub(r"<(style|script).*?</\1>", " ", path.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_a_reconstruction_writes_its_report(made):
    text = text_of(made / "run" / "report.html")
    assert "run, from even.mrc and odd.mrc" in text
    assert "24 × 20 × 28 voxels (z, y, x) of 10 Å · tilted from -60 to 60 degrees about y · 4 steps in" in text
    for heading in ("Sections", "Spectra", "Fourier shell correlation", "How the network learned", "Files"):
        assert heading in text
    # The run is not yet closed when it writes its report, which is no reason to warn.
    assert "not finished" not in text


def test_the_report_of_a_finished_run_is_made_anew_with_the_same_pictures(made, tmp_path):
    out = RunReport(made / "run", tmp_path / "other.html").write()
    pictures = [re.findall(r'data:image/webp[^"]*', path.read_text()) for path in (made / "run/report.html", out)]
    assert len(pictures[0]) > 100
    assert pictures[0] == pictures[1]


def test_the_report_says_since_which_step_nothing_changed(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["configuration"]["schedule"] = "constant"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    rows = [f"{step},{1 + 0.5 ** (step / 20)},0.001,0" for step in range(1, 401)]
    (copied / "losses.csv").write_text("\n".join(["step,data,learning_rate,skipped", *rows]) + "\n")
    found = re.search(r"Since step (\d+) nothing improved", text_of(RunReport(copied, copied / "other.html").write()))
    assert found and 60 < int(found[1]) < 200


def test_files_of_the_run_are_listed_with_what_they_are_for(made):
    text = text_of(made / "run" / "report.html")
    assert re.search(r"reconstruction\.mrc [\d.]+ kB the result: denoised", text)
    assert "refined.mrc" not in text


def test_halves_that_are_gone_are_missed_and_the_rest_is_shown(copied):
    record = json.loads((copied / "manifest.json").read_text())
    record["inputs"]["second"]["path"] = "/nowhere/odd.mrc"
    (copied / "manifest.json").write_text(json.dumps(record))
    text = text_of(RunReport(copied).write())
    assert (
        "Warnings The second of the run, /nowhere/odd.mrc, is not there any more. The tomogram cannot be shown" in text
    )
    assert "How the network learned" in text


def test_an_input_that_changed_since_is_warned_of(copied, made):
    record = json.loads((copied / "manifest.json").read_text())
    record["inputs"]["first"]["bytes"] += 4
    (copied / "manifest.json").write_text(json.dumps(record))
    assert f"The first of the run, {made / 'even.mrc'}, has changed since it was read." in text_of(
        RunReport(copied).write()
    )


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("running", "The run is not finished, or was killed"),
        ("failed: disk full", "The run ended early: failed: disk full. It can be resumed."),
    ],
)
def test_a_run_that_did_not_finish_is_warned_of(copied, outcome, words):
    record = json.loads((copied / "manifest.json").read_text())
    record["invocations"][-1]["outcome"] = outcome
    (copied / "manifest.json").write_text(json.dumps(record))
    assert words in text_of(RunReport(copied).write())


def test_what_the_diagnosis_found_is_a_warning(copied, made, tmp_path):
    # The halves were filtered, as the record of the program that made them says.
    for name in ("even.mrc", "odd.mrc"):
        shutil.copy(made / name, tmp_path / name)
    halves = {"one": {"first": "even.mrc", "second": "odd.mrc", "ctf_state": "wiener"}}
    (tmp_path / "manifest.json").write_text(json.dumps({"series": halves}))
    record = json.loads((copied / "manifest.json").read_text())
    for role, name in (("first", "even.mrc"), ("second", "odd.mrc")):
        record["inputs"][role]["path"] = str(tmp_path / name)
    (copied / "manifest.json").write_text(json.dumps(record))
    text = text_of(RunReport(copied).write())
    assert re.search(r"Warning The halves were Wiener-filtered .* deconvolve the result instead\. Sections", text)
    assert "ctf to mend" in text


def test_skipped_steps_are_warned_of(copied):
    lines = (copied / "losses.csv").read_text().splitlines()
    lines[2] = lines[2].rsplit(",", 1)[0] + ",1"
    (copied / "losses.csv").write_text("\n".join(lines) + "\n")
    assert "1 of 4 steps were skipped" in text_of(RunReport(copied).write())


def test_a_name_with_a_script_is_shown_as_it_is(made, tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    shutil.copytree(made / "run", folder)
    html = RunReport(folder).write().read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;" in html


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run, as it has no manifest\.json: name the folder of a run"):
        RunReport(tmp_path)


def test_a_damaged_record_is_refused(copied):
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        RunReport(copied)


def test_the_record_of_a_run_is_told_in_words(made):
    facts = RunRecord.read(made / "run").facts()
    assert facts["Input: first"]["voxels"] == "24 × 20 × 28 (z, y, x), float32"
    assert facts["Input: first"]["voxel size"] == "10 Å"
    assert facts["Tilts"] == {"series 1": "-60 to 60 degrees about y"}
    assert facts["Settings"]["began with"] == "weights drawn from the seed"
    assert facts["Settings"]["seed"] == "0"
    assert "torch" in facts["Versions"]


def test_a_record_without_the_first_weights_does_not_claim_that_they_were_drawn(copied):
    record = json.loads((copied / "manifest.json").read_text())
    del record["init"]
    (copied / "manifest.json").write_text(json.dumps(record))
    assert RunRecord.read(copied).facts()["Settings"]["began with"] == "not recorded"


@pytest.mark.parametrize("rows", [None, "step,data,learning_rate,skipped\n"])
def test_a_run_without_losses_has_a_report_without_them(copied, rows):
    (copied / "losses.csv").unlink()
    if rows is not None:
        (copied / "losses.csv").write_text(rows)
    assert "How the network learned" not in text_of(RunReport(copied).write())


# What other commands leave in the folder --------------------------------------------------------------


def fold(**changes):
    shells = {"frequency": [0.1, 0.2], "correlation": [0.9, None], "correlation_error": [0.01, None]}
    tilts = TiltGeometry.from_range(-50, 50).as_dict()
    return {
        "kept_tilts": tilts,
        "steps": 150,
        "estimate": 0.751,
        "error": 0.01,
        "reliability": 0.36,
        **shells,
    } | changes


def test_a_wedge_test_is_told_in_plain_words(copied):
    (copied / "wedge_test.json").write_text(json.dumps({"folds": [fold()], "voxel_size": 10.0}))
    text = text_of(RunReport(copied).write())
    assert "trained for 150 steps on the tilts -50 to 50 degrees about y alone filled the rest" in text
    assert "estimated as 0.75 ± 0.02 (95 %). An empty sector scores 0, and what was measured there" in text


def test_a_wedge_test_from_weights_that_saw_the_noise_is_said_to_flatter(tmp_path):
    for start, n_texts in (("seed", 2), ("run", 3)):
        content = {"folds": [fold()], "voxel_size": 10.0, "start": start}
        (tmp_path / "wedge_test.json").write_text(json.dumps(content))
        assert len(wedge_test_chapter(tmp_path).text) == n_texts
    assert "may be too high" in wedge_test_chapter(tmp_path).text[2]


def test_a_wedge_test_without_agreement_of_the_halves_says_so(tmp_path):
    content = {"folds": [fold(estimate=None, error=None, reliability=None)], "voxel_size": None}
    (tmp_path / "wedge_test.json").write_text(json.dumps(content))
    assert "nothing can be said" in wedge_test_chapter(tmp_path).text[1]


def test_a_damaged_wedge_test_is_refused(tmp_path):
    assert wedge_test_chapter(tmp_path) is None
    (tmp_path / "wedge_test.json").write_text('{"folds": [{}]}')
    with pytest.raises(ValueError, match=r"wedge_test\.json cannot be read"):
        wedge_test_chapter(tmp_path)


def score(estimate=0.68, error=0.01, *, is_known=True):
    shells = {"frequency": [0.1, 0.2], "raw_correlation": [0.5, None]}
    found = {"correlation": [0.9, None], "correlation_error": [0.01, None], "reliability": 0.64, "power": 0.28}
    found |= {"estimate": estimate, "error": error}
    return {"raw": 0.3, "raw_error": 0.05, "found": found if is_known else None, **shells}


def tilts_left_out(folder, name="tilt_test.json", *, ends=("both",), estimate=0.68, error=0.01, is_known=True, **more):
    given, emptied = score(-0.06, is_known=is_known), score(None, None, is_known=is_known)
    volumes = {"prediction": score(estimate, error, is_known=is_known), "input": given, "emptied": emptied}
    kept = TiltGeometry.from_range(-50, 50).as_dict()
    folds = [
        {"ends": end, "kept_tilts": kept, "steps": 150, "volumes": volumes, "tilts": [{"tilt": 54.5, **volumes}]}
        for end in ends
    ]
    content = {"folds": folds, "estimate": estimate, "error": error, "voxel_size": 10.0, **more}
    (folder / name).write_text(json.dumps(content))
    return tilt_test_chapter(folder)


def test_tilts_left_out_and_their_control_are_a_chapter_of_the_report(copied):
    tilts_left_out(copied)
    tilts_left_out(copied, "tilt_control.json", ends=[None], estimate=0.97)
    text = text_of(RunReport(copied).write())
    assert "Without the tilts 54.5, after 150 steps on -50 to 50 degrees about y, the correlation of the result" in text
    assert "is estimated as 0.68 ± 0.02 (95 %), in what the other tilts do not tell of them" in text
    assert "The measured images, with their noise, score 0.80, and the input holds 28% of the truth" in text
    assert "As a control, the tilts 54.5 inside the range were left out" in text
    assert "estimated as 0.97 ± 0.02 (95 %), and that of the input, the tomogram of the other tilts, as -0.06" in text
    assert "result 0.68 ± 0.02 0.30 ± 0.10 28% input -0.06 ± 0.02" in text
    assert "control: result, wedge emptied not known" in text
    for title in ("Correlation in each ring", "Correlation at each tilt", "Correlation at each tilt, control"):
        assert title in text
    assert re.search(r"tilt_control\.json [\d.]+ kB the same for tilts inside the range", text)


@pytest.mark.parametrize(
    ("estimate", "error", "words"),
    [
        (-0.5, 0.1, "That is worse than an empty wedge"),
        (0.1, 0.1, "That cannot be told from 0"),
        (0.7, 0.01, "1 is the truth, and an empty wedge scores 0. The measured images"),
        (0.9, 0.01, "Filling in was worth more than measuring with this dose"),
        (None, None, "nothing can be said: the two measurements of these tilts do not agree"),
    ],
)
def test_the_report_says_what_an_estimate_at_tilts_left_out_means(tmp_path, estimate, error, words):
    assert words in tilts_left_out(tmp_path, estimate=estimate, error=error).text[1]


def test_tilts_that_were_measured_once_have_raw_correlations_in_the_report(tmp_path):
    chapter = tilts_left_out(tmp_path, is_known=False)
    assert "correlates with the noisy images by 0.30 ± 0.10 (95 %), and the input by 0.30" in chapter.text[1]
    assert "The correlation with the noisy images" in chapter.charts[0].caption
    assert chapter.table.rows[0] == ["result", "not known", "0.30 ± 0.10", "not known"]


def test_several_sets_of_tilts_are_told_apart_and_taken_together_in_the_report(tmp_path):
    chapter = tilts_left_out(tmp_path, ends=["low", "high"], estimate=0.6, error=0.1, start="run")
    assert "high end: result" in [row[0] for row in chapter.table.rows]
    assert ">input, low end<" in chapter.charts[1].svg
    assert chapter.text[-2] == "All of these together: 0.60 ± 0.20 (95 %)."
    assert "may be too high" in chapter.text[-1]


def test_a_curve_below_zero_is_seen_whole_in_the_report(tmp_path):
    content = {"folds": [fold(correlation=[-0.9, None])], "voxel_size": None}
    (tmp_path / "wedge_test.json").write_text(json.dumps(content))
    # A minus sign is a character of its own in the labels of an axis.
    assert ">\N{MINUS SIGN}0.5<" in wedge_test_chapter(tmp_path).charts[0].svg


def test_a_damaged_file_of_tilts_left_out_is_refused(tmp_path):
    assert tilt_test_chapter(tmp_path) is None
    (tmp_path / "tilt_control.json").write_text('{"folds": [{}]}')
    with pytest.raises(ValueError, match=r"tilt_control\.json cannot be read .* make it anew by `equitomo wedge-test`"):
        tilt_test_chapter(tmp_path)


def test_spots_lead_to_their_sections(tmp_path):
    assert spots_chapter(tmp_path) is None
    head = "z,y,x,z_angstrom,y_angstrom,x_angstrom,contrast,measured,filled\n"
    lines = [f"{n},5,6,30,50,60,2.5,0.1,1.6\n" for n in range(15)]
    (tmp_path / "filled_spots.csv").write_text(head + "".join(lines))
    chapter = spots_chapter(tmp_path)
    assert len(chapter.table.rows) == 12
    assert chapter.table.rows[3] == [Link("z 3, y 5, x 6", "z=3&y=5"), "2.5", "0.1"]
    assert "15 spots" in chapter.text[0]
    (tmp_path / "filled_spots.csv").write_text(head)
    assert spots_chapter(tmp_path).table is None


def test_volumes_that_other_steps_left_in_the_folder_are_shown(copied):
    label = "equitomo: standard deviation learned from simulations"
    write_volume(copied / "confidence.mrc", np.ones(SHAPE, np.float32), voxel_size=10.0, label=label)
    write_volume(copied / "refined.mrc", np.ones((4, 4, 4), np.float32), voxel_size=10.0)
    text = text_of(RunReport(copied).write())
    assert "Confidence standard deviation" in text
    # One of another shape is not of this tomogram.
    assert "in agreement with the projections" not in text.replace("the result in agreement with the projections", "")


def test_a_confidence_map_that_was_not_learned_is_not_shown(copied):
    label = "equitomo: standard deviation by bootstrap, 8 samples, not calibrated"
    write_volume(copied / "confidence.mrc", np.ones(SHAPE, np.float32), voxel_size=10.0, label=label)
    assert "Confidence standard deviation" not in text_of(RunReport(copied).write())


# The filled part --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt_axis", ["y", "x"])
def test_the_filled_part_is_what_no_tilt_measures(tilt_axis):
    geometry = TiltGeometry.from_range(-50, 60, tilt_axis)
    volume = np.random.default_rng(0).standard_normal((15, 12, 14), np.float32)
    mask = (wedge_mask(volume.shape, geometry) != 0).numpy()
    expected = np.fft.irfftn(np.fft.rfftn(volume) * ~mask, volume.shape, axes=(0, 1, 2))
    filled, found = FilledPart(volume, geometry), np.zeros_like(volume)
    for place, block in filled.slabs(1500):
        found[place] = block
    assert np.allclose(found, expected, atol=1e-5)
    assert np.allclose(filled[3:5, 2, :], expected[3:5, 2], atol=1e-5)
    assert np.allclose(filled[:, :, 4], expected[:, :, 4], atol=1e-5)


def test_the_filled_part_of_a_dual_axis_geometry_is_refused():
    geometry = TiltGeometry([-60, 60]) | TiltGeometry([-60, 60], "x")
    with pytest.raises(ValueError, match="across one tilt axis"):
        FilledPart(np.zeros((4, 4, 4), np.float32), geometry)


def test_the_measured_part_of_halves_with_different_tilts_is_what_both_have_measured():
    volumes, after = noisy_pair(SHAPE).volumes, noisy_pair(SHAPE, seed=3).volumes[0]
    different = TomogramPair(*volumes, (-60.0, 40.0), second_geometry=(-40.0, 60.0))
    same = TomogramPair(*volumes, (-40.0, 40.0))
    # The second chart is without the wedge, which is not the same.
    charts = [correlation_chapter(pair, after).charts for pair in (different, same)]
    assert charts[0][1].svg == charts[1][1].svg
    assert charts[0][0].svg != charts[1][0].svg


# Volumes of other programs ----------------------------------------------------------------------------


def given(made, tmp_path, **changes):
    files = {"first": str(made / "even.mrc"), "second": str(made / "run" / "reconstruction.mrc")}
    return ReportFiles(**files | {"tilts": "-60,60", "out": str(tmp_path / "report.html")} | changes)


def test_a_volume_of_any_program_is_judged(made, tmp_path):
    out = report_of(given(made, tmp_path)).write()
    text = text_of(out)
    assert "Report of a reconstruction reconstruction.mrc 24 × 20 × 28" in text
    assert "Power in the missing wedge, relative to an even spread" in text
    assert "Filled part alone" in text
    assert "Input and result" in text
    assert "The two halves of the input" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": None}, "`out` is needed"),
        ({"tilts": None}, "`tilts` is needed"),
        ({"second": None}, "holds no run"),
    ],
)
def test_a_volume_without_what_it_takes_to_judge_it_is_refused(made, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        report_of(given(made, tmp_path, **changes))


def test_volumes_of_two_shapes_are_refused(made, tmp_path):
    write_volume(tmp_path / "small.mrc", np.ones((4, 4, 4), np.float32), voxel_size=10.0)
    with pytest.raises(ValueError, match="give two volumes on one grid"):
        report_of(given(made, tmp_path, second=str(tmp_path / "small.mrc")))


def test_a_page_is_replaced_only_if_asked_for(made, tmp_path):
    report_of(given(made, tmp_path)).write()
    with pytest.raises(FileExistsError):
        report_of(given(made, tmp_path)).write()
    assert report_of(given(made, tmp_path, overwrite=True)).write().exists()


# The command ------------------------------------------------------------------------------------------


def test_the_command_reports_a_run_and_a_volume(made, copied, tmp_path, capsys):
    (copied / "report.html").unlink()
    assert command("report", copied) == 0
    assert (copied / "report.html").exists()
    assert capsys.readouterr().out == f"Wrote {copied / 'report.html'}\n"
    files = [made / "even.mrc", made / "run" / "reconstruction.mrc", "--tilts=-60,60"]
    assert command("report", *files, "--out", tmp_path / "page.html") == 0
    assert command("report", *files, "--out", tmp_path / "page.html") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_says_what_is_missing(made, tmp_path, capsys):
    assert command("report", tmp_path) == 2
    assert "name the folder of a run, or a tomogram and the volume that was made of it" in capsys.readouterr().err
    assert command("report", made / "even.mrc", made / "odd.mrc", "--out", tmp_path / "a.html") == 2
    assert "--tilts is needed" in capsys.readouterr().err
