"""`equitomo check`: what it finds in order, what is to be mended, and the same words where training starts."""

import re
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from commanding import TINY, Case, files_in, run
from faults import numbered

from equitomo import IcecreamTrainer, TiltGeometry, TomogramPair, TrainingConfig, resources, write_volume
from equitomo.run.checks import Trial
from equitomo.run.memory import duration, require_memory_of_step
from equitomo.simulate import simulate_halves
from equitomo.training.memory import IN_BACKWARD, bytes_of_step

LOPSIDED = "-60,40"


@pytest.fixture(scope="module")
def made():
    """Simulate halves that are tilted from -60 to 40 degrees about y."""
    geometry = TiltGeometry(range(-60, 41, 4))
    return simulate_halves((32, 36, 40), geometry, snr=1.5, generator=torch.Generator().manual_seed(1))


class Pair(Case):
    """Two good halves with a wedge, into which a test puts a fault."""

    def __init__(self, folder, made):
        super().__init__(folder)
        self.first, self.second = made.first.clone(), made.second.clone()
        self.tilts = LOPSIDED

    def check(self, *arguments):
        self.write()
        settings = [argument for argument in self.settings if argument != "--permissive"]
        return run("check", *self.paths, f"--tilts={self.tilts}", *TINY, *settings, *arguments)

    def both(self, change):
        self.first, self.second = change(self.first), change(self.second)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """Make the tests independent of what else runs on the machine."""
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 10**11)


@pytest.fixture
def pair(tmp_path, made):
    return Pair(tmp_path, made)


def lines(text):
    """Return the status and the text of each subject."""
    rows = re.findall(r"^(ok|note|MEND) +(\w+) +(.*)$", text, re.MULTILINE)
    return {subject: (status, found) for status, subject, found in rows}


def test_good_halves_need_no_mending(pair, capsys):
    assert pair.check() == 0
    printed = capsys.readouterr().out
    found = lines(printed)
    assert not [line for line in found.values() if line[0] == "MEND"]
    assert {"files", "tilts", "voxels", "halves", "scale", "wedge", "cubes", "memory", "GPU", "disk", "time"} <= set(
        found
    )
    assert found["wedge"][0] == "ok"
    assert "32 x 36 x 40 voxels (z, y, x) of 10 Å, float32" in found["files"][1]
    assert re.search(r"agree down to \d+\.\d Å", found["halves"][1])
    assert printed.endswith("\nNothing to mend.\n")


def test_a_check_leaves_nothing_behind(pair):
    pair.write()
    before = files_in(pair.folder)
    pair.check()
    assert files_in(pair.folder) == before


def test_the_wedge_is_drawn_if_asked_and_replaces_a_picture_only_if_told_to(pair, capsys):
    picture = pair.folder / "wedge.png"
    picture.write_text("precious")
    assert pair.check("--picture", picture) == 2
    assert "wedge.png" in (said := capsys.readouterr().err)
    assert "overwrite" in said
    assert picture.read_text() == "precious"
    assert pair.check("--picture", picture, "--overwrite") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_makes_no_folder(pair, capsys):
    assert pair.check("--picture", pair.folder / "nowhere" / "wedge.png") == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (pair.folder / "nowhere").exists()


def nan(pair):
    pair.second[3, 4, 5] = float("nan")


def equal(pair):
    pair.second = pair.first


def other_shape(pair):
    pair.second = pair.second[:-1]


def other_size(pair):
    pair.voxel_sizes = [10.0, 11.0]


def missing(pair):
    pair.write()
    pair.paths[1] = pair.folder / "nowhere.mrc"
    pair.write = lambda: None


def truncated(pair):
    pair.damage(lambda content: content[:-100])


def same(pair):
    pair.paths[1] = pair.paths[0]


def shifted(pair):
    pair.second = pair.second.roll(3, 2)


def mirrored(pair):
    pair.second = pair.second.flip(0)


def inverted(pair):
    pair.second = 2 * pair.second.mean() - pair.second


def unrelated(pair):
    made = simulate_halves(
        pair.second.shape, TiltGeometry(range(-60, 41, 4)), snr=1.5, generator=torch.Generator().manual_seed(9)
    )
    pair.second = made.second * (pair.first.std() / made.second.std())


def scaled(pair):
    pair.second = 10 * pair.second


def second_turned(pair):
    """Turn the second half, as another program may store it."""
    pair.first = pair.first[:, :32, :32]
    pair.second = pair.second[:, :32, :32].permute(1, 0, 2)


def constant(pair):
    pair.first[:] = 1.0


def wrong_sign(pair):
    pair.tilts = "-40,60"


def wrong_range(pair):
    pair.tilts = "-60,60"


def wrong_axis(pair):
    pair.settings = ["--tilt_axis", "x"]


def sections_along_y(pair):
    pair.both(lambda half: half.permute(1, 0, 2))


def beam_along_x(pair):
    pair.both(lambda half: half.permute(2, 1, 0))


def no_tilts(pair):
    pair.tilts = "nowhere.tlt"


def large_cubes(pair):
    pair.settings = ["--side", "40", "--levels", "4"]


def empty_mask(pair):
    pair.mask(np.zeros((32, 36, 40)))


def other_mask(pair):
    pair.mask(np.ones((32, 36, 41)))


TO_MEND = {
    "1 truncated": (truncated, "files", r"odd\.mrc: truncated"),
    "19 NaN": (nan, "voxels", r"odd\.mrc holds 1 voxels .*z 3, y 4, x 5"),
    "20 constant": (constant, "voxels", r"even\.mrc is constant"),
    "22 shapes": (other_shape, "files", r"differ in shape: .*even\.mrc .*odd\.mrc"),
    "23 voxel sizes": (other_size, "files", r"differ in voxel size: .*correct the header"),
    "24 equal halves": (equal, "halves", r"not independent"),
    "26 same path": (same, "files", r"are the same file"),
    "30 missing half": (missing, "files", r"nowhere\.mrc"),
    "30 missing tilts": (no_tilts, "tilts", r"nowhere\.tlt"),
    "40 smaller than a cube": (large_cubes, "cubes", r"cubes of 40 voxels do not fit"),
    "45 mask of other shape": (other_mask, "files", r"the mask has shape \(32, 36, 41\)"),
    "46 empty mask": (empty_mask, "mask", r"the mask is empty"),
    "shifted": (shifted, "halves", r"shifted against the first by \(0, 0, 3\) voxels .*align them"),
    "mirrored": (mirrored, "halves", r"mirrored along z against each other: reconstruct both"),
    "25 an inverted half": (inverted, "halves", r"anticorrelated: the contrast of one is inverted"),
    "25 another specimen": (unrelated, "halves", r"hardly correlate .*the same specimen"),
    "another scale": (scaled, "halves", r"differ in scale, .*bring the second to the mean"),
    "sign": (wrong_sign, "wedge", r"opposite sign: .*tilts='?-60,40"),
    "range": (wrong_range, "wedge", r"empty sector is not where the tilts put it.*tilts='?-6\d,4\d"),
    "tilt axis": (
        wrong_axis,
        "wedge",
        r"rotated: the empty sector lies around kz and is constant along y.*tilt.axis[ =]'?y",
    ),
    "29 sections along y": (sections_along_y, "wedge", r"lies around ky .*clip rotx .*tilt.axis[ =]'?y"),
    "29 beam along x": (beam_along_x, "wedge", r"lies around kx .*90 degrees about y .*tilt.axis[ =]'?y"),
}


# Where the range is off centre the wedge of the second half tells too.
TWICE = {"mirrored"}


@pytest.mark.parametrize("name", numbered(TO_MEND))
def test_what_must_be_mended_is_named_and_the_status_is_1(name, pair, capsys):
    fault, subject, message = TO_MEND[name]
    fault(pair)
    assert pair.check() == 1
    printed = capsys.readouterr().out
    assert re.search(rf"^MEND +{subject} .*{message}", printed, re.MULTILINE), printed
    assert len(re.findall(message, printed)) == 1, printed
    assert "independent and in place" not in printed or subject not in ("files", "voxels", "halves")
    assert f"\n{1 + (name in TWICE)} to mend before a reconstruction.\n" in printed, printed


def outlier(pair):
    pair.first[2, 2, 2] = 1e5 * float(pair.first.std())


def unknown_size(pair):
    pair.voxel_sizes = [0.0, 0.0]


def no_wedge(pair):
    generator = torch.Generator().manual_seed(7)
    pair.both(lambda half: half + half.std() * torch.randn(half.shape, generator=generator))


def thin_in_y(pair):
    no_wedge(pair)
    pair.both(lambda half: half.permute(2, 0, 1)[:, :16, :].contiguous())


def flat_voxels(pair):
    pair.voxel_sizes = [(20.0, 10.0, 10.0)] * 2


def grey_mask(pair):
    pair.mask(np.full((32, 36, 40), 0.5))


NOTES = {
    "21 an outlier": (outlier, "voxels", r"values \d+ standard deviations from the mean"),
    "28 no voxel size": (unknown_size, "files", r"no voxel size in the header"),
    "29 thinnest along y": (thin_in_y, "axes", r"thinnest along y, .*must be along z.*clip rotx"),
    "47 a grey mask": (grey_mask, "mask", r"mask is not binary"),
    "no cubes": (flat_voxels, "files", r"not cubes, \(20\.0, 10\.0, 10\.0\) Å"),
    "no wedge to be seen": (no_wedge, "wedge", r"does not show the missing wedge"),
}


@pytest.mark.parametrize("name", numbered(NOTES))
def test_what_is_worth_a_word_is_a_note_and_the_status_is_0(name, pair, capsys):
    fault, subject, message = NOTES[name]
    fault(pair)
    assert pair.check() == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert re.search(rf"^note +{subject} .*{message}", printed, re.MULTILINE), printed
    assert ("independent and in place" in printed) == (subject != "halves")


def test_the_wedge_of_the_second_half_counts_too(pair, capsys):
    second_turned(pair)
    assert pair.check() == 1
    assert re.search(r"^MEND +wedge +of the second half: .*lies around ky", capsys.readouterr().out, re.MULTILINE)


ODD = ["sign", "range", "29 sections along y", "mirrored", "shifted", "25 an inverted half", "25 another specimen"]
ODD += ["another scale"]


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """Train one step on good halves."""
    pair = Pair(tmp_path_factory.mktemp("trained"), made)
    pair.settings = ["--steps", "1"]
    assert pair.run() == 0
    return pair.out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", numbered(ODD))
def test_prediction_says_the_same_once_and_goes_on(name, pair, trained, capsys):
    fault, _, message = TO_MEND[name]
    fault(pair)
    pair.write()
    out = pair.folder / "out.mrc"
    tiles = ["--tile", "32", "--tile_margin", "4", "--device", "cpu"]
    assert run("predict", *pair.paths, f"--tilts={pair.tilts}", "--run", trained, "--out", out, *tiles) == 0
    said = capsys.readouterr().err
    assert len(re.findall(rf"equitomo: warning: .*even\.mrc and .*odd\.mrc: .*{message}", said)) == 1, said
    assert said.count("equitomo: warning") == 1 + (name in TWICE), said
    assert out.exists()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (outlier, r"even\.mrc holds values \d+ standard deviations from the mean"),
        (wrong_sign, r"even\.mrc: the tilts seem to have the opposite sign"),
        (flat_voxels, r"even\.mrc: the voxels are not cubes"),
    ],
)
def test_prediction_of_one_half_looks_at_it(fault, message, pair, trained, capsys):
    fault(pair)
    pair.write()
    given = [pair.paths[0], f"--tilts={pair.tilts}", "--run", trained, "--out", pair.folder / "out.mrc"]
    assert run("predict", *given, "--tile", "32", "--tile_margin", "4", "--device", "cpu") == 0
    assert re.search(f"equitomo: warning: .*{message}", capsys.readouterr().err)


@pytest.mark.fault(24)
def test_prediction_refuses_equal_halves(pair, trained, capsys):
    equal(pair)
    pair.write()
    assert run("predict", *pair.paths, "--run", trained, "--out", pair.folder / "out.mrc", "--device", "cpu") == 2
    assert re.search(r"even\.mrc and .*odd\.mrc: the halves are not independent", capsys.readouterr().err)
    assert not (pair.folder / "out.mrc").exists()


def test_prediction_on_good_halves_warns_of_nothing(pair, trained, capsys):
    pair.write()
    tiles = ["--tile", "32", "--tile_margin", "4", "--device", "cpu"]
    assert run("predict", *pair.paths, "--run", trained, "--out", pair.folder / "out.mrc", *tiles) == 0
    assert "warning" not in capsys.readouterr().err


# Memory ----------------------------------------------------------------------------------------------


@pytest.mark.fault(44)
def test_training_refuses_steps_that_the_memory_does_not_hold(pair, capsys, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 1000)
    assert pair.run() == 2
    said = capsys.readouterr().err
    assert re.search(r"a step with 2 cubes of 16 voxels at once takes about .* MB of memory and 1 kB are free", said)
    assert "--micro-batch 1" in said
    assert not pair.out.exists()


@pytest.mark.fault(44)
def test_prediction_refuses_what_the_memory_does_not_hold(pair, trained, capsys, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 1000)
    pair.write()
    assert run("predict", *pair.paths, "--run", trained, "--out", pair.folder / "out.mrc", "--device", "cpu") == 2
    assert re.search(r"out\.mrc: prediction takes about .* are free: a smaller --tile", capsys.readouterr().err)


@pytest.mark.fault(44, 64)
@pytest.mark.parametrize(("free", "answer"), [(10**6, "error"), (6 * 10**7, "warning"), (10**9, "")])
def test_a_gpu_must_hold_one_cube_and_better_those_that_were_asked_for(pair, monkeypatch, free, answer):
    config = TrainingConfig.preset(
        "tiny", width=8, levels=4, unshuffle=1, side=32, batch=8, micro_batch=8, device="cpu"
    )
    trainer = IcecreamTrainer(TomogramPair(pair.first, pair.second, (-60.0, 40.0)), config)
    trainer.device = torch.device("cuda")
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": free)
    if answer == "error":
        with pytest.raises(ValueError, match=r"one cube of 32 voxels takes .* even with activation checkpointing"):
            require_memory_of_step(trainer)
    elif answer == "warning":
        with pytest.warns(UserWarning, match="a step with 8 cubes of 32 voxels at once .* continue with fewer"):
            require_memory_of_step(trainer)
    else:
        require_memory_of_step(trainer)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("paper", {"width": 8, "side": 24, "margin": 4, "precision": "float32"}),
        ("tiny", {"width": 16, "levels": 4, "unshuffle": 1, "side": 24, "precision": "float32"}),
        ("tiny", {"width": 8, "levels": 4, "unshuffle": 1, "side": 32, "precision": "bfloat16"}),
        ("paper", {"width": 8, "side": 32, "margin": 4, "precision": "float32", "checkpointing": True}),
        ("tiny", {"precision": "float32", "side": 32}),
    ],
)
def test_the_memory_of_a_step_is_known_without_a_trial(pair, preset, settings):
    config = TrainingConfig.preset(preset, batch=2, device="cpu", **settings)
    trainer = IcecreamTrainer(TomogramPair(pair.first, pair.second, (-60.0, 40.0)), config)
    a_cube = trainer.bytes_kept(2) - trainer.bytes_kept(1)
    assert bytes_of_step(config, trainer.dtype, 1) == pytest.approx(IN_BACKWARD * a_cube, rel=0.2)


@pytest.mark.fault(68)
def test_training_on_a_cpu_says_how_long_it_will_take(pair, capsys):
    """Entry 68: there is no GPU."""
    pair.settings = ["--steps", "4"]
    assert pair.run() == 0
    assert re.search(r"No GPU is used: a step takes [\d.]+ s, all that are left [\d.]+ s", capsys.readouterr().out)


# What training says ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", numbered(ODD))
def test_training_says_the_same_once_and_goes_on(name, pair, capsys):
    fault, _, message = TO_MEND[name]
    fault(pair)
    pair.settings = [*pair.settings, "--steps", "1"]
    assert pair.run() == 0
    said = capsys.readouterr().err
    assert len(re.findall(rf"equitomo: warning: .*even\.mrc and .*odd\.mrc: .*{message}", said)) == 1, said
    assert said.count("equitomo: warning") == 1 + (name in TWICE), said


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("command", ["train", "reconstruct"])
@pytest.mark.parametrize("name", numbered(["29 thinnest along y", "no cubes"]))
def test_training_warns_of_odd_axes_too(name, command, pair, capsys):
    fault, _, message = NOTES[name]
    fault(pair)
    pair.settings = [*pair.settings, "--steps", "1"]
    assert pair.run(command) == 0
    assert re.search(rf"equitomo: warning: .*odd\.mrc: .*{message}", capsys.readouterr().err)


def test_training_on_good_halves_warns_of_nothing(pair, capsys):
    assert pair.run() == 0
    assert "warning" not in capsys.readouterr().err


def test_the_mask_may_be_found_from_the_data(pair, capsys):
    assert pair.check("--mask", "auto", "--min_specimen", "0.1") == 0
    assert re.search(r"cubes of 16 voxels within a mask of \d+%", lines(capsys.readouterr().out)["cubes"][1])


# Tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, made):
    """Return a function that writes a table of tomograms, some of them with a fault, and checks it."""

    def check(*rows, arguments=()):
        text = ["first,second,tilts,tilt_axis,mask"]
        for number, row in enumerate(rows):
            (folder := tmp_path / str(number)).mkdir()
            for name, half in (("even", made.first), ("odd", made.second)):
                change = row.get("change", lambda half: half)
                data = change(half) if name == "odd" else half
                write_volume(folder / f"{name}.mrc", data.numpy(), voxel_size=row.get("voxel_size", 10.0))
            tilts = row.get("tilts", f'"{LOPSIDED}"')
            text.append(f"{number}/even.mrc,{number}/odd.mrc,{tilts},{row.get('axis', '')},{row.get('mask', '')}")
        (tmp_path / "table.csv").write_text("\n".join(text) + "\n")
        return run("check", "--table", tmp_path / "table.csv", *TINY, *arguments)

    return check


def test_every_tomogram_of_a_table_is_looked_at_and_the_machine_once(table, capsys):
    assert table({}, {"mask": "auto"}, {"tilts": ""}, arguments=["--tilts", LOPSIDED, "--min_specimen", "0.1"]) == 0
    printed = capsys.readouterr().out
    for number in range(3):
        assert re.search(rf"^ok +line {number + 2} +\S+/{number}/even\.mrc and \S+/{number}/odd\.mrc$", printed, re.M)
    assert re.findall(r"^(?:ok|note) +(\w+) ", printed, re.MULTILINE) == ["line"] * 3 + [
        "memory",
        "GPU",
        "disk",
        "time",
    ]
    assert printed.endswith("\nNothing to mend.\n")


@pytest.mark.fault(27)
def test_what_must_be_mended_in_a_table_is_named_with_its_line(table, capsys):
    rows = [{}, {"tilts": '"-40,60"'}, {"tilts": ""}, {"change": lambda half: half[:-1]}, {"axis": "x"}]
    assert table(*rows) == 1
    found = re.findall(r"^(ok|note|MEND) +line (\d) +(?:(\w+): )?(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [row[:3] for row in found] == [
        ("ok", "2", ""),
        ("MEND", "3", "wedge"),
        ("MEND", "4", "tilts"),
        ("MEND", "5", "files"),
        ("MEND", "6", "wedge"),
    ]
    assert "opposite sign" in found[1][3]
    assert "name them in the column tilts, or pass --tilts" in found[2][3]
    assert re.search(r"differ in shape: .*3/even\.mrc", found[3][3])


def test_mixed_voxel_sizes_in_a_table_are_to_be_mended_unless_allowed(table, capsys):
    rows = [{}, {"voxel_size": 12.0}]
    assert table(*rows) == 1
    message = r"^MEND +sizes +the voxel sizes of line 2 and line 3 differ, .*--mixed-voxel-sizes"
    assert re.search(message, capsys.readouterr().out, re.MULTILINE)


def test_mixed_voxel_sizes_may_be_allowed(table):
    assert table({}, {"voxel_size": 12.0}, arguments=["--mixed_voxel_sizes"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "nowhere.csv"], r"no such file.*nowhere\.csv"),
        (["--table", "t.csv", "--mask", "m.mrc"], r"--mask m\.mrc cannot fit all tomograms of a table"),
        (["--table", "t.csv", "--picture", "a.png"], r"--picture draws the wedge of one tomogram"),
        (["a.mrc", "b.mrc"], r"--tilts is needed: a file of tilts, or LOW,HIGH"),
        (
            ["a.mrc", "b.mrc", "--table", "t.csv"],
            r"give a tomogram as FIRST, with its other half as SECOND, or a --table of many, not both",
        ),
        ([], r"give a tomogram as FIRST, with its other half as SECOND, or a --table"),
    ],
)
def test_what_does_not_say_what_to_look_at_is_refused(capsys, arguments, message):
    assert run("check", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


# The machine -----------------------------------------------------------------------------------------


def test_the_disk_is_asked_for_what_training_asks_it_for(pair):
    source = TomogramPair(pair.first, pair.second, (-60.0, 40.0))
    settings = {"width": 4, "side": 24, "steps": 7, "device": "cpu", "precision": "float32"}
    for more in ({}, {"keep_every": 2}, {"ema_decay": 0.0}):
        config = TrainingConfig.preset("tiny", **settings | more)
        assert Trial.of(source, config).written == IcecreamTrainer(source, config).bytes_to_write


@pytest.mark.fault(44)
def test_the_memory_of_a_step_is_foreseen_from_a_small_cube(pair):
    source = TomogramPair(pair.first, pair.second, (-60.0, 40.0))
    settings = {"width": 8, "side": 24, "levels": 3, "batch": 2, "device": "cpu", "precision": "float32"}
    config = TrainingConfig.preset("paper", **settings, margin=4)
    foreseen = Trial.of(source, config).activations
    kept = IcecreamTrainer(source, config).bytes_kept(2)
    # Two network calls on both halves of each cube keep at least three maps of full resolution and width.
    assert kept > 2 * 4 * 3 * 24**3 * 8 * 4
    assert foreseen == pytest.approx(kept, rel=0.05)


@pytest.mark.fault(44)
def test_too_little_memory_is_to_be_mended(pair, capsys, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 1000)
    assert pair.check() == 1
    assert re.search(r"^MEND +memory .*0\.0 GB free: --micro-batch 1", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.fault(44)
def test_unknown_memory_is_a_note(pair, capsys, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": None)
    assert pair.check() == 0
    assert lines(capsys.readouterr().out)["memory"][0] == "note"


@pytest.mark.fault(57)
def test_too_little_disk_is_to_be_mended(pair, capsys, monkeypatch):
    pair.write()
    looked_at = []

    def usage(folder):
        looked_at.append(Path(folder))
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert pair.check("--out", pair.folder / "not" / "yet") == 1
    assert re.search(r"^MEND +disk .*0\.0 GB free", capsys.readouterr().out, re.MULTILINE)
    assert looked_at == [pair.folder]


def test_a_device_that_is_not_there_is_to_be_mended(pair, capsys):
    assert pair.check("--device", "cpux") == 1
    assert re.search(r"^MEND +device .*'cpux' cannot be used here", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.fault(68)
def test_without_a_gpu_that_is_said_with_the_time_of_a_step(pair, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("equitomo.run.checks.time.perf_counter", count(0, 4).__next__)
    assert pair.check("--device", "auto", "--steps", "3600") == 0
    found = lines(capsys.readouterr().out)
    assert found["GPU"] == ("note", "none is used")
    # Two steps are timed, with 4 cubes of 6 voxels along each axis in place of 2 of 16.
    assert found["time"] == ("ok", "about 19 hours for 3,600 steps of 19 s")


@pytest.mark.parametrize(("minutes", "severity"), [("100", "ok"), ("10", "MEND")])
def test_a_time_is_told_as_the_steps_that_it_holds(pair, capsys, monkeypatch, minutes, severity):
    monkeypatch.setattr("equitomo.run.checks.time.perf_counter", count(0, 4).__next__)
    pair.write()
    # The number of steps is left out.
    settings = [word for word in TINY if word not in ("--steps", TINY[TINY.index("--steps") + 1])]
    run("check", *pair.paths, f"--tilts={pair.tilts}", *settings, "--device", "cpu", "--minutes", minutes)
    found, message = lines(capsys.readouterr().out)["time"]
    assert found == severity
    assert re.match(rf"{minutes} minutes hold about \d+ steps of 19 s", message)


def test_the_time_grows_with_steps_and_cubes(pair, monkeypatch):
    monkeypatch.setattr("equitomo.run.checks.time.perf_counter", count(0, 4).__next__)
    source = TomogramPair(pair.first, pair.second, (-60.0, 40.0))
    settings = {"width": 4, "device": "cpu", "precision": "float32"}
    small = TrainingConfig.preset("tiny", side=24, batch=2, **settings)
    large = TrainingConfig.preset("tiny", side=32, batch=8, **settings)
    one, many = (Trial.of(source, config) for config in (small, large))
    assert many.seconds / one.seconds == pytest.approx((8 * 32**3) / (2 * 24**3))
    # But for what does not grow with the batch: weights, and what the filter of the losses keeps.
    assert many.activations / one.activations == pytest.approx((8 * 32**3) / (2 * 24**3), rel=0.1)
    fewer = Trial.of(source, TrainingConfig.preset("tiny", side=32, batch=8, micro_batch=2, **settings))
    assert fewer.activations / many.activations == pytest.approx(1 / 4, rel=0.1)
    assert fewer.seconds == many.seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.234, "0.23 s"), (99.6, "100 s"), (150, "2 minutes"), (3 * 3600, "3 hours"), (3e5, "3 days")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


@pytest.mark.fault(8)
def test_a_check_takes_sixteen_bits(pair, capsys):
    for path, half in zip(pair.paths, (pair.first, pair.second), strict=True):
        write_volume(path, half.numpy(), voxel_size=10.0, dtype="float16")
    assert pair.check() == 0
    assert "float16" in capsys.readouterr().out


def test_a_picture_of_another_kind_is_refused(pair, capsys):
    assert pair.check("--picture", "wedge.mrc") == 2
    assert "picture must be the name of a .png file" in capsys.readouterr().err


def test_several_faults_are_all_named(pair, capsys):
    shifted(pair)
    wrong_axis(pair)
    assert pair.check() == 1
    printed = capsys.readouterr().out
    assert re.search(r"^MEND +halves", printed, re.MULTILINE)
    assert re.search(r"^MEND +wedge", printed, re.MULTILINE)
    assert "2 to mend" in printed
