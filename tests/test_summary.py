"""Sentences on a pair and its reconstruction: of the middle, and without a copy of the volumes."""

import pytest
import torch
from making import noisy_pair

from equitomo import MissingWedgeOperator, TomogramPair
from equitomo.run import summary


def recorded(monkeypatch, name):
    """Return the list that takes the shapes of the volumes that a score is computed of."""
    shapes, score = [], getattr(summary, name)

    def act(*volumes, **settings):
        shapes.extend(tuple(volume.shape) for volume in volumes if isinstance(volume, torch.Tensor))
        return score(*volumes, **settings)

    monkeypatch.setattr(summary, name, act)
    return shapes


def test_scores_are_of_the_middle_of_large_volumes(monkeypatch):
    monkeypatch.setattr(summary, "_LARGEST", 12)
    correlated, filled = (recorded(monkeypatch, f) for f in ("fourier_shell_correlation", "wedge_energy_fraction"))
    pair = noisy_pair((10, 16, 21))
    summary.agreement(pair)
    summary.filling(pair, pair.volumes[0].numpy())
    assert correlated == filled == [(10, 12, 12)] * 2


def test_the_wedge_is_told_empty_before_and_full_after():
    full = noisy_pair((40, 44, 48)).volumes
    physics = MissingWedgeOperator(full.shape[1:], (-60.0, 60.0), support="box")
    pair = TomogramPair(*physics.A(full[:, None])[:, 0], (-60.0, 60.0))
    before, after = map(float, summary.filling(pair, full[0].numpy()).split("spread: ")[1].split()[:3:2])
    assert before < 0.2
    assert after == pytest.approx(1, abs=0.3)


def test_neither_the_faces_of_the_middle_nor_its_mean_fill_the_wedge(monkeypatch):
    monkeypatch.setattr(summary, "_LARGEST", 40)
    pair = noisy_pair((64, 64, 64))
    empty = MissingWedgeOperator(pair.shape, pair.geometry, support="box").A(pair.volumes[:1, None])[0, 0]
    # 0.12; with the faces 0.17, and with a mean that the fading spreads 1.
    assert float(summary.filling(pair, 300 + empty).split("before, ")[1].split()[0]) < 0.14


def test_the_mean_of_the_halves_is_that_in_the_input_s_intensities():
    pair = noisy_pair((6, 7, 8))
    mean = summary.MeanOfHalves(pair)
    assert mean.shape == pair.shape
    expected = pair.restore(pair.volumes.mean(0))
    for index in ((slice(None),) * 3, (slice(None), 3, slice(None)), (slice(1, 4), slice(2, 5), slice(0, 8))):
        torch.testing.assert_close(torch.from_numpy(mean[index]), expected[index])


def test_the_agreement_of_the_halves_is_a_sentence_of_its_own():
    said = summary.agreement(noisy_pair((16, 16, 16)))
    assert said.startswith("The input halves agree down to ")
    assert said.endswith("voxels (Fourier shell correlation of 0.143)")
