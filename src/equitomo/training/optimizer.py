"""The optimisers of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from equitomo.training.config import OptimiserSettings

# Momentum, number and coefficients of the Newton-Schulz iterations are those of Jordan et al. The factor that makes a
# step as large as the usual one of Adam is that of Liu et al.
_MOMENTUM, _ITERATIONS, _NEWTON_SCHULZ, _LIKE_ADAM = 0.95, 5, (3.4445, -4.7750, 2.0315), 0.2


def optimizer_for(network: nn.Module, config: OptimiserSettings) -> torch.optim.Optimizer:
    """Return the configured optimiser, whose step changes nothing while its attribute ``found_inf`` is 1."""
    if config.optimizer == "muon":
        return KernelMuon(network.parameters(), config.learning_rate)
    return torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimiser under the names of the network's parameters."""
    return {
        f"{name}.{quantity}": value
        for name, parameter in network.named_parameters()
        for quantity, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that :func:`optimizer_tensors` returned, on the devices of the parameters."""
    for key, value in tensors.items():
        name, _, quantity = key.rpartition(".")
        parameter = network.get_parameter(name)
        # Take the memory layout of the parameter if the shapes agree.
        like = parameter.detach() if value.shape == parameter.shape else value
        optimizer.state[parameter][quantity] = torch.empty_like(like, device=parameter.device).copy_(value)


class KernelMuon(torch.optim.Optimizer):
    r"""Apply Muon to convolution kernels, each taken as a matrix from its inputs and taps to its output maps.

    The momentum of each matrix is orthogonalised before it is applied (Jordan et al., "Muon: an optimizer for hidden
    layers in neural networks", 2024), so that all directions in a kernel learn alike. The step size is that of Adam,
    scaled as in Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982. Biases, the scales of
    normalisations and kernels with a single map or a single input are vectors and learn with Adam.

    ``torch.optim.Muon`` orthogonalises in bfloat16. There a difference in the last bit of a gradient, which depends on
    the order of a sum over the batch, can grow to a hundredth of a step. It also takes matrices only and cannot skip a
    step. Here everything is float32, matrices are views of the kernels, and ``found_inf`` skips a step without waiting
    for the device, as it does for the fused Adam.

    Parameters
    ----------
    parameters
        Parameters of any shape, kernels as ``(out, in, z, y, x)``, on the device and in the memory layout that they
        keep.
    lr
        Step size.

    Examples
    --------
    >>> network = torch.nn.Conv3d(2, 4, 3)
    >>> optimizer = KernelMuon(network.parameters(), lr=1e-3)
    >>> network(torch.randn(1, 2, 8, 8, 8)).square().mean().backward()
    >>> optimizer.step()
    """

    # GradScaler then hands over ``found_inf`` in place of reading it.
    _step_supports_amp_scaling = True

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        parameters = list(parameters)
        super().__init__(parameters, {"lr": lr})
        self._matrices = {p: _matrix(p.detach(), p) for p in parameters if _is_matrix(p)}
        if any(matrix.data_ptr() != p.data_ptr() for p, matrix in self._matrices.items()):
            raise ValueError("kernels must be contiguous, or contiguous with channels last")
        for parameter, matrix in self._matrices.items():
            self.state[parameter] = {"momentum_buffer": torch.zeros_like(matrix)}
        rest = [p for p in parameters if p not in self._matrices]
        self._adam: torch.optim.Adam | None = None
        if rest:
            self._adam = torch.optim.Adam(rest, lr=lr, fused=True)
            self.state.update((parameter, self._adam.state[parameter]) for parameter in rest)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Do one update of all parameters that have a gradient."""
        lr, device = self.param_groups[0]["lr"], self.param_groups[0]["params"][0].device
        bad = getattr(self, "found_inf", None)
        bad = torch.zeros((), device=device) if bad is None else bad
        for parameter, matrix in self._matrices.items():
            if parameter.grad is None:
                continue
            momentum = self.state[parameter]["momentum_buffer"]
            # In a step that is skipped the momentum replaces the gradient, and so stays as it is.
            gradient = torch.where(bad > 0, momentum, _matrix(parameter.grad, parameter))
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            direction = _orthogonal(gradient.lerp(momentum, _MOMENTUM))
            matrix.sub_(torch.where(bad > 0, 0, lr * _LIKE_ADAM * math.sqrt(max(matrix.shape)) * direction))
        if self._adam is not None:
            self._adam.param_groups[0]["lr"] = lr
            vars(self._adam).update(grad_scale=None, found_inf=bad)
            self._adam.step()


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) > 1


def _matrix(kernel: Tensor, like: Tensor) -> Tensor:
    """Return ``(out, in, z, y, x)`` as ``(out, inputs and taps)``, in the order in which ``like`` lies in memory."""
    if like.ndim == 5 and like.is_contiguous(memory_format=torch.channels_last_3d):
        kernel = kernel.permute(0, 2, 3, 4, 1)
    return kernel.flatten(1)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values brought near 1, between about 0.7 and 1.2."""
    # Each iteration multiplies by a polynomial of the Gram matrix. These polynomials commute, so they are multiplied
    # with each other first: that takes two products with the matrix itself, which is many times wider than high,
    # instead of ten.
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.T
    identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    product = identity
    for _ in range(_ITERATIONS):
        linear, cubic, quintic = _NEWTON_SCHULZ
        factor = linear * identity + cubic * gram + quintic * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    wide = cast(Tensor, product @ wide)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
