"""Findings about a pair of half tomograms: what is in order, what may surprise, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from equitomo.datasets import (
    HalfStatistics,
    TomogramPair,
    clipped,
    has_zero_background,
    require_usable,
    without_outliers,
)
from equitomo.diagnosis.agreement import SURE, compare_halves
from equitomo.diagnosis.ctf import find_noise_zero
from equitomo.diagnosis.wedge import estimate_wedge, judge_geometry
from equitomo.fourier import cosine_taper
from equitomo.io import CtfState
from equitomo.metrics import fourier_shell_correlation

Severity = Literal["ok", "note", "warning", "error"]

# The ratio of the deviations of two halves, and the difference of their means in deviations, that are too much. Halves
# of unequal dose differ by less: a tenth of the tilts more in one makes 5 %.
_SCALES, _OFFSETS = 1.5, 0.5
_OUTLIER = 50.0  # standard deviations from the mean


@dataclass(frozen=True)
class Finding:
    """One result of :func:`~equitomo.diagnose`.

    Parameters
    ----------
    severity
        ``"ok"`` if nothing is wrong, ``"note"`` if the pair can be used but may surprise, ``"warning"`` if the
        reconstruction will be worse, ``"error"`` if it will be wrong or impossible.
    subject
        What the finding is about: ``"files"``, ``"tilts"``, ``"voxels"``, ``"scale"``, ``"mask"``, ``"halves"``,
        ``"ctf"``, ``"wedge"`` or ``"axes"``.
    message
        What was found.
    remedy
        How to mend it, empty if there is nothing to mend.

    Examples
    --------
    >>> print(Finding("warning", "halves", "the halves are mirrored along z", "reconstruct both alike"))
    warning: halves: the halves are mirrored along z: reconstruct both alike
    """

    severity: Severity
    subject: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject}: {self.text}"

    @property
    def text(self) -> str:
        """The message and the remedy in one line."""
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


def diagnose(pair: TomogramPair, *, ctf_state: CtfState = "unknown") -> list[Finding]:
    """Return the findings about a pair: what is in order, what is wrong, or why it cannot be used.

    The halves are compared for a shift, a mirror, an inverted contrast and their scale, the declared tilts with the
    spectrum of each half (see :func:`~equitomo.estimate_wedge`); outliers, a grey mask, voxels that are not cubes and
    a Wiener filter are reported. All of this comes from the statistics of the pair: each half is read once, or not at
    all if the pair was read before. The pair is left as it is.

    Parameters
    ----------
    pair
        The pair, in memory or lazy.
    ctf_state
        What was done about the contrast transfer function of the halves: ``"none"``, ``"flipped"`` or ``"wiener"``, as
        recorded by the program that made them, or ``"unknown"``. A Wiener filter that is not recorded is still
        reported if the noise of the halves shows it.

    Raises
    ------
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> specimen = torch.randn(32, 32, 32)
    >>> first, second = specimen + torch.randn(2, 32, 32, 32)
    >>> for finding in diagnose(TomogramPair(first, second.roll(4, 0), (-60.0, 60.0))):
    ...     if finding.severity == "warning":
    ...         print(finding)
    warning: halves: the second half is shifted against the first by (4, 0, 0) voxels (z, y, x): align them, or
    reconstruct both from one alignment
    """
    findings = [*_file_findings(pair), *_usability_errors(pair)]
    if any(finding.severity == "error" for finding in findings):
        return findings
    findings += [*_voxel_findings(pair), *_mask_findings(pair)]
    if pair.n_views == 2:
        findings += [*_half_findings(pair), *_ctf_findings(pair, ctf_state)]
    return [*findings, *_wedge_findings(pair)]


def _usability_errors(pair: TomogramPair) -> list[Finding]:
    """Return the errors that constructing a pair in memory raises; their messages contain the remedy."""
    found = []
    for label, one in zip(pair.labels, pair.statistics, strict=True):
        try:
            require_usable(one, label, nan=pair.nan)
        except ValueError as error:
            found.append(Finding("error", "voxels", str(error)))
    try:
        _ = pair.scale
    except ValueError as error:
        # The halves are at fault only if each of them is usable.
        found = found or [Finding("error", "halves", str(error))]
    return found


def _file_findings(pair: TomogramPair) -> Iterator[Finding]:
    z, y, x = pair.shape
    sizes = pair.voxel_size
    known = "of unknown size" if sizes is None else f"of {' x '.join(f'{n:.4g}' for n in dict.fromkeys(sizes))} Å"
    volumes = "two volumes" if pair.n_views == 2 else "one volume"
    yield Finding("ok", "files", f"{volumes} of {z} x {y} x {x} voxels (z, y, x) {known}, {pair.halves[0].dtype}")
    if sizes is not None and max(sizes) > 1.01 * min(sizes):
        yield Finding(
            "note",
            "files",
            f"the voxels are not cubes, {tuple(round(size, 3) for size in sizes)} Å (z, y, x), but the tilts are taken "
            "as angles between voxels",
            "resample the tomogram to cubes",
        )
    for geometry in dict.fromkeys(pair.geometries):
        for part in geometry.parts:
            low, high = part.tilt_range
            views = "" if part.continuous else f"{len(part.angles)} views from "
            yield Finding("ok", "tilts", f"{views}{low:g} to {high:g} degrees about {part.tilt_axis}")


def _voxel_findings(pair: TomogramPair) -> Iterator[Finding]:
    for label, one in zip(pair.labels, pair.statistics, strict=True):
        if one.n_invalid:
            message = f"{label} holds {one.n_invalid} voxels that are NaN or infinite, which are replaced by its mean"
            yield Finding("note", "voxels", message)
    if not any(one.n_invalid for one in pair.statistics):
        yield Finding("ok", "voxels", "finite, and not constant")
    yield Finding("ok", "scale", f"mean {pair.scale.mean:.4g}, deviation {abs(pair.scale.scale):.4g}")
    if pair.normalization == "robust" and all(has_zero_background(one.samples) for one in pair.statistics):
        yield Finding(
            "note",
            "scale",
            "the volume is nearly empty and its background is a true zero, which subtracting the mean moves",
            "pass `normalization='scale'` to keep it at zero",
        )
    ends = [(end, label) for one, label in zip(pair.statistics, pair.labels, strict=True) for end in one.extremes]
    largest, label = max((abs((end - pair.scale.mean) / pair.scale.scale), label) for end, label in ends)
    if largest > _OUTLIER:
        yield Finding(
            "note",
            "voxels",
            f"{label} holds values {largest:.0f} standard deviations from the mean (hot pixels?), which do not enter "
            "the scale, but are seen by the network",
        )


def _mask_findings(pair: TomogramPair) -> Iterator[Finding]:
    if not pair.mask_is_given:
        return
    try:
        _ = pair.mask
    except ValueError as error:
        yield Finding("error", "mask", str(error))
    else:
        if not pair.mask_is_binary:
            yield Finding("note", "mask", "the mask is not binary; every voxel other than 0 counts as specimen")


def _half_findings(pair: TomogramPair) -> list[Finding]:
    first, second = pair.statistics
    faults = [*_misplacements(first, second), *_scale_differences(first, second)]
    found = [Finding("warning", "halves", *fault) for fault in faults]
    return found or [Finding("ok", "halves", f"independent and in place{_resolution(pair)}")]


def _resolution(pair: TomogramPair) -> str:
    """Return the resolution to which two halves agree as a phrase, which is empty for a single section."""
    if min(pair.shape) < 2:
        return ""
    size = None if pair.voxel_size is None else min(pair.voxel_size)
    # The faces of a cut volume jump, which would fill the spectrum.
    taper = cosine_taper(pair.statistics[0].middle.shape)
    halves = ((one.middle - one.middle.mean()).mul_(taper) for one in pair.statistics)
    curve = fourier_shell_correlation(*halves, voxel_size=size)
    unit = "voxels" if size is None else "Å"
    return f"; they agree down to {curve.resolution(0.143):.1f} {unit} (Fourier shell correlation of 0.143)"


def _misplacements(first: HalfStatistics, second: HalfStatistics) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the position and the contrast of the halves, and the remedy."""
    agreement = compare_halves(first.middle, second.middle)
    yield from agreement.faults
    if agreement.faults or agreement.peak > SURE:
        return
    # The halves are too small, too alike in all directions or too noisy for a peak.
    one, other = (clipped(half.block_means) for half in (first, second))
    if not one.std() * other.std() > 0:
        return
    correlation = float(np.corrcoef(one, other)[0, 1])
    # Three times what chance gives this many blocks: a small volume says little about its contrast.
    chance = max(0.05, 3 / len(one) ** 0.5)
    value = f"({correlation:.2f} after averaging 4x4x4 voxels)"
    if correlation < -chance:
        yield f"the halves are anticorrelated {value}", "check whether the contrast of one is inverted"
    elif correlation < 0.05:
        yield f"the halves hardly correlate {value}", "check that they show the same specimen, unshifted"


def _scale_differences(first: HalfStatistics, second: HalfStatistics) -> Iterator[tuple[str, str]]:
    """Yield how the intensities of the halves differ, and the remedy."""
    one, other = (without_outliers(half.samples.astype(np.float64)) for half in (first, second))
    deviations, means = (one.std(), other.std()), (one.mean(), other.mean())
    values = " and ".join(f"{mean:.4g} +- {deviation:.4g}" for mean, deviation in zip(means, deviations, strict=True))
    remedy = (
        "one scale is taken for both, so reconstruct both alike, or bring the second to the mean and the deviation of "
        "the first"
    )
    if max(deviations) > _SCALES * min(deviations):
        yield f"the intensities of the halves differ in scale, {values}", remedy
    elif abs(means[0] - means[1]) > _OFFSETS * min(deviations):
        yield f"the intensities of the halves differ in their mean, {values}", remedy


def _ctf_findings(pair: TomogramPair, state: CtfState) -> Iterator[Finding]:
    """Yield a warning if the halves were Wiener-filtered, as is recorded or as the zeros in their noise show."""
    zero = find_noise_zero(*(one.middle for one in pair.statistics))
    if state != "wiener" and zero is None:
        return
    message = "the halves were Wiener-filtered or deconvolved to correct their contrast transfer function"
    if zero is not None:
        size = None if pair.voxel_size is None else min(pair.voxel_size)
        place = f"{1 / zero:.1f} voxels" if size is None else f"{size / zero:.1f} Å"
        verb = "were" if state == "wiener" else "seem to have been"
        message = (
            f"the halves {verb} Wiener-filtered or deconvolved to correct their contrast transfer function, as their "
            f"noise is nearly zero at {place} and larger on both sides"
        )
    yield Finding(
        "warning",
        "ctf",
        f"{message}. Their noise lies mostly at low frequencies, where it is hardest to tell from the specimen, and "
        "what the filter has removed is missing in the result",
        "train on halves without this filter (phase flipping does no harm) and deconvolve the result instead",
    )


def _wedge_findings(pair: TomogramPair) -> Iterator[Finding]:
    """Yield how the declared tilts fit the spectrum of the first half, or of the second if only that one disagrees."""
    # The sum of two halves that are turned or mirrored against each other would have another wedge than either.
    estimates = [estimate_wedge(one.middle) for one in pair.statistics]
    verdicts = [judge_geometry(*both) for both in zip(estimates, pair.geometries, strict=True)]
    number = next((number for number, verdict in enumerate(verdicts) if verdict.is_wrong), 0)
    verdict, estimate = verdicts[number], estimates[number]
    severity: Severity = "ok" if verdict.kind == "agrees" else "error" if verdict.is_wrong else "note"
    prefix = "of the second half: " if number else ""
    share = f" ({estimate.explained:.0%} of the spectrum's contrast explained)" if estimate.tilt_range else ""
    yield Finding(severity, "wedge", f"{prefix}{verdict.message}{share}", verdict.remedy)
    thinnest = min(range(3), key=lambda axis: pair.shape[axis])
    if verdict.kind == "unclear" and pair.shape[thinnest] <= 0.6 * pair.shape[0]:
        yield Finding(
            "note",
            "axes",
            f"the volume is thinnest along {'zyx'[thinnest]}, {pair.shape} voxels (z, y, x), but the beam must be "
            "along z",
            "check whether the file is stored with other axes (IMOD: clip rotx IN OUT turns them)",
        )
