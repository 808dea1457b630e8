"""Reconstruction without training, by the network that comes with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equitomo import TomogramPair, load_network, read_volume, write_volume
from equitomo.cli import main
from equitomo.geometry import TiltGeometry
from equitomo.run import Preview
from equitomo.simulate import simulate_halves

GEOMETRY = TiltGeometry(range(-60, 61, 6))


@pytest.fixture(scope="module")
def halves():
    return simulate_halves((32, 32, 32), GEOMETRY, snr=1.0, generator=torch.Generator().manual_seed(1))


def previewed(path, first, second=None):
    pair = TomogramPair(first, second, GEOMETRY, voxel_size=10.0)
    return read_volume(Preview(pair, path).write())


def test_the_shipped_network_is_scale_equivariant():
    network, x = load_network("cryo"), torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network(3 * x), 3 * network(x), atol=1e-5, rtol=1e-4)


def test_the_name_of_a_shipped_network_never_means_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cryo").mkdir()
    assert load_network("cryo").final_conv.in_channels == 32
    for folder in ("./cryo", tmp_path / "cryo", Path("cryo")):
        with pytest.raises(ValueError, match="no sound checkpoint"):
            load_network(folder)


def test_a_preview_of_inverted_intensities_is_the_inverted_preview(tmp_path, halves):
    bright = previewed(tmp_path / "bright.mrc", halves.first, halves.second)
    dark = previewed(tmp_path / "dark.mrc", -halves.first, -halves.second)
    np.testing.assert_array_equal(dark.data, -bright.data)


def test_a_preview_is_closer_to_the_truth_than_the_mean_of_the_halves(tmp_path, halves):
    found = torch.from_numpy(np.array(previewed(tmp_path / "out.mrc", halves.first, halves.second).data))
    mean = (halves.first + halves.second) / 2

    def correlation(x):
        return torch.corrcoef(torch.stack((x.flatten(), halves.truth.flatten())))[0, 1]

    assert correlation(found) > correlation(mean)


def test_preview_says_in_header_and_terminal_that_it_is_a_prior_from_simulations(tmp_path, halves, capsys):
    write_volume(tmp_path / "one.mrc", halves.first.numpy(), voxel_size=10.0)
    out = tmp_path / "out.mrc"
    assert main(["preview", str(tmp_path / "one.mrc"), "--tilts", "-60,60", "--out", str(out)]) == 0
    assert "prior learned on simulations" in capsys.readouterr().out
    assert "prior learned on simulations" in read_volume(out).header.labels[-1]


def test_preview_does_not_overwrite_its_input(tmp_path, halves, capsys):
    path = tmp_path / "one.mrc"
    write_volume(path, halves.first.numpy(), voxel_size=10.0)
    assert main(["preview", str(path), "--tilts", "-60,60", "--out", str(path), "--overwrite"]) == 2
    assert "is one of the inputs" in capsys.readouterr().err
