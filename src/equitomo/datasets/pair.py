"""Two half tomograms of one specimen, checked and brought to a common scale."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equitomo.datasets.contrast import Contrast, is_dark
from equitomo.datasets.halves import require_one_grid, require_usable_halves
from equitomo.datasets.intensities import IntensityScale, Nan, Normalization, require_finite
from equitomo.datasets.sections import require_tomogram
from equitomo.datasets.specimen import specimen_mask
from equitomo.datasets.statistics import HalfStatistics, ReadingStoppedError, copy_block
from equitomo.geometry import Geometry, TiltAxis, TiltGeometry, as_geometry
from equitomo.io import Volume, read_tilts, read_volume
from equitomo.volumes import Filled, Shape, VolumeLike, Voxels, as_voxels

Mask = VolumeLike | Literal["auto"] | None
Tilts = str | Path | tuple[float, float] | Geometry


class TomogramPair:
    """Two half tomograms with independent noise on one intensity scale, with their tilts and their mask.

    Constructing a pair refuses what cannot be used. It does not judge what can be used but looks wrong:
    :func:`equitomo.diagnose` does.

    Parameters
    ----------
    first, second
        The halves ``(z, y, x)``: arrays, tensors, or what :func:`~equitomo.read_volume` returns. ``second`` is
        ``None`` for a single volume.
    geometry
        The tilts, a union of several series, or a pair ``(low, high)`` of degrees about the y axis.
    second_geometry
        The tilts of the second half where they differ, as for halves made of the odd and the even tilts.
    voxel_size
        Ångström per voxel along ``(z, y, x)``, or one number. ``None`` takes it from the files, if they state it.
    mask
        A volume that is non-zero where the specimen is; ``"auto"`` finds the specimen with
        :func:`~equitomo.specimen_mask`; with ``None`` the whole volume counts as specimen.
    normalization
        ``"robust"`` subtracts one mean and divides by one deviation, taken over both halves with outliers
        clipped; ``"scale"`` only divides.
    nan
        ``"refuse"`` refuses volumes with voxels that are NaN or infinite; ``"mean"`` replaces these voxels by the
        mean of the others in the volume.
    lazy
        Leave the voxels in their files until they are needed. Otherwise both halves are read now.
    name
        The name of the pair in messages; ``None`` takes the names of the files.
    files
        Further files that belong to the pair, by role, to be recorded with a run.

    Attributes
    ----------
    shape : tuple of int
        Voxels along (z, y, x).
    geometries : tuple of TiltGeometry
        The tilts of each half.
    voxel_size : tuple of float or None
        Ångström along (z, y, x).
    files : dict
        The files of the pair by role: ``"first"``, ``"second"``, ``"mask"`` and ``"tilts"``.
    labels : tuple of str
        The name of each half in messages.
    is_inverted : bool
        Whether ``volumes`` have the inverted contrast of the halves; see :meth:`with_contrast`.
    mask_is_given : bool
        Whether the mask was given as a volume: not ``None``, and not ``"auto"``.
    mask_is_binary : bool or None
        Whether a given mask holds only zeros and ones; ``None`` before it was read.

    Raises
    ------
    ValueError
        If the halves are one file, differ in shape or by more than one part in a hundred in voxel size, or the mask
        has another shape. When the voxels are read (at once, unless the pair is lazy): if the halves are equal or
        nearly equal, constant, or hold NaN or infinite values, or the mask is empty or holds such values.
    OSError
        When the voxels are read: if a file cannot be read.

    Examples
    --------
    >>> specimen = torch.randn(16, 16, 16)
    >>> first, second = specimen + torch.randn(2, 16, 16, 16)
    >>> pair = TomogramPair(first, second, (-60.0, 60.0), voxel_size=10.0)
    >>> pair.shape, pair.voxel_size, pair.volumes.shape
    ((16, 16, 16), (10.0, 10.0, 10.0), torch.Size([2, 16, 16, 16]))
    """

    def __init__(
        self,
        first: VolumeLike,
        second: VolumeLike | None,
        geometry: Geometry | tuple[float, float],
        *,
        second_geometry: Geometry | tuple[float, float] | None = None,
        voxel_size: float | tuple[float, float, float] | None = None,
        mask: Mask = None,
        normalization: Normalization = "robust",
        nan: Nan = "refuse",
        lazy: bool = False,
        name: str | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        given = (first,) if second is None else (first, second)
        if normalization not in ("robust", "scale"):
            raise ValueError(f"`normalization` is 'robust' or 'scale', got {normalization!r}")
        if nan not in ("refuse", "mean"):
            raise ValueError(f"`nan` is 'refuse' or 'mean', got {nan!r}")
        self.name, self.labels = _names(given, name)
        if isinstance(first, Volume) and isinstance(second, Volume):
            require_one_grid(first, second)
        shapes = [tuple(volume.shape) for volume in given]
        if len(shapes[0]) != 3 or shapes[-1] != shapes[0]:
            got = " and ".join(map(str, shapes))
            raise ValueError(f"{self.name}: the halves must be volumes (z, y, x) of one shape, got {got}")
        z, y, x = first.shape
        self.shape: Shape = (z, y, x)
        views = (geometry, geometry if second_geometry is None else second_geometry)[: len(given)]
        self.geometries: tuple[Geometry, ...] = tuple(map(as_geometry, views))
        self.voxel_size = _three(voxel_size) if voxel_size is not None else _stated_size(first)
        roles = {"first": first, "second": second, "mask": mask}
        self.files: dict[str, Path | Volume] = {role: v for role, v in roles.items() if isinstance(v, Volume)}
        self.files |= files or {}
        if mask is not None and not isinstance(mask, str) and tuple(mask.shape) != self.shape:
            raise ValueError(
                f"{self.name}: the mask has shape {tuple(mask.shape)}, the tomogram {self.shape} (z, y, x): make one "
                "on its grid, or pass `mask='auto'` to have it found"
            )
        self._given = tuple(as_voxels(volume) for volume in given)
        self._device = first.device if isinstance(first, Tensor) else torch.device("cpu")
        self._mask_given = mask
        self.normalization: Normalization = normalization
        self.nan: Nan = nan
        self._statistics: tuple[HalfStatistics, ...] | None = None
        # For each half the value that replaces invalid voxels, None where there are none.
        self._fills: tuple[float | None, ...] | None = None
        self._scale: IntensityScale | None = None
        self.is_inverted = False
        # Whether the specimen is darker than its background; None before that was asked.
        self._is_dark: bool | None = None
        self._volumes: Tensor | None = None
        self._mask: Tensor | None = None
        self.mask_is_given = mask is not None and not isinstance(mask, str)
        self.mask_is_binary: bool | None = None
        if not lazy:
            _ = self.volumes, self.mask

    @classmethod
    def read(
        cls,
        first: str | Path,
        second: str | Path | None = None,
        *,
        tilts: Tilts,
        tilt_axis: TiltAxis = "y",
        second_tilts: Tilts | None = None,
        second_axis_tilts: Tilts | None = None,
        mask: str | Path | VolumeLike | None = None,
        normalization: Normalization = "robust",
        nan: Nan = "refuse",
        permissive: bool = False,
        is_tomogram: bool = False,
        lazy: bool = False,
        name: str | None = None,
    ) -> TomogramPair:
        """Read a pair from files.

        Parameters
        ----------
        first, second
            The files of the halves; ``second`` is ``None`` for a single volume.
        tilts
            A file of tilts, ``"LOW,HIGH"`` or ``(low, high)`` in degrees, or a geometry.
        tilt_axis
            The tilt axis, unless ``tilts`` is a geometry.
        second_tilts
            The tilts of the second half where they differ.
        second_axis_tilts
            The tilts about the other axis of a dual-axis series, in both halves.
        mask
            A file, a volume, ``"auto"`` or ``None``.
        permissive
            See :func:`~equitomo.read_volume`; holds for the mask too.
        is_tomogram
            Accept files that look like a tilt series because they have one section for each tilt.
        normalization, nan, lazy, name
            See the class.

        Raises
        ------
        ValueError, OSError
            As the class, :func:`~equitomo.read_volume` and :func:`~equitomo.read_tilts`.

        Examples
        --------
        >>> from equitomo import write_volume
        >>> folder, specimen = getfixture("tmp_path"), np.random.default_rng(0).standard_normal((16, 16, 16))
        >>> for name in ("even", "odd"):
        ...     half = specimen + np.random.default_rng(len(name)).standard_normal((16, 16, 16))
        ...     _ = write_volume(folder / f"{name}.mrc", half.astype("f4"), voxel_size=10.0)
        >>> pair = TomogramPair.read(folder / "even.mrc", folder / "odd.mrc", tilts="-60,60", lazy=True)
        >>> pair.is_lazy, pair.voxel_size, pair.geometry.tilt_range
        (True, (10.0, 10.0, 10.0), (-60.0, 60.0))
        """

        def volume(path: str | Path) -> Volume:
            return read_volume(path, permissive=permissive)

        one, other = volume(first), None if second is None else volume(second)
        geometry = read_geometry(tilts, tilt_axis, second_axis_tilts)
        second_geometry = None
        if second_tilts is not None:
            second_geometry = read_geometry(second_tilts, tilt_axis, second_axis_tilts)
        if not is_tomogram:
            for half in (one,) if other is None else (one, other):
                require_tomogram(half, [geometry] if second_geometry is None else [geometry, second_geometry])
        paths = {"tilts": tilts, "second tilts": second_tilts, "second-axis tilts": second_axis_tilts}
        return cls(
            one,
            other,
            geometry,
            second_geometry=second_geometry,
            mask=volume(mask) if isinstance(mask, (str, Path)) and mask != "auto" else mask,  # type: ignore[arg-type]
            normalization=normalization,
            nan=nan,
            lazy=lazy,
            name=name,
            files={role: Path(path) for role, path in paths.items() if _is_file(path)},  # type: ignore[arg-type]
        )

    @property
    def n_views(self) -> int:
        """Number of volumes: 2, or 1 for a single volume."""
        return len(self._given)

    @property
    def n_bytes(self) -> int:
        """Bytes that the halves take in memory as float32."""
        return 4 * self.n_views * math.prod(self.shape)

    @property
    def geometry(self) -> Geometry:
        """The tilts of the first half."""
        return self.geometries[0]

    @property
    def halves(self) -> tuple[Voxels, ...]:
        """The halves as given, not normalised; with ``nan="mean"`` without invalid voxels."""
        if self.nan == "refuse":
            return self._given
        if self._fills is None:
            _ = self.statistics
        assert self._fills is not None
        both = zip(self._given, self._fills, strict=True)
        return tuple(half if fill is None else Filled(half, fill) for half, fill in both)

    @property
    def statistics(self) -> tuple[HalfStatistics, ...]:
        """The statistics of each half, read when first needed, in one pass over each, and kept."""
        if self._statistics is None:
            self._keep(tuple(HalfStatistics.of(half) for half in self._given))
        assert self._statistics is not None
        return self._statistics

    @property
    def scale(self) -> IntensityScale:
        """The map between the input's intensities and ``volumes``."""
        if self._scale is None:
            require_usable_halves(self.statistics, self.labels, self.name, nan=self.nan)
            scale = IntensityScale.of(*self.statistics, normalization=self.normalization)
            self._scale = scale.inverted() if self.is_inverted else scale
        return self._scale

    @property
    def volumes(self) -> Tensor:
        """The halves on the common scale, float32 of shape (views, z, y, x), read when first needed and kept."""
        if self._volumes is None:
            self._volumes = self.load_volumes()
        return self._volumes

    @property
    def is_lazy(self) -> bool:
        """Whether ``volumes`` are still to be read."""
        return self._volumes is None

    @property
    def mask(self) -> Tensor | None:
        """True where the specimen is, ``(z, y, x)``; ``None`` for everywhere. It is made when first needed and kept."""
        if self._mask is None and self._mask_given is not None:
            self._mask = self.load_mask(self._volumes)
        return self._mask

    def with_contrast(self, contrast: Contrast) -> TomogramPair:
        """Return the pair with ``volumes`` of another contrast, or the pair itself if they have it.

        Only the common scale is inverted, so that ``restore`` inverts a reconstruction back. The halves stay as they
        are.

        Parameters
        ----------
        contrast
            ``"given"`` for the contrast of the halves, ``"inverted"`` for the opposite one; ``"bright"`` inverts a
            specimen that is darker than its background, for a network that knows bright ones. For that the middle of
            the halves is read, at most 128 voxels along each axis.

        Raises
        ------
        ValueError
            For another contrast.
        OSError
            If a file cannot be read.

        Examples
        --------
        >>> specimen = torch.zeros(16, 16, 16)
        >>> specimen[6:9, 6:9, 6:9] = -10
        >>> pair = TomogramPair(*(specimen + torch.randn(2, 16, 16, 16)), (-60.0, 60.0))
        >>> bright = pair.with_contrast("bright")
        >>> bright.is_inverted, torch.equal(bright.volumes, -pair.volumes)
        (True, True)
        """
        if contrast not in ("given", "bright", "inverted"):
            raise ValueError(f"`contrast` is 'given', 'bright' or 'inverted', got {contrast!r}")
        if contrast == "bright" and self._is_dark is None:
            self._is_dark = is_dark(*self._given)
        is_inverted = contrast == "inverted" or (contrast == "bright" and bool(self._is_dark))
        if is_inverted == self.is_inverted:
            return self
        other = copy.copy(self)
        other.is_inverted = is_inverted
        other._scale = None if self._scale is None else self._scale.inverted()
        other._volumes = None if self._volumes is None else -self._volumes
        return other

    def load_volumes(self, stopped: Callable[[], bool] = lambda: False) -> Tensor:
        """Read the halves and return them on the common scale, as ``volumes``, without keeping them.

        Parameters
        ----------
        stopped
            A function that is called between pieces of the files; reading stops when it returns True.

        Raises
        ------
        ReadingStoppedError
            If ``stopped`` returned True.
        ValueError, OSError
            As for the class.
        """
        volumes = torch.empty((self.n_views, *self.shape), device=self._device)
        if self._scale is None and self._statistics is None:
            # The same pass gives the statistics, on which the scale depends.
            both = zip(self._given, volumes, strict=True)
            self._keep(tuple(HalfStatistics.of(half, into=target, stopped=stopped) for half, target in both))
            assert self._fills is not None
            scale = self.scale
            for target, fill in zip(volumes, self._fills, strict=True):
                if fill is not None:
                    target[~torch.isfinite(target)] = fill
            return volumes.sub_(scale.mean).div_(scale.scale)
        mean, deviation = np.float32(self.scale.mean), np.float32(self.scale.scale)
        for target, half in zip(volumes, self.halves, strict=True):
            for place, block in half.slabs():
                if stopped():
                    raise ReadingStoppedError(self.name)
                # Numpy and not torch: in the background a second team of threads would take the training's cores.
                values = np.array(block, np.float32, order="C")
                values -= mean
                values /= deviation
                copy_block(target, place, values)
        return volumes

    def load_mask(self, volumes: Tensor | None = None) -> Tensor | None:
        """Make the mask and return it without keeping it; it may depend on ``volumes``, which ``None`` reads anew."""
        given = self._mask_given
        if given is None:
            return None
        if isinstance(given, str):
            return specimen_mask((self.load_volumes() if volumes is None else volumes).mean(0))
        values = torch.empty(self.shape, device=given.device if isinstance(given, Tensor) else None)
        name = str(given.path) if isinstance(given, Volume) else f"the mask of {self.name}"
        require_finite(HalfStatistics.of(given, into=values), name, remedy="write the mask anew")
        inside = values != 0
        if not bool(inside.any()):
            raise ValueError(f"{self.name}: the mask is empty: it must be non-zero where the specimen is")
        self.mask_is_binary = bool((values[inside] == 1).all())
        return inside

    def release(self) -> None:
        """Drop the volumes, the statistics and the mask. The scale is kept; the rest is read again when needed."""
        self._volumes = self._statistics = self._mask = None

    def restore(self, volume: Tensor) -> Tensor:
        """Return a reconstruction in the intensities of the input."""
        return self.scale.restore(volume)

    def _keep(self, statistics: tuple[HalfStatistics, ...]) -> None:
        self._statistics = statistics
        self._fills = tuple(one.mean if one.n_invalid else None for one in statistics)


def read_geometry(tilts: Tilts, tilt_axis: TiltAxis = "y", second_axis_tilts: Tilts | None = None) -> Geometry:
    """Return the geometry that a file of tilts, a range of degrees or a geometry stands for.

    With ``second_axis_tilts`` it is the union with a second series, which was tilted about the other axis, y or x.

    Examples
    --------
    >>> read_geometry("-60,50", "x").tilt_range
    (-60.0, 50.0)
    >>> [part.tilt_axis for part in read_geometry("-60,50", "x", "-55,55").parts]
    ['x', 'y']
    """
    if second_axis_tilts is not None:
        other: TiltAxis = "x" if tilt_axis == "y" else "y"
        return read_geometry(tilts, tilt_axis) | read_geometry(second_axis_tilts, other)
    if isinstance(tilts, str) and re.fullmatch(r"[-+\d.,\s]+", tilts) and not Path(tilts).exists():
        try:
            low, high = map(float, tilts.split(","))
        except ValueError:
            raise ValueError(f"`tilts` is a file or LOW,HIGH in degrees such as -60,60, got {tilts!r}") from None
        return TiltGeometry.from_range(low, high, tilt_axis)
    if isinstance(tilts, (str, Path)):
        return TiltGeometry(read_tilts(tilts), tilt_axis)
    return TiltGeometry.from_range(*tilts, tilt_axis) if isinstance(tilts, (tuple, list)) else as_geometry(tilts)


def _names(volumes: tuple[VolumeLike, ...], name: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the names of a pair and of each of its halves."""
    paths = [str(volume.path) for volume in volumes if isinstance(volume, Volume)]
    if len(paths) == len(volumes):
        return name or " and ".join(paths), tuple(paths)
    name = name or ("the pair" if len(volumes) > 1 else "the volume")
    which = ("first", "second")
    return name, tuple(f"the {half} half of {name}" for half in which) if len(volumes) > 1 else (name,)


def _is_file(tilts: Tilts | None) -> bool:
    return isinstance(tilts, (str, Path)) and Path(tilts).is_file()


def _stated_size(volume: VolumeLike) -> tuple[float, float, float] | None:
    """Return the voxel size that a file states."""
    return volume.voxel_size if isinstance(volume, Volume) and min(volume.voxel_size) > 0 else None


def _three(voxel_size: float | tuple[float, float, float]) -> tuple[float, float, float]:
    sizes = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else tuple(map(float, voxel_size))
    if len(sizes) != 3 or not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"`voxel_size` must be positive ångström, one number or one for z, y and x, got {voxel_size}")
    return sizes[0], sizes[1], sizes[2]
