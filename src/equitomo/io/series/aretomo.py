"""Read what AreTomo 2 and 3 write: ``.aln``, ``_TLT.txt``, ``_CTF.txt``, the stacks and the tomograms of both halves.

The reader is our own: ``alnfile`` gives the columns, but neither checks that the alignment belongs to the stack nor
says where a damaged file is wrong, and the numbering of the views (``SEC``) differs between versions of AreTomo.
"""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from equitomo.io.angles import Lines, number
from equitomo.io.errors import FileFormatError

from .imod import read_defocus
from .metadata import CtfState, Defocus, ReconstructionMethod, SeriesMetadata
from .tables import both_existing, dose_before, existing, lines_of, rows_of_numbers, stack_header

_NO_TABLE = "no table '# SEC ... TILT', so this is not an alignment of AreTomo"
# AreTomo rounds tilts to .01 degrees before and after it adds an offset.
_SAME_TILT = 0.05


class AlignedView(NamedTuple):
    """One line of an alignment: its place, the section, the angle of the axis, the shift and the tilt."""

    line: int
    section: int
    axis_angle: float
    shift: tuple[float, float]
    tilt: float


class DarkView(NamedTuple):
    """A view that AreTomo left out: its place in the order of the tilts from 0, its section, and its tilt."""

    place: int
    section: int
    tilt: float


class Alignment(NamedTuple):
    """The content of an ``.aln`` file; ``raw_size`` is that of the stack: columns, rows and views."""

    views: list[AlignedView]
    dark: list[DarkView]
    raw_size: tuple[int, int, int] | None
    alpha_offset: float
    beta_offset: float
    n_patches: int


def parse_alignment(path: Path, lines: Lines) -> Alignment:
    """Return the content of an ``.aln`` file; the table of the local alignment is not read."""
    views: list[AlignedView] = []
    dark: list[DarkView] = []
    columns: list[str] = []
    settings: dict[str, list[str]] = {}
    for line, text in lines:
        words = text.lstrip("# ").split()
        if text.lstrip().startswith("#"):
            if views:
                break  # the table of the local alignment follows, with other columns
            columns = words if {"SEC", "TILT"} <= set(words) else columns
            if words[:1] == ["DarkFrame"]:
                place, section, tilt = _numbers(path, line, words[2:], 3)
                dark.append(DarkView(int(place), int(section), tilt))
            elif "=" in words:
                settings[words[0]] = words[words.index("=") + 1 :]
        elif not columns:
            continue  # AreTomo 3 writes a greeting before the table
        elif words and len(words) != len(columns):
            raise FileFormatError(
                f"{path}: line {line} has {len(words)} columns, expected {len(columns)} as in the head"
            )
        elif words:
            views.append(_view(path, line, dict(zip(columns, words, strict=True))))
    if not views:
        raise FileFormatError(f"{path}: {_NO_TABLE}")
    size = settings.get("RawSize", [])
    raw_size = (int(size[0]), int(size[1]), int(size[2])) if len(size) == 3 and all(map(str.isdecimal, size)) else None
    alpha, beta, patches = (_setting(settings, name) for name in ("AlphaOffset", "BetaOffset", "NumPatches"))
    return Alignment(views, dark, raw_size, alpha, beta, int(patches))


def read_aretomo(path: Path) -> SeriesMetadata:
    """Return one tilt series of AreTomo from its ``.aln`` file and the files of the same name beside it."""
    alignment = parse_alignment(path, lines_of(path, "alignment", "expected an .aln file of AreTomo"))
    name, folder = path.stem, path.parent
    stack = existing(folder / f"{name}{ending}" for ending in (".mrc", ".st", "_st.mrc"))
    tilt_table = existing([folder / f"{name}_TLT.txt"])
    table = read_tilt_table(tilt_table) if tilt_table else None
    size, pixel_size = _require_same_stack(path, alignment, stack)
    session = _session(folder)
    sections = _sections(path, alignment, table)
    n_kept = len(alignment.views)
    known = {
        **_per_view(alignment),
        **_from_tilt_table(table, sections, alignment),
        "defocus": _defocus(folder / name, sections, n_kept),
    }
    halves = both_existing(folder / f"{name}_EVN_Vol.mrc", folder / f"{name}_ODD_Vol.mrc")
    series = SeriesMetadata(
        name,
        stack=stack,
        sections=sections,
        excluded=tuple(range(n_kept, len(sections))),
        half_stacks=both_existing(folder / f"{name}_EVN.mrc", folder / f"{name}_ODD.mrc"),
        half_tomograms=halves,
        half_tomogram_axes=_axes_of(halves[0], alignment, size, pixel_size) if halves else "zyx",
        pixel_size=pixel_size or session.get("PixSize") or None,
        image_shape=size,
        voltage=session.get("kV") or None,
        spherical_aberration=session.get("Cs"),
        amplitude_contrast=session.get("AmpContrast"),
        ctf_state=_ctf_state(session),
        reconstruction_method=_method(session),
        program="aretomo",
        files=tuple(filter(None, (path, tilt_table))),
        notes=_notes(alignment, len(sections)),
        **known,
    )
    return series.select(sorted(range(series.n_views), key=lambda n: sections[n]))


def read_tilt_table(path: Path) -> list[tuple[int, list[float]]]:
    """Return the lines of a ``_TLT.txt``: the tilt of each section, its place in the acquisition and its dose."""
    lines = lines_of(path, "table of tilts", "expected AreTomo's table of tilts")
    return rows_of_numbers(path, lines, range(1, 4), "AreTomo's table of tilts (tilt, place in the acquisition, dose)")


def read_ctf_table(path: Path) -> list[Defocus]:
    """Return the defocus of each view in a ``_CTF.txt`` of AreTomo or CTFFIND, which is in ångström."""
    lines = lines_of(path, "table of defocus", "expected AreTomo's _CTF.txt")
    head = " ".join(text for _, text in lines if text.lstrip().startswith("#"))
    if "defocus 1" in head and not any(unit in head for unit in ("[A]", "ngstrom", "Å")):
        raise FileFormatError(f"{path}: the head does not say that defocus 1 is in ångström; convert the values")
    rows = rows_of_numbers(path, lines, range(7, 10), "a table of defocus (number, u, v, angle, phase, score, spacing)")
    return [Defocus(u, v, angle, math.degrees(phase)) for _, (_, u, v, angle, phase, *_rest) in rows]


def _numbers(path: Path, line: int, words: list[str], n: int) -> list[float]:
    if len(words) != n:
        raise FileFormatError(f"{path}: line {line} has {len(words)} values, expected {n}")
    return [number(path, line, word) for word in words]


def _view(path: Path, line: int, words: dict[str, str]) -> AlignedView:
    """Return one line of the table; columns that it lacks are 0."""
    value = {name: number(path, line, words.get(name, "0")) for name in ("TILT", "SEC", "ROT", "TX", "TY")}
    return AlignedView(line, int(value["SEC"]), value["ROT"], (value["TX"], value["TY"]), value["TILT"])


def _setting(settings: dict[str, list[str]], name: str) -> float:
    """Return a number of the head, or 0."""
    with suppress(ValueError, IndexError):
        return float(settings[name][0]) if name in settings else 0.0
    return 0.0


def _require_same_stack(
    path: Path, alignment: Alignment, stack: Path | None
) -> tuple[tuple[int, int] | None, float | None]:
    """Return rows and columns of the images and the pixel size, or refuse the alignment of another stack."""
    size = (alignment.raw_size[1], alignment.raw_size[0]) if alignment.raw_size else None
    if stack is None:
        return size, None
    (n, y, x), pixel_size = stack_header(stack)
    if alignment.raw_size and (x, y, n) != alignment.raw_size:
        columns, rows, views = alignment.raw_size
        raise FileFormatError(
            f"{path}: is the alignment of {views} views of {columns} x {rows} pixels, but {stack.name} has {n} of "
            f"{x} x {y}; give the .aln of this series"
        )
    return (y, x), pixel_size


def _sections(path: Path, alignment: Alignment, table: list[tuple[int, list[float]]] | None) -> tuple[int, ...]:
    """Return the section, counted from 0, of each kept view and then of each dark view.

    The column SEC counts from 0 or 1, with or without the dark views, depending on the version of AreTomo. The tilts
    before the offset identify the sections where the table of tilts is there.
    """
    if table is not None:
        return _matched(path, alignment, [tilt for _, (tilt, *_rest) in table])
    kept, dark = [view.section for view in alignment.views], alignment.dark
    n = len(kept) + len(dark)
    for first in (0, 1):
        for places in ([view.section for view in dark], [view.place + first for view in dark]):
            if sorted(kept + places) == list(range(first, n + first)):
                return tuple(section - first for section in kept + places)
    places = [view.place for view in dark]
    left = [section for section in range(n) if section not in places]
    if len(left) == len(kept) and sorted(kept) in (list(range(len(kept))), list(range(1, len(kept) + 1))):
        return tuple(left[section - min(kept)] for section in kept) + tuple(places)
    if not dark and len(set(kept)) == len(kept):
        return tuple(kept)
    raise FileFormatError(f"{path}: the sections of the kept and the dark views overlap; align the series again")


def _matched(path: Path, alignment: Alignment, tilts: list[float]) -> tuple[int, ...]:
    """Return the line of the table of tilts for each view."""
    free = dict(enumerate(tilts))
    wanted = [view.tilt - alignment.alpha_offset for view in alignment.views] + [view.tilt for view in alignment.dark]
    found = []
    for n, tilt in enumerate(wanted):
        # Some versions add the offset to the tilts of dark views too.
        options = [tilt] if n < len(alignment.views) else [tilt, tilt - alignment.alpha_offset]
        near = min(free, key=lambda place: min(abs(free[place] - option) for option in options), default=None)
        if near is None or min(abs(free[near] - option) for option in options) > _SAME_TILT:
            raise FileFormatError(
                f"{path}: the tilt of {tilt:.2f} degrees is not among the {len(tilts)} of the _TLT.txt beside it; is "
                "this the alignment of another series?"
            )
        del free[near]
        found.append(near)
    return tuple(found)


def _per_view(alignment: Alignment) -> dict[str, Any]:
    """Return angles, shifts and the axis of each kept view and then of each dark one."""
    n_dark = len(alignment.dark)
    nothing = [math.nan] * n_dark
    return {
        "angles": tuple([view.tilt for view in alignment.views] + [view.tilt for view in alignment.dark]),
        "tilt_axis_angle": tuple([view.axis_angle for view in alignment.views] + nothing),
        # AreTomo subtracts its shift from positions in the image.
        "shifts": tuple([(-x, -y) for x, y in (view.shift for view in alignment.views)] + [(math.nan,) * 2] * n_dark),
        "x_tilt": (alignment.beta_offset,) * (len(alignment.views) + n_dark) if alignment.beta_offset else None,
    }


def _from_tilt_table(
    table: list[tuple[int, list[float]]] | None, sections: tuple[int, ...], alignment: Alignment
) -> dict[str, Any]:
    """Return the order of the acquisition and the dose of each view."""
    rows = [row for _, row in table] if table else []
    if not rows or any(len(row) < 2 for row in rows):
        return {}
    first = min(int(row[1]) for row in rows)
    order = [int(row[1]) - first for row in rows]
    known: dict[str, Any] = {"acquisition_order": tuple(order[section] for section in sections)}
    if all(len(row) == 3 for row in rows):
        dose = dose_before([row[2] for row in rows], order)
        known["dose"] = tuple(dose[section] for section in sections)
    return known


def _defocus(base: Path, sections: tuple[int, ...], n_kept: int) -> tuple[Defocus, ...] | None:
    """Return the defocus of each kept view and then of each dark one."""
    path = existing([base.with_name(f"{base.name}_CTF.txt")])
    if path is not None:
        values = read_ctf_table(path)
    else:
        path = existing([base.with_name(f"{base.name}_CTF_Imod.txt")])
        if path is None:
            return None
        # AreTomo writes the smaller defocus first there, although the angle is that of the larger one.
        values = [view._replace(u=max(view[:2]), v=min(view[:2])) for view in read_defocus(path)]
    if len(values) == len(sections):
        return tuple(values[section] for section in sections)
    if len(values) != n_kept:
        raise FileFormatError(
            f"{path}: has {len(values)} lines, expected {len(sections)}, or {n_kept} without the dark views; take it "
            "from the same run as the .aln"
        )
    place = {section: n for n, section in enumerate(sorted(sections[:n_kept]))}
    unknown = Defocus(math.nan, math.nan, math.nan, math.nan)
    return tuple(values[place[section]] for section in sections[:n_kept]) + (unknown,) * (len(sections) - n_kept)


def _session(folder: Path) -> dict[str, Any]:
    """Return the settings in ``AreTomo3_Session.json``, or nothing."""
    path = folder / "AreTomo3_Session.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(lines_text(path))
    except ValueError:
        return {}
    parameters = content.get("parameters") if isinstance(content, dict) else None
    return {name: value for name, value in (parameters or {}).items() if isinstance(value, int | float | list)}


def lines_text(path: Path) -> str:
    """Return the text of a small file."""
    return "\n".join(text for _, text in lines_of(path, "record of a session", "expected JSON"))


def _ctf_state(session: dict[str, Any]) -> CtfState:
    """Return what AreTomo did about the CTF; without the record of the session it is not known."""
    mode = session.get("CorrCTF")
    mode = mode[0] if isinstance(mode, list) and mode else mode
    states: dict[Any, CtfState] = {0: "none", 1: "wiener", 2: "flipped"}
    return states.get(mode, "unknown")


def _method(session: dict[str, Any]) -> ReconstructionMethod:
    """Return the method of the reconstruction: SART unless ``-Wbp 1`` was given."""
    if "Wbp" not in session:
        return "unknown"
    return "wbp" if session["Wbp"] == 1 else "sart"


def _axes_of(
    volume: Path, alignment: Alignment, size: tuple[int, int] | None, pixel_size: float | None
) -> Literal["zyx", "yzx"]:
    """Return the order of the axes in a tomogram, from the length along the tilt axis: xzy unless -FlipVol 1.

    The record of the session states the option too, but a later reconstruction does not renew it.
    """
    (first, second, _), voxel_size = stack_header(volume)
    # AreTomo exchanges width and height where the tilt axis lies along the rows.
    rows, columns = size or (first, first)
    upright = abs(math.cos(math.radians(alignment.views[0].axis_angle))) > math.sqrt(0.5)
    length = (rows if upright else columns) / (voxel_size / pixel_size if voxel_size and pixel_size else 1.0)
    return "yzx" if abs(first - length) < abs(second - length) else "zyx"


def _notes(alignment: Alignment, n_views: int) -> tuple[str, ...]:
    notes = []
    if alignment.raw_size and n_views != alignment.raw_size[2]:
        notes.append(
            f"lists {len(alignment.views)} views and {len(alignment.dark)} dark ones, of {alignment.raw_size[2]} in "
            "the stack; was it cut short?"
        )
    if alignment.n_patches:
        notes.append(f"the local alignment of {alignment.n_patches} patches is not applied")
    return tuple(notes)
