"""Study why maps of a network that Muon trains die: ``python -m benchmarks.dying SET --out FILE``.

SET is a folder as for ``benchmarks.quality``. A map is dead if it is zero behind its ReLU at every voxel of the mean of
the halves. The preset is trained from scratch and is stopped early in its schedule, with several seeds and variants.
At some steps the share of dead maps of every level is taken. For both convolutions of the coarsest level it is measured
how the kernels lie to their mean input: the mean over the voxels is a vector with one value for each input map and tap,
none of them negative, and a kernel whose product with it is negative gives a map that is negative on average. At the
end the averaged weights are scored. A line of JSON is added to FILE for each training, trainings that FILE holds are
skipped, and Markdown tables of all that FILE holds are printed. One thread is used.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.quality import Scorer
from equitomo import IcecreamTrainer, TrainingConfig
from equitomo.methods.parts import unet
from equitomo.models import ScaleEquivariantUNet3D
from equitomo.precision import autocast
from equitomo.run import ReconstructionSettings
from equitomo.run.prediction import predictor_for


def _orthogonal(weight: Tensor) -> Tensor:
    return nn.init.orthogonal_(weight)


def _half_of_he(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=0.5 * math.sqrt(2 / weight[0].numel()))


# What each variant changes: settings, the slope of the rectifier, the initial weights, the gradients or the steps.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "warm-up 20": {"settings": {"warmup": 20}},
    "warm-up 200": {"settings": {"warmup": 200}},
    "step size 1e-3": {"settings": {"learning_rate": 1e-3}},
    "leaky, slope 0.01": {"slope": 0.01},
    "leaky, slope 0.1": {"slope": 0.1},
    "orthogonal": {"draw": _orthogonal},
    "half of He": {"draw": _half_of_he},
    "centred gradients": {"centred": True},
    "no step without a gradient": {"still": True},
    "centred, no step without a gradient": {"centred": True, "still": True},
    "Adam 1e-3": {"settings": {"optimizer": "adam", "learning_rate": 1e-3}},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--at", nargs="+", type=int, default=[0, 20, 50, 100, 250], help="steps at which to look")
    parser.add_argument("--change", nargs="*", default=[], help="settings of all variants, such as side=16")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changes = {name: json.loads(value) for name, _, value in (change.partition("=") for change in given.change)}
    scorer = Scorer(given.set)
    for seed, variant in itertools.product(given.seeds, given.variants):
        done = {(line["set"], line["variant"], line["seed"]) for line in read(given.out)}
        if (given.set.name, variant, seed) not in done:
            line = {"set": given.set.name, "variant": variant, "seed": seed}
            line |= trained(scorer, seed, given.at, changes, **VARIANTS[variant])
            with given.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print("\n".join(table(list(read(given.out)))))


def trained(
    scorer: Scorer,
    seed: int,
    at: Sequence[int],
    changes: dict[str, Any],
    *,
    settings: dict[str, Any] | None = None,
    slope: float = 0.0,
    draw: Callable[[Tensor], Tensor] | None = None,
    centred: bool = False,
    still: bool = False,
) -> dict[str, Any]:
    """Train one variant up to the last step of ``at``, and return its score and what was seen at these steps."""
    # The training stops long before the end of its schedule: the usual average would hold too many early weights.
    changes = {"seed": seed, "ema_decay": 0.98} | changes | (settings or {})
    config = TrainingConfig.preset("fast", **changes)
    init = None if draw is None else _drawn(config, draw)
    trainer = IcecreamTrainer(scorer.pair, config, init=init)
    network = cast(ScaleEquivariantUNet3D, trainer.learner.network)
    if centred:
        centre_gradients(network)
    if still:
        _hold_maps_without_gradient(trainer.learner.optimizer)
    seen = []
    with _leaky(slope):
        for step in at:
            trainer.train(until=step)
            with autocast(trainer.dtype, trainer.device):
                seen.append({"step": step, "maps": looked_at(network, scorer.pair.volumes.mean(0))})
        averaged = trainer.network.eval()
        predictor = predictor_for(averaged, scorer.pair.geometry, ReconstructionSettings(), config)
        score = scorer.values(scorer.pair.restore(predictor(*scorer.pair.volumes)).numpy())
    return {"score": [round(value, 4) for value in score], "at": seen}


def _drawn(config: TrainingConfig, draw: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a network with initial weights of another distribution."""
    network = unet(config)()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for weight in network.parameters():
            draw(weight.detach())
    return network


def _leaky(slope: float) -> AbstractContextManager[object]:
    """Replace the rectifiers of networks by leaky ones."""
    if not slope:
        return nullcontext()
    return patch.object(Tensor, "relu_", lambda x: F.leaky_relu_(x, slope))


def centre_gradients(network: nn.Module) -> None:
    """Take their mean out of the gradients of all kernels whose input is non-negative, for each of their maps."""
    # The first convolution sees the data, whose mean is zero, and the last one, of one voxel, has no ReLU.
    for weight in list(network.parameters())[1:]:
        if weight.shape[2:].numel() > 1:
            weight.register_hook(lambda grad: grad - grad.mean(dim=(1, 2, 3, 4), keepdim=True))


def _hold_maps_without_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Undo the steps of kernels whose map has no gradient at all; Muon's momentum alone would move them on."""
    kernels = [weight for group in optimizer.param_groups for weight in group["params"] if weight.ndim == 5]
    before: list[Tensor] = []

    @torch.no_grad()
    def remember(*_: Any) -> None:
        before[:] = [weight.clone() for weight in kernels]

    @torch.no_grad()
    def undo(*_: Any) -> None:
        for weight, old in zip(kernels, before, strict=True):
            dead = weight.grad.abs().amax(dim=(1, 2, 3, 4)) == 0  # type: ignore[union-attr]
            weight[dead] = old[dead]

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(undo)


@torch.no_grad()
def looked_at(network: ScaleEquivariantUNet3D, volume: Tensor) -> dict[str, dict[str, float]]:
    """Return for each convolution the share of dead maps, and how its kernels lie to their mean input."""
    levels = {f"encoder {i}": level for i, level in enumerate(network.encoders)}
    levels |= {f"decoder {len(network.encoders) - 2 - i}": level for i, level in enumerate(network.decoders)}
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        for name, level in levels.items():
            for order, layer in zip(("first", "second"), level.basic_module.values(), strict=True):  # type: ignore[union-attr, operator]

                def look(module: nn.Module, given: Any, output: Tensor, name: str = f"{name} {order}") -> None:
                    found[name] = _maps(cast(Tensor, module.weight), given[0].float(), output.float())

                stack.callback(layer.conv.register_forward_hook(look).remove)
        # Fused, the first convolution of a decoder is not called as a whole.
        stack.enter_context(patch.object(network, "fused", False))
        network(volume[None, None])
    return found


def _maps(weight: Tensor, given: Tensor, output: Tensor) -> dict[str, float]:
    """Return the share of dead maps of one convolution, and how its kernels lie to the mean of its input."""
    mean = given.mean(dim=(0, 2, 3, 4))
    # Each tap of an input map sees the same mean, apart from the faces.
    direction = mean[:, None, None, None].expand(weight.shape[1:])
    rows, direction = weight.flatten(1), direction.flatten()
    cosine = rows @ direction / (rows.norm(dim=1) * direction.norm()).clamp(min=1e-20)
    of_maps, spread = output.mean(dim=(0, 2, 3, 4)), output.std(dim=(0, 2, 3, 4))
    mean_square = given.square().mean(dim=(0, 2, 3, 4)).sum()
    return {
        "dead": float((output.amax(dim=(0, 2, 3, 4)) <= 0).float().mean()),
        # The part of the energy of the input that is its mean.
        "input": float(mean.square().sum() / mean_square.clamp(min=1e-20)),
        "cosine": float(cosine.mean()),
        "negative": float((cosine < 0).float().mean()),
        # Mean of the pre-activations of a map in units of their standard deviation.
        "mean": float((of_maps / spread.clamp(min=1e-20)).mean()),
        # The part of the kernels' energy that lies along the mean input; a random one has 1 / (inputs and taps).
        "energy": float((rows @ direction / direction.norm().clamp(min=1e-20)).square().sum() / rows.square().sum()),
        "size": float(rows.norm()),
    }


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the trainings that a file holds."""
    yield from (json.loads(line) for line in (path.read_text().splitlines() if path.exists() else ()))


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the tables: dead maps of each training, and the convolutions of the coarsest levels."""
    names = list(results[0]["at"][0]["maps"])
    coarsest = names[len(names) // 2 - 1 : len(names) // 2 + 3]
    levels = [name.removesuffix(" second") for name in names if name.endswith("second")]
    yield f"| set | variant | seed | step | {' | '.join(levels)} | all / measured / wedge |"
    yield "| --- " * (len(levels) + 5) + "|"
    order = list(VARIANTS)
    ordered = sorted(results, key=lambda line: (order.index(line["variant"]), line["set"], line["seed"]))
    for line in ordered:
        for one in line["at"]:
            shares = " | ".join(f"{one['maps'][f'{level} second']['dead']:.2f}" for level in levels)
            score = " / ".join(f"{value:.3f}" for value in line["score"]) if one is line["at"][-1] else ""
            yield f"| {line['set']} | {line['variant']} | {line['seed']} | {one['step']} | {shares} | {score} |"
    yield ""
    yield "| variant | step | convolution | dead | mean part of input | cosine | negative | mean / sd | energy | norm |"
    yield "| --- " * 10 + "|"
    for variant, group in itertools.groupby(ordered, key=lambda line: line["variant"]):
        trainings = list(group)
        for i, one in enumerate(trainings[0]["at"]):
            for name in coarsest:
                same = [line["at"][i]["maps"][name] for line in trainings if len(line["at"]) > i]
                means = [statistics.fmean(maps[quantity] for maps in same) for quantity in same[0]]
                yield f"| {variant} | {one['step']} | {name} | {' | '.join(f'{mean:.3g}' for mean in means)} |"


if __name__ == "__main__":
    main()
