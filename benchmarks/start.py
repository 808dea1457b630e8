"""Study how to train from the network that comes with the package: ``python -m benchmarks.start SET ... --out FILE``.

Each SET is a folder as for ``benchmarks.quality``. All combinations of sets, seeds, starts, steps, step sizes and
warm-ups are trained with the preset and scored: the correlation with the truth overall, in the measured part and in the
missing wedge, with gold beads masked. A line of JSON is added to FILE for each, and combinations that FILE holds are
skipped, so that a study which was stopped continues. Beside the trainings stands the prediction of the network without
any training, as 0 steps. Markdown tables are printed at the end, from all that FILE holds: each training, with how far
it moved the weights relative to their size, and the means over sets and seeds with the spread over seeds. One thread is
used.

``python -m benchmarks.start ../shared/data/cryo_* --out start.jsonl --steps 100 200 --rates 2e-3 5e-4 --seeds 0 1``
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.quality import Scorer
from equitomo import IcecreamTrainer, TrainingConfig, load_network
from equitomo.run import ReconstructionSettings
from equitomo.run.prediction import predictor_for

REGIONS = ("all", "measured", "wedge")


@dataclass(frozen=True)
class Case:
    """One training of the study; no steps stand for the prediction by the network that training would start from."""

    set: str
    start: str
    steps: int
    rate: float
    warmup: int
    optimizer: str
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--starts", nargs="+", default=["cryo"], help="cryo, none, or a run or checkpoint")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 200])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 1e-3, 5e-4, 2e-4])
    parser.add_argument("--warmups", nargs="+", type=int, default=[0, 20])
    parser.add_argument("--optimizers", nargs="+", default=["muon"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--change", nargs="*", default=[], help="further settings, such as precision=float32")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    changes = {name: _value(text) for name, _, text in (change.partition("=") for change in given.change)}
    for folder in given.sets:
        scorer = None
        done = {case for case, _ in read(given.out)}
        for case in cases(folder.name, given):
            if case not in done:
                scorer = scorer or Scorer(folder)
                measured = trained(case, scorer, given.preset, changes)
                with given.out.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(case) | measured) + "\n")
                print(case, measured, flush=True)
    print("\n".join(["", *table(list(read(given.out)))]))


def cases(name: str, given: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of one set."""
    for start in given.starts:
        if start != "none":
            yield Case(name, start, 0, 0.0, 0, "none", 0)
    axes = given.seeds, given.starts, given.steps, given.rates, given.warmups, given.optimizers
    for seed, start, steps, rate, warmup, optimizer in itertools.product(*axes):
        yield Case(name, start, steps, rate, warmup, optimizer, seed)


def trained(case: Case, scorer: Scorer, preset: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Train one case and return its scores and the seconds of its training."""
    network: nn.Module | None = None if case.start == "none" else load_network(case.start)
    config = TrainingConfig.preset(preset, **changes)
    # The network that comes with the package knows bright specimens.
    pair = scorer.pair if network is None else scorer.pair.with_contrast("bright")
    seconds, moved = 0.0, 0.0
    if case.steps:
        settings = {"steps": case.steps, "learning_rate": case.rate, "warmup": case.warmup, "seed": case.seed}
        config = dataclasses.replace(config, optimizer=case.optimizer, **settings)
        trainer = IcecreamTrainer(pair, config, init=network)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        begun, network = network, trainer.network
        moved = _relative_change(begun, network)
    assert network is not None
    predictor = predictor_for(network.eval(), pair.geometry, ReconstructionSettings(), config)
    scores = scorer.values(pair.restore(predictor(*pair.volumes)).numpy())
    return dict(zip(REGIONS, scores, strict=True)) | {"seconds": round(seconds, 1), "moved": moved}


@torch.no_grad()
def _relative_change(before: nn.Module | None, after: nn.Module) -> float | None:
    """Return how far the weights moved, relative to their size at the start; ``None`` for a start from scratch."""
    if before is None:
        return None
    first, last = (torch.cat([value.flatten() for value in network.parameters()]) for network in (before, after))
    return round(float((last - first).norm() / first.norm()), 4)


def read(path: Path) -> Iterator[tuple[Case, dict[str, float]]]:
    """Yield the cases that a file holds, with what was measured."""
    names = [field.name for field in dataclasses.fields(Case)]
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        yield Case(**{name: values.pop(name) for name in names}), values


def table(results: Sequence[tuple[Case, dict[str, float]]]) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield "| set | start | steps | step size | warm-up | optimiser | seed | all / measured / wedge | moved | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for case, values in sorted(results, key=lambda result: dataclasses.astuple(result[0])):
        setting = f"{case.start} | {case.steps} | {case.rate:g} | {case.warmup} | {case.optimizer}"
        moved = "" if values.get("moved") is None else f"{values['moved']:.3f}"
        yield f"| {case.set} | {setting} | {case.seed} | {_shown(values)} | {moved} | {values['seconds']:.0f} |"
    yield ""
    yield "| start | steps | step size | warm-up | optimiser | trainings | mean | spread over seeds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for setting, group in _grouped(results):
        mean = {region: statistics.fmean(values[region] for _, values in group) for region in REGIONS}
        spread = _shown(_spread(group)) if len({case.seed for case, _ in group}) > 1 else ""
        shown = " | ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in setting)
        yield f"| {shown} | {len(group)} | {_shown(mean)} | {spread} |"


def _grouped(
    results: Iterable[tuple[Case, dict[str, float]]],
) -> Iterator[tuple[tuple[Any, ...], list[tuple[Case, dict[str, float]]]]]:
    """Yield the results of each setting, whatever the set and the seed."""

    def setting(result: tuple[Case, object]) -> tuple[Any, ...]:
        case = result[0]
        return case.start, case.steps, case.rate, case.warmup, case.optimizer

    for key, group in itertools.groupby(sorted(results, key=setting), setting):
        yield key, list(group)


def _spread(group: Iterable[tuple[Case, dict[str, float]]]) -> dict[str, float]:
    """Return the standard deviation over the seeds of one set, as the root of its mean square over the sets."""
    by_set: dict[str, list[dict[str, float]]] = {}
    for case, values in group:
        by_set.setdefault(case.set, []).append(values)
    several = [values for values in by_set.values() if len(values) > 1]
    return {
        region: math.sqrt(statistics.fmean(statistics.variance([one[region] for one in values]) for values in several))
        for region in REGIONS
    }


def _shown(values: dict[str, float]) -> str:
    return " / ".join(f"{values[region]:.3f}".replace("0.", ".", 1) for region in REGIONS)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
