"""Training on many tomograms: in turns, resumed, interrupted, and from a table on the command line."""

import os
import re
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from commanding import run
from making import noisy_halves

from equitomo import IcecreamTrainer, SubtomogramPool, TiltGeometry, TomogramPair, TrainingConfig, write_volume
from equitomo.run import TrainingTable, tomograms_of
from equitomo.training import TrainingInterruptedError
from equitomo.training.checkpoint import load_checkpoint

TINY = {"side": 16, "batch": 1, "width": 2, "levels": 2, "margin": 4, "precision": "float32", "device": "cpu"}
ONE = 8 * 16**3
# Two of them at a time, exchanged every three steps.
TURNS = {"memory": 3 * ONE / 2**30, "exchange_every": 3, "steps": 14, "checkpoint_every": 100, "preview_every": 0}
GEOMETRIES = [(-60.0, 60.0), (-50.0, 40.0), (-60.0, 60.0), (-45.0, 45.0)]


def write(folder, number, shape=(16, 16, 16), voxel_size=10.0):
    names = []
    for label, half in zip(("even", "odd"), noisy_halves(shape, seed=number), strict=True):
        names.append(f"{label}_{number}.mrc")
        write_volume(folder / names[-1], half.numpy(), voxel_size=voxel_size, overwrite=True)
    return names


def pairs_in(folder):
    return [
        TomogramPair.read(*(folder / name for name in write(folder, n)), tilts=geometry, lazy=True)
        for n, geometry in enumerate(GEOMETRIES)
    ]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reading ")]


def weights(trainer):
    return trainer.network.state_dict()


# The trainer -----------------------------------------------------------------------------------------


def test_a_run_resumed_in_the_middle_of_a_stretch_is_the_unbroken_one(tmp_path):
    config = TrainingConfig(**TINY, **TURNS)
    whole = IcecreamTrainer(pairs_in(tmp_path), config).train()
    assert isinstance(whole.dataset, SubtomogramPool)
    # Steps 3 to 5 are one stretch.
    IcecreamTrainer(pairs_in(tmp_path), config, out=tmp_path / "run").train(until=5)
    resumed = IcecreamTrainer(pairs_in(tmp_path), config, out=tmp_path / "run", resume=True)
    assert resumed.step == 5
    resumed.train()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.filterwarnings("ignore:only . of 4 tomograms will be visited")
@pytest.mark.parametrize("steps", [4, 6])
def test_a_run_that_is_given_more_steps_takes_the_turns_of_an_unbroken_one(tmp_path, steps):
    """The first run ends between two exchanges of tomograms, or at one."""
    config = TrainingConfig(**TINY, **TURNS)
    whole = IcecreamTrainer(pairs_in(tmp_path), config).train()
    IcecreamTrainer(pairs_in(tmp_path), replace(config, steps=steps), out=tmp_path / "run").train()
    resumed = IcecreamTrainer(pairs_in(tmp_path), config, out=tmp_path / "run", resume=True).train()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_an_interruption_ends_the_thread_and_saves(tmp_path, monkeypatch):
    begun = threading.Event()
    load = TomogramPair.load_volumes

    def wait(self, stopped=lambda: False):
        # The thread reads on until it is told to stop.
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            while not stopped():
                threading.Event().wait(0.001)
        return load(self, stopped)

    def interrupt(*seen):
        assert begun.wait(60)
        assert len(readers()) == 1
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TomogramPair, "load_volumes", wait)
    config = TrainingConfig(**TINY, **TURNS | {"preview_every": 2})
    trainer = IcecreamTrainer(pairs_in(tmp_path), config, out=tmp_path / "run", preview=interrupt)
    with pytest.raises(TrainingInterruptedError, match="after step 2 of 14"):
        trainer.train()
    assert not readers()
    assert load_checkpoint(tmp_path / "run").state["step"] == 2


def test_the_picture_shows_the_same_cube_whatever_is_in_memory(tmp_path):
    shown = []
    config = TrainingConfig(**TINY, **TURNS | {"preview_every": 4})
    pairs = pairs_in(tmp_path)
    IcecreamTrainer(pairs, config, preview=lambda step, cube, seen: shown.append(cube)).train()
    assert len(shown) == 3
    assert all(torch.equal(cube, pairs[0].load_volumes().mean(0)) for cube in shown)


# The command line ------------------------------------------------------------------------------------

OPTIONS = [text for name, value in (TINY | {"steps": 2}).items() for text in (f"--{name}", str(value))]


def train(*arguments):
    return run("train", "--preset", "tiny", *OPTIONS, *arguments)


@pytest.fixture
def table(tmp_path):
    """Write a table of three tomograms with different shapes, tilts and masks."""
    lines = ["first,second,tilts,tilt_axis,mask"]
    for number, (shape, rest) in enumerate(
        [((16, 16, 16), '"-60,60",,'), ((16, 18, 20), "two.tlt,x,"), ((17, 16, 16), ",,m.mrc")]
    ):
        lines.append(",".join([*write(tmp_path, number, shape=shape), rest]))
    (tmp_path / "two.tlt").write_text("-40\n0\n50\n")
    inside = np.zeros((17, 16, 16), np.float32)
    inside[1:] = 1
    write_volume(tmp_path / "m.mrc", inside, voxel_size=10.0)
    path = tmp_path / "tomograms.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_of_tomograms_is_trained_on(table, tmp_path, monkeypatch):
    seen = []
    run = IcecreamTrainer.train
    monkeypatch.setattr(
        IcecreamTrainer, "train", lambda self, *given: (seen.append(self.dataset), run(self, *given))[1]
    )
    arguments = ["--table", table, "--tilts", "-50,50", "--out", tmp_path / "run", "--min_specimen", "0.95"]
    assert train(*arguments) == 0
    (dataset,) = seen
    assert [pair.shape for pair in dataset.pairs] == [(16, 16, 16), (16, 18, 20), (17, 16, 16)]
    tilts = [(pair.geometry.tilt_range, pair.geometry.tilt_axis) for pair in dataset.pairs]
    assert tilts == [((-60.0, 60.0), "y"), ((-40.0, 50.0), "x"), ((-50.0, 50.0), "y")]
    # All of the first two; of the third both, since 15 of 16 sections are specimen or all.
    assert dataset.n_starts == 1 + 15 + 1
    assert len(load_checkpoint(tmp_path / "run").state["geometries"]) == 3


def test_a_table_names_dual_axis_tomograms(tmp_path):
    halves = write(tmp_path, 0, shape=(16, 16, 16))
    (tmp_path / "x.tlt").write_text("-40\n0\n50\n")
    (tmp_path / "t.csv").write_text(f"first,second,second_axis_tilts\n{halves[0]},{halves[1]},x.tlt\n")
    (tomogram,) = tomograms_of(TrainingTable(table=str(tmp_path / "t.csv"), tilts="-60,60"))
    assert tomogram.geometry() == TiltGeometry.from_range(-60, 60) | TiltGeometry((-40, 0, 50), "x")
    assert tomogram.read(lazy=True).geometry == tomogram.geometry()


@pytest.mark.filterwarnings("default")
def test_tomograms_of_a_table_take_turns_within_the_memory_given(table, tmp_path, monkeypatch, capsys):
    seen = []
    run = IcecreamTrainer.train
    monkeypatch.setattr(
        IcecreamTrainer, "train", lambda self, *given: (seen.append(self.dataset), run(self, *given))[1]
    )
    memory = 8 * (16 * 18 * 20 + 17 * 16 * 16) / 2**30
    arguments = [
        "--table",
        table,
        "--tilts",
        "-50,50",
        "--out",
        tmp_path / "run",
        "--memory",
        memory,
        "--exchange_every",
        "1",
    ]
    assert train(*arguments) == 0
    assert isinstance(seen[0], SubtomogramPool)
    assert "of 3 tomograms will be visited" in capsys.readouterr().err


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def test_a_file_that_breaks_during_the_training_is_named(table, tmp_path, monkeypatch, capsys):
    run = IcecreamTrainer.train

    def breaking(self, *given):
        for path in tmp_path.glob("even_*.mrc"):
            cut(path)
        return run(self, *given)

    monkeypatch.setattr(IcecreamTrainer, "train", breaking)
    memory = 8 * (16 * 18 * 20 + 17 * 16 * 16) / 2**30
    arguments = [
        "--table",
        table,
        "--tilts",
        "-50,50",
        "--out",
        tmp_path / "run",
        "--memory",
        memory,
        "--exchange_every",
        "1",
    ]
    assert train(*arguments, "--steps", "40") == 74
    assert "cut or replaced" in (message := capsys.readouterr().err)
    assert "even_" in message


def spoil_constant(folder):
    write_volume(folder / "odd_0.mrc", np.ones((16, 16, 16), "f4"), voxel_size=10.0, overwrite=True)


def without_a_half(folder):
    path = folder / "tomograms.csv"
    path.write_text(path.read_text().replace("odd_2.mrc", ""))


ALL = ["--tilts", "-50,50"]


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda folder: None, [], "csv: line 4: no tilts: name them in the column"),
        (lambda folder: (folder / "odd_1.mrc").unlink(), ALL, "csv: line 3: .*odd_1.mrc"),
        pytest.param(without_a_half, ALL, "csv: line 4: no second half", marks=pytest.mark.fault(27)),
        (lambda folder: cut(folder / "even_2.mrc"), ALL, "csv: line 4: .*even_2.mrc: truncated"),
        (lambda folder: (folder / "two.tlt").write_text("7\n"), ALL, "csv: line 3: .*two.tlt"),
        (lambda folder: None, [*ALL, "--mask", "m.mrc"], "--mask m.mrc cannot fit all"),
        (spoil_constant, ALL, r"csv: line 2: .*odd_0\.mrc is constant"),
    ],
    ids=["no tilts", "gone", "half gone", "cut", "bad tilts", "one mask", "constant"],
)
def test_errors_name_the_line_of_the_table(table, tmp_path, capsys, spoil, arguments, message):
    spoil(tmp_path)
    assert train("--table", table, *arguments, "--out", tmp_path / "run") == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found


def test_mixed_voxel_sizes_are_refused_unless_allowed(table, tmp_path, capsys):
    write(tmp_path, 1, (16, 18, 20), voxel_size=14.0)
    arguments = ["--table", table, "--tilts", "-50,50", "--out", tmp_path / "run"]
    assert train(*arguments) == 2
    assert "mixed_voxel_sizes" in capsys.readouterr().err
    assert train(*arguments, "--mixed-voxel-sizes") == 0


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a tomogram as FIRST, with its other half as SECOND, or a --table"),
        (["even_0.mrc"], "give the two half tomograms"),
        (["even_0.mrc", "odd_0.mrc", "even_1.mrc"], "unrecognized arguments: even_1.mrc"),
        (["even_0.mrc", "odd_0.mrc", "--table", "t.csv"], "not both"),
        (["even_0.mrc", "odd_0.mrc"], "--tilts is needed"),
        (["--table", "missing.csv"], "missing.csv"),
    ],
)
def test_halves_or_a_table_are_needed(table, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train(*arguments, "--out", "run") == 2
    assert message in capsys.readouterr().err
