"""Comparison of a compiled step with the eager step and with float64."""
