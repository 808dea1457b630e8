"""Half tomograms from tilt series: ``equitomo halves``."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from commanding import TINY, files_in, run, write
from projecting import blob, project

from equitomo import TiltGeometry, read_volume
from equitomo.run import Halves, HalvesSettings, SeriesFiles

ANGLES = tuple(range(-60, 61, 6))
SHAPE = (20, 24, 28)
COMMON = ("--thickness", SHAPE[0], "--no-strict")


def specimen(shape=SHAPE, seed=0):
    """Return blobs that fade away from the centre, so that no face of the volume cuts them."""
    generator = torch.Generator().manual_seed(seed)
    scale = min(shape)
    places = (torch.rand(12, 3, generator=generator, dtype=torch.float64) - 0.5) * scale / 2
    return sum(blob(shape, tuple(place.tolist()), 1.5) for place in places)


def views_of(volume, angles=ANGLES, *, noise=0.0, seed=0, tilt_axis="y"):
    series = project(volume.float(), TiltGeometry(angles, tilt_axis))
    generator = torch.Generator().manual_seed(seed)
    return series + noise * series.std() * torch.randn(series.shape, generator=generator)


def write_series(folder, views, angles=ANGLES, name="TS"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.tlt").write_text("".join(f"{angle}\n" for angle in angles))
    return write(folder / f"{name}.mrc", views), folder / f"{name}.tlt"


def correlation(one, other):
    one, other = (np.asarray(volume, np.float64).ravel() for volume in (one, other))
    return float(np.corrcoef(one, other)[0, 1])


def read(path):
    return np.array(read_volume(path).data)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())["series"]


def rows(folder):
    with (folder / "tomograms.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# One series


def test_a_series_gives_two_halves_of_every_second_tilt_with_their_own_tilts(tmp_path):
    stack, tilts = write_series(tmp_path, views_of(specimen()))
    out = tmp_path / "H"
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--intensities", "none", "--out", out) == 0
    assert files_in(out) == {
        *("TS_half1.mrc", "TS_half2.mrc", "TS_half1.tlt", "TS_half2.tlt", "TS.tlt", "TS.png", "TS.json"),
        *("manifest.json", "tomograms.csv"),
    }
    entry = manifest(out)["TS"]
    assert entry["angles"] == [list(map(float, ANGLES[::2])), list(map(float, ANGLES[1::2]))]
    assert entry["ctf_state"] == "none"
    assert set(entry["made_from"]["inputs"]) == {"first stack", "tilts"}
    half = read_volume(out / "TS_half1.mrc")
    assert half.shape == SHAPE
    assert half.voxel_size == (10.0, 10.0, 10.0)
    assert half.header.labels[-1] == "equitomo halves: fbp, 11 views, half 1"
    for number in (1, 2):
        assert correlation(read(out / f"TS_half{number}.mrc"), specimen()) > 0.8


def test_the_table_trains_with_the_tilts_of_each_half(tmp_path):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 0
    table = tmp_path / "H" / "tomograms.csv"
    assert run("train", "--table", table, "--out", tmp_path / "run", *TINY, "--method", "icecream") == 0
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())
    angles = [part["angles"] for part in recorded["geometries"]]
    assert angles == [list(map(float, ANGLES[::2])), list(map(float, ANGLES[1::2]))]


def test_halves_of_every_second_tilt_are_reconstructed(tmp_path):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 0
    first, second = (tmp_path / "H" / f"TS_half{number}" for number in (1, 2))
    halves = [first.with_suffix(".mrc"), second.with_suffix(".mrc")]
    own = ["--tilts", first.with_suffix(".tlt"), "--second-tilts", second.with_suffix(".tlt")]
    assert run("reconstruct", *halves, *own, "--out", tmp_path / "run", *TINY, "--method", "icecream") == 0
    assert read_volume(tmp_path / "run" / "reconstruction.mrc").shape == SHAPE


def test_a_shuffled_stack_with_its_angles_gives_the_halves_of_the_sorted_one(tmp_path, generator):
    views = views_of(specimen(), noise=0.3)
    places = torch.randperm(len(ANGLES), generator=generator).tolist()
    given = {"sorted": (views, ANGLES), "shuffled": (views[places], [ANGLES[n] for n in places])}
    for name, (images, angles) in given.items():
        stack, tilts = write_series(tmp_path / name, images, angles)
        assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / name / "H") == 0
    for number in (1, 2):
        one, other = (read(tmp_path / name / "H" / f"TS_half{number}.mrc") for name in given)
        np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(one).max())


def test_pieces_along_the_tilt_axis_do_not_show_in_the_result(tmp_path):
    views = views_of(specimen(), noise=0.3, tilt_axis="x")
    stack, tilts = write_series(tmp_path, views.mT)
    settings = HalvesSettings(thickness=SHAPE[0], tilt_axis="x", strict=False)
    files = SeriesFiles(str(stack), tilts=str(tilts))
    results = []
    for n_planes in (28, 5):
        halves = Halves(files, tmp_path / str(n_planes), settings)
        with pytest.MonkeyPatch.context() as patch, halves.held():
            patch.setattr("equitomo.run.halves.reconstructing.LONGEST", n_planes)
            halves.write()
        results.append(read(tmp_path / str(n_planes) / "TS_half1.mrc"))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5 * np.abs(results[0]).max())
    assert correlation(results[0], specimen()) > 0.7


def test_the_two_tilt_axes_give_the_same_halves(tmp_path):
    for axis, images in (("y", views_of(specimen())), ("x", views_of(specimen()).mT)):
        stack, tilts = write_series(tmp_path / axis, images)
        out = tmp_path / axis / "H"
        assert run("halves", stack, "--tilts", tilts, *COMMON, "--tilt-axis", axis, "--out", out) == 0
    one, other = (read(tmp_path / axis / "H" / "TS_half1.mrc") for axis in "yx")
    np.testing.assert_allclose(one, other.swapaxes(1, 2), atol=1e-5 * np.abs(one).max())


def test_sirt_and_a_size_are_options(tmp_path):
    stack, tilts = write_series(tmp_path, views_of(specimen()))
    options = ("--method", "sirt", "--iterations", "20", "--positive", "--size", "16,18", "--intensities", "none")
    assert run("halves", stack, "--tilts", tilts, *COMMON, *options, "--out", tmp_path / "H") == 0
    half = read(tmp_path / "H" / "TS_half1.mrc")
    assert half.shape == (SHAPE[0], 16, 18)
    assert half.min() >= 0
    assert correlation(half, specimen()[:, 4:-4, 5:-5]) > 0.8


def test_a_turned_series_is_turned_back(tmp_path):
    views = views_of(specimen((20, 32, 32)))
    # A quarter turn clockwise with y upwards: the tilt axis lies at -90 degrees.
    stack, tilts = write_series(tmp_path, views.rot90(-1, (1, 2)))
    straight, tilts = write_series(tmp_path / "straight", views)
    halves = []
    for path, options in ((straight, ()), (stack, ("--tilt-axis-angle=90",)), (stack, ("--tilt-axis-angle=-90",))):
        out = tmp_path / f"H{len(halves)}"
        assert run("halves", path, "--tilts", tilts, *COMMON, *options, "--out", out) == 0
        halves.append(read(out / "TS_half1.mrc"))
    best = max(correlation(halves[0], turned) for turned in halves[1:])
    assert best > 0.999


def test_frame_halves_keep_all_tilts(tmp_path):
    for seed, name in enumerate(("TS_EVN", "TS_ODD")):
        write_series(tmp_path, views_of(specimen(), noise=0.3, seed=seed), name=name)
    given = (tmp_path / "TS_EVN.mrc", tmp_path / "TS_ODD.mrc", "--tilts", tmp_path / "TS_EVN.tlt")
    assert run("halves", *given, *COMMON, "--out", tmp_path / "H") == 0
    assert manifest(tmp_path / "H")["TS"]["angles"] == [list(map(float, ANGLES))] * 2


def test_scans_of_a_tilt_are_parted(tmp_path):
    images = [views_of(specimen(), noise=0.3, seed=seed) for seed in (0, 1)]
    stack, tilts = write_series(tmp_path, torch.cat(images), ANGLES * 2)
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 0
    assert manifest(tmp_path / "H")["TS"]["angles"] == [list(map(float, ANGLES))] * 2
    assert correlation(*(read(tmp_path / "H" / f"TS_half{number}.mrc") for number in (1, 2))) > 0.5


# A second call


def test_a_second_call_skips_what_is_done_and_refuses_other_settings(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    call = ("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H")
    assert run(*call) == 0
    before = (tmp_path / "H" / "TS_half1.mrc").stat().st_mtime_ns
    assert run(*call) == 0
    assert (tmp_path / "H" / "TS_half1.mrc").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run(*call, "--pretilt", "2") == 2
    assert "pretilt was 0.0, now 2.0" in (error := capsys.readouterr().err)
    assert "--overwrite" in error
    assert run(*call, "--pretilt", "2", "--overwrite") == 0
    assert manifest(tmp_path / "H")["TS"]["angles"][0][0] == -58.0


def test_halves_without_a_record_are_not_replaced(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    (tmp_path / "H").mkdir()
    other = write(tmp_path / "H" / "TS_half1.mrc", specimen())
    content = other.read_bytes()
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 2
    assert "there is no record of it" in capsys.readouterr().err
    assert other.read_bytes() == content


def test_a_folder_with_a_training_is_refused(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen()))
    (tmp_path / "H").mkdir()
    (tmp_path / "H" / "manifest.json").write_text("{}")
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 2
    assert "is not that of half tomograms: choose another --out" in capsys.readouterr().err
