"""The parts of a report, made of what a run has left in its folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from equitomo.datasets import TomogramPair
from equitomo.metrics import fourier_shell_correlation, region_masks
from equitomo.report import Chapter, Curve, FileEntry, Link, Table, draw_curves, draw_loss_curves, preview_pictures
from equitomo.run.folder import (
    TILT_CONTROL,
    TILT_TEST,
    TILT_TRAININGS,
    WEDGE_CHOICE,
    WEDGE_TEST,
    WEDGE_TRAININGS,
)
from equitomo.run.memory import readable
from equitomo.run.summary import MeanOfHalves, agreement, tapered_middle
from equitomo.run.verdict import verdict
from equitomo.training.loss_table import LossHistory
from equitomo.volumes import VolumeLike

SPOTS = "filled_spots.csv"
_MOST_SPOTS = 12
# What a file of a run is for. Those that are not there are left out.
_PURPOSES = {
    "reconstruction.mrc": "the result: denoised, and its missing wedge filled with what was inferred",
    "refined.mrc": "the result in agreement with the projections",
    "deconvolved.mrc": "the result without the contrast transfer function, for looking at",
    "measured.mrc": "the part of the result that was measured; this part may be compared with templates",
    "filled.mrc": "the part of the result that was inferred, not measured",
    "data_consistent.mrc": "what was measured as it was measured, with only the wedge from the result",
    "wedge_mask.mrc": "which frequencies were measured, for programs that match templates",
    "confidence.mrc": "the standard deviation of each voxel",
    "filled_spots.csv": "spots that the measured part of the result shows less than it should",
    "filled_spots.png": "these spots, drawn",
    WEDGE_TEST: "how well a sector that was measured is filled when it is withheld",
    WEDGE_CHOICE: "which settings fill such a sector best",
    WEDGE_TRAININGS: "the networks of that test, which have never seen that sector",
    TILT_TEST: "how well tilts at the ends of the range are foretold when they are withheld",
    TILT_CONTROL: "the same for tilts inside the range, as a control",
    TILT_TRAININGS: "the networks of that test, which have never seen those tilts",
    "slices.png": "central sections and spectra",
    "losses.csv": "the losses of all steps",
    "losses.png": "the losses, drawn",
    "held_out.csv": "the error on a block that was held out, at several steps",
    "previews": "a fixed cube while the network learned",
    "checkpoints": "the network, to predict with or to continue the training",
    "manifest.json": "the record: inputs with their hashes, settings, versions and times",
    "even.mrc": "the first half of the demonstration",
    "odd.mrc": "the second half of the demonstration",
    "truth.mrc": "the specimen of the demonstration",
    "tilts.tlt": "the tilts of the demonstration",
}


def spots_chapter(folder: Path) -> Chapter | None:
    """Return where a feature is shown by the filled part only; ``None`` if that was not looked for."""
    path = folder / SPOTS
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = (
        f"{len(rows):,} spots of the result have less contrast in its measured part than a compact structure would "
        "have there. Doubt these first; a membrane that lies flat in the section may be among them and still be right."
    )
    if not rows:
        return Chapter("spots", "Where to doubt first", ["The measured part shows all spots of the result."])
    links = [
        Link(f"z {row['z']}, y {row['y']}, x {row['x']}", f"z={row['z']}&y={row['y']}") for row in rows[:_MOST_SPOTS]
    ]
    values = [[f"{float(row[name]):.3g}" for name in ("contrast", "measured")] for row in rows[:_MOST_SPOTS]]
    lines: list[list[str | Link]] = [[link, *numbers] for link, numbers in zip(links, values, strict=True)]
    table = Table(["voxel", "contrast in the result", "in its measured part"], lines)
    if len(rows) > _MOST_SPOTS:
        text += f" The {_MOST_SPOTS} largest are listed, all of them in {SPOTS}."
    return Chapter("spots", "Where to doubt first", [text], table=table)


def correlation_chapter(pair: TomogramPair, after: VolumeLike) -> Chapter:
    """Return how far the halves of the input agree, and how far the result keeps what was measured."""
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    charts, text = [], []
    if pair.n_views == 2:
        first, second = pair.halves
        text.append(f"{agreement(pair)}.")
        caption = (
            "The noise of the halves is independent: where they correlate, they show the specimen. In the wedge "
            "nothing was measured, and what correlates there leaked in from the faces of the volume."
        )
        curves = _curves(pair, first, second)
        charts.append(draw_curves(curves, title="The two halves of the input", caption=caption, voxel_size=size))
    caption = (
        "Where the curve of the measured part is low, the result departs from what was measured: by leaving out "
        "noise, or by more than that."
    )
    curves = {name: curve for name, curve in _curves(pair, MeanOfHalves(pair), after).items() if name != "wedge"}
    charts.append(draw_curves(curves, title="Input and result", caption=caption, voxel_size=size, thresholds=(0.5,)))
    return Chapter("correlation", "Fourier shell correlation", text, charts)


def training_chapter(folder: Path, history: LossHistory, configuration: Mapping[str, Any]) -> Chapter:
    """Return how the training went: the losses, what they say, and the cube that was drawn meanwhile."""
    chart = draw_loss_curves(history.steps, history.losses)
    pictures = preview_pictures(folder / "previews")
    constant, planned = configuration.get("schedule") == "constant", configuration.get("steps")
    curves = {"step": history.steps, **history.losses}
    text = [f"{line}." for line in verdict(folder, curves, constant=constant, planned=planned)]
    if pictures:
        text.append("Below: what the network made of one cube, in its three central sections.")
    return Chapter("training", "How the network learned", text, [chart], pictures)


def listed_files(folder: Path) -> list[FileEntry]:
    """Return the files of a run that are there, with their sizes."""
    found = []
    for name, purpose in _PURPOSES.items():
        path = folder / name
        if path.exists():
            own = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            found.append(FileEntry(name, readable(sum(file.stat().st_size for file in own)), purpose))
    return found


def _curves(pair: TomogramPair, first: VolumeLike, second: VolumeLike) -> dict[str, Curve]:
    """Return the correlation of the middles of two volumes, in all of Fourier space and in its parts."""
    one, other = tapered_middle(first), tapered_middle(second)
    regions = region_masks(one.shape, pair.geometry, second_geometry=pair.geometries[-1])
    masks: dict[str, Tensor | None] = {"whole": None, "measured": regions.measured, "wedge": regions.wedge}
    return {name: Curve.of(fourier_shell_correlation(one, other, mask=mask)) for name, mask in masks.items()}
