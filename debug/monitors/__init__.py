"""Monitors that a ``Watch`` calls at every step."""
