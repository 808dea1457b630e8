"""Tests of a second network that is trained apart from a first one."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from commanding import TINY, run, write
from making import noisy_halves

from equitomo import TiltGeometry, TrainingConfig, fourier_shell_correlation, read_volume
from equitomo.metrics import region_masks
from equitomo.run import ComparedFiles, TomogramFiles, independent_settings
from equitomo.run.comparison import Comparison
from equitomo.run.independent import results_to_compare
from equitomo.training.checkpoint import load_checkpoint

SHAPE = (18, 20, 22)
TILTS = ["--tilts", "-60,60"]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Write four volumes of one specimen, each with noise of its own."""
    folder = tmp_path_factory.mktemp("volumes")
    specimen, _ = noisy_halves(SHAPE, noise=0.0)
    draws = torch.Generator().manual_seed(5)
    names = [folder / f"{name}.mrc" for name in ("first", "second", "third", "fourth")]
    for name in names:
        write(name, specimen + torch.randn(SHAPE, generator=draws))
    return names


@pytest.fixture(scope="module")
def reconstructed(volumes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert run("reconstruct", *volumes[:2], *TILTS, "--out", folder, *TINY) == 0
    return folder


@pytest.fixture(scope="module")
def compared(volumes, reconstructed):
    """Train the second network; return its folder and the picture."""
    other, picture = reconstructed.parent / "other", reconstructed.parent / "fsc.png"
    arguments = ["--independent", reconstructed, "--out", other, "--picture", picture]
    assert run("fsc", *volumes[2:], *TILTS, *arguments) == 0
    return other, picture


def test_the_second_network_has_the_settings_of_the_first_one_but_not_its_seed(reconstructed, compared):
    first, second = (load_checkpoint(folder).config.as_dict() for folder in (reconstructed, compared[0]))
    assert second.pop("seed") == first.pop("seed") + 1
    assert first == second


def test_the_two_networks_saw_nothing_in_common(reconstructed, compared, volumes):
    inputs = [json.loads((folder / "manifest.json").read_text())["inputs"] for folder in (reconstructed, compared[0])]
    first, second = ({one[role]["path"] for role in ("first", "second")} for one in inputs)
    assert first == {str(path) for path in volumes[:2]}
    assert second == {str(path) for path in volumes[2:]}
    weights = [load_checkpoint(folder).tensors["weights"] for folder in (reconstructed, compared[0])]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_results_of_the_two_networks_are_compared(volumes, reconstructed, compared, capsys):
    other, picture = compared
    assert picture.read_bytes().startswith(b"\x89PNG")
    # A finished second network is not trained again.
    arguments = ["--independent", reconstructed, "--out", other, "--resume"]
    assert run("fsc", *volumes[2:], *TILTS, *arguments) == 0
    printed = capsys.readouterr().out
    results = [np.asarray(read_volume(f / "reconstruction.mrc").data, np.float32) for f in (reconstructed, other)]
    masks = {"whole": None, "wedge": region_masks(SHAPE, TiltGeometry.from_range(-60, 60)).wedge}
    for name, mask in masks.items():
        curve = fourier_shell_correlation(*results, voxel_size=10.0, mask=mask)
        (line,) = (line for line in printed.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:] == [f"{curve.resolution(threshold):.1f}" for threshold in (0.5, 0.143)]


@pytest.mark.filterwarnings("default:both networks start from")
def test_the_second_network_starts_from_what_the_first_one_started_from(volumes, compared, tmp_path, capsys):
    """Its settings alone would train it from scratch for too few steps."""
    start, first, second = compared[0], tmp_path / "first", tmp_path / "second"
    assert run("reconstruct", *volumes[:2], *TILTS, "--out", first, *TINY, "--init", start) == 0
    for out, given in ((second, []), (tmp_path / "scratch", ["--init", "none"])):
        capsys.readouterr()
        assert run("fsc", *volumes[2:], *TILTS, "--independent", first, "--out", out, *given) == 0
        assert ("warning: both networks start from" in capsys.readouterr().err) == (out == second)
    begun = [
        json.loads((tmp_path / name / "manifest.json").read_text())["init"] for name in ("first", "second", "scratch")
    ]
    assert begun[1] == begun[0] is not None
    assert begun[2] is None


def test_results_are_compared_within_the_tilts_of_either_half(reconstructed, compared, tmp_path):
    for name, angles in (("first", (-57, -45, 51)), ("second", (-51, 0, 57))):
        (tmp_path / f"{name}.tlt").write_text("".join(f"{angle}\n" for angle in angles))
    tilts, second_tilts = (str(tmp_path / f"{name}.tlt") for name in ("first", "second"))
    files = ComparedFiles("third.mrc", "fourth.mrc", tilts=tilts, second_tilts=second_tilts, tilt_axis="x")
    geometry = Comparison(results_to_compare(files, reconstructed, compared[0])).geometry
    assert (geometry.tilt_range, geometry.tilt_axis) == ((-57.0, 57.0), "x")


def test_a_script_gets_the_same_settings(volumes, reconstructed, compared):
    config = independent_settings(reconstructed, TomogramFiles(*map(str, volumes[2:])))
    assert config == load_checkpoint(compared[0]).config
    assert isinstance(config, TrainingConfig)


@pytest.mark.parametrize(
    "halves, message",
    [
        ((2, 1), r"second\.mrc is the second half of .*one: the two networks would learn from the same noise"),
        ((0, 3), r"first\.mrc is the first half of"),
    ],
)
def test_halves_that_the_first_network_has_seen_are_refused(volumes, reconstructed, tmp_path, capsys, halves, message):
    chosen = [volumes[n] for n in halves]
    assert run("fsc", *chosen, *TILTS, "--independent", reconstructed, "--out", tmp_path / "other") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "other").exists()


def test_a_copy_of_a_half_is_recognised(volumes, reconstructed, tmp_path):
    (tmp_path / "copy.mrc").write_bytes(volumes[0].read_bytes())
    with pytest.raises(ValueError, match=r"copy\.mrc is the first half of"):
        independent_settings(reconstructed, TomogramFiles(str(tmp_path / "copy.mrc"), str(volumes[3])))


def test_halves_on_another_grid_are_refused(volumes, reconstructed, tmp_path):
    write(tmp_path / "larger.mrc", np.random.default_rng(0).standard_normal((18, 20, 24)))
    with pytest.raises(ValueError, match=r"larger\.mrc has shape \(18, 20, 24\).*all four halves"):
        independent_settings(reconstructed, TomogramFiles(str(volumes[2]), str(tmp_path / "larger.mrc")))


def test_a_single_volume_is_refused(volumes, reconstructed):
    with pytest.raises(ValueError, match="needs two halves"):
        independent_settings(reconstructed, TomogramFiles(str(volumes[2])))


def test_a_run_whose_inputs_are_not_known_is_refused(volumes, reconstructed, tmp_path):
    (tmp_path / "reconstruction.mrc").write_bytes((reconstructed / "reconstruction.mrc").read_bytes())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="it is not known on what"):
        independent_settings(tmp_path, TomogramFiles(str(volumes[2]), str(volumes[3])))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--independent", "nowhere"], "--independent and --out belong together"),
        (["--out", "nowhere"], "--independent and --out belong together"),
        (["--resume"], "pass --independent and --out too"),
        (["--independent", "nowhere", "--out", "other"], "nowhere has no reconstruction.mrc"),
    ],
)
def test_half_a_request_is_refused(volumes, capsys, arguments, message):
    assert run("fsc", *volumes[2:], *TILTS, *arguments) == 2
    assert message in capsys.readouterr().err
