"""The parts of a report about what a network fills in for tilts that were measured and withheld from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

from equitomo.geometry import as_geometry
from equitomo.report import Chapter, Chart, Curve, Table, TiltCurve, draw_curves, draw_tilts
from equitomo.run.folder import TILT_CONTROL, TILT_TEST, WEDGE_TEST

_Entry = TypeVar("_Entry")
# The volumes that are projected at tilts which were left out, in the words of a reader.
_PROJECTED = {"prediction": "result", "input": "input", "emptied": "result, wedge emptied"}
_ENDS = {"both": "both ends", "low": "low end", "high": "high end"}


def wedge_test_chapter(folder: Path) -> Chapter | None:
    """Return what the wedge test of a run found; ``None`` if there is none.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    content = _content(folder / WEDGE_TEST, TestedSector.of)
    if content is None:
        return None
    caption = (
        "The estimate in each shell, with its 95 % interval. Shells in which the halves do not agree are left out."
    )
    curves = {f"trained on {sector.kept}": sector.curve for sector in content.folds}
    title, size = "Correlation with the specimen", content.voxel_size
    chart = draw_curves(curves, title=title, caption=caption, voxel_size=size, thresholds=(), low=_low(curves.values()))
    introduction = (
        "Nobody can look into the missing wedge. But tilts that were measured can be withheld, and what a network "
        "fills in for them can be compared with what was measured."
    )
    text = [introduction, *(one.text() for one in content.folds)]
    if content.has_seen_the_noise:
        text.append("The network had seen the noise of these tilts before, so that the estimate may be too high.")
    return Chapter("wedge-test", "How well a wedge is filled", text, [chart])


def tilt_test_chapter(folder: Path) -> Chapter | None:
    """Return what the wedge test with whole tilts left out found, and its control; ``None`` if there is neither.

    Raises
    ------
    ValueError
        If a file is damaged.
    """
    tested, control = (_content(folder / name, LeftOutTilts.of) for name in (TILT_TEST, TILT_CONTROL))
    if tested is None and control is None:
        return None
    text = [
        "Whole tilts were left out of the series, and tomograms were made of the others. A network was trained on "
        "these, and its result was projected at the tilts left out, as the microscope does it. These projections are "
        "compared with the images that were measured there and withheld."
    ]
    charts, rows = list[Chart](), list[Sequence[str]]()
    for content, name in ((tested, ""), (control, "control")):
        if content is None:
            continue
        text += [one.text() for one in content.folds]
        if len(content.folds) > 1 and not math.isnan(content.estimate):
            text.append(f"All of these together: {_with_error(content.estimate, content.error)} (95 %).")
        if content.has_seen_the_noise:
            text.append("The network had seen the noise of these tilts before, so that this may be too high.")
        charts += _charts(content, f", {name}" if name else "")
        for fold in content.folds:
            rows += fold.rows(", ".join(filter(None, [name, fold.where if len(content.folds) > 1 else ""])))
    table = Table(["projected", "estimated correlation (95 %)", "with the noisy images", "power, of the truth's"], rows)
    return Chapter("tilt-test", "Whole tilts left out", text, charts, table=table)


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


class Score(NamedTuple):
    """What projections of a volume score; NaN for what is not known.

    Parameters
    ----------
    estimate, error
        The estimated correlation with noise-free images, and its standard error.
    raw, raw_error
        The correlation with the noisy images likewise.
    reliability, power
        The share of signal in the power of the images, and the power of the projections relative to that signal.
    curve
        The correlation in each ring: the estimate, or that with the noisy images if there is none.
    """

    estimate: float
    error: float
    raw: float
    raw_error: float
    reliability: float
    power: float
    curve: Curve

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """Return the scores that an entry of ``tilt_test.json`` describes."""
        found = described["found"]
        names = ("estimate", "error", "reliability", "power")
        estimate, error, reliability, power = (_number(None if found is None else found[name]) for name in names)
        values = [_number(one) for one in (described["raw_correlation"] if found is None else found["correlation"])]
        errors = None if found is None else [_number(one) for one in found["correlation_error"]]
        curve = Curve([float(f) for f in described["frequency"]], values, errors)
        return cls(
            estimate, error, _number(described["raw"]), _number(described["raw_error"]), reliability, power, curve
        )


@dataclass(frozen=True)
class LeftOutTilts:
    """Tilts that were left out together, and what projections score that a network has made without them.

    Parameters
    ----------
    where
        Which tilts, in words; empty for tilts inside the range.
    kept
        The tilts that were kept.
    steps
        The steps of the training.
    tilts
        The tilts that were left out, in degrees.
    together
        The scores at all tilts, by the name of the volume that was projected.
    each
        The scores at each tilt.
    """

    where: str
    kept: str
    steps: int
    tilts: Sequence[float]
    together: Mapping[str, Score]
    each: Sequence[Mapping[str, Score]]

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """Return the tilts that an entry of ``tilt_test.json`` describes."""
        ends, tilts = described["ends"], described["tilts"]
        return cls(
            "" if ends is None else _ENDS[ends],
            str(as_geometry(described["kept_tilts"])),
            int(described["steps"]),
            [float(tilt["tilt"]) for tilt in tilts],
            {name: Score.of(described["volumes"][name]) for name in _PROJECTED},
            [{name: Score.of(tilt[name]) for name in _PROJECTED} for tilt in tilts],
        )

    @property
    def is_estimated(self) -> bool:
        """Whether any tilt was measured twice, so that correlations with noise-free images are estimated."""
        return self.together["prediction"].curve.errors is not None

    def text(self) -> str:
        """Return what was found, in plain words."""
        result, given = self.together["prediction"], self.together["input"]
        tilts, trained = ", ".join(f"{tilt:g}" for tilt in self.tilts), f"after {self.steps:,} steps on {self.kept}"
        begin = f"Without the tilts {tilts}, {trained},"
        if not self.where:
            begin = (
                f"As a control, the tilts {tilts} inside the range were left out, of which their neighbours tell "
                f"nearly all. There, {trained},"
            )
        if not self.is_estimated:
            return (
                f"{begin} the result correlates with the noisy images by {_with_error(result.raw, result.raw_error)} "
                f"(95 %), and the input by {given.raw:.2f}. Each of these tilts was measured once, so that the noise "
                "is not known: this tells which of the two is nearer to the specimen, and not how near."
            )
        if math.isnan(result.estimate):
            return f"{begin} nothing can be said: the two measurements of these tilts do not agree."
        measured = max(result.reliability, 0) ** 0.5
        found = (
            f"{begin} the correlation of the result with noise-free images is estimated as "
            f"{_with_error(result.estimate, result.error)} (95 %)"
        )
        if self.where:
            return (
                f"{found}, in what the other tilts do not tell of them. {_meaning(result, measured)} The measured "
                f"images, with their noise, score {measured:.2f}, and the input holds {given.power:.0%} of the truth's "
                "power there."
            )
        return (
            f"{found}, and that of the input, the tomogram of the other tilts, as {given.estimate:.2f}. The input "
            "should score nearly 1 here. If it does not, the alignment, the contrast transfer or the thickness of the "
            "tomogram is at fault, and the number for the ends of the range is too low for the same reason."
        )

    def rows(self, prefix: str) -> list[list[str]]:
        """Return what each volume scores as rows of a table."""
        rows = []
        for name, word in _PROJECTED.items():
            score = self.together[name]
            power = "not known" if math.isnan(score.power) else f"{score.power:.0%}"
            numbers = [_with_error(score.estimate, score.error), _with_error(score.raw, score.raw_error), power]
            rows.append([f"{prefix}: {word}" if prefix else word, *numbers])
        return rows


class _Content(NamedTuple, Generic[_Entry]):
    """What a file of results holds."""

    folds: list[_Entry]
    estimate: float
    error: float
    voxel_size: float | None
    has_seen_the_noise: bool


def _content(path: Path, read: Callable[[Mapping[str, Any]], _Entry]) -> _Content[_Entry] | None:
    """Return what a file of results holds; ``None`` if there is no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        folds = [read(described) for described in content["folds"]]
        estimate, error = (_number(content.get(name)) for name in ("estimate", "error"))
        return _Content(folds, estimate, error, content.get("voxel_size"), content.get("start") == "run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): make it anew by `equitomo wedge-test`") from error


def _charts(content: _Content[LeftOutTilts], suffix: str) -> list[Chart]:
    """Return the correlations in each ring and at each tilt."""
    rings, tilts = dict[str, Curve](), dict[str, TiltCurve]()
    for fold in content.folds:
        for volume in ("prediction", "input"):
            name = _PROJECTED[volume] + (f", {fold.where}" if len(content.folds) > 1 else "")
            rings[name] = fold.together[volume].curve
            scores = [one[volume] for one in fold.each]
            values = [one.estimate if fold.is_estimated else one.raw for one in scores]
            errors = [one.error if fold.is_estimated else one.raw_error for one in scores]
            tilts[name] = TiltCurve(fold.tilts, values, errors)
    is_estimated = all(fold.is_estimated for fold in content.folds)
    kind = "with noise-free images, estimated" if is_estimated else "with the noisy images"
    interval = ", with its 95 % interval" if is_estimated else ""
    by_ring = draw_curves(
        rings,
        title=f"Correlation in each ring{suffix}",
        caption=f"The correlation {kind}, at all tilts together{interval}.",
        voxel_size=content.voxel_size,
        thresholds=(),
        low=_low(rings.values()),
    )
    by_tilt = draw_tilts(
        tilts,
        title=f"Correlation at each tilt{suffix}",
        caption=f"The correlation {kind}, with its 95 % interval. Tilts about which nothing can be said have no point.",
        low=_low(tilts.values()),
    )
    return [by_ring, by_tilt]


def _low(curves: Iterable[Curve | TiltCurve]) -> float:
    """Return the lower end of an axis that shows all values."""
    lowest = min((value for curve in curves for value in curve.values if not math.isnan(value)), default=0)
    return -0.1 if lowest > -0.1 else max(lowest - 0.15, -1.03)


def _meaning(score: Score, measured: float) -> str:
    """Return what an estimate means, beside what the measured images score."""
    low, high = score.estimate - 1.96 * score.error, score.estimate + 1.96 * score.error
    if high < 0:
        return "That is worse than an empty wedge, which scores 0: do not believe what was filled in."
    if low <= 0:
        return "That cannot be told from 0, the score of an empty wedge: do not believe what was filled in."
    if low > measured:
        return "1 is the truth, and an empty wedge scores 0. Filling in was worth more than measuring with this dose."
    return "1 is the truth, and an empty wedge scores 0."


def _with_error(value: float, error: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.2f} ± {1.96 * error:.2f}"


def _number(value: float | None) -> float:
    """Return a number of a file, which has ``None`` in place of NaN."""
    return math.nan if value is None else float(value)
