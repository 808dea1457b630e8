"""Half tomograms from tilt series: ``equitomo halves``."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from commanding import TINY, files_in, run, write
from making import DATA, real_data
from projecting import blob, project

from equitomo import ContrastTransfer, TiltGeometry, TomogramPair, make_halves, read_volume
from equitomo.fourier import frequency_radius, rfftn
from equitomo.physics import transfer_contrast
from equitomo.run import Halves, HalvesSettings, SeriesFiles
from equitomo.run.halves.recording import recorded_ctf_state

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


# Two pairs of halves for two networks

FINE = tuple(range(-60, 61, 3))


@pytest.fixture(scope="module")
def noise_in_pairs(tmp_path_factory):
    """Reconstruct a series of white noise in two pairs, and whole and by every second tilt; return three folders."""
    folder = tmp_path_factory.mktemp("noise")
    views = torch.randn(2, len(FINE), *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    (stack, tilts), (other, _) = (write_series(folder, own, FINE, name) for own, name in zip(views, "AB", strict=True))
    common = {"tilts": tilts, "thickness": SHAPE[0], "strict": False, "intensities": "none"}
    make_halves(stack, out=folder / "pairs", pairs=2, **common)
    # Halves of frames have all tilts: the first ones are the reconstructions of the same noise from all of them.
    make_halves(stack, other, out=folder / "whole", **common)
    make_halves(stack, other, out=folder / "second", pairs=2, **common)
    return folder / "pairs", folder / "whole", folder / "second"


def four(folder, name):
    return [read(folder / f"{name}_pair{pair}_half{half}.mrc") for pair in (1, 2) for half in (1, 2)]


def without_plane_means(volume):
    """Subtract the mean of each plane across the tilt axis, which the least tilted views of a volume set."""
    return volume - volume.mean((0, 2), keepdims=True)


def assert_equal_but_for_plane_means(volume, expected):
    """The projections of shorter ranges are continued less far beyond their edges: hence the tolerance."""
    difference = without_plane_means(volume) - without_plane_means(expected)
    assert np.linalg.norm(difference) < 3e-3 * np.linalg.norm(expected)


def test_the_noise_of_the_four_volumes_of_two_pairs_is_uncorrelated(noise_in_pairs):
    pairs, _, second = noise_in_pairs
    volumes = [volume.ravel() for volume in four(pairs, "A")]
    found = np.corrcoef(volumes) - np.eye(4)
    # Of 13,440 voxels of independent noise the deviation would be .009, and a quarter of the tilts tie voxels together.
    assert np.abs(found).max() < 0.03
    assert correlation(read(second / "A_pair1_half1.mrc"), volumes[0]) > 0.5


def test_the_mean_of_a_pair_is_the_volume_from_its_own_tilts(noise_in_pairs):
    pairs, _, second = noise_in_pairs
    volumes = four(pairs, "A")
    for number in (1, 2):
        mean = (volumes[2 * number - 2] + volumes[2 * number - 1]) / 2
        assert_equal_but_for_plane_means(mean, read(second / f"A_pair{number}_half1.mrc"))


def test_the_mean_of_both_pairs_is_the_volume_from_all_tilts(noise_in_pairs):
    pairs, whole, _ = noise_in_pairs
    assert_equal_but_for_plane_means(sum(four(pairs, "A")) / 4, read(whole / "A_half1.mrc"))


def test_two_pairs_of_a_series_are_written_on_one_scale_with_tables_of_their_own(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    out = tmp_path / "H"
    call = ("halves", stack, "--tilts", tilts, *COMMON, "--pairs", "2", "--out", out)
    assert run(*call) == 0
    names = [f"TS_pair{pair}" for pair in (1, 2)]
    endings = ("_half1.mrc", "_half2.mrc", "_half1.tlt", "_half2.tlt", ".tlt", ".png", ".json")
    tables = {"manifest.json", "tomograms_pair1.csv", "tomograms_pair2.csv"}
    assert files_in(out) == tables | {name + ending for name in names for ending in endings}
    assert [manifest(out)[name]["angles"] for name in names] == [
        [list(map(float, ANGLES[start::4])) for start in starts] for starts in ((0, 2), (1, 3))
    ]
    for number, name in enumerate(names, 1):
        with (out / f"tomograms_pair{number}.csv").open(newline="") as file:
            assert [row["first"] for row in csv.DictReader(file)] == [f"{name}_half1.mrc"]
    assert max(volume.std() for volume in four(out, "TS")) < 1.2 * min(volume.std() for volume in four(out, "TS"))
    capsys.readouterr()
    assert run(*call) == 0
    assert capsys.readouterr().out.count("skipped") == 2


def test_the_printed_commands_compare_two_networks(tmp_path, capsys, monkeypatch):
    """They are run as they were printed, with the settings of a quick training."""
    stack, tilts = write_series(tmp_path, views_of(specimen(), FINE, noise=0.3), FINE)
    monkeypatch.chdir(tmp_path)
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--pairs", "2", "--out", "H") == 0
    printed = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  equitomo ")]
    assert [words[0] for words in printed] == ["reconstruct", "fsc"]
    assert run(*printed[0], *TINY) == 0
    assert run(*printed[1]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-6:-3]] == ["whole", "measured", "wedge"]
    inputs = [json.loads((tmp_path / name / "manifest.json").read_text())["geometries"] for name in ("run1", "run2")]
    angles = [angle for parts in inputs for part in parts for angle in part["angles"]]
    assert sorted(angles) == list(map(float, FINE))


def test_the_printed_commands_of_many_series_compare_two_networks(tmp_path, capsys, monkeypatch):
    folder = aretomo(aretomo(tmp_path / "A", volumes=True, Wbp=1), name="TS2")
    monkeypatch.chdir(tmp_path)
    assert run("halves", "--aretomo", folder, *COMMON, "--pairs", "2", "--out", "H") == 0
    printed = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  equitomo ")]
    assert [words[0] for words in printed] == ["train", "train", "predict", "predict", "fsc"]
    for words in printed:
        assert run(*words, *(TINY if words[0] == "train" else [])) == 0
    # The halves of frames have the same tilts, and the pairs have different ones.
    assert [manifest(tmp_path / "H")[f"TS_pair{pair}"]["angles"] for pair in (1, 2)] == [
        [list(map(float, ANGLES[start::2]))] * 2 for start in (0, 1)
    ]


@pytest.mark.fault(87)
def test_two_pairs_of_too_few_tilts_are_refused(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen())[:7], ANGLES[:7])
    message = refused(capsys, stack, "--tilts", tilts, *COMMON, "--pairs", "2", "--out", tmp_path / "H")
    assert "7 different tilts make no two pairs of halves, expected at least 8" in message
    assert not (tmp_path / "H").exists()


@pytest.mark.fault(87)
def test_two_pairs_need_images_and_not_the_halves_of_a_program(tmp_path, capsys):
    folder = aretomo(tmp_path / "A", stacks=False, volumes=True, Wbp=1)
    assert run("halves", "--aretomo", folder, *COMMON, "--pairs", "2", "--out", tmp_path / "H") == 1
    printed = capsys.readouterr().out
    assert "failed   TS_pair1: TS: the files tell of no stack of images" in printed
    assert "Nothing was made" in printed


# A second call


@pytest.mark.fault(86)
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


def test_an_interrupted_call_is_continued_and_leaves_nothing_partial(tmp_path):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    files, settings = SeriesFiles(str(stack), tilts=str(tilts)), HalvesSettings(thickness=20, strict=False)
    halves = Halves(files, tmp_path / "H", settings)

    def interrupt(name, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), halves.held():
        halves.write(progress=interrupt)
    assert files_in(tmp_path / "H") == {"TS_half1.mrc", "TS.json"}
    (outcome,) = make_halves(files, out=tmp_path / "H", thickness=20, strict=False)
    assert outcome.status == "done"
    assert {"TS_half1.mrc", "TS_half2.mrc", "manifest.json"} <= files_in(tmp_path / "H")


@pytest.mark.fault(86)
def test_halves_without_a_record_are_not_replaced(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen(), noise=0.3))
    (tmp_path / "H").mkdir()
    other = write(tmp_path / "H" / "TS_half1.mrc", specimen())
    content = other.read_bytes()
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 2
    assert "what it was made from is not known" in capsys.readouterr().err
    assert other.read_bytes() == content


@pytest.mark.fault(86)
def test_a_folder_with_a_training_is_refused(tmp_path, capsys):
    stack, tilts = write_series(tmp_path, views_of(specimen()))
    (tmp_path / "H").mkdir()
    (tmp_path / "H" / "manifest.json").write_text("{}")
    assert run("halves", stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H") == 2
    assert "is not that of half tomograms: choose another --out" in capsys.readouterr().err


# What the programs wrote

ALIGNMENT = """\
# AreTomo Alignment / Priims bprmMn
# RawSize = {x} {y} {n}
# NumPatches = 0
# AlphaOffset =     0.00
# BetaOffset =     0.00
# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT
"""


def aretomo(folder, volume=None, *, name="TS", ctfs=None, stacks=True, volumes=False, **session):
    """Write what AreTomo leaves of a series that needed no alignment: halves of the frames, tilts and defocus."""
    folder.mkdir(exist_ok=True)
    volume = specimen() if volume is None else volume
    n, y, x = len(ANGLES), volume.shape[1], volume.shape[2]
    lines = [f"{k} 0.0 1.0 0.0 0.0 1.0 1.0 1.0 0.0 {angle:.2f}" for k, angle in enumerate(ANGLES)]
    (folder / f"{name}.aln").write_text(ALIGNMENT.format(x=x, y=y, n=n) + "\n".join(lines) + "\n")
    table = [f"{angle:.2f} {k + 1} 3.0" for k, angle in enumerate(ANGLES)]
    (folder / f"{name}_TLT.txt").write_text("\n".join(table) + "\n")
    for seed, half in enumerate(("EVN", "ODD") if stacks else ()):
        views = views_of(volume, noise=0.3, seed=seed)
        write(folder / f"{name}_{half}.mrc", views if ctfs is None else transfer_contrast(views, ctfs, ANGLES))
    for seed, half in enumerate(("EVN", "ODD") if volumes else ()):
        noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed))
        write(folder / f"{name}_{half}_Vol.mrc", (volume + 0.3 * noise).movedim(0, 1))
    if ctfs is not None:
        rows = [f"{k} {c.defocus_u:.1f} {c.defocus_u:.1f} 0 0 .1 9" for k, c in enumerate(ctfs, 1)]
        (folder / f"{name}_CTF.txt").write_text("# Columns: #1 number; #2 - defocus 1 [A]\n" + "\n".join(rows) + "\n")
    (folder / "AreTomo3_Session.json").write_text(json.dumps({"parameters": {"kV": 300, "Cs": 2.7, **session}}))
    return folder


def test_stacks_of_half_frames_with_an_alignment_give_halves(tmp_path):
    folder = aretomo(tmp_path / "A")
    given = (folder / "TS_EVN.mrc", folder / "TS_ODD.mrc", "--alignment", folder / "TS.aln")
    assert run("halves", *given, *COMMON, "--intensities", "none", "--out", tmp_path / "H") == 0
    entry = manifest(tmp_path / "H")["TS"]
    assert entry["angles"] == [list(map(float, ANGLES))] * 2
    assert entry["dose"][0][:3] == [0.0, 3.0, 6.0]
    assert correlation(read(tmp_path / "H" / "TS_half1.mrc"), specimen()) > 0.7


def test_every_series_of_aretomo_gets_halves_and_a_line_of_the_table(tmp_path):
    folder = aretomo(aretomo(tmp_path / "A"), name="TS2")
    assert run("halves", "--aretomo", folder, *COMMON, "--out", tmp_path / "H") == 0
    assert [row["first"] for row in rows(tmp_path / "H")] == ["TS_half1.mrc", "TS2_half1.mrc"]
    assert run("check", "--table", tmp_path / "H" / "tomograms.csv", *TINY) in (0, 1)


def test_a_series_that_fails_stops_no_other_one_and_done_ones_are_skipped(tmp_path, capsys):
    folder = aretomo(aretomo(tmp_path / "A"), name="TS2")
    broken = folder / "TS_ODD.mrc"
    content = broken.read_bytes()
    broken.write_bytes(content[:2000])
    call = ("halves", "--aretomo", folder, *COMMON, "--out", tmp_path / "H")
    assert run(*call) == 1
    assert "failed   TS: " in (printed := capsys.readouterr().out)
    assert "done     TS2" in printed
    broken.write_bytes(content)
    assert run(*call) == 0
    assert "done     TS: " in (printed := capsys.readouterr().out)
    assert "skipped  TS2: done already" in printed


def test_halves_of_aretomo_by_backprojection_are_taken_with_their_axes_in_order(tmp_path):
    folder = aretomo(tmp_path / "A", volumes=True, Wbp=1, CorrCTF=[2, 15])
    assert run("halves", "--aretomo", folder, *COMMON, "--out", tmp_path / "H") == 0
    entry = manifest(tmp_path / "H")["TS"]
    assert (entry["made_by"], entry["ctf_state"]) == ("aretomo", "flipped")
    assert correlation(read(tmp_path / "H" / "TS_half1.mrc"), specimen()) > 0.5


@pytest.mark.parametrize("session", [{"Wbp": 0}, {"Wbp": 1, "CorrCTF": [1, 15]}])
def test_halves_by_sart_or_with_a_wiener_filter_are_made_anew(tmp_path, session):
    folder = aretomo(tmp_path / "A", volumes=True, **session)
    assert run("halves", "--aretomo", folder, *COMMON, "--out", tmp_path / "H") == 0
    assert manifest(tmp_path / "H")["TS"]["made_by"] == "equitomo"


@pytest.mark.filterwarnings("default")
def test_halves_that_cannot_be_made_anew_are_taken_with_a_warning(tmp_path, capsys):
    folder = aretomo(tmp_path / "A", volumes=True, stacks=False, Wbp=1, CorrCTF=[1, 15])
    assert run("halves", "--aretomo", folder, *COMMON, "--out", tmp_path / "H") == 0
    assert "were Wiener-filtered" in (error := capsys.readouterr().err)
    assert "write the stacks of the even and the odd frames too" in error
    table = tmp_path / "H" / "tomograms.csv"
    assert recorded_ctf_state(tmp_path / "H" / "TS_half1.mrc") == "wiener"
    assert run("check", "--table", table, *TINY) == 1
    assert "were Wiener-filtered or deconvolved" in capsys.readouterr().out


WARP = """\
<?xml version="1.0"?>
<TiltSeries AreAnglesInverted="False" PlaneNormal="" LevelAngleX="0" LevelAngleY="0">
  <Angles>{angles}</Angles>
  <Dose>{dose}</Dose>
  <UseTilt>{used}</UseTilt>
  <AxisAngle>{zeros}</AxisAngle>
  <MoviePath>{movies}</MoviePath>
</TiltSeries>
"""


def test_halves_of_warp_are_taken_in_place(tmp_path):
    folder = tmp_path / "W"
    folder.mkdir()
    n = len(ANGLES)
    lists = {"angles": map(float, ANGLES), "dose": range(n), "used": ["True"] * n, "zeros": ["0.0"] * n}
    lists["movies"] = [f"../frames/TS_{k}.mrc" for k in range(n)]
    text = WARP.format(**{name: "\n".join(map(str, values)) for name, values in lists.items()})
    (folder / "TS.xml").write_text(text)
    for seed, half in enumerate(("even", "odd")):
        (folder / "reconstruction" / half).mkdir(parents=True)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        write(folder / "reconstruction" / half / "TS_10.00Apx.mrc", specimen() + 0.3 * noise)
    assert run("halves", "--warp", folder, *COMMON, "--out", tmp_path / "H") == 0
    (row,) = rows(tmp_path / "H")
    assert row["first"] == str(folder / "reconstruction" / "even" / "TS_10.00Apx.mrc")
    assert recorded_ctf_state(row["first"], tmp_path / "H" / "tomograms.csv") == "flipped"
    pair = TomogramPair.read(row["first"], row["second"], tilts=tmp_path / "H" / row["tilts"])
    assert pair.geometry.tilt_range == (-60.0, 60.0)


RELION = """\
data_global

loop_
_rlnTomoName #1
_rlnTomoTiltSeriesStarFile #2
_rlnTomoTiltSeriesPixelSize #3
_rlnTomoSizeZ #4
TS_01 TS_01.star 10.0 20
"""
VIEWS = """\
data_TS_01

loop_
_rlnMicrographName #1
_rlnMicrographNameEven #2
_rlnMicrographNameOdd #3
_rlnTomoYTilt #4
_rlnTomoZRot #5
_rlnTomoXShiftAngst #6
_rlnTomoYShiftAngst #7
"""


def test_the_images_of_relion_are_halved_with_its_thickness(tmp_path):
    folder = tmp_path / "R"
    folder.mkdir()
    lines = []
    both = [views_of(specimen(), noise=0.3, seed=seed) for seed in (0, 1)]
    for n, angle in enumerate(ANGLES):
        for name, views in zip(("even", "odd"), both, strict=True):
            write(folder / f"{n}_{name}.mrc", views[n : n + 1])
        lines.append(f"{n}.mrc {n}_even.mrc {n}_odd.mrc {angle} 0 0 0")
    (folder / "TS_01.star").write_text(VIEWS + "\n".join(lines) + "\n")
    (folder / "tomograms.star").write_text(RELION)
    assert run("halves", "--relion", folder / "tomograms.star", "--out", tmp_path / "H") == 0
    assert read_volume(tmp_path / "H" / "TS_01_half1.mrc").shape == SHAPE
    assert correlation(read(tmp_path / "H" / "TS_01_half1.mrc"), specimen()) > 0.6


# CTF and dose


def test_the_correlation_with_the_truth_stays_positive_past_the_first_zero(tmp_path):
    truth = specimen((32, 64, 64), seed=3)
    truth = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * (truth > 0.05)
    ctfs = [ContrastTransfer((30000.0, 36000.0)[n % 2], pixel_size=10.0, amplitude_contrast=0.1) for n in range(21)]
    folder = aretomo(tmp_path / "A", truth, ctfs=ctfs, AmpContrast=0.1)
    zero = 0.5 * int((ctfs[0].radial(4096)[1:] < 0).nonzero()[0]) / 4095
    signs = {}
    for ctf in ("none", "flip"):
        out = tmp_path / ctf
        given = ("--aretomo", folder, "--thickness", "32", "--no-strict", "--ctf", ctf)
        assert run("halves", *given, "--intensities", "none", "--out", out) == 0
        curve = [shell_correlation(read(out / f"TS_half{number}.mrc"), truth, zero) for number in (1, 2)]
        signs[ctf] = min(curve) if ctf == "flip" else max(curve)
    assert signs["flip"] > 0.1
    assert signs["none"] < -0.1
    assert recorded_ctf_state(tmp_path / "flip" / "TS_half1.mrc") == "flipped"


def shell_correlation(volume, truth, zero):
    """Return the correlation in the measured planes of frequencies a little beyond the first zero."""
    one, other = (rfftn(torch.as_tensor(v, dtype=torch.float64)) for v in (volume, truth))
    k = frequency_radius(tuple(truth.shape), dtype=torch.float64)
    shell = (k > 1.15 * zero) & (k < 1.35 * zero)
    product = (one * other.conj()).real[shell].sum()
    return float(product / (one.abs().square()[shell].sum() * other.abs().square()[shell].sum()).sqrt())


def test_the_dose_filter_weakens_late_views(tmp_path):
    folder = aretomo(tmp_path / "A")
    for options in ((), ("--dose-filter",)):
        out = tmp_path / f"H{len(options)}"
        assert run("halves", "--aretomo", folder, *COMMON, *options, "--intensities", "none", "--out", out) == 0
    before, after = (read(tmp_path / name / "TS_half1.mrc") for name in ("H0", "H1"))
    assert after.std() < 0.95 * before.std()


# Bad input: status 2 with a message that mends


def refused(capsys, *arguments):
    assert run("halves", *arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("angles", "message"),
    [
        pytest.param(ANGLES[:-1], "21 images but 20 tilt angles, expected one angle", marks=pytest.mark.fault(76)),
        pytest.param([a / 57.3 for a in ANGLES], "seem to be radians, expected degrees", marks=pytest.mark.fault(36)),
    ],
)
def test_wrong_angles_are_refused(tmp_path, capsys, angles, message):
    stack, tilts = write_series(tmp_path, views_of(specimen()), angles)
    assert message in refused(capsys, stack, "--tilts", tilts, *COMMON, "--out", tmp_path / "H")
    assert not (tmp_path / "H").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--exclude", "0-20"], "--exclude leaves 0 of 21 views", marks=pytest.mark.fault(78)),
        pytest.param(
            ["--exclude", "21"], "--exclude has [21], expected sections from 0 to 20", marks=pytest.mark.fault(78)
        ),
        (["--exclude", "first"], "--exclude must be numbers of images from 0, such as 0,17,40-45 or 1-40/2"),
        (["--exclude", "0-20/0"], "--exclude must be numbers of images from 0"),
        pytest.param(["--size", "90,90"], "--size 90,90 is more than the images have", marks=pytest.mark.fault(87)),
        (["--size", "90"], "--size must be Y,X in voxels such as 512,512"),
        (["--bin", "0"], "--bin must be at least 1"),
        (["--thickness", "-1"], "--thickness must be at least 1"),
        pytest.param(["--ctf", "flip"], "--ctf flip needs the defocus of each view", marks=pytest.mark.fault(87)),
        (["--dose-filter"], "--dose-filter needs the dose, which a list of tilts does not hold: pass --alignment"),
        pytest.param(["--memory", "0.1"], "raise --memory, or pass a larger --bin", marks=pytest.mark.fault(87)),
        (["--positive"], "pass --method sirt too"),
        (["--alignment", "TS.aln"], "--tilts and --alignment both give the tilts"),
        pytest.param(["--split", "scan"], "0 of 21 tilts have a second scan", marks=pytest.mark.fault(87)),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, capsys, options, message):
    stack, tilts = write_series(tmp_path, views_of(specimen()))
    given = (stack, "--tilts", tilts, *COMMON, *options, "--out", tmp_path / "H")
    assert message in refused(capsys, *given)
    assert not (tmp_path / "H").exists()


@pytest.mark.fault(77)
def test_a_tomogram_is_no_tilt_series(tmp_path, capsys):
    volume = write(tmp_path / "tomogram.mrc", specimen())
    message = refused(capsys, volume, *COMMON, "--out", tmp_path / "H")
    assert "the file has no tilt angles of its own; pass --tilts" in message
    assert "A tomogram has none" in message


@pytest.mark.fault(82)
def test_a_wrong_tilt_axis_is_refused(tmp_path, capsys):
    volume = blob((24, 32, 32), (4.0, 0.0, 9.0)) + blob((24, 32, 32), (-6.0, 3.0, 6.0))
    stack, tilts = write_series(tmp_path, views_of(volume))
    message = refused(capsys, stack, "--tilts", tilts, "--thickness", "20", "--tilt-axis", "x", "--out", tmp_path / "H")
    assert "the tilt axis seems to be y and not x" in message
    assert "pass --tilt-axis y" in message


@pytest.mark.fault(84)
def test_images_in_the_order_of_acquisition_are_refused_and_put_in_order(tmp_path, capsys):
    from equitomo.datasets.acquisition import schemes

    volume = specimen((28, 40, 48), seed=2)
    places = list(schemes(ANGLES)["from the middle in turns of 2"])
    stack, tilts = write_series(tmp_path, views_of(volume)[places])
    call = (stack, "--tilts", tilts, "--thickness", "28", "--intensities", "none")
    message = refused(capsys, *call, "--out", tmp_path / "H")
    assert "--order acquisition" in message
    assert run("halves", *call, "--order", "acquisition", "--out", tmp_path / "H") == 0
    assert correlation(read(tmp_path / "H" / "TS_half1.mrc"), volume) > 0.8


@pytest.mark.fault(80)
def test_half_stacks_that_are_no_halves_are_refused(tmp_path, capsys):
    one, tilts = write_series(tmp_path, views_of(specimen()), name="one")
    other = shutil.copy(one, tmp_path / "other.mrc")
    message = refused(capsys, one, other, "--tilts", tilts, *COMMON, "--out", tmp_path / "H")
    assert "are equal, so the halves are not independent" in message
    smaller, _ = write_series(tmp_path, views_of(specimen())[:, 2:], name="smaller")
    message = refused(capsys, one, smaller, "--tilts", tilts, *COMMON, "--out", tmp_path / "H")
    assert "expected the same in both; give the two halves of one series" in message


@pytest.mark.fault(88)
def test_an_alignment_of_another_series_is_refused(tmp_path, capsys):
    folder = aretomo(tmp_path / "A")
    stack, _ = write_series(tmp_path, views_of(specimen())[:-2], ANGLES[:-2], name="other")
    message = refused(capsys, stack, "--alignment", folder / "TS.aln", *COMMON, "--out", tmp_path / "H")
    assert "tells of 21 views of 28 x 24 pixels, but" in message
    assert "give the file that belongs to this series" in message


def test_defocus_in_nanometres_is_refused(tmp_path, capsys):
    ctfs = [ContrastTransfer(30000.0, pixel_size=10.0)] * len(ANGLES)
    folder = aretomo(tmp_path / "A", ctfs=ctfs)
    table = folder / "TS_CTF.txt"
    table.write_text(table.read_text().replace("30000.0", "300.0"))
    given = (folder / "TS_EVN.mrc", folder / "TS_ODD.mrc", "--alignment", folder / "TS.aln", "--ctf", "flip")
    assert "are they nanometres (multiply by 10)" in refused(capsys, *given, *COMMON, "--out", tmp_path / "H")


def test_a_cut_hspy_is_refused(tmp_path, capsys):
    path = tmp_path / "series.hspy"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "series.hspy" in refused(capsys, path, *COMMON, "--out", tmp_path / "H")


@pytest.mark.fault(85)
def test_images_of_mixed_sizes_are_refused(tmp_path, capsys):
    lines = []
    for n, angle in enumerate(ANGLES):
        image = views_of(specimen())[n : n + 1]
        write(tmp_path / f"{n}.mrc", image if n != 3 else image[:, 1:])
        lines.append(f"{n}.mrc {angle}")
    head = "data_TS_01\n\nloop_\n_rlnMicrographName #1\n_rlnTomoYTilt #2\n"
    (tmp_path / "TS_01.star").write_text(head + "\n".join(lines) + "\n")
    (tmp_path / "tomograms.star").write_text(RELION)
    assert run("halves", "--relion", tmp_path / "tomograms.star", "--out", tmp_path / "H") == 1
    assert "give images of one size" in capsys.readouterr().out


def test_nothing_or_two_things_to_halve_are_refused(tmp_path, capsys):
    for given in ((), ("TS.mrc", "--aretomo", "A")):
        assert "give a tilt series as FIRST, or the output of one program" in refused(
            capsys, *given, "--out", tmp_path / "H"
        )
    assert "A: has no tilt series" in refused(capsys, "--aretomo", tmp_path, "--out", tmp_path / "H").replace(
        str(tmp_path), "A"
    )


# Real series


@pytest.mark.slow
@real_data
def test_the_scans_of_gold_particles_are_halves(tmp_path):
    folder = DATA / "liquid_n6"
    given = (folder / "all_scans.mrc", "--tilts", folder / "all_scans.tlt", "--tilt-axis", "y", "--bin", "2")
    assert run("halves", *given, "--out", tmp_path / "H") == 0
    angles = manifest(tmp_path / "H")["all_scans"]["angles"]
    assert [len(own) for own in angles] == [46, 45]
    halves = [read(tmp_path / "H" / f"all_scans_half{number}.mrc") for number in (1, 2)]
    assert halves[0].shape == (128, 128, 128)
    assert correlation(*halves) > 0.8


@pytest.mark.slow
@real_data
@pytest.mark.filterwarnings("ignore")
def test_the_needle_is_halved_with_its_own_tilts(tmp_path):
    given = (DATA / "etspy_needle" / "HAADF.mrc", "--tilt-axis", "x", "--bin", "2", "--align", "mass")
    assert run("halves", *given, "--out", tmp_path / "H") == 0
    assert [len(own) for own in manifest(tmp_path / "H")["HAADF"]["angles"]] == [39, 38]
    halves = [read(tmp_path / "H" / f"HAADF_half{number}.mrc") for number in (1, 2)]
    assert correlation(*halves) > 0.95
