"""Measure everything that counts on a GPU: ``python -m benchmarks.gpu [--out FILE] [--device NAME] [--tiny]``.

The parts, in this order: the tests marked ``gpu``; a step of presets ``paper`` and ``fast`` with the arithmetic that
its convolutions cannot do without, the share of the device's peak, the memory, and the time of 50,000 steps; the
kernels that take most of a step of ``paper``; both steps with ``compile``; the prediction of a pair of 928 x 928 x 464
voxels. The file is written anew after every line, so that nothing is lost if the time on the machine ends; a part that
fails is noted in it, and the next one begins. ``--tiny`` runs all but the tests and the compiler with tiny sizes, also
on a CPU.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from equitomo import IcecreamTrainer, TiledPredictor, TomogramPair, TrainingConfig
from equitomo.precision import chosen_device
from equitomo.symmetry import MirrorAveraged

GEOMETRY = (-60.0, 60.0)
STEPS = 50_000


@dataclass(frozen=True)
class Sizes:
    """The sizes of a measurement.

    Parameters
    ----------
    changes
        Settings that replace those of the presets.
    specimen
        Side of the specimen that the steps are trained on.
    predicted
        Voxels ``(z, y, x)`` of the predicted pair.
    warm_up, timed
        Steps before and within the measurement.
    tests
        Whether the tests marked ``gpu`` are run.
    compile
        Whether steps are measured with ``torch.compile`` too.
    peak
        Operations per second that the device can do in the format of the network, in units of 1e12.
    """

    changes: dict[str, Any]
    specimen: int = 160
    predicted: tuple[int, int, int] = (464, 928, 928)
    warm_up: int = 5
    timed: int = 20
    tests: bool = True
    compile: bool = True
    peak: float = 790.0


_SMALL = {"side": 16, "batch": 1, "width": 2, "levels": 2, "margin": 4, "precision": "float32"}
TINY = Sizes(_SMALL, specimen=20, predicted=(16, 20, 24), warm_up=1, timed=1, tests=False, compile=False, peak=0.1)


class Report:
    """The tables of a measurement in a Markdown file.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, list[str]()

    def add(self, *lines: str) -> None:
        """Add lines, and write the file."""
        self._lines += lines
        print(*lines, sep="\n", flush=True)
        self._path.write_text("\n".join(self._lines) + "\n")

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """Begin a part; an error within it is noted, and does not end the measurement."""
        self.add("", f"## {title}", "")
        try:
            yield
        except Exception as error:
            self.add(f"failed: {type(error).__name__}: {error}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(path: Path, device: torch.device, sizes: Sizes) -> None:
    """Measure all parts, and write them into a file."""
    report = Report(path)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    report.add(f"{name_of(device)}, torch {torch.__version__}, {today}")
    if sizes.tests:
        with report.part("Tests marked gpu"):
            command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q"]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            report.add((answer.stdout.strip() or answer.stderr.strip()).splitlines()[-1])

    with report.part("A training step"):
        report_steps(report, device, sizes)
    with report.part("The kernels of a step of paper"):
        trainer = trainer_of("paper", device, sizes).train(until=sizes.warm_up)
        report.add("| kernel | calls | ms | share |", "|" + " --- |" * 4)
        report.add(*kernels_of(trainer, device))
    if sizes.compile:
        with report.part("A training step, compiled"):
            report_steps(report, device, sizes, compile=True)
    with report.part("Prediction of a pair of " + " x ".join(map(str, sizes.predicted[::-1])) + " voxels"):
        report.add("| preset | s | GiB |", "|" + " --- |" * 3)
        for preset in ("paper", "fast"):
            taken, memory = timed_prediction(trainer_of(preset, device, sizes), sizes)
            report.add(f"| {preset} | {taken:.3g} | {memory / 2**30:.2f} |")


def report_steps(report: Report, device: torch.device, sizes: Sizes, **changes: Any) -> None:
    """Report the time and the memory of a step of each preset, and the share of the peak that it reaches."""
    report.add("| preset | s | TFLOP | TFLOP/s | of the peak | GiB | 50,000 steps in hours |", "|" + " --- |" * 7)
    for preset in ("paper", "fast"):
        # The compiler hides operations from the counter.
        operations = operations_of(trainer_of(preset, device, sizes))
        taken, memory = timed_step(trainer_of(preset, device, sizes, **changes), sizes)
        speed = operations / taken / 1e12
        report.add(
            f"| {preset} | {taken:.3g} | {operations / 1e12:.3g} | {speed:.3g} | {speed / sizes.peak:.1%} | "
            f"{memory / 2**30:.2f} | {STEPS * taken / 3600:.3g} |"
        )


def trainer_of(preset: Any, device: torch.device, sizes: Sizes, **changes: Any) -> IcecreamTrainer:
    """Return the trainer of a preset on a specimen of noise."""
    generator = torch.Generator().manual_seed(0)
    specimen = torch.randn((sizes.specimen,) * 3, generator=generator)
    pair = TomogramPair(*(specimen + torch.randn(2, *specimen.shape, generator=generator)), GEOMETRY)
    config = TrainingConfig.preset(preset, device=str(device), **sizes.changes | changes)
    # Nothing is learned: the size of a step does not change its time.
    return IcecreamTrainer(pair, replace(config, steps=STEPS, preview_every=0))


def operations_of(trainer: IcecreamTrainer) -> int:
    """Return the floating-point operations of the convolutions of one step."""
    with FlopCounterMode(display=False) as counter:
        trainer.gradient(range(trainer.config.batch), trainer.plan.n_at_once)
    return int(counter.get_total_flops())


def timed_step(trainer: IcecreamTrainer, sizes: Sizes) -> tuple[float, int]:
    """Return the seconds of a step, and the most bytes of the device that it took."""
    trainer.train(until=sizes.warm_up)
    seconds, memory = timed(trainer.device, lambda: trainer.train(until=sizes.warm_up + sizes.timed))
    return seconds / sizes.timed, memory


def kernels_of(trainer: IcecreamTrainer, device: torch.device, most: int = 15) -> list[str]:
    """Return rows of the kernels that take most of a step, with their share of the time of all."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        trainer.train(until=trainer.step + 1)

    def time_of(row: Any) -> float:
        return float(row.self_device_time_total if device.type == "cuda" else row.self_cpu_time_total)

    rows = sorted(found.key_averages(), key=time_of, reverse=True)
    total = sum(map(time_of, rows)) or 1.0
    return [
        f"| `{row.key[:90]}` | {row.count} | {time_of(row) / 1e3:.3g} | {time_of(row) / total:.1%} |"
        for row in rows[:most]
    ]


def timed_prediction(trainer: IcecreamTrainer, sizes: Sizes) -> tuple[float, int]:
    """Return the seconds of the prediction of a pair, and the most bytes of the device that it took."""
    config, network = trainer.config, trainer.network
    averaged = MirrorAveraged(network, GEOMETRY, images=config.mirror_images) if config.test_time_mirrors else network
    predictor = TiledPredictor(averaged, GEOMETRY, passes=config.passes, average_first=config.average_first)
    halves = [torch.randn(sizes.predicted).numpy() for _ in range(2)]
    # The first call also chooses algorithms.
    small = [half[:16, :16, :16] for half in halves]
    predictor(*small)
    return timed(trainer.device, lambda: predictor(*halves))


def timed(device: torch.device, act: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds of an action, and the most bytes of a GPU that were taken at once."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    act()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, torch.cuda.max_memory_allocated(device) if on_gpu else 0


def name_of(device: torch.device) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--peak", type=float, default=790.0, help="10^12 operations per second of the device in 16 bits"
    )
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    sizes = TINY if given.tiny else Sizes({}, peak=given.peak)
    measure(given.out, chosen_device(given.device), sizes)


if __name__ == "__main__":
    main()
