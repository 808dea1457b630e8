"""The commands on OME-Zarr stores: what they give is what they give on MRC files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from making import noisy_halves

from equitomo import read_volume, write_volume
from equitomo.cli import main

pytest.importorskip("zarr")

TINY = [
    *("--preset", "tiny", "--side", "16", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--steps", "2"),
    *("--margin", "4"),
    *("--preview_every", "2", "--device", "cpu", "--precision", "float32"),
]
TILTS = ["--tilts", "-60,60"]
TILED = ["--tile", "24", "--tile_margin", "4"]


def run(*arguments):
    """Return the exit status of the program."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write two halves in both formats, and train a run on each."""
    folder = tmp_path_factory.mktemp("zarr")
    for name, half in zip(("even", "odd"), noisy_halves((17, 20, 23)), strict=True):
        file = read_volume(write_volume(folder / f"{name}.mrc", half.numpy(), voxel_size=9.96))
        file.header.record["origin"]["x"] = -115.0
        write_volume(folder / f"{name}.mrc", half.numpy(), like=file, overwrite=True)
        write_volume(folder / f"{name}.zarr", half.numpy(), like=file)
    for kind, halves in {"mrc": ("even.mrc", "odd.mrc"), "zarr": ("even.zarr", "odd.zarr")}.items():
        assert run("train", *(folder / half for half in halves), *TILTS, "--out", folder / f"of_{kind}", *TINY) == 0
    return folder


def test_training_on_stores_is_training_on_files(folder):
    losses = [(folder / f"of_{kind}" / "losses.csv").read_text().splitlines() for kind in ("mrc", "zarr")]
    # The last column is the time.
    assert [line.split(",")[:3] for line in losses[0]] == [line.split(",")[:3] for line in losses[1]]


@pytest.mark.parametrize("wedge", ["tile", "global"])
@pytest.mark.parametrize("suffixes", [("zarr", "zarr"), ("mrc", "zarr"), ("zarr", "mrc")])
def test_a_prediction_is_the_same_from_and_to_either_format(folder, suffixes, wedge, tmp_path):
    settings = ["--run", folder / "of_mrc", *TILED, "--wedge", wedge, "--passes", "2"]
    assert run("predict", folder / "even.mrc", folder / "odd.mrc", "--out", tmp_path / "all.mrc", *settings) == 0
    halves = [folder / f"{name}.{suffix}" for name, suffix in zip(("even", "odd"), suffixes, strict=True)]
    assert run("predict", *halves, "--out", tmp_path / "out.zarr", *settings) == 0
    expected, found = read_volume(tmp_path / "all.mrc"), read_volume(tmp_path / "out.zarr")
    np.testing.assert_array_equal(np.asarray(found.data), expected.data)
    np.testing.assert_allclose(found.voxel_size, expected.voxel_size, rtol=1e-6)
    assert found.header.origin == expected.header.origin == (0.0, 0.0, -115.0)
    assert {path.name for path in tmp_path.iterdir()} == {"all.mrc", "out.zarr"}


def test_a_prediction_may_be_written_as_float16(folder, tmp_path):
    arguments = ["--run", folder / "of_zarr", *TILED, "--dtype", "float16", "--out", tmp_path / "out.zarr"]
    assert run("predict", folder / "even.zarr", *arguments) == 0
    assert read_volume(tmp_path / "out.zarr").data.dtype == np.float16


def test_the_manifest_knows_a_store_by_its_content(folder, tmp_path, capsys):
    first = json.loads((folder / "of_zarr" / "manifest.json").read_text())["inputs"]["first"]
    files = [path for path in (folder / "even.zarr").rglob("*") if path.is_file()]
    assert first["bytes"] == sum(path.stat().st_size for path in files)
    assert first["header"]["origin"] == [0.0, 0.0, -115.0]
    halves = []
    for name in ("even", "odd"):
        halves.append(tmp_path / f"{name}.zarr")
        volume = read_volume(folder / f"{name}.zarr")
        write_volume(halves[-1], np.asarray(volume.data), like=volume)
    train = ["train", *halves, *TILTS, "--out", tmp_path / "run", *TINY]
    assert run(*train) == 0
    assert run(*train, "--resume") == 0
    write_volume(halves[0], np.asarray(read_volume(halves[0]).data)[::-1], voxel_size=10, overwrite=True)
    capsys.readouterr()
    assert run(*train, "--resume") == 2
    assert "is not the first that the run was started with" in capsys.readouterr().err


def test_stores_can_be_correlated(folder, capsys):
    assert run("fsc", folder / "even.zarr", folder / "odd.mrc", *TILTS) == 0
    assert "measured" in capsys.readouterr().out


def test_a_bad_store_is_bad_input(folder, capsys):
    assert run("fsc", folder / "even.zarr" / "9", folder / "odd.mrc") == 2
    assert "no level '9', only: 0, 1, 2" in capsys.readouterr().err
