"""A second network that is trained apart from a first one, so that their results can be compared."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path

from equitomo.datasets import read_geometry
from equitomo.io import Volume, read_volume
from equitomo.run.folder import RESULTS
from equitomo.run.record import file_hash
from equitomo.run.recorded_pair import recorded_init
from equitomo.run.report_facts import RunRecord
from equitomo.run.settings import ComparedFiles, TomogramFiles, TrainingFiles
from equitomo.training import TrainingConfig
from equitomo.training.checkpoint import load_checkpoint


def independent_settings(run: str | Path, halves: TomogramFiles) -> TrainingConfig:
    """Return the settings with which a second network is trained apart from the network of a run.

    They are those of the run but for the seed, so that initial weights, cubes and all other draws differ. The results
    of both networks are independent in their noise if the halves are, too: four volumes of one specimen, of which each
    network sees two. What the networks fill into the wedge is not independent, even so: it follows from the same
    assumptions, and correlates more than either does with the truth.

    Parameters
    ----------
    run
        The folder of a run that has written its ``reconstruction.mrc``.
    halves
        The two halves for the second network.

    Raises
    ------
    ValueError
        If a half is among the inputs of the run, or has another shape than its result.
    OSError
        If the folder holds no finished run.

    Examples
    --------
    >>> independent_settings("nowhere", TomogramFiles("third.mrc", "fourth.mrc"))
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] nowhere has no reconstruction.mrc to compare with: ...
    """
    folder = Path(run)
    result = reconstruction_of(folder)
    try:
        inputs = RunRecord.read(folder).inputs
    except ValueError as error:
        raise ValueError(f"it is not known on what {folder} was trained: {error}") from error
    used = {given.get("sha256"): role for role, given in inputs.items() if role not in ("mask", "tilts")}
    for path in (halves.first, halves.second):
        if path is None:
            raise ValueError("a second network needs two halves, FIRST and SECOND, that the first one has not seen")
        if (role := used.get(file_hash(Path(path)))) is not None:
            raise ValueError(
                f"{path} is the {role} half of {folder}: the two networks would learn from the same noise. Give two "
                "other halves, such as those of the other tilts; see What is real in the guide"
            )
        if (shape := read_volume(path, permissive=halves.permissive).shape) != result.shape:
            raise ValueError(
                f"{path} has shape {shape} (z, y, x), and {result.path} {result.shape}: all four halves must lie on "
                "one grid"
            )
    config = load_checkpoint(folder).config
    return replace(config, seed=(config.seed + 1) % 2**64)


def starting_weights(run: str | Path) -> str | None:
    """Return the weights that a run started from, as ``init`` of another one; ``None`` for those of the seed.

    Weights of the package or of an earlier run are then common to both networks, so a warning is issued.
    """
    init = recorded_init(Path(run))
    if not isinstance(init, dict):
        return None
    start = str(init["network"] if "network" in init else init["path"])
    warnings.warn(
        f"both networks start from {start}, so their results agree more than they are true, most at high frequencies: "
        f"train {run} from scratch to compare two that have nothing in common",
        stacklevel=2,
    )
    return start


def reconstruction_of(folder: str | Path) -> Volume:
    """Return the result in the folder of a run."""
    path = Path(folder) / RESULTS[0]
    if not path.exists():
        raise FileNotFoundError(
            2, f"{folder} has no {path.name} to compare with: give the folder of a run that `reconstruct` has finished"
        )
    return read_volume(path)


def training_files(files: ComparedFiles) -> TrainingFiles:
    """Return the files of two volumes to compare as those of a tomogram to train on."""
    return TrainingFiles(**{field.name: getattr(files, field.name) for field in fields(TrainingFiles)})


def results_to_compare(files: ComparedFiles, *runs: str | Path) -> ComparedFiles:
    """Return the results of two runs in place of the halves in ``files``, with the tilts of both and the mask."""
    first, second = (str(Path(run) / RESULTS[0]) for run in runs)
    tilts = files.tilts
    if tilts is not None and files.second_tilts is not None:
        # A result shows what either half has measured.
        ranges = [part.tilt_range for given in (tilts, files.second_tilts) for part in read_geometry(given).parts]
        tilts = f"{min(low for low, _ in ranges):.3f},{max(high for _, high in ranges):.3f}"
    return replace(files, first=first, second=second, tilts=tilts, second_tilts=None)
