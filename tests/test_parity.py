"""Agreement with numbers recorded from the reference program; see parity/README.md for what they are.

The recordings were computed in float32 by other sums in another order, with complex transforms where ours are real:
relative rounding of 6e-8 per operation, some tens of operations deep. Where nothing else is said the tolerance of 1e-5
is that, and no more.
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
    """From the reference's axes to a batch of one view (batch, 1, z, y, x)."""
    return rearrange(torch.from_numpy(array), "b y x z -> b 1 z y x")


def masks(packed: np.ndarray, shape: np.ndarray) -> Tensor:
    """Packed shifted masks (..., y, x, z) as our half spectra (batch, 1, z, y, x // 2 + 1)."""
    full = np.unpackbits(packed)[: np.prod(shape)].reshape(-1, *shape[-3:])
    full = rearrange(torch.from_numpy(full).float(), "b y x z -> b 1 z y x")
    full = torch.fft.ifftshift(full, dim=(-3, -2, -1))
    return full[..., : full.shape[-1] // 2 + 1]


def with_mask(mask: Tensor) -> PaddedMissingWedgeOperator:
    """Our operator with the reference's mask in place of ours."""
    physics = PaddedMissingWedgeOperator((SIDE,) * 3, (-60.0, 60.0))
    physics.update(mask=mask)
    return physics


@pytest.fixture(scope="module")
def straight(losses) -> PaddedMissingWedgeOperator:
    return with_mask(masks(losses["wedge/input"], losses["wedge/input_shape"]))


@pytest.fixture(scope="module")
def turned(losses) -> PaddedMissingWedgeOperator:
    """A mask per sample, turned by the reference."""
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


def test_a_projection_is_the_references(losses, straight):
    assert_close(straight.A(volumes(losses["target"])), volumes(losses["measurement"]), 1e-5)


def test_a_projection_with_a_mask_per_sample_is_the_references(losses, turned):
    assert_close(turned.A(volumes(losses["target"])), volumes(losses["measurement_multi"]), 1e-5)
    assert_differs(volumes(losses["measurement_multi"]), volumes(losses["measurement"]), 0.1)


def test_the_references_mask_measures_more_than_the_tilts_do(losses, straight):
    """It is dilated along one diagonal: a fault of the reference's that is not repeated here."""
    exact = PaddedMissingWedgeOperator((SIDE,) * 3, (-60.0, 60.0))
    assert straight.mask.mean() > 1.1 * exact.mask.mean()


# The loss. Ours compares each view with the other: with the views (estimate, target) as x_net and as y, both residuals
# are that of estimate and target, so the mean over views is the reference's one comparison.


def our_loss(losses, physics, margin: int) -> Tensor:
    target, estimate = volumes(losses["target"]), volumes(losses["estimate"])
    views = torch.cat((estimate, target), dim=1)
    return Noise2NoiseLoss(margin=margin, mask_target=True)(x_net=views, y=views, physics=physics).mean()


# The reference's window multiplies by zero outside and divides by all voxels; a margin leaves the rest out.
WINDOW = ((SIDE - 2 * MARGIN) / SIDE) ** 3


@pytest.mark.parametrize("operator", ["straight", "turned"])
@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("parts", [0, 1])
def test_the_loss_in_space_is_the_references(losses, operator, window, parts, request):
    physics = request.getfixturevalue(operator)
    name = "fourier_loss_" + "batch_" * (operator == "turned") + f"uf0_win{window}_var{parts}"
    # Real and imaginary parts are two numbers to the reference, and the imaginary one is zero: half the mean.
    factor = (WINDOW if window else 1.0) * (0.5 if parts else 1.0)
    actual = factor * our_loss(losses, physics, MARGIN if window else 0)
    assert_close(actual, torch.tensor(losses[name], dtype=torch.float32), 1e-5)


@pytest.mark.parametrize("operator", ["straight", "turned"])
def test_the_loss_in_fourier_space_is_the_references(losses, operator, request):
    """The sum over the padded spectrum, by Parseval: what the operator leaves out of the crop counts there too."""
    physics = request.getfixturevalue(operator)
    name = "fourier_loss_" + "batch_" * (operator == "turned") + "uf1_win0_var1"
    difference = volumes(losses["estimate"]) - volumes(losses["target"])
    padded = torch.nn.functional.pad(difference, (0, SIDE) * 3)
    grid = PaddedMissingWedgeOperator((2 * SIDE,) * 3, (-60.0, 60.0), padding=1)
    grid.update(mask=physics.mask)
    # Unnormalised transform: each mean square is 32^3 times that in space; then divided by sqrt(16^3), real and
    # imaginary parts apart.
    mean_square = grid.A(padded).square().mean() * (2 * SIDE) ** 3
    actual = 0.5 * mean_square / SIDE**1.5
    assert_close(actual, torch.tensor(losses[name], dtype=torch.float32), 1e-5)


def test_the_gradient_of_the_default_loss_is_the_references(losses, straight):
    estimate = volumes(losses["estimate"]).requires_grad_()
    residual = straight.A_inside(estimate - volumes(losses["target"]), MARGIN)
    value = 0.5 * WINDOW * residual.square().mean()
    (gradient,) = torch.autograd.grad(value, estimate)
    assert_close(gradient, volumes(losses["fourier_loss_default_grad_estimate"]), 1e-5)


def test_the_gradient_through_our_loss_is_the_references(losses, straight):
    estimate = volumes(losses["estimate"]).requires_grad_()
    # The estimate enters as a reconstruction only: as a target it is detached, and its comparison left out.
    target = volumes(losses["target"])
    loss = Noise2NoiseLoss(margin=MARGIN, mask_target=True)
    views = torch.cat((estimate, target), dim=1)
    y = torch.cat((estimate.detach(), target), dim=1)
    value = 0.5 * WINDOW * loss(x_net=views, y=y, physics=straight).mean()
    (gradient,) = torch.autograd.grad(value, estimate)
    # One of two comparisons has this estimate as its reconstruction, so the mean over views halves the gradient.
    assert_close(2 * gradient, volumes(losses["fourier_loss_default_grad_estimate"]), 1e-5)


# The prediction


@pytest.fixture(scope="module")
def network(inference, tmp_path_factory) -> ScaleEquivariantUNet3D:
    path = tmp_path_factory.mktemp("reference") / "model_iteration_1.pt"
    torch.save({"model": state_of(inference)}, path)
    return load_icecream_checkpoint(path, axes="zyx")


def case(inference, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Volume, prediction and coverage of a recorded case, as (z, y, x)."""
    volume, out = (volumes(inference[f"{name}/{key}"][None])[0, 0] for key in ("vol", "win/out"))
    covered = np.unpackbits(inference[f"{name}/win/coverage"])[: volume.numel()].reshape(inference[f"{name}/vol"].shape)
    return volume, out, volumes(covered[None])[0, 0].bool()


@pytest.mark.parametrize(("name", "front"), [("a", 0), ("b", MARGIN)])
def test_a_prediction_in_tiles_is_the_references_wherever_it_wrote(inference, network, name, front):
    """Tiles of 16 each writing their central half, two passes and the wedge inside a tile, zeros beyond the borders.

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
def test_what_the_reference_left_at_zero_is_written_here(inference, network, name):
    volume, expected, covered = case(inference, name)
    out = TiledPredictor(network, (-60.0, 60.0), tile=SIDE, margin=MARGIN, precision="float32")(volume)
    assert (expected[~covered] == 0).all()
    if (~covered).any():
        assert (out[~covered] != 0).float().mean() > 0.9


def test_the_axes_of_the_weights_matter(inference, tmp_path):
    """A control: with the weights in the reference's order the prediction is another one."""
    path = tmp_path / "model_iteration_1.pt"
    torch.save(state_of(inference), path)
    volume, expected, covered = case(inference, "a")
    physics = with_mask(masks(inference["wedge/input"], inference["wedge/input_shape"]))
    unturned = load_icecream_checkpoint(path)
    settings = {"tile": SIDE, "margin": MARGIN, "border": "zero", "wedge": "tile", "precision": "float32"}
    predict = TiledPredictor(unturned, physics, **settings)
    assert_differs(predict(volume)[covered], expected[covered], 0.05)
