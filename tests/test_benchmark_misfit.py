"""The study of whether the halves tell that a specimen is unlike what the network of the package has seen."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.misfit import UNLIKE, Specimen, filter_error, main, shares


@pytest.mark.parametrize("name", UNLIKE)
def test_each_specimen_is_drawn_from_its_generator(name):
    one, again = (UNLIKE[name](torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again) and one.isfinite().all() and one.std() > 0.01


def test_the_filter_is_better_than_no_filter_and_worse_than_the_truth():
    assert 0 < filter_error(Specimen.of("smooth:0.3").pair) < filter_error(Specimen.of("voronoi:0.3").pair) < 1


def test_the_truth_scores_one_and_the_mean_of_the_halves_less():
    specimen = Specimen.of("cryo-2")
    assert 0 < specimen.scores(specimen.pair.volumes.mean(0).numpy())[0] < 0.99
    truth = UNLIKE["shells"](torch.Generator().manual_seed(77))
    assert Specimen.of("shells").scores(truth.numpy()) == pytest.approx([1, 1, 1])


def test_a_rule_takes_the_largest_share_that_is_hardly_worse_than_the_best():
    errors = {"0.0": 0.12, "0.5": 0.1, "0.6": 0.104, "0.7": 0.109, "1.0": 0.2}
    line = {"network": [0.3, 0.4]}
    line["shares"] = {share: [error, error - 0.5, float(share), 0.1, 0.2] for share, error in errors.items()}
    rows = {tuple(cells[:3]): float(cells[3]) for row in shares([line])[2:] for cells in [row.strip("| ").split(" | ")]}
    assert rows["its voxels", "0.6", "0.00%"] == 0.5 and rows["its voxels", "1.0", "0.50%"] == 0.6
    assert rows["its voxels", "1.0", "1.00%"] == 0.7 and rows["the block", "1.0", "1.00%"] == 0.5


@pytest.mark.slow
def test_a_study_that_continues_skips_what_is_done(tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    main(["gyroid:1", "--out", str(out), "--steps", "1", "--judged", "1", "--held-out", "8"])
    before = out.read_text()
    main(["gyroid:1", "cryo-1", "--out", str(out), "--steps", "1", "--judged", "1", "--held-out", "8"])
    assert out.read_text().startswith(before)
    assert [json.loads(line)["specimen"] for line in out.read_text().splitlines()] == ["gyroid:1", "cryo-1"]
    assert "| gyroid:1 |" in capsys.readouterr().out
