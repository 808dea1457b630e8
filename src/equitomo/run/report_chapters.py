"""The parts of a report, made of what a run has left in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from equitomo.datasets import TomogramPair
from equitomo.geometry import as_geometry
from equitomo.metrics import fourier_shell_correlation, region_masks
from equitomo.report import Chapter, Curve, FileEntry, Link, Table, draw_curves, draw_loss_curves, preview_pictures
from equitomo.run.memory import readable
from equitomo.run.summary import MeanOfHalves, agreement, tapered_middle
from equitomo.run.verdict import verdict
from equitomo.training.loss_table import LossHistory
from equitomo.volumes import VolumeLike

WEDGE_TEST, SPOTS = "wedge_test.json", "filled_spots.csv"
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
    "wedge_test.json": "how well a sector that was measured is filled when it is withheld",
    "wedge_choice.json": "which settings fill such a sector best",
    "wedge_test": "the networks of that test, which have never seen that sector",
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


@dataclass(frozen=True)
class TestedSector:
    """A sector of the wedge test: a network that has never seen it has filled it.

    Parameters
    ----------
    kept
        The tilts that the network was trained on.
    steps
        The steps of its training.
    estimate, error
        The estimated correlation with the noise-free specimen and its standard error; ``None`` if the halves do not
        agree in the sector.
    reliability
        The share of signal in the power of the mean of the halves, ``None`` likewise.
    curve
        The estimate in each shell.
    """

    # Pytest must not take it for a test.
    __test__ = False

    kept: str
    steps: int
    estimate: float | None
    error: float | None
    reliability: float | None
    curve: Curve

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """Return the sector that an entry of ``wedge_test.json`` describes."""
        numbers = ("correlation", "correlation_error")
        values, errors = ([float("nan") if n is None else float(n) for n in described[name]] for name in numbers)
        found = {name: described[name] for name in ("estimate", "error", "reliability")}
        return cls(
            str(as_geometry(described["kept_tilts"])),
            int(described["steps"]),
            **{name: None if value is None else float(value) for name, value in found.items()},
            curve=Curve([float(f) for f in described["frequency"]], values, errors),
        )

    def text(self) -> str:
        """Return what was found, in plain words."""
        trained = f"A network that was trained for {self.steps:,} steps on the tilts {self.kept} alone filled the rest"
        if self.estimate is None or self.error is None or not self.reliability:
            return f"{trained}. The halves do not agree there, so that nothing can be said about what it filled in."
        return (
            f"{trained}. Its correlation with the noise-free specimen there is estimated as {self.estimate:.2f} ± "
            f"{1.96 * self.error:.2f} (95 %). An empty sector scores 0, and what was measured there, with its noise, "
            f"{self.reliability**0.5:.2f}."
        )


def wedge_test_chapter(folder: Path) -> Chapter | None:
    """Return what the wedge test of a run found; ``None`` if there is none.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = folder / WEDGE_TEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        sectors = [TestedSector.of(described) for described in content["folds"]]
        size = content.get("voxel_size")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): make it anew by `equitomo wedge-test`") from error
    caption = (
        "The estimate in each shell, with its 95 % interval. Shells in which the halves do not agree are left out."
    )
    curves = {f"trained on {sector.kept}": sector.curve for sector in sectors}
    chart = draw_curves(curves, title="Correlation with the specimen", caption=caption, voxel_size=size, thresholds=())
    introduction = (
        "Nobody can look into the missing wedge. But tilts that were measured can be withheld, and what a network "
        "fills in for them can be compared with what was measured."
    )
    text = [introduction, *(one.text() for one in sectors)]
    if content.get("start") == "run":
        text.append("The network had seen the noise of these tilts before, so that the estimate may be too high.")
    return Chapter("wedge-test", "How well a wedge is filled", text, [chart])


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
    regions = region_masks(one.shape, pair.geometry)
    masks: dict[str, Tensor | None] = {"whole": None, "measured": regions.measured, "wedge": regions.wedge}
    return {name: Curve.of(fourier_shell_correlation(one, other, mask=mask)) for name, mask in masks.items()}
