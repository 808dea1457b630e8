"""Test of the script that draws the plots of the benchmarks' page."""

from __future__ import annotations

import dataclasses
import json

from benchmarks.plots import main, measured_speeds
from benchmarks.start import Case


def test_the_plots_are_drawn_from_what_was_measured_and_only_the_rest_is_measured(tmp_path):
    scores = {"all": 0.8, "measured": 0.9, "wedge": 0.7, "seconds": 20.0, "moved": None}
    cases = [Case("one", start, steps, 2e-3, 20, "muon", 0) for start in ("cryo", "none") for steps in (10, 20)]
    study, speed = tmp_path / "study.jsonl", tmp_path / "speed.jsonl"
    study.write_text("".join(json.dumps(dataclasses.asdict(case) | scores) + "\n" for case in cases))
    speed.write_text("[1000000, 4.0]\n")
    main([str(study), "--out", str(tmp_path), "--speed", str(speed), "--sides", "16", "100"])
    assert [voxels for voxels, _ in measured_speeds(speed, [])] == [16**3, 1000000]
    assert all("<svg" in (tmp_path / name).read_text() for name in ("quality.svg", "speed.svg"))
