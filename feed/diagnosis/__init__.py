"""Advice about a training loop: measure it, predict its step, and say whether loading batches elsewhere pays."""
