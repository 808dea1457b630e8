"""A run as scripts hold it: the sentences of the guide, and what the command line makes of the same files."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from commanding import run as command
from kills import assert_equal_runs
from making import noisy_halves, noisy_pair
from torch import nn

from equitomo import (
    IcecreamTrainer,
    MissingWedgeOperator,
    Noise2NoiseLoss,
    Run,
    TomogramPair,
    TrainingConfig,
    diagnose,
    load_network,
    read_volume,
    write_volume,
)
from equitomo.run import (
    Prediction,
    PredictionTable,
    ReconstructionSettings,
    TablePrediction,
    TrainingFiles,
    check_training,
    tomograms_of,
)

SHAPE = (20, 22, 24)
TINY = {"side": 16, "width": 4, "levels": 2, "steps": 4, "batch": 1, "margin": 2, "warmup": 0}
TINY |= {"checkpoint_every": 2, "preview_every": 2, "device": "cpu", "precision": "float32"}
TILES = ReconstructionSettings(tile=24, tile_margin=4)
OPTIONS = ["--tile", "24", "--tile-margin", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write two halves and their tilts."""
    folder = tmp_path_factory.mktemp("files")
    for name, half in zip(("even", "odd"), noisy_halves(SHAPE), strict=True):
        write_volume(folder / f"{name}.mrc", 300 + 40 * half.numpy(), voxel_size=10.0)
    (folder / "t.tlt").write_text("-60\n0\n60\n")
    return folder


def pair_in(folder, **settings):
    return TomogramPair.read(folder / "even.mrc", folder / "odd.mrc", tilts=folder / "t.tlt", **settings)


def test_a_script_says_all_of_it(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in files.iterdir():
        shutil.copy(path, tmp_path)
    settings = {name: value for name, value in TINY.items() if name != "steps"}
    pair = TomogramPair.read("even.mrc", "odd.mrc", tilts="t.tlt", tilt_axis="y", mask="auto")
    for finding in diagnose(pair):
        print(finding)
    run = Run.create("run", pair, TrainingConfig.preset("fast", steps=5, min_specimen=0.1, **settings))
    run.train()
    run.predict(pair, "out.mrc", TILES)
    predictor = Run.open("run").predictor(pair.geometry, TILES)
    scale = (pair.scale.mean, pair.scale.scale)
    found = predictor(*(np.asarray(half[:, :, :]) for half in pair.halves), intensities=scale)
    assert np.array_equal(found, read_volume("out.mrc").data)


@pytest.fixture(scope="module", params=["paper", "fast", "tiny"])
def trained(request, files, tmp_path_factory):
    """Return a preset, and the folder of a run with its settings except for the sizes."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    Run.create(folder, pair_in(files), TrainingConfig.preset(request.param, **TINY)).train()
    return request.param, folder


def predicted(files, folder, out, *options):
    arguments = [files / "even.mrc", files / "odd.mrc", "--run", folder, "--out", out, "--device", "cpu", *options]
    assert command("predict", *arguments) == 0
    return read_volume(out).data


def applied(predictor, pair):
    halves = (np.asarray(half[:, :, :]) for half in pair.halves)
    return predictor(*halves, intensities=(pair.scale.mean, pair.scale.scale))


def test_the_predictor_of_a_run_is_that_of_the_command_to_the_bit(trained, files, tmp_path):
    _, folder = trained
    expected, pair = predicted(files, folder, tmp_path / "a.mrc"), pair_in(files)
    opened = Run.open(folder)
    assert np.array_equal(applied(opened.predictor(pair.geometry, devices="cpu"), pair), expected)
    # The geometry of the run is that of the pair.
    assert np.array_equal(applied(opened.predictor(devices="cpu"), pair), expected)
    assert opened.predict(pair, tmp_path / "b.mrc", devices="cpu").read_bytes() == (tmp_path / "a.mrc").read_bytes()


def test_other_settings_are_those_of_the_command_too(trained, files, tmp_path):
    _, folder = trained
    options = [*OPTIONS, "--passes", "2", "--no-average-first", "--precision", "float32", "--wedge", "global"]
    expected = predicted(files, folder, tmp_path / "a.mrc", *options)
    settings = Prediction(tile=24, tile_margin=4, passes=2, average_first=False, precision="float32", wedge="global")
    found = applied(Run.open(folder).predictor(settings=settings, devices="cpu"), pair_in(files))
    assert np.array_equal(found, expected)


def test_a_run_is_that_of_the_command_to_the_bit(trained, files, tmp_path):
    preset, folder = trained
    options = [text for name, value in TINY.items() for text in (f"--{name}", value)]
    halves = [files / "even.mrc", files / "odd.mrc", "--tilts", files / "t.tlt"]
    assert command("train", *halves, "--out", tmp_path / "run", "--preset", preset, *options) == 0
    assert_equal_runs(folder, tmp_path / "run")


def config(**changes):
    return TrainingConfig.preset("tiny", **TINY | changes)


def test_a_reconstruction_is_that_of_the_command_to_the_bit(files, tmp_path):
    options = [text for name, value in TINY.items() for text in (f"--{name}", value)]
    halves = [files / "even.mrc", files / "odd.mrc", "--tilts", files / "t.tlt"]
    arguments = ["--out", tmp_path / "one", "--preset", "tiny", *options, *OPTIONS[:4]]
    assert command("reconstruct", *halves, *arguments) == 0
    seen = []
    run = Run.create(tmp_path / "two", pair_in(files), config())
    out = run.reconstruct(TILES, step_progress=lambda step, losses: seen.append(step))
    assert out == tmp_path / "two" / "reconstruction.mrc"
    assert out.read_bytes() == (tmp_path / "one" / "reconstruction.mrc").read_bytes()
    assert (tmp_path / "two" / "slices.png").exists()
    assert seen == [1, 2, 3, 4]


# The folder and the record ----------------------------------------------------------------------------


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_run_that_was_stopped_is_resumed_to_the_bit(files, tmp_path):
    Run.create(tmp_path / "one", pair_in(files), config()).train()
    Run.create(tmp_path / "two", pair_in(files), config()).train(until=2)
    resumed = Run.create(tmp_path / "two", pair_in(files), config(), resume=True)
    assert resumed.step == 2
    assert resumed.train().step == 4
    assert_equal_runs(tmp_path / "one", tmp_path / "two")
    assert [entry["outcome"] for entry in record(tmp_path / "two")["invocations"]] == ["finished", "finished"]


def test_a_run_may_be_trained_in_parts(files, tmp_path):
    Run.create(tmp_path / "one", pair_in(files), config()).train()
    run = Run.create(tmp_path / "two", pair_in(files), config())
    run.train(until=2).train()
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_nothing_is_written_before_the_training(files, tmp_path):
    run = Run.create(tmp_path / "run", pair_in(files), config())
    assert not (tmp_path / "run").exists()
    run.train(until=1)
    assert {"manifest.json", "checkpoints", "losses.csv", "losses.png"} <= {p.name for p in run.path.iterdir()}
    assert not (run.path / "run.lock").exists()


def test_a_run_is_replaced_when_the_training_of_the_other_begins(files, tmp_path):
    Run.create(tmp_path, pair_in(files), config()).train()
    with pytest.raises(FileExistsError, match=r"holds a run already .*`resume=True`.*`overwrite=True`"):
        Run.create(tmp_path, pair_in(files), config())
    run = Run.create(tmp_path, pair_in(files), config(seed=1), overwrite=True)
    assert record(tmp_path)["configuration"]["seed"] == 0
    run.train(until=2).train()
    assert record(tmp_path)["configuration"]["seed"] == 1
    assert Run.open(tmp_path).step == 4


def test_the_folder_is_locked_while_the_run_works_and_free_afterwards(files, tmp_path):
    refusals = []

    def meanwhile(step, losses):
        with pytest.raises(OSError, match="in use by process") as refused:
            Run.create(tmp_path, pair_in(files), config(), resume=True)
        refusals.append(refused)

    run = Run.create(tmp_path, pair_in(files), config())
    run.train(until=2, progress=meanwhile)
    assert len(refusals) == 2
    Run.create(tmp_path, pair_in(files), config(), resume=True).train()


def test_a_run_that_another_one_continued_is_not_continued_from_where_it_was(files, tmp_path):
    one = Run.create(tmp_path, pair_in(files), config()).train(until=2)
    Run.create(tmp_path, pair_in(files), config(), resume=True).train()
    with pytest.raises(OSError, match="another process worked on this run in the meantime"):
        one.train()


def test_the_record_says_what_a_script_did(files, tmp_path):
    run = Run.create(tmp_path, pair_in(files), config())
    with pytest.raises(ZeroDivisionError), run.recorded():
        run.train(until=1)
        _ = 1 / 0
    found = record(tmp_path)
    assert found["configuration"] == config().as_dict()
    assert found["inputs"].keys() == {"first", "second", "tilts"}
    (entry,) = found["invocations"]
    assert entry["outcome"].startswith("failed: division")
    assert entry["command"] == sys.argv


def test_a_changed_input_is_refused_with_its_name(files, tmp_path):
    copied = shutil.copytree(files, tmp_path / "in")
    Run.create(tmp_path / "run", pair_in(copied), config()).train(until=1)
    write_volume(copied / "odd.mrc", 2 * read_volume(copied / "odd.mrc").data, voxel_size=10.0, overwrite=True)
    with pytest.raises(ValueError, match=r"odd\.mrc is not the second that the run was started with"):
        Run.create(tmp_path / "run", pair_in(copied), config(), resume=True)


def test_several_tomograms_are_recorded_with_their_numbers(files, tmp_path):
    run = Run.create(tmp_path, [pair_in(files), pair_in(files, lazy=True)], config()).train(until=1)
    assert {"first of tomogram 1", "tilts of tomogram 2"} <= record(tmp_path)["inputs"].keys()
    with pytest.raises(ValueError, match="the run has 2 tomograms"):
        run.reconstruct()


def test_a_run_without_its_tomograms_cannot_be_trained(trained):
    with pytest.raises(RuntimeError, match=r"opened without its tomograms.*resume=True\) continues it"):
        Run.open(trained[1]).train()


def test_a_half_is_read_once_before_the_first_tile(trained, files, tmp_path, monkeypatch):
    """The statistics, the checks and the diagnosis come of one pass over each file."""
    read = {}
    volume = type(read_volume(files / "even.mrc"))
    slabs, item = volume.slabs, volume.__getitem__

    def count(self, n):
        read[self.path.name] = read.get(self.path.name, 0) + n

    def counted_slabs(self, *arguments):
        for place, block in slabs(self, *arguments):
            count(self, block.size)
            yield place, block

    def counted_item(self, index):
        block = item(self, index)
        count(self, np.size(block))
        return block

    def first_tile(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(volume, "slabs", counted_slabs)
    monkeypatch.setattr(volume, "__getitem__", counted_item)
    monkeypatch.setattr("equitomo.inference.TiledPredictor.__call__", lambda *given, **more: first_tile(None, None))
    arguments = [files / "even.mrc", files / "odd.mrc", "--run", trained[1], "--out", tmp_path / "a.mrc", *OPTIONS]
    assert command("predict", *arguments, "--dtype", "float16") == 130
    assert read.keys() == {"even.mrc", "odd.mrc"}
    assert all(n <= 1 * np.prod(SHAPE) for n in read.values()), read


# Checks and tables --------------------------------------------------------------------------------------


def test_a_script_checks_tomograms_and_the_machine(files):
    declared = TrainingFiles(str(files / "even.mrc"), str(files / "odd.mrc"), str(files / "t.tlt"))
    found = {finding.subject: finding for finding in check_training(tomograms_of(declared), config())}
    assert {"files", "tilts", "voxels", "halves", "wedge", "cubes", "memory", "disk", "time"} <= found.keys()
    assert found["cubes"].message.startswith("315 different cubes")
    shifted = TrainingFiles(declared.first, declared.second, "nowhere.tlt")
    assert [f.subject for f in check_training(tomograms_of(shifted), config()) if f.severity == "error"] == ["tilts"]


def test_a_script_predicts_a_table_and_skips_what_is_done(trained, files, tmp_path):
    (files / "table.csv").write_text("first,second\neven.mrc,odd.mrc\ngone.mrc,odder.mrc\n")
    settings, seen = Prediction(tile=24, tile_margin=4), []
    declared = PredictionTable(table=str(files / "table.csv"))
    table = TablePrediction(Run.open(trained[1]), declared, tmp_path / "out", settings, devices="cpu")
    outcomes = table.write(progress=lambda result, done, total: seen.append((result.name, done == total)))
    assert [outcome.status for outcome in outcomes] == ["done", "failed"]
    assert "gone.mrc" in outcomes[1].reason
    assert seen[-1] == ("even.mrc", True)
    expected = predicted(files, trained[1], tmp_path / "alone.mrc", *OPTIONS)
    assert np.array_equal(read_volume(tmp_path / "out" / "even.mrc").data, expected)
    assert [outcome.status for outcome in table.write()] == ["skipped", "failed"]


def test_the_prediction_of_a_table_needs_a_table(trained, tmp_path):
    with pytest.raises(ValueError, match="give a `table` of many"):
        TablePrediction(Run.open(trained[1]), PredictionTable("even.mrc"), tmp_path / "out")


# Parts of one's own -----------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network with biases and a normalisation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:.*normali[sz]")
def test_a_run_takes_a_network_losses_and_an_operator_of_ones_own(files, tmp_path):
    made = []

    def physics(shape, geometry):
        made.append(shape)
        return MissingWedgeOperator(shape, geometry, support="box")

    parts = {"network": Plain, "physics": physics, "losses": {"n2n": Noise2NoiseLoss(margin=4)}}
    settings = config(passes=2, test_time_mirrors=False, optimizer="adam")
    run = Run.create(tmp_path / "run", pair_in(files), settings, **parts).train(until=2)
    assert (tmp_path / "run" / "losses.csv").read_text().startswith("step,n2n")
    with pytest.raises(ValueError, match=r"Plain, which this library cannot make by itself: pass `network`"):
        Run.open(tmp_path / "run")
    opened = Run.open(tmp_path / "run", network=Plain, physics=physics)
    weights = load_network(tmp_path / "run", network=Plain).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in opened.network.state_dict().items())
    made.clear()
    found, again = (applied(one.predictor(settings=TILES, devices="cpu"), pair_in(files)) for one in (opened, run))
    assert made
    assert np.array_equal(found, again)


def test_a_run_starts_from_another_run_or_a_network(files, tmp_path):
    first = Run.create(tmp_path / "first", pair_in(files), config()).train(until=1)
    settings = config(learning_rate=1e-30, ema_decay=0.0)
    for name, init in (("run", tmp_path / "first"), ("network", first.network)):
        run = Run.create(tmp_path / name, pair_in(files), settings, init=init).train(until=1)
        before, after = first.network.state_dict(), run.network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert record(tmp_path / "run")["init"]["step"] == 1
    assert record(tmp_path / "network")["init"] == "not recorded"


def test_halves_of_different_tilts_are_predicted_where_no_wedge_matters(files, tmp_path):
    pair = pair_in(files, second_tilts=(-50.0, 50.0))
    settings = config(method="icecream", passes=2, average_first=False, test_time_mirrors=False)
    run = Run.create(tmp_path / "run", pair, settings).train(until=1)
    with pytest.raises(ValueError, match=r"the halves have different tilts.*pass `passes=1`"):
        run.require_reconstruction()
    with pytest.raises(ValueError, match=r"the halves have different tilts.*pass `passes=1`"):
        run.predict(pair, tmp_path / "a.mrc", TILES)
    one_pass = Prediction(tile=24, tile_margin=4, passes=1)
    assert run.predict(pair, tmp_path / "a.mrc", one_pass, devices="cpu").exists()


def test_a_tomogram_too_thin_for_the_cubes_of_a_preset_gets_smaller_ones_and_is_told(tmp_path):
    pair, config = noisy_pair((16, 20, 52)), TrainingConfig.preset("tiny", device="cpu", preview_every=0)
    run = Run.create(tmp_path / "thin", pair, config)
    assert run.config.side == 16
    assert (
        "Cubes have 16 voxels per side and not 48, because no larger ones fit into the smallest tomogram" in run.notes
    )
    run.train(until=1)
    assert Run.create(tmp_path / "thin", pair, config, resume=True).trainer.step == 1
    with pytest.raises(ValueError, match="cubes of 48 voxels do not fit"):
        Run.create(tmp_path / "asked", pair, TrainingConfig.preset("tiny", side=48, device="cpu"))


def test_a_training_without_tomograms_is_refused_for_that():
    with pytest.raises(ValueError, match="at least one pair of half tomograms is needed"):
        IcecreamTrainer([], TrainingConfig.preset("tiny", device="cpu"))
