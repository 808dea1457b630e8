"""Simulated specimens and half tomograms for demonstrations and tests."""

from equitomo.simulate.halves import SimulatedHalves, simulate_halves
from equitomo.simulate.particles import simulate_particles
from equitomo.simulate.specimen import simulate_specimen

__all__ = ["SimulatedHalves", "simulate_halves", "simulate_particles", "simulate_specimen"]
