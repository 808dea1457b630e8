r"""Read what Warp and M write: ``.tomostar``, the ``.xml`` of a tilt series, and the tomograms of both halves.

The reader is our own: ``warpxmlfile`` needs pydantic and returns the values without units, signs and grids explained,
which is the greater part of the work; the standard library reads the XML. Warp's signs and centres, as in its sources:

- A position in the image is :math:`R_z(\text{axis})\, R_y(-\text{angle})\, p + \text{offset}`, so the tilts have the
  opposite sign of IMOD's and of this package's. ``AreAnglesInverted`` changes the side of the defocus, not the
  geometry.
- The centre of an image of ``n`` pixels is the pixel ``n / 2``, half a pixel after the middle.
- Defocus is in micrometres as a mean and a difference, the phase in units of pi.
"""

import math
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar
from xml.etree import ElementTree

from equitomo.io.angles import Found, Lines, number
from equitomo.io.errors import FileFormatError
from equitomo.io.star import star_tables

from .metadata import Defocus, SeriesMetadata
from .tables import lines_of, order_of

T = TypeVar("T")

_XML = "XML of a tilt series of Warp"


def tomostar_angles(path: Path, lines: Lines) -> list[Found]:
    """Return the tilts in a ``.tomostar``, with this package's sign."""
    return [(f"line {line}", -number(path, line, row["wrpAngleTilt"])) for line, row in _tomostar_rows(path, lines)]


def xml_angles(path: Path) -> list[Found]:
    """Return the tilts of the used views in Warp's XML, with this package's sign."""
    root = _root(path)
    angles = _values(path, root, "Angles", float)
    used = _values(path, root, "UseTilt", _flag, len(angles)) or [True] * len(angles)
    return [(f"value {n + 1}", -angle) for n, angle in enumerate(angles) if used[n]]


def read_tomostar(path: Path) -> SeriesMetadata:
    """Return one tilt series from a ``.tomostar`` of Warp, which knows no alignment yet."""
    lines = lines_of(path, "table of Warp", "expected a .tomostar")
    rows = _tomostar_rows(path, lines)

    def column(name: str) -> tuple[float, ...] | None:
        if not all(name in row for _, row in rows):
            return None
        return tuple(number(path, line, row[name], f"a number ({name})") for line, row in rows)

    dose = column("wrpDose")
    return SeriesMetadata(
        path.stem,
        tuple(angle for _, angle in tomostar_angles(path, lines)),
        tilt_axis_angle=column("wrpAxisAngle"),
        dose=dose,
        acquisition_order=order_of(dose) if dose else None,
        program="warp",
        files=(path,),
        notes=_NOTES,
        **_images(path, [row.get("wrpMovieName", "") for _, row in rows]),
    )


def read_warp(path: Path) -> SeriesMetadata:
    """Return one tilt series from the ``.xml`` that Warp keeps about it."""
    root = _root(path)
    angles = _values(path, root, "Angles", float)
    n = len(angles)
    used = _values(path, root, "UseTilt", _flag, n) or [True] * n
    dose = _values(path, root, "Dose", float, n)
    params = {item.get("Name"): item.get("Value") or "" for item in root.findall("CTF/Param")}
    pixel_size = _param(path, params, "PixelSize")
    offsets = list(
        zip(*(_values(path, root, f"AxisOffset{axis}", float, n) or [0.0] * n for axis in "XY"), strict=True)
    )
    inverted = _attribute(path, root, "AreAnglesInverted", _flag, False)
    level_x, level_y = (_attribute(path, root, f"LevelAngle{axis}", float, 0.0) for axis in "XY")
    return SeriesMetadata(
        path.stem,
        tuple(-angle for angle in angles),
        excluded=tuple(view for view in range(n) if not used[view]),
        tilt_axis_angle=tuple(_values(path, root, "AxisAngle", float, n)) or None,
        # Half a pixel: see above. Without the pixel size the offsets cannot be used.
        shifts=tuple((-x / pixel_size - 0.5, -y / pixel_size - 0.5) for x, y in offsets) if pixel_size else None,
        x_tilt=(level_x,) * n if level_x else None,
        tilt_offset=-level_y,
        dose=tuple(dose) or None,
        acquisition_order=order_of(dose) if dose else None,
        pixel_size=pixel_size,
        voltage=_param(path, params, "Voltage"),
        spherical_aberration=_param(path, params, "Cs"),
        amplitude_contrast=_param(path, params, "Amplitude"),
        defocus=_defocus(path, root, n),
        defocus_handedness=-1 if inverted else 1,
        half_tomograms=_half_tomograms(path),
        ctf_state="flipped",
        reconstruction_method="wbp",
        program="warp",
        files=(path,),
        notes=_NOTES,
        **_images(path, _values(path, root, "MoviePath", str)),
    )


_NOTES = (
    "Warp's tilts have the opposite sign of IMOD's, and were converted; after ts_import --dont_invert they have IMOD's",
    "Warp inverts the contrast of tomograms unless --dont_invert was given",
)


def _tomostar_rows(path: Path, lines: Lines) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of the table with Warp's columns."""
    for _, columns, rows in star_tables(path, lines):
        if "_wrpAngleTilt" in columns:
            names = [column.lstrip("_") for column in columns]
            return [(line, dict(zip(names, row, strict=True))) for line, row in rows]
    raise FileFormatError(f"{path}: no table with the column _wrpAngleTilt, so this is not a .tomostar of Warp")


def _root(path: Path) -> ElementTree.Element:
    """Return the root of the XML of a tilt series, or refuse other XML."""
    text = "\n".join(line for _, line in lines_of(path, _XML, "expected <TiltSeries>"))
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise FileFormatError(f"{path}: declares entities, which no {_XML} does; give the file that Warp wrote")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise FileFormatError(f"{path}: damaged XML ({error}); copy the file again") from error
    if root.tag != "TiltSeries":
        hint = "; it is that of the frames of one tilt: give the .xml of the tilt series" if root.tag == "Movie" else ""
        raise FileFormatError(f"{path}: <{root.tag}> is not the {_XML}, which begins with <TiltSeries>{hint}")
    if root.find("Angles") is None:
        raise FileFormatError(f"{path}: no <Angles>, so nothing is known about the tilts; run ts_import again")
    return root


def _values(path: Path, root: ElementTree.Element, tag: str, kind: Callable[[str], T], n: int | None = None) -> list[T]:
    """Return the values in an element, one per line; nothing if it is missing."""
    element = root.find(tag)
    words = [line.strip() for line in ((element.text or "") if element is not None else "").splitlines()]
    words = [word for word in words if word]
    if n is not None and words and len(words) != n:
        raise FileFormatError(f"{path}: <{tag}> has {len(words)} values, expected {n} as in <Angles>")
    try:
        return [kind(word) for word in words]
    except ValueError as error:
        raise FileFormatError(f"{path}: <{tag}>: {error}") from error


def _attribute(path: Path, element: ElementTree.Element, name: str, kind: Callable[[str], T], missing: T) -> T:
    """Return the value of an attribute of an element, or that of a missing one."""
    text = element.get(name)
    try:
        return kind(text) if text else missing
    except ValueError as error:
        raise FileFormatError(f"{path}: {name} of <{element.tag}>: {error}; copy the file again") from error


def _flag(text: str) -> bool:
    """Return whether a text of Warp means yes."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def _param(path: Path, params: dict[str | None, str], name: str) -> float | None:
    """Return a parameter of the CTF, or None."""
    return (number(path, 0, params[name], f"a number ({name})") or None) if name in params else None


def _grid(path: Path, root: ElementTree.Element, tag: str, n: int) -> list[float] | None:
    """Return the value of a grid in the middle of the field for each view, or None if it does not give one for each."""
    nodes = root.findall(f"{tag}/Node")
    by_view: dict[int, list[float]] = {}
    for node in nodes:
        view = _attribute(path, node, "Z", int, 0)
        by_view.setdefault(view, []).append(_attribute(path, node, "Value", float, math.nan))
    if sorted(by_view) != list(range(n)):
        return None
    return [sum(values) / len(values) for _, values in sorted(by_view.items())]


def _defocus(path: Path, root: ElementTree.Element, n: int) -> tuple[Defocus, ...] | None:
    """Return the defocus of each view, or None if Warp has not estimated it."""
    mean = _grid(path, root, "GridCTF", n)
    if mean is None or not any(mean):
        return None
    delta, angle, phase = (
        _grid(path, root, tag, n) or [0.0] * n for tag in ("GridCTFDefocusDelta", "GridCTFDefocusAngle", "GridCTFPhase")
    )
    return tuple(
        Defocus(1e4 * (mean[k] + delta[k] / 2), 1e4 * (mean[k] - delta[k] / 2), angle[k], 180 * phase[k])
        for k in range(n)
    )


def _images(path: Path, names: list[str]) -> dict[str, Any]:
    """Return the movies, and the averages and half averages of their frames if all of them are there."""
    if not names or not all(names):
        return {}
    movies = tuple(path.parent / PureWindowsPath(name).as_posix() for name in names)
    known: dict[str, Any] = {"movies": movies}

    def averages(*folders: str) -> tuple[Path, ...] | None:
        files = tuple(movie.parent.joinpath(*folders, f"{movie.stem}.mrc") for movie in movies)
        return files if all(file.is_file() for file in files) else None

    known["images"] = averages("average")
    even, odd = averages("average", "even"), averages("average", "odd")
    known["half_images"] = (even, odd) if even and odd else None
    return known


def _half_tomograms(path: Path) -> tuple[Path, Path] | None:
    """Return the tomograms of the halves; of several pixel sizes the smallest."""
    folder = path.parent / "reconstruction"
    sizes = {}
    for even in (folder / "even").glob("*Apx.mrc"):
        name, _, size = even.stem.removesuffix("Apx").rpartition("_")
        odd = folder / "odd" / even.name
        if name == path.stem and odd.is_file():
            try:
                sizes[float(size)] = even, odd
            except ValueError:
                continue
    return sizes[min(sizes)] if sizes and math.isfinite(min(sizes)) else None
