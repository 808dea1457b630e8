"""Several processes train one network: they get the result of one process, and none is left waiting."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from making import noisy_halves
from together import VARIANTS, trainer

import equitomo
from equitomo import write_volume
from equitomo.training.checkpoint import load_checkpoint
from equitomo.training.distributed import World, find_world, meeting_point

FOLDER = Path(__file__).parent
# The environment without the variables of job systems, whatever this machine is.
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "TORCHELASTIC"))}
PLACES = os.pathsep.join([str(Path(equitomo.__file__).parents[1]), str(FOLDER)])
ENVIRONMENT = PLAIN | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PLACES}
# Far more than any of this takes, also on a busy machine, and far less than the hour for which a process would wait for
# one that hangs: a process that does not notice the end of another one fails its test.
TIMEOUT = 900
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start_two(*arguments, **environment):
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=ENVIRONMENT | environment, check=False
    )


def in_a_slurm_step(job, folder):
    """Run two tasks of a step, as srun starts them; return their exit statuses and their messages on stderr."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"}
    given |= {"SLURM_JOB_NODELIST": "localhost", "MASTER_PORT": str(port)}
    tasks = [
        subprocess.Popen(
            [sys.executable, str(FOLDER / "together.py"), job, str(folder)],
            env=ENVIRONMENT | given | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        messages = [task.communicate(timeout=TIMEOUT)[1] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    return [task.returncode for task in tasks], messages


def assert_close_runs(one, other, atol=1e-6, rtol=1e-4):
    """Weights, averages, optimiser, counters and losses of two runs are equal up to rounding."""
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert [a.state[name] for name in ("step", "skipped", "consecutive", "scaler")] == [
        b.state[name] for name in ("step", "skipped", "consecutive", "scaler")
    ]
    torch.testing.assert_close(a.tensors, b.tensors, rtol=0, atol=atol)
    rows = []
    for folder in (one, other):
        with (folder / "losses.csv").open(newline="") as file:
            rows.append([{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)])
    assert len(rows[0]) == a.state["step"]
    for mine, theirs in zip(*rows, strict=True):
        assert mine == pytest.approx(theirs, rel=rtol, abs=1e-7, nan_ok=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of the runs of two processes, one of which was begun by one process."""
    folder = tmp_path_factory.mktemp("together")
    trainer(folder / "from_one").train(until=5)
    for rank in (0, 1):
        trainer(folder / f"apart_{rank}").train(until=1 + rank)
    done = start_two(FOLDER / "together.py", "train_all", folder, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name, changes in VARIANTS.items():
        trainer(folder / name, **changes).train()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_what_one_does(together, alone, name):
    # The rounding of float16 depends on the cubes that go together. The loss scale must be the same.
    tolerances = {"atol": 1e-3, "rtol": 0.05} if name == "float16" else {}
    assert_close_runs(together / name, alone / name, **tolerances)


@pytest.mark.slow
def test_the_exchange_is_that_of_torchs_distributed_data_parallel(together):
    """The losses of a step also work under torch's wrapper, in a loop of one's own."""
    torchs_own = safetensors.torch.load_file(together / "torchs_own.safetensors")
    ours = load_checkpoint(together / "one_geometry").tensors["weights"]
    torch.testing.assert_close(ours, torchs_own, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.fault(69)
def test_a_run_of_one_process_is_resumed_by_two(together, alone):
    assert_close_runs(together / "from_one", alone / "adam")


@pytest.mark.slow
@pytest.mark.fault(69)
def test_a_run_of_two_processes_is_resumed_by_one(together, alone, tmp_path):
    shutil.copytree(together / "to_one", tmp_path, dirs_exist_ok=True)
    resumed = trainer(tmp_path, resume=True)
    assert resumed.step == 5
    resumed.train()
    assert_close_runs(tmp_path, alone / "adam")


@pytest.mark.slow
@pytest.mark.fault(64)
def test_memory_that_runs_out_in_one_process_changes_nothing_for_the_others(together, alone):
    assert_close_runs(together / "memory", alone / "adam")


@pytest.mark.slow
@pytest.mark.fault(65)
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_all(together):
    """Otherwise the weights of the two processes would differ from then on."""
    state = load_checkpoint(together / "not_finite").state
    assert (state["step"], state["skipped"], state["consecutive"]) == (10, 1, 0)


@pytest.mark.slow
@pytest.mark.fault(65)
def test_steps_that_are_not_finite_in_one_process_end_all_with_the_same_one(together):
    assert load_checkpoint(together / "diverged").state["step"] == 8
    for rank in (0, 1):
        said = (together / f"said_{rank}.txt").read_text().splitlines()[4]
        assert said.startswith("no finite gradient in 3 steps in a row, up to step 8: ")


@pytest.mark.slow
@pytest.mark.fault(59)
def test_a_signal_to_one_process_during_a_step_stops_all_before_it(together):
    assert load_checkpoint(together / "stopped").state["step"] == 6
    for rank in (0, 1):
        said = (together / f"said_{rank}.txt").read_text().splitlines()[0]
        assert said == "stopped by SIGTERM after step 6 of 10; resume to continue"


@pytest.mark.slow
@pytest.mark.fault(69)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_does_not_fit_several_processes_is_refused_by_each(together, rank):
    few, *different = itemgetter(1, 2, 5, 6)((together / f"said_{rank}.txt").read_text().splitlines())
    assert few.startswith("`batch` 1 cannot be split over 2 processes, which need a cube each: use `batch` 2 or more")
    said = "the processes of this training do not have the same settings, tomograms"
    assert [text.startswith(said) for text in different] == [True] * 3, different


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_environment_stays_as_it_is(together, rank):
    """CUDA_VISIBLE_DEVICES above all."""
    assert (together / f"said_{rank}.txt").read_text().splitlines()[3] == "True"


# Processes that end --------------------------------------------------------------------------------------


def assert_last_checkpoint_before_the_fault(run):
    """Assert that nothing was saved after step 4. That all processes ended in time is what TIMEOUT asserts."""
    assert load_checkpoint(run).state["step"] == 4


@pytest.mark.slow
@pytest.mark.fault(69)
@pytest.mark.parametrize("job", ["train_and_fail", "train_and_be_killed"])
def test_a_process_that_ends_ends_all_under_torchrun(tmp_path, job):
    done = start_two(FOLDER / "together.py", job, tmp_path)
    assert done.returncode != 0
    assert ("this process has a fault of its own" in done.stderr) == (job == "train_and_fail")
    assert_last_checkpoint_before_the_fault(tmp_path)


@pytest.mark.slow
@pytest.mark.fault(69)
def test_a_killed_process_ends_the_others_also_where_nobody_watches_them(tmp_path):
    codes, messages = in_a_slurm_step("train_and_be_killed", tmp_path)
    assert codes == [1, -9]
    assert "LostProcessError: another process of this training ended" in messages[0]
    assert_last_checkpoint_before_the_fault(tmp_path)


@pytest.mark.slow
def test_tasks_of_a_slurm_step_train_together(tmp_path, alone):
    codes, messages = in_a_slurm_step("train_plainly", tmp_path)
    assert codes == [0, 0], messages
    assert_close_runs(tmp_path, alone / "adam")


# The command line ----------------------------------------------------------------------------------------

TINY = [
    *("--preset", "tiny", "--side", "16", "--batch", "2", "--width", "4"),
    *("--levels", "2", "--unshuffle", "1", "--margin", "4"),
    *("--steps", "4"),
    *("--preview_every", "2", "--device", "cpu", "--precision", "float32", "--tilts", "-60,60"),
]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    for name, half in zip(("even", "odd"), noisy_halves((20, 20, 20)), strict=True):
        write_volume(folder / f"{name}.mrc", half.numpy(), voxel_size=10.0)
    return [folder / "even.mrc", folder / "odd.mrc"]


@pytest.mark.slow
def test_two_processes_reconstruct_and_one_of_them_writes_and_reports(halves, tmp_path):
    tiles = ["--tile", "20", "--tile_margin", "0"]
    done = start_two("-m", "equitomo", "reconstruct", *halves, *TINY, *tiles, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "reconstruction.mrc").is_file()
    assert not (tmp_path / "run" / "run.lock").exists()
    written = re.findall(r"Wrote \S*/(\S+)", done.stdout)
    assert done.stdout.count("Trained 4 steps") == 1 and written == ["reconstruction.mrc", "report.html"]
    (entry,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["invocations"]
    assert (entry["processes"], entry["outcome"]) == (2, "finished")
    with (tmp_path / "run" / "losses.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


@pytest.mark.slow
def test_a_folder_that_the_first_process_refuses_ends_all(halves, tmp_path):
    (tmp_path / "losses.csv").write_text("step\n")
    done = start_two("-m", "equitomo", "train", *halves, *TINY, "--out", tmp_path)
    assert done.returncode != 0
    assert f"{tmp_path} holds a run already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]


@pytest.mark.parametrize("command", ["check", "predict", "fsc"])
def test_work_of_one_process_is_refused_to_several(halves, monkeypatch, capsys, tmp_path, command):
    from equitomo.cli import main

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    options = {"predict": ["--run", tmp_path, "--out", tmp_path / "a.mrc"], "check": ["--tilts", "-60,60"]}
    assert main([command, *map(str, [*halves, *options.get(command, [])])]) == 2
    assert f"{command} is the work of one process, but 4 were started" in capsys.readouterr().err


# The environment -------------------------------------------------------------------------------

STEP = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, World(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, World(3, 4, 3)),
        # Set by some systems for all jobs.
        ({"WORLD_SIZE": "4"}, World(0, 1, 0)),
        (STEP, World(5, 8, 1)),
        # torchrun, one of which srun started on each machine.
        (STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, World(0, 2, 0)),
        (STEP | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, World(0, 1, 0)),
        # A shell in an allocation.
        ({"SLURM_NTASKS": "8"}, World(0, 1, 0)),
    ],
)
def test_processes_are_found_in_the_environment(environment, world):
    assert find_world(environment) == world


def test_a_batch_script_works_alone_and_says_so(caplog):
    """Slurm tells it of tasks that nobody has started: it would wait for them."""
    assert find_world({name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}) == World()
    assert "SLURM_NTASKS is 8, but srun did not start this" in caplog.text


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}])
def test_numbers_that_do_not_fit_are_refused(environment):
    with pytest.raises(ValueError, match=r"RANK=.*WORLD_SIZE=2.* do not number processes from 0"):
        find_world(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[3,5-7]", "gpu3"),
        ("gpu[007-120],login1", "gpu007"),
        ("rack[2-3]node[04-05]-ib,gpu1", "rack2node04-ib"),
    ],
)
def test_processes_meet_on_the_first_machine_of_a_list(nodes, first):
    assert meeting_point({"SLURM_JOB_NODELIST": nodes})[0] == first
    assert meeting_point({"SLURM_JOB_NODELIST": "other", "SLURM_STEP_NODELIST": nodes})[0] == first


def test_a_meeting_point_that_is_given_is_taken():
    given = {"SLURM_JOB_NODELIST": "gpu1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert meeting_point(given) == ("10.0.0.1", 29500)


def test_steps_of_one_job_meet_apart():
    ports = {meeting_point({"MASTER_ADDR": "a", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(k)})[1] for k in range(9)}
    assert len(ports) == 9
    assert all(1024 < port < 32768 for port in ports)


def test_without_a_meeting_point_the_remedy_is_named():
    with pytest.raises(ValueError, match="neither MASTER_ADDR nor SLURM_JOB_NODELIST"):
        meeting_point({})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("n", [8, 9, 15])
def test_shares_are_all_of_a_batch_without_overlap_and_as_even_as_can_be(n, size):
    shares = [World(rank, size).share(range(100, 100 + n)) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(100, 100 + n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("visible", "devices"), [(4, [0, 1, 2, 3]), (2, [0, 1, 0, 1]), (1, [0, 0, 0, 0])])
def test_each_process_of_a_machine_takes_its_own_of_the_gpus_it_sees(monkeypatch, visible, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert [World(4 + k, 8, k).device("auto").index for k in range(4)] == devices
    assert World().device("auto") == torch.device("cuda")
