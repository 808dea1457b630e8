"""The report of a run, or of a volume that another program made: one HTML page with all that is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from equitomo.datasets import TomogramPair, read_geometry
from equitomo.datasets.intensities import Nan
from equitomo.diagnosis import Finding, diagnose
from equitomo.geometry import Geometry, shared_axes
from equitomo.io import Volume, read_volume, require_writable, valid_path, write_atomically
from equitomo.report import Cut, Grey, Page, Shown, cut_volumes, spectra
from equitomo.run.confidence import is_learned
from equitomo.run.folder import REPORT, RESULTS, require_other
from equitomo.run.halves.recording import recorded_ctf_state
from equitomo.run.report_chapters import (
    correlation_chapter,
    listed_files,
    spots_chapter,
    training_chapter,
)
from equitomo.run.report_facts import RunRecord, span, voxel_text
from equitomo.run.report_tests import tilt_test_chapter, wedge_test_chapter
from equitomo.run.settings import ReportFiles
from equitomo.run.summary import FilledPart, MeanOfHalves, filling
from equitomo.training.loss_table import LossHistory
from equitomo.volumes import VolumeLike

_FILLED: tuple[str, str, Grey] = ("Filled part alone", "inferred, not measured", "shared about zero")
_BEFORE, _AFTER = "Before", "After"


class RunReport:
    """The report of a run, for which the record is read and the place is checked.

    Parameters
    ----------
    folder
        The folder of the run.
    out
        The HTML file; ``None`` for ``report.html`` in the folder.
    pair
        The tomogram of a run that is still at work; ``None`` reads it from where the record says it was.
    overwrite
        Replace the file ``out`` if it exists. The report in the folder of the run is always replaced.

    Raises
    ------
    ValueError
        If the folder holds no run, or its record is damaged.
    OSError
        If the report cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        out: str | Path | None = None,
        *,
        pair: TomogramPair | None = None,
        overwrite: bool = False,
    ) -> None:
        self._folder, self._pair = valid_path(folder), pair
        self.out = self._folder / REPORT if out is None else valid_path(out)
        self._record = RunRecord.read(self._folder)
        require_writable(self.out, overwrite=overwrite or out is None)

    def write(self) -> Path:
        """Write the report and return its path.

        Raises
        ------
        ValueError
            If a file in the folder is damaged.
        OSError
            If a file cannot be read, or the report cannot be written.
        """
        pair, warnings = self._pair, self._record.warnings(is_running=self._pair is not None)
        if pair is None:
            pair, problems = _reopened(self._folder, self._record)
            warnings += problems
        return _write(_run_page(self._folder, self._record, pair, warnings), self.out)


class VolumeReport:
    """The report of a volume that any program made of a tomogram, for which inputs and place are checked.

    Parameters
    ----------
    before
        The tomogram as it was measured.
    after
        The volume that was made of it, on the same grid.
    geometry
        The tilts, or a pair ``(low, high)`` of degrees about the y axis.
    out
        The HTML file.
    nan
        What to do about voxels of the tomogram that are NaN or infinite, as for :class:`~equitomo.TomogramPair`.
    overwrite
        Replace the file if it exists.

    Raises
    ------
    ValueError
        If the tomogram cannot be used, or the volumes differ in shape.
    OSError
        If a file cannot be read or written.
    """

    def __init__(
        self,
        before: Volume,
        after: Volume,
        geometry: Geometry | tuple[float, float],
        out: str | Path,
        *,
        nan: Nan = "refuse",
        overwrite: bool = False,
    ) -> None:
        self.out = valid_path(out)
        require_writable(self.out, overwrite=overwrite)
        require_other(self.out, before, after)
        if before.shape != after.shape:
            raise ValueError(
                f"{before.path} has {before.shape} voxels (z, y, x) and {after.path} {after.shape}: give two volumes "
                "on one grid"
            )
        self._pair, self._after = TomogramPair(before, None, geometry, nan=nan, lazy=True), after
        _ = self._pair.scale
        self._facts = {f"Input: {role}": _facts(one) for role, one in (("before", before), ("after", after))}

    def write(self) -> Path:
        """Write the report and return its path."""
        pair, after = self._pair, self._after
        findings = _findings(pair)
        page = Page(
            title=after.path.name,
            subtitle=_described(pair),
            warnings=_of_findings(findings),
            cuts=_cuts(pair, [Shown(_AFTER, after, after.path.name), *_filled(pair, after)]),
            spectra=spectra({_BEFORE: MeanOfHalves(pair), _AFTER: after}, pair.geometry),
            spectra_text=filling(pair, after),
            chapters=[correlation_chapter(pair, after)],
            findings=findings,
            facts=self._facts,
        )
        return _write(page, self.out)


def report_of(files: ReportFiles) -> RunReport | VolumeReport:
    """Return the report of a run, or of a volume if two are given, after all checks.

    Raises
    ------
    ValueError, OSError
        As for :class:`RunReport` and :class:`VolumeReport`, or if tilts or the name of the page are missing.
    """
    if files.second is None:
        return RunReport(files.first, files.out, overwrite=files.overwrite)
    if files.tilts is None:
        raise ValueError("`tilts` is needed: a file of tilts, or LOW,HIGH in degrees such as -60,60")
    if files.out is None:
        raise ValueError("`out` is needed: the name of the HTML file to write")
    geometry = read_geometry(files.tilts, files.tilt_axis, files.second_axis_tilts)
    before, after = (read_volume(path, permissive=files.permissive) for path in (files.first, files.second))
    return VolumeReport(before, after, geometry, files.out, nan=files.nan, overwrite=files.overwrite)


def _run_page(folder: Path, record: RunRecord, pair: TomogramPair | None, warnings: list[str]) -> Page:
    """Return the page of a run, without the volumes if there is no tomogram at hand or no result yet."""
    losses = folder / "losses.csv"
    history = LossHistory.read(losses) if losses.is_file() else None
    chapters = [wedge_test_chapter(folder), tilt_test_chapter(folder), spots_chapter(folder)]
    page = Page(title=_title(folder, record), subtitle="", facts=record.facts(), files=listed_files(folder))
    parts = []
    if pair is not None:
        parts.append(_described(pair))
        findings, volumes = _findings(pair), dict[str, VolumeLike]({_BEFORE: MeanOfHalves(pair)})
        warnings += _of_findings(findings)
        page = replace(page, findings=findings)
        if (folder / RESULTS[0]).exists():
            after = volumes[_AFTER] = read_volume(folder / RESULTS[0])
            page = replace(page, cuts=_cuts(pair, _shown(folder, pair, after)), spectra_text=filling(pair, after))
            chapters.append(correlation_chapter(pair, after))
        page = replace(page, spectra=spectra(volumes, pair.geometry))
    if history is not None and len(history.steps):
        parts.append(f"{history.steps[-1]:,} steps in {span(record.seconds)}")
        chapters.append(training_chapter(folder, history, record.configuration))
        if history.n_skipped:
            warnings.append(
                f"{history.n_skipped} of {len(history.steps):,} steps were skipped: a gradient was not finite."
            )
    subtitle = " · ".join(filter(None, [*parts, record.date]))
    return replace(page, subtitle=subtitle, warnings=warnings, chapters=[one for one in chapters if one is not None])


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


def _shown(folder: Path, pair: TomogramPair, after: Volume) -> list[Shown]:
    """Return the volumes in the folder of a run that a reader compares with its input."""
    others: tuple[tuple[str, str, str, Grey], ...] = (
        ("refined.mrc", "Refined", "in agreement with the projections", "shared"),
        ("filled.mrc", *_FILLED),
        (
            "confidence.mrc",
            "Confidence",
            "standard deviation, learned from simulations, too small for some specimens; white is uncertain",
            "own",
        ),
        ("truth.mrc", "Truth", "the simulated specimen", "shared"),
    )
    found = {}
    for file, name, note, grey in others:
        if not (folder / file).is_file():
            continue
        volume = read_volume(folder / file)
        # The others have intervals that are wrong by factors, and would be believed.
        if volume.shape == pair.shape and (file != "confidence.mrc" or is_learned(volume)):
            found[name] = Shown(name, volume, note, grey)
    computed = [] if _FILLED[0] in found else _filled(pair, after)
    return [Shown(_AFTER, after, "denoised, wedge filled"), *computed, *found.values()]


def _filled(pair: TomogramPair, after: VolumeLike) -> list[Shown]:
    """Return the filled part of a result where it can be computed plane by plane."""
    if shared_axes(pair.geometry) is None:
        return []
    name, note, grey = _FILLED
    return [Shown(name, FilledPart(after, pair.geometry), note, grey)]


def _cuts(pair: TomogramPair, others: Sequence[Shown]) -> list[Cut]:
    note = "mean of the halves" if pair.n_views == 2 else "as it was measured"
    axes = shared_axes(pair.geometry)
    along = 1 if axes is None else axes.along + 3
    return cut_volumes([Shown(_BEFORE, MeanOfHalves(pair), note), *others], voxel_size=pair.voxel_size, along=along)


def _title(folder: Path, record: RunRecord) -> str:
    names = [Path(str(record.inputs[role]["path"])).name for role in ("first", "second") if role in record.inputs]
    return f"{folder.absolute().name}, from {' and '.join(names)}" if names else folder.absolute().name


def _described(pair: TomogramPair) -> str:
    """Return shape, voxel size and tilts in a line."""
    size = "" if pair.voxel_size is None else f" of {voxel_text(pair.voxel_size)}"
    return f"{' × '.join(map(str, pair.shape))} voxels (z, y, x){size} · tilted from {pair.geometry}"


def _findings(pair: TomogramPair) -> list[Finding]:
    """Return the findings on a pair, whose contrast transfer is known if `equitomo halves` made it."""
    first = pair.files.get("first")
    return diagnose(pair, ctf_state=recorded_ctf_state(first.path) if isinstance(first, Volume) else "unknown")


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


def _write(page: Page, out: Path) -> Path:
    write_atomically(out, page.html().encode(), overwrite=True)
    return out
