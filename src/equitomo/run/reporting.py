"""The report of a run, or of a volume that another program made: one HTML page with all that is known about it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from equitomo.datasets import TomogramPair, read_geometry
from equitomo.diagnosis import Finding, diagnose
from equitomo.geometry import shared_axes
from equitomo.io import Volume, read_volume, require_writable, valid_path, write_atomically
from equitomo.metrics import FourierShellCorrelation, fourier_shell_correlation, region_masks
from equitomo.report import (
    Chapter,
    Cut,
    FileEntry,
    Grey,
    Page,
    Shown,
    cut_volumes,
    draw_curves,
    draw_loss_curves,
    preview_pictures,
    spectra,
)
from equitomo.run.folder import REPORT, RESULTS
from equitomo.run.memory import readable
from equitomo.run.recorded import RunRecord, span
from equitomo.run.settings import ReportFiles
from equitomo.run.summary import MeanOfHalves, agreement, filling, tapered_middle
from equitomo.volumes import VolumeLike

_NOT_LOSSES = ("step", "learning_rate", "skipped")
_BEFORE, _AFTER = "Before", "After"
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
    "filled_spots.csv": "where a feature is in the filled part only",
    "wedge_test.json": "how well a sector that was measured is filled when it is withheld",
    "slices.png": "central sections and spectra",
    "losses.csv": "the losses of all steps",
    "losses.png": "the losses, drawn",
    "previews": "a fixed cube while the network learned",
    "checkpoints": "the network, to predict with or to continue the training",
    "manifest.json": "the record: inputs with their hashes, settings, versions and times",
    "even.mrc": "the first half of the demonstration",
    "odd.mrc": "the second half of the demonstration",
    "truth.mrc": "the specimen of the demonstration",
    "tilts.tlt": "the tilts of the demonstration",
}


def report_run(
    folder: str | Path, out: str | Path | None = None, *, pair: TomogramPair | None = None, overwrite: bool = True
) -> Path:
    """Write the report of a run as one HTML file, and return its path.

    Parameters
    ----------
    folder
        The folder of the run.
    out
        The file; ``None`` for ``report.html`` in the folder.
    pair
        The tomogram of a run that is still at work; ``None`` reads it from where the record says it was.
    overwrite
        Replace the file if it exists.

    Raises
    ------
    ValueError
        If the folder holds no run, or its record is damaged.
    OSError
        If the report cannot be written.
    """
    folder = valid_path(folder)
    out = folder / REPORT if out is None else valid_path(out)
    require_writable(out, overwrite=overwrite)
    record = RunRecord.read(folder)
    warnings = record.warnings(is_running=pair is not None)
    if pair is None:
        pair, problem = _reopened(folder, record)
        warnings += problem
    return _write(_run_page(folder, record, pair, warnings), out)


def report_volume(files: ReportFiles) -> Path:
    """Write the report of a volume that any program made of a tomogram, and return its path.

    Parameters
    ----------
    files
        The tomogram as it was measured, the volume that was made of it, the tilts and the file to write.

    Raises
    ------
    ValueError
        If a file is missing or cannot be used, or the volumes differ in shape.
    OSError
        If a file cannot be read or written.
    """
    if files.second is None or files.out is None:
        raise ValueError(
            "give the folder of a run, or a tomogram as it was measured and the volume that was made of it, with "
            "`tilts` and `out`"
        )
    if files.tilts is None:
        raise ValueError("`tilts` is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
    out = valid_path(files.out)
    require_writable(out, overwrite=files.overwrite)
    geometry = read_geometry(files.tilts, files.tilt_axis or "y", files.second_axis_tilts)
    before, after = (read_volume(path, permissive=files.permissive) for path in (files.first, files.second))
    if before.shape != after.shape:
        raise ValueError(
            f"{files.first} has {before.shape} voxels (z, y, x) and {files.second} {after.shape}: give two volumes on "
            "one grid"
        )
    pair = TomogramPair(before, None, geometry, nan=files.nan, lazy=True)
    findings = diagnose(pair)
    page = Page(
        title=f"{after.path.name}, made of {before.path.name}",
        subtitle=_described(pair),
        warnings=_of_findings(findings),
        cuts=_cuts(pair, {_AFTER: Shown(_AFTER, after, after.path.name)}),
        spectra=spectra({_BEFORE: MeanOfHalves(pair), _AFTER: after}, geometry),
        chapters=[_filled(pair, after), _kept(pair, after)],
        findings=findings,
        facts={f"Input: {role}": _facts(one) for role, one in (("before", before), ("after", after))},
    )
    return _write(page, out)


@dataclass(frozen=True)
class LossHistory:
    """The losses of a run by name, the steps they belong to, and how many steps were skipped."""

    steps: Sequence[int]
    losses: Mapping[str, Sequence[float]]
    n_skipped: int

    @classmethod
    def read(cls, path: Path) -> LossHistory | None:
        """Read ``losses.csv``; return ``None`` if there is none or it holds no steps."""
        if not path.is_file():
            return None
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        names = [name for name in reader.fieldnames or () if name not in _NOT_LOSSES]
        losses = {name: [float(row[name]) for row in rows] for name in names}
        skipped = sum(int(float(row.get("skipped") or 0)) for row in rows)
        return cls([int(row["step"]) for row in rows], losses, skipped) if rows else None


def _run_page(folder: Path, record: RunRecord, pair: TomogramPair | None, warnings: list[str]) -> Page:
    """Return the page of a run, without the volumes if there is no tomogram at hand or no result yet."""
    history = LossHistory.read(folder / "losses.csv")
    if history is not None and history.n_skipped:
        warnings.append(
            f"{history.n_skipped} of {len(history.steps):,} steps were skipped, as a gradient was not finite."
        )
    result = folder / RESULTS[0]
    chapters = []
    page = Page(title=_title(folder, record), subtitle="", facts=record.facts(), files=_files(folder))
    parts = [] if pair is None else [_described(pair)]
    if history is not None:
        parts.append(f"{history.steps[-1]:,} steps in {span(record.seconds)}")
    parts.append(record.date)
    if pair is not None:
        findings = diagnose(pair)
        warnings += _of_findings(findings)
        page = replace(page, findings=findings)
        volumes: dict[str, VolumeLike] = {_BEFORE: MeanOfHalves(pair)}
        if result.exists():
            after = read_volume(result)
            volumes[_AFTER] = after
            page = replace(page, cuts=_cuts(pair, _shown(folder, pair, after)))
            chapters += [_filled(pair, after)]
            chapters += [_halves(pair)] if pair.n_views == 2 else []
            chapters += [_kept(pair, after)]
        page = replace(page, spectra=spectra(volumes, pair.geometry))
    if history is not None:
        chapters.append(_training(folder, history))
    return replace(page, subtitle=" · ".join(filter(None, parts)), warnings=warnings, chapters=chapters)


def _reopened(folder: Path, record: RunRecord) -> tuple[TomogramPair | None, list[str]]:
    """Return the tomogram of a run, read from where it was, or ``None`` and the reason why there is none."""
    inputs = {role: str(record.inputs[role]["path"]) for role in ("first", "second") if role in record.inputs}
    if not inputs and (folder / "even.mrc").is_file():
        inputs = {"first": str(folder / "even.mrc"), "second": str(folder / "odd.mrc")}
    if not inputs or not record.geometries:
        return None, ["The run is of several tomograms or of none in a file, so that none is shown."]
    options = record.options
    first, *others = record.geometries
    try:
        pair = TomogramPair.read(
            inputs["first"],
            inputs.get("second"),
            tilts=first,
            second_tilts=others[0] if others else None,
            normalization=record.configuration.get("normalization", "robust"),
            nan=options.get("nan", "refuse"),
            permissive=bool(options.get("permissive", False)),
            is_tomogram=True,
            lazy=True,
        )
        _ = pair.scale
    except (ValueError, OSError) as error:
        return None, [f"The tomogram cannot be shown: {error}"]
    return pair, []


def _shown(folder: Path, pair: TomogramPair, after: Volume) -> dict[str, Shown]:
    """Return the volumes in the folder of a run that a reader compares with its input."""
    found = {_AFTER: Shown(_AFTER, after, "denoised, wedge filled")}
    others: tuple[tuple[str, str, str, Grey], ...] = (
        ("refined.mrc", "Refined", "in agreement with the projections", "shared"),
        ("filled.mrc", "Filled part alone", "inferred, not measured; grey is zero", "shared about zero"),
        ("confidence.mrc", "Confidence", "standard deviation; white is uncertain", "own"),
        ("truth.mrc", "Truth", "the simulated specimen", "shared"),
    )
    for file, name, note, grey in others:
        if (folder / file).is_file() and (volume := read_volume(folder / file)).shape == pair.shape:
            found[name] = Shown(name, volume, note, grey)
    return found


def _cuts(pair: TomogramPair, others: Mapping[str, Shown]) -> list[Cut]:
    note = "mean of the halves" if pair.n_views == 2 else "as it was measured"
    axes = shared_axes(pair.geometry)
    along = 1 if axes is None else axes.along + 3
    return cut_volumes(
        [Shown(_BEFORE, MeanOfHalves(pair), note), *others.values()], voxel_size=pair.voxel_size, along=along
    )


def _filled(pair: TomogramPair, after: VolumeLike) -> Chapter:
    return Chapter("filled", "What was filled", [filling(pair, after)])


def _halves(pair: TomogramPair) -> Chapter:
    first, second = pair.halves
    caption = (
        "The halves have independent noise, so that they correlate by what they show. In the wedge nothing was "
        "measured, and what correlates there leaked in from the faces of the volume."
    )
    chart = draw_curves(_curves(pair, first, second), title="The two halves of the input", caption=caption)
    return Chapter("halves", "How far the input agrees", [f"{agreement(pair)}."], [chart])


def _kept(pair: TomogramPair, after: VolumeLike) -> Chapter:
    caption = (
        "Fourier shell correlation of the input with the result. In the measured part a low value means that the "
        "result departs from what was measured, or that this was noise."
    )
    curves = _curves(pair, MeanOfHalves(pair), after)
    curves.pop("wedge", None)
    chart = draw_curves(curves, title="Input and result", caption=caption, thresholds=(0.5,))
    return Chapter("kept", "Whether the measured part is kept", charts=[chart])


def _curves(pair: TomogramPair, first: VolumeLike, second: VolumeLike) -> dict[str, FourierShellCorrelation]:
    """Return the correlation of the middles of two volumes, in all of Fourier space and in its parts."""
    one, other = tapered_middle(first), tapered_middle(second)
    regions = region_masks(one.shape, pair.geometry)
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    masks: dict[str, Tensor | None] = {"whole": None, "measured": regions.measured, "wedge": regions.wedge}
    return {name: fourier_shell_correlation(one, other, voxel_size=size, mask=mask) for name, mask in masks.items()}


def _training(folder: Path, history: LossHistory) -> Chapter:
    """Return how the training went: the losses, and the cube that was drawn meanwhile."""
    chart = draw_loss_curves(history.steps, history.losses)
    return Chapter(
        "training", "How the network learned", _advice(folder), [chart], preview_pictures(folder / "previews")
    )


def _advice(folder: Path) -> list[str]:
    """Return since which step nothing changed, as sentences."""
    return []


def _title(folder: Path, record: RunRecord) -> str:
    if "first" in record.inputs:
        return f"{folder.absolute().name}: {Path(str(record.inputs['first']['path'])).name}"
    return folder.absolute().name


def _described(pair: TomogramPair) -> str:
    """Return shape, voxel size and tilts in a line."""
    size = (
        ""
        if pair.voxel_size is None
        else " of " + " × ".join(f"{n:.4g}" for n in dict.fromkeys(pair.voxel_size)) + " Å"
    )
    return f"{' × '.join(map(str, pair.shape))} voxels (z, y, x){size} · tilted from {pair.geometry}"


def _of_findings(findings: Sequence[Finding]) -> list[str]:
    """Return the findings that a reader must know first, as sentences."""
    return [
        f"{finding.text[:1].upper()}{finding.text[1:]}."
        for finding in findings
        if finding.severity in ("warning", "error")
    ]


def _facts(volume: Volume) -> dict[str, str]:
    labels = {f"label {n}": str(label) for n, label in enumerate(volume.header.labels, 1)}
    return {"file": str(volume.path.absolute()), "type": str(volume.dtype), **labels}


def _files(folder: Path) -> list[FileEntry]:
    """Return the files of a run that are there, with their sizes."""
    found = []
    for name, purpose in _PURPOSES.items():
        path = folder / name
        if path.exists():
            own = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            found.append(FileEntry(name, readable(sum(file.stat().st_size for file in own)), purpose))
    return found


def _write(page: Page, out: Path) -> Path:
    write_atomically(out, page.html().encode(), overwrite=True)
    return out
