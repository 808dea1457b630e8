"""Reconstructing whole tomograms with a trained network, in tiles and in bounded memory."""

from equitomo.inference.predictor import Footprint, TiledPredictor

__all__ = ["Footprint", "TiledPredictor"]
