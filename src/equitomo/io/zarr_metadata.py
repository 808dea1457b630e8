"""The metadata of an OME-Zarr store: the folder of the voxels, their axes and their size."""

import errno
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import FileFormatError
from .mrc_header import Axes
from .opening import read_text

# The files that make a folder a group or an array of Zarr, in formats 3 and 2.
NODES = ("zarr.json", ".zgroup", ".zarray")
_ANGSTROM = {
    "picometer": 1e-2,
    "angstrom": 1.0,
    "nanometer": 1e1,
    "micrometer": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
}
# Other codecs are refused: they may execute code, as numcodecs' pickle does, or do not hold numbers.
_CODECS = {
    *("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "fixedscaleoffset", "crc32", "crc32c"),
    *("bytes", "transpose", "sharding_indexed"),
}


@dataclass(frozen=True)
class Level:
    """One resolution of an image: the folder of its array, and the place of its voxels."""

    folder: Path
    # The array has n_axes axes, and these are z, y and x.
    axes: tuple[int, int, int]
    n_axes: int
    # In ångström along (z, y, x); the size is 0 if the store does not state it, the origin is the first voxel's centre.
    voxel_size: Axes
    origin: Axes


def is_zarr(path: Path) -> bool:
    """Return whether a path lies in a Zarr store, by its name or by the content of the folder."""
    named = any(part.lower().endswith(".zarr") for part in path.parts)
    return not path.is_file() and (named or _is_node(path))


def find_level(path: Path, notes: list[str]) -> Level:
    """Return the resolution that a path names, or the first one, which is the finest, if it names only the image."""
    group, images = _multiscales(path)
    image = _one_image(group, images)
    datasets = {str(_entry(group, dataset, "path", str)): dataset for dataset in _entry(group, image, "datasets", list)}
    names = ", ".join(datasets)
    wanted = path.relative_to(group).as_posix() if path != group else next(iter(datasets), "")
    if wanted not in datasets:
        raise FileFormatError(f"{group}: the image has no level {wanted!r}, only: {names or 'none'}; name one of them")
    inside = PurePosixPath(wanted)
    if inside.is_absolute() or ".." in inside.parts:
        raise FileFormatError(f"{group}: the level {wanted!r} is outside of the store; refused. Export the image again")
    names_of_axes, units = _axes(group, image)
    scale, translation = _transformed(group, image, datasets[wanted], len(names_of_axes))
    z, y, x = (names_of_axes.index(name) for name in "zyx")
    factors = [_ANGSTROM.get(unit, 0.0) for unit in units]
    if not scale or not all(factors[axis] for axis in (z, y, x)):
        stated = ", ".join(units[axis] or "none" for axis in (z, y, x))
        notes.append(f"no voxel size in the metadata (units: {stated}), so lengths are stated in voxels")
    scale = scale or [0.0] * len(factors)
    # Without the 0.0 a missing translation in a negative direction would become -0.0.
    origin = [0.0 + shift * factor for shift, factor in zip(translation, factors, strict=True)]
    sizes = [size * factor for size, factor in zip(scale, factors, strict=True)]
    return Level(
        group / wanted,
        (z, y, x),
        len(factors),
        (sizes[z], sizes[y], sizes[x]),
        (origin[z], origin[y], origin[x]),
    )


def check_codecs(folder: Path) -> None:
    """Raise an error for an array whose chunks are packed by an unknown codec."""
    if (path := folder / "zarr.json").is_file():
        names = list(_codecs(read_json(path).get("codecs")))
    else:
        path = folder / ".zarray"
        content = read_json(path)
        filters = content.get("filters")
        packers = [content.get("compressor"), *(filters if isinstance(filters, list) else [])]
        names = [str(packer.get("id")) for packer in packers if isinstance(packer, dict)]
    unknown = sorted({name.removeprefix("numcodecs.") for name in names} - _CODECS)
    if unknown:
        raise FileFormatError(
            f"{path}: the chunks are packed by {', '.join(unknown)}, which cannot be read; save the array again "
            "with blosc, zstd or gzip"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or raise an error if the file holds something else."""
    expected = "expected the JSON object of a Zarr store; copy or export the store again"
    try:
        content = json.loads(read_text(path, "metadata file", expected))
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: damaged ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: holds a {type(content).__name__}; {expected}")
    return content


def _multiscales(path: Path) -> tuple[Path, Any]:
    """Return the group that describes the image, and its ``multiscales``."""
    for folder in (path, *path.parents):
        attributes = _attributes(folder)
        if attributes and "multiscales" in attributes:
            return folder, attributes["multiscales"]
        if folder.suffix.lower() == ".zarr" or (folder != path and attributes is None):
            break
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such Zarr store; check the name and the folder", str(path))
    within = sorted(node.name for node in path.iterdir() if _is_node(node))
    hint = f"it holds {', '.join(within[:5])}; give {path}/NAME if one is an image" if within else "export it again"
    raise FileFormatError(f"{path}: no image of OME-Zarr, because the attribute 'multiscales' is missing; {hint}")


def _attributes(folder: Path) -> dict[str, Any] | None:
    """Return the attributes of a group or array, or None if the folder is neither."""
    if (path := folder / "zarr.json").is_file():
        attributes = read_json(path).get("attributes", {})
        # Since version 0.5 they lie in the namespace "ome".
        inner = attributes.get("ome", attributes) if isinstance(attributes, dict) else attributes
        if not isinstance(inner, dict):
            raise FileFormatError(f"{path}: the attributes are not a JSON object; export the store again")
        return inner
    if (path := folder / ".zattrs").is_file():
        return read_json(path)
    return {} if _is_node(folder) else None


def _is_node(folder: Path) -> bool:
    """Return whether a folder is a group or an array of Zarr, or holds at least the attributes of one."""
    return any((folder / name).is_file() for name in (*NODES, ".zattrs"))


def _one_image(group: Path, images: Any) -> dict[str, Any]:
    """Return the only image of a group, or raise an error if it holds several or none."""
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        found = f"{len(images)} images" if isinstance(images, list) else f"a {type(images).__name__}"
        raise FileFormatError(
            f"{group}: 'multiscales' holds {found}, expected one; save the wanted one as its own store"
        )
    return images[0]


def _entry(group: Path, content: Any, name: str, kind: type) -> Any:
    """Return one entry of the metadata, or raise an error if it is not of the right kind."""
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise FileFormatError(
            f"{group}: the metadata has no {name!r} that is a {kind.__name__}, got {value!r:.80}; expected OME-NGFF "
            "0.4 or 0.5. Export the store again"
        )
    return value


def _axes(group: Path, image: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names and the units of all axes of the array; a missing unit is an empty text."""
    axes = _entry(group, image, "axes", list)
    # In version 0.3 the axes have only names.
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
    names = [str(_entry(group, axis, "name", str)).lower() for axis in axes]
    if sorted(name for name in names if name in ("z", "y", "x")) != ["x", "y", "z"]:
        raise FileFormatError(f"{group}: the axes are {names}, expected z, y and x, each once; give a volume")
    return names, [str(axis.get("unit") or "").lower() for axis in axes]


def _transformed(
    group: Path, image: dict[str, Any], dataset: dict[str, Any], n_axes: int
) -> tuple[list[float], list[float]]:
    """Return the scale and translation from indices to the axes' units; the scale is empty if there is none."""
    scale, translation, scaled = [1.0] * n_axes, [0.0] * n_axes, False
    for kind, numbers in _transforms(group, [dataset, image], n_axes):
        if kind == "scale":
            scaled = True
            scale = [old * new for old, new in zip(scale, numbers, strict=True)]
            translation = [old * new for old, new in zip(translation, numbers, strict=True)]
        else:
            translation = [old + new for old, new in zip(translation, numbers, strict=True)]
    return (scale if scaled else []), translation


def _transforms(group: Path, owners: list[dict[str, Any]], n_axes: int) -> Iterator[tuple[str, list[float]]]:
    """Yield the transformations of a level, then those of all levels, in the order in which they are applied."""
    for owner in owners:
        for transform in _entry(group, {"coordinateTransformations": [], **owner}, "coordinateTransformations", list):
            kind = _entry(group, transform, "type", str)
            if kind == "identity":
                continue
            numbers = transform.get(kind)
            valid = kind in ("scale", "translation") and isinstance(numbers, list) and len(numbers) == n_axes
            if not valid or not all(_is_number(number, positive=kind == "scale") for number in numbers):
                raise FileFormatError(
                    f"{group}: cannot use the transformation {transform!r:.120}; expected 'scale' or 'translation' "
                    f"with {n_axes} numbers, scales positive. Export the store again"
                )
            yield kind, [float(number) for number in numbers]


def _is_number(value: Any, *, positive: bool) -> bool:
    """Return whether an entry of the metadata is a finite number, and positive if it must be."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be too long for a float.
    return plain and abs(value) < 1e300 and math.isfinite(value) and (value > 0 or not positive)


def _codecs(given: Any) -> Iterator[str]:
    """Yield the names of the codecs of format 3, including those inside shards."""
    for codec in given if isinstance(given, list) else []:
        name = codec.get("name") if isinstance(codec, dict) else codec
        yield str(name)
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict):
            yield from _codecs(inner.get("codecs"))
            yield from _codecs(inner.get("index_codecs"))
