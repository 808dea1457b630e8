"""Muon on kernels: the orthogonal direction, whatever the memory layout, and steps that change nothing."""

import copy
import math

import pytest
import torch
from torch import nn

from equitomo.training.optimizer import KernelMuon

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels last"])


def kernels(layout=torch.contiguous_format):
    """Two kernels that are matrices, wide and tall, and one with a single map."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 4, 3, 3, 3), (40, 1, 3, 3, 3), (1, 6, 1, 1, 1)]
    return [nn.Parameter(torch.randn(s, generator=generator).to(memory_format=layout)) for s in shapes]


def give_gradients(parameters, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = scale * torch.randn(p.shape, generator=generator)


def values(parameters):
    return [p.detach().clone() for p in parameters]


@each_layout
def test_the_first_step_goes_along_the_nearest_orthogonal_matrix(layout):
    parameters = kernels(layout)
    before, lr = values(parameters), 0.01
    give_gradients(parameters)
    KernelMuon(parameters, lr).step()
    for old, p in list(zip(before, parameters, strict=True))[:2]:
        taken, gradient = ((old - p).detach().flatten(1), p.grad.flatten(1))
        u, _, v = torch.linalg.svd(gradient, full_matrices=False)
        along = torch.diagonal(u.T @ taken @ v.T) / (lr * 0.2 * math.sqrt(max(gradient.shape)))
        # Five Newton-Schulz iterations leave singular values between about .7 and 1.2.
        assert along.min() > 0.6
        assert along.max() < 1.3
        assert (taken - u @ torch.diag(torch.diagonal(u.T @ taken @ v.T)) @ v).norm() < 0.1 * taken.norm()


def test_the_scale_of_a_gradient_does_not_matter_to_a_matrix():
    one, other = kernels(), kernels()
    for parameters, scale in ((one, 1.0), (other, 1024.0)):
        give_gradients(parameters, scale=scale)
        KernelMuon(parameters, 0.01).step()
    assert all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


VECTORS = {
    "a kernel with one map": (1, 6, 1, 1, 1),
    "a kernel with one input and one tap": (6, 1, 1, 1, 1),
    "a bias": (6,),
    "a number": (),
}


@each_layout
@pytest.mark.parametrize("shape", VECTORS.values(), ids=VECTORS.keys())
def test_vectors_learn_with_adam(layout, shape):
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    parameters = [*kernels(layout), nn.Parameter(vector.clone())]
    alone = nn.Parameter(vector.clone())
    mine, adam = KernelMuon(parameters, 0.01), torch.optim.Adam([alone], lr=0.01, fused=True)
    for seed in range(3):
        give_gradients(parameters, seed)
        alone.grad = parameters[-1].grad.clone()
        mine.step()
        adam.step()
    assert torch.equal(parameters[-1], alone)


def test_parameters_of_any_shape_learn_together_and_alone():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 1, 1))
    for parameters in (list(network.parameters()), [network[0].weight], [network[0].bias]):
        before = values(parameters)
        optimizer = KernelMuon(parameters, 0.01)
        give_gradients(parameters)
        optimizer.step()
        assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_a_matrix_is_orthogonalised_as_it_is():
    """The weights of a linear layer."""
    parameter = nn.Parameter(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)))
    kernel = nn.Parameter(parameter.detach().reshape(6, 9, 1, 1, 1).clone())
    for p in (parameter, kernel):
        give_gradients([p])
        KernelMuon([p], 0.01).step()
    torch.testing.assert_close(parameter, kernel.reshape(6, 9))


def test_memory_layout_changes_rounding_only():
    moved = []
    for layout in LAYOUTS:
        parameters = kernels(layout)
        before = values(parameters)
        optimizer = KernelMuon(parameters, 0.01)
        for seed in range(3):
            give_gradients(parameters, seed)
            optimizer.step()
        moved.append([p.detach() - old for p, old in zip(parameters, before, strict=True)])
    for one, other in zip(*moved, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()


def test_rounding_of_a_gradient_stays_rounding():
    """It then does not matter how a batch was split. In sixteen bits rounding becomes a hundredth of the step."""
    one, other = kernels(), kernels()
    start = values(one)
    give_gradients(one)
    give_gradients(other)
    generator = torch.Generator().manual_seed(7)
    for p in other:
        p.grad *= 1 + 1e-7 * torch.randn(p.shape, generator=generator)
    for parameters in (one, other):
        KernelMuon(parameters, 0.01).step()
    for a, b, old in zip(one[:2], other[:2], start[:2], strict=True):
        assert (a - b).norm() < 1e-5 * (a - old).norm()


def test_steps_are_those_of_torch_s_muon_but_for_its_sixteen_bits():
    mine = kernels()
    theirs = [nn.Parameter(p.detach().flatten(1).clone()) for p in mine[:2]]
    start, lr = values(theirs), 0.01
    optimizers = [
        KernelMuon(mine, lr),
        torch.optim.Muon(theirs, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for seed in range(3):
        give_gradients(mine, seed)
        for p, q in zip(mine, theirs, strict=False):
            q.grad = p.grad.flatten(1).clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q, old in zip(mine, theirs, start, strict=False):
        assert (p.flatten(1) - q).norm() < 0.02 * (q - old).norm()


@each_layout
@pytest.mark.parametrize("already", [0, 2])
def test_a_bad_step_changes_nothing_and_leaves_no_trace(layout, already):
    parameters = kernels(layout)
    optimizer = KernelMuon(parameters, 0.01)
    for seed in range(already):
        give_gradients(parameters, seed)
        optimizer.step()
    before, state = values(parameters), copy.deepcopy([optimizer.state[p] for p in parameters])
    give_gradients(parameters, scale=float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    for p, old in zip(parameters, state, strict=True):
        assert all(torch.equal(optimizer.state[p][key], value) for key, value in old.items())
    optimizer.found_inf = torch.zeros(())
    give_gradients(parameters)
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_the_step_size_is_read_at_every_step():
    parameters = kernels()
    before = values(parameters)
    optimizer = KernelMuon(parameters, 0.01)
    optimizer.param_groups[0]["lr"] = 0.0
    give_gradients(parameters)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_kernels_that_are_no_matrices_in_memory_are_refused():
    cut = nn.Parameter(torch.randn(4, 2, 3, 3, 6)[..., :3])
    with pytest.raises(ValueError, match="kernels must be contiguous"):
        KernelMuon([cut, *kernels()], 0.01)
