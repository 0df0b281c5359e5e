"""Benchmarks of feed: the launcher, and the reference's proportions as a simulation."""
"""Benchmarks of feed: one file for each claim."""
