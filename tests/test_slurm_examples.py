"""The batch scripts in ``examples/slurm`` work, tested with small programs in place of Slurm's own."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from making import noisy_halves

from equitomo import read_volume, write_volume

SCRIPTS = Path(__file__).parents[1] / "examples" / "slurm"
SMALL = [
    *("--preset", "tiny", "--side", "16", "--batch", "2", "--width", "2", "--levels", "2", "--unshuffle", "1"),
    *("--margin", "2", "--steps", "4"),
]
HERE = ["--device", "cpu", "--no-test-time-mirrors"]


# This srun behaves as on a site where a failing task ends the others (KillOnBadExit in slurm.conf) by default.
SRUN = """
import os, signal, subprocess, sys, time
options, command = {}, sys.argv[1:]
while command[0].startswith("--"):
    name, _, value = command.pop(0)[2:].partition("=")
    options[name] = int(value or 1)
n = options.get("ntasks", int(os.environ["SLURM_NTASKS"]))
tasks = []
for rank in range(n):
    numbers = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": n, "SLURM_STEP_ID": 0}
    environment = os.environ | {name: str(number) for name, number in numbers.items()}
    tasks.append(subprocess.Popen(command, env=environment))
while None in (found := [task.poll() for task in tasks]):
    if options.get("kill-on-bad-exit", 1) and any(found):
        for task in tasks:
            task.kill()
    time.sleep(0.01)
sys.exit(max(128 - status if status < 0 else status for status in found))
"""


@pytest.fixture
def cluster(tmp_path):
    """Write two tomograms, a table and a list; srun starts its tasks here, scontrol records its arguments."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "tasks.py").write_text(SRUN)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1], "SLURM_NTASKS": 2}
    programs = {
        "srun": f'exec {sys.executable} {bin_folder}/tasks.py "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
        "equitomo": f'exec {sys.executable} -m equitomo "$@"',
    }
    for name, text in programs.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    rows = []
    for number in (1, 2):
        halves = [tmp_path / f"{number}_{name}.mrc" for name in ("even", "odd")]
        for path, half in zip(halves, noisy_halves((24, 24, 24), seed=number), strict=True):
            write_volume(path, half.numpy(), voxel_size=10.0)
        rows.append(halves)
    (tmp_path / "table.csv").write_text("first,second\n" + "".join(f"{a.name},{b.name}\n" for a, b in rows))
    (tmp_path / "list").write_text("".join(f"{a} {b} -60,60\n" for a, b in rows))

    def submit(script, *arguments, **variables):
        environment = os.environ | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
            **{name: str(value) for name, value in (meeting | variables).items()},
        }
        command = ["bash", SCRIPTS / script, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)

    return submit


@pytest.mark.slow
def test_a_network_for_a_table_and_its_predictions_in_parts(cluster, tmp_path):
    trained = cluster("train.sh", "table.csv", "run", "--tilts", "-60,60", *SMALL, *HERE)
    assert trained.returncode == 0, trained.stderr
    for task in (1, 2):
        part = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": 2}
        predicted = cluster("predict.sh", "table.csv", "run", "results", "--device", "cpu", **part)
        assert predicted.returncode == 0, predicted.stderr
        assert len(list((tmp_path / "results").glob("*.mrc"))) == task


@pytest.mark.slow
def test_a_reconstruction_for_each_line_of_a_list(cluster, tmp_path):
    done = cluster("reconstruct.sh", "list", "runs", *SMALL, *HERE, SLURM_ARRAY_TASK_ID=2, SLURM_ARRAY_JOB_ID=7)
    assert done.returncode == 0, done.stderr
    assert read_volume(tmp_path / "runs/2/reconstruction.mrc").shape == (24, 24, 24)
    assert not (tmp_path / "runs/1").exists()
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("script", "job"), [("train.sh", "7"), ("reconstruct.sh", "7_1")])
def test_a_job_that_was_stopped_goes_back_into_the_queue_and_resumes(cluster, tmp_path, script, job):
    # Only the program that is started differs between the two submissions. Its tasks do not end at the same time.
    program = tmp_path / "bin" / "equitomo"

    files = "mkdir -p runs/1 run; touch run{s/1,}/manifest.json"
    program.write_text(f"#!/bin/bash\n{files}\nsleep $SLURM_PROCID\nexit 130\n")
    inputs = {"train.sh": ("table.csv", "run"), "reconstruct.sh": ("list", "runs")}[script]
    variables = {"SLURM_JOB_ID": 7, "SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 1}
    assert cluster(script, *inputs, **variables).returncode == 130
    assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"
    program.write_text('#!/bin/bash\necho "$@"\n')
    assert "--resume" in cluster(script, *inputs, **variables).stdout


@pytest.mark.slow
def test_a_job_that_was_killed_before_its_first_checkpoint_begins_again(cluster, tmp_path):
    arguments = ["train.sh", "table.csv", "run", "--tilts", "-60,60", *SMALL, *HERE]
    assert cluster(*arguments).returncode == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again = cluster(*arguments)
    assert again.returncode == 0, again.stderr
    assert "the run begins at step 0" in again.stdout
    assert (tmp_path / "run" / "checkpoints").is_dir()
