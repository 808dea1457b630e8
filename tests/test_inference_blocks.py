"""A predictor with networks and operators of the user's own: what works is right, and what cannot work is refused."""

from __future__ import annotations

import deepinv
import numpy as np
import pytest
import torch
from asserting import assert_close, assert_differs, normal
from crowding import on_device
from torch import Tensor, nn

from equitomo.geometry import TiltGeometry, wedge_mask
from equitomo.inference import Footprint, TiledPredictor, margin_errors
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator

TILTS = (-60.0, 40.0)
WEDGES = ["local", "global", "tile"]


def volume(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32)


def convolution(n_out: int = 1, **settings) -> nn.Module:
    """One 3x3x3 convolution, for which a margin of one voxel is enough."""
    torch.manual_seed(0)
    return nn.Conv3d(1, n_out, 3, **({"padding": 1, "bias": False} | settings))


def predictor(network: nn.Module, physics=None, **settings) -> TiledPredictor:
    return TiledPredictor(network, physics, **({"tile": 16, "margin": 2, "precision": "float32"} | settings))


# Operators


def test_one_pass_needs_no_operator():
    network, x = convolution(), volume(20, 24, 18)
    assert torch.equal(predictor(network, passes=1)(x), predictor(network, TILTS, passes=1)(x))


def test_two_passes_without_an_operator_are_refused():
    with pytest.raises(ValueError, match="2 passes need an operator: pass `physics_or_geometry`, or `passes=1`"):
        predictor(convolution())


@pytest.mark.parametrize("wedge", WEDGES)
@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
def test_an_operator_may_be_made_by_a_function_of_the_shape(kind, wedge):
    network, x = convolution(), volume(20, 24, 18)
    expected = predictor(network, kind((8, 8, 8), TILTS), wedge=wedge)(x)
    assert_close(predictor(network, lambda shape: kind(shape, TILTS), wedge=wedge)(x), expected, 1e-6)


UNION = TiltGeometry.from_range(*TILTS) | TiltGeometry.from_range(-50, 55, "x")


@pytest.mark.parametrize("wedge", WEDGES)
def test_a_union_of_tilts_is_its_operator_in_every_way(wedge):
    network, x = convolution(), volume(20, 24, 18)
    expected = predictor(network, lambda shape: PaddedMissingWedgeOperator(shape, UNION), wedge=wedge)(x)
    found = predictor(network, UNION, wedge=wedge)(x)
    assert_close(found, expected, 1e-6)
    assert_differs(found, predictor(network, UNION.parts[0], wedge=wedge)(x), 1e-2)


def test_a_global_wedge_of_a_union_is_emptied_in_the_whole_volume():
    x = volume(20, 24, 18)
    expected = PaddedMissingWedgeOperator(x.shape, UNION).A(x[None, None])[0, 0]
    assert_close(predictor(nn.Identity(), UNION, wedge="global", margin=0)(x), expected, 1e-5)


@pytest.mark.parametrize("wedge", WEDGES)
def test_a_mask_may_be_made_by_a_function_of_the_shape(wedge):
    network, x = convolution(), volume(20, 24, 18)
    masked = MissingWedgeOperator((8, 8, 8), mask=lambda shape: wedge_mask(shape, UNION, support="ball"))
    expected = predictor(network, MissingWedgeOperator((8, 8, 8), UNION), wedge=wedge)(x)
    assert_close(predictor(network, masked, wedge=wedge)(x), expected, 1e-5)


class Ramp(deepinv.physics.LinearPhysics):
    """Multiplies each section by its own number; it is made for one shape."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(img_size=(1, *shape))
        self.register_buffer("ramp", torch.linspace(0, 1, shape[0])[:, None, None])

    def A(self, x: Tensor, **kwargs) -> Tensor:
        return self.ramp * x

    A_adjoint = A


class ResizableRamp(Ramp):
    def resized(self, shape: tuple[int, int, int]) -> ResizableRamp:
        return ResizableRamp(shape)


@pytest.mark.parametrize("physics", [Ramp, ResizableRamp((5, 5, 5))], ids=["function", "resized"])
def test_any_physics_acts_on_the_whole_volume_or_within_tiles(physics):
    x = volume(21, 20, 18)
    settings = {"margin": 0, "stride": 1}
    found = {wedge: predictor(nn.Identity(), physics, wedge=wedge, **settings)(x) for wedge in WEDGES}
    assert_close(found["global"], Ramp((21, 1, 1)).ramp * x, 1e-6)
    # Sections 0 to 15 and 16 to 20 are two tiles, each with a ramp of its own.
    ramps = torch.cat((Ramp((16, 1, 1)).ramp, Ramp((16, 1, 1)).ramp[:5]))
    assert_close(found["tile"], ramps * x, 1e-6)
    assert_differs(found["local"], found["global"], 0.1)


def test_a_physics_that_fits_only_its_own_size_is_refused():
    with pytest.raises(ValueError, match=r"a Ramp fits only volumes of its own size.*pass a function `\(shape\) ->"):
        predictor(convolution(), Ramp((20, 24, 18)))


@pytest.mark.parametrize("wedge", WEDGES)
def test_an_operator_that_changes_the_shape_is_refused(wedge):
    class Halved(Ramp):
        def A(self, x: Tensor, **kwargs) -> Tensor:
            return x[..., ::2]

    with pytest.raises(ValueError, match="between two passes it must keep the shape"):
        predictor(convolution(), Halved, wedge=wedge)(volume(20, 24, 18))


def test_a_device_without_room_for_a_whole_volume_leaves_it_to_the_cpu(crowded, caplog):
    """Such an operator cannot be applied plane by plane."""
    x = volume(20, 24, 18)
    expected = predictor(convolution(), Ramp, wedge="global")(x)
    crowded(18**3)
    assert_close(predictor(on_device(convolution()), Ramp, wedge="global")(x), expected, 1e-6)
    tile = "1 tile of 20 x 24 x 18 voxels"
    assert f"out of memory with {tile} on cuda: retrying with {tile} on cpu" in caplog.text


# Channels


def test_several_channels_come_out_before_the_axes_of_the_volume():
    network, x = convolution(3), volume(20, 24, 18)
    found = predictor(network, passes=1)(x)
    assert found.shape == (3, 20, 24, 18)
    for channel, weight in zip(found, network.weight, strict=True):
        alone = convolution()
        alone.weight = nn.Parameter(weight[None])
        assert_close(channel, predictor(alone, passes=1)(x), 1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_of_several_volumes_and_halves(batch):
    predict = predictor(convolution(2), passes=1, batch=batch)
    first, second = volume(2, 12, 20, 18), volume(2, 12, 20, 18, seed=1)
    found = predict(first, second)
    assert found.shape == (2, 2, 12, 20, 18)
    expected = torch.stack([(predict(a) + predict(b)) / 2 for a, b in zip(first, second, strict=True)])
    assert_close(found, expected, 1e-6)


def test_channels_go_into_an_array_of_the_caller():
    x, predict = volume(12, 20, 18).numpy(), predictor(convolution(2), passes=1)
    out = np.full((2, 12, 20, 18), 7, np.float32)
    assert predict(x, out=out) is out
    np.testing.assert_array_equal(out, predict(x))
    single, alone = np.empty((1, 12, 20, 18), np.float32), predictor(convolution(), passes=1)
    np.testing.assert_array_equal(alone(x, out=single)[0], alone(x))


@pytest.mark.parametrize("shape", [(12, 20, 18), (3, 12, 20, 18), (2, 12, 20, 17)])
def test_an_array_without_room_for_the_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"`out` must be float32 of shape \(2, 12, 20, 1[78]\), got float32 of shape"):
        predictor(convolution(2), passes=1)(volume(12, 20, 18).numpy(), out=np.empty(shape, np.float32))


@pytest.mark.parametrize("wedge", WEDGES)
def test_several_channels_cannot_go_through_a_network_again(wedge):
    with pytest.raises(ValueError, match="gives 2 channels and takes one, so it can only be applied once: pass"):
        predictor(convolution(2), TILTS, wedge=wedge)(volume(12, 20, 18))


def test_the_footprint_counts_channels():
    predict, shape = predictor(convolution(4), passes=1), (30, 40, 50)
    one, four = (Footprint.of(predict, shape, channels=n, streamed=False).memory for n in (1, 4))
    assert four - one > 3 * 4 * 30 * 40 * 50


# Shapes


@pytest.mark.parametrize("settings", [{"padding": 0}, {"stride": 2}, {"kernel_size": (1, 3, 3)}])
def test_a_network_that_does_not_keep_the_shape_is_refused(settings):
    network = nn.Sequential(nn.Conv3d(1, 1, **({"kernel_size": 3, "padding": 1} | settings)))
    with pytest.raises(ValueError, match=r"the network gives \(1, 1, .*must keep .* \(z, y, x\): pad its convolutions"):
        predictor(network, passes=1)(volume(20, 20, 20))


class Fixed(nn.Module):
    """A network that takes cubes of 16 voxels only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolution()

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-3:] == (16, 16, 16)
        return self.inner(x)


@pytest.mark.parametrize("wedge", WEDGES)
@pytest.mark.parametrize("shape", [(5, 40, 18), (15, 9, 16), (3, 4, 2)])
def test_a_network_of_a_fixed_size_sees_only_tiles_of_that_size(wedge, shape):
    x = volume(*shape)
    settings = {"wedge": wedge, "exact_tile": True}
    found = predictor(Fixed(), TILTS, **settings)(x)
    if wedge == "global":
        assert_close(found, predictor(convolution(), TILTS, wedge=wedge)(x), 1e-5)
    with pytest.raises(AssertionError):
        predictor(Fixed(), TILTS, **settings | {"exact_tile": False})(x)


def test_a_fixed_size_is_the_tile_that_is_given():
    for settings in ({"tile": None}, {"local_tile": 8}):
        with pytest.raises(ValueError, match="`exact_tile=True` needs the `tile` that the network takes, and no other"):
            predictor(Fixed(), TILTS, exact_tile=True, **settings)


def test_a_tile_of_a_fixed_size_is_not_cut_when_memory_runs_out():
    class Full(Fixed):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-3:] == (16, 16, 16)
            raise MemoryError("nothing left")

    with pytest.raises(MemoryError, match="nothing left"):
        predictor(Full(), passes=1, exact_tile=True)(volume(20, 20, 20))


def test_margins_of_a_network_of_a_fixed_size_are_not_measured():
    with pytest.raises(ValueError, match="margins cannot be measured with `exact_tile=True`"):
        margin_errors(predictor(Fixed(), passes=1, exact_tile=True), volume(20, 20, 20))


# Normalisation

UNSTABLE = [
    nn.InstanceNorm3d(2),
    nn.GroupNorm(1, 2),
    nn.BatchNorm3d(2, track_running_stats=False),
    nn.LayerNorm((16, 16, 16)),
]
STABLE = [nn.BatchNorm3d(2), nn.InstanceNorm3d(2, track_running_stats=True), nn.LocalResponseNorm(2), nn.Identity()]


def normalised(layer: nn.Module) -> nn.Module:
    return nn.Sequential(convolution(2), layer, nn.Conv3d(2, 1, 1))


@pytest.mark.parametrize("layer", UNSTABLE, ids=lambda layer: type(layer).__name__)
def test_a_result_that_depends_on_the_tiles_is_announced(layer):
    name = type(layer).__name__
    message = (
        rf"normalises by the statistics of its input in layer 1 \({name}\).*on the tiles, of which there are 8: pass"
    )
    with pytest.warns(UserWarning, match=message):
        predictor(normalised(layer), passes=1, exact_tile=True)(volume(20, 20, 20))


@pytest.mark.parametrize("layer", STABLE, ids=lambda layer: type(layer).__name__)
def test_layers_with_fixed_statistics_are_used_without_a_warning(layer):
    predictor(normalised(layer), passes=1)(volume(20, 20, 20))


def test_one_tile_that_holds_the_volume_is_the_remedy():
    network, x = normalised(nn.InstanceNorm3d(2)), volume(20, 20, 20)
    for wedge in ("global", "tile"):
        predictor(network, TILTS, tile=24, wedge=wedge)(x)
    with pytest.warns(UserWarning, match="there are 125: pass"):
        predictor(network, TILTS, tile=24, wedge="local", local_tile=8)(x)
