"""Maps of the standard deviation of a prediction, and the file beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commanding import TINY, files_in, run, write
from deepinv.models import Reconstructor
from making import noisy_halves

from equitomo import TiledPredictor, TomogramPair, read_volume, resources
from equitomo.confidence import TiledReconstructor, confidence_map
from equitomo.run import ReconstructionSettings
from equitomo.run.confidence import Confidence, is_learned

RANGE = (-60.0, 60.0)
ESTIMATES = ["learned", "bootstrap", "orbit", "halves"]


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return TiledPredictor(torch.nn.Conv3d(1, 1, 3, padding=1, bias=False), tile=16, margin=2, passes=1)


def test_a_predictor_is_a_reconstructor_of_one_or_two_views(predictor):
    model = TiledReconstructor(predictor, (1.0, 2.0))
    y = torch.randn(2, 2, 16, 18, 20)
    assert isinstance(model, Reconstructor)
    expected = torch.stack([predictor(*pair, intensities=(1.0, 2.0)) for pair in y])[:, None]
    torch.testing.assert_close(model(y, None), expected)
    torch.testing.assert_close(model(y[:, :1], None)[0, 0], predictor(y[0, 0], intensities=(1.0, 2.0)))


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 18, 18), (10, 16, 19)])
def test_the_map_is_in_the_unit_of_the_volume(predictor, estimate, shape):
    halves = noisy_halves(shape)
    one = confidence_map(predictor, *halves, RANGE, estimate=estimate, n_samples=3)
    other = confidence_map(
        predictor, *(500 + 40 * h for h in halves), RANGE, estimate=estimate, n_samples=3, intensities=(500, 40)
    )
    assert one.shape == shape
    assert one.min() > 0
    # The learned one is computed with 16 bits where the processor can.
    torch.testing.assert_close(other, 40 * one, rtol=2e-2 if estimate == "learned" else 2e-3, atol=1e-2)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_specimen_whose_contrast_is_inverted_for_the_network_has_the_same_map(predictor, estimate):
    halves = noisy_halves((16, 16, 16))
    one = confidence_map(predictor, *halves, RANGE, estimate=estimate, n_samples=2)
    other = confidence_map(
        predictor, *(-half for half in halves), RANGE, estimate=estimate, n_samples=2, intensities=(0.0, -1.0)
    )
    torch.testing.assert_close(other, one)


def test_the_map_of_halves_without_averaging_is_half_their_difference(predictor):
    first, second = noisy_halves((16, 18, 20))
    found = confidence_map(predictor, first, second, RANGE, estimate="halves", smoothing=0)
    torch.testing.assert_close(found, (predictor(first) - predictor(second)).abs() / 2, atol=1e-6, rtol=1e-5)


def test_the_noise_of_the_bootstrap_is_that_of_the_halves(predictor):
    first, second = noisy_halves((16, 16, 16), noise=3.0)
    mean = (first + second) / 2
    # The same estimate, from halves that tell of no noise.
    with_noise, without = (
        confidence_map(predictor, *halves, RANGE, estimate="bootstrap").square().mean()
        for halves in ((first, second), (mean, mean))
    )
    noise = predictor(mean - noisy_halves((16, 16, 16), noise=0.0)[0]).square().mean()
    assert float(with_noise - without) == pytest.approx(float(noise), rel=0.3)


def test_the_orbit_needs_one_volume_and_the_others_two(predictor):
    volume, _ = noisy_halves((16, 16, 16))
    assert confidence_map(predictor, volume, None, RANGE, estimate="orbit", n_samples=2).shape == (16, 16, 16)
    for estimate in ("learned", "bootstrap", "halves"):
        with pytest.raises(ValueError, match="needs two halves, from which it takes the noise: take 'orbit'"):
            confidence_map(predictor, volume, None, RANGE, estimate=estimate)


def test_a_seed_repeats_a_map(predictor):
    halves = noisy_halves((16, 16, 16))
    one, same, other = (
        confidence_map(predictor, *halves, RANGE, estimate="bootstrap", n_samples=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# The file beside a prediction --------------------------------------------------------------------------

TILES = ["--tile", "16", "--tile-margin", "0"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    for name, half in zip(("even", "odd"), noisy_halves((18, 20, 22)), strict=True):
        write(folder / f"{name}.mrc", 300 + 40 * half.numpy())
    return [folder / "even.mrc", folder / "odd.mrc"]


@pytest.fixture(scope="module")
def folder(halves, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    wanted = ["--confidence", "bootstrap", "--confidence-samples", "2"]
    assert run("reconstruct", *halves, "--tilts=-60,60", "--out", out, *TINY, *TILES, *wanted) == 0
    return out


def test_the_map_stands_beside_the_result_and_says_how_it_was_estimated(folder):
    result, found = (read_volume(folder / name) for name in ("reconstruction.mrc", "confidence.mrc"))
    assert found.header.labels[-1] == "equitomo: standard deviation by bootstrap, 2 samples, not calibrated"
    assert found.shape == result.shape
    assert np.min(found.data) > 0


@pytest.mark.parametrize("estimate", ["orbit", "halves"])
def test_predict_names_the_map_after_its_result_and_lists_it(folder, halves, tmp_path, capsys, estimate):
    given = ["--run", folder, "--out", tmp_path / "a.mrc", *TILES, "--device", "cpu", "--confidence", estimate]
    assert run("predict", *halves, *given, "--confidence-samples", "2") == 0
    assert files_in(tmp_path) == {"a.mrc", "a_confidence.mrc"}
    assert f"Wrote {tmp_path}/a_confidence.mrc" in capsys.readouterr().out
    assert f"standard deviation by {estimate}" in read_volume(tmp_path / "a_confidence.mrc").header.labels[-1]


def test_a_learned_map_says_from_what(folder, halves, tmp_path):
    given = ["--run", folder, "--out", tmp_path / "a.mrc", *TILES, "--device", "cpu", "--confidence", "learned"]
    assert run("predict", *halves, *given) == 0
    found = read_volume(tmp_path / "a_confidence.mrc")
    assert found.header.labels[-1] == "equitomo: standard deviation learned from simulations"
    assert is_learned(found)
    assert np.min(found.data) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--confidence", "bootstrap"],
            "--confidence=bootstrap takes the noise from two halves|takes the noise from two",
        ),
        (["--confidence", "orbit", "--confidence-samples", "1"], "must be at least 2, got 1"),
    ],
)
def test_a_map_that_cannot_be_made_is_refused_before_the_prediction(folder, halves, tmp_path, capsys, given, message):
    out = ["--run", folder, "--out", tmp_path / "a.mrc", *TILES, "--device", "cpu"]
    assert run("predict", halves[0], *out, *given) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|"))
    assert files_in(tmp_path) == set()


def test_a_map_that_does_not_fit_into_the_memory_is_refused(tmp_path, predictor, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda device="cpu": 1000)
    pair, settings = TomogramPair(*noisy_halves((18, 20, 22)), RANGE), ReconstructionSettings(confidence="halves")
    with pytest.raises(ValueError, match=r"a_confidence.mrc: the confidence map takes about .* 1 kB are free"):
        Confidence(pair, tmp_path / "a.mrc", predictor, pair.geometry, settings, overwrite=False)


def test_tables_have_no_confidence_maps(folder, halves, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(f"first,second\n{halves[0]},{halves[1]}\n")
    table = ["--table", tmp_path / "table.csv", "--run", folder, "--out", tmp_path / "out", "--confidence", "orbit"]
    assert run("predict", *table) == 2
    assert "--confidence is for one tomogram" in capsys.readouterr().err
