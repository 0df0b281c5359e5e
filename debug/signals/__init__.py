"""Signals of a step that single tensors do not show."""
