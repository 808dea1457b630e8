"""Read what IMOD writes: ``.tlt``, ``.xf``, ``.xtilt``, ``tilt.com``, ``newst.com``, ``.defocus``, ``_cutviews``.

The reader is our own: ``etomofiles`` needs the project file of etomo (``.edf``) and fills missing lines with NaN
instead of saying that the number of angles and of transforms differ.
"""

import re
from pathlib import Path
from typing import NamedTuple

from equitomo.io.angles import listed_angles, number
from equitomo.io.errors import FileFormatError

from .metadata import Defocus, SeriesMetadata
from .tables import existing, lines_of, rows_of_numbers, stack_header

# Flags in the first line of a defocus file of version 3.
_ASTIGMATISM, _ANGLE_IN_RADIANS, _PHASE, _PHASE_IN_RADIANS, _INVERTED = 1, 2, 4, 8, 16
_STACKS = (".st", ".mrc", ".ali")


class Option(NamedTuple):
    """One option of a command file, and where it stands."""

    file: Path
    line: int
    value: str


Commands = dict[str, Option]


def read_imod(path: Path) -> SeriesMetadata:
    """Return one tilt series of IMOD from its folder, ``tilt.com``, ``.tlt``, ``.rawtlt`` or ``.xf``."""
    folder = path if path.is_dir() else path.parent
    commands = _commands(path, folder)
    tilt_file = _tilt_file(path, folder, commands)
    base = tilt_file.with_suffix("")
    angles = listed_angles(tilt_file, lines_of(tilt_file, "tilt file", "expected IMOD's list of angles"))
    n = len(angles)
    transform_file = existing([_named(folder, commands, "transformfile"), base.with_suffix(".xf")])
    x_tilt_file = existing([_named(folder, commands, "xtiltfile"), base.with_suffix(".xtilt")])
    stack = existing([_named(folder, commands, "inputfile"), *(base.with_suffix(ending) for ending in _STACKS)])
    shape, pixel_size = stack_header(stack) if stack else (None, None)
    name = base.name.removesuffix("_st")
    cut = existing([folder / f"{name}_cutviews0.rawtlt"])
    excluded, notes = _excluded(commands, angles, cut, n)
    if shape is not None and shape[0] != n:
        raise FileFormatError(
            f"{tilt_file}: has {n} angles, but {stack.name if stack else ''} has {shape[0]} images; take both from the "
            "same series"
        )
    offset = _values(commands, "offset") or [0.0]
    shift = _values(commands, "shift") or [0.0]
    thickness = _values(commands, "thickness")
    defocus_file = existing([base.with_suffix(".defocus"), folder / f"{name}.defocus"])
    return SeriesMetadata(
        name,
        tuple(angle for _, angle in angles),
        stack=stack,
        excluded=excluded,
        transforms=read_transforms(transform_file) if transform_file else None,
        x_tilt=_x_tilt(x_tilt_file, _values(commands, "xaxistilt"), n),
        tilt_offset=offset[0],
        tilt_axis_offset=offset[1] if len(offset) > 1 else 0.0,
        pixel_size=pixel_size,
        image_shape=shape[1:] if shape else None,
        thickness=int(thickness[0]) if thickness else None,
        volume_shift=(shift[0], shift[1] if len(shift) > 1 else 0.0),
        defocus=_for_each_view(read_defocus_rows(defocus_file), n) if defocus_file else None,
        program="imod",
        files=tuple(filter(None, (tilt_file, transform_file, x_tilt_file, defocus_file))),
        notes=notes,
    )


def read_transforms(path: Path) -> tuple[tuple[float, float, float, float, float, float], ...]:
    """Return the lines of an ``.xf`` file."""
    rows = rows_of_numbers(path, lines_of(path, "file of transforms", "expected IMOD's"), range(6, 7), "a transform")
    return tuple((a, b, c, d, x, y) for _, (a, b, c, d, x, y) in rows)


def read_defocus(path: Path) -> list[Defocus]:
    """Return the lines of IMOD's defocus file, which is in nanometres, as ångström."""
    return [defocus for _, defocus in read_defocus_rows(path)]


def read_defocus_rows(path: Path) -> list[tuple[tuple[int, int], Defocus]]:
    """Return the first and last view, counted from 1, and the defocus of each line of IMOD's defocus file."""
    lines = lines_of(path, "defocus file", "expected the output of IMOD's ctfplotter")
    rows = rows_of_numbers(path, lines, range(5, 10), "IMOD's defocus file")
    if not rows:
        raise FileFormatError(f"{path}: has no line of numbers; expected the output of IMOD's ctfplotter")
    flags = 0
    if len(rows[0][1]) == 6 and rows[0][1][5] == 3:
        flags = int(rows.pop(0)[1][0])
    elif len(rows[0][1]) == 6 and rows[0][1][5] == 2:
        rows[0][1].pop()
    else:
        raise FileFormatError(
            f"{path}: line {rows[0][0]}: does not end in the version 2 or 3, so the columns are not known; write "
            "it again with a newer ctfplotter"
        )
    return [((int(row[0]), int(row[1])), _defocus(path, line, row[4:], flags)) for line, row in rows]


def view_list(path: Path, text: str) -> list[int]:
    """Return the numbers of a list such as ``1-3,40``."""
    views: list[int] = []
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if bounds is None:
            raise FileFormatError(f"{path}: {part!r} is not a list of views such as 1-3,40")
        views += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    return views


def _defocus(path: Path, line: int, values: list[float], flags: int) -> Defocus:
    """Return the defocus of one line; the flags say which columns there are."""
    n_expected = 1 + 2 * bool(flags & _ASTIGMATISM) + bool(flags & _PHASE)
    if len(values) < n_expected:
        raise FileFormatError(
            f"{path}: line {line} has {len(values)} values of the CTF, expected {n_expected} as its head says"
        )
    u, *rest = values
    v, angle = (rest.pop(0), rest.pop(0)) if flags & _ASTIGMATISM else (u, 0.0)
    phase = rest.pop(0) if flags & _PHASE else 0.0
    degrees = 57.29577951308232
    angle *= degrees if flags & _ANGLE_IN_RADIANS else 1.0
    phase *= degrees if flags & _PHASE_IN_RADIANS else 1.0
    return Defocus(10 * u, 10 * v, angle, phase)


def _for_each_view(rows: list[tuple[tuple[int, int], Defocus]], n: int) -> tuple[Defocus, ...]:
    """Return the defocus of each view: that of the range of views whose middle is nearest."""
    return tuple(min(rows, key=lambda row: abs(sum(row[0]) / 2 - view))[1] for view in range(1, n + 1))


def _commands(path: Path, folder: Path) -> Commands:
    """Return the options of ``tilt.com`` and ``newst.com``, by their names in small letters."""
    options: Commands = {}
    given = path if path.suffix.lower() == ".com" else folder / "tilt.com"
    for file in (given, folder / "newst.com"):
        for line, text in lines_of(file, "command file", "expected tilt.com of IMOD") if file.is_file() else []:
            name, *values = text.split(maxsplit=1)[:2] or [""]
            if name and name[0] not in "#$":
                value = values[0].strip() if values else ""
                if name.lower() in ("excludelist", "excludelist2") and "excludelist" in options:
                    value = f"{options['excludelist'].value},{value}"
                options[name.lower().removesuffix("2")] = Option(file, line, value)
    return options


def _named(folder: Path, commands: Commands, name: str) -> Path | None:
    """Return the file that an option names, or None."""
    return folder / commands[name].value if name in commands and commands[name].value else None


def _values(commands: Commands, name: str) -> list[float]:
    """Return the numbers of an option, or nothing."""
    if name not in commands:
        return []
    file, line, text = commands[name]
    return [number(file, line, word, f"a number of {name.upper()}") for word in re.split(r"[,\s]+", text) if word]


def _tilt_file(path: Path, folder: Path, commands: Commands) -> Path:
    """Return the list of angles that belongs to the file that was given."""
    if path.suffix.lower() in (".tlt", ".rawtlt"):
        return path
    options = [path.with_suffix(".tlt")] if path.suffix.lower() == ".xf" else [_named(folder, commands, "tiltfile")]
    if path.is_dir():
        options += sorted(folder.glob("*.tlt")) or sorted(folder.glob("[!.]*.rawtlt"))
    found = existing(options)
    if found is None:
        raise FileFormatError(
            f"{path}: no list of tilt angles (.tlt); expected one beside it, or tilt.com with a TILTFILE"
        )
    return found


def _excluded(
    commands: Commands, angles: list[tuple[str, float]], cut: Path | None, n: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the views that ``tilt`` leaves out, and notes about views that were removed from the stack."""
    views: set[int] = set()
    if "excludelist" in commands:
        file, line, text = commands["excludelist"]
        views = {view - 1 for view in view_list(file, text)}
        if not views <= set(range(n)):
            raise FileFormatError(
                f"{file}: line {line}: EXCLUDELIST {text} names views that are not among the {n} of the series"
            )
    notes: tuple[str, ...] = ()
    if cut is not None:
        removed = [angle for _, angle in listed_angles(cut, lines_of(cut, "tilt file", "expected a list of angles"))]
        same = {view for view, (_, angle) in enumerate(angles) if min(abs(angle - out) for out in removed) < 0.2}
        # The angles of views that were cut from the stack are in the list only if it was made before.
        views |= same
        if not same:
            notes = (f"{len(removed)} views were cut from the stack before: {', '.join(f'{a:g}' for a in removed)}",)
    return tuple(sorted(views)), notes


def _x_tilt(path: Path | None, constant: list[float], n: int) -> tuple[float, ...] | None:
    """Return the tilt about the x axis of each view: the constant of ``tilt.com`` and the values of the file."""
    values = [0.0] * n
    if path is not None:
        lines = lines_of(path, "file of tilts about x", "expected IMOD's .xtilt")
        values = [row[0] for _, row in rows_of_numbers(path, lines, range(1, 2), "tilts about x")]
    total = tuple(value + (constant[0] if constant else 0.0) for value in values)
    return total if any(total) else None
