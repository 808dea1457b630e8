"""Two half tomograms from a tilt series, or from many."""
