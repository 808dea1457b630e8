"""Tests of agreement with numbers recorded from the reference program, which parity/README.md describes.

The reference program computed them in float32, with sums in another order and with complex transforms where ours are
real. Each of some tens of successive operations rounds by a relative 6e-8. Unless a test says otherwise, its tolerance
of 1e-5 allows for this rounding and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from asserting import assert_close, assert_differs
from einops import rearrange
from torch import Tensor

from equitomo.inference import TiledPredictor
from equitomo.loss import Noise2NoiseLoss
from equitomo.models import ScaleEquivariantUNet3D, load_icecream_checkpoint
from equitomo.physics import PaddedMissingWedgeOperator

FOLDER = Path(__file__).parent / "parity"
SIDE, MARGIN = 16, 4


@pytest.fixture(scope="module")
def losses() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "losses.npz"))


@pytest.fixture(scope="module")
def inference() -> dict[str, np.ndarray]:
    return dict(np.load(FOLDER / "inference.npz"))


def volumes(array: np.ndarray) -> Tensor:
    """Return volumes in the axes of the reference as a batch of one view, (batch, 1, z, y, x)."""
    return rearrange(torch.from_numpy(array), "b y x z -> b 1 z y x")


def masks(packed: np.ndarray, shape: np.ndarray) -> Tensor:
    """Return packed, shifted masks (..., y, x, z) as half spectra (batch, 1, z, y, x // 2 + 1)."""
    full = np.unpackbits(packed)[: np.prod(shape)].reshape(-1, *shape[-3:])
    full = rearrange(torch.from_numpy(full).float(), "b y x z -> b 1 z y x")
    full = torch.fft.ifftshift(full, dim=(-3, -2, -1))
    return full[..., : full.shape[-1] // 2 + 1]


def with_mask(mask: Tensor) -> PaddedMissingWedgeOperator:
    """Return our operator with the mask of the reference."""
    physics = PaddedMissingWedgeOperator((SIDE,) * 3, (-60.0, 60.0))
    physics.update(mask=mask)
    return physics


@pytest.fixture(scope="module")
def straight(losses) -> PaddedMissingWedgeOperator:
    return with_mask(masks(losses["wedge/input"], losses["wedge/input_shape"]))


@pytest.fixture(scope="module")
def turned(losses) -> PaddedMissingWedgeOperator:
    """Return the operator with one mask per sample, rotated by the reference."""
    return with_mask(masks(losses["wedge_rot_packed"], losses["wedge_rot_shape"]))


def state_of(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key.removeprefix("model/"): torch.from_numpy(v) for key, v in arrays.items() if key.startswith("model/")}


# The network


@pytest.mark.parametrize("side", [16, 32, 20])
@pytest.mark.parametrize("fused", [True, False])
def test_the_network_gives_the_references_values_from_its_weights(side, fused):
    arrays = dict(np.load(FOLDER / "unet.npz"))
    network = ScaleEquivariantUNet3D(width=8, fused=fused)
    network.load_state_dict(state_of(arrays))
    with torch.no_grad():
        out = network(torch.from_numpy(arrays[f"in{side}"]))
    assert_close(out, torch.from_numpy(arrays[f"out{side}"]), 1e-5)


# The operator


def test_the_projection_agrees_with_the_reference(losses, straight):
    assert_close(straight.A(volumes(losses["target"])), volumes(losses["measurement"]), 1e-5)


def test_the_projection_with_a_mask_per_sample_agrees_with_the_reference(losses, turned):
    assert_close(turned.A(volumes(losses["target"])), volumes(losses["measurement_multi"]), 1e-5)
    assert_differs(volumes(losses["measurement_multi"]), volumes(losses["measurement"]), 0.1)


def test_the_references_mask_measures_more_than_the_tilts_do(losses, straight):
    """The reference dilates its mask along one diagonal, a fault that is not repeated here."""
    exact = PaddedMissingWedgeOperator((SIDE,) * 3, (-60.0, 60.0))
    assert straight.mask.mean() > 1.1 * exact.mask.mean()


# The loss. Our loss compares each view with the other. With the views (estimate, target) as x_net and as y, both
# residuals are the difference of estimate and target, and their mean is the single comparison of the reference.


def our_loss(losses, physics, margin: int) -> Tensor:
    target, estimate = volumes(losses["target"]), volumes(losses["estimate"])
    views = torch.cat((estimate, target), dim=1)
    return Noise2NoiseLoss(margin=margin, mask_target=True)(x_net=views, y=views, physics=physics).mean()


# The window of the reference sets the outside to zero and divides by all voxels. Our margin leaves the outside out.
WINDOW = ((SIDE - 2 * MARGIN) / SIDE) ** 3


@pytest.mark.parametrize("operator", ["straight", "turned"])
@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("parts", [0, 1])
def test_the_loss_in_space_agrees_with_the_reference(losses, operator, window, parts, request):
    physics = request.getfixturevalue(operator)
    name = "fourier_loss_" + "batch_" * (operator == "turned") + f"uf0_win{window}_var{parts}"
    # The reference averages over real and imaginary parts. The latter are zero, which halves the mean.
    factor = (WINDOW if window else 1.0) * (0.5 if parts else 1.0)
    actual = factor * our_loss(losses, physics, MARGIN if window else 0)
    assert_close(actual, torch.tensor(losses[name], dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("operator", ["straight", "turned"])
def test_the_loss_in_fourier_space_agrees_with_the_reference(losses, operator, request):
    """By Parseval it is a sum over the padded volume, including what the operator cuts off."""
    physics = request.getfixturevalue(operator)
    name = "fourier_loss_" + "batch_" * (operator == "turned") + "uf1_win0_var1"
    difference = volumes(losses["estimate"]) - volumes(losses["target"])
    padded = torch.nn.functional.pad(difference, (0, SIDE) * 3)
    grid = PaddedMissingWedgeOperator((2 * SIDE,) * 3, (-60.0, 60.0), padding=1)
    grid.update(mask=physics.mask)
    # The transform of the reference is not normalised, so a mean square is 32^3 times that in space. The reference then
    # divides by sqrt(16^3), and averages over real and imaginary parts.
    mean_square = grid.A(padded).square().mean() * (2 * SIDE) ** 3
    actual = 0.5 * mean_square / SIDE**1.5
    assert_close(actual, torch.tensor(losses[name], dtype=torch.float32), 1e-5)


def test_the_gradient_of_the_default_loss_agrees_with_the_reference(losses, straight):
    estimate = volumes(losses["estimate"]).requires_grad_()
    residual = straight.A_inside(estimate - volumes(losses["target"]), MARGIN)
    value = 0.5 * WINDOW * residual.square().mean()
    (gradient,) = torch.autograd.grad(value, estimate)
    assert_close(gradient, volumes(losses["fourier_loss_default_grad_estimate"]), 1e-5)


def test_the_gradient_through_our_loss_agrees_with_the_reference(losses, straight):
    estimate = volumes(losses["estimate"]).requires_grad_()
    # The estimate enters only as a reconstruction. As a target it is detached.
    target = volumes(losses["target"])
    loss = Noise2NoiseLoss(margin=MARGIN, mask_target=True)
    views = torch.cat((estimate, target), dim=1)
    y = torch.cat((estimate.detach(), target), dim=1)
    value = 0.5 * WINDOW * loss(x_net=views, y=y, physics=straight).mean()
    (gradient,) = torch.autograd.grad(value, estimate)
    # Only one of the two comparisons has it as its reconstruction, so the mean over the views halves the gradient.
    assert_close(2 * gradient, volumes(losses["fourier_loss_default_grad_estimate"]), 1e-5)


# The prediction


@pytest.fixture(scope="module")
def network(inference, tmp_path_factory) -> ScaleEquivariantUNet3D:
    path = tmp_path_factory.mktemp("reference") / "model_iteration_1.pt"
    torch.save({"model": state_of(inference)}, path)
    return load_icecream_checkpoint(path, axes="zyx")


def case(inference, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return volume, prediction and coverage of a recorded case as (z, y, x)."""
    volume, out = (volumes(inference[f"{name}/{key}"][None])[0, 0] for key in ("vol", "win/out"))
    covered = np.unpackbits(inference[f"{name}/win/coverage"])[: volume.numel()].reshape(inference[f"{name}/vol"].shape)
    return volume, out, volumes(covered[None])[0, 0].bool()


@pytest.mark.parametrize(("name", "front"), [("a", 0), ("b", MARGIN)])
def test_a_prediction_in_tiles_agrees_with_the_reference_wherever_it_wrote(inference, network, name, front):
    """Tiles of 16 write their central halves, with two passes, the wedge inside tiles and zeros beyond the borders.

    In case b the reference began its tiles at zero and wrote nothing before the first core; padded by a margin in
    front our tiles fall on the same voxels. Two passes double the depth of rounding, yet 1e-5 holds.
    """
    volume, expected, covered = case(inference, name)
    physics = with_mask(masks(inference["wedge/input"], inference["wedge/input_shape"]))
    predict = TiledPredictor(
        network, physics, tile=SIDE, margin=MARGIN, border="zero", wedge="tile", precision="float32"
    )
    out = predict(torch.nn.functional.pad(volume, (front, 0) * 3))[front:, front:, front:]
    assert_close(out[covered], expected[covered], 1e-5)


@pytest.mark.parametrize("name", ["a", "b"])
def test_voxels_that_the_reference_left_at_zero_are_written(inference, network, name):
    volume, expected, covered = case(inference, name)
    out = TiledPredictor(network, (-60.0, 60.0), tile=SIDE, margin=MARGIN, precision="float32")(volume)
    assert (expected[~covered] == 0).all()
    if (~covered).any():
        assert (out[~covered] != 0).float().mean() > 0.9


def test_the_axes_of_the_weights_matter(inference, tmp_path):
    """As a control, the prediction differs if the weights are left in the order of the reference."""
    path = tmp_path / "model_iteration_1.pt"
    torch.save(state_of(inference), path)
    volume, expected, covered = case(inference, "a")
    physics = with_mask(masks(inference["wedge/input"], inference["wedge/input_shape"]))
    unturned = load_icecream_checkpoint(path)
    settings = {"tile": SIDE, "margin": MARGIN, "border": "zero", "wedge": "tile", "precision": "float32"}
    predict = TiledPredictor(unturned, physics, **settings)
    assert_differs(predict(volume)[covered], expected[covered], 0.05)
