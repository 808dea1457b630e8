"""Train configurations on a data set with a known truth and score their predictions.

``python -m benchmarks.quality SET [RUNS]``. SET is a folder with ``even.mrc``, ``odd.mrc``, ``gt.mrc``, ``meta.json``
and optionally ``gold_mask.mrc``, next to the scoring script ``evaluate.py``. RUNS is a file with one JSON object of
settings per line, which change the preset named by ``preset``, by default ``tiny``. One Markdown row is printed per
run. It has the seconds of training, and for each way to predict the correlation with the truth overall, in the measured
part and in the missing wedge, with gold beads masked. A run may also set ``cut_margin`` of the method ``fast``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from equitomo import TiledPredictor, TomogramPair, TrainingConfig, read_volume
from equitomo.methods import fast, method_of
from equitomo.training import Trainer

_WAYS: dict[str, dict[str, Any]] = {
    "one pass": {"passes": 1},
    "two passes, wedge local": {"passes": 2},
    "two passes, wedge in tiles": {"passes": 2, "wedge": "tile"},
    "two passes, wedge global": {"passes": 2, "wedge": "global"},
    "one pass, halves averaged first": {"passes": 1, "average_first": True},
    "two passes, halves averaged first": {"passes": 2, "average_first": True},
}


def main(folder: str, runs: str | None = None) -> None:
    """Print the table."""
    scorer = Scorer(Path(folder))
    changes = [{}] if runs is None else [json.loads(line) for line in Path(runs).read_text().splitlines() if line]
    print(f"| run | seconds | {' | '.join(_WAYS)} |\n| --- | --- |{' --- |' * len(_WAYS)}")
    print(f"| input | | {scorer.score(scorer.pair.volumes.mean(0).numpy())} |{' |' * (len(_WAYS) - 1)}", flush=True)
    for change in changes:
        settings = {"preset": "tiny"} | change
        cut_margin = settings.pop("cut_margin", None)
        config = TrainingConfig.preset(settings.pop("preset"), **settings)
        method = method_of(config) if cut_margin is None else fast.method(config, cut_margin=cut_margin)
        trainer = Trainer(scorer.pair, method, config)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        scores = [
            scorer.score(TiledPredictor(trainer.network, scorer.pair.geometry, **way)(*scorer.pair.volumes).numpy())
            for way in _WAYS.values()
        ]
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or "tiny"
        print(f"| {name} | {seconds:.0f} | {' | '.join(scores)} |", flush=True)


class Scorer:
    """A data set with its own scoring script."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("evaluate", folder.parent / "evaluate.py")
        assert spec is not None
        assert spec.loader is not None
        self._evaluate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._evaluate)
        meta = json.loads((folder / "meta.json").read_text())
        self._range = meta["tilt_min"], meta["tilt_max"]
        self._truth = np.asarray(read_volume(folder / "gt.mrc").data, np.float32)
        gold = folder / "gold_mask.mrc"
        self._gold = np.asarray(read_volume(gold).data, np.float32) > 0 if gold.exists() else None
        first, second = (np.asarray(read_volume(folder / f"{name}.mrc").data, np.float32) for name in ("even", "odd"))
        self.pair = TomogramPair(first, second, self._range)

    def score(self, volume: np.ndarray[Any, Any]) -> str:
        """Return the scores as :meth:`values` does, as a text."""
        return " / ".join(f"{value:.3f}"[1:] for value in self.values(volume))

    def values(self, volume: np.ndarray[Any, Any]) -> list[float]:
        """Return the scores overall, in the measured part and in the wedge, without gold beads if their mask exists."""
        scores = self._evaluate.scores(volume, self._truth, *self._range, self._gold)
        prefix = "nogold" if self._gold is not None else "cc"
        return [scores[f"{prefix}_{region}"] for region in ("all", "measured", "wedge")]


if __name__ == "__main__":
    main(*sys.argv[1:])
