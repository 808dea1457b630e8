"""Hold what the wedge test chooses, and what it estimates from other starts, against the truth.

``python -m benchmarks.wedge_choice [--steps N] [--folder FOLDER] [SET ...]``. The sets are those of
``python -m benchmarks.wedge_test``. On each a run of the preset ``tiny`` is trained from the network of the package
(200 steps by default, with a checkpoint every quarter), and ``wedge-test --choose`` compares passes, shares of the
start, mirror images and checkpoints. Every candidate is then held against the truth with the run itself. After that the
test is repeated with a tenth of the steps from the weights of the run and from those of the package. Runs are kept in
FOLDER, and a benchmark that was interrupted continues there.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.wedge_test import Known, arguments, known_sets, up_to
from equitomo import TrainingConfig
from equitomo.metrics import fourier_correlation, region_masks
from equitomo.run import Prediction, Run, WedgeChoice, WedgeChoiceSettings, WedgeTest, WedgeTestSettings
from equitomo.run.wedge_candidates import Candidate
from equitomo.run.wedge_trainings import WedgeTrainings
from equitomo.training.checkpoint import has_checkpoint

_CHOICES = ("passes", "share", "mirrors", "checkpoints")
_STARTS = ("run", "cryo")
_HEAD = "| set | candidate | estimate | better by | true, in the wedge | true, measured part | prediction in s |"
_HEAD_OF_STARTS = "| set | start | steps | s | estimate | true, in the sector | estimate minus true | in the wedge |"


def main() -> None:
    """Print the tables."""
    given = arguments(__doc__, 200, "--folder")
    with tempfile.TemporaryDirectory() as temporary:
        for name, known in known_sets(given.sets):
            _judge(name, known, (given.folder or Path(temporary)) / name, given.steps)


def _judge(name: str, known: Known, folder: Path, steps: int) -> None:
    """Print the tables of one set."""
    config = TrainingConfig.preset("tiny", start="cryo", steps=steps, keep_every=steps // 4)
    run = Run.create(folder, known.pair, config, init="cryo", resume=has_checkpoint(folder)).train()
    print(f"{_HEAD}\n|{' --- |' * 7}", flush=True)
    for choose in _CHOICES:
        settings, trainings = WedgeChoiceSettings(choose=choose, keep_trained=True), WedgeTrainings(folder / "kept")
        with trainings.held():
            result = WedgeChoice.of(run, settings=settings, trainings=trainings).run()
        for row in result.rows:
            measured, wedge = _true(run, known, row.candidate)
            better = "" if row is result.rows[0] else f"{row.difference:+.3f} ± {row.error:.3f}"
            mark = "**" if row is result.chosen else ""
            print(
                f"| {name} | {mark}{row.candidate.name}{mark} | {row.total.estimate:.3f} | {better} | {wedge:.3f} "
                f"| {measured:.3f} | {row.seconds:.1f} |",
                flush=True,
            )
    print(f"\n{_HEAD_OF_STARTS}\n|{' --- |' * 8}", flush=True)
    for start, n in (("same", steps), *((start, max(1, steps // 10)) for start in _STARTS)):
        _print_start(name, run, known, folder / "kept", start, n)
    print(flush=True)


def _print_start(name: str, run: Run, known: Known, folder: Path, start: str, steps: int) -> None:
    """Print what the test from other weights finds, and what is true."""
    started = time.perf_counter()
    settings = WedgeTestSettings(start=start, steps=steps, keep_trained=True)
    trainings = WedgeTrainings(folder if start == "same" else folder.with_name(f"kept_{start}"))
    with trainings.held():
        (fold,) = WedgeTest.of(run, settings=settings, trainings=trainings).folds()
        fold.train()
        filled = fold.predict()
    found = fold.judge(filled).correlation
    sector = fold.held_out.sector & up_to(known.pair.shape, found.limit)
    beyond = region_masks(known.pair.shape, known.pair.geometry).wedge
    true, wedge = (fourier_correlation(filled, known.truth, mask) for mask in (sector, beyond))
    print(
        f"| {name} | {start} | {steps} | {time.perf_counter() - started:.0f} "
        f"| {found.estimate:.3f} ± {found.error:.3f} | {true:.3f} | {found.estimate - true:+.3f} | {wedge:.3f} |",
        flush=True,
    )


def _true(run: Run, known: Known, candidate: Candidate) -> tuple[float, float]:
    """Return the true correlations of what a candidate makes of the whole tilt range: measured part and wedge."""
    if candidate.checkpoint is not None:
        run = Run.open(run.path / "checkpoints" / f"step_{candidate.checkpoint:08d}")
    pair = run.in_contrast(known.pair)
    predictor = run.predictor(pair.geometry, Prediction(start_share=candidate.share, **candidate.changes), pair=pair)
    result = pair.restore(predictor(*pair.volumes))
    regions = region_masks(pair.shape, pair.geometry)
    measured, wedge = (fourier_correlation(result, known.truth, mask) for mask in (regions.measured, regions.wedge))
    return measured, wedge


if __name__ == "__main__":
    main()
