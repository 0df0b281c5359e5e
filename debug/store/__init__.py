"""Files of a run: segments, index, layouts and blocks."""
