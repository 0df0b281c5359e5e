"""Benchmarks of tune: what following trials costs, and what survives kills."""
