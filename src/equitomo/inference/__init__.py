"""Reconstruction of whole tomograms with a trained network, in tiles and in bounded memory."""

from equitomo.inference._footprint import Footprint
from equitomo.inference._margins import margin_errors, measured_margin
from equitomo.inference.predictor import TiledPredictor

__all__ = ["Footprint", "TiledPredictor", "margin_errors", "measured_margin"]
