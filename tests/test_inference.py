"""Prediction of whole tomograms: tiles leave no trace, and volumes of any kind go in and come out."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from asserting import assert_close, assert_differs, normal
from torch import Tensor, nn

from equitomo.geometry import TiltGeometry
from equitomo.inference import Footprint, TiledPredictor
from equitomo.models import ScaleEquivariantUNet3D, TwoViewReconstructor
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.symmetry import MirrorAveraged
from equitomo.tiling import Tiling

TILTS = (-60.0, 40.0)


class Identity(nn.Module):
    """A network of stride eight that returns its input."""

    stride = 8

    def forward(self, x: Tensor) -> Tensor:
        return x


class Convolutions(nn.Module):
    """Two convolutions, each with a leaky rectifier: a voxel sees two voxels in every direction."""

    reach = 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(2, 1, 1, 3, 3, 3, generator=generator) / 4
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = nn.functional.leaky_relu(nn.functional.conv3d(x, weight, padding=1), 0.3)
        return x


def volume(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float32)


def reflected(x: Tensor, front: int, back: int) -> Tensor:
    return torch.from_numpy(np.pad(x.numpy(), [(front, back)] * 3, mode="reflect"))


def whole(network: nn.Module, x: Tensor, front: int = 16, back: int = 16) -> Tensor:
    """Apply the network to the whole volume, reflected beyond its borders."""
    z, y, n = (slice(front, front + length) for length in x.shape)
    with torch.no_grad():
        return network(reflected(x, front, back)[None, None])[0, 0, z, y, n]


def predictor(network: nn.Module, physics=TILTS, **settings) -> TiledPredictor:
    return TiledPredictor(network, physics, **({"tile": 32, "margin": 8, "precision": "float32"} | settings))


@pytest.mark.parametrize("side", range(33, 81))
def test_the_identity_returns_every_voxel_of_every_size(side):
    x = volume(side, 113 - side, 33 + (7 * side) % 48)
    assert_close(predictor(Identity(), passes=1)(x), x, 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 50), (5, 70, 3), (16, 16, 16), (100, 9, 33)])
@pytest.mark.parametrize("settings", [{}, {"margin": 5, "blend": 6}, {"margin": 0, "blend": 8}, {"border": "zero"}])
def test_the_identity_returns_thin_and_small_volumes(shape, settings):
    x = volume(*shape)
    assert_close(predictor(Identity(), passes=1, **settings)(x), x, 1e-6)


@pytest.mark.parametrize("shape", [(40, 40, 40), (37, 37, 37), (20, 45, 33)])
def test_tiles_with_the_margin_a_network_needs_leave_no_trace(shape):
    network, x = Convolutions(), volume(*shape)
    tiled = predictor(network, passes=1, tile=16, margin=Convolutions.reach)(x)
    assert_close(tiled, whole(network, x), 1e-6)
    assert_differs(predictor(network, passes=1, tile=16, margin=0)(x), tiled, 1e-2)


@pytest.mark.parametrize(("shape", "back"), [((24, 24, 24), 16), ((23, 23, 23), 17), ((27, 13, 31), 17)])
@pytest.mark.parametrize("blend", [0, 3])
def test_a_pooling_network_leaves_no_trace_because_tiles_start_on_its_stride(shape, back, blend):
    torch.manual_seed(0)
    network, x = ScaleEquivariantUNet3D(width=2, levels=2), volume(*shape)
    # Two convolutions before, two of twice the reach between and two after the pooling by 2 see 10 voxels far.
    tiled = predictor(network, passes=1, tile=32, margin=10, blend=blend)(x)
    # The front is a multiple of the stride, the back makes the whole one: the pooling then has the tiles' phase.
    assert_close(tiled, whole(network, x, 16, back), 1e-5)


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
def test_a_global_wedge_acts_on_the_whole_volume_between_two_tiled_passes(kind):
    network, x = Convolutions(), volume(36, 20, 40)
    physics = kind(x.shape, TILTS)
    tiled = predictor(network, physics, tile=16, margin=2, wedge="global")(x)
    expected = whole(network, physics.A(whole(network, x)[None, None])[0, 0])
    assert_close(tiled, expected, 1e-5)
    assert_differs(predictor(network, physics, tile=16, margin=2, wedge="tile")(x), tiled, 1e-2)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
def test_with_the_identity_a_global_wedge_is_the_operator_applied_between_passes(kind, passes):
    x = volume(36, 20, 40)
    expected = x[None, None]
    for _ in range(passes - 1):
        expected = kind(x.shape, TILTS).A(expected)
    actual = predictor(Identity(), kind((8, 8, 8), TILTS), passes=passes, wedge="global")(x)
    assert_close(actual, expected[0, 0], 1e-5)


@pytest.mark.parametrize("passes", [2, 3])
def test_a_wedge_within_tiles_is_the_operator_of_their_size(passes):
    network, x = Convolutions(), volume(16, 16, 16)
    physics = PaddedMissingWedgeOperator((16, 16, 16), TILTS)
    actual = predictor(network, physics, tile=16, margin=0, wedge="tile", passes=passes, stride=16)(x)
    with torch.no_grad():
        expected = network(x[None, None])
        for _ in range(passes - 1):
            expected = network(physics.A(expected))
    assert_close(actual, expected[0, 0], 1e-5)


@pytest.mark.parametrize("kind", [MissingWedgeOperator, PaddedMissingWedgeOperator])
@pytest.mark.parametrize("shape", [(24, 16, 40), (21, 30, 17)])
def test_a_local_wedge_fills_the_first_pass_s_with_that_of_small_tiles(kind, shape):
    """The equation, with the network applied to the tiles by hand."""
    network, x = Convolutions(), volume(*shape)
    physics, small = kind(shape, TILTS), kind((16, 16, 16), TILTS)
    once = whole(network, x)
    second = torch.zeros(shape)
    with torch.no_grad():
        for placement in Tiling(shape, 16, 2, 8, 4):
            tile = network(small.A(torch.from_numpy(placement.read(once.numpy()))[None, None]))[0, 0]
            second[placement.target] += tile[placement.core] * torch.from_numpy(placement.weight)
    expected = second + physics.A((once - second)[None, None])[0, 0]
    actual = predictor(network, physics, margin=Convolutions.reach, wedge="local", local_tile=16, stride=8)(x)
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(("stride", "side"), [(1, 16), (8, 16), (16, 32)])
def test_a_second_pass_in_small_tiles_fits_any_stride_by_default(stride, side):
    x = volume(40, 36, 33)
    settings = {"tile": 48, "margin": 8, "stride": stride}
    expected = predictor(Convolutions(), wedge="local", local_tile=side, **settings)(x)
    assert torch.equal(predictor(Convolutions(), **settings)(x), expected)


@pytest.mark.parametrize("passes", [2, 3])
def test_a_local_wedge_leaves_the_measured_part_of_the_first_pass(passes):
    """Exactly where the operator is a projection: what is measured is never taken from a later pass."""
    network, x = Convolutions(), volume(32, 24, 30)
    physics = MissingWedgeOperator(x.shape, TILTS)
    once, more = (
        predictor(network, physics, passes=n, wedge="local", local_tile=16)(x)[None, None] for n in (1, passes)
    )
    assert_close(physics.A(more), physics.A(once), 1e-5)
    assert_differs(more - physics.A(more), once - physics.A(once), 0.1)


@pytest.mark.parametrize("geometry", [TILTS, TiltGeometry.from_range(*TILTS, tilt_axis="x")], ids=["pair", "geometry"])
def test_a_geometry_stands_for_the_padded_operator(geometry):
    x = volume(20, 24, 28)
    expected = predictor(Identity(), PaddedMissingWedgeOperator((9, 9, 9), geometry), wedge="global")(x)
    assert torch.equal(predictor(Identity(), geometry, wedge="global")(x), expected)
    assert_close(expected, PaddedMissingWedgeOperator(x.shape, geometry).A(x[None, None])[0, 0], 1e-5)


def test_an_operator_of_the_volumes_shape_is_used_with_its_own_mask():
    x = volume(20, 24, 28)
    physics = MissingWedgeOperator(x.shape, TILTS)
    physics.update(mask=0.5 * physics.mask)
    assert_close(predictor(Identity(), physics, wedge="global")(x), physics.A(x[None, None])[0, 0], 1e-5)


@pytest.mark.parametrize("wedge", ["local", "global", "tile"])
@pytest.mark.parametrize("batch", [2, 7, 100])
def test_the_number_of_tiles_in_a_call_changes_nothing_beyond_rounding(batch, wedge):
    x, sizes, network = volume(30, 20, 25), [], Convolutions()
    expected = predictor(network, tile=16, margin=2, wedge=wedge)(x)
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    assert_close(predictor(network, tile=16, margin=2, wedge=wedge, batch=batch)(x), expected, 1e-6)
    assert 1 < max(sizes) <= batch


@pytest.mark.parametrize("wedge", ["local", "global", "tile"])
def test_two_halves_are_averaged(wedge):
    first, second = volume(20, 25, 30), volume(20, 25, 30, seed=1)
    predict = predictor(Convolutions(), tile=16, margin=2, wedge=wedge)
    assert_close(predict(first, second), (predict(first) + predict(second)) / 2, 1e-6)


def test_two_halves_may_be_averaged_before_the_network():
    first, second, calls = volume(20, 25, 30), volume(20, 25, 30, seed=1), []
    network = Convolutions()
    once = predictor(network, tile=16, margin=2, average_first=True)
    twice = predictor(network, tile=16, margin=2)
    assert_close(once(first, second), twice((first + second) / 2), 1e-6)
    assert torch.equal(once(first), twice(first))
    network.register_forward_hook(lambda module, inputs, output: calls.append(1))
    once(first, second)
    halved = len(calls)
    twice(first, second)
    assert len(calls) == 3 * halved


@pytest.mark.parametrize("wedge", ["local", "global", "tile"])
def test_leading_axes_hold_separate_volumes(wedge):
    x = volume(2, 3, 12, 20, 18)
    predict = predictor(Convolutions(), tile=16, margin=2, wedge=wedge)
    separate = torch.stack([torch.stack([predict(v) for v in row]) for row in x])
    assert_close(predict(x), separate, 1e-6)
    assert_close(predict(x, x.flip(0)), (separate + separate.flip(0)) / 2, 1e-6)


@pytest.mark.fault(72)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int16])
def test_a_tensor_of_any_type_gives_a_float32_tensor(dtype):
    x = (8 * volume(20, 18, 22)).to(dtype)
    kept = x.clone()
    out = predictor(Identity(), passes=1)(x)
    assert isinstance(out, Tensor)
    assert out.dtype == torch.float32
    assert_close(out, x.float(), 1e-6)
    assert torch.equal(x, kept)


ARRAYS = {
    "float32": lambda a, folder: a,
    "float64": lambda a, folder: a.astype(np.float64),
    "float16": lambda a, folder: a.astype(np.float16),
    "int16": lambda a, folder: (100 * a).astype(np.int16),
    "big-endian": lambda a, folder: a.astype(">f4"),
    "reversed": lambda a, folder: a[::-1, :, ::-1],
    "fortran": lambda a, folder: np.asfortranarray(a),
    "strided": lambda a, folder: np.repeat(a, 2, axis=1)[:, ::2],
    "read-only": lambda a, folder: read_only(a),
    "memory map": lambda a, folder: memory_map(a, folder / "volume.raw"),
}


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def memory_map(array, path):
    array.tofile(path)
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


@pytest.mark.fault(72)
@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS.keys())
@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_an_array_of_any_kind_gives_a_float32_array(make, border, tmp_path):
    x = make(volume(34, 20, 45).numpy(), tmp_path)
    out = predictor(Identity(), passes=1, border=border)(x)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, x.astype(np.float32), rtol=0, atol=1e-5)


@pytest.mark.fault(72)
def test_a_tensor_that_requires_a_gradient_is_predicted_without_one():
    x = volume(12, 12, 12).requires_grad_()
    out = predictor(Convolutions(), tile=16, margin=2)(x)
    assert not out.requires_grad
    assert torch.equal(out, predictor(Convolutions(), tile=16, margin=2)(x.detach()))


def test_a_result_can_be_used_in_training():
    """It is no inference tensor, although the network ran in inference mode."""
    out = predictor(Convolutions(), tile=16, margin=2)(volume(12, 12, 12))
    (out * torch.ones((), requires_grad=True)).sum().backward()


def test_the_network_runs_in_evaluation_mode_and_gets_its_modes_back():
    frozen = nn.Sequential(nn.Dropout(0.9), nn.Dropout(0.9))
    frozen[1].eval()
    x = volume(12, 12, 12)
    assert_close(predictor(frozen, passes=1, stride=8)(x), x, 1e-6)
    assert (frozen.training, frozen[0].training, frozen[1].training) == (True, True, False)


def test_a_network_that_fails_gets_its_mode_back():
    network = nn.Sequential(nn.Conv3d(2, 1, 1))
    with pytest.raises(RuntimeError, match="channels"):
        predictor(network, passes=1)(volume(12, 12, 12))
    assert network.training


def test_a_reconstructor_gives_its_network():
    network, x = Convolutions(), volume(12, 20, 12)
    expected = predictor(network, tile=16, margin=2)(x)
    assert torch.equal(predictor(TwoViewReconstructor(network), tile=16, margin=2)(x), expected)


def test_the_stride_is_the_networks_unless_one_is_given():
    assert predictor(Identity()).stride == 8
    assert predictor(Convolutions()).stride == 1
    assert predictor(Identity(), stride=4).stride == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_network_computes_in_the_type_of_its_parameters(dtype):
    network, x, seen = Convolutions(), volume(12, 12, 12), []
    expected = predictor(network, tile=16, margin=2)(x)
    network.to(dtype).register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    out = predictor(network, tile=16, margin=2)(x)
    assert set(seen) == {dtype}
    assert_close(out, expected, 1e-6 if dtype == torch.float64 else 0.05)


def test_the_precision_is_that_of_the_network_alone():
    x, seen = volume(12, 12, 12), []
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1, bias=False))
    network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    out = predictor(network, tile=16, margin=2, precision="bfloat16")(x)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert out.dtype == torch.float32
    assert_close(out, predictor(network, tile=16, margin=2)(x), 0.03)


@pytest.mark.parametrize(("wedge", "runs"), [("global", 4), ("tile", 2)])
def test_progress_counts_tiles_up_to_their_total(wedge, runs):
    calls = []
    predict = predictor(Identity(), wedge=wedge, batch=3, tile=16, margin=0)
    x = volume(20, 20, 16)
    predict(x, x, progress=lambda done, total: calls.append((done, total)))
    total = 4 * runs
    assert calls == [(min(done, 4) + 4 * run, total) for run in range(runs) for done in (3, 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "`passes` and `batch` must be at least 1, got 0 and 1"),
        ({"batch": 0}, "`passes` and `batch` must be at least 1, got 2 and 0"),
        ({"wedge": "nowhere"}, "`wedge` is 'local', 'global' or 'tile', got 'nowhere'"),
        ({"local_tile": 20}, "`local_tile`: a tile must be a multiple of the network's stride 8, got 20"),
        ({"local_tile": 0}, "`local_tile`: .* leaves no core of 8 voxels"),
        ({"tile": 30}, "a tile must be a multiple of the network's stride 8, got 30: use 24 or 32"),
        ({"tile": 16, "margin": 8}, "leaves no core of 8 voxels"),
        ({"blend": 16}, "leaves no core of 8 voxels"),
        ({"margin": 0, "blend": 30}, "leaves no core of 8 voxels"),
        ({"precision": "float8"}, "`precision` must be one of auto, float32"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_volume(settings, message):
    with pytest.raises(ValueError, match=message):
        predictor(Identity(), **settings)


@pytest.mark.fault(22, 73)
@pytest.mark.parametrize(
    ("halves", "message"),
    [
        ((torch.ones(9, 9),), r"a volume \(..., z, y, x\) is needed, got shape \(9, 9\)"),
        ((torch.ones(0, 9, 9),), r"is needed, got shape \(0, 9, 9\)"),
        ((torch.ones(9, 9, 9), torch.ones(9, 9, 8)), r"the halves differ in shape: \(9, 9, 9\) and \(9, 9, 8\)"),
    ],
)
def test_volumes_that_are_none_are_refused(halves, message):
    with pytest.raises(ValueError, match=message):
        predictor(Identity())(*halves)


@pytest.mark.parametrize(("tile", "margin", "blend"), [(128, 24, 8), (96, 16, 8), (72, 18, 0), (16, 4, 0)])
def test_large_tiles_fade_into_each_other_unless_blend_is_zero(tile, margin, blend):
    predictor = TiledPredictor(torch.nn.Identity(), (-60, 60), tile=tile, margin=margin)
    assert predictor.layout.blend == blend
    assert TiledPredictor(torch.nn.Identity(), (-60, 60), tile=tile, margin=margin, blend=0).layout.blend == 0


@pytest.mark.parametrize(
    ("gigabytes", "width", "settings", "tile"),
    [
        # The paper's network in float32 on a host of 8 GB, of 24 GB and of 128 GB.
        (1, 64, {}, 112),
        (3, 64, {}, 128),
        (16, 64, {}, 232),
        (100, 64, {}, 240),
        (3, 16, {}, 208),
        (3, 16, {"margin": 80}, 224),
        (3, 16, {"tile": 64}, 64),
        (1, 16, {"levels": 5}, 144),
    ],
)
def test_tiles_are_as_large_as_the_memory_holds_comfortably(monkeypatch, gigabytes, width, settings, tile):
    # An eighth of the host's memory is what tiles may take.
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=8 * gigabytes * 10**9))
    with torch.device("meta"):
        network = ScaleEquivariantUNet3D(width=width, levels=settings.get("levels", 4))
    replica = MirrorAveraged(network.to_empty(device="cpu"), (-60, 60))
    given = {name: value for name, value in settings.items() if name != "levels"}
    assert TiledPredictor(replica, (-60, 60), precision="float32", **given).tile == tile


@pytest.mark.parametrize("wedge", ["local", "global"])
def test_a_full_tomogram_takes_two_gibibytes_with_the_largest_default_tile(wedge):
    """The libraries take half of one gibibyte themselves."""
    predictor = TiledPredictor(torch.nn.Identity(), (-60, 60), tile=240, stride=8, wedge=wedge)
    assert Footprint.of(predictor, (464, 928, 928)).memory <= 1.5 * 2**30


def test_a_network_that_does_not_state_its_memory_has_tiles_of_128():
    assert TiledPredictor(torch.nn.Identity(), (-60, 60)).tile == 128
    assert TiledPredictor(torch.nn.Identity(), (-60, 60), stride=48).tile == 96 + 48


# Several devices


class Uneven(Convolutions):
    """A network that is slower than its copies, so that tiles are finished in another order than they are started."""

    def __deepcopy__(self, memo):
        return Convolutions()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(x)


@pytest.mark.parametrize("wedge", ["local", "global", "tile"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n_devices", [2, 3])
def test_several_devices_give_what_one_gives(wedge, batch, n_devices):
    x, y = volume(37, 20, 40), volume(37, 20, 40, seed=1)
    # Up to eight tiles add up at a voxel, and how that is rounded depends on their order.
    settings = {"tile": 16, "margin": 2, "blend": 6, "wedge": wedge, "batch": batch}
    expected = predictor(Convolutions(), **settings)(x, y)
    found = predictor(Uneven(), devices=["cpu"] * n_devices, **settings)(x, y)
    # Transforms of several tiles may be rounded differently.
    assert_close(found, expected, 0 if batch == 1 and wedge != "local" else 1e-6)


class Meeting(Identity):
    """A network that computes only while another copy does."""

    both = threading.Barrier(2)

    def forward(self, x: Tensor) -> Tensor:
        self.both.wait(100)
        return x


def test_two_devices_work_at_the_same_time():
    x = volume(16, 16, 32)
    assert_close(predictor(Meeting(), passes=1, tile=16, margin=0, devices=["cpu", "cpu"])(x), x, 1e-6)


def test_copies_have_the_weights_of_the_moment():
    network, x = Convolutions(), volume(16, 16, 40)
    predict = predictor(network, tile=16, margin=2, devices=["cpu", "cpu"])
    with torch.no_grad():
        network.weights *= 0.5
    assert_close(predict(x), predictor(network, tile=16, margin=2)(x), 1e-6)


def test_a_failure_on_one_device_ends_the_work():
    network = nn.Sequential(nn.Conv3d(2, 1, 1))
    with pytest.raises(RuntimeError, match="channels"):
        predictor(network, passes=1, tile=16, margin=0, devices=["cpu", "cpu"])(volume(16, 16, 40))
    assert network.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_more_devices_hold_more_tiles_at_once():
    one, two = (Footprint.of(predictor(Identity(), passes=1, devices=["cpu"] * n), (64,) * 3) for n in (1, 2))
    assert 2 * one.memory < two.memory < 4 * one.memory


def test_no_device_is_refused():
    with pytest.raises(ValueError, match="`devices` must name at least one"):
        predictor(Identity(), devices=[])
