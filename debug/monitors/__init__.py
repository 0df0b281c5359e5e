"""Monitors that run beside a ``Watch`` at every step."""
