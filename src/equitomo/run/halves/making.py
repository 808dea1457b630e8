"""Half tomograms of one tilt series or of many, in a folder with their tilts, tables and a manifest."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equitomo.geometry import TiltAxis
from equitomo.io import SeriesMetadata, creating_volume, find_series, read_volume, require_writable
from equitomo.run.folder import MANIFEST, RunFolder
from equitomo.run.halves.following import following
from equitomo.run.halves.pictures import draw_made
from equitomo.run.halves.preparing import Prepared, Source, prepare, source_of
from equitomo.run.halves.reconstructing import planes_at_once, reconstruct_half
from equitomo.run.halves.recording import PAIRS, HalvesManifest, entry_of, table_of, write_tilts
from equitomo.run.memory import duration, readable
from equitomo.run.settings import HalvesSettings, SeriesFiles
from equitomo.run.table import ResultRecord

HalvesProgress = Callable[[str, int, int], None]
_SETTINGS = HalvesSettings()
# The names that are written into the folder, for each series with its name before them.
_NAMES = (MANIFEST, *map(table_of, PAIRS), *("*_half1.mrc", "*_half2.mrc", "*_half1.tlt", "*_half2.tlt", "*.tlt"))
_NAMES += ("*.png", "*.json")
# Settings that change no voxel of a file: the names of pairs tell how many there are.
_INDIFFERENT = ("memory", "strict", "pairs")


@dataclass(frozen=True)
class HalvesOutcome:
    """The result of the work on one tilt series.

    Parameters
    ----------
    name
        The name of the series, with its pair if it has two.
    status
        ``"done"``, ``"taken"`` where halves of the program are used as they are, ``"skipped"`` for halves that existed,
        or ``"failed"``.
    reason
        How long it took and what was made, or why nothing was.
    """

    name: str
    status: Literal["done", "taken", "skipped", "failed"]
    reason: str

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name}: {self.reason}"


def make_halves(
    first: str | Path | SeriesFiles,
    second: str | Path | None = None,
    *,
    out: str | Path,
    tilts: str | Path | None = None,
    alignment: str | Path | None = None,
    overwrite: bool = False,
    progress: HalvesProgress = lambda name, done, total: None,
    **settings: Any,
) -> list[HalvesOutcome]:
    """Make two half tomograms of a tilt series, or of many, as ``equitomo halves`` does; return what became of each.

    The folder gets ``NAME_half1.mrc`` and ``NAME_half2.mrc`` with the tilts of each in ``NAME_half1.tlt`` and
    ``NAME_half2.tlt``, those of both in ``NAME.tlt``, a picture ``NAME.png``, the table ``tomograms.csv`` of all series
    for a training, and ``manifest.json``. With ``pairs=2`` there are ``NAME_pair1`` and ``NAME_pair2`` in place of
    ``NAME``, with the tables ``tomograms_pair1.csv`` and ``tomograms_pair2.csv``: see
    :func:`equitomo.split_into_pairs`.

    Parameters
    ----------
    first
        The stack of images, or what :class:`~equitomo.run.SeriesFiles` names.
    second
        The stack of the other half of the frames or of the dose.
    out
        The folder. Halves in it that were made from the same files with the same settings are kept.
    tilts, alignment
        As for :class:`~equitomo.run.SeriesFiles`.
    overwrite
        Replace halves that were made from something else.
    progress
        Called with the name of a series, the planes done and their total.
    **settings
        As for :class:`~equitomo.run.HalvesSettings`.

    Raises
    ------
    ValueError, OSError
        If the single series cannot be used, or the folder cannot be written. Of many series, one that fails stops no
        other one.

    Examples
    --------
    >>> from equitomo import TiltSeriesPhysics, TiltGeometry, write_volume
    >>> folder, angles = getfixture("tmp_path"), list(range(-60, 61, 10))
    >>> views = TiltSeriesPhysics((8, 16, 16), TiltGeometry(angles)).A(torch.randn(1, 1, 8, 16, 16))[0, 0]
    >>> stack = write_volume(folder / "TS.mrc", views.numpy(), voxel_size=10.0)
    >>> _ = (folder / "TS.tlt").write_text("".join(f"{angle}" + chr(10) for angle in angles))
    >>> (done,) = make_halves(stack, tilts=folder / "TS.tlt", thickness=8, out=folder / "H", strict=False)
    >>> done.status, sorted(path.name for path in (folder / "H").glob("*.mrc"))
    ('done', ['TS_half1.mrc', 'TS_half2.mrc'])
    """
    if isinstance(first, SeriesFiles):
        files = first
    else:
        other, angles, aligned = (None if path is None else str(path) for path in (second, tilts, alignment))
        files = SeriesFiles(str(first), other, angles, aligned)
    halves = Halves(files, out, HalvesSettings(**settings), overwrite=overwrite)
    with halves.held():
        return halves.write(progress=progress)


class Halves:
    """The halves of one tilt series or of many in a folder.

    Series whose halves are there, whole and made from the same files with the same settings, are skipped. Of a single
    series, everything that can be refused is refused when the object is made.

    Parameters
    ----------
    files
        The series.
    folder
        The folder for the halves, which need not exist.
    settings
        How they are made.
    overwrite
        Replace halves that were made from something else.

    Attributes
    ----------
    sources : list of Source
        The series, each twice if it gets two pairs of halves.
    """

    def __init__(
        self,
        files: SeriesFiles,
        folder: str | Path,
        settings: HalvesSettings = _SETTINGS,
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.settings, self.overwrite = RunFolder(folder, _NAMES), settings, overwrite
        self._files = files
        pairs = [None] if settings.pairs == 1 else [1, 2]
        self.sources = [source._replace(pair=pair) for source in _sources(files) for pair in pairs]
        self._is_single = files.first is not None
        self._prepared: dict[str, Prepared] = {}
        HalvesManifest(self.folder.path)
        if self._is_single:
            self._check([source for source in self.sources if self._reason_to_skip(source) is None])

    def _check(self, sources: Sequence[Source]) -> None:
        """Refuse what cannot be made of a single series, or written."""
        for source in sources:
            prepared = self._prepare(source)
            planes_at_once(prepared, self.settings)
            n_bytes = len(sources) * 2 * 4 * int(np.prod(prepared.shape))
            if self.folder.path.is_dir():
                require_writable(self._half(prepared.name, 1), overwrite=True, n_bytes=n_bytes)

    def following(self) -> str:
        """Return what can be done with the halves in the folder, as a text with commands."""
        return following(self.folder.path, HalvesManifest(self.folder.path).series, self.sources)

    @contextmanager
    def held(self, *, break_lock: bool = False) -> Iterator[None]:
        """Keep other processes out of the folder until the block ends."""
        with self.folder.held(overwrite=True, break_lock=break_lock):
            yield

    def write(
        self,
        *,
        progress: HalvesProgress = lambda name, done, total: None,
        finished: Callable[[HalvesOutcome], None] = lambda outcome: None,
        announce: Callable[[str], None] = lambda text: None,
    ) -> list[HalvesOutcome]:
        """Make the halves of all series; return what became of each.

        Parameters
        ----------
        progress
            Called with the name of a series, the planes done and their total.
        finished
            Called with each outcome.
        announce
            Called with a sentence about the size and the memory of each reconstruction before it begins.
        """
        outcomes = []
        for source in self.sources:
            try:
                outcomes.append(self._make(source, progress, announce))
            except (ValueError, OSError) as error:
                if self._is_single:
                    raise
                outcomes.append(HalvesOutcome(source.result, "failed", str(error)))
            finished(outcomes[-1])
        return outcomes

    def _make(self, source: Source, progress: HalvesProgress, announce: Callable[[str], None]) -> HalvesOutcome:
        """Make or take the halves of one series."""
        if (reason := self._reason_to_skip(source)) is not None:
            return HalvesOutcome(source.result, "skipped", reason)
        metadata = source.metadata
        # Halves that are there cannot be divided into those of other tilts.
        may_take = source.pair is None and not self._is_single
        if may_take and metadata is not None and metadata.half_tomograms is not None:
            if (why := _reason_to_remake(metadata)) is None:
                return self._take(source, metadata, progress)
            if not _has_images(metadata):
                warnings.warn(
                    f"{source.name}: its halves {why}, and there are no images to make others of: write the stacks of "
                    "the even and the odd frames too, or make the halves by weighted backprojection without a filter",
                    stacklevel=2,
                )
                return self._take(source, metadata, progress)
        prepared, started = self._prepare(source), time.perf_counter()
        del self._prepared[source.result]
        n_planes, n_bytes = planes_at_once(prepared, self.settings)
        z, y, x = prepared.shape
        counts = " and ".join(str(half.n_views) for half in prepared.halves)
        for note in () if metadata is None or metadata.program == "relion" else metadata.notes:
            announce(f"{source.name}: {note}")
        announce(
            f"{source.result}: {counts} views to {z} x {y} x {x} voxels (z, y, x), {n_planes} planes at once in about "
            f"{readable(n_bytes)}"
        )
        self._reconstruct(source, prepared, n_planes, progress)
        return HalvesOutcome(source.result, "done", f"{counts} views, {duration(time.perf_counter() - started)}")

    def _reconstruct(self, source: Source, prepared: Prepared, n_planes: int, progress: HalvesProgress) -> None:
        """Write the halves of one series, their tilts, their picture and their record."""
        inputs = self._begun(source)
        files = [self._half(source.result, number) for number in (1, 2)]
        along = prepared.halves[0].geometry.axes.along
        n = prepared.shape[along]
        for number, (path, half) in enumerate(zip(files, prepared.halves, strict=True)):

            def show(done: int, before: int = number * n) -> None:
                progress(source.result, before + done, 2 * n)

            label = f"equitomo halves: {self.settings.method}, {half.n_views} views, half {number + 1}"
            reconstruct_half(
                path, prepared, half, self.settings, n_planes=n_planes, label=label, overwrite=True, progress=show
            )
        draw_made(self.folder.path / f"{source.result}.png", prepared, files)
        facts = {
            "ctf_state": prepared.ctf_state,
            "made_by": "equitomo",
            "findings": [str(finding) for finding in prepared.findings],
            "shape": list(prepared.shape),
            "voxel_size": prepared.halves[0].pixel_size,
            "dose": [None if half.dose is None else list(half.dose) for half in prepared.halves],
        }
        first, second = prepared.halves
        names, angles = (files[0].name, files[1].name), (first.angles, second.angles)
        self._finish(source, inputs, names, angles, first.tilt_axis, facts)

    def _take(self, source: Source, metadata: SeriesMetadata, progress: HalvesProgress) -> HalvesOutcome:
        """Use the halves that the program made, in place or with their axes in order."""
        assert metadata.half_tomograms is not None
        inputs = self._begun(source)
        first, second = (str(path.absolute()) for path in metadata.half_tomograms)
        if metadata.half_tomogram_axes == "yzx":
            for number, path in enumerate(metadata.half_tomograms, 1):
                _write_turned(path, self._half(source.result, number))
                progress(source.name, number, 2)
            first, second = (self._half(source.result, number).name for number in (1, 2))
        angles = tuple(sorted(metadata.angles[n] + metadata.tilt_offset for n in metadata.kept))
        facts = {"ctf_state": metadata.ctf_state, "made_by": metadata.program, "by": metadata.reconstruction_method}
        self._finish(source, inputs, (first, second), (angles, angles), "y", facts)
        how = "with their axes in the order z, y, x" if metadata.half_tomogram_axes == "yzx" else "in place"
        return HalvesOutcome(source.name, "taken", f"the halves that {metadata.program} made, {how}")

    def _finish(
        self,
        source: Source,
        inputs: dict[str, Any],
        files: tuple[str, str],
        angles: tuple[tuple[float, ...], tuple[float, ...]],
        tilt_axis: TiltAxis,
        facts: dict[str, Any],
    ) -> None:
        """Write the tilts of each half and of both, and record a series that is done."""
        folder, (first, second) = self.folder.path, angles
        tilts = (
            write_tilts(folder / f"{source.result}_half1.tlt", first),
            write_tilts(folder / f"{source.result}_half2.tlt", second),
        )
        both = first if first == second else tuple(sorted({*first, *second}))
        write_tilts(folder / f"{source.result}.tlt", both)
        entry = entry_of(files, tilts, angles, tilt_axis, pair=source.pair, **facts, made_from=inputs)
        HalvesManifest(self.folder.path).add(source.result, entry)

    def _begun(self, source: Source) -> dict[str, Any]:
        """Record what the halves of a series will be made from, and return it.

        The record is written first: files that a stopped call leaves are then known to be its own.
        """
        record = self._record(source)
        content = record.content()
        HalvesManifest(self.folder.path).discard(source.result)
        record.write(content)
        inputs: dict[str, Any] = json.loads(content)
        return inputs

    def _prepare(self, source: Source) -> Prepared:
        """Return the halves of a series before they are reconstructed. Both pairs of it are prepared at once."""
        if source.result not in self._prepared:
            made = prepare(source, self.settings, permissive=self._files.permissive)
            self._prepared = {prepared.name: prepared for prepared in made}
        return self._prepared[source.result]

    def _half(self, name: str, number: int) -> Path:
        return self.folder.path / f"{name}_half{number}.mrc"

    def _record(self, source: Source) -> ResultRecord:
        """Return the record of what the halves of a series are made from."""
        settings = asdict(self.settings)
        return ResultRecord(self.folder.path / source.result, source.files, {}, settings, indifferent=_INDIFFERENT)

    def _reason_to_skip(self, source: Source) -> str | None:
        """Return why a series needs no work, None if it does, or refuse to replace other halves."""
        entry = HalvesManifest(self.folder.path).series.get(source.result)
        files = [] if entry is None else [self.folder.path / entry["first"], self.folder.path / entry["second"]]
        files = files or [path for number in (1, 2) if (path := self._half(source.result, number)).exists()]
        if not files:
            return None
        differences = self._record(source).differences()
        if not differences:
            # Files without an entry were left by a call that was stopped.
            return "done already" if entry is not None and all(_is_whole(path) for path in files) else None
        if not self.overwrite:
            raise FileExistsError(
                f"{files[0]} was made from something else ({'; '.join(differences)}): replace it with "
                "`overwrite=True`, or choose another `folder`"
            )
        return None


def _sources(files: SeriesFiles) -> list[Source]:
    """Return the series that are named, each under another name."""
    if files.first is not None:
        given = (files.second, files.tilts, files.alignment)
        second, tilts, alignment = (None if path is None else Path(path) for path in given)
        return [source_of(Path(files.first), second, tilts, alignment)]
    programs = ("aretomo", "warp", "relion")
    program = next(name for name in programs if getattr(files, name) is not None)
    found = find_series(getattr(files, program), program=program)  # type: ignore[arg-type]
    sources = [Source(series.name, metadata=series) for series in found]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two series are called {twice}: their halves would have one name; rename one of them")
    return [replace_name(source) for source in sources]


def replace_name(source: Source) -> Source:
    """Return the source with a name that is one of a file."""
    return source._replace(name=source.name.replace("/", "_"))


def _reason_to_remake(metadata: SeriesMetadata) -> str | None:
    """Return what is wrong with the halves that a program made, if anything is known to be."""
    if metadata.ctf_state == "wiener":
        return "were Wiener-filtered, which changes their noise"
    if metadata.reconstruction_method in ("sart", "sirt"):
        return f"were reconstructed by {metadata.reconstruction_method.upper()}, whose noise is not that of their wedge"
    return None


def _has_images(metadata: SeriesMetadata) -> bool:
    images = (metadata.half_stacks, metadata.half_images, metadata.stack, metadata.images)
    return any(given is not None for given in images)


def _write_turned(path: Path, target: Path) -> None:
    """Write a volume (y, z, x) as (z, y, x), some planes at a time."""
    volume = read_volume(path)
    y, z, x = volume.shape
    size_y, size_z, size_x = volume.voxel_size
    label = "equitomo halves: axes in the order z, y, x"
    with creating_volume(target, (z, y, x), voxel_size=(size_z, size_y, size_x), label=label, overwrite=True) as data:
        for plane in range(y):
            data[:, plane] = np.asarray(volume[plane], np.float32)


def _is_whole(path: Path) -> bool:
    try:
        read_volume(path)
    except (ValueError, OSError):
        return False
    return True
