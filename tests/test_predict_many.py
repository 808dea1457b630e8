"""Prediction of the tomograms of a table: what is done stays, what fails fails alone, and nothing half is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from making import noisy_halves

import equitomo
from equitomo import TiledPredictor, read_volume, write_volume
from equitomo.cli import main
from equitomo.cli.progress import TableBar
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.run import Outcome, TomogramFiles
from equitomo.run.prediction import chosen_devices
from equitomo.run.table import Tomogram, result_names

SHAPES = {"one": (24, 24, 24), "two": (20, 24, 22), "three": (24, 18, 24)}
NAMES = {f"{name}_even.mrc" for name in SHAPES}
# Each half is one tile, each pass a call of the network: four calls for a tomogram.
TILED = ["--tile", "32", "--tile_margin", "4", "--wedge", "tile", "--precision", "float32", "--device", "cpu"]
CALLS = 4


def run(*arguments):
    """Return the exit status of the program."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def write_halves(folder, shape, seed):
    folder.mkdir(exist_ok=True)
    for name, half in zip(("even", "odd"), noisy_halves(shape, seed=seed), strict=True):
        write_volume(folder / f"{name}.mrc", 300 + 40 * half.numpy(), voxel_size=10.0, overwrite=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of two runs whose networks differ."""
    folder = tmp_path_factory.mktemp("runs")
    write_halves(folder, (16, 16, 16), seed=9)
    settings = [
        *("--preset", "tiny", "--side", "16", "--width", "2"),
        *("--levels", "2", "--unshuffle", "1", "--steps", "1"),
        *("--margin", "4"),
    ]
    settings += ["--device", "cpu", "--precision", "float32", "--no-test-time-mirrors", "--no-average-first"]
    for seed in "01":
        arguments = [folder / "even.mrc", folder / "odd.mrc", "--tilts=-60,60", "--out", folder / seed, "--seed", seed]
        assert run("train", *arguments, *settings, "--passes", "2") == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write three tomograms whose files have the same names in three folders, and a table of them."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        write_halves(folder / name, shape, seed)
    lines = ["first,second,tilts,tilt_axis", "one/even.mrc,one/odd.mrc,,"]
    lines += ['two/even.mrc,two/odd.mrc,"-50,40",', "three/even.mrc,three/odd.mrc,,x"]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def table(data, tmp_path):
    """Copy the table with its tomograms, so that a test may change them."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data" / "t.csv"


@pytest.fixture
def predict(table, runs, tmp_path):
    """Return a function that predicts the table into one folder and returns the exit status."""

    def act(*more, network="0"):
        arguments = ["--table", table, "--run", runs / network, "--out", tmp_path / "out", *TILED, *more]
        return run("predict", *arguments)

    return act


@pytest.fixture(scope="module")
def expected(data, runs, tmp_path_factory):
    """Predict each tomogram alone."""
    folder = tmp_path_factory.mktemp("alone")
    tilts = {"one": [], "two": ["--tilts=-50,40"], "three": ["--tilt_axis", "x"]}
    for name, more in tilts.items():
        halves = [data / name / "even.mrc", data / name / "odd.mrc"]
        out = folder / f"{name}_even.mrc"
        assert run("predict", *halves, "--run", runs / "0", "--out", out, *TILED, *more) == 0
    return {name: read_volume(folder / name).data.copy() for name in NAMES}


def results(folder):
    """Return the volumes in a folder, and make sure that it holds nothing else but their records."""
    found = {path.name for path in folder.iterdir()}
    volumes = {name for name in found if name.endswith(".mrc")}
    assert found == volumes | {f"{name}.json" for name in volumes}
    return {name: read_volume(folder / name).data.copy() for name in volumes}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, volume in expected.items():
        np.testing.assert_array_equal(found[name], volume)


def states(out):
    """Return the status of each tomogram in the table that is printed at the end."""
    return {name: status for status, name in re.findall(r"^(\w+) +line \d+ +(\S+):", out.rpartition("\n\n")[2], re.M)}


def counting(monkeypatch, act=lambda n: None):
    """Count the network's calls, and call a function at each."""
    calls, lock = [], threading.Lock()
    forward = ScaleEquivariantUNet3D.forward

    def counted(self, x):
        # Without the lock both of two threads might count the second call, and none the first.
        with lock:
            calls.append(self)
            n = len(calls)
        act(n)
        return forward(self, x)

    monkeypatch.setattr(ScaleEquivariantUNet3D, "forward", counted)
    return calls


# What is made, and skipped ---------------------------------------------------------------------------


def test_every_tomogram_becomes_what_it_becomes_alone(predict, expected, tmp_path, capsys):
    assert predict() == 0
    assert_same(results(tmp_path / "out"), expected)
    out = capsys.readouterr().out
    assert states(out) == dict.fromkeys(NAMES, "done")
    assert "3 done, 0 skipped, 0 failed" in out


def test_what_is_done_is_skipped(predict, tmp_path, monkeypatch, capsys):
    predict()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    calls = counting(monkeypatch)
    capsys.readouterr()
    assert predict() == 0
    assert predict("--overwrite") == 0
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert states(capsys.readouterr().out) == dict.fromkeys(NAMES, "skipped")


def test_a_file_that_was_only_touched_is_the_same_input(predict, table, monkeypatch):
    predict()
    calls = counting(monkeypatch)
    os.utime(table.parent / "two" / "even.mrc", ns=(1, 1))
    assert predict() == 0
    assert not calls


@pytest.mark.parametrize("half", ["even", "odd"])
def test_a_changed_input_is_not_skipped(predict, table, tmp_path, capsys, half):
    predict()
    before = results(tmp_path / "out")
    path = table.parent / "two" / f"{half}.mrc"
    volume = read_volume(path).data + np.float32(1) * (np.arange(24)[:, None] > 9)
    write_volume(path, volume.astype("f4"), voxel_size=10.0, overwrite=True)
    assert predict() == 1
    assert_same(results(tmp_path / "out"), before)
    out = capsys.readouterr().out
    assert re.search(r"failed +line 3 +two_even.mrc: .*was made from something else.*content.*--overwrite", out)
    assert predict("--overwrite") == 0
    after = results(tmp_path / "out")
    assert {name for name in NAMES if not np.array_equal(before[name], after[name])} == {"two_even.mrc"}
    assert predict() == 0


@pytest.mark.parametrize(
    ("more", "network", "reason"),
    [
        (["--passes", "1"], "0", r"passes was 2, now 1\)"),
        (["--tile_margin", "8"], "0", r"tile_margin was 4, now 8\)"),
        (["--dtype", "float16"], "0", r"dtype was float32, now float16\)"),
        (["--nan", "mean"], "0", r"nan was refuse, now mean\)"),
        ([], "1", r"the network has other weights\)"),
    ],
)
def test_other_settings_and_weights_need_leave_to_replace(predict, tmp_path, capsys, more, network, reason):
    predict()
    before = results(tmp_path / "out")
    assert predict(*more, network=network) == 1
    assert_same(results(tmp_path / "out"), before)
    assert len(re.findall(f"^failed .*{reason}", capsys.readouterr().out.rpartition("\n\n")[2], re.M)) == 3


def test_a_tile_of_another_size_gives_the_same_result_but_where_the_wedge_is_emptied_in_it(predict, tmp_path, capsys):
    seamless = ["--wedge", "global"]
    assert predict(*seamless) == 0
    assert predict(*seamless, "--tile", "24") == 0
    assert set(states(capsys.readouterr().out).values()) == {"skipped"}
    assert predict("--overwrite") == 0
    assert predict("--tile", "24") == 1
    said = capsys.readouterr().out.rpartition("\n\n")[2]
    assert len(re.findall(r"^failed .*tile was 32, now 24\)", said, re.M)) == 3
    assert predict("--passes", "1", "--overwrite") == 0
    assert predict("--passes", "1", "--tile", "24") == 0
    assert json.loads((tmp_path / "out" / "two_even.mrc.json").read_text())["settings"]["tile"] == 32


def test_other_tilts_are_another_result_where_the_table_names_none(predict, capsys):
    predict()
    assert predict("--tilts=-40,40") == 1
    found = states(capsys.readouterr().out)
    assert found == {"one_even.mrc": "failed", "two_even.mrc": "skipped", "three_even.mrc": "failed"}


def test_a_volume_without_a_second_half_becomes_what_it_becomes_alone(predict, table, runs, tmp_path, capsys):
    table.write_text("first,second\none/even.mrc,\ntwo/even.mrc,two/odd.mrc\n")
    assert predict() == 0
    one = table.parent / "one" / "even.mrc"
    assert run("predict", one, "--run", runs / "0", "--out", tmp_path / "alone.mrc", *TILED) == 0
    alone = read_volume(tmp_path / "alone.mrc").data
    np.testing.assert_array_equal(results(tmp_path / "out")["one_even.mrc"], alone)
    assert json.loads((tmp_path / "out" / "one_even.mrc.json").read_text())["inputs"].keys() == {"first"}
    assert predict() == 0
    assert set(states(capsys.readouterr().out).values()) == {"skipped"}


def test_a_half_more_or_less_is_another_result(predict, table, capsys):
    predict()
    table.write_text(table.read_text().replace("one/odd.mrc", ""))
    assert predict() == 1
    assert re.search(r"^failed .*one_even.*\(second was .*odd\.mrc, now none\)", capsys.readouterr().out, re.M)
    assert predict("--overwrite") == 0
    table.write_text(table.read_text().replace("one/even.mrc,", "one/even.mrc,one/odd.mrc"))
    assert predict() == 1
    assert re.search(r"^failed .*one_even.*\(second was none, now .*odd\.mrc\)", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_a_file_of_unknown_origin_is_not_replaced(predict, tmp_path, capsys, damage):
    predict()
    damage(tmp_path / "out" / "one_even.mrc.json")
    before = (tmp_path / "out" / "one_even.mrc").stat().st_mtime_ns
    assert predict() == 1
    assert (tmp_path / "out" / "one_even.mrc").stat().st_mtime_ns == before
    assert re.search(r"what it was made from is not known, one_even.mrc.json is missing", capsys.readouterr().out)


def test_a_result_that_was_cut_short_is_made_again(predict, expected, tmp_path):
    predict()
    path = tmp_path / "out" / "one_even.mrc"
    path.write_bytes(path.read_bytes()[:-100])
    assert predict() == 0
    assert_same(results(tmp_path / "out"), expected)


# What fails, fails alone -----------------------------------------------------------------------------


def spoil(folder, change):
    data = read_volume(folder / "odd.mrc").data.copy()
    write_volume(folder / "odd.mrc", change(data), voxel_size=10.0, overwrite=True)


def with_nan(data):
    data[3, 4, 5] = np.nan
    return data


FAULTS = {
    "gone": (lambda folder: (folder / "odd.mrc").unlink(), r"No such file|no such file"),
    "cut": (lambda folder: os.truncate(folder / "odd.mrc", 9000), r"odd\.mrc: truncated"),
    "NaN": (lambda folder: spoil(folder, with_nan), r"holds 1 voxels that are NaN"),
    "shape": (lambda folder: spoil(folder, lambda data: data[:-1]), r"odd\.mrc \(19, 24, 22\)"),
    "text": (lambda folder: (folder / "odd.mrc").write_text("hello"), r"odd\.mrc"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("fault", FAULTS)
def test_one_failing_tomogram_does_not_stop_the_others(predict, table, expected, tmp_path, capsys, fault):
    act, message = FAULTS[fault]
    act(table.parent / "two")
    assert predict() == 1
    assert_same(results(tmp_path / "out"), {name: expected[name] for name in NAMES - {"two_even.mrc"}})
    out = capsys.readouterr().out
    assert states(out) == dict.fromkeys(NAMES, "done") | {"two_even.mrc": "failed"}
    assert len(re.findall(rf"^failed +line 3 +two_even.mrc: .*{message}", out, re.M)) == 2
    assert "2 done, 0 skipped, 1 failed" in out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (OSError(28, "No space left on device"), "No space left"),
        (ZeroDivisionError("of all things"), "ZeroDivisionError: of all things"),
    ],
)
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_failure_in_the_middle_does_not_stop_the_others(
    predict, tmp_path, monkeypatch, capsys, error, message, devices
):
    call = TiledPredictor.__call__

    def fail(self, first, *rest, **settings):
        if first.shape == SHAPES["two"]:
            raise error
        return call(self, first, *rest, **settings)

    monkeypatch.setattr(TiledPredictor, "__call__", fail)
    assert predict("--device", devices) == 1
    assert results(tmp_path / "out").keys() == NAMES - {"two_even.mrc"}
    assert re.search(rf"^failed +line 3 .*{message}", capsys.readouterr().out, re.M)


def test_what_failed_is_made_when_it_is_mended(predict, table, data, expected, tmp_path):
    (table.parent / "two" / "odd.mrc").unlink()
    assert predict() == 1
    shutil.copy(data / "two" / "odd.mrc", table.parent / "two")
    assert predict() == 0
    assert_same(results(tmp_path / "out"), expected)


REFUSED = {
    "no table": (["--table", "gone.csv"], r"gone\.csv"),
    "bad table": (["--table", "bad.csv"], r"bad\.csv: line 1: there is no column 'frist'"),
    "no run": (["--run", "gone"], r"no sound checkpoint in gone"),
    "device": (["--device", "cpu,cpux"], r"device 'cpux' cannot be used here"),
    "kinds": (["--device", "cpu,meta"], r"several kinds"),
    "tile": (["--tile", "17"], r"tile must be a multiple"),
    "passes": (["--passes", "0"], r"passes must be at least 1"),
    "tolerance": (["--margin_tolerance", "0"], r"--margin-tolerance must be positive, got 0"),
    "part": (["--part", "4/3"], r"--part is K/N with 1 <= K <= N, such as 3/10, got '4/3'"),
    "part 0": (["--part", "0/3"], r"--part is K/N"),
    "a word for a part": (["--part", "first"], r"--part is K/N"),
    "out is a file": (["--out", "bad.csv"], r"cannot write into --out bad\.csv"),
    "out are the inputs": (["--out", "data/flat", "--table", "data/flat.csv"], r"even\.mrc is one of the inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_concerns_all_is_refused_before_anything_is_done(predict, table, tmp_path, monkeypatch, capsys, case):
    arguments, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("frist,second\na.mrc,b.mrc\n")
    shutil.copytree(table.parent / "one", "data/flat")
    Path("data/flat.csv").write_text("first,second\nflat/even.mrc,flat/odd.mrc\n")
    before = set(tmp_path.rglob("*"))
    assert predict(*arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "check"])
def test_what_learns_from_two_halves_takes_no_table_without(table, tmp_path, capsys, command):
    table.write_text("first\none/even.mrc\n")
    assert run(command, "--table", table, "--tilts=-60,60", "--out", tmp_path / "run") == 2
    assert "line 1: the column 'second' is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a tomogram as FIRST, with its other half as SECOND, or a --table of many, not both"),
        (["a.mrc", "--table", "t.csv"], "or a --table of many"),
        (["a.mrc", "--part", "1/2"], "--part is a part of a table: give a --table"),
    ],
)
def test_a_tomogram_or_a_table_is_needed(capsys, arguments, message):
    assert run("predict", *arguments, "--run", "run", "--out", "out") == 2
    assert message in capsys.readouterr().err


# Stopped, and gone on with ---------------------------------------------------------------------------

CHILD = """
import signal, sys, time
# Ignored by what a shell started in the background, and by all that this starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
from equitomo.cli import main
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.run import Outcome, TomogramFiles
from equitomo.run.prediction import chosen_devices
from equitomo.run.table import Tomogram, result_names

forward, calls = ScaleEquivariantUNet3D.forward, []

def waiting(self, x):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        print("waiting", flush=True)
        time.sleep(600)
    return forward(self, x)

ScaleEquivariantUNet3D.forward = waiting
sys.exit(main(sys.argv[2:]))
"""


def stopped(number, arguments, *, call):
    """Predict in another process, send it a signal during the given call, and return its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(equitomo.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, str(call), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            for line in child.stdout:
                if line.startswith("waiting"):
                    break
            child.send_signal(number)
            child.communicate(timeout=600)
        finally:
            child.kill()
    return child.returncode


@pytest.mark.slow
@pytest.mark.fault(58, 59)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_same_command_goes_on_after_a_stop(table, runs, expected, tmp_path, monkeypatch, capsys, number):
    out = tmp_path / "out"
    arguments = ["predict", "--table", table, "--run", runs / "0", "--out", out, *TILED]
    status = stopped(number, arguments, call=CALLS + 2)
    partial = [path.name for path in out.iterdir() if path.name.endswith(".partial")]
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
        assert len(partial) == 1
    else:
        assert status == 130
        assert results(out).keys() == {"one_even.mrc"}
    np.testing.assert_array_equal(read_volume(out / "one_even.mrc").data, expected["one_even.mrc"])
    calls = counting(monkeypatch)
    assert run(*arguments) == 0
    assert len(calls) == 2 * CALLS
    assert states(capsys.readouterr().out) == dict.fromkeys(NAMES, "done") | {"one_even.mrc": "skipped"}
    assert_same(results(out), expected)


@pytest.mark.fault(59)
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_an_interrupt_leaves_whole_files_only_and_says_what_is_left(
    predict, expected, tmp_path, monkeypatch, capsys, devices
):
    def interrupt(n):
        if n == CALLS + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        counting(patch, interrupt)
        assert predict("--device", devices) == 130
    left = results(tmp_path / "out")
    assert len(left) < 3
    assert_same(left, {name: expected[name] for name in left})
    assert f"{len(left)} done, 0 skipped, 0 failed" in capsys.readouterr().out
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    assert predict("--device", devices) == 0
    assert_same(results(tmp_path / "out"), expected)


def test_an_old_result_does_not_pass_for_the_new_one_after_a_stop(predict, tmp_path, monkeypatch):
    def publish(partial, target, overwrite):
        if target.suffix == ".mrc":
            raise KeyboardInterrupt
        partial.replace(target)

    predict()
    old = results(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("equitomo.io.placing._publish", publish)
        assert predict("--passes", "1", "--overwrite") == 130
    assert predict("--passes", "1", "--overwrite") == 0
    new = results(tmp_path / "out")
    assert not any(np.array_equal(old[name], new[name]) for name in NAMES)


# Parts, processes and devices ------------------------------------------------------------------------


def test_parts_of_a_table_share_it_among_them(predict, expected, tmp_path, capsys):
    seen = []
    for part in ("1/2", "2/2"):
        assert predict("--part", part) == 0
        seen.append(set(states(capsys.readouterr().out)))
    assert seen == [{"one_even.mrc", "three_even.mrc"}, {"two_even.mrc"}]
    assert_same(results(tmp_path / "out"), expected)


def test_a_part_beyond_the_table_has_nothing_to_do(predict, capsys):
    assert predict("--part", "4/4") == 0
    assert "0 done, 0 skipped, 0 failed" in capsys.readouterr().out


def test_a_tomogram_that_another_process_makes_is_left_to_it(predict, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "two_even.mrc.lock"):
        assert predict() == 0
    out = capsys.readouterr().out
    assert states(out) == dict.fromkeys(NAMES, "done") | {"two_even.mrc": "held"}
    assert "2 done, 0 skipped, 0 failed, 1 still with other processes" in out


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize("done", [False, True])
def test_what_another_process_was_at_is_looked_at_again_in_the_end(
    predict, expected, tmp_path, monkeypatch, capsys, done, devices
):
    if done:
        assert predict("--part", "1/3") == 0
    (tmp_path / "out").mkdir(exist_ok=True)
    other = FileLock(tmp_path / "out" / "one_even.mrc.lock", thread_local=False)
    other.acquire()
    counting(monkeypatch, lambda n: other.release() if n == CALLS + 1 else None)
    capsys.readouterr()
    assert predict("--device", devices) == 0
    assert_same(results(tmp_path / "out"), expected)
    found = dict.fromkeys(NAMES, "done") | ({"one_even.mrc": "skipped"} if done else {})
    assert states(out := capsys.readouterr().out) == found
    assert "still" not in out


@pytest.mark.slow
def test_two_processes_make_every_tomogram_once(table, runs, expected, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(equitomo.__file__).parents[1])}
    arguments = ["--table", table, "--run", runs / "0", "--out", tmp_path / "out", *TILED]
    command = [sys.executable, "-m", "equitomo", "predict", *map(str, arguments)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [child.communicate(timeout=600)[0] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    made = [name for out in said for name, status in states(out).items() if status == "done"]
    assert sorted(made) == sorted(NAMES)
    assert_same(results(tmp_path / "out"), expected)


def test_two_devices_give_what_one_gives(predict, expected, tmp_path, monkeypatch):
    both = threading.Barrier(2)
    # Each device begins before the other one has finished, however busy the machine is.
    calls = counting(monkeypatch, lambda n: both.wait(100) if n <= 2 else None)
    assert predict("--device", "cpu,cpu") == 0
    assert_same(results(tmp_path / "out"), expected)
    assert len(set(map(id, calls))) == 2


def test_two_devices_share_the_tiles_of_one_tomogram(data, runs, expected, tmp_path, monkeypatch):
    halves = [data / "one" / "even.mrc", data / "one" / "odd.mrc"]
    settings = ["--run", runs / "0", *TILED, "--tile", "16"]
    assert run("predict", *halves, *settings, "--out", tmp_path / "one.mrc") == 0
    calls = counting(monkeypatch)
    assert run("predict", *halves, *settings, "--out", tmp_path / "two.mrc", "--device", "cpu,cpu") == 0
    assert len(set(map(id, calls))) == 2
    np.testing.assert_array_equal(*(read_volume(tmp_path / name).data for name in ("one.mrc", "two.mrc")))


# Names -----------------------------------------------------------------------------------------------


def rows(*paths):
    return [Tomogram(TomogramFiles(path, "odd.mrc"), table="t.csv", line=line) for line, path in enumerate(paths, 2)]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/a.mrc", "/d/b.rec"], ["a.mrc", "b.mrc"]),
        (["/d/a_10.00Apx.mrc.gz"], ["a_10.00Apx.mrc"]),
        (["/d/one/even.mrc", "/d/two/even.mrc", "/d/x.mrc"], ["one_even.mrc", "two_even.mrc", "x.mrc"]),
        (["/d/one/t/even.mrc", "/d/two/t/even.mrc"], ["one_t_even.mrc", "two_t_even.mrc"]),
        (["/d/one/even.mrc", "/d/two/EVEN.mrc"], ["one_even.mrc", "two_EVEN.mrc"]),
        (["/d/one/../two/even.mrc", "/d/three/even.mrc"], ["two_even.mrc", "three_even.mrc"]),
        (["/even.mrc", "/d/even.mrc"], ["even.mrc", "d_even.mrc"]),
        (["/one/even.mrc", "/two/even.mrc", "/d/one_even.mrc"], ["one_even.mrc", "two_even.mrc", "d_one_even.mrc"]),
    ],
)
def test_results_are_named_after_the_first_halves_and_as_many_folders_as_tell_them_apart(paths, names):
    assert result_names("t.csv", rows(*paths)) == names


def test_names_that_nothing_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"t\.csv: lines 2 and 4 would both be written to d_even\.mrc"):
        result_names("t.csv", rows("/d/even.mrc", "/d/odd.mrc", "/d/even.rec"))


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    "path", ["/d/../../e.mrc", "../../e.mrc", "/", "/d/..", "/d/..mrc", "/d/a\\..\\b.mrc", "~/e.mrc"]
)
def test_a_name_of_a_result_is_that_of_a_file_in_the_folder(path):
    for names in (result_names("t.csv", rows(path)), result_names("t.csv", rows(path, "/other/e.mrc"))):
        assert all(name.endswith(".mrc") and Path(name).name == name for name in names)


@pytest.mark.fault(53)
def test_results_of_a_table_do_not_leave_the_folder(predict, table, tmp_path, monkeypatch):
    """The lines name files in a folder above, by absolute paths, and with names that begin with two dots."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x" / "y").mkdir(parents=True)
    for half in ("even", "odd"):
        shutil.copy(table.parent / "one" / f"{half}.mrc", tmp_path / "x" / f"..{half}.mrc")
    lines = ["first,second", "../two/even.mrc,../two/odd.mrc"]
    lines += [f"{table.parent}/three/even.mrc,{table.parent}/three/odd.mrc"]
    lines += ["../../x/y/../..even.mrc,../../x/y/../..odd.mrc"]
    (table.parent / "one" / "t.csv").write_text("\n".join(lines) + "\n")
    before = set(tmp_path.rglob("*"))
    assert predict("--table", table.parent / "one" / "t.csv", "--out", "x/../made/./here") == 0
    made = tmp_path / "made" / "here"
    assert results(made).keys() == {"two_even.mrc", "three_even.mrc", "..even.mrc"}
    assert set(tmp_path.rglob("*")) - before == {made.parent, made, *made.iterdir()}


# Margins and progress --------------------------------------------------------------------------------


def test_a_margin_can_be_measured(data, runs, tmp_path, capsys):
    halves = [data / "one" / "even.mrc", data / "one" / "odd.mrc"]
    settings = ["--run", runs / "0", *TILED]
    found = []
    for tolerance in ("1e-6", "0.3"):
        measured = ["--tile_margin", "auto", "--margin_tolerance", tolerance]
        assert run("predict", *halves, *settings, *measured, "--out", tmp_path / f"{tolerance}.mrc") == 0
        said = rf"Margins of (\d+) voxels are within {float(tolerance):g} of what wider ones give .*one/even\.mrc"
        found.append(int(re.search(said, capsys.readouterr().out)[1]))
    assert found[0] > found[1]
    assert run("predict", *halves, *settings, "--tile_margin", found[0], "--out", tmp_path / "b.mrc") == 0
    np.testing.assert_array_equal(*(read_volume(tmp_path / name).data for name in ("1e-6.mrc", "b.mrc")))


def test_a_margin_that_no_tile_has_room_for_is_refused(data, runs, tmp_path, capsys):
    arguments = ["--run", runs / "0", *TILED, "--tile", "16", "--tile_margin", "auto", "--margin_tolerance", "1e-9"]
    assert run("predict", data / "one" / "even.mrc", *arguments, "--out", tmp_path / "a.mrc") == 2
    assert re.search(r"--tile-margin auto: no margin up to \d+ .*a larger --tile or", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_table_tells_the_margin_of_each_tomogram(predict, capsys):
    assert predict("--tile_margin", "auto") == 0
    assert len(re.findall(r"^Margins of \d+ voxels are within 0\.01 .*even\.mrc$", capsys.readouterr().out, re.M)) == 3
    assert predict("--tile_margin", "auto", "--margin_tolerance", "0.02") == 1


def outcome(name, status):
    return Outcome(rows(name)[0], Path(name), status, "")


def test_the_bar_of_all_counts_each_tomogram_once_whatever_comes_of_it():
    bars = TableBar(3)
    bars.tiles(Path("a"), 1, 4)
    assert bars.bar.n == 0.25
    bars.tiles(Path("a"), 4, 4)
    bars.tiles(Path("b"), 2, 4)
    assert bars.bar.n == 1.5
    for name, status in (("a", "done"), ("b", "failed"), ("c", "skipped")):
        bars.finish(outcome(name, status))
    assert (bars.bar.n, bars.bar.initial) == (3, 2)
    bars.bar.close()


def test_the_bar_of_all_does_not_go_beyond_its_ends_by_rounding():
    bars = TableBar(2)
    for name in "ab":
        # The differences of these shares add up to more than 1: twice to 2.0000000000000004.
        for done in range(1, 7):
            bars.tiles(Path(name), done, 6)
    assert bars.bar.n == 2
    bars.bar.close()


def test_the_record_says_what_the_result_was_made_from(predict, table, tmp_path):
    predict()
    record = json.loads((tmp_path / "out" / "two_even.mrc.json").read_text())
    assert record["inputs"]["first"]["path"] == str(table.parent / "two" / "even.mrc")
    assert record["settings"]["tilts"]["angles"] == [-50.0, 40.0]
    assert record["versions"]["equitomo"] == version("equitomo")


def test_devices_are_tried_before_the_work():
    assert chosen_devices("cpu, cpu") == [torch.device("cpu")] * 2
