"""Everything that files tell about one tilt series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from equitomo.io.angles import check_angles
from equitomo.io.errors import FileFormatError

CtfState = Literal["none", "flipped", "wiener", "unknown"]
ReconstructionMethod = Literal["wbp", "sart", "sirt", "unknown"]
Program = Literal["aretomo", "warp", "relion", "imod", "serialem", "fei", "hyperspy", "emd", "tiff", "dm", "unknown"]

# A defocus in ångström. Series are recorded between 0.2 and 20 micrometres, so a median outside of this range means
# another unit.
DEFOCUS_RANGE = (2e3, 2e5)


class Defocus(NamedTuple):
    """Defocus of one view, positive for underfocus.

    Parameters
    ----------
    u, v
        Along the two axes of the astigmatism, in ångström.
    angle
        From the x axis of the recorded image to the axis of ``u``, in degrees.
    phase_shift
        Of a phase plate, in degrees.
    """

    u: float
    v: float
    angle: float = 0.0
    phase_shift: float = 0.0


@dataclass(frozen=True)
class SeriesMetadata:
    r"""Everything that files tell about one tilt series.

    A view is one recorded image. All values with one entry per view have the order of ``angles``, and
    ``sections[n]`` is the place of view ``n`` in the stack; :meth:`select` reorders or removes views in all of them at
    once, so an image never parts from its angle. Values that no file gives are None.

    Parameters
    ----------
    name
        Name of the series.
    angles
        Tilt of each view in degrees, in the convention of this package: a point at height :math:`z` moves by
        :math:`z \sin\theta` towards growing indices across the tilt axis. Readers convert those of programs with the
        opposite sign.
    stack
        File with the images as sections.
    sections
        Section of the stack for each view, counted from 0. None means that the views are the sections, in their order.
    images
        One file per view, in place of a stack.
    half_stacks
        Stacks of the even and of the odd frames, whose sections are those of ``stack``.
    half_images
        The files of the even and of the odd frames, one per view, in place of stacks.
    half_tomograms
        Tomograms that the program made of the two halves.
    half_tomogram_axes
        The order of the axes in ``half_tomograms``: AreTomo writes ``"yzx"`` unless it is told otherwise.
    movies
        One file of unaligned frames per view.
    acquisition_order
        Place of each view in the order of acquisition, counted from 0.
    dose
        Electrons per square ångström that the specimen received before each view.
    excluded
        Views that the program left out, as indices into ``angles``. Values that it does not give for them are NaN.
    tilt_axis_angle
        Rotation of the tilt axis in the plane of each recorded image in degrees, counterclockwise from the y axis
        (growing rows) with the x axis to the right, as in IMOD, SerialEM, AreTomo and RELION.
    shifts
        Shift ``(x, y)`` of each recorded image in its pixels. It is added to positions in the recorded image before the
        rotation, both relative to the centre of the image.
    transforms
        IMOD's transforms ``(a11, a12, a21, a22, dx, dy)``, in place of ``tilt_axis_angle`` and ``shifts``.
    x_tilt
        Tilt of the specimen about the axis across the tilt axis for each view, in degrees.
    tilt_offset
        Degrees to add to ``angles`` for the reconstruction: a pre-tilt that the angles do not contain.
    tilt_axis_offset
        Distance of the tilt axis from the middle of the aligned images across the axis, in pixels of the recorded
        images.
    pixel_size
        Of the images, in ångström.
    image_shape
        Rows and columns ``(y, x)`` of the recorded images.
    thickness
        Sections of the tomogram, in unbinned pixels.
    volume_shift
        Shift ``(x, z)`` of the specimen in the tomogram that the program was told to make, in unbinned pixels.
    nominal_defocus
        What the microscope was told, in ångström, positive for underfocus.
    defocus
        One :class:`Defocus` per view.
    voltage
        In kilovolts.
    spherical_aberration
        In millimetres.
    amplitude_contrast
        Between 0 and 1.
    defocus_handedness
        1 or -1, as RELION's ``rlnTomoHand``: how the defocus changes across the tilt axis with the angle.
    ctf_state
        What was done about the CTF of ``half_tomograms``.
    reconstruction_method
        How ``half_tomograms`` were made.
    program
        The program whose conventions the files follow.
    files
        The files that were read.
    notes
        Sentences for the user.

    Raises
    ------
    FileFormatError
        If numbers of entries disagree, or values cannot be in these units. The message begins with the name.

    Examples
    --------
    >>> series = SeriesMetadata("TS_01", angles=(0.0, 3.0, -3.0), dose=(0.0, 2.5, 5.0))
    >>> ordered = series.in_order("tilt")
    >>> ordered.angles, ordered.sections, ordered.dose
    ((-3.0, 0.0, 3.0), (2, 0, 1), (5.0, 0.0, 2.5))
    """

    name: str
    angles: tuple[float, ...]
    stack: Path | None = None
    sections: tuple[int, ...] | None = None
    images: tuple[Path, ...] | None = None
    half_stacks: tuple[Path, Path] | None = None
    half_images: tuple[tuple[Path, ...], tuple[Path, ...]] | None = None
    half_tomograms: tuple[Path, Path] | None = None
    half_tomogram_axes: Literal["zyx", "yzx"] = "zyx"
    movies: tuple[Path, ...] | None = None
    acquisition_order: tuple[int, ...] | None = None
    dose: tuple[float, ...] | None = None
    excluded: tuple[int, ...] = ()
    tilt_axis_angle: tuple[float, ...] | None = None
    shifts: tuple[tuple[float, float], ...] | None = None
    transforms: tuple[tuple[float, float, float, float, float, float], ...] | None = None
    x_tilt: tuple[float, ...] | None = None
    tilt_offset: float = 0.0
    tilt_axis_offset: float = 0.0
    pixel_size: float | None = None
    image_shape: tuple[int, int] | None = None
    thickness: int | None = None
    volume_shift: tuple[float, float] = (0.0, 0.0)
    nominal_defocus: float | None = None
    defocus: tuple[Defocus, ...] | None = None
    voltage: float | None = None
    spherical_aberration: float | None = None
    amplitude_contrast: float | None = None
    defocus_handedness: Literal[1, -1] | None = None
    ctf_state: CtfState = "unknown"
    reconstruction_method: ReconstructionMethod = "unknown"
    program: Program = "unknown"
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_angles(self.name, self.angles, full_range=True)
        if self.sections is None:
            object.__setattr__(self, "sections", tuple(range(self.n_views)))
        for name in _PER_VIEW:
            self._require_length(name, getattr(self, name))
        for files in self.half_images or ():
            self._require_length("half_images", files)
        self._check_indices()
        self._check_numbers()
        for name, kind in (("ctf_state", CtfState), ("reconstruction_method", ReconstructionMethod)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"`{name}` must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")

    @property
    def n_views(self) -> int:
        """Number of views, excluded ones included."""
        return len(self.angles)

    @property
    def kept(self) -> tuple[int, ...]:
        """The views that the program did not leave out, as indices into ``angles``."""
        return tuple(n for n in range(self.n_views) if n not in set(self.excluded))

    def select(self, views: Sequence[int]) -> "SeriesMetadata":
        """Return the series with these views only, in this order.

        Parameters
        ----------
        views
            Indices into ``angles``.
        """
        changed: dict[str, Any] = {"angles": tuple(self.angles[n] for n in views)}
        for name in _PER_VIEW:
            values = getattr(self, name)
            changed[name] = None if values is None else tuple(values[n] for n in views)
        if self.half_images is not None:
            first, second = self.half_images
            changed["half_images"] = (tuple(first[n] for n in views), tuple(second[n] for n in views))
        changed["excluded"] = tuple(place for place, n in enumerate(views) if n in set(self.excluded))
        return replace(self, **changed)

    def without_excluded(self) -> "SeriesMetadata":
        """Return the series without the views that the program left out."""
        return self.select(self.kept)

    def in_order(self, order: Literal["tilt", "acquisition"]) -> "SeriesMetadata":
        """Return the series with its views in ascending order of the tilt, or in the order of acquisition.

        Raises
        ------
        ValueError
            If the order of acquisition is not known.
        """
        if order == "acquisition" and self.acquisition_order is None:
            raise ValueError(f"{self.name}: the order of acquisition is not known; give the .mdoc of the series")
        keys: Sequence[float] = self.angles if order == "tilt" else (self.acquisition_order or ())
        return self.select(sorted(range(self.n_views), key=lambda n: keys[n]))

    def view_transforms(self) -> npt.NDArray[np.float64]:
        r"""Return the transforms that align the recorded images, float64 of shape (view, 2, 3).

        .. math:: p' = M\,p + d, \qquad (M \mid d) = \text{transform}

        takes a position :math:`p = (x, y)` in a recorded image to that in the aligned one, where the tilt axis is the y
        axis; both are pixels of the recorded image relative to the centre of the image. The identity stands where
        nothing is known about the alignment.
        """
        if self.transforms is not None:
            table = np.array(self.transforms, np.float64)
            return np.concatenate([table[:, :4].reshape(-1, 2, 2), table[:, 4:, None]], axis=2)
        turn = np.radians(self.tilt_axis_angle or [0.0] * self.n_views)
        shift = np.array(self.shifts or [(0.0, 0.0)] * self.n_views, np.float64)
        # The axis lies at this angle, so the image is turned back by it.
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)
        return np.concatenate([rotation, rotation @ shift[:, :, None]], axis=2)

    def _require_length(self, name: str, values: Sequence[Any] | None) -> None:
        """Raise an error unless there is one value for each view."""
        if values is not None and len(values) != self.n_views:
            raise FileFormatError(
                f"{self.name}: {len(values)} {name.replace('_', ' ')} for {self.n_views} tilt angles, expected one for "
                "each view; take all files from the same series and alignment"
            )

    def _check_indices(self) -> None:
        """Check the values that count views or sections."""
        for name in ("sections", "acquisition_order"):
            values = getattr(self, name)
            if values is not None and (min(values) < 0 or len(set(values)) < len(values)):
                raise FileFormatError(
                    f"{self.name}: {name.replace('_', ' ')} {values}: expected different numbers from 0"
                )
        if self.excluded and not set(self.excluded) <= set(range(self.n_views)):
            raise FileFormatError(
                f"{self.name}: the excluded views {self.excluded} are not all among the {self.n_views} views, which "
                "are counted from 0"
            )
        if len(self.kept) < 2:
            raise FileFormatError(f"{self.name}: {len(self.kept)} of {self.n_views} views are left; exclude fewer")

    def _check_numbers(self) -> None:
        """Check that values are finite and can be in their units."""
        for name in ("dose", "tilt_axis_angle", "shifts", "transforms", "x_tilt", "defocus"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(np.array(values, np.float64)[list(self.kept)]).all():
                raise FileFormatError(f"{self.name}: {name.replace('_', ' ')} has values that are not finite")
        if self.dose is not None and min(self.dose) < 0:
            raise FileFormatError(f"{self.name}: a dose of {min(self.dose):g}, expected electrons per square ångström")
        for name, low, high, unit in _UNITS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise FileFormatError(
                    f"{self.name}: {name.replace('_', ' ')} of {value:g}, expected {low:g} to {high:g} {unit}"
                )
        if self.defocus is not None:
            median = float(np.median([abs(self.defocus[n].u) + abs(self.defocus[n].v) for n in self.kept])) / 2
            if not DEFOCUS_RANGE[0] <= median <= DEFOCUS_RANGE[1]:
                raise FileFormatError(
                    f"{self.name}: the median defocus is {median:g}, expected {DEFOCUS_RANGE[0]:g} to "
                    f"{DEFOCUS_RANGE[1]:g} ångström; are they nanometres (multiply by 10) or micrometres (by 10000)?"
                )


_PER_VIEW = (
    "sections",
    "images",
    "movies",
    "acquisition_order",
    "dose",
    "tilt_axis_angle",
    "shifts",
    "transforms",
    "x_tilt",
    "defocus",
)
# Bounds that no microscope exceeds: they find values in other units.
_UNITS = (
    ("pixel_size", 1e-2, 1e5, "ångström"),
    ("voltage", 20, 3000, "kilovolts"),
    ("spherical_aberration", 0, 20, "millimetres"),
    ("amplitude_contrast", 0, 1, ""),
)
assert {"angles", *_PER_VIEW} <= {field.name for field in fields(SeriesMetadata)}
