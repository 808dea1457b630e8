"""The study of trainings that start from the network that comes with the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.start import main, read, table
from equitomo import write_volume
from equitomo.geometry import TiltGeometry
from equitomo.simulate import simulate_halves

# A scoring script with the functions of the one that lies beside the data sets.
SCORING = """
import numpy as np

def scores(volume, truth, low, high, gold):
    found = float(np.corrcoef(volume.ravel(), truth.ravel())[0, 1])
    return {"cc_all": found, "cc_measured": found, "cc_wedge": found}
"""
TINY = ("--preset", "tiny", "--steps", "2", "--rates", "1e-3", "--warmups", "0", "--change", "side=16", "batch=1")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    halves = simulate_halves((24, 24, 24), TiltGeometry(range(-60, 61, 12)), snr=1.0, generator=generator)
    for name, volume in (("even", halves.first), ("odd", halves.second), ("gt", halves.truth)):
        write_volume(folder / f"{name}.mrc", np.asarray(volume), voxel_size=10.0)
    (folder / "meta.json").write_text(json.dumps({"tilt_min": -60, "tilt_max": 60}))
    (tmp_path / "evaluate.py").write_text(SCORING)
    return folder


@pytest.mark.slow
def test_a_study_that_continues_skips_what_is_done_and_shows_everything(data, tmp_path, capsys):
    out = tmp_path / "study.jsonl"
    main([str(data), "--out", str(out), "--starts", "cryo", *TINY])
    before = out.read_text()
    main([str(data), "--out", str(out), "--starts", "cryo", "none", *TINY])
    after = out.read_text()
    assert after.startswith(before)
    assert [(case.start, case.steps) for case, _ in read(out)] == [("cryo", 0), ("cryo", 2), ("none", 2)]
    shown = capsys.readouterr().out
    assert all(f"| {start} | 2 | 0.001 | 0 | muon |" in shown for start in ("cryo", "none"))


def test_the_spread_is_that_over_seeds_and_not_over_sets(tmp_path):
    out = tmp_path / "study.jsonl"
    settings = {"start": "cryo", "steps": 1, "rate": 1e-3, "warmup": 0, "optimizer": "muon", "seconds": 1.0}
    lines = [
        settings | {"set": name, "seed": seed, "measured": 0.5, "wedge": 0.5, "all": value}
        for name, values in (("one", (0.2, 0.4)), ("two", (0.7, 0.9)))
        for seed, value in enumerate(values)
    ]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "| 4 | .550 / .500 / .500 | .141 / .000 / .000 |" in "\n".join(table(list(read(out))))
