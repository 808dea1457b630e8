"""What the record of a run says of its beginning: the tomogram that it was trained on, and the first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equitomo.datasets import TomogramPair
from equitomo.run.folder import MANIFEST
from equitomo.run.record import file_hash
from equitomo.run.report_facts import RunRecord
from equitomo.training import TrainingConfig

_REMEDY = "give the halves of the tomogram, FIRST and SECOND"


def recorded_pair(folder: str | Path, config: TrainingConfig) -> TomogramPair:
    """Return the only tomogram of a run, read from the files that its record names. No more than headers are read now.

    Raises
    ------
    ValueError
        If there is no record, it names no halves or those of several tomograms, or a file has changed since.
    OSError
        If a file cannot be read.
    """
    nameless = f"{Path(folder) / MANIFEST} does not name the two halves of one tomogram: {_REMEDY}"
    try:
        record = RunRecord.read(Path(folder))
    except ValueError as error:
        raise ValueError(nameless) from error
    inputs, tilts = record.inputs, record.geometries
    if not {"first", "second"} <= inputs.keys() or not 1 <= len(tilts) <= 2:
        raise ValueError(nameless)
    paths = {role: Path(inputs[role]["path"]) for role in ("first", "second", "mask") if role in inputs}
    for role, path in paths.items():
        if not path.exists():
            raise FileNotFoundError(f"{path}, the {role} of the run {folder}, is not there any more: {_REMEDY}")
        if file_hash(path) != inputs[role]["sha256"]:
            raise ValueError(f"{path}, the {role} of the run {folder}, has changed since it was trained: {_REMEDY}")
    options = dict(record.invocations[0].get("options") or {}) if record.invocations else {}
    return TomogramPair.read(
        paths["first"],
        paths["second"],
        tilts=tilts[0],
        second_tilts=tilts[-1],
        mask=paths.get("mask", "auto" if options.get("mask") == "auto" else None),
        normalization=config.normalization,
        nan=options.get("nan", "refuse"),
        permissive=options.get("permissive", False),
        is_tomogram=True,
        lazy=True,
    )


def recorded_init(folder: Path) -> Any:
    """Return what the record of a run says of the weights that it started from; ``None`` for those of the seed.

    Those of a training that began again are those of the seed.
    """
    try:
        record = RunRecord.read(folder)
        return record.init if record.restart is None else None
    except ValueError:
        return None
