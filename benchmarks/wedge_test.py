"""Compare what the wedge test estimates with the truth, in the held-out sector and in the true wedge.

``python -m benchmarks.wedge_test [--steps N] [--picture FILE] [SET ...]``. A SET is a folder of the test data with
``even.mrc``, ``odd.mrc``, ``gt.mrc`` and one ``.tlt``, or ``sparse``, ``noisy`` or ``materials``, which are simulated;
by default all of these and the two sets in the folder in ``EQUITOMO_DATA``. Three networks of different quality are
trained on each: N steps of the preset ``tiny`` (150 by default), a fifth of that, and a tenth of that from the weights
that come with the package. One Markdown row is printed for each, and the picture shows the estimates over the truth.

The test estimates the correlation with the noise-free tomogram, which backprojection and cropping have made another
than the specimen. Of simulated sets both are known. *Ceiling* is what the test estimates for the specimen itself.

Volumes are not tapered before they are transformed, here as in the test. With a taper as in ``evaluate.py`` the numbers
are others, mostly higher.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equitomo import TiltGeometry, TomogramPair, TrainingConfig, load_network, read_volume
from equitomo.fourier import frequency_radius
from equitomo.io import atomic_file
from equitomo.methods import method_of
from equitomo.metrics import fourier_correlation, region_masks
from equitomo.run import WedgeTest, WedgeTestSettings
from equitomo.simulate import simulate_halves, simulate_particles, simulate_specimen

_SIDE = 64


@dataclass(frozen=True)
class Known:
    """Two halves and their truth: the specimen and, of simulated sets, the noise-free tomogram."""

    pair: TomogramPair
    truth: Tensor
    noise_free: Tensor | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    network: str
    estimate: float
    error: float
    sector: float
    wedge: float


def main() -> None:
    """Print the table and draw the picture."""
    given = arguments(__doc__, 150, "--picture")
    print(
        "| set | network | estimated in the sector | true, noise-free tomogram | true, specimen | in the wedge |",
        end="",
    )
    print(" ceiling | measured | up to | s |\n|" + " --- |" * 10, flush=True)
    rows = [row for name, known in known_sets(given.sets) for row in _rows(name, known, given.steps)]
    differences = np.array([[row.estimate - row.sector, row.estimate - row.wedge] for row in rows])
    for place, column in zip(("in the sector", "in the wedge"), differences.T, strict=True):
        spread = np.sqrt(np.nanmean(column**2))
        print(f"\nestimated minus true {place}: mean {np.nanmean(column):+.3f}, root mean square {spread:.3f}")
    if given.picture is not None:
        _draw(given.picture, rows)


def arguments(description: str, steps: int, path: str) -> argparse.Namespace:
    """Return what the command line says: the sets, the steps, and a path that has this option."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument(path, type=Path)
    return parser.parse_args()


def known_sets(names: Sequence[str]) -> Iterator[tuple[str, Known]]:
    """Yield sets with their names; all of them if none are named."""
    data = Path(os.environ.get("EQUITOMO_DATA", "."))
    for name in names or [str(data / "cryo_tiny_mid"), str(data / "cryo_dose_mid"), *SIMULATED]:
        yield Path(name).name, SIMULATED[name]() if name in SIMULATED else _read(Path(name))


def _rows(name: str, known: Known, steps: int) -> list[Row]:
    """Train three networks on one set and print their rows."""
    wedge = region_masks(known.pair.shape, known.pair.geometry).wedge
    config = TrainingConfig.preset("tiny", steps=steps)
    shipped = load_network("cryo")
    networks = {
        f"{steps} steps": (WedgeTestSettings(), None),
        f"{steps // 5} steps": (WedgeTestSettings(steps=steps // 5), None),
        f"shipped + {steps // 10}": (WedgeTestSettings(start="cryo"), shipped),
    }
    rows = []
    for network, (settings, init) in networks.items():
        started = time.perf_counter()
        (fold,) = WedgeTest(known.pair, method_of(config), config, settings, init=init).folds()
        fold.train()
        filled = fold.predict()
        found = fold.judge(filled).correlation
        used = fold.held_out.sector & up_to(known.pair.shape, found.limit)
        sector, beyond = (fourier_correlation(filled, known.truth, mask) for mask in (used, wedge))
        recorded = None if known.noise_free is None else fourier_correlation(filled, known.noise_free, used)
        ceiling = fold.judge(known.truth).correlation.estimate
        row = Row(name, network, found.estimate, found.error, sector, beyond)
        print(
            f"| {row.name} | {network} | {row.estimate:.3f} ± {row.error:.3f} "
            f"| {'' if recorded is None else f'{recorded:.3f}'} | {row.sector:.3f} | {row.wedge:.3f} | {ceiling:.3f} "
            f"| {max(found.reliability, 0) ** 0.5:.3f} | {found.limit:.2f} | {time.perf_counter() - started:.0f} |",
            flush=True,
        )
        rows.append(row)
    return rows


def up_to(shape: tuple[int, int, int], limit: float) -> Tensor:
    """Return the coefficients in the shells up to the one at ``limit``, without zero frequency."""
    shell = (2 * (min(shape) // 2) * frequency_radius(shape)).round()
    return (shell > 0) & (shell <= round(2 * (min(shape) // 2) * limit)) & (frequency_radius(shape) <= 0.5 + 1e-9)


def _read(folder: Path) -> Known:
    (tilts,) = folder.glob("*.tlt")
    pair = TomogramPair.read(folder / "even.mrc", folder / "odd.mrc", tilts=tilts)
    return Known(pair, torch.from_numpy(np.array(read_volume(folder / "gt.mrc").data, np.float32)))


def _simulated(specimen: Callable[[torch.Generator], Tensor], snr: float, tilts: range) -> Callable[[], Known]:
    def make() -> Known:
        generator = torch.Generator().manual_seed(11)
        given = {"shape": (_SIDE, _SIDE, _SIDE), "geometry": TiltGeometry(tilts), "specimen": specimen(generator)}
        halves = simulate_halves(**given, snr=snr, generator=generator)
        noise_free = simulate_halves(**given, snr=math.inf).first
        pair = TomogramPair(halves.first, halves.second, halves.geometry, voxel_size=10.0)
        return Known(pair, halves.truth, noise_free)

    return make


def _particles(generator: torch.Generator) -> Tensor:
    return simulate_particles((_SIDE, _SIDE, _SIDE), generator=generator)


def _specimen(generator: torch.Generator) -> Tensor:
    return simulate_specimen((_SIDE, _SIDE, _SIDE), generator=generator)


def _sparse(generator: torch.Generator) -> Tensor:
    contents = ("particles", "actin")
    return simulate_specimen((_SIDE, _SIDE, _SIDE), crowding=0.03, contents=contents, generator=generator)


SIMULATED = {
    "sparse": _simulated(_sparse, 0.5, range(-60, 61, 3)),
    "noisy": _simulated(_specimen, 0.05, range(-60, 61, 3)),
    "materials": _simulated(_particles, 5.0, range(-70, 71, 2)),
}


def _draw(path: Path, rows: list[Row]) -> None:
    """Draw the estimates over the truth in the sector and in the wedge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.3), layout="constrained")
    titles = {"sector": "in the held-out sector", "wedge": "in the true wedge (extrapolated)"}
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row.name for row in rows))}
    markers = dict(zip(dict.fromkeys(row.network for row in rows), "os^", strict=True))
    for axes, (place, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for row in rows:
            axes.errorbar(
                getattr(row, place),
                row.estimate,
                yerr=1.96 * row.error,
                color=colours[row.name],
                marker=markers[row.network],
                capsize=2,
                label=f"{row.name}, {row.network}",
            )
        axes.plot([-1, 1], [-1, 1], color="grey", linewidth=0.7, linestyle="--")
        axes.set(
            xlim=(-1, 1.05), ylim=(-1, 1.05), xlabel=f"true correlation {title}", ylabel="estimated, 95 % interval"
        )
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=6)
    with atomic_file(path, overwrite=True) as file:
        figure.savefig(file, dpi=110, format="png")


if __name__ == "__main__":
    main()
