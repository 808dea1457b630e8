"""Read and write HyperSpy's ``.hspy`` and the ``.emd`` of tomviz and other programs (HDF5).

``h5py`` reads the files; RosettaSciIO, which reads the same formats, is GPL-3 and so no dependency of this package.
"""

import warnings
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .calibrated import Axis, CalibratedArray, calibrated, uniform_axis
from .errors import FileFormatError, FileFormatWarning
from .mapped import Array, release, slabs_of
from .mrc_header import Axes
from .placing import atomic_file
from .writing import WritingPlan, as_stored

HDF5_MARK = b"\x89HDF\r\n\x1a\n"
_EXPECTED = "expected a .hspy of HyperSpy or an .emd with the axes dim1 to dim3, as tomviz writes"
# Room for the metadata.
_HEAD_BYTES = 1 << 16
_CHUNK = 64


def read_hdf5(path: Path, *, memory_map: bool = True) -> CalibratedArray:
    """Return the array in a ``.hspy`` or ``.emd`` file, in memory if it is stored in pieces or compressed."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FileFormatError(f"{path}: {_damage(path, error)}") from error
    with file:
        try:
            if "Experiments" in file:
                return _read_hspy(path, file, memory_map)
            return _read_emd(path, file, memory_map)
        except FileFormatError:
            raise
        except (KeyError, AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise FileFormatError(f"{path}: damaged ({error}); copy or export the file again") from error


def _damage(path: Path, error: OSError) -> str:
    """Return what is wrong with a file that HDF5 does not open."""
    if "truncated" in str(error):
        sizes = str(error).partition("truncated file:")[2].strip(" )")
        return f"truncated HDF5 file ({sizes or path.stat().st_size}); copy or export it again"
    return f"damaged HDF5 file ({error}); copy or export it again"


def _text(value: Any) -> str:
    """Return an attribute as text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _array(path: Path, dataset: Any, memory_map: bool) -> Array:
    """Return the values of a dataset, as a map of the file if they lie there in one piece."""
    offset = dataset.id.get_offset()
    if dataset.dtype.kind not in "biuf":
        raise FileFormatError(f"{path}: {dataset.name} holds {dataset.dtype}, expected real numbers")
    if memory_map and offset is not None and dataset.dtype.isnative and dataset.size:
        return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)
    values: Array = dataset[...]
    return values.astype(dataset.dtype.newbyteorder("="), copy=False)


def _read_hspy(path: Path, file: Any, memory_map: bool) -> CalibratedArray:
    """Return the only signal in a file of HyperSpy, or the first of several."""
    signals = [group for group in file["Experiments"].values() if "data" in group]
    if not signals:
        raise FileFormatError(f"{path}: holds no signal of HyperSpy; {_EXPECTED}")
    if len(signals) > 1:
        name = signals[0].name.rpartition("/")[2]
        warnings.warn(
            f"{path}: holds {len(signals)} signals; {name!r} is read. Save the wanted one alone to read another",
            FileFormatWarning,
            stacklevel=5,
        )
    signal = signals[0]
    data = _array(path, signal["data"], memory_map)
    axes = [_hspy_axis(signal.get(f"axis-{n}"), size) for n, size in enumerate(data.shape)]
    return calibrated(path, data, axes, _hspy_tilts(signal))


def _hspy_axis(group: Any, n: int) -> Axis:
    """Return one axis of a signal of HyperSpy."""
    values = dict(group.attrs) if group is not None else {}
    name, units = (_text(values.get(key, "")) for key in ("name", "units"))
    stored = group.get("axis") if group is not None else None
    if stored is not None and len(stored) == n:
        return Axis(name, units, np.asarray(stored, np.float64))
    return uniform_axis(name, units, n, float(values.get("scale", 1)), float(values.get("offset", 0)))


def _hspy_tilts(signal: Any) -> tuple[float, ...] | None:
    """Return the tilts that ETSpy keeps in the metadata, or None if they were never set."""
    tomography = signal.get("metadata/Tomography")
    for name in ("_sig_tilts/data", "tilts"):
        if tomography is not None and name in tomography:
            tilts = np.asarray(tomography[name], np.float64).ravel()
            if len(set(tilts.tolist())) > 1:
                return tuple(tilts.tolist())
    return None


def _read_emd(path: Path, file: Any, memory_map: bool) -> CalibratedArray:
    """Return the first array with three axes in an ``.emd`` file."""
    groups: list[Any] = []

    def note(_: str, item: Any) -> None:
        data = item.get("data") if hasattr(item, "keys") else None
        if data is not None and getattr(data, "ndim", 0) == 3 and "dim1" in item:
            groups.append(item)

    file.visititems(note)
    if not groups:
        velox = "; it seems to be one of Velox: export the series as TIFF or MRC" if "Data/Image" in file else ""
        raise FileFormatError(f"{path}: an HDF5 file without a calibrated array of three axes{velox}; {_EXPECTED}")
    group = groups[0]
    data = _array(path, group["data"], memory_map)
    return calibrated(path, data, [_emd_axis(group[f"dim{n + 1}"], size) for n, size in enumerate(data.shape)], None)


def _emd_axis(dataset: Any, n: int) -> Axis:
    """Return one axis of an ``.emd`` file, whose first two points may stand for all."""
    name, units = (_text(dataset.attrs.get(key, "")) for key in ("name", "units"))
    values = np.asarray(dataset, np.float64).ravel()
    if len(values) == n:
        return Axis(name, units, values)
    step = float(values[1] - values[0]) if len(values) > 1 else 1.0
    return uniform_axis(name, units, n, step, float(values[0]) if len(values) else 0.0)


# Writing ---------------------------------------------------------------------------------------------


def write_hdf5(plan: WritingPlan, data: Array) -> None:
    """Write a volume as ``.hspy`` or ``.emd``; see :func:`write_volume`."""
    import h5py

    n_bytes = prod(plan.shape) * np.dtype(plan.dtype).itemsize + _HEAD_BYTES
    with atomic_file(plan.path, overwrite=plan.overwrite, n_bytes=n_bytes) as target, h5py.File(target, "w") as file:
        (_write_emd if plan.path.suffix.lower() == ".emd" else _write_hspy)(file, plan, data)


def _nanometres(plan: WritingPlan) -> tuple[Axes, Axes, str]:
    """Return the voxel size, the origin and their unit; without a voxel size they are pixels."""
    origin = plan.like.header.origin if plan.like else (0.0, 0.0, 0.0)
    if not all(plan.voxel_size):
        return (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "px"
    z, y, x = (size / 10 for size in plan.voxel_size)
    return (z, y, x), (origin[0] / 10, origin[1] / 10, origin[2] / 10), "nm"


def _write_hspy(file: Any, plan: WritingPlan, data: Array) -> None:
    """Write a signal of HyperSpy with two axes of the image and one of navigation."""
    file.attrs["file_format"], file.attrs["file_format_version"] = "HyperSpy", "3.3"
    signal = file.create_group(f"Experiments/{plan.path.stem}")
    signal.attrs["package"] = signal.attrs["package_version"] = ""
    values = signal.create_dataset("data", plan.shape, plan.dtype)
    for place, slab in slabs_of(data):
        values[place] = as_stored(slab, np.dtype(plan.dtype))
    release(data)
    steps, origin, unit = _nanometres(plan)
    for n, name in enumerate("zyx"):
        attributes: dict[str, Any] = {
            "_type": "UniformDataAxis",
            "name": name,
            "units": unit,
            "scale": steps[n],
            "offset": origin[n],
            "size": plan.shape[n],
            "navigate": n == 0,
            "is_binned": False,
        }
        signal.create_group(f"axis-{n}").attrs.update(attributes)
    for group, known in {
        "metadata/General": {"title": plan.label or plan.path.stem},
        "metadata/Signal": {"signal_type": ""},
        "original_metadata": {},
        "learning_results": {},
        "models": {},
        "attributes": {"_lazy": False, "ragged": False},
    }.items():
        signal.create_group(group).attrs.update(known)


def _write_emd(file: Any, plan: WritingPlan, data: Array) -> None:
    """Write an ``.emd`` as tomviz does: the axes are x, y and z."""
    file.attrs["version_major"], file.attrs["version_minor"] = np.uint32(0), np.uint32(2)
    group = file.create_group("data/tomography")
    group.attrs["emd_group_type"] = np.uint32(1)
    shape = plan.shape[::-1]
    values = group.create_dataset("data", shape, plan.dtype, chunks=tuple(min(n, _CHUNK) for n in shape))
    values.attrs["name"] = plan.label or plan.path.stem
    for z in range(0, plan.shape[0], _CHUNK):
        slab = as_stored(np.asarray(data[z : z + _CHUNK]), np.dtype(plan.dtype))
        values[:, :, z : z + _CHUNK] = slab.transpose(2, 1, 0)
        release(data)
    steps, origin, unit = _nanometres(plan)
    for n, name in enumerate("xyz"):
        points = origin[2 - n] + steps[2 - n] * np.arange(shape[n])
        axis = group.create_dataset(f"dim{n + 1}", data=points.astype(np.float32))
        axis.attrs["name"], axis.attrs["units"] = name, "[n_m]" if unit == "nm" else "[px]"
