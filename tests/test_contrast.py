"""The contrast of a specimen, and its inversion for a network that knows bright ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from making import noisy_halves

from equitomo import TomogramPair, read_volume, write_volume
from equitomo.datasets import is_dark

TILTS = (-60.0, 60.0)


@pytest.fixture
def halves():
    """Return halves of a small bright specimen on a large background."""
    specimen = torch.zeros(24, 24, 24)
    specimen[8:14, 8:14, 8:14] = 3
    first, second = noisy_halves((24, 24, 24), noise=1.0)
    return specimen + 0.3 * first + 100, specimen + 0.3 * second + 100


def test_the_longer_tail_of_the_blurred_mean_tells_the_contrast(halves):
    assert not is_dark(*halves) and is_dark(*(-half for half in halves))


def test_invalid_voxels_count_as_background(halves):
    holed = halves[0].clone()
    holed[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert not is_dark(holed) and is_dark(-holed)
    assert not is_dark(torch.full((4, 4, 4), torch.nan))


def test_no_more_than_the_middle_of_a_large_volume_is_read():
    read = []

    class Noting:
        shape, dtype = (400, 20, 300), np.dtype(np.float32)

        def __getitem__(self, index):
            read.append([len(range(*part.indices(n))) for part, n in zip(index, self.shape, strict=True)])
            return np.zeros(read[-1], np.float32)

        def slabs(self, n_bytes=0):
            raise AssertionError("the whole volume was read")

    pair = TomogramPair(Noting(), None, TILTS, lazy=True)
    assert not pair.with_contrast("bright").is_inverted
    assert read == [[128, 20, 128]]


@pytest.mark.parametrize("lazy", [False, True])
def test_inverted_halves_are_the_same_bits_to_a_network_that_knows_bright_ones(halves, lazy):
    bright = TomogramPair(*halves, TILTS, lazy=lazy).with_contrast("bright")
    dark = TomogramPair(*(-half for half in halves), TILTS, lazy=lazy).with_contrast("bright")
    assert (bright.is_inverted, dark.is_inverted) == (False, True)
    assert torch.equal(dark.volumes, bright.volumes)
    assert torch.equal(dark.restore(bright.volumes[0]), -bright.restore(bright.volumes[0]))


def test_a_pair_that_is_read_again_keeps_its_contrast(halves, tmp_path):
    for name, half in zip(("even", "odd"), halves, strict=True):
        write_volume(tmp_path / f"{name}.mrc", half.numpy(), voxel_size=10.0)
    files = [read_volume(tmp_path / f"{name}.mrc") for name in ("even", "odd")]
    pair = TomogramPair(*files, TILTS, lazy=True)
    _ = pair.scale
    inverted = pair.with_contrast("inverted")
    assert torch.equal(inverted.volumes, -pair.volumes)
    inverted.release()
    assert torch.equal(inverted.load_volumes(), -pair.volumes)


def test_a_pair_of_the_wanted_contrast_is_returned_itself_and_another_one_is_left_as_it_is(halves):
    pair = TomogramPair(*halves, TILTS)
    before = pair.volumes.clone()
    assert pair.with_contrast("given") is pair.with_contrast("bright") is pair
    inverted = pair.with_contrast("inverted")
    assert inverted.with_contrast("inverted") is inverted
    assert torch.equal(inverted.with_contrast("given").volumes, before) and torch.equal(pair.volumes, before)


def test_an_unknown_contrast_is_refused(halves):
    with pytest.raises(ValueError, match="`contrast` is 'given', 'bright' or 'inverted', got 'dark'"):
        TomogramPair(*halves, TILTS).with_contrast("dark")
