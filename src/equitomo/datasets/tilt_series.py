"""A tilt series: the images of a specimen, and the angles at which they were taken."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equitomo.datasets.acquisition import Turn, acquisition_order
from equitomo.datasets.registration import mass_shifts, shifted
from equitomo.datasets.views import Binning, binned, cropped, transformed
from equitomo.geometry import TiltAxis, TiltGeometry
from equitomo.io import FileFormatError, FileFormatWarning, SeriesMetadata, Volume, read_stack, read_tilts

# What read_tilts warns of is normal in a tilt series, whose images are sorted with their angles.
_NORMAL = ("angles are not in ascending order", "angles repeat")


@dataclass(frozen=True, eq=False)
class TiltSeries:
    """The images of a tilt series, each with its angle, in ascending order of the angles.

    Images and angles travel together: whatever the order in which they are given, they are sorted together. Images of
    equal angles keep the order in which they are given.

    Parameters
    ----------
    projections
        The images ``(tilt, along the tilt axis, across it)``, converted to float32.
    angles
        The tilt of each image in degrees, in the order of ``projections``.
    tilt_axis
        The axis of the volume, y or x, along which the second axis of ``projections`` lies.
    pixel_size
        In ångström. None if it is not known.
    dose
        Electrons/Å² that the specimen received before each view, in the order of ``projections``.
    acquisition_order
        Place of each view in the order of acquisition.
    tilt_axis_offset
        Pixels from the middle of the images to the tilt axis, across it.
    name
        What messages call the series.

    Raises
    ------
    ValueError
        If the numbers of images, angles and doses differ, images are not finite or constant, or the angles are not
        those of a tilt series.

    Examples
    --------
    >>> series = TiltSeries(torch.rand(3, 8, 8) + torch.tensor([5.0, 2.0, 9.0])[:, None, None], [30, -30, 60])
    >>> series.angles, [int(view.mean()) for view in series.projections]
    ((-30.0, 30.0, 60.0), [2, 5, 9])
    """

    projections: Tensor
    angles: tuple[float, ...]
    tilt_axis: TiltAxis = "y"
    pixel_size: float | None = None
    dose: tuple[float, ...] | None = None
    acquisition_order: tuple[int, ...] | None = None
    tilt_axis_offset: float = 0.0
    name: str = "the tilt series"

    def __init__(
        self,
        projections: Tensor,
        angles: Iterable[float],
        tilt_axis: TiltAxis = "y",
        *,
        pixel_size: float | None = None,
        dose: Iterable[float] | None = None,
        acquisition_order: Iterable[int] | None = None,
        tilt_axis_offset: float = 0.0,
        name: str = "the tilt series",
    ) -> None:
        if projections.ndim != 3 or projections.numel() == 0:
            raise ValueError(
                f"{name}: `projections` must be images (tilt, along the tilt axis, across), got shape "
                f"{tuple(projections.shape)}"
            )
        angles = tuple(float(angle) for angle in angles)
        require_one_angle_each(name, len(projections), len(angles))
        order = sorted(range(len(angles)), key=angles.__getitem__)
        if order != list(range(len(order))):
            projections = projections[order]
        fields: dict[str, object] = {
            "projections": projections.detach().float(),
            "tilt_axis": tilt_axis,
            "pixel_size": pixel_size,
            "tilt_axis_offset": float(tilt_axis_offset),
            "name": name,
            "angles": tuple(angles[n] for n in order),
        }
        for key, given in (("dose", dose), ("acquisition_order", acquisition_order)):
            values = None if given is None else tuple(given)
            if values is not None and len(values) != len(angles):
                raise ValueError(f"{name}: `{key}` has {len(values)} values for {len(angles)} views, expected one each")
            fields[key] = None if values is None else tuple(values[n] for n in order)
        for key, value in fields.items():
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        """Raise an error for a series that cannot be used."""
        try:
            _ = self.geometry
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        for view, angle in zip(self.projections, self.angles, strict=True):
            low, high = (float(end) for end in torch.aminmax(view))
            if not np.isfinite([low, high]).all():
                raise ValueError(
                    f"{self.name}: the view at {angle:g} degrees has pixels that are NaN or infinite; write it anew or "
                    "leave it out with `exclude`"
                )
            if low == high:
                raise ValueError(
                    f"{self.name}: the view at {angle:g} degrees is empty, all of its pixels are {low:g}; leave it out "
                    "with `exclude`"
                )
        if self.pixel_size is not None and not 0 < self.pixel_size < float("inf"):
            raise ValueError(f"{self.name}: `pixel_size` must be positive ångström, got {self.pixel_size}")

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        tilts: str | Path | Sequence[float] | None = None,
        tilt_axis: TiltAxis = "y",
        exclude: Collection[int] = (),
        pretilt: float = 0.0,
        order: Literal["sections", "acquisition"] = "sections",
        first_turn: Turn = "up",
        binning: int = 1,
        bin_by: Binning = "fourier",
        size: tuple[int, int] | None = None,
        align: Literal["none", "mass"] = "none",
        pixel_size: float | None = None,
        tilt_axis_offset: float = 0.0,
        permissive: bool = False,
        name: str | None = None,
    ) -> TiltSeries:
        """Read a series from a stack of images in an MRC file.

        The images are read, binned and cut one after the other, so that no more than one full image is in memory beside
        the result.

        Parameters
        ----------
        path
            The stack.
        tilts
            A file of angles, see :func:`~equitomo.read_tilts`, or the angles in degrees. None takes them from the FEI
            extended header of the stack.
        tilt_axis
            ``"y"`` if the tilt axis is along the rows of the stored array (its second axis), ``"x"`` if it is along the
            columns (its third axis).
        exclude
            Sections of the stack to leave out, counted from 0.
        pretilt
            Degrees to add to all angles.
        order
            ``"sections"``: the n-th angle is that of the n-th section. ``"acquisition"``: the angles were sorted, but
            the images have the order of acquisition, which is found from the likeness of neighbouring views, see
            :func:`~equitomo.datasets.acquisition.acquisition_order`.
        first_turn
            With ``"acquisition"``: whether the angles first went ``"up"`` or ``"down"``, which images do not tell.
        binning
            Pixels along each axis that become one.
        bin_by
            How pixels are binned, see :func:`~equitomo.datasets.views.binned`.
        size
            Pixels of the result along the tilt axis and across it, cut from the middle after binning. None keeps all.
        align
            ``"mass"`` moves the centre of mass of each view onto the curve of a rotation, with the tilt axis in the
            middle, see :func:`~equitomo.datasets.registration.mass_shifts`; ``"none"`` leaves the images in place.
        pixel_size
            In ångström, before binning. None takes it from the file.
        tilt_axis_offset
            Pixels from the middle of the images to the tilt axis, across it, before binning.
        permissive
            See :func:`~equitomo.read_volume`.
        name
            What messages call the series. None takes the path.

        Raises
        ------
        ValueError, OSError
            If a file cannot be read, or the series cannot be used.

        Examples
        --------
        >>> from equitomo import write_volume
        >>> folder = getfixture("tmp_path")
        >>> stack = write_volume(folder / "series.mrc", np.random.rand(3, 8, 10).astype("f4"), voxel_size=5.0)
        >>> series = TiltSeries.read(stack, tilts=[-60, 0, 60], binning=2)
        >>> series.projections.shape, series.pixel_size
        (torch.Size([3, 4, 5]), 10.0)
        """
        stack, own = read_stack(path, permissive=permissive)
        name = str(path) if name is None else name
        angles = _angles_of(stack, own, tilts)
        n_sections = stack.shape[0]
        require_one_angle_each(name, n_sections, len(angles))
        kept = _kept(name, n_sections, exclude)
        images = []
        for n in kept:
            image = torch.from_numpy(np.array(stack[n], np.float32))
            image = image if tilt_axis == "y" else image.T
            image = binned(image, binning, bin_by)
            images.append((image if size is None else cropped(image, size)).contiguous())
        projections = torch.stack(images)
        chosen = [angles[n] for n in kept]
        places = None
        if order == "acquisition":
            places = acquisition_order(projections, chosen, first_turn)
            chosen = [sorted(chosen)[place] for place in places]
        elif order != "sections":
            raise ValueError(f"`order` must be 'sections' or 'acquisition', got {order!r}")
        if align == "mass":
            projections = shifted(projections, mass_shifts(projections, chosen))
        elif align != "none":
            raise ValueError(f"`align` must be 'none' or 'mass', got {align!r}")
        stated = stack.voxel_size[2] or None
        return cls(
            projections,
            [angle + pretilt for angle in chosen],
            tilt_axis,
            pixel_size=_times(stated if pixel_size is None else pixel_size, binning),
            acquisition_order=None if places is None else range(len(chosen)),
            tilt_axis_offset=tilt_axis_offset / binning,
            name=name,
        )

    @classmethod
    def from_metadata(
        cls,
        metadata: SeriesMetadata,
        *,
        half: Literal["first", "second"] | None = None,
        exclude: Collection[int] = (),
        pretilt: float = 0.0,
        binning: int = 1,
        bin_by: Binning = "fourier",
        size: tuple[int, int] | None = None,
        permissive: bool = False,
    ) -> TiltSeries:
        """Read the images of a series and align them as its metadata say.

        Each image is rotated and shifted in one interpolation and then binned, one after the other. The tilt axis of
        the result is y. Views that the program left out are left out.

        Parameters
        ----------
        metadata
            What :func:`~equitomo.read_series` returns.
        half
            The images to read: ``"first"`` and ``"second"`` are those of the even and of the odd frames, None those of
            all frames.
        exclude
            Further views to leave out, as indices into ``metadata.angles``.
        pretilt
            Degrees to add to all angles, besides ``metadata.tilt_offset``.
        binning, bin_by, size, permissive
            As for :meth:`read`.

        Raises
        ------
        ValueError, OSError
            If the metadata name no such images, a file cannot be read, sizes are mixed, or the series cannot be used.
        """
        sources = _sources(metadata, half)
        kept = [n for n in _kept(metadata.name, metadata.n_views, exclude) if n not in set(metadata.excluded)]
        if len(kept) < 2:
            raise ValueError(f"{metadata.name}: `exclude` leaves {len(kept)} views that the program did not leave out")
        transforms = torch.from_numpy(metadata.view_transforms())
        opened: dict[Path, Volume] = {}
        images: list[Tensor] = []
        for n in kept:
            path, section = sources[n]
            if path not in opened:
                opened[path] = read_stack(path, permissive=permissive)[0]
            image = torch.from_numpy(np.array(_section(opened[path], section, metadata.name), np.float32))
            # A stack stays open; of single files only one is.
            if len(opened) > 1:
                opened = {path: opened[path]}
            shape = _turned(image, transforms[n])
            if not _is_identity(transforms[n]):
                image = transformed(image[None], transforms[n][None], shape)[0]
            image = binned(image, binning, bin_by)
            image = image if size is None else cropped(image, size)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: an image of {tuple(image.shape)} pixels after alignment and binning, expected "
                    f"{tuple(images[0].shape)} as of the other views; give images of one size"
                )
            images.append(image)
        chosen = metadata.select(kept)
        return cls(
            torch.stack(images),
            [angle + metadata.tilt_offset + pretilt for angle in chosen.angles],
            pixel_size=_times(metadata.pixel_size or opened[path].voxel_size[2] or None, binning),
            dose=chosen.dose,
            acquisition_order=chosen.acquisition_order,
            tilt_axis_offset=metadata.tilt_axis_offset / binning,
            name=metadata.name,
        )

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.angles)

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels along the tilt axis and across it."""
        along, across = self.projections.shape[-2:]
        return along, across

    @property
    def geometry(self) -> TiltGeometry:
        """The tilts."""
        return TiltGeometry(self.angles, self.tilt_axis)

    @property
    def n_bytes(self) -> int:
        """Bytes that the images take."""
        return 4 * self.projections.numel()

    def select(self, views: Sequence[int]) -> TiltSeries:
        """Return the series with these views only.

        Parameters
        ----------
        views
            Indices into ``angles``.

        Raises
        ------
        ValueError
            If fewer than two different angles are left.
        """
        return self.with_projections(
            self.projections[list(views)],
            angles=[self.angles[n] for n in views],
            dose=None if self.dose is None else [self.dose[n] for n in views],
            acquisition_order=None if self.acquisition_order is None else [self.acquisition_order[n] for n in views],
        )

    def with_projections(self, projections: Tensor, **changes: object) -> TiltSeries:
        """Return the series with other images, such as filtered ones, and otherwise the same but for ``changes``."""
        return replace(self, projections=projections, **changes)  # type: ignore[arg-type]


def require_one_angle_each(name: str, n_images: int, n_angles: int) -> None:
    """Raise an error unless there is one angle for each image."""
    if n_images == n_angles:
        return
    raise ValueError(
        f"{name}: {n_images} images but {n_angles} tilt angles, expected one angle for each image, also for those that "
        "are left out with `exclude`; give the file of the angles that belongs to this stack. If it is a tomogram and "
        "not a tilt series, it needs no projections to be made from: use it as it is"
    )


def _angles_of(stack: Volume, own: tuple[float, ...] | None, tilts: str | Path | Sequence[float] | None) -> list[float]:
    """Return the angles in the order of the sections: those that are given, else those in the file of the images."""
    if tilts is None:
        if own is None:
            raise FileFormatError(
                f"{stack.path}: the file has no tilt angles of its own; pass `tilts`, a file of angles. A tomogram "
                "has none: it is not a tilt series"
            )
        return list(own)
    if not isinstance(tilts, (str, Path)):
        return [float(angle) for angle in tilts]
    with warnings.catch_warnings():
        for normal in _NORMAL:
            warnings.filterwarnings("ignore", f".*{normal}", FileFormatWarning)
        return list(read_tilts(tilts, sort=False))


def _sources(metadata: SeriesMetadata, half: Literal["first", "second"] | None) -> list[tuple[Path, int]]:
    """Return the file and the section of each view."""
    if half is None:
        stack, files = metadata.stack, metadata.images
    else:
        number = ("first", "second").index(half)
        stack = None if metadata.half_stacks is None else metadata.half_stacks[number]
        files = None if metadata.half_images is None else metadata.half_images[number]
    if stack is not None and metadata.sections is not None:
        return [(stack, section) for section in metadata.sections]
    if files is None:
        which = "no stack of images" if half is None else f"no images of the {half} half"
        raise ValueError(f"{metadata.name}: the files tell of {which}; give the stack together with them")
    return [(path, 0) for path in files]


def _section(stack: Volume, section: int, name: str) -> npt.NDArray[Any]:
    """Return one image."""
    if section >= stack.shape[0]:
        raise ValueError(
            f"{stack.path}: {stack.shape[0]} images, but {name} has a view in section {section}, counted from 0; give "
            "the stack that belongs to the alignment"
        )
    return stack[section]


def _turned(image: Tensor, transform: Tensor) -> tuple[int, int]:
    """Return the shape of an aligned image: rows and columns change places if it is turned by more than 45 degrees."""
    rows, columns = image.shape
    is_across = abs(float(transform[0, 1])) > abs(float(transform[0, 0]))
    return (columns, rows) if is_across else (rows, columns)


def _is_identity(transform: Tensor) -> bool:
    return bool(torch.equal(transform, torch.eye(2, 3, dtype=transform.dtype)))


def _kept(name: str, n_sections: int, exclude: Collection[int]) -> list[int]:
    """Return the sections that are not left out."""
    outside = sorted(n for n in exclude if not 0 <= n < n_sections)
    if outside:
        raise ValueError(
            f"{name}: `exclude` has {outside}, expected sections from 0 to {n_sections - 1}; they are counted from 0"
        )
    kept = [n for n in range(n_sections) if n not in set(exclude)]
    if len(kept) < 2:
        raise ValueError(f"{name}: `exclude` leaves {len(kept)} of {n_sections} views; leave out fewer")
    return kept


def _times(size: float | None, factor: int) -> float | None:
    return None if size is None else size * factor
