"""Compare the training step with the reference program's formulation: ``python -m benchmarks.step [SIDE WIDTH BATCH]``.

Runs of both are interleaved on one thread. The table has process times and medians of the ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.reference import ReferenceStep
from equitomo import (
    CubeRotationGroup,
    MaskedEquivarianceLoss,
    MissingWedgeOperator,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    TrainingConfig,
    TwoViewReconstructor,
)
from equitomo.loss import mean_square, measured_inside, measured_mean_square
from equitomo.methods import method_of

GEOMETRY = (-60.0, 60.0)
ROUNDS = 7


class _PointWise(nn.Module):
    """Almost no network, to measure everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def main(side: int = 48, width: int = 16, batch: int = 2) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    y = torch.randn(batch, 2, side, side, side)
    margin = side // 4
    physics = PaddedMissingWedgeOperator((side,) * 3, GEOMETRY)
    reference = ReferenceStep(side, GEOMETRY, torch.Generator().manual_seed(0))
    group = CubeRotationGroup.moving(physics)
    losses = Noise2NoiseLoss(margin=margin, mask_target=True), MaskedEquivarianceLoss(group, margin=margin)

    def ours(network: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        model = TwoViewReconstructor(network)

        def step() -> None:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                x_net = model(y, physics)
                total = sum(f(x_net=x_net, y=y, physics=physics, model=model).mean() for f in losses)
            total.backward()

        return step

    def theirs(network: nn.Module) -> Callable[[], None]:
        return lambda: reference(y[:, 0], y[:, 1], network).backward()

    plain = ScaleEquivariantUNet3D(width=width, fused=False)
    fused = ScaleEquivariantUNet3D(width=width).to(memory_format=torch.channels_last_3d)
    fused.load_state_dict(plain.state_dict())
    blocks = method_of(TrainingConfig.preset("fast")).network().to(memory_format=torch.channels_last_3d)
    print(f"side {side}, width {width}, batch {batch}, torch {torch.__version__}, one thread, {ROUNDS} rounds")
    print(f"{'':34}{'reference':>12}{'ours':>12}{'ratio':>8}   [lowest, highest]")
    residual = y.clone().requires_grad_()
    _compare("windowed loss", _windowed_reference(reference, residual, y), _windowed(physics, residual, y, margin))
    point_wise = _PointWise()
    _compare("everything but the network", theirs(point_wise), ours(point_wise))
    _compare("network, float32", _calls(plain, y, 4), _calls(fused, y, 2))
    _compare("network, bfloat16", _calls(plain, y, 4), _calls(fused, y, 2, torch.bfloat16))
    _compare("whole step, float32", theirs(plain), ours(fused))
    _compare("whole step, bfloat16", theirs(plain), ours(fused, torch.bfloat16))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        _compare(f"network of fast, {name}", _calls(plain, y, 4), _calls(blocks, y, 2, dtype))
        _compare(f"whole step of fast, {name}", theirs(plain), ours(blocks, dtype))
    _print_saved("saved activations, float32", plain, fused, y, torch.float32)
    _print_saved("saved activations, bfloat16", plain, fused, y, torch.bfloat16)
    print("\ntwo forms of ours")
    unpadded = MissingWedgeOperator((side,) * 3, GEOMETRY)
    _compare("no window: filter, Parseval", _unwindowed(unpadded, residual), _parseval(unpadded, residual))
    again = ScaleEquivariantUNet3D(width=width, checkpointing=True).to(memory_format=torch.channels_last_3d)
    _compare("network, bfloat16: checkpointing", *(_calls(net, y, 2, torch.bfloat16) for net in (fused, again)))
    _print_saved("saved activations, checkpointing", plain, again, y, torch.bfloat16)


def _unwindowed(physics: MissingWedgeOperator, x: Tensor) -> Callable[[], None]:
    return lambda: mean_square(physics.A(x)).mean().backward()


def _parseval(physics: MissingWedgeOperator, x: Tensor) -> Callable[[], None]:
    return lambda: measured_mean_square(physics, x, 0).mean().backward()


def _print_saved(name: str, reference: nn.Module, ours: nn.Module, y: Tensor, dtype: torch.dtype) -> None:
    """Print the activations kept by ours in ``dtype`` and by the reference in float32, its configuration."""
    x = y[:, :1]
    theirs = _saved_bytes(lambda: reference(x)) / 2**20
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        mine = _saved_bytes(lambda: ours(x)) / 2**20
    print(f"{name:34}{theirs:8.1f} MiB{mine:8.1f} MiB{mine / theirs:8.2f}")


def _windowed(physics: PaddedMissingWedgeOperator, x: Tensor, y: Tensor, margin: int) -> Callable[[], None]:
    return lambda: mean_square(measured_inside(physics, x - y.flip(1), margin)).mean().backward()


def _windowed_reference(reference: ReferenceStep, x: Tensor, y: Tensor) -> Callable[[], None]:
    def step() -> None:
        loss = reference.masked_error(y[:, 1], x[:, 0]) + reference.masked_error(y[:, 0], x[:, 1])
        loss.backward()

    return step


def _calls(network: nn.Module, y: Tensor, n_calls: int, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return the network's part of a step: four calls for one view each, or two calls for both views."""
    x = y[:, :1] if n_calls == 4 else y.reshape(-1, 1, *y.shape[2:])

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            outputs = [network(x) for _ in range(n_calls)]
        sum(output.float().square().mean() for output in outputs).backward()

    return step


def _compare(name: str, reference: Callable[[], None], ours: Callable[[], None]) -> None:
    times: list[tuple[float, float]] = []
    for number in range(ROUNDS + 1):
        pair = (_seconds(reference), _seconds(ours))
        if number:
            times.append(pair)
    ratios = [a / b for a, b in times]
    medians = [statistics.median(column) * 1e3 for column in zip(*times, strict=True)]
    print(
        f"{name:34}{medians[0]:9.1f} ms{medians[1]:9.1f} ms{statistics.median(ratios):8.2f}   "
        f"[{min(ratios):.2f}, {max(ratios):.2f}]",
        flush=True,
    )


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Return the bytes of all storages that autograd keeps for the backward pass, except parameters."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storages.values())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
