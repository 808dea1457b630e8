"""Reconstructing whole tomograms with a trained network, in tiles and in bounded memory."""

from equitomo.inference._footprint import Footprint
from equitomo.inference.predictor import TiledPredictor

__all__ = ["Footprint", "TiledPredictor"]
