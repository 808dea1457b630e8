"""The wedge test with whole tilts left out: what it trains on, what it reports, and which series it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from commanding import run, write
from test_left_out_tilts import ANGLES, Y, Z, slab_of

from equitomo import Run, TiltGeometry, TiltSeriesPhysics, TomogramPair, TrainingConfig, make_halves, read_volume
from equitomo.run import TiltTest, TiltTestSettings, WedgeTestSettings
from equitomo.run.report_tests import tilt_test_chapter
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training import TrainingInterruptedError

PIXELS = 96
CONFIG = TrainingConfig.preset(
    "tiny", side=16, width=4, levels=2, steps=3, margin=4, batch=1, warmup=0, device="cpu", precision="float32"
)
RECORDED = TiltTestSettings(series="auto")


def stacks_in(folder, seed=0, names=("even", "odd"), angles=ANGLES):
    """Two stacks of images of a slab with independent noise, and their tilts."""
    folder.mkdir(exist_ok=True)
    specimen, generator = slab_of(seed), torch.Generator().manual_seed(seed)
    views = TiltSeriesPhysics(specimen.shape, TiltGeometry(angles), detector=PIXELS).A(specimen[None, None])[0, 0]
    (folder / "series.tlt").write_text("".join(f"{angle}\n" for angle in angles))
    for name in names:
        write(folder / f"{name}.mrc", views + 0.3 * views.std() * torch.randn(views.shape, generator=generator))
    return [folder / f"{name}.mrc" for name in names]


def halves_in(folder, **given):
    """Halves that are made of such stacks: the folder, and the two files."""
    stacks = stacks_in(folder, **given)
    make_halves(*stacks, tilts=folder / "series.tlt", thickness=Z, strict=False, out=folder / "H")
    return folder / "H", sorted((folder / "H").glob("*_half*.mrc"))


def pair_of(files):
    first, second = (file.with_suffix(".tlt") for file in files)
    return TomogramPair.read(*files, tilts=first, second_tilts=second, is_tomogram=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on halves that were made of a series of two stacks."""
    folder = tmp_path_factory.mktemp("tilts")
    _, files = halves_in(folder)
    return Run.create(folder / "run", pair_of(files), CONFIG).train()


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the folder of the halves and of their series, which a test may change."""
    shutil.copytree(trained.path.parent, tmp_path / "copy", ignore=lambda *_: ["run"])
    return tmp_path / "copy"


def test_the_training_never_sees_the_tilts_that_are_left_out(trained):
    (fold,) = TiltTest.of(trained, settings=RECORDED).folds()
    (pair,) = fold.trainer.dataset.pairs
    assert pair.geometry.angles == tuple(range(-48, 49, 4))
    assert [tilt.images.angle for tilt in fold.held_out.tilts] == [-60, -56, -52, 52, 56, 60]
    # The halves of the run hold these tilts.
    assert trained.pairs[0].geometry.tilt_range == (-60, 60)
    assert not torch.allclose(pair.volumes, trained.pairs[0].volumes, atol=0.1)


def test_halves_without_tilts_are_made_as_those_of_the_run_were(trained):
    """Of all tilts the same files come out."""
    test = TiltTest.of(trained, settings=TiltTestSettings(series="auto", every=30))
    (fold,) = test.folds()
    restored = fold.held_out.pair.restore(fold.held_out.pair.volumes)
    whole = trained.pairs[0].restore(trained.pairs[0].volumes)
    assert float(torch.corrcoef(torch.stack([restored.flatten(), whole.flatten()]))[0, 1]) > 0.97


def test_the_result_is_one_number_beside_those_of_the_input_and_of_an_empty_wedge(trained, tmp_path):
    result = TiltTest.of(trained, settings=RECORDED).run()
    assert -1 < result.estimate < 1.2
    assert 0 < result.error < 1
    assert 0.5 < result.measured < 1
    text = str(result)
    assert f"{result.estimate:.3f} ± {result.error:.3f}" in text
    assert "without the tilts -60, -56, -52, 52, 56, 60, on -48 to 48 degrees about y" in text
    assert "of 96 pixels across the tilt axis count, whose rays see nothing but the tomogram" in text
    written = json.loads(result.write(tmp_path / "result.json").read_text())
    (fold,) = written["folds"]
    assert written["estimate"] == pytest.approx(fold["volumes"]["prediction"]["found"]["estimate"])
    assert [tilt["tilt"] for tilt in fold["tilts"]] == [-60, -56, -52, 52, 56, 60]
    assert fold["volumes"]["input"]["found"]["power"] < 0.1
    assert fold["volumes"]["emptied"]["found"]["power"] < 0.1
    assert result.draw(tmp_path / "tilts.png").read_bytes().startswith(b"\x89PNG")


def test_a_script_gets_the_result_from_the_run_and_the_report_shows_it(trained, tmp_path):
    result = Run.open(trained.path).tilt_test(folder=tmp_path / "trainings")
    assert result.as_dict() == TiltTest.of(trained, settings=RECORDED).run().as_dict()
    assert not (tmp_path / "trainings").exists()
    result.write(tmp_path / result.file_name)
    chapter = tilt_test_chapter(tmp_path)
    assert "Without the tilts -60, -56, -52, 52, 56, 60, after 3 steps on -48 to 48" in chapter.text[1]
    assert f"estimated as {result.estimate:.2f} ± {1.96 * result.error:.2f} (95 %)" in chapter.text[1]
    assert len(chapter.charts) == 2


def test_a_script_is_told_that_tilts_are_left_out_by_another_method(trained):
    with pytest.raises(ValueError, match=r"pass these settings to tilt_test\(\)"):
        trained.wedge_test(settings=RECORDED)


def test_a_prediction_that_is_the_specimen_scores_one(trained):
    (fold,) = TiltTest.of(trained, settings=RECORDED).folds()
    start = (slab_of().shape[-1] - PIXELS) // 2
    found = fold.judge(slab_of()[..., start : start + PIXELS].contiguous()).correlation
    assert found.estimate == pytest.approx(1, abs=2 * found.error + 0.02)


def test_a_series_of_single_images_gives_no_estimate_but_raw_correlations(tmp_path):
    _, files = halves_in(tmp_path, names=("series",))
    config = TrainingConfig.preset("tiny", **{**CONFIG.as_dict(), "passes": 1, "test_time_mirrors": False})
    made = Run.create(tmp_path / "run", pair_of(files), config).train()
    result = TiltTest.of(made, settings=RECORDED).run()
    assert math.isnan(result.estimate)
    assert "Each of these tilts was measured once" in str(result)
    assert "no estimate of the correlation with noise-free ones is possible" in str(result)
    assert json.loads(result.write(tmp_path / "result.json").read_text())["estimate"] is None
    assert result.draw(tmp_path / "tilts.png").exists()


def test_command_writes_the_result_into_the_run(trained, capsys):
    picture = trained.path / "tilts.png"
    assert run("wedge-test", trained.path, "--series", "auto", "--every", "5", "--picture", picture) == 0
    # Tilts inside the range are a control, which leaves the result for the ends in its place.
    written = json.loads((trained.path / "tilt_control.json").read_text())
    assert [tilt["tilt"] for tilt in written["folds"][0]["tilts"]] == list(ANGLES[2::5])
    assert not (trained.path / "wedge_test.json").exists()
    assert not (trained.path / "tilt_test.json").exists()
    assert picture.exists()
    out = capsys.readouterr().out
    assert "Training without the tilts -52, -32, -12, 8, 28, 48, on " in out
    assert "with all that they show, is estimated as" in out
    assert not (trained.path / "tilt_test").exists()


def test_an_interrupted_test_is_continued_with_the_numbers_of_an_unbroken_one(trained, tmp_path):
    unbroken = TiltTest.of(trained, settings=RECORDED).run()
    trainings, steps = WedgeTrainings(tmp_path / "kept"), []

    def stop(step, losses):
        steps.append(step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with trainings.held(), pytest.raises(TrainingInterruptedError, match="repeat it as you began it to continue"):
        TiltTest.of(trained, None, RECORDED, trainings).run(step_progress=stop)
    with trainings.held(), pytest.raises(ValueError, match="`every` was None, now 5"):
        TiltTest.of(trained, None, TiltTestSettings(series="auto", every=5), trainings)
    with trainings.held():
        continued = TiltTest.of(trained, None, RECORDED, trainings).run(step_progress=stop)
    assert steps == [1, 2, 3]
    assert continued.as_dict() == unbroken.as_dict()
    assert not (tmp_path / "kept").exists()


def test_a_folder_without_a_record_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest.json of `equitomo halves`.* pass their folder as `series`"):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(tmp_path)))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is not that of half tomograms"):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "shows another specimen than .*, they do not correlate: pass the series from which"),
        ({"angles": ANGLES[2:]}, "has tilts from -52 to 60 degrees, and .* from -60 to 60"),
        ({"angles": [a for a in ANGLES if a != 8]}, "lacks 1 tilts of .*, such as 8 degrees"),
    ],
)
def test_the_series_of_another_tomogram_is_refused(trained, tmp_path, change, message):
    folder, _ = halves_in(tmp_path / "other", **change)
    with pytest.raises(ValueError, match=message):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(folder)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"voxel_size": 20.0}, "gives voxels of 20 Å, and .* has 10 Å: .*, with the same binning"),
        ({"shape": [8, 8, 8]}, r"gives \(8, 8, 8\) voxels \(z, y, x\), and .* has \(24, 40, 96\)"),
        ({"tilt_axis": "x"}, "was tilted about x, and .* about another axis"),
        pytest.param(
            *({"pair": 1}, "is one of two pairs of halves, of which no tilts can be left out: make one pair"),
            marks=pytest.mark.fault(89),
        ),
        ({"made_from": {}}, "manifest.json is damaged .*: make the halves anew"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(trained, copied, entry, message):
    manifest = copied / "H" / "manifest.json"
    content = json.loads(manifest.read_text())
    (name,) = content["series"]
    content["series"][name] |= entry
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(manifest.parent)))


def test_a_series_that_has_changed_or_is_gone_is_refused(trained, copied):
    manifest = copied / "H" / "manifest.json"
    settings = TiltTestSettings(series=str(manifest.parent))
    manifest.write_text(manifest.read_text().replace(str(trained.path.parent), str(copied)))
    stack = copied / "even.mrc"
    changed = np.array(read_volume(stack).data) + 1
    stack.unlink()
    write(stack, changed)
    with pytest.raises(ValueError, match=r"were made from something else than there is now \(.*first stack is now"):
        TiltTest.of(trained, settings=settings)
    stack.unlink()
    with pytest.raises(FileNotFoundError, match=r"even.mrc, the first stack of the halves in .* is not there any more"):
        TiltTest.of(trained, settings=settings)


def test_of_several_series_that_of_the_halves_is_taken_or_one_must_be_named(trained, copied):
    manifest = copied / "H" / "manifest.json"
    content = json.loads(manifest.read_text())
    (name,) = content["series"]
    content["series"]["other"] = {**content["series"][name], "first": "a.mrc", "second": "b.mrc"}
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has the halves of several series .*: pass one of the halves as `series`"):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(manifest.parent)))
    half = manifest.parent / content["series"][name]["first"]
    TiltTest.of(trained, settings=TiltTestSettings(series=str(half)))
    with pytest.raises(ValueError, match=r"nothing.mrc is none of the halves in the manifest.json"):
        TiltTest.of(trained, settings=TiltTestSettings(series=str(manifest.parent / "nothing.mrc")))


def test_a_tomogram_of_no_files_needs_its_series(trained):
    pair = TomogramPair(*torch.randn(2, Z, Y, PIXELS), TiltGeometry(ANGLES))
    with pytest.raises(ValueError, match="its series is not known: pass the `series`"):
        TiltTest.of(trained, pair, RECORDED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 5}, "`every` is about tilts of a series: pass `series='auto'` too"),
        ({"surroundings": "empty"}, "`surroundings` is about tilts of a series"),
        ({"series": "auto", "every": 1}, "`every` must be at least 2, got 1"),
        ({"series": "auto", "every": 5, "folds": 2}, "pass one"),
        ({"series": "auto", "surroundings": "none"}, "`surroundings` is 'auto', 'empty' or 'filled', got 'none'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TiltTestSettings(**settings)


def test_the_settings_are_those_of_the_wedge_test_and_more():
    assert isinstance(RECORDED, WedgeTestSettings)
    assert RECORDED.keep == WedgeTestSettings().keep


def test_command_refuses_what_it_cannot_use(trained, capsys):
    assert run("wedge-test", trained.path, "--every", "5") == 2
    assert "--every is about tilts of a series: pass --series auto too" in capsys.readouterr().err


@pytest.mark.fault(90)
def test_command_refuses_to_choose_by_tilts_of_a_series(trained, capsys):
    assert run("wedge-test", trained.path, "--choose", "passes", "--series", "auto") == 2
    error = capsys.readouterr().err
    assert (
        "--choose compares settings by a sector of the halves, and --series leaves out whole tilts: pass one" in error
    )
