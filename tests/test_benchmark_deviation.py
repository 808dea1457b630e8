"""The training of the network that predicts standard deviations."""

from __future__ import annotations

import pytest
import torch

from benchmarks.deviation import Example, errors_of, in_units_of_normal, main, quantile_loss
from equitomo.deviation import NORMAL, LearnedDeviation
from equitomo.geometry import TiltGeometry

GEOMETRY = TiltGeometry.from_range(-60, 60)


def normal_errors(deviation):
    return deviation * torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_the_loss_is_least_for_the_deviations_of_the_errors(scale):
    deviation = 0.1 + torch.rand(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    errors, factors = normal_errors(deviation), LearnedDeviation(width=2, levels=2).factors
    best = quantile_loss(deviation, errors, factors)
    assert best < quantile_loss(scale * deviation, errors, factors)
    assert best < quantile_loss(deviation.mean().expand_as(deviation), errors, factors)
    assert best < quantile_loss(deviation, errors, factors * torch.tensor([scale, 1, 1, 1 / scale]))


def test_the_loss_counts_small_errors_as_much_as_large_ones():
    one, ten = torch.ones(1, 3, 4, 4, 4), torch.full((1, 3, 4, 4, 4), 10.0)
    factors = LearnedDeviation(width=2, levels=2).factors
    torch.testing.assert_close(quantile_loss(one, 2 * one, factors), quantile_loss(ten, 2 * ten, factors))


def test_other_units_of_the_output_leave_the_intervals_as_they_are():
    torch.manual_seed(0)
    model, x = LearnedDeviation(width=4, levels=2), torch.randn(1, 6, 8, 8, 8)
    model.factors.copy_(torch.tensor([[1.0, 2, 3, 4], [0.5, 1, 1.5, 2], [2, 3, 4, 5]]))
    before = model(x)[:, :, None] * model.factors[..., None, None, None]
    in_units_of_normal(model)
    after = model(x)[:, :, None] * model.factors[..., None, None, None]
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(model.factors[:, 2], torch.full((3,), NORMAL[0.9]))


def test_the_parts_of_an_error_add_up_to_it_without_its_mean():
    error = 5 + torch.randn(12, 14, 16)
    whole, measured, filled = errors_of(error, GEOMETRY)
    torch.testing.assert_close(whole, error - error.mean())
    torch.testing.assert_close(measured + filled, whole)


def test_examples_are_made_once_and_a_training_writes_its_weights(tmp_path, capsys):
    for number in range(2):
        shape = (48, 48, 48)
        folder = tmp_path / "examples"
        folder.mkdir(exist_ok=True)
        Example(torch.randn(6, *shape), torch.randn(3, *shape), GEOMETRY).write(folder / f"{number}.pt")
    main(["--out", str(tmp_path), "--specimens", "2", "--width", "2", "--minutes", "1e-6", "--batch", "1"])
    assert (tmp_path / "deviation.safetensors").is_file()
    assert ".pt" not in capsys.readouterr().out
