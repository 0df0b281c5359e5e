"""Capture of what a step saves."""
