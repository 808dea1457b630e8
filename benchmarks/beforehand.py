"""Test whether a global second pass is best if training empties the wedge in whole volumes, before cubes are cut.

``python -m benchmarks.beforehand SET [STEPS] [WIDTH]``, with SET as for ``benchmarks.quality``. Two trainings with the
paper's losses differ only in the input of the network's second call. In the first it is the rotated cube of the
estimate with its wedge emptied within the cube, as everywhere else. In the second it is a rotated cube of the estimate
of the whole volume from some steps before, whose rotated wedge was emptied globally. One Markdown row is printed per
training, with the scores of ``benchmarks.quality`` for halves averaged first.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality import Scorer
from equitomo import (
    CubeRotationGroup,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    TiledPredictor,
    TomogramPair,
    TrainingConfig,
    TwoViewReconstructor,
)
from equitomo.loss import measured_mean_square
from equitomo.precision import autocast, checked_dtype
from equitomo.training.budget import learning_rate

_REFRESH = 200  # steps from one estimate of the volume to the next
_WAYS: dict[str, dict[str, Any]] = {
    "one pass": {"passes": 1},
    "two, global": {"wedge": "global"},
    "two, in tiles of the training's side": {"wedge": "tile", "tile": 32, "margin": 8, "blend": 0},
    "two, local": {"wedge": "local"},
}


def main(folder: str, steps: str = "4000", width: str = "16") -> None:
    """Print the table."""
    scorer = Scorer(Path(folder))
    print(f"| emptied | seconds | {' | '.join(_WAYS)} |\n| --- | --- |{' --- |' * len(_WAYS)}", flush=True)
    for globally in (False, True):
        start = time.process_time()
        network = _trained(scorer.pair, globally, int(steps), int(width))
        seconds = time.process_time() - start
        scores = []
        for way in _WAYS.values():
            predictor = TiledPredictor(network, _operator((32,) * 3, scorer.pair), average_first=True, **way)
            scores.append(scorer.score(predictor(*scorer.pair.volumes).numpy()))
        name = "in the whole estimate" if globally else "in the cube"
        print(f"| {name} | {seconds:.0f} | {' | '.join(scores)} |", flush=True)


def _trained(pair: TomogramPair, globally: bool, steps: int, width: int) -> nn.Module:
    """Return the moving average of the trained network."""
    settings = {"steps": steps, "width": width, "optimizer": "adam", "learning_rate": 1e-3, "ema_decay": 0.998}
    config = TrainingConfig.preset("tiny", **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ScaleEquivariantUNet3D(width=config.width)
    network.to(memory_format=torch.channels_last_3d)
    averaged, model = copy.deepcopy(network), TwoViewReconstructor(network)
    optimizer = torch.optim.Adam(network.parameters())
    physics = _operator((config.side,) * 3, pair)
    group = CubeRotationGroup.moving(physics)
    data, dtype = Noise2NoiseLoss(margin=config.margin), checked_dtype("auto", torch.device("cpu"))
    emptied: dict[int, Tensor] = {}
    for step in range(steps):
        if globally and step % _REFRESH == 0:
            emptied = _emptied_for_each(group, averaged, pair)
        corners = [_corner(pair, config.side, generator) for _ in range(config.batch)]
        elements = group.draw(config.batch, generator=generator)
        y = torch.stack([_cube(pair.volumes, corner, config.side) for corner in corners])
        with autocast(dtype, torch.device("cpu")):
            x_net = model(y, physics)
            if globally:
                pairs = zip(elements.tolist(), corners, strict=True)
                seen = torch.stack([_cube(emptied[g], corner, config.side) for g, corner in pairs])
                again = model(group.apply(seen, elements), physics)
            else:
                again = model(physics.A(group.apply(x_net.detach().float(), elements)), physics)
            residual = group.apply(again, elements, inverse=True) - x_net.flip(1).detach()
            equivariance = measured_mean_square(physics, residual.float(), config.margin)
            loss = (data(x_net=x_net, y=y, physics=physics) + 2 * equivariance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.step()
        with torch.no_grad():
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
    return averaged


@torch.inference_mode()
def _emptied_for_each(group: CubeRotationGroup, network: nn.Module, pair: TomogramPair) -> dict[int, Tensor]:
    """Return ``R_g^-1 A R_g`` of the whole estimates of both halves, ``(2, z, y, x)``, for every element drawn."""
    predictor = TiledPredictor(network, pair.geometry, passes=1)
    estimate = torch.stack([predictor(half) for half in pair.volumes])[:, None]
    # Elements need a cube. It is filled up with zeros, as the operator itself continues volumes.
    side = max(pair.shape)
    volumes = estimate.new_zeros(2, 1, side, side, side)
    volumes[..., : pair.shape[0], : pair.shape[1], : pair.shape[2]] = estimate
    operator = _operator((side,) * 3, pair)
    made: dict[int, Tensor] = {}
    for element, like in _same_wedges(group, pair).items():
        if like in made:
            made[element] = made[like]
            continue
        both = torch.tensor([element] * 2)
        turned = group.apply(operator.A(group.apply(volumes, both)), both, inverse=True)[:, 0]
        made[element] = turned[:, : pair.shape[0], : pair.shape[1], : pair.shape[2]].clone()
    return made


def _same_wedges(group: CubeRotationGroup, pair: TomogramPair) -> dict[int, int]:
    """Return for every element the first one that rotates the wedge to the same place."""
    operator, probe = _operator((16,) * 3, pair), torch.randn(1, 1, 16, 16, 16, generator=torch.Generator())
    seen: dict[int, Tensor] = {}
    same = {}
    for element in group.elements:
        one = torch.tensor([element])
        value = group.apply(operator.A(group.apply(probe, one)), one, inverse=True)
        same[element] = next((g for g, other in seen.items() if torch.allclose(value, other, atol=1e-5)), element)
        seen.setdefault(same[element], value)
    return same


def _operator(shape: tuple[int, int, int], pair: TomogramPair) -> PaddedMissingWedgeOperator:
    return PaddedMissingWedgeOperator(shape, pair.geometry, support="box")


def _corner(pair: TomogramPair, side: int, generator: torch.Generator) -> list[int]:
    return [int(torch.randint(n - side + 1, (), generator=generator)) for n in pair.shape]


def _cube(volumes: Tensor, corner: list[int], side: int) -> Tensor:
    z, y, x = (slice(c, c + side) for c in corner)
    return volumes[:, z, y, x]


if __name__ == "__main__":
    main(*sys.argv[1:])
