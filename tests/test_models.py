"""Tests of the network, of its use in deepinv, of reading reference checkpoints, and of folding views."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from asserting import assert_close, assert_differs, assert_scale_equivariant, normal
from deepinv.models import ArtifactRemoval
from deepinv.optim import L2, PGD, PnP
from deepinv.physics import GaussianNoise
from einops import rearrange
from torch import Tensor, nn

from equitomo import MissingWedgeOperator
from equitomo.models import ScaleEquivariantUNet3D, TwoViewReconstructor, load_icecream_checkpoint

SHAPES = [(16, 16, 16), (9, 9, 9), (11, 8, 14)]


def network(seed: int = 0, **settings) -> ScaleEquivariantUNet3D:
    torch.manual_seed(seed)
    return ScaleEquivariantUNet3D(**({"width": 4, "levels": 3} | settings)).double()


def textbook(net: ScaleEquivariantUNet3D, x: Tensor) -> Tensor:
    """Apply the reference program's U-Net with the same parameters, in its plainest form."""

    def level(module: nn.Module, u: Tensor) -> Tensor:
        for layer in module.basic_module.values():
            u = F.relu(F.conv3d(u, layer.conv.weight, padding=1))
        return u

    skips = []
    for i, encoder in enumerate(net.encoders):
        x = level(encoder, F.max_pool3d(x, 2) if i else x)
        skips.append(x)
    for skip, decoder in zip(skips[-2::-1], net.decoders, strict=True):
        x = level(decoder, torch.cat((skip, F.interpolate(x, size=skip.shape[-3:], mode="nearest")), dim=1))
    return F.conv3d(x, net.final_conv.weight)


@pytest.mark.parametrize("fused", [True, False])
def test_checkpointing_keeps_less_and_changes_nothing(fused):
    network, x = ScaleEquivariantUNet3D(width=4, levels=3, fused=fused), torch.randn(1, 1, 16, 16, 16)
    kept, gradients = [], []
    for network.checkpointing in (False, True):
        sizes = {}

        def note(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            value = network(x).square().sum()
        kept.append(sum(sizes.values()))
        gradients.append(torch.autograd.grad(value, list(network.parameters())))
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_a_scaled_input_gives_the_output_scaled(shape, fused, residual, unshuffle):
    net = network(fused=fused, residual=residual, unshuffle=unshuffle, negative_slope=0.1 if residual else 0.0)
    assert_scale_equivariant(net, normal(2, 1, *shape))


def test_a_network_with_a_bias_would_not_be_scale_equivariant():
    net = network()
    net.final_conv.bias = nn.Parameter(torch.ones(1, dtype=torch.float64))
    with pytest.raises(AssertionError):
        assert_scale_equivariant(net, normal(1, 1, 8, 8, 8))


def test_the_papers_network_has_15_tensors_and_16_313_248_parameters():
    with torch.device("meta"):
        net = ScaleEquivariantUNet3D()
    parameters = list(net.parameters())
    assert len(parameters) == len(net.state_dict()) == 15
    assert sum(p.numel() for p in parameters) == 16_313_248
    assert net.stride == 8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [True, False])
def test_values_are_those_of_the_textbook_network(shape, fused):
    net, x = network(fused=fused), normal(2, 1, *shape)
    assert_close(net(x), textbook(net, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_textbook_network(shape):
    net, x = network(), normal(1, 1, *shape).requires_grad_()
    inputs = [x, *net.parameters()]
    actual = torch.autograd.grad(net(x).square().sum(), inputs)
    expected = torch.autograd.grad(textbook(net, x).square().sum(), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_the_fused_form_equals_the_plain_one_to_rounding(shape):
    """Both add the same products in another order, so they differ by a few units in the last place, 1.2e-7."""
    fused, plain = network(width=8).float(), network(width=8, fused=False).float()
    x = normal(1, 1, *shape, dtype=torch.float32)
    assert_close(fused(x), plain(x), 1e-6)
    gradients = (torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in (fused, plain))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, 3e-6)


def test_the_fused_form_builds_no_upsampled_maps(monkeypatch):
    calls = []
    original = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    network()(normal(1, 1, 8, 8, 8))
    assert not calls
    network()(normal(1, 1, 8, 8, 9))
    assert len(calls) == 1
    network(fused=False)(normal(1, 1, 8, 8, 8))
    assert len(calls) == 3


@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 7, 9), (4, 17, 6), (21, 10, 13)])
def test_volumes_of_any_size_pass(shape):
    assert network()(normal(1, 1, *shape)).shape == (1, 1, *shape)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 3)])
def test_a_volume_too_small_to_be_pooled_is_refused(shape):
    with pytest.raises(ValueError, match=r"stride 4 needs at least as many voxels along each axis"):
        network()(normal(1, 1, *shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 5}, "`width` must be even and `levels` at least 2, got width 5 and 3 levels"),
        ({"levels": 1}, "`levels` at least 2"),
        ({"width": 0}, "`width` must be even"),
        ({"unshuffle": 0}, "`unshuffle` must be at least 1, got 0"),
        ({"negative_slope": 1.0}, "`negative_slope` must be at least 0 and less than 1, got 1.0"),
        ({"residual": True, "out_channels": 2}, "`in_channels` == `out_channels`, got 1 and 2"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        network(**settings)


def test_other_numbers_of_channels_pass():
    net = network(in_channels=3, out_channels=2)
    x = normal(1, 3, 8, 9, 8)
    assert net(x).shape == (1, 2, 8, 9, 8)
    assert_close(net(x), textbook(net, x))


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_a_shift_by_the_stride_shifts_the_inside_of_the_output(axis):
    net, x = network(width=2, levels=2), normal(1, 1, 32, 32, 32)
    # The outputs compared depend on voxels at most 10 away: 2 + 2 fine ones, 2 + 1 coarse ones, and the shift of 2.
    inside = (..., *(slice(12, 20),) * 3)
    expected = net(x).roll(net.stride, axis)[inside]
    assert_close(net(x.roll(net.stride, axis))[inside], expected)
    assert_differs(net(x.roll(1, axis))[inside], net(x).roll(1, axis)[inside], 1e-3)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_the_memory_format_changes_nothing_beyond_rounding(unshuffle):
    net, x = network(unshuffle=unshuffle), normal(2, 1, 8, 9, 10)
    expected = net(x)
    net = net.to(memory_format=torch.channels_last_3d)
    assert_close(net(x.to(memory_format=torch.channels_last_3d)), expected)


def test_the_input_is_not_changed():
    x = normal(1, 1, 8, 8, 8)
    kept = x.clone()
    network()(x)
    assert torch.equal(x, kept)


# Blocks of voxels as channels


@pytest.mark.parametrize(("unshuffle", "shape"), [(2, (16, 16, 16)), (2, (8, 10, 12)), (3, (12, 15, 18))])
def test_the_network_on_blocks_is_the_plain_one_with_the_voxels_of_a_block_as_channels(unshuffle, shape):
    net = network(in_channels=2, out_channels=3, unshuffle=unshuffle)
    x = normal(2, 2, *shape)
    # Blocks are cut out one offset after the other.
    offsets = [(p, q, r) for p in range(unshuffle) for q in range(unshuffle) for r in range(unshuffle)]
    places = [(..., *(slice(start, None, unshuffle) for start in offset)) for offset in offsets]
    blocks = torch.stack([x[place] for place in places], dim=2).flatten(1, 2)
    expected = textbook(net, blocks).unflatten(1, (3, -1))
    found = net(x)
    for number, place in enumerate(places):
        assert_close(found[place], expected[:, :, number])


def test_a_volume_that_blocks_do_not_fill_is_continued_by_its_last_voxels():
    net, x = network(unshuffle=2), normal(1, 1, 17, 18, 19)
    continued = torch.cat((x, x[:, :, -1:]), dim=2)
    continued = torch.cat((continued, continued[..., -1:]), dim=4)
    assert_close(net(x), net(continued)[:, :, :17, :, :19])


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 11, 15), (8, 33, 10)])
def test_volumes_of_any_size_pass_through_blocks(shape):
    assert network(unshuffle=2)(normal(1, 1, *shape)).shape == (1, 1, *shape)
    with pytest.raises(ValueError, match=r"stride 8 needs at least as many voxels along each axis"):
        network(unshuffle=2)(normal(1, 1, 7, 8, 8))


@pytest.mark.parametrize("axis", [-3, -2, -1])
def test_a_shift_by_the_stride_shifts_the_inside_of_the_output_of_blocks(axis):
    net, x = network(width=2, levels=2, unshuffle=2), normal(1, 1, 48, 48, 48)
    assert net.stride == 4
    # In blocks of two voxels the outputs compared depend on as many as in the test above: 20 voxels away.
    inside = (..., *(slice(22, 26),) * 3)
    expected = net(x).roll(net.stride, axis)[inside]
    assert_close(net(x.roll(net.stride, axis))[inside], expected)
    assert_differs(net(x.roll(2, axis))[inside], net(x).roll(2, axis)[inside], 1e-3)


def test_gradients_go_through_blocks():
    net = network(width=2, levels=2, unshuffle=2)
    x = normal(1, 1, 5, 4, 6).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    gradients = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_network_without_blocks_is_described_as_before_there_were_any():
    assert "unshuffle" not in repr(network())
    assert "unshuffle=2" in repr(network(unshuffle=2))


@pytest.mark.parametrize("fused", [True, False])
def test_only_with_a_slope_do_maps_that_are_negative_everywhere_have_a_gradient(fused):
    x = normal(1, 1, 8, 8, 8)

    def gradient(slope):
        net = network(fused=fused, negative_slope=slope)
        coarsest = net.encoders[-1].basic_module["SingleConv1"].conv.weight
        with torch.no_grad():
            coarsest.copy_(-coarsest.abs())  # its input is not negative
        return torch.autograd.grad(net(x).sum(), coarsest)[0]

    assert gradient(0.0).abs().max() == 0
    assert gradient(0.1).abs().max() > 0


def test_a_slope_multiplies_negative_values_in_the_first_level():
    net, plain, x = network(negative_slope=0.25), network(), normal(1, 1, 8, 8, 8)
    values = net.encoders[0].basic_module["SingleConv1"](x)
    expected = torch.where(values > 0, values, 0.25 * values)
    values = net.encoders[0].basic_module["SingleConv2"](expected)
    assert_close(net.encoders[0](x), torch.where(values > 0, values, 0.25 * values))
    assert "negative_slope=0.25" in repr(net) and "negative_slope" not in repr(plain)


def test_a_residual_network_adds_its_input_to_the_output_of_the_plain_one():
    plain, residual = network(), network(residual=True)
    x = normal(2, 1, 8, 9, 10)
    assert_close(residual(x), x + plain(x))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"residual": True},
        {"in_channels": 3, "out_channels": 2, "levels": 2},
        {"unshuffle": 2},
        {"negative_slope": 0.1},
    ],
)
def test_the_settings_rebuild_a_network_that_computes_the_same(settings):
    net = network(**settings)
    again = ScaleEquivariantUNet3D(**net.settings).double()
    again.load_state_dict(net.state_dict())
    x = normal(1, settings.get("in_channels", 1), 8, 9, 10)
    assert torch.equal(again(x), net(x))
    assert again.settings == net.settings
    assert f"residual={'residual' in settings}" in repr(net)


# As a denoiser of deepinv


@pytest.mark.parametrize("mode", ["adjoint", "pinv", "direct"])
def test_artifact_removal_of_deepinv_takes_the_network(mode):
    physics = MissingWedgeOperator((8, 9, 10), (-60, 60), noise_model=GaussianNoise(0.1)).double()
    net, y = network(), physics.A(normal(2, 1, 8, 9, 10))
    # On measured data the operator, its adjoint and its pseudo-inverse are the identity.
    assert_close(ArtifactRemoval(net, mode=mode)(y, physics), net(y))


def test_a_plug_and_play_iteration_of_deepinv_takes_the_network():
    physics = MissingWedgeOperator((8, 9, 10), (-60, 60)).double()
    net, y = network(residual=True), physics.A(normal(1, 1, 8, 9, 10))
    solver = PGD(data_fidelity=L2(), prior=PnP(net), stepsize=0.5, sigma_denoiser=0.1, max_iter=3)
    with torch.no_grad():
        x = physics.A_adjoint(y)
        for _ in range(3):
            x = net(x - 0.5 * (physics.A(x) - y))
        assert_close(solver(y, physics), x)


@pytest.mark.parametrize("sigma", [0.1, torch.tensor([0.1, 0.2]), None])
def test_the_noise_level_is_ignored(sigma):
    net, x = network(), normal(2, 1, 8, 8, 8)
    assert torch.equal(net(x, sigma), net(x))
    assert torch.equal(net(x, sigma=sigma, update_parameters=False), net(x))


# Checkpoints of the reference program


def put(folder: Path, content: object) -> Path:
    path = folder / "model_iteration_100.pt"
    torch.save(content, path)
    return path


CONTAINERS = {
    "bare": lambda state: state,
    "in a checkpoint": lambda state: {"iteration": 100, "model_state_dict": state, "loss": [0.5]},
    "of a distributed run": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "of a compiled run": lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
    "of two views": lambda state: {"state_dict": {f"module.network.{key}": value for key, value in state.items()}},
    "of both": lambda state: {"model": {f"module._orig_mod.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrap", CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize(("width", "levels"), [(4, 3), (2, 2), (2, 4)])
def test_a_checkpoint_of_the_reference_program_is_read(tmp_path, wrap, width, levels):
    net = network(width=width, levels=levels).float()
    loaded = load_icecream_checkpoint(put(tmp_path, wrap(net.state_dict())))
    x = normal(1, 1, 8, 9, 10, dtype=torch.float32)
    assert torch.equal(loaded(x), net(x))
    assert all(p.requires_grad for p in loaded.parameters())


def test_axes_zyx_permute_the_network_with_the_volume(tmp_path):
    path = put(tmp_path, network().float().state_dict())
    theirs, ours = (load_icecream_checkpoint(path, axes=axes).double() for axes in ("yxz", "zyx"))
    x = normal(1, 1, 8, 12, 16)
    turned = rearrange(theirs(rearrange(x, "b c z y x -> b c y x z")), "b c y x z -> b c z y x")
    assert_close(ours(x), turned)
    assert_differs(ours(x), theirs(x))


def test_unknown_axes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`axes` must be 'yxz' or 'zyx', got 'xyz'"):
        load_icecream_checkpoint(put(tmp_path, network().state_dict()), axes="xyz")


class Malicious:
    """An object whose pickle creates a folder if it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.fault(62)
@pytest.mark.parametrize("by", ["torch", "zip", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, by):
    trace, path = tmp_path / "trace", tmp_path / "model_iteration_1.pt"
    content = {"model": network().state_dict(), "extra": Malicious(trace)}
    if by == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=by == "zip")
    with pytest.raises(ValueError, match="cannot be read safely as a checkpoint"):
        load_icecream_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_refused_with_its_name(tmp_path, zipped):
    path = tmp_path / "model_iteration_1.pt"
    torch.save(network(width=2, levels=2).state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for end in torch.randint(len(whole) - 100, (40,), generator=generator).tolist():
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"model_iteration_1\.pt"):
            load_icecream_checkpoint(path)
    for place in torch.randint(2000, (60,), generator=generator).tolist():
        path.write_bytes(whole[:place] + b"\xff\x00\xff" + whole[place + 3 :])
        try:
            load_icecream_checkpoint(path)
        except ValueError as error:
            assert "model_iteration_1.pt" in str(error)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_icecream_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("axes", ["yxz", "zyx"])
def test_a_network_with_biases_is_refused(tmp_path, axes):
    state = network().state_dict() | {"final_conv.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"trained with biases \(final_conv.bias.*not scale-equivariant"):
        load_icecream_checkpoint(put(tmp_path, state), axes=axes)


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if part not in key}


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {"weights": [1, 2]}, "holds no weights of the reference"),
        (lambda s: torch.zeros(3), "holds no weights of the reference"),
        (lambda s: without(s, "encoders"), "holds no encoder"),
        (lambda s: without(s, "decoders.0"), "does not fit a U-Net of width 4 with 3 levels"),
        (lambda s: s | {"final_conv.weight": torch.zeros(1, 6, 1, 1, 1)}, "does not fit a U-Net of width 6"),
        (lambda s: s | {"final_conv.weight": torch.zeros(())}, "holds no encoder"),
        (
            lambda s: s | {"final_conv.weight": torch.zeros(1).expand(1, 10**9, 1, 1, 1)},
            "does not fit a U-Net of width 1",
        ),
        (lambda s: s | {"extra": torch.zeros(1)}, "does not fit a U-Net of width 4"),
    ],
)
def test_a_state_of_another_network_is_refused(tmp_path, spoil, message):
    with pytest.raises(ValueError, match=rf"model_iteration_100.pt {message}"):
        load_icecream_checkpoint(put(tmp_path, spoil(network().state_dict())))


# Two views


def test_views_are_reconstructed_one_by_one():
    net, y = network(), normal(3, 2, 8, 9, 8)
    model = TwoViewReconstructor(net)
    expected = torch.stack([torch.cat([net(view[None, None])[0] for view in sample]) for sample in y])
    assert_close(model(y), expected)


@pytest.mark.parametrize("views", [1, 3])
def test_any_number_of_views_passes(views):
    assert TwoViewReconstructor(network())(normal(2, views, 8, 8, 8)).shape == (2, views, 8, 8, 8)


@pytest.mark.parametrize("out_channels", [1, 3, 2])
def test_the_channels_of_a_view_are_adjacent_and_go_through_the_network_together(out_channels):
    net, y = network(in_channels=3, out_channels=out_channels), normal(2, 6, 8, 9, 8)
    answer = TwoViewReconstructor(net, channels=3)(y)
    assert answer.shape == (2, 2 * out_channels, 8, 9, 8)
    assert_close(answer[:, :out_channels], net(y[:, :3]))
    assert_close(answer[:, out_channels:], net(y[:, 3:]))


def test_views_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"`y` must be \(batch, views \* 2, z, y, x\)"):
        TwoViewReconstructor(network(in_channels=2), channels=2)(normal(1, 3, 8, 8, 8))
    with pytest.raises(ValueError, match="`channels` must be positive, got 0"):
        TwoViewReconstructor(network(), channels=0)


@pytest.mark.parametrize("reduce", [lambda x: x.mean((-1, -2, -3)), lambda x: x.sum(0, keepdim=True)])
def test_a_network_that_does_not_return_a_volume_per_view_is_refused(reduce):
    class Reducing(nn.Module):
        def forward(self, x):
            return reduce(x)

    with pytest.raises(ValueError, match=r"the network must map \(4, 1, 8, 8, 8\) to \(4, out_channels, z, y, x\)"):
        TwoViewReconstructor(Reducing())(normal(2, 2, 8, 8, 8))


def test_views_share_one_call():
    net, batches = network(), []
    net.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    TwoViewReconstructor(net)(normal(3, 2, 8, 8, 8))
    assert batches == [6]


def test_under_autocast_the_output_has_the_precision_of_the_input():
    net = network().float()
    seen = []
    net.final_conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = TwoViewReconstructor(net)(normal(1, 2, 8, 8, 8, dtype=torch.float32))
    assert seen == [torch.bfloat16]
    assert answer.dtype == torch.float32


def test_the_reconstructor_ignores_the_physics():
    model, y = TwoViewReconstructor(network()), normal(1, 2, 8, 8, 8)
    assert torch.equal(model(y, physics=None), model(y, object()))


@pytest.mark.fault(73)
def test_a_measurement_that_is_not_a_batch_of_volumes_is_refused():
    with pytest.raises(ValueError, match="y must be a non-empty batch of volumes"):
        TwoViewReconstructor(network())(normal(2, 8, 8, 8))
