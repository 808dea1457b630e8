"""Compare what the wedge test with tilts left out estimates with the truth, and with the test of a sector.

``python -m benchmarks.tilt_test [--steps N] [--picture FILE] FOLDER``. The folder holds ``tilts_even.mrc``,
``tilts_odd.mrc`` and ``tilts_clean.mrc``, the projections of both halves and without noise, and one ``.tlt``. Halves
are made of the series. Three networks of different quality are trained without the outermost tilts: N steps of the
preset ``tiny`` (200 by default) from the weights that come with the package, a tenth of that, and a tenth of that from
the seed. For comparison one of a tenth is trained without every fifth tilt inside the range. One Markdown row is
printed for each, with what the test of a sector says of the same settings. The picture is that of the first network.

*True* is the correlation with the noise-free projections, over the same coefficients as the estimate.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equitomo import TomogramPair, TrainingConfig, load_network, make_halves, read_volume
from equitomo.methods import method_of
from equitomo.metrics import raw_tilt_correlation
from equitomo.run import TiltTest, TiltTestSettings, WedgeTest, WedgeTestSettings
from equitomo.run.tilt_test import TiltFold


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--thickness", type=int, default=64)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    (tilts,) = given.folder.glob("*.tlt")
    clean = torch.from_numpy(np.array(read_volume(given.folder / "tilts_clean.mrc").data, np.float32))
    angles = [float(line) for line in tilts.read_text().split()]
    print("| left out | network | estimated | true | input: estimated, true, power | wedge emptied |", end="")
    print(" measured | up to | pixels | sector | s |\n|" + " --- |" * 11, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stacks = (given.folder / "tilts_even.mrc", given.folder / "tilts_odd.mrc")
        make_halves(*stacks, tilts=tilts, thickness=given.thickness, strict=False, out=folder, pixel_size=10.0)
        first, second = sorted(Path(folder).glob("*_half*.mrc"))
        pair = TomogramPair.read(first, second, tilts=tilts, is_tomogram=True)
        n, tenth = given.steps, given.steps // 10
        networks = ((tenth, "cryo", None), (tenth, "cryo", 5), (tenth, "seed", None), (n, "cryo", None))
        for number, (steps, start, every) in enumerate(networks):
            picture = given.picture if number == 0 else None
            _row(pair, dict(zip(angles, clean, strict=True)), steps, start, every, picture)


def _row(
    pair: TomogramPair, clean: dict[float, Tensor], steps: int, start: str, every: int | None, picture: Path | None
) -> None:
    """Train one network and print its row."""
    started = time.perf_counter()
    config, init = TrainingConfig.preset("tiny", steps=steps), None if start == "seed" else load_network(start)
    settings = TiltTestSettings(series="auto", every=every, start=start, steps=steps)
    test = TiltTest(pair, method_of(config), config, settings, init=init)
    (fold,) = test.folds()
    fold.train()
    filled = fold.predict()
    result = fold.judge(filled)
    together = {name: scores.together.found for name, scores in result.scores.items()}
    found, given, emptied = (together[name] for name in ("prediction", "input", "emptied"))
    truths = [clean[tilt.images.angle] for tilt in fold.held_out.tilts]
    inside = fold.held_out.pair
    true, true_input = (
        _true(fold, volume, truths, found.limit) for volume in (filled, inside.restore(inside.volumes.mean(0)))
    )
    widths = [tilt.stop - tilt.start for tilt in fold.held_out.tilts]
    sector = ""
    if every is None:
        same = WedgeTest(pair, method_of(config), config, WedgeTestSettings(start=start, steps=steps), init=init).run()
        sector = f"{same.estimate:.3f} ± {same.error:.3f}"
    if picture is not None:
        print(test.result([result]).draw(picture))
    print(
        f"| {'the ends' if every is None else f'every {every}th'} | {start} + {steps} "
        f"| {found.estimate:.3f} ± {found.error:.3f} | {true:.3f} "
        f"| {given.estimate:.3f}, {true_input:.3f}, {given.power:.0%} | {emptied.estimate:.3f}, {emptied.power:.0%} "
        f"| {math.sqrt(max(found.reliability, 0)):.3f} | {found.limit:.2f} | {min(widths)} to {max(widths)} | {sector} "
        f"| {time.perf_counter() - started:.0f} |",
        flush=True,
    )


def _true(fold: TiltFold, volume: Tensor, truths: list[Tensor], limit: float) -> float:
    """Return the correlation of a volume's projections with noise-free ones, over the rings that the estimate uses."""
    tilts = fold.held_out.tilts
    n_rings = min(min(tilt.region.shape[0], tilt.stop - tilt.start) for tilt in tilts) // 2
    predicted, exact, regions = [], [], []
    for tilt, view, truth in zip(tilts, fold.held_out.projections(volume), truths, strict=True):
        n_along, width = tilt.region.shape[0], tilt.stop - tilt.start
        radius = (torch.fft.fftfreq(n_along)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).sqrt()
        regions.append(tilt.region & (radius <= limit + 0.5 / (2 * n_rings)))
        predicted.append(tilt.of(view))
        exact.append(tilt.of(truth))
    return raw_tilt_correlation(predicted, exact, regions, n_rings=n_rings).raw


if __name__ == "__main__":
    main()
