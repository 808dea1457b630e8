"""Recognise what a file tells about a tilt series by its content, and read it."""

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from equitomo.io.angles import NUMBER
from equitomo.io.errors import FileFormatError, FileFormatWarning
from equitomo.io.fei import fei_metadata
from equitomo.io.mrc import read_header
from equitomo.io.opening import open_regular, valid_path

from .aretomo import read_aretomo, read_tilt_table
from .imod import read_imod
from .metadata import SeriesMetadata
from .relion import read_relion
from .serialem import parse_mdoc, read_serialem, series_name
from .stacks import image_series, is_image_file
from .tables import dose_before, existing, lines_of, stack_header
from .warp import read_tomostar, read_warp

SeriesProgram = Literal["aretomo", "warp", "relion", "imod", "serialem"]

_EXPECTED = (
    "files that tell about a tilt series are AreTomo's .aln and _TLT.txt, Warp's .xml and .tomostar, RELION's .star, "
    "IMOD's tilt.com, .tlt and .xf, SerialEM's .mdoc, and stacks of images with their tilts: MRC with an FEI extended "
    "header or a list of tilts beside it, .hspy, .emd, .dm3 and .tif"
)
_HEAD_BYTES = 1 << 16


def read_series(path: str | Path, *, name: str | None = None) -> SeriesMetadata:
    r"""Read everything that a file, and the files that belong to it, tell about one tilt series.

    The content decides how the file is read, not the extension. Files that belong to it are found beside it by their
    names: AreTomo's ``N_TLT.txt``, ``N_CTF.txt`` and halves for ``N.aln``, IMOD's ``.xf`` and ``.xtilt`` for ``.tlt``,
    the averages of Warp for a ``.tomostar``.

    Parameters
    ----------
    path
        The file, or a folder with the files of one series.
    name
        The series to take from a STAR file or a folder with several. None is for those with one only.

    Raises
    ------
    FileFormatError
        If the file tells nothing about a tilt series, is damaged, or does not belong to the files beside it. The
        message says what it is and which files are read.
    OSError
        If a file cannot be opened.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "TS_01.tlt"
    >>> _ = path.write_text("-60\n-57.5\n60\n")
    >>> read_series(path).angles
    (-60.0, -57.5, 60.0)
    """
    path = valid_path(path)
    found = find_series(path) if path.is_dir() else _read(path)
    names = ", ".join(series.name for series in found[:5]) + (", ..." if len(found) > 5 else "")
    if name is not None:
        found = [series for series in found if series.name == name]
        if not found:
            raise FileFormatError(f"{path}: no tilt series {name!r}; `name` must be one of {names}")
    if len(found) > 1:
        raise FileFormatError(f"{path}: holds {len(found)} tilt series; choose one with `name`: {names}")
    return found[0]


def find_series(path: str | Path, *, program: SeriesProgram | None = None) -> list[SeriesMetadata]:
    """Read all tilt series of a program.

    Parameters
    ----------
    path
        A folder, or RELION's ``tomograms.star``.
    program
        ``"aretomo"``: every ``.aln``. ``"warp"``: every ``.xml`` of a tilt series, or every ``.tomostar`` if there is
        none. ``"relion"``: ``tomograms.star``. ``"imod"``: the series of the folder. ``"serialem"``: every ``.mdoc`` of
        a series, and the files of single tilts together. None takes the first of these that the folder has.

    Raises
    ------
    FileFormatError
        If there are none, or none can be read.

    Warns
    -----
    FileFormatWarning
        For each series that is refused while others can be read.
    """
    path = valid_path(path)
    if not path.is_dir():
        return _read(path)
    programs = [program] if program is not None else list(_FILES)
    for candidate in programs:
        files = _FILES[candidate](path)
        if files:
            return _read_all(files)
    wanted = {
        "aretomo": "alignment (.aln)",
        "warp": ".xml or .tomostar",
        "relion": "tomograms.star",
        "imod": "tilt.com or list of tilts (.tlt)",
        "serialem": ".mdoc of a series",
    }
    kinds = ", ".join(wanted[candidate] for candidate in programs)
    raise FileFormatError(f"{path}: has no tilt series: no {kinds}; give the folder of the program's output")


def _read_all(files: Iterable[Path]) -> list[SeriesMetadata]:
    """Return the series of all files; those that are refused are warned of, unless all are."""
    found: list[SeriesMetadata] = []
    errors: list[FileFormatError] = []
    for file in files:
        try:
            found += _read(file)
        except FileFormatError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    for refused in errors:
        warnings.warn(f"left out: {refused}", FileFormatWarning, stacklevel=3)
    return found


def _read(path: Path) -> list[SeriesMetadata]:
    """Return the series of a file, or raise an error that names the file."""
    try:
        return _reader_of(path)(path)
    except FileFormatError:
        raise
    except (ValueError, ArithmeticError) as error:
        # Readers check what users get wrong; this is left for damage that no reader looks for.
        raise FileFormatError(f"{path}: is damaged ({error}); copy the file again") from error


def _warp_files(folder: Path) -> list[Path]:
    """Return Warp's XML of tilt series, or its tables if there is none; the XML of frames is left out."""
    files = [file for file in sorted(folder.glob("*.xml")) if b"<TiltSeries" in _head(file)]
    return files or sorted(folder.glob("*.tomostar"))


def _relion_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("tomograms.star"))


def _imod_files(folder: Path) -> list[Path]:
    """Return the command file of the folder, or its lists of tilts."""
    command = folder / "tilt.com"
    lists = sorted(folder.glob("*.tlt")) or [f for f in sorted(folder.glob("*.rawtlt")) if "_cutviews" not in f.name]
    return [command] if command.is_file() else lists


def _serialem_files(folder: Path) -> list[Path]:
    """Return the ``.mdoc`` files of series, and one of each series whose tilts have files of their own."""
    files: dict[object, Path] = {}
    for file in sorted(folder.glob("*.mdoc")):
        try:
            mdoc = parse_mdoc(file, lines_of(file, ".mdoc of SerialEM", "expected sections"))
        except FileFormatError:
            continue
        files.setdefault(series_name(file) if mdoc.kind == "FrameSet" else file, file)
    return list(files.values())


_FILES: dict[SeriesProgram, Callable[[Path], list[Path]]] = {
    "aretomo": lambda folder: sorted(folder.glob("*.aln")),
    "warp": _warp_files,
    "relion": _relion_files,
    "imod": _imod_files,
    "serialem": _serialem_files,
}


def _head(path: Path) -> bytes:
    """Return the beginning of a file."""
    with open_regular(path, "a file of a tilt series") as file:
        return file.read(_HEAD_BYTES)


def _reader_of(path: Path) -> Callable[[Path], list[SeriesMetadata]]:
    """Return the function that reads a file, by what the file begins with."""
    head = _head(path)
    if not head.strip():
        raise FileFormatError(f"{path}: is empty; {_EXPECTED}")
    if is_image_file(path, head):
        return lambda file: [image_series(file)]
    if b"\0" in head:
        return lambda file: [_from_mrc(file)]
    text = head.decode("utf-8-sig", "replace")
    for pattern, reader in _TEXTS:
        if re.search(pattern, text, re.MULTILINE):
            return lambda file: [reader(file)]
    if re.search(r"^_rln\w+", text, re.MULTILINE):
        return read_relion
    return _reader_of_numbers(path, text)


_TEXTS: tuple[tuple[str, Callable[[Path], SeriesMetadata]], ...] = (
    (r"^#\s*SEC\b.*\bTILT\b", read_aretomo),
    (r"<\?xml|<TiltSeries", read_warp),
    (r"^_wrpAngleTilt\b", read_tomostar),
    (r"^\s*\[\s*(ZValue|FrameSet)\s*=", read_serialem),
    (r"^\$tilt\b|^\s*TILTFILE\s", read_imod),
)


def _reader_of_numbers(path: Path, text: str) -> Callable[[Path], list[SeriesMetadata]]:
    """Return the function that reads a table of numbers, by the number of its columns."""
    rows = [line.split("#")[0].split() for line in text.splitlines()[:50]]
    # The last line may be cut.
    columns = {len(row) for row in rows[:49] if row and all(NUMBER.fullmatch(word) for word in row)}
    if path.name.endswith("_TLT.txt") and columns <= {1, 2, 3}:
        return lambda file: [_from_tilt_table(file)]
    if columns in ({1}, {6}):
        return lambda file: [read_imod(file)]
    if columns == {7} or path.name.endswith(("_CTF.txt", ".defocus")):
        what = "a table of defocus values; give the .aln or the .tlt that belongs to it"
    else:
        what = f"not recognised; {_EXPECTED}"
    raise FileFormatError(f"{path}: is {what}")


def _from_tilt_table(path: Path) -> SeriesMetadata:
    """Return the series of AreTomo's table of tilts, which is not aligned yet."""
    rows = [row for _, row in read_tilt_table(path)]
    name = path.name.removesuffix("_TLT.txt")
    stack = existing(path.parent / f"{name}{ending}" for ending in (".mrc", ".st"))
    shape, pixel_size = stack_header(stack) if stack else (None, None)
    if stack and shape and shape[0] != len(rows):
        raise FileFormatError(f"{path}: has {len(rows)} tilts, but {stack.name} has {shape[0]} images")
    order = None
    if all(len(row) > 1 for row in rows):
        order = tuple(int(row[1] - min(row[1] for row in rows)) for row in rows)
    return SeriesMetadata(
        name,
        tuple(row[0] for row in rows),
        stack=stack,
        acquisition_order=order,
        dose=dose_before([row[2] for row in rows], order) if order and all(len(row) > 2 for row in rows) else None,
        pixel_size=pixel_size,
        image_shape=shape[1:] if shape else None,
        program="aretomo",
        files=(path,),
    )


def _from_mrc(path: Path) -> SeriesMetadata:
    """Return the series of a stack whose tilts are in its extended header or beside it."""
    (n, y, x), pixel_size = stack_header(path)
    header, _ = read_header(path, False, [])
    metadata = fei_metadata(header, n)
    name = path.stem
    if metadata is not None:
        size = 1e10 * float(metadata["Pixel size X"][0])
        return SeriesMetadata(
            name,
            tuple(float(angle) for angle in metadata["Alpha tilt"]),
            stack=path,
            pixel_size=size if 1e-2 < size < 1e5 else pixel_size,
            image_shape=(y, x),
            program="fei",
            files=(path,),
        )
    beside = existing(
        [
            *(path.with_suffix(ending) for ending in (".aln", ".tlt")),
            *(path.parent / f"{path.name}{ending}" for ending in (".mdoc",)),
            *(path.with_suffix(ending) for ending in (".mdoc", ".rawtlt")),
            path.parent / f"{name}_TLT.txt",
        ]
    )
    if beside is None:
        raise FileFormatError(
            f"{path}: {n} images without tilts: no FEI extended header, and no .aln, .tlt, .mdoc, .rawtlt or _TLT.txt "
            "of this name beside it; give the file of the tilts"
        )
    return _read(beside)[0]
