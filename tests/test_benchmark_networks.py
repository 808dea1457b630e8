"""The study of networks of fewer operations."""

from __future__ import annotations

import json

import pytest
import torch
from asserting import assert_scale_equivariant, normal

from benchmarks.networks import NETWORKS, main, read, steps_for, table


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_study_is_scale_equivariant(name):
    torch.manual_seed(0)
    assert_scale_equivariant(NETWORKS[name]().double(), normal(1, 1, 16, 16, 16))


def test_a_network_gets_as_many_steps_as_fit_into_the_time_in_float32():
    times = [
        {"network": "8 maps", "precision": "bfloat16", "ratio": 0.8},
        {"network": "8 maps", "precision": "float32", "ratio": 0.5},
    ]
    assert steps_for("8 maps", 600, times) == 1200
    with pytest.raises(ValueError, match="no time of 'factorised' in float32"):
        steps_for("factorised", 600, times)


def test_the_table_shows_times_and_scores_and_the_mean_over_complete_sets(tmp_path, capsys):
    out = tmp_path / "study.jsonl"
    time = {"network": "8 maps", "precision": "float32", "processor": "AVX2", "step": 0.5, "ratio": 0.65}
    scored = {"network": "8 maps", "seed": 0, "steps": 9, "all": 0.5, "measured": 0.6, "wedge": 0.2}
    rows = [
        time | {"spread": [0.6, 0.7], "parameters": 996308},
        scored | {"set": "one"},
        scored | {"set": "two", "wedge": 0.4},
        scored | {"set": "one", "seed": 1},
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read(out)) == 4
    main(["table", "--out", str(out)])
    shown = capsys.readouterr().out.splitlines()
    assert shown == list(table(rows))
    assert "| 8 maps | 1.00 million | AVX2, float32 | 500 ms | 0.65 | 0.60 to 0.70 |" in shown
    assert "| 8 maps | 0 | 9 | .500 / .600 / .200 | .500 / .600 / .400 | .500 / .600 / .300 |" in shown
    assert "| 8 maps | 1 | 9 | .500 / .600 / .200 |  |  |" in shown
