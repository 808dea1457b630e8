"""A small run that the wedge test is done on, and the halves that it was trained on."""

import torch

from equitomo import Run, TomogramPair, TrainingConfig, write_volume
from equitomo.geometry import TiltGeometry
from equitomo.simulate import simulate_halves

GEOMETRY = TiltGeometry(range(-60, 61, 6))
CONFIG = TrainingConfig.preset(
    "tiny",
    **{"side": 16, "width": 4, "levels": 2, "unshuffle": 1, "steps": 6, "margin": 4, "batch": 1, "warmup": 4},
    **{"device": "cpu", "precision": "float32"},
)


def small_halves(seed=1):
    return simulate_halves((24, 24, 24), GEOMETRY, snr=2.0, generator=torch.Generator().manual_seed(seed))


def trained_run(folder, config=CONFIG, **given):
    """A finished run in a folder, beside the files of its halves."""
    halves = small_halves()
    paths = [folder / "even.mrc", folder / "odd.mrc"]
    for path, half in zip(paths, (halves.first, halves.second), strict=True):
        write_volume(path, half.numpy(), voxel_size=10.0)
    (folder / "series.tlt").write_text("".join(f"{angle}\n" for angle in GEOMETRY.angles))
    pair = TomogramPair.read(*paths, tilts=folder / "series.tlt")
    return Run.create(folder / "run", pair, config, **given).train()
