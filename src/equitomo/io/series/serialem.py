"""Read SerialEM's ``.mdoc``: one for the whole series, or one for the frames of each tilt.

The reader is our own: ``mdocfile`` rejects a file for a value that nobody needs, does not name the line, and does not
join the files of single tilts.
"""

import re
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from equitomo.io.angles import Found, Lines, number
from equitomo.io.errors import FileFormatError

from .metadata import SeriesMetadata
from .tables import dose_before, existing, lines_of, order_of, stack_header

_KIND = ".mdoc of SerialEM"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class Section(NamedTuple):
    """One section: the line of its head, its number, and its values with their lines."""

    line: int
    number: int
    values: dict[str, tuple[int, str]]

    def get(self, name: str) -> str | None:
        """Return a value, or None."""
        return self.values[name][1] if name in self.values else None


class Mdoc(NamedTuple):
    """The content of an ``.mdoc``: titles, values before the first section, sections, and what their heads count."""

    titles: list[str]
    values: dict[str, str]
    sections: list[Section]
    kind: str


def parse_mdoc(path: Path, lines: Lines) -> Mdoc:
    """Return the sections ``[ZValue = n]`` of a series, or ``[FrameSet = n]`` of the frames of one tilt."""
    mdoc = Mdoc([], {}, [], "")
    kinds = {"ZValue": list[Section](), "FrameSet": list[Section]()}
    current: Section | None = None
    inside = False
    for line, text in lines:
        head = re.match(r"\s*\[\s*(\w+)\s*=\s*(.*?)\s*\]?\s*$", text)
        value = re.match(r"\s*(\w+)\s*=\s*(.*?)\s*$", text)
        if text.lstrip().startswith("["):
            current, inside = None, True
            if head and head[1] == "T":
                mdoc.titles.append(head[2])
                inside = bool(mdoc.sections)
            elif head and head[1] in kinds:
                if not head[2].isdecimal():
                    raise FileFormatError(f"{path}: line {line}: the section {head[2]!r} is not a number")
                current = Section(line, int(head[2]), {})
                kinds[head[1]].append(current)
        elif value and current is not None:
            if value[1] == "TiltAngle" and "TiltAngle" in current.values:
                raise FileFormatError(
                    f"{path}: line {line}: a second TiltAngle in this section, expected one per view; export the file "
                    "again"
                )
            current.values[value[1]] = line, value[2]
        elif value and not inside:
            if value[1] == "T":
                mdoc.titles.append(value[2])
            mdoc.values.setdefault(value[1], value[2])
    kind = "ZValue" if kinds["ZValue"] else "FrameSet"
    if not kinds[kind]:
        raise FileFormatError(f"{path}: no [ZValue = n] and no [FrameSet = 0] sections, so this is not an {_KIND}")
    return mdoc._replace(sections=kinds[kind], kind=kind)


def mdoc_angles(path: Path, lines: Lines) -> list[Found]:
    """Return the ``TiltAngle`` of every view; if the file is that of one tilt, those of all files of the series."""
    mdoc = parse_mdoc(path, lines)
    if mdoc.kind == "ZValue":
        return [_angle(path, section) for section in mdoc.sections]
    return [_angle(file, section) for file, section in _frame_sections(path)]


def read_serialem(path: Path) -> SeriesMetadata:
    """Return one tilt series of SerialEM from its ``.mdoc``, or from one of the files of its tilts."""
    mdoc = parse_mdoc(path, lines_of(path, _KIND, "expected sections"))
    if mdoc.kind == "FrameSet":
        found = _frame_sections(path)
        name, stack = series_name(path), None
    else:
        found = [(path, section) for section in mdoc.sections]
        name = re.sub(r"(?i)(\.(mrc|st|tif|tiff))?\.mdoc$", "", path.name)
        named = mdoc.values.get("ImageFile")
        options = [path.with_suffix(""), *(path.parent / f"{name}{end}" for end in (".mrc", ".st"))]
        stack = existing([path.parent / PureWindowsPath(named).name if named else None, *options])
    files, sections = [file for file, _ in found], [section for _, section in found]
    known = _acquisition(files, sections)
    size = re.fullmatch(r"(\d+)\s+(\d+)", mdoc.values.get("ImageSize", ""))
    series = SeriesMetadata(
        name,
        tuple(_angle(file, section)[1] for file, section in found),
        stack=stack,
        sections=tuple(section.number for section in sections) if mdoc.kind == "ZValue" else None,
        movies=_movies(path.parent, sections),
        tilt_axis_angle=_tilt_axis(mdoc.titles, len(found)),
        pixel_size=_first(path, mdoc, "PixelSpacing"),
        image_shape=(int(size[2]), int(size[1])) if size else None,
        voltage=_first(path, mdoc, "Voltage"),
        # SerialEM counts micrometres and gives underfocus as negative.
        nominal_defocus=-1e4 * defocus if (defocus := _first(path, mdoc, "TargetDefocus")) else None,
        program="serialem",
        files=tuple(dict.fromkeys(files)),
        notes=() if mdoc.kind == "ZValue" else ("the frames are not aligned and summed yet",),
        **known,
    )
    if stack is not None:
        _require_same_stack(path, series, stack)
    return series


def _require_same_stack(path: Path, series: SeriesMetadata, stack: Path) -> None:
    """Refuse an ``.mdoc`` that does not describe the stack beside it."""
    (n, _, _), _ = stack_header(stack)
    if n != series.n_views:
        raise FileFormatError(
            f"{path}: describes {series.n_views} views, but {stack.name} has {n} images; give the .mdoc of this stack"
        )


def _angle(path: Path, section: Section) -> Found:
    """Return the tilt of a section, and its line."""
    if "TiltAngle" not in section.values:
        raise FileFormatError(f"{path}: line {section.line}: this section has no TiltAngle; export the file again")
    line, text = section.values["TiltAngle"]
    return f"line {line}", number(path, line, text)


def series_name(path: Path) -> str:
    """Return the name that the files of all tilts of a series share: what stands before ``_NNN_ANGLE``."""
    name = re.sub(r"(?i)\.mdoc$", "", path.name)
    found = re.match(r"(.+?)_\d{2,5}_\[?[-+]?\d+(\.\d+)?\]?([_.].*)?$", name)
    return found[1] if found else path.parent.name


def _frame_sections(path: Path) -> list[tuple[Path, Section]]:
    """Return the only section of each file of the series, in the order of the acquisition or of the names."""
    name = series_name(path)
    files = sorted(file for file in path.parent.glob("*.mdoc") if series_name(file) == name)
    found = []
    for file in files:
        mdoc = parse_mdoc(file, lines_of(file, _KIND, "expected sections"))
        if mdoc.kind == "FrameSet":
            if len(mdoc.sections) > 1:
                raise FileFormatError(f"{file}: holds {len(mdoc.sections)} sets of frames, expected those of one tilt")
            found.append((file, mdoc.sections[0]))
    times = [_time(section) for _, section in found]
    if None not in times:
        found = [found[n] for n in sorted(range(len(found)), key=lambda n: times[n] or datetime.min)]
    if len(found) < 2:
        raise FileFormatError(
            f"{path}: describes the frames of one tilt ([FrameSet = 0]), and there are no others of {name} beside it; "
            "give the .mdoc of the whole series, or keep all of them in one folder"
        )
    return found


def _acquisition(files: list[Path], sections: list[Section]) -> dict[str, Any]:
    """Return the order of the acquisition and the dose before each view, as far as they are known."""
    times = [_time(section) for section in sections]
    known: dict[str, Any] = {}
    if None not in times:
        known["acquisition_order"] = order_of(times)
    prior = [_number(*pair, "PriorRecordDose") for pair in zip(files, sections, strict=True)]
    doses = [_number(*pair, "ExposureDose") or 0.0 for pair in zip(files, sections, strict=True)]
    if None not in prior and any(prior):
        known["dose"] = tuple(prior)
    elif all(doses):
        known["dose"] = dose_before(doses, known.get("acquisition_order", range(len(doses))))
    return known


def _number(path: Path, section: Section, name: str) -> float | None:
    """Return a number of a section, or None."""
    if name not in section.values:
        return None
    line, text = section.values[name]
    return number(path, line, text, f"a number ({name})")


def _first(path: Path, mdoc: Mdoc, name: str) -> float | None:
    """Return a number from the first section, else from the head; None if it is missing or 0."""
    value = _number(path, mdoc.sections[0], name)
    return (value if value is not None else number(path, 1, mdoc.values.get(name, "0"), f"a number ({name})")) or None


def _time(section: Section) -> datetime | None:
    """Return the time of a section: ``26-Oct-23  17:06:51``, also with the year in four figures or first."""
    text = section.get("DateTime") or ""
    found = re.fullmatch(r"(\d+)-([A-Za-z]{3})-(\d+)\s+(\d+):(\d+):(\d+)(\.\d*)?", text)
    if found is None or found[2].lower() not in _MONTHS:
        return None
    day, year = int(found[1]), int(found[3])
    day, year = (year, day) if day > 31 else (day, year)
    try:
        hour, minute, second = map(int, found.groups()[3:6])
        month = _MONTHS.index(found[2].lower()) + 1
        return datetime(year + 2000 * (year < 100), month, day, hour, minute, second)
    except ValueError:
        return None


def _movies(folder: Path, sections: list[Section]) -> tuple[Path, ...] | None:
    """Return the files of frames, which SerialEM names by their paths on the camera's computer."""
    names = [section.get("SubFramePath") for section in sections]
    return tuple(folder / PureWindowsPath(name or "").name for name in names) if all(names) else None


def _tilt_axis(titles: list[str], n: int) -> tuple[float, ...] | None:
    """Return the nominal angle of the tilt axis, the same for each view, from SerialEM's title."""
    for title in titles:
        if found := re.search(r"Tilt axis angle\s*=\s*([-+.\d]+)", title):
            return (float(found[1]),) * n
    return None
