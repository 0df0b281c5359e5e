"""Benchmarks of feed: local workers, links, deaths, the launcher, and the reference's proportions as a simulation."""
