"""Judge a pair of half tomograms before a long training: whether the halves fit each other and the declared tilts."""

from equitomo.diagnosis.agreement import HalvesAgreement, compare_halves
from equitomo.diagnosis.ctf import find_noise_zero
from equitomo.diagnosis.findings import Finding, Severity, diagnose
from equitomo.diagnosis.tilt_axis import TiltAxisFit, fit_tilt_axis, judge_series
from equitomo.diagnosis.wedge import WedgeEstimate, WedgeVerdict, estimate_wedge, judge_geometry

__all__ = [
    "Finding",
    "HalvesAgreement",
    "Severity",
    "TiltAxisFit",
    "WedgeEstimate",
    "WedgeVerdict",
    "compare_halves",
    "diagnose",
    "estimate_wedge",
    "find_noise_zero",
    "fit_tilt_axis",
    "judge_geometry",
    "judge_series",
]
