"""Comparison of a compiled step with the eager step."""
