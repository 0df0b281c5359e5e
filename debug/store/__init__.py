"""Files of a run: segments, index and blocks."""
