"""Benchmarks of debug: cost of watching, detection of faults, crash safety, profiler and page."""
