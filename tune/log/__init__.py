"""Metrics from what a program prints: lines, numbers, regular expressions, curves, suggestions."""
