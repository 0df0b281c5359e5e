"""Benchmarks of feed: local workers, the launcher, and the reference's proportions as a simulation."""
