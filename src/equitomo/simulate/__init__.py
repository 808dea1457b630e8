"""Simulated specimens, tilt series and half tomograms for demonstrations and tests."""

from equitomo.simulate.halves import SimulatedHalves, simulate_halves
from equitomo.simulate.specimen import simulate_specimen
from equitomo.simulate.tilt_series import filtered_backprojection, project

__all__ = ["SimulatedHalves", "filtered_backprojection", "project", "simulate_halves", "simulate_specimen"]
