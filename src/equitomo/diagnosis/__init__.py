"""Judging a pair of half tomograms before the long work on it: the halves, the wedge, what looks wrong."""

from equitomo.diagnosis.agreement import HalvesAgreement, compare_halves
from equitomo.diagnosis.findings import Finding, Severity, diagnose
from equitomo.diagnosis.wedge import WedgeEstimate, WedgeVerdict, estimate_wedge, judge_geometry

__all__ = [
    "Finding",
    "HalvesAgreement",
    "Severity",
    "WedgeEstimate",
    "WedgeVerdict",
    "compare_halves",
    "diagnose",
    "estimate_wedge",
    "judge_geometry",
]
