"""The study of maps that die in a training with Muon."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.dying import centre_gradients, looked_at, main, read
from equitomo import ScaleEquivariantUNet3D, write_volume
from equitomo.geometry import TiltGeometry
from equitomo.simulate import simulate_halves
from equitomo.training.optimizer import KernelMuon

# A scoring script with the functions of the one that lies beside the data sets.
SCORING = """
def scores(volume, truth, low, high, gold):
    return {"cc_all": 0.5, "cc_measured": 0.5, "cc_wedge": 0.5}
"""


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ScaleEquivariantUNet3D(width=4, levels=3)


def test_a_level_whose_kernels_are_negative_is_dead_and_the_others_are_not(network):
    with torch.no_grad():
        network.encoders[2].basic_module["SingleConv2"].conv.weight.abs_().neg_()
    found = looked_at(network, torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert found["encoder 2 second"]["dead"] == found["encoder 2 second"]["negative"] == 1
    assert found["encoder 1 second"]["dead"] < 1
    assert found["encoder 2 second"]["cosine"] < -0.5
    assert list(found)[-1] == "decoder 0 second"


def test_looking_at_a_network_changes_nothing_in_it(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    looked_at(network, torch.ones(16, 16, 16))
    assert network.fused
    assert not any(layer._forward_hooks for layer in network.modules())
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_centred_gradients_leave_the_mean_of_every_kernel_that_sees_maps(network):
    centre_gradients(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = KernelMuon(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(torch.randn(1, 1, 16, 16, 16)) - 1).square().mean().backward()
        optimizer.step()
    moved = {name: value - before[name] for name, value in network.state_dict().items()}
    of_maps = [step for step in moved.values() if step.shape[1] > 1 and step.shape[2] == 3]
    assert len(of_maps) == 9
    for step in of_maps:
        assert step.abs().mean() > 1e-3
        assert step.mean(dim=(1, 2, 3, 4)).abs().max() < 1e-5


@pytest.mark.slow
def test_a_study_of_dying_maps_that_continues_skips_what_is_done(tmp_path, capsys):
    folder = tmp_path / "made"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    halves = simulate_halves((24, 24, 24), TiltGeometry(range(-60, 61, 12)), snr=1.0, generator=generator)
    for name, volume in (("even", halves.first), ("odd", halves.second), ("gt", halves.truth)):
        write_volume(folder / f"{name}.mrc", np.asarray(volume), voxel_size=10.0)
    (folder / "meta.json").write_text(json.dumps({"tilt_min": -60, "tilt_max": 60}))
    (tmp_path / "evaluate.py").write_text(SCORING)
    out = tmp_path / "dying.jsonl"
    study = [str(folder), "--out", str(out), "--seeds", "0", "--at", "0", "2", "--change", "side=16", "batch=1"]
    main([*study, "width=2", "--variants", "as it is"])
    before = out.read_text()
    main([*study, "width=2", "--variants", "as it is", "leaky, slope 0.1", "orthogonal", "no step without a gradient"])
    assert out.read_text().startswith(before)
    assert len(list(read(out))) == 4
    assert "| made | leaky, slope 0.1 | 0 | 2 |" in capsys.readouterr().out
