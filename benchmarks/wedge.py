"""Compare where the wedge is emptied between two passes, and how the volume is continued beyond its borders for it.

``python -m benchmarks.wedge SET RUN [RUN ...]``, with SET as for ``benchmarks.quality``; each RUN is the folder of a
finished training on it. One Markdown row is printed per way to predict, with a column per run. It has the correlation
with the truth overall / in the measured part / in the missing wedge, with gold beads masked. The halves are averaged
before the network, as in our presets, and after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.quality import Scorer
from equitomo import MissingWedgeOperator, PaddedMissingWedgeOperator, TiledPredictor, load_network
from equitomo.geometry import Support
from equitomo.training.checkpoint import load_checkpoint

_WIDE = 32  # reflected voxels on each side
_TAPER = 16  # voxels over which the reflection falls to zero
Border = Callable[[Tensor, Any], Tensor]


def main(folder: str, *runs: str) -> None:
    """Print the table."""
    scorer = Scorer(Path(folder))
    print(f"| way | {' | '.join(Path(run).name for run in runs)} |\n| --- |{' --- |' * len(runs)}")
    columns = [_scores(scorer, run) for run in runs]
    for way in columns[0]:
        print(f"| {way} | {' | '.join(column[way] for column in columns)} |", flush=True)


def _scores(scorer: Scorer, run: str) -> dict[str, str]:
    config = load_checkpoint(Path(run)).state["config"]
    network, geometry, side = load_network(run), scorer.pair.geometry, config["side"]
    support: Support = "ball" if config["method"] == "icecream" else "box"
    found = {}
    for first in (True, False):
        settings: dict[str, Any] = {"average_first": first}
        when = "averaged first" if first else "averaged last"

        def score(name: str, predictor: TiledPredictor, when: str = when) -> None:
            found[f"{name}, {when}"] = scorer.score(predictor(*scorer.pair.volumes).numpy())

        operator = PaddedMissingWedgeOperator((side,) * 3, geometry, support=support)
        score("one pass", TiledPredictor(network, operator, passes=1, **settings))
        tiles: dict[str, Any] = {"wedge": "tile"} | settings
        small: dict[str, Any] = {"tile": side, "margin": side // 4, "blend": 0}
        score("two, in tiles of the training's side", TiledPredictor(network, operator, **small, **tiles))
        score("two, in large tiles", TiledPredictor(network, operator, **tiles))
        for length in (16, 32):
            local = TiledPredictor(network, operator, wedge="local", local_tile=length, **settings)
            score(f"two, local, small tiles of {length}", local)
        score("two, global", TiledPredictor(network, operator, wedge="global", **settings))
        once = TiledPredictor(network, operator, passes=1)
        halves = scorer.pair.volumes
        inputs = [halves.mean(0)] if first else list(halves)
        for name, border in _BORDERS.items():
            results = [once(border(once(half), (geometry, support))) for half in inputs]
            found[f"two, global, {name}, {when}"] = scorer.score(torch.stack(results).mean(0).numpy())
    return found


def _periodic(volume: Tensor, of: Any) -> Tensor:
    geometry, support = of
    return MissingWedgeOperator(tuple(volume.shape), geometry, support=support).A(volume[None, None])[0, 0]


def _reflected(volume: Tensor, of: Any) -> Tensor:
    return _inside(_periodic(_widened(volume), of))


def _tapered(volume: Tensor, of: Any) -> Tensor:
    wide = _widened(volume)
    for axis, length in enumerate(wide.shape):
        ramp = torch.ones(length)
        fall = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(_TAPER) + 0.5) / _TAPER)
        outer = _WIDE - _TAPER
        ramp[:outer] = ramp[length - outer :] = 0
        ramp[outer:_WIDE] = fall
        ramp[length - _WIDE : length - outer] = fall.flip(0)
        wide = wide * ramp.reshape([-1 if axis == a else 1 for a in range(3)])
    return _inside(_periodic(wide, of))


def _widened(volume: Tensor) -> Tensor:
    return pad(volume[None, None], (_WIDE,) * 6, mode="reflect")[0, 0]


def _inside(volume: Tensor) -> Tensor:
    return volume[_WIDE:-_WIDE, _WIDE:-_WIDE, _WIDE:-_WIDE]


_BORDERS: dict[str, Border] = {
    "periodic": _periodic,
    "reflected by 32": _reflected,
    "reflected and tapered": _tapered,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
