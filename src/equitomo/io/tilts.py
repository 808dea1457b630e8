"""Read tilt angles from the files that tomography programs write."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from .angles import NUMBER, Found, Lines, check_angles, listed_angles, number
from .errors import FileFormatError, FileFormatWarning
from .fei import fei_metadata
from .mrc import read_header
from .mrc_header import field
from .opening import read_text
from .series.aretomo import parse_alignment, read_tilt_table
from .series.serialem import mdoc_angles
from .series.warp import tomostar_angles, xml_angles
from .star import star_tables

TILT_COLUMNS = ("_rlnTomoYTilt", "_rlnTomoNominalStageTiltAngle")
_EXPECTED = (
    "files that can be read are lists of angles (.tlt .rawtlt .txt), IMOD's transforms with the .tlt beside them "
    "(.xf), SerialEM (.mdoc), AreTomo (.aln _TLT.txt), RELION (.star), Warp (.tomostar .xml) and tilt series with an "
    "FEI extended header (.mrc .st); or write the angles in degrees, one per line, into a .tlt file"
)


def read_tilts(
    path: str | Path, *, n_expected: int | None = None, name: str | None = None, sort: bool = True
) -> tuple[float, ...]:
    r"""Read the tilt angles of one tilt series.

    The extension decides how the file is read, and the content has to agree with it.

    ====================== =================================================================
    ``.tlt .rawtlt .txt``  one number per line; blank lines and text after ``#`` are skipped
    ``.xf``                IMOD's transforms: the ``.tlt`` of the same name, with as many angles
    ``_TLT.txt``           AreTomo: the first of up to three columns
    ``.mdoc``              SerialEM: ``TiltAngle`` of every ``[ZValue = n]`` section, or of all files ``[FrameSet = 0]``
                           of the series that lie beside it
    ``.aln``               AreTomo: column ``TILT`` of the kept views, not of ``DarkFrame``
    ``.star``              RELION: ``rlnTomoYTilt`` (refined), else ``rlnTomoNominalStageTiltAngle``
    ``.tomostar .xml``     Warp: ``wrpAngleTilt``; ``Angles`` of the used views. The sign is that of IMOD
    ``.mrc .st``           FEI: ``Alpha tilt`` of every section, in the extended header
    ====================== =================================================================

    The missing wedge depends on the angles with which the tomogram was reconstructed. The offset that an alignment
    finds is already included in ``TILT`` of AreTomo, the ``.tlt`` of IMOD and ``rlnTomoYTilt``, so nothing is added.
    The angles of the stage (``.mdoc``, ``.rawtlt``, FEI) do not include a pre-tilt, and no file includes an ``OFFSET``
    that was given to IMOD's ``tilt``. :func:`equitomo.judge_geometry` finds both where they matter.

    Parameters
    ----------
    path
        The file.
    n_expected
        Number of images in the stack. A warning is issued if the number of angles differs. None skips this check.
    name
        The tilt series to read from a STAR file, by its ``data_`` block or its ``rlnTomoName``. None reads the only
        one.
    sort
        Return the angles in ascending order. If False, they have the order of the file, which is that of the images.

    Returns
    -------
    tuple of float
        Angles in degrees, duplicates included, as :class:`equitomo.TiltGeometry` takes them.

    Raises
    ------
    FileFormatError
        If the file is not one of these, or has a line that is not an angle, fewer than two different angles, a span of
        less than 1 degree, or angles that cannot be degrees of a tilt series (within +-1.6 they are taken for radians).
        The message names the line.
    OSError
        If the file cannot be opened.

    Warns
    -----
    FileFormatWarning
        If a list is not in ascending order (in the other formats this is the normal order of acquisition), angles
        repeat, or their number is unexpected.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "series.tlt"
    >>> _ = path.write_text("-60.0 # first\n-57.5\n60\n")
    >>> read_tilts(path)
    (-60.0, -57.5, 60.0)
    """
    path = Path(path)
    n_transforms = None
    if path.suffix.lower() == ".xf":
        n_transforms, path = _list_of_transforms(path)
    reader = _READERS.get(path.suffix.lower())
    if path.suffix.lower() in (".mrc", ".st"):
        found = _read_fei(path)
    elif reader is not None:
        found = reader(path, list(enumerate(read_text(path, "tilt file", _EXPECTED).splitlines(), 1)), name)
    else:
        raise FileFormatError(f"{path}: {_reason_for_refusal(path)}; {_EXPECTED}")
    if n_transforms not in (None, len(found)):
        raise FileFormatError(
            f"{path}: has {len(found)} angles, but there are {n_transforms} transforms in the .xf beside it, expected "
            "one for each view; take both from the same alignment"
        )
    angles = [angle for _, angle in found]
    check_angles(path, angles, [place for place, _ in found])
    for note in _surprises(angles, n_expected, is_list=reader is _read_list):
        warnings.warn(f"{path}: {note}", FileFormatWarning, stacklevel=2)
    return tuple(sorted(angles) if sort else angles)


def _reason_for_refusal(path: Path) -> str:
    """Return why a file of another kind is refused."""
    if path.suffix.lower() in (".prexf", ".prexg", ".xg"):
        return "IMOD's transforms hold no tilt angles; give the .tlt file beside it"
    return f"the extension {path.suffix!r} is not that of a file of tilt angles"


def _list_of_transforms(path: Path) -> tuple[int, Path]:
    """Return the number of IMOD's transforms, which rotate and shift images in their plane, and the list of angles."""
    n_transforms = 0
    for line, text in enumerate(read_text(path, "file of transforms", _EXPECTED).splitlines(), 1):
        numbers = text.split()
        if numbers and (len(numbers) != 6 or not all(NUMBER.fullmatch(number) for number in numbers)):
            raise FileFormatError(f"{path}: line {line} is not one of IMOD's transforms, which are six numbers")
        n_transforms += bool(numbers)
    angles = path.with_suffix(".tlt")
    if not angles.is_file():
        raise FileFormatError(
            f"{path}: IMOD's transforms hold no tilt angles, and there is no {angles.name} beside them; give the file "
            "of the angles"
        )
    return n_transforms, angles


def _read_fei(path: Path) -> list[Found]:
    """Return the ``Alpha tilt`` of every section of a tilt series."""
    header, _ = read_header(path, False, [])
    metadata = fei_metadata(header, field(header.record, "nz"))
    if metadata is None:
        raise FileFormatError(f"{path}: has no FEI extended header with a tilt angle for each section; {_EXPECTED}")
    found = [(f"section {n}", float(angle)) for n, angle in enumerate(metadata["Alpha tilt"])]
    for place, angle in found:
        if not math.isfinite(angle):
            raise FileFormatError(f"{path}: {place}: {angle} is not a tilt angle; export the file again")
    return found


def _read_list(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the angles of a list with one number per line, or of AreTomo's table of tilts."""
    if path.name.endswith("_TLT.txt"):
        return [(f"line {line}", row[0]) for line, row in read_tilt_table(path)]
    return listed_angles(path, lines)


def _read_mdoc(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the ``TiltAngle`` of every view of SerialEM."""
    return mdoc_angles(path, lines)


def _read_tomostar(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the tilts of Warp's table."""
    return tomostar_angles(path, lines)


def _read_xml(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the tilts of Warp's XML."""
    return xml_angles(path)


def _read_aln(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the tilts of the views that AreTomo kept."""
    alignment = parse_alignment(path, lines)
    n_seen = len(alignment.views) + len(alignment.dark)
    if alignment.raw_size is not None and n_seen != alignment.raw_size[2]:
        note = (
            f"{len(alignment.views)} views and {len(alignment.dark)} dark ones, of {alignment.raw_size[2]} in the stack"
        )
        warnings.warn(f"{path}: lists {note}; was it cut short?", FileFormatWarning, stacklevel=3)
    return [(f"line {view.line}", view.tilt) for view in alignment.views]


def _read_star(path: Path, lines: Lines, name: str | None) -> list[Found]:
    """Return the tilt column of the series ``name`` in a STAR file, or of its only series."""
    series: dict[str, list[Found]] = {}
    linked = False
    for block, columns, rows in star_tables(path, lines):
        linked |= "_rlnTomoTiltSeriesStarFile" in columns
        tilt = next((column for column in TILT_COLUMNS if column in columns), None)
        if tilt is None:
            continue
        for line, row in rows:
            key = row[columns.index("_rlnTomoName")] if "_rlnTomoName" in columns else block
            series.setdefault(key, []).append((f"line {line}", number(path, line, row[columns.index(tilt)])))
    if not series:
        hint = "give the file of one series, named in its column rlnTomoTiltSeriesStarFile" if linked else _EXPECTED
        raise FileFormatError(f"{path}: no table with one of the columns {', '.join(TILT_COLUMNS)}; {hint}")
    if name is None and len(series) > 1:
        raise FileFormatError(f"{path}: holds {len(series)} tilt series; choose one with `name`: {_some(series)}")
    if name is not None and name not in series:
        raise FileFormatError(f"{path}: no tilt series {name!r}; `name` must be one of {_some(series)}")
    return series[name or next(iter(series))]


def _some(series: dict[str, list[Found]]) -> str:
    """Return the first names, for error messages."""
    names = list(series)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _surprises(angles: list[float], n_expected: int | None, *, is_list: bool) -> Iterator[str]:
    """Yield the warnings to be issued."""
    if is_list and angles != sorted(angles):
        yield "the angles are not in ascending order; make sure that the order is that of the images"
    repeated = [angle for angle, count in Counter(angles).items() if count > 1]
    if repeated:
        yield f"angles repeat ({', '.join(f'{angle:g}' for angle in repeated[:5])}); are two series mixed?"
    if n_expected is not None and len(angles) != n_expected:
        yield f"has {len(angles)} angles, but the stack has {n_expected} images; excluded views?"


_READERS: dict[str, Callable[[Path, Lines, str | None], list[Found]]] = {
    ".tlt": _read_list,
    ".rawtlt": _read_list,
    ".txt": _read_list,
    ".mdoc": _read_mdoc,
    ".aln": _read_aln,
    ".star": _read_star,
    ".tomostar": _read_tomostar,
    ".xml": _read_xml,
}
