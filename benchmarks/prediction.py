"""Compare forms of prediction by quality and time: ``python -m benchmarks.prediction SET RUN [RUN ...]``.

SET is a folder as for ``benchmarks.quality``, and each RUN is the folder of a run that was trained on it. One Markdown
row is printed for each form and run. Seconds are processor time on one thread. The relative time is the median over
rounds in which all forms take turns, so that the load of the machine changes it little.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.quality import Scorer
from equitomo import MirrorAveraged, TiledPredictor
from equitomo.inference._layout import TileLayout
from equitomo.run import Run
from equitomo.tiling import Tiling
from equitomo.volumes import Shape

ROUNDS = 3

Images = list[tuple[int, ...]]
_EIGHT: Images = MirrorAveraged(nn.Identity(), (-60.0, 60.0)).mirrors
MIRRORS: dict[str, Images] = {
    "no mirrors": [()],
    "2 mirrors: all axes": [(), (-3, -2, -1)],
    "2 mirrors: y": [(), (-2,)],
    "4 mirrors: rotations": [axes for axes in _EIGHT if len(axes) % 2 == 0],
    "4 mirrors: any range": [(), (-2,), (-3, -1), (-3, -2, -1)],
    "8 mirrors": _EIGHT,
}


@dataclass(frozen=True)
class WideTiles(TileLayout):
    """The usual tiles, but those of the second pass with narrower margins."""

    local_margin: int = 2
    local_fade: int = 4

    def small(self, shape: Shape) -> Tiling:
        """Return the tiling within which a local wedge is emptied."""
        return Tiling(shape, self.local_tile, self.local_margin, self.stride, self.local_fade, self.border)


def forms(network: nn.Module, geometry: object) -> dict[str, TiledPredictor]:
    """Return the predictors to compare, by name; the first one is the cheapest."""
    found = {}
    for average_first in (True, False):
        for name, images in MIRRORS.items():
            if average_first or len(images) in (1, 8):
                averaged = MirrorAveraged(network, (-60.0, 60.0))
                averaged.mirrors = images
                after = "" if average_first else ", halves averaged after"
                found[name + after] = TiledPredictor(averaged, passes=1, average_first=average_first)
    for side, margin, fade in ((16, 2, 4), (24, 3, 6), (24, 2, 4), (32, 4, 8)):
        predictor = TiledPredictor(network, geometry, average_first=True, local_tile=side)  # type: ignore[arg-type]
        predictor.layout = WideTiles(**vars(predictor.layout), local_margin=margin, local_fade=fade)
        found[f"2 passes, local tiles {side} / {margin} / {fade}"] = predictor
    return found


def main(folder: str, *runs: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    scorer = Scorer(Path(folder))
    print("| run | prediction | seconds | relative | overall / measured / wedge |\n| --- | --- | --- | --- | --- |")
    for run in runs:
        network = Run.open(run).predictor(scorer.pair.geometry).network
        network = network.network if isinstance(network, MirrorAveraged) else network
        compared = forms(network, scorer.pair.geometry)
        seconds: dict[str, list[float]] = {name: [] for name in compared}
        results: dict[str, Tensor] = {}
        for _ in range(ROUNDS):
            for name, predictor in compared.items():
                started = time.process_time()
                results[name] = predictor(*scorer.pair.volumes)
                seconds[name].append(time.process_time() - started)
        (_, first), *_ = seconds.items()
        for name, own in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(own, first, strict=True))
            score = scorer.score(results[name].numpy())
            print(f"| {Path(run).name} | {name} | {statistics.median(own):.1f} | {ratio:.1f} | {score} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
