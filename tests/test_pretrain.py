"""The script that trains the network of the package."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pretrain import main
from equitomo.simulate import simulate_specimen

TINY = ("--size", "24", "--side", "16", "--width", "2", "--save-every", "2")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["halves", "rotations", "both"])
def test_every_loss_of_the_pretraining_teaches_the_network(tmp_path, loss):
    options = ("--loss", loss, "--centred", "--save-every", "100", *TINY[:-2])
    main(["--out", str(tmp_path / "one"), "--steps", "1", *options])
    main(["--out", str(tmp_path / "three"), "--steps", "3", *options])
    one, three = (torch.load(tmp_path / run / "state.pt", weights_only=True)["network"] for run in ("one", "three"))
    assert all(value.isfinite().all() for value in three.values())
    assert any((value - one[name]).abs().max() > 1e-5 for name, value in three.items())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(), ("--levels", "3", "--unshuffle", "2")])
def test_a_resumed_pretraining_begins_with_all_that_was_saved(tmp_path, size):
    main(["--out", str(tmp_path), "--steps", "2", *TINY, *size])
    before = torch.load(tmp_path / "state.pt", weights_only=True)
    # All steps are done, so what was read is written again.
    main(["--out", str(tmp_path), "--steps", "2", *TINY, *size])
    after = torch.load(tmp_path / "state.pt", weights_only=True)
    assert before["step"] == after["step"] == 2
    assert any(value.abs().max() > 0 for value in before["optimizer"].values())
    for group in ("network", "average", "optimizer"):
        torch.testing.assert_close(after[group], before[group], rtol=0, atol=0)


def test_a_specimen_without_contents_is_empty_and_gold_is_the_densest():
    def specimen(*contents):
        return simulate_specimen((24, 24, 24), contents=contents, generator=torch.Generator().manual_seed(0))

    assert specimen().abs().max() == 0
    assert specimen("gold").max() > 2 * specimen("particles").max() > 0


def test_unknown_contents_are_refused():
    with pytest.raises(ValueError, match="`contents` may name"):
        simulate_specimen((8, 8, 8), contents=("lipids",))
