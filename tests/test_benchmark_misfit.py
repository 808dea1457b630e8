"""The study of whether the halves tell that a specimen is unlike what the network of the package has seen."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.misfit import UNLIKE, filter_error, main, pair_of


@pytest.mark.parametrize("name", UNLIKE)
def test_each_specimen_is_drawn_from_its_generator(name):
    one, again = (UNLIKE[name](torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again) and one.isfinite().all() and one.std() > 0.01


def test_the_filter_is_better_than_no_filter_and_worse_than_the_truth():
    assert 0 < filter_error(pair_of("smooth:0.3")) < filter_error(pair_of("voronoi:0.3")) < 1


@pytest.mark.slow
def test_a_study_that_continues_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    main(["gyroid:1", "--out", str(out), "--steps", "1"])
    before = out.read_text()
    main(["gyroid:1", "cryo-1", "--out", str(out), "--steps", "1"])
    assert out.read_text().startswith(before)
    assert [json.loads(line)["specimen"] for line in out.read_text().splitlines()] == ["gyroid:1", "cryo-1"]
    assert "| gyroid:1 |" in capsys.readouterr().out
