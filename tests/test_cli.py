"""The command line: what it leaves, what it refuses, and what it tells the shell."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from commanding import TINY, Case, files_in, run, write
from faults import numbered
from making import noisy_halves

import equitomo
from equitomo import (
    IcecreamTrainer,
    TiledPredictor,
    TiltGeometry,
    TomogramPair,
    fourier_shell_correlation,
    load_network,
    read_volume,
    write_volume,
)
from equitomo.metrics import conical_fsc, masked_fsc, region_masks, soft_mask
from equitomo.run import ComparedFiles, Comparison
from equitomo.training.checkpoint import load_checkpoint

SHAPE = (17, 20, 23)
TILED = ["--tile", "24", "--tile_margin", "4"]
TILTS = ["--tilts", "-60,60"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Write two half tomograms of odd shape, with a full header."""
    folder = tmp_path_factory.mktemp("halves")
    paths = []
    for name, half in zip(("even", "odd"), noisy_halves(SHAPE), strict=True):
        path = folder / f"{name}.mrc"
        with mrcfile.new(path, (300 + 40 * half).numpy()) as file:
            file.set_volume()
            file.voxel_size = 13.5
            file.header.origin = (10.0, 20.0, 30.0)
            file.nstart = (4, 5, 6)
            file.set_extended_header(np.frombuffer(b"tilts and doses " * 4, "V16"))
            file.header.exttyp = b"SERI"
            file.add_label("recorded on a rainy day")
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def finished(halves, tmp_path_factory):
    """Return the folder of a finished `reconstruct`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run("reconstruct", *halves, *TILTS, "--out", folder, *TINY, *TILED) == 0
    return folder


# What the commands leave -----------------------------------------------------------------------------


def test_reconstruct_leaves_the_volume_the_losses_the_pictures_and_the_checkpoints(finished):
    left = files_in(finished)
    assert {"reconstruction.mrc", "slices.png", "losses.csv", "losses.png"} <= left
    assert {"previews/step_0000004.png", "previews/step_0000008.png"} <= left
    assert "checkpoints/step_00000008/weights.safetensors" in left
    assert not [name for name in left if "partial" in name or name.startswith(".")]


def test_the_reconstruction_is_a_valid_mrc_file(finished):
    assert mrcfile.validate(finished / "reconstruction.mrc")


def test_the_reconstruction_keeps_the_header_of_the_input(halves, finished):
    before, after = read_volume(halves[0]), read_volume(finished / "reconstruction.mrc")
    assert after.data.shape == SHAPE
    assert after.voxel_size == before.voxel_size
    assert after.header.origin == before.header.origin == (30.0, 20.0, 10.0)
    assert after.header.start == before.header.start == (6, 5, 4)
    assert after.header.extended == before.header.extended != b""
    assert after.header.exttyp == before.header.exttyp
    assert after.header.labels[: len(before.header.labels)] == before.header.labels
    assert "equitomo" in after.header.labels[-1]


def by_hand(halves, folder, normalization="robust"):
    """Return the reconstruction of a run, put together from the library's blocks."""
    pair = TomogramPair(*(read_volume(path).data for path in halves), (-60.0, 60.0), normalization=normalization)
    predictor = TiledPredictor(load_network(folder), pair.geometry, tile=24, margin=4, precision="float32")
    return pair.restore(predictor(*pair.volumes)).numpy()


def test_the_reconstruction_is_that_of_the_library_in_the_input_s_intensities(halves, finished):
    found = read_volume(finished / "reconstruction.mrc").data
    np.testing.assert_allclose(found, by_hand(halves, finished), rtol=0, atol=1e-3)
    assert found.std() > 0.5
    assert abs(found.mean() - 300) < 40


def test_reconstruct_keeps_its_result_and_what_lies_between_the_passes_in_files(halves, tmp_path, monkeypatch):
    seen, call = [], TiledPredictor.__call__

    def watch(self, *volumes, **settings):
        seen.append((type(settings["out"]), settings["scratch"]))
        return call(self, *volumes, **settings)

    monkeypatch.setattr(TiledPredictor, "__call__", watch)
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED) == 0
    assert seen == [(np.memmap, tmp_path)]


def test_reconstruct_says_that_the_wedge_was_inferred(halves, tmp_path, capsys):
    run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED)
    out = capsys.readouterr().out
    assert "inferred, not measured" in out
    assert str(tmp_path / "reconstruction.mrc") in out


def test_reconstruct_measures_the_margin_if_asked(halves, finished, tmp_path, capsys):
    settings = ["--tile", "24", "--tile_margin", "auto", "--margin_tolerance", "0.5"]
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *settings) == 0
    margin = int(re.search(r"Margins of (\d+) voxels are within 0\.5 ", capsys.readouterr().out)[1])
    arguments = ["--precision", "float32", "--device", "cpu", "--tile", "24", "--tile_margin", margin]
    assert run("predict", *halves, "--run", tmp_path, "--out", tmp_path / "again.mrc", *arguments) == 0
    one, other = (read_volume(tmp_path / name).data for name in ("reconstruction.mrc", "again.mrc"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_output_may_be_float16(halves, tmp_path):
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED, "--dtype", "float16") == 0
    assert read_volume(tmp_path / "reconstruction.mrc").data.dtype == np.float16
    assert mrcfile.validate(tmp_path / "reconstruction.mrc")


def test_demo_needs_no_input_and_leaves_everything(tmp_path):
    sizes = ["--size", "32", *TINY, *TILED]
    assert run("demo", "--out", tmp_path / "demo", *sizes) == 0
    left = files_in(tmp_path / "demo")
    assert {"even.mrc", "odd.mrc", "truth.mrc", "tilts.tlt"} <= left
    assert {"reconstruction.mrc", "slices.png", "losses.csv", "losses.png", "previews/step_0000008.png"} <= left
    assert read_volume(tmp_path / "demo" / "reconstruction.mrc").data.shape == (32, 32, 32)


def test_one_volume_is_reconstructed_by_a_method_that_needs_no_halves(halves, tmp_path, capsys):
    given = ["reconstruct", halves[0], *TILTS, "--out", tmp_path / "run", *TINY, *TILED]
    assert run(*given) == 2
    assert "give the two half tomograms FIRST and SECOND" in capsys.readouterr().err
    assert run(*given, "--method", "equivariant_imaging") == 0
    assert {"reconstruction.mrc", "slices.png"} <= files_in(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").config.method == "equivariant_imaging"


@pytest.mark.slow
def test_what_demo_leaves_can_be_reconstructed_again(tmp_path):
    run("demo", "--out", tmp_path / "demo", "--size", "32", *TINY, *TILED)
    files = [tmp_path / "demo" / name for name in ("even.mrc", "odd.mrc")]
    tilts = ["--tilts", tmp_path / "demo" / "tilts.tlt"]
    assert run("reconstruct", *files, *tilts, "--out", tmp_path / "again", *TINY, *TILED) == 0
    one, other = (read_volume(tmp_path / name / "reconstruction.mrc").data for name in ("demo", "again"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_train_writes_no_volume(halves, tmp_path):
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *TINY) == 0
    assert not [name for name in files_in(tmp_path / "run") if name.endswith(".mrc")]


@pytest.mark.parametrize("normalization", ["robust", "scale"])
def test_train_and_predict_do_what_reconstruct_does(halves, tmp_path, normalization):
    settings = [*TINY, "--normalization", normalization]
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *settings) == 0
    target = tmp_path / "predicted.mrc"
    arguments = ["--run", tmp_path / "run", "--precision", "float32", "--device", "cpu", "--out", target, *TILED]
    assert run("predict", *halves, *arguments) == 0
    expected = by_hand(halves, tmp_path / "run", normalization)
    np.testing.assert_allclose(read_volume(target).data, expected, rtol=0, atol=1e-3)
    assert read_volume(target).header.extended == read_volume(halves[0]).header.extended


def predict(run_folder, out, *arguments):
    settings = ["--run", run_folder, "--out", out, "--precision", "float32", "--device", "cpu", *TILED]
    assert run("predict", *arguments, *settings) == 0
    return read_volume(out).data


def test_one_half_alone_can_be_predicted(halves, finished, tmp_path):
    one = predict(finished, tmp_path / "one.mrc", halves[0])
    assert one.shape == SHAPE
    assert not np.allclose(one, predict(finished, tmp_path / "two.mrc", *halves))


@pytest.mark.fault(19)
@pytest.mark.filterwarnings("default")
def test_voxels_that_are_no_numbers_hold_the_mean_if_asked(halves, finished, tmp_path, capsys):
    data = np.array(read_volume(halves[0]).data)
    holed, filled = data.copy(), data.copy()
    holed[2:4, 5, 6] = np.nan
    filled[2:4, 5, 6] = data[np.isfinite(holed)].mean(dtype=np.float64)
    of_mean = predict(finished, tmp_path / "a.mrc", write(tmp_path / "filled.mrc", filled))
    of_holes = predict(finished, tmp_path / "b.mrc", write(tmp_path / "holed.mrc", holed), "--nan", "mean")
    np.testing.assert_array_equal(of_holes, of_mean)
    assert (
        "holed.mrc holds 2 voxels that are NaN or infinite, which are replaced by its mean" in capsys.readouterr().err
    )


def test_predict_takes_other_tilts_than_the_run_s(halves, finished, tmp_path):
    same = predict(finished, tmp_path / "a.mrc", *halves, "--tilts", "-60,60")
    other = predict(finished, tmp_path / "b.mrc", *halves, "--tilts=-20,20")
    # One puts intensities back tile by tile, the other in the whole volume: a rounding apart.
    np.testing.assert_allclose(same, read_volume(finished / "reconstruction.mrc").data, rtol=1e-6)
    assert not np.allclose(same, other)


def test_predict_takes_the_tilt_axis_of_the_run_also_with_other_tilts(halves, tmp_path, monkeypatch):
    seen = []

    class Recorder(TiledPredictor):
        def __init__(self, model, geometry, **settings):
            seen.append(geometry)
            super().__init__(model, geometry, **settings)

    run("train", *halves, *TILTS, "--tilt_axis", "x", "--out", tmp_path / "run", *TINY)
    monkeypatch.setattr("equitomo.run.prediction.TiledPredictor", Recorder)
    predict(tmp_path / "run", tmp_path / "a.mrc", halves[0])
    predict(tmp_path / "run", tmp_path / "b.mrc", halves[0], "--tilts", "-40,50")
    assert seen == [TiltGeometry.from_range(-60, 60, "x"), TiltGeometry.from_range(-40, 50, "x")]


def test_predict_takes_one_checkpoint(halves, finished, tmp_path):
    found = predict(finished / "checkpoints" / "step_00000008", tmp_path / "a.mrc", *halves)
    np.testing.assert_allclose(found, read_volume(finished / "reconstruction.mrc").data, rtol=1e-6)


@pytest.mark.fault(59)
def test_predict_says_what_it_takes_and_interrupted_leaves_nothing(halves, finished, tmp_path, monkeypatch, capsys):
    def interrupt(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr("equitomo.models.ScaleEquivariantUNet3D.forward", interrupt)
    (tmp_path / "out").mkdir()
    settings = ["--run", finished, "--out", tmp_path / "out" / "a.mrc", "--device", "cpu", *TILED]
    assert run("predict", *halves, *settings) == 130
    assert "GiB of memory" in capsys.readouterr().out
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.fault(57)
def test_predict_refuses_a_disk_that_is_too_small_before_any_work(halves, finished, tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("equitomo.io.placing.shutil.disk_usage", lambda folder: usage)
    settings = ["--run", finished, "--out", tmp_path / "a.mrc", "--device", "cpu", *TILED]
    assert run("predict", *halves, *settings) == 2
    assert "the disk has 1000 bytes left" in capsys.readouterr().err


def test_training_starts_from_another_run(halves, finished, tmp_path):
    settings = [*TINY, "--init", finished, "--learning_rate", "1e-30", "--ema_decay", "0"]
    assert run("train", *halves, *TILTS, "--out", tmp_path, *settings) == 0
    before, after = load_network(finished).state_dict(), load_network(tmp_path).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_cubes_are_drawn_within_a_mask(halves, tmp_path, monkeypatch):
    mask = np.zeros(SHAPE, np.float32)
    mask[:, :16, :16] = 1
    seen = []
    train = IcecreamTrainer.train
    monkeypatch.setattr(
        IcecreamTrainer, "train", lambda self, *given: (seen.append(self.dataset.n_starts), train(self, *given))[1]
    )
    arguments = ["--mask", write(tmp_path / "mask.mrc", mask), "--min_specimen", "0.95"]
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *TINY, *arguments) == 0
    assert seen == [2]


def test_the_mask_may_be_found_from_the_data(halves, tmp_path):
    arguments = ["--mask", "auto", "--min_specimen", "0.1"]
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *TINY, *arguments) == 0


# Tilts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--tilts", "-50,40"], ["--tilts=-50,40"], ["--tilts", "-50.0,40.0"], ["--tilts", "file"]]
)
def test_tilts_are_a_range_or_a_file(halves, tmp_path, arguments):
    path = tmp_path / "series.tlt"
    path.write_text("-50\n0\n40\n")
    arguments = [str(path) if argument == "file" else argument for argument in arguments]
    assert run("train", *halves, *arguments, "--out", tmp_path / "run", *TINY) == 0
    angles = load_checkpoint(tmp_path / "run").state["geometries"][0]["angles"]
    assert (angles[0], angles[-1]) == (-50.0, 40.0)


# Resuming and overwriting ----------------------------------------------------------------------------


@pytest.mark.fault(59)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_an_interrupted_run_saves_says_so_and_can_be_resumed(halves, finished, tmp_path, monkeypatch, capsys, number):
    def interrupt(*seen):
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr("equitomo.report.draw_preview", interrupt)
        assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED) == 130
    assert f"stopped by {number.name} after step 4 of 8; resume to continue" in capsys.readouterr().err
    assert "reconstruction.mrc" not in files_in(tmp_path)
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED, "--resume") == 0
    for name in ("reconstruction.mrc", "losses.csv"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.fault(59)
def test_an_interrupt_outside_the_training_is_130_too(halves, finished, tmp_path, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(TomogramPair, "read", interrupt)
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *TINY) == 130


def test_resuming_a_finished_run_repeats_only_the_prediction(halves, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "reconstruction.mrc").unlink()
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED, "--resume") == 0
    assert "Resuming after step 8 of 8" in capsys.readouterr().out
    assert (tmp_path / "reconstruction.mrc").read_bytes() == (finished / "reconstruction.mrc").read_bytes()


@pytest.mark.fault(54)
def test_overwriting_replaces_a_run(halves, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "previews" / "step_0000099.png").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("keep me")
    settings = [*TINY, "--seed", "1", "--overwrite"]
    assert run("train", *halves, *TILTS, "--out", tmp_path, *settings) == 0
    left = files_in(tmp_path)
    assert load_checkpoint(tmp_path).state["config"]["seed"] == 1
    assert not left & {"previews/step_0000099.png", "reconstruction.mrc"}
    assert "notes.txt" in left


@pytest.mark.fault(54)
def test_overwriting_with_bad_input_leaves_the_run_as_it_was(halves, finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = files_in(tmp_path)
    assert run("train", halves[0], "missing.mrc", *TILTS, "--out", tmp_path, *TINY, "--overwrite") == 2
    assert run("train", *halves, *TILTS, "--out", tmp_path, *TINY, "--side", "24", "--overwrite") == 2
    assert files_in(tmp_path) == before


@pytest.mark.fault(54)
def test_predict_replaces_a_file_only_if_told_to(halves, finished, tmp_path, capsys):
    target = tmp_path / "a.mrc"
    target.write_bytes(b"precious")
    arguments = ["predict", halves[0], "--run", finished, "--out", target, "--device", "cpu", *TILED]
    assert run(*arguments) == 2
    assert re.search(r"a\.mrc.*exists already.*overwrite|exists already.*a\.mrc", capsys.readouterr().err)
    assert target.read_bytes() == b"precious"
    assert run(*arguments, "--overwrite") == 0
    assert mrcfile.validate(target)


# Configuration ---------------------------------------------------------------------------------------


def test_a_printed_configuration_read_again_is_the_same(halves, tmp_path, capsys):
    arguments = ["train", *halves, *TILTS, "--out", tmp_path / "run", *TINY]
    assert run(*arguments, "--print_config") == 0
    text = capsys.readouterr().out
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert run("train", "--config", path, "--print_config") == 0
    assert capsys.readouterr().out == text
    assert "tilts: -60,60" in text
    assert "side: 16" in text


def test_a_configuration_file_trains_as_the_options_do(halves, tmp_path, capsys):
    run("train", *halves, *TILTS, "--out", tmp_path / "two", *TINY, "--print_config")
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert run("train", *halves, *TILTS, "--out", tmp_path / "one", *TINY) == 0
    assert run("train", "--config", tmp_path / "config.yaml") == 0
    assert load_checkpoint(tmp_path / "one").state == load_checkpoint(tmp_path / "two").state


def test_an_option_beats_the_configuration_file(halves, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("preset: tiny\nsteps: 7\nseed: 3\n")
    arguments = ["--config", tmp_path / "config.yaml", "--steps", "9", "--print_config"]
    assert run("train", *halves, *TILTS, "--out", tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "steps: 9" in printed
    assert "seed: 3" in printed
    assert "width: 32" in printed  # of the preset that the file names


@pytest.mark.fault(51)
def test_a_number_may_be_written_as_text_in_a_configuration(halves, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text('learning_rate: "1e-3"\nequivariance_weight: 1e0\n')
    arguments = ["--config", tmp_path / "config.yaml", "--print_config"]
    assert run("train", *halves, *TILTS, "--out", tmp_path, *arguments) == 0
    assert "learning_rate: 0.001" in capsys.readouterr().out


def test_options_may_be_written_with_hyphens(halves, tmp_path, capsys):
    arguments = ["--learning-rate", "0.5", "--tilt-axis=x", "--print_config"]
    assert run("train", *halves, *TILTS, "--out", tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "learning_rate: 0.5" in printed
    assert "tilt_axis: x" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--resume"], "resume: true"), (["--no-flips"], "flips: false"), (["--no_flips", "--flips"], "flips: true")],
)
def test_a_switch_is_its_name_or_its_name_after_no(halves, tmp_path, capsys, arguments, expected):
    assert run("train", *halves, *TILTS, *arguments, "--out", tmp_path, "--print_config") == 0
    assert expected in capsys.readouterr().out


CONFIGURATIONS = {
    "50 an unknown key": ("sied: 16", r"does not accept option 'sied'; did you mean 'side'"),
    "50 an unknown key of another kind": ("leaning_rate: 1.0", r"did you mean 'learning_rate'"),
    "51 a text for a number": ("steps: many", r"steps.*\n?.*int.*many"),
    "51 a fraction for a whole number": ("batch: 16.5", r"batch.*\n?.*int.*16\.5"),
    "51 a list for a number": ("learning_rate: [1.0]", r"learning_rate.*\n?.*float"),
    "an unknown choice": ("schedule: cube", r"schedule.*\n?.*'constant'.*'cosine'"),
    "an unknown preset": ("preset: huge", r"preset is one of paper, .*tiny.*'huge'"),
    "52 a Python object": ("out: !!python/object/apply:os.mkdir [pwned]", r"python/object"),
    "no YAML": ("side: [16", r"(?s)side|YAML|yaml|pars"),
}


@pytest.mark.parametrize("name", numbered(CONFIGURATIONS))
def test_a_configuration_with_a_mistake_is_refused(halves, tmp_path, capsys, monkeypatch, name):
    line, message = CONFIGURATIONS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(f"{line}\n")
    assert run("train", *halves, *TILTS, "--out", "run", "--config", "config.yaml") == 2
    assert re.search(message, capsys.readouterr().err)
    assert files_in(tmp_path) == {"config.yaml"}
    assert not (tmp_path / "pwned").exists()


@pytest.mark.fault(53)
@pytest.mark.parametrize("how", ["option", "configuration"])
@pytest.mark.parametrize("out", ["../elsewhere/run", "a/../b/./run", "{}/absolute/run"])
def test_a_run_is_where_the_user_says_and_nowhere_else(halves, tmp_path, monkeypatch, how, out):
    here, out = tmp_path / "here", out.format(tmp_path)
    (here / "a").mkdir(parents=True)
    monkeypatch.chdir(here)
    (tmp_path / "config.yaml").write_text(f"out: {out}\n")
    arguments = ["--out", out] if how == "option" else ["--config", tmp_path / "config.yaml"]
    assert run("train", *halves, *TILTS, *TINY, *arguments) == 0
    inside = os.path.relpath(os.path.normpath(here / out), tmp_path)
    assert {name for name in files_in(tmp_path) if not name.startswith(f"{inside}/")} == {"config.yaml"}
    assert load_checkpoint(Path(out)).state["step"] == 8


def test_a_configuration_that_is_not_there_is_refused_by_name(capsys):
    assert run("train", "--config", "nowhere.yaml") == 2
    assert "nowhere.yaml" in capsys.readouterr().err


# Fourier shell correlation ---------------------------------------------------------------------------


def printed_table(text):
    """Return the numbers that `fsc` prints, by region."""
    lines = [line.split() for line in text.splitlines()[1:] if line.split()]
    return {words[0]: tuple(map(float, words[1:3])) for words in lines if words[0] in ("whole", "measured", "wedge")}


def test_fsc_prints_the_numbers_of_the_library(halves, capsys):
    assert run("fsc", *halves, *TILTS) == 0
    found = printed_table(capsys.readouterr().out)
    first, second = (np.asarray(read_volume(path).data, np.float32) for path in halves)
    regions = region_masks(SHAPE, TiltGeometry.from_range(-60, 60))
    masks = {"whole": None, "measured": regions.measured, "wedge": regions.wedge}
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        curve = fourier_shell_correlation(first, second, voxel_size=13.5, mask=mask)
        expected = (curve.resolution(0.5), curve.resolution(0.143))
        assert found[name] == pytest.approx(expected, abs=0.051, nan_ok=True)


def test_fsc_without_tilts_compares_the_whole(halves, capsys):
    assert run("fsc", *halves) == 0
    assert printed_table(capsys.readouterr().out).keys() == {"whole"}


def test_fsc_of_halves_with_different_tilts_compares_what_both_or_neither_have_measured(halves):
    def curves(**tilts):
        return Comparison(ComparedFiles(*map(str, halves), **tilts)).curves()

    found = curves(tilts="-60,40", second_tilts="-40,60")
    expected = {"measured": curves(tilts="-40,40")["measured"], "wedge": curves(tilts="-60,60")["wedge"]}
    for name, curve in expected.items():
        torch.testing.assert_close(found[name].correlation, curve.correlation, equal_nan=True)
        assert not torch.equal(curves(tilts="-60,40")[name].correlation, curve.correlation)


def test_fsc_refuses_the_tilts_of_the_second_half_alone(halves, capsys):
    assert run("fsc", *halves, "--second-tilts=-60,60") == 2
    assert (
        "--second-tilts are those of the second half: pass --tilts, those of the first, too" in capsys.readouterr().err
    )


def test_fsc_also_compares_by_direction(halves, capsys):
    assert run("fsc", *halves) == 0
    printed = capsys.readouterr().out
    first, second = (np.asarray(read_volume(path).data, np.float32) for path in halves)
    for axis, curve in conical_fsc(first, second, voxel_size=13.5).items():
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(f"along {axis}"))
        assert line.split()[2:] == [f"{curve.resolution(threshold):.1f}" for threshold in (0.5, 0.143)]


@pytest.mark.parametrize("is_soft", [False, True])
def test_fsc_compares_inside_a_mask(halves, tmp_path, capsys, is_soft):
    """A mask of zeros and ones gets soft edges, and one with values between is taken as it is."""
    window = torch.zeros(SHAPE)
    window[3:-3, 4:-4, 5:-5] = 1
    if is_soft:
        window = soft_mask(window, 4)
    write_volume(tmp_path / "mask.mrc", window.numpy(), voxel_size=13.5)
    assert run("fsc", *halves, *TILTS, "--mask", tmp_path / "mask.mrc", "--picture", tmp_path / "fsc.png") == 0
    found = {line.split()[0]: line.split()[1:3] for line in capsys.readouterr().out.splitlines() if "along" not in line}
    first, second = (np.asarray(read_volume(path).data, np.float32) for path in halves)
    expected = masked_fsc(
        first,
        second,
        window if is_soft else soft_mask(window),
        voxel_size=13.5,
        generator=torch.Generator().manual_seed(0),
    )
    for name in ("unmasked", "masked"):
        curve = getattr(expected, name)
        assert found[name] == [f"{curve.resolution(threshold):.1f}" for threshold in (0.5, 0.143)]
    assert found["whole"] == [f"{expected.corrected.resolution(threshold):.1f}" for threshold in (0.5, 0.143)]
    assert {"measured", "wedge", "randomised"} < found.keys()


@pytest.mark.fault(45, 46)
@pytest.mark.parametrize(
    "mask, message",
    [
        (np.ones((17, 20, 22), np.float32), r"mask has shape \(17, 20, 22\)"),
        (np.zeros(SHAPE, np.float32), "the mask is empty"),
    ],
)
def test_fsc_refuses_a_mask_that_does_not_fit(halves, tmp_path, capsys, mask, message):
    write_volume(tmp_path / "mask.mrc", mask, voxel_size=13.5)
    assert run("fsc", *halves, "--mask", tmp_path / "mask.mrc") == 2
    assert re.search(message, capsys.readouterr().err)


def test_fsc_draws_its_curves(halves, tmp_path):
    assert run("fsc", *halves, *TILTS, "--picture", tmp_path / "fsc.png") == 0
    assert (tmp_path / "fsc.png").read_bytes().startswith(b"\x89PNG")


# What is refused -------------------------------------------------------------------------------------


def truncate(case):
    case.damage(lambda content: content[:-100])


def no_map_mark(case):
    def change(content):
        content[208:212] = b"\0\0\0\0"
        content[220:224] = b"\0\0\0\0"

    case.damage(change)


def three_terabytes(case):
    def change(content):
        content[0:4] = (2**31 - 1).to_bytes(4, "little")

    case.damage(change)


def nan_voxels(case):
    case.second[3, 4, 5] = float("nan")


def constant(case):
    case.second[:] = 7.0


def other_shape(case):
    case.second = case.second[:, :, :-1]


def other_voxel_size(case):
    case.voxel_sizes = [10.0, 10.5]


def equal_halves(case):
    case.second = case.first


def same_path(case):
    case.paths[1] = case.paths[0]


def hard_link(case):
    case.write()
    case.paths[1].unlink()
    os.link(*case.paths)


def missing_half(case):
    case.paths[1] = case.folder / "nowhere.mrc"
    write(case.paths[0], case.first)
    case.write = lambda: None


def tilts(text, name="series.tlt"):
    return lambda case: case.tilt_file(text, name)


def tilt_argument(text):
    def fault(case):
        case.tilts = text

    return fault


def settings(*arguments):
    def fault(case):
        case.settings = list(arguments)

    return fault


def small_volume(case):
    case.first, case.second = noisy_halves((12, 20, 22))


def mask_of_other_shape(case):
    case.mask(np.ones((18, 20, 21)))


def empty_mask(case):
    case.mask(np.zeros((18, 20, 22)))


def sparse_mask(case):
    mask = np.zeros((18, 20, 22))
    mask[9, 10, 11] = 1
    case.mask(mask)


def mask_with_nan(case):
    mask = np.ones((18, 20, 22))
    mask[9, 10, 11] = np.nan
    case.mask(mask)


def out_is_a_file(case):
    case.out.write_text("a file")


def init_is_a_pickle(case):
    torch.save({}, case.folder / "model.pt")
    case.settings = ["--init", case.folder / "model.pt"]


def out_is_a_loop(case):
    case.out.symlink_to("run")


def nul_in_out(case):
    case.out = "a\0b"


def out_without_permission(case):
    case.write()
    case.out.mkdir()
    case.patch.setattr(os, "access", lambda path, mode: False)


def full_disk(case):
    case.write()
    case.patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 10**5, 10**5))


def link_for_a_lock(case):
    case.out.mkdir()
    (case.out / "run.lock").symlink_to("/nowhere")


def link_for_the_losses(case):
    case.out.mkdir()
    (case.out / "losses.csv").symlink_to("/nowhere")


def input_among_the_results(case):
    (case.out / "previews").mkdir(parents=True)
    case.paths[0] = case.out / "previews" / "even.mrc"
    case.settings = ["--overwrite"]


def configuration(content):
    def fault(case):
        (case.folder / "config.yaml").write_bytes(content)
        case.settings = ["--config", case.folder / "config.yaml"]

    return fault


def out_below_a_file(case):
    (case.folder / "file").write_text("a file")
    case.out = case.folder / "file" / "run"


FAULTS = {
    "1 truncated": (truncate, r"odd\.mrc: truncated: .* asks for \d+ bytes, found \d+\. Copy or export"),
    "2 no MAP mark": (no_map_mark, r"odd\.mrc: no MAP mark.*permissive"),
    "12 terabytes": (three_terabytes, r"odd\.mrc: truncated: .* asks for \d{12,} bytes"),
    "19 NaN": (nan_voxels, r"odd\.mrc holds 1 voxels.*z 3, y 4, x 5.*--nan mean to replace"),
    "20 constant": (constant, r"equitomo: \S*odd\.mrc is constant \(7 throughout\)"),
    "22 shapes": (other_shape, r"even\.mrc has \(18, 20, 22\) and .*odd\.mrc \(18, 20, 21\)"),
    "23 voxel sizes": (other_voxel_size, r"even\.mrc has \(10\.0.*odd\.mrc \(10\.5.*correct the header"),
    "24 equal halves": (equal_halves, r"odd\.mrc: the halves are not independent.*odd/even"),
    "26 same path": (same_path, r"even\.mrc and .*even\.mrc are the same file: give the two half tomograms"),
    "26 hard link": (hard_link, r"even\.mrc and .*odd\.mrc are the same file"),
    "30 missing half": (missing_half, r"no such file.*nowhere\.mrc"),
    "30 missing tilts": (tilt_argument("nowhere.tlt"), r"no such file.*nowhere\.tlt"),
    "30 empty tilts": (tilts(""), r"series\.tlt: the tilt file is empty"),
    "31 a line of text": (tilts("-60\nzero\n60\n"), r"series\.tlt: line 2: 'zero' is not a tilt angle"),
    "31 a NaN": (tilts("-60\nnan\n60\n"), r"series\.tlt: line 2: 'nan' is not a tilt angle"),
    "32 one angle": (tilts("-60\n"), r"series\.tlt: 1 different tilt angle.*one per image"),
    "35 beyond 90": (tilts("-60\n0\n120\n"), r"series\.tlt: line 3: 120 .*between -90 and 90.*radians or degrees"),
    "35 a range beyond 90": (tilt_argument("-60,100"), r"within -90 and 90 degrees.*-60 to 100"),
    "36 radians": (tilts("-1\n0\n1\n"), r"series\.tlt: all angles lie .* they seem to be radians, expected degrees"),
    "37 reversed": (tilt_argument("60,-60"), r"lower tilt must be below the higher one, got \(60, -60\)"),
    "37 equal": (tilt_argument("30,30"), r"lower tilt must be below the higher one"),
    "37 one number": (tilt_argument("60"), r"--tilts is a file or LOW,HIGH in degrees such as -60,60, got '60'"),
    "37 three numbers": (tilt_argument("-60,0,60"), r"--tilts is a file or LOW,HIGH"),
    "31 an alignment": (tilts("1 0 0 1 0 0\n", "a.xf"), r"a\.xf: .*hold no tilt angles, .*no a\.tlt beside them"),
    "39 nothing missing": (tilt_argument("-90,90"), r"span less than 180, got -90 to 90"),
    "40 smaller than a cube": (small_volume, r"cubes of 16 .*odd\.mrc of \(12, 20, 22\).*largest side that does is 12"),
    "42 not a multiple": (settings("--side", "42", "--levels", "4"), r"side must be a multiple of 8.*use 40 or 48"),
    "43 odd": (settings("--side", "17"), r"side must be a multiple of 2 .*got 17: use 16 or 18"),
    "45 mask of other shape": (mask_of_other_shape, r"odd\.mrc: the mask has shape \(18, 20, 21\), the tomogram"),
    "46 empty mask": (empty_mask, r"odd\.mrc: the mask is empty"),
    "46 no valid start": (sparse_mask, r"no cube of 16 .*odd\.mrc.*fullest one holds 0\.000244.*lower --min-specimen"),
    "47 NaN in the mask": (mask_with_nan, r"equitomo: \S*mask\.mrc holds 1 voxels"),
    "48 no batch": (settings("--batch", "0"), r"batch must be at least 1, got 0"),
    "48 no steps": (settings("--steps", "0"), r"steps must be at least 1, got 0"),
    "48 negative steps": (settings("--steps=-3"), r"steps must be at least 1, got -3"),
    "49 rate NaN": (settings("--learning_rate", "nan"), r"learning_rate.*\n?.*nan"),
    "49 rate negative": (settings("--learning_rate=-1e-3"), r"--learning-rate must be a positive number, got -0\.001"),
    "50 unknown option": (settings("--stpes", "3"), r"--stpes 3; did you mean 'steps'"),
    "50 abbreviated option": (settings("--checkpoint", "3"), r"[Uu]nrecognized arguments: --checkpoint 3"),
    "55 out is a file": (out_is_a_file, r"--out .*run is a file: name a folder"),
    "52 an alias bomb": (configuration(b"a: &a [x, x]\nb: [*a, *a]"), r"config\.yaml uses YAML anchors or aliases"),
    "52 too deep": (configuration(b"steps: " + b"[" * 9999), r"config\.yaml is nested more than 3 deep"),
    "52 too large": (configuration(b"#" * 70_000), r"config\.yaml has more than 65536 bytes"),
    "52 a key twice": (configuration(b"steps: 3\nsteps: 4"), r"config\.yaml names 'steps' twice"),
    "52 another file": (configuration(b"config: other.yaml"), r"config\.yaml names another configuration"),
    "52 no text": (configuration(b"\xff\xfe"), r"config\.yaml is not a text file"),
    "52 a long number": (configuration(b"steps: " + b"9" * 5000), r"4300 digits"),
    "52 a list for a preset": (configuration(b"preset: [tiny]"), r"preset.*\n?.*str"),
    "53 no name for out": (settings("--out="), r"the name of a file must not be empty.* got ''"),
    "53 NUL in out": (nul_in_out, r"must not be empty or contain NUL characters, got 'a\\x00b'"),
    "55 out is a loop": (out_is_a_loop, r"cannot write into --out .*run: File exists"),
    "55 out without permission": (out_without_permission, r"cannot write into --out .*run: Permission denied"),
    "56 a link for the lock": (link_for_a_lock, r"cannot write into --out .*run: Too many levels of symbolic links"),
    "56 a link for the losses": (link_for_the_losses, r"run holds a run already \(losses\.csv\)"),
    "56 an input among the results": (
        input_among_the_results,
        r"even\.mrc is among the files that a run in .*run writes: move it, or choose another --out",
    ),
    "57 a full disk": (full_disk, r"disk has 0\.1 MB for this run, which needs about [\d.]+ MB .*Free some space.*run"),
    "62 init is a pickle": (init_is_a_pickle, r"--init .*model\.pt is a file.*with `equitomo convert`"),
    "55 out below a file": (out_below_a_file, r"cannot write into --out .*run"),
    "61 init of other width": (None, r"weights of the given network do not fit.*--width, --levels and --unshuffle"),
    "61 init is no checkpoint": (settings("--init", "nowhere"), r"no sound checkpoint in nowhere.*give a run's folder"),
    "resume without a run": (
        settings("--resume"),
        r"no checkpoint in .*run to resume: start a run there without --resume",
    ),
    "both": (settings("--resume", "--overwrite"), r"--resume continues a run and --overwrite replaces it: pass one"),
    "no such device": (settings("--device", "cpux"), r"device 'cpux' cannot be used here.*use 'auto' or 'cpu'"),
}


def assert_refused(status, message, case, before, capsys):
    captured = capsys.readouterr()
    assert status == 2, captured.err
    assert re.search(message, captured.err), captured.err
    assert "Traceback" not in captured.err
    # No folder either.
    assert set(case.folder.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
@pytest.mark.parametrize("name", numbered(FAULTS))
def test_a_fault_is_refused_before_any_work(name, tmp_path, capsys, request, monkeypatch):
    case = Case(tmp_path, monkeypatch)
    fault, message = FAULTS[name]
    if fault is None:
        fault = settings("--init", request.getfixturevalue("finished"), "--width", "6")
    fault(case)
    case.write()
    before = set(tmp_path.rglob("*"))
    assert_refused(case.run(), message, case, before, capsys)


@pytest.mark.fault(54)
def test_a_folder_with_a_run_is_refused(finished, halves, capsys):
    before = files_in(finished)
    assert run("reconstruct", *halves, *TILTS, "--out", finished, *TINY, *TILED) == 2
    message = r"run holds a run already \(checkpoints, .*: continue it with --resume, replace it with --overwrite"
    assert re.search(message, capsys.readouterr().err)
    assert files_in(finished) == before


@pytest.mark.fault(60)
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(finished, halves, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert run("train", *halves, *TILTS, "--out", tmp_path, *TINY, "--resume") == 2
    assert re.search(r"no sound checkpoint in .*weights\.safetensors was changed or cut short", capsys.readouterr().err)


@pytest.mark.fault(61)
def test_resuming_with_other_settings_is_refused_with_each(finished, halves, capsys):
    assert run("train", *halves, *TILTS, "--out", finished, *TINY, "--seed", "5", "--resume") == 2
    assert "other settings: --seed was 0, now 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile", "17", "--tile_margin", "4"], "tile"),
        (["--tile", "8", "--tile_margin", "4"], "tile"),
        (["--tile_margin=-1"], "margin"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_before_the_training(halves, tmp_path, capsys, arguments, message):
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path / "run", *TINY, *arguments) == 2
    assert message in capsys.readouterr().err
    assert files_in(tmp_path) == set()


def test_intensities_beyond_float16_are_refused_before_the_training(tmp_path, capsys):
    paths = [tmp_path / "a.mrc", tmp_path / "b.mrc"]
    for path, half in zip(paths, noisy_halves(), strict=True):
        write(path, 1e5 * half)
    arguments = ["--out", tmp_path / "run", *TINY, *TILED, "--dtype", "float16"]
    assert run("reconstruct", *paths, *TILTS, *arguments) == 2
    assert "--dtype float16 can hold: write float32" in capsys.readouterr().err


PREDICTIONS = {
    "no run": (["--run", "nowhere"], r"no sound checkpoint in nowhere"),
    "55 out in no folder": (["--out", "nowhere/a.mrc"], r"cannot write in the folder nowhere.*Give one that exists"),
    "55 out is a folder": (["--out", "."], r"taken by a folder"),
    "53 packed out": (["--out", "a.mrc.gz"], r"packed files are not written"),
    "no passes": (["--passes", "0"], r"passes must be at least 1, got 0"),
    "no such device": (["--device", "cpux"], r"device 'cpux' cannot be used here"),
    "tilts": (["--tilts", "nowhere.tlt"], r"no such file.*nowhere\.tlt"),
    "tile": (["--tile", "17"], r"tile"),
}


@pytest.mark.parametrize("name", numbered(PREDICTIONS))
def test_a_prediction_that_cannot_be_is_refused(halves, finished, tmp_path, capsys, monkeypatch, name):
    arguments, message = PREDICTIONS[name]
    monkeypatch.chdir(tmp_path)
    defaults = ["--run", finished, "--out", "a.mrc", "--device", "cpu"]
    assert run("predict", *halves, *defaults, *arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert files_in(tmp_path) == set()


@pytest.mark.fault(55)
def test_a_folder_without_permission_to_write_is_refused_before_the_work(
    halves, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run("predict", *halves, "--run", finished, "--out", tmp_path / "a.mrc", "--device", "cpu") == 2
    assert "cannot write in the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8"], "--size 8 is less than the side of a training cube, 16"),
        (["--snr", "0"], "snr must be positive, got 0"),
        (["--device", "cpux"], "device 'cpux' cannot be used here"),
        (["--tile", "17"], "tile"),
    ],
)
def test_a_demo_that_cannot_be_is_refused(tmp_path, capsys, arguments, message):
    assert run("demo", "--out", tmp_path / "demo", *TINY, "--size", "24", *arguments) == 2
    assert message in capsys.readouterr().err
    assert files_in(tmp_path) == set()


def test_fsc_refuses_a_picture_of_another_kind(halves, capsys):
    assert run("fsc", *halves, "--picture", "fsc.mrc") == 2
    assert "picture must be the name of a .png file, got fsc.mrc" in capsys.readouterr().err


@pytest.mark.fault(1, 19, 22, 26)
@pytest.mark.parametrize("fault", [nan_voxels, other_shape, same_path, truncate])
def test_fsc_refuses_what_cannot_be_compared(tmp_path, capsys, fault):
    case = Case(tmp_path)
    fault(case)
    case.write()
    assert run("fsc", *case.paths) == 2
    assert ".mrc" in capsys.readouterr().err


# What is warned of, and done -------------------------------------------------------------------------


def outlier(case):
    case.first[2, 2, 2] = 1e4


def inverted(case):
    case.second = -case.second


def no_voxel_size(case):
    case.voxel_sizes = [0.0, 0.0]


def grey_mask(case):
    case.mask(np.full((18, 20, 22), 0.5))


SURPRISES = {
    "21 an outlier": (outlier, r"even\.mrc holds values \d+ standard deviations from the mean"),
    "25 an inverted half": (inverted, r"odd\.mrc: the halves are anticorrelated.*contrast"),
    "28 no voxel size": (no_voxel_size, r"even\.mrc: no voxel size in the header"),
    "33 unsorted tilts": (tilts("-60\n60\n0\n"), r"series\.tlt: the angles are not in ascending order"),
    "34 repeated tilts": (tilts("-60\n0\n0\n60\n"), r"series\.tlt: angles repeat \(0\)"),
    "47 a grey mask": (grey_mask, r"odd\.mrc: the mask is not binary"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", numbered(SURPRISES))
def test_a_surprise_is_warned_of_and_the_work_is_done(name, tmp_path, capsys):
    case = Case(tmp_path)
    fault, message = SURPRISES[name]
    fault(case)
    assert case.run() == 0
    assert re.search(f"equitomo: warning: .*{message}", capsys.readouterr().err)
    assert "losses.csv" in files_in(case.out)


@pytest.mark.fault(8)
def test_halves_of_16_bits_are_read(tmp_path):
    case = Case(tmp_path)
    for path, half in zip(case.paths, (case.first, case.second), strict=True):
        write_volume(path, half.numpy(), voxel_size=10.0, dtype="float16")
    assert case.run() == 0


@pytest.mark.fault(41)
def test_a_cube_may_be_as_large_as_the_volume(tmp_path):
    case = Case(tmp_path)
    case.first, case.second = noisy_halves((16, 16, 16))
    assert case.run() == 0


@pytest.mark.fault(2)
@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
def test_a_file_without_the_mark_is_read_if_it_is_asked_for(tmp_path):
    case = Case(tmp_path)
    no_map_mark(case)
    case.settings = ["--permissive"]
    assert case.run() == 0


@pytest.mark.filterwarnings("ignore::equitomo.io.FileFormatWarning")
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_mask_without_the_mark_is_read_if_it_is_asked_for(tmp_path, capsys, command):
    case = Case(tmp_path)
    case.mask(np.ones((18, 20, 22)))
    content = bytearray((tmp_path / "mask.mrc").read_bytes())
    content[208:212] = content[220:224] = bytes(4)
    (tmp_path / "mask.mrc").write_bytes(content)
    assert case.run(command) != 0
    assert re.search(r"mask\.mrc: no MAP mark.*permissive", "".join(capsys.readouterr()))
    case.settings.append("--permissive")
    assert case.run(command) == 0


# Exit statuses and the shell -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault(58, 59)
def test_a_stopped_run_goes_on_to_the_bit_wherever_it_was_stopped():
    """Only a few moments are tried; `python tests/kills.py` tries as many as are asked for."""
    folder = Path(__file__).parent
    places = os.pathsep.join([str(Path(equitomo.__file__).parents[1]), str(folder)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    arguments = ["--kills", "3", "--steps", "6", "--signals", "SIGKILL", "SIGKILL", "SIGTERM"]
    command = [sys.executable, str(folder / "kills.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "every run ended as the unbroken one, to the bit" in done.stdout


@pytest.mark.fault(57)
@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_is_74_and_says_what_to_do(halves, tmp_path, monkeypatch, capsys, number):
    def full(*arguments, **settings):
        raise OSError(getattr(errno, number), "no room", "reconstruction.mrc")

    monkeypatch.setattr("equitomo.run.prediction.creating_volume", full)
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED) == 74
    message = r"no room.*reconstruction\.mrc.*free some space and continue with --resume"
    assert re.search(message, capsys.readouterr().err)


def test_another_failure_to_write_is_74_without_a_traceback(halves, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **settings):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("equitomo.run.prediction.creating_volume", fail)
    assert run("reconstruct", *halves, *TILTS, "--out", tmp_path, *TINY, *TILED) == 74
    assert "equitomo: [Errno 5] input/output error" in capsys.readouterr().err


@pytest.mark.fault(65)
def test_a_run_that_diverges_is_1_and_says_where_the_good_weights_are(halves, tmp_path, monkeypatch, capsys):
    train = IcecreamTrainer.train

    def spoilt(self, *given):
        self.dataset.pairs[0].volumes.fill_(float("nan"))
        return train(self, *given)

    monkeypatch.setattr(IcecreamTrainer, "train", spoilt)
    assert run("train", *halves, *TILTS, "--out", tmp_path, *TINY) == 1
    assert re.search(r"no finite gradient.*the weights are good: .*step_", capsys.readouterr().err)


@pytest.mark.fault(44, 64)
def test_a_cube_that_no_memory_holds_is_1_and_says_what_needs_less(halves, tmp_path, monkeypatch, capsys):
    def full(self, x):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("equitomo.models.ScaleEquivariantUNet3D.forward", full)
    assert run("train", *halves, *TILTS, "--out", tmp_path, *TINY) == 1
    assert re.search(r"out of memory with 1 cube .*lower --side or --width", capsys.readouterr().err)


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            "equitomo: CUDA out of memory. Tried",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), r"out of memory: .* needs less \(DefaultCPUAllocator"),
        (MemoryError("cannot allocate 9 bytes"), r"out of memory: .* needs less \(cannot allocate"),
    ],
)
def test_a_tile_that_no_memory_holds_is_1_with_the_message_of_torch(
    error, said, halves, finished, tmp_path, monkeypatch, capsys
):
    def full(self, x):
        raise error

    monkeypatch.setattr("equitomo.models.ScaleEquivariantUNet3D.forward", full)
    settings = ["--run", finished, "--out", tmp_path / "a.mrc", "--device", "cpu", *TILED]
    assert run("predict", *halves, *settings) == 1
    assert re.search(said, capsys.readouterr().err)
    assert files_in(tmp_path) == set()


@pytest.mark.fault(66)
def test_sixteen_bits_that_are_computed_wrongly_are_refused(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("equitomo.precision._measured_fault", lambda dtype, device: "convolutions are wrong here")
    settings = [*TINY, "--precision", "bfloat16"]
    assert run("train", *halves, *TILTS, "--out", tmp_path / "run", *settings) == 2
    assert "convolutions are wrong here: pass" in capsys.readouterr().err
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["--nonsense"], ["train", "--preset"]])
def test_a_command_line_that_makes_no_sense_is_2(arguments, capsys):
    assert run(*arguments) == 2
    assert re.search(r"error: |equitomo: preset is one of", capsys.readouterr().err)


def shell(*command, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **settings)


@pytest.mark.parametrize("arguments", [["--help"], ["reconstruct", "--help"], ["--version"], ["train"]])
def test_help_and_mistakes_are_answered_without_torch(arguments):
    code = f"""
import sys
from equitomo.cli import main
try:
    main({arguments!r})
except SystemExit as error:
    assert error.code == {2 if arguments == ["train"] else 0}, error.code
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    done = shell(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command():
    done = shell(sys.executable, "-m", "equitomo", "--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("reconstruct", "demo", "train", "predict", "convert", "fsc"))


def test_the_console_script_compares_two_files(halves):
    script = shutil.which("equitomo", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package's script is not installed")
    done = shell(script, "fsc", *map(str, halves))
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout


@pytest.mark.slow
@pytest.mark.fault(59)
def test_a_terminated_process_saves_and_ends_with_130(halves, tmp_path):
    arguments = [*map(str, halves), *TILTS, "--out", str(tmp_path / "run"), *TINY, "--steps", "100000"]
    command = [sys.executable, "-m", "equitomo", "train", *arguments, "--checkpoint_every", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    try:
        while not list((tmp_path / "run").glob("checkpoints/step_*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, err
    step = int(re.search(r"stopped by SIGTERM after step (\d+) of 100000; resume to continue", err)[1])
    assert load_checkpoint(tmp_path / "run").state["step"] == step


# Dual-axis series ------------------------------------------------------------------------------------


def test_a_dual_axis_tomogram_is_reconstructed_with_the_tilts_about_both_axes(halves, tmp_path):
    (tmp_path / "second.tlt").write_text("".join(f"{tilt}\n" for tilt in range(-50, 51, 5)))
    tilts = [*TILTS, "--second-axis-tilts", tmp_path / "second.tlt"]
    assert run("reconstruct", *halves, *tilts, "--out", tmp_path / "run", *TINY, *TILED) == 0
    (geometry,) = load_checkpoint(tmp_path / "run").geometries
    assert geometry == TiltGeometry.from_range(-60, 60) | TiltGeometry(range(-50, 51, 5), "x")
    assert "second.tlt" in (tmp_path / "run" / "manifest.json").read_text()


def test_a_dual_axis_tomogram_is_checked_and_predicted(halves, finished, tmp_path, capsys):
    tilts = [*TILTS, "--second-axis-tilts", "-50,50"]
    picture = tmp_path / "wedge.png"
    assert run("check", *halves, *tilts, *TINY, "--out", tmp_path / "run", "--picture", picture) in (0, 1)
    assert "several tilt series leave a gap that is not one sector" in capsys.readouterr().out
    assert run("predict", *halves, *tilts, "--run", finished, "--out", tmp_path / "dual.mrc", *TILED) == 0
    assert (read_volume(tmp_path / "dual.mrc").data != read_volume(finished / "reconstruction.mrc").data).any()


def test_tilts_about_a_second_axis_need_those_about_the_first(halves, finished, tmp_path, capsys):
    second = ["--second-axis-tilts=-50,50", "--out", tmp_path / "out.mrc"]
    assert run("predict", *halves, *second, "--run", finished) == 2
    assert "pass the --tilts of the first one too" in capsys.readouterr().err
