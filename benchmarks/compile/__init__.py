"""Benchmarks of compile: speed, memory, coverage and trust of the compiled training step."""
