"""The files with the measured and the filled part of a result."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from commanding import TINY, files_in, run, write
from making import noisy_halves

from equitomo import Run, TomogramPair, read_volume, resources
from equitomo.filled import full_wedge_mask, measured_part
from equitomo.run import Prediction, ReconstructionSettings
from equitomo.run.splitting import Split
from equitomo.spots import filled_spots

TILES = ["--tile", "16", "--tile-margin", "0"]
PARTS = {"measured.mrc", "filled.mrc", "data_consistent.mrc", "wedge_mask.mrc"}
SPOTS = {"filled_spots.csv", "filled_spots.png"}
RANGE = (-50.0, 60.0)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    for name, half in zip(("even", "odd"), noisy_halves((18, 20, 22)), strict=True):
        write(folder / f"{name}.mrc", 300 + 40 * half.numpy())
    return [folder / "even.mrc", folder / "odd.mrc"]


@pytest.fixture(scope="module")
def folder(halves, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run("reconstruct", *halves, "--tilts=-50,60", "--out", out, *TINY, *TILES, "--split-result") == 0
    return out


def test_the_parts_of_the_result_add_up_to_it_and_the_filled_part_shows_in_no_projection(folder):
    assert files_in(folder) >= PARTS | SPOTS
    f, measured, filled = (
        np.array(read_volume(folder / name).data) for name in ("reconstruction.mrc", "measured.mrc", "filled.mrc")
    )
    np.testing.assert_allclose(measured + filled, f, atol=1e-6 * np.abs(f).max())
    np.testing.assert_allclose(measured, measured_part(f, RANGE), atol=1e-6 * np.abs(f).max())
    assert np.abs(measured_part(filled, RANGE)).max() < 1e-5 * np.abs(f).max()
    assert np.abs(filled).max() > 1e-2 * np.std(f)


def test_the_data_consistent_volume_has_the_measured_part_of_the_mean_of_the_halves(folder, halves):
    both, filled = (np.array(read_volume(folder / name).data) for name in ("data_consistent.mrc", "filled.mrc"))
    mean = sum(np.array(read_volume(path).data) for path in halves) / 2
    np.testing.assert_allclose(measured_part(both, RANGE), measured_part(mean, RANGE), atol=1e-3)
    np.testing.assert_allclose(both - measured_part(both, RANGE), filled, atol=1e-3)


def test_the_wedge_mask_is_that_of_the_tilts_in_the_shape_of_the_result(folder):
    np.testing.assert_array_equal(read_volume(folder / "wedge_mask.mrc").data, full_wedge_mask((18, 20, 22), RANGE))


def test_headers_say_that_the_wedge_was_filled_and_by_what(folder):
    labels = {name: read_volume(folder / name).header.labels for name in {"reconstruction.mrc", *PARTS}}
    assert labels["reconstruction.mrc"][-1] == "equitomo: wedge filled by a network, fast, 8 steps"
    assert labels["measured.mrc"][-2:] == (
        "equitomo: wedge filled by a network, fast, 8 steps",
        "equitomo: measured part of the result, the wedge is empty again",
    )
    assert "inferred and not measured" in labels["filled.mrc"][-1]
    assert "measured part of the input, wedge filled" in labels["data_consistent.mrc"][-1]
    assert "zero frequency in the first voxel" in labels["wedge_mask.mrc"][-1]


def test_the_spots_are_those_of_the_result_and_are_drawn(folder):
    f, measured = (read_volume(folder / name) for name in ("reconstruction.mrc", "measured.mrc"))
    with (folder / "filled_spots.csv").open() as file:
        listed = [tuple(int(row[name]) for name in "zyx") for row in csv.DictReader(file)]
    assert listed == [spot.position for spot in filled_spots(f, measured, RANGE)]
    assert (folder / "filled_spots.png").read_bytes().startswith(b"\x89PNG")


def test_predict_names_the_parts_after_its_result_and_lists_them(folder, halves, tmp_path, capsys):
    out = tmp_path / "a.mrc"
    given = ["predict", *halves, "--run", folder, "--out", out, *TILES, "--device", "cpu", "--split-result"]
    assert run(*given, "--dtype", "float16") == 0
    assert files_in(tmp_path) == {"a.mrc", *(f"a_{name}" for name in PARTS | SPOTS)}
    printed = capsys.readouterr().out
    assert all(f"Wrote {tmp_path}/a_{name}" in printed for name in PARTS | SPOTS)
    assert read_volume(tmp_path / "a_measured.mrc").dtype == np.float16
    assert run(*given) == 2
    assert "exists" in capsys.readouterr().err


def test_a_preview_has_parts_too_and_lists_them(halves, tmp_path, capsys):
    out = tmp_path / "a.mrc"
    assert run("preview", *halves, "--tilts=-50,60", "--out", out, "--split-result") == 0
    assert files_in(tmp_path) == {"a.mrc", *(f"a_{name}" for name in PARTS | SPOTS)}
    assert f"Wrote {tmp_path}/a_filled.mrc" in capsys.readouterr().out
    assert "prior learned on simulations" in read_volume(tmp_path / "a_measured.mrc").header.labels[-2]


def test_a_new_result_leaves_no_parts_of_an_old_one(folder, halves, tmp_path):
    copied = tmp_path / "run"
    assert run("reconstruct", *halves, "--tilts=-50,60", "--out", copied, *TINY, *TILES, "--split-result") == 0
    assert run("reconstruct", *halves, "--tilts=-50,60", "--out", copied, *TINY, *TILES, "--resume") == 0
    assert not files_in(copied) & (PARTS | SPOTS)


def test_no_part_replaces_an_input(folder, halves, tmp_path, capsys):
    path = write(tmp_path / "a_filled.mrc", read_volume(halves[0]).data)
    given = ["predict", path, "--run", folder, "--out", tmp_path / "a.mrc", *TILES, "--device", "cpu", "--overwrite"]
    assert run(*given, "--split-result") == 2
    assert "a_filled.mrc is one of the inputs" in capsys.readouterr().err


def test_halves_of_clearly_different_tilts_have_no_common_measured_part(folder, tmp_path):
    pair = TomogramPair(*noisy_halves((18, 20, 22)), RANGE, second_geometry=(-20.0, 30.0))
    settings = Prediction(tile=16, tile_margin=0, split_result=True, passes=1, test_time_mirrors=False)
    with pytest.raises(ValueError, match="different tilts, and `split_result` needs those of one volume"):
        Run.open(folder).plan(pair, tmp_path / "a.mrc", settings)
    assert files_in(tmp_path) == set()


def test_a_split_that_does_not_fit_into_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 1000)
    pair = TomogramPair(*noisy_halves((18, 20, 22)), RANGE)
    with pytest.raises(ValueError, match=r"a_measured.mrc: the split takes about .* 1 kB are free"):
        Split(pair, tmp_path / "a.mrc", pair.geometry, ReconstructionSettings(split_result=True), overwrite=False)


def test_tables_are_not_split(folder, halves, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(f"first,second\n{halves[0]},{halves[1]}\n")
    table = ["--table", tmp_path / "table.csv", "--run", folder, "--out", tmp_path / "out", "--split-result"]
    assert run("predict", *table) == 2
    assert "--split-result is for one tomogram" in capsys.readouterr().err
