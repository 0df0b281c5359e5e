"""Rewrites of the training graph, one a file."""
