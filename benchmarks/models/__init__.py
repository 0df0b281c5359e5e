"""Models that the compile benchmarks train: each with a batch, made from a seed."""

from .language import language_models
from .vision import vision_models

MODELS = {**language_models(), **vision_models()}
"""Name -> function that makes (model, loss, batch)."""
