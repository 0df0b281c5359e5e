"""Benchmarks of sift: what selecting samples gains and costs."""
