"""The measurement on a GPU runs from end to end, with tiny sizes on a CPU."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu

CPU = torch.device("cpu")
PARTS = ["A training step", "The kernels of a step of paper", "Prediction of a pair of 24 x 20 x 16 voxels"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.md"
    gpu.measure(path, CPU, gpu.TINY)
    return path.read_text()


def test_every_part_is_measured_in_order(report):
    assert re.findall(r"^## (.*)$", report, re.MULTILINE) == PARTS
    assert "failed" not in report


def test_steps_and_predictions_have_a_row_for_each_preset(report):
    assert [len(re.findall(rf"^\| {preset} \|", report, re.MULTILINE)) for preset in ("paper", "fast")] == [2, 2]


def test_a_step_has_the_operations_of_its_convolutions():
    """Twice as many cubes take twice as many."""
    one = gpu.operations_of(gpu.trainer_of("paper", CPU, gpu.TINY))
    two = gpu.operations_of(gpu.trainer_of("paper", CPU, gpu.TINY, batch=2))
    assert two == pytest.approx(2 * one, rel=0.01)
    assert one > 0


def test_a_part_that_fails_is_noted_and_the_next_one_begins(tmp_path):
    gpu.measure(tmp_path / "gpu.md", CPU, replace(gpu.TINY, predicted=(0, 0, 0)))
    *_, last = (tmp_path / "gpu.md").read_text().split("## ")
    assert last.startswith("Prediction")
    assert "failed: " in last
