"""Compiled training steps: measured, compared with the eager step, and explained."""

from .cache import load_cache, save_cache
from .fit import Fit, fit
from .linear_cross_entropy.op import linear_cross_entropy
from .optimize import optimize
from .plan import Plan
from .step import TrainStep

__all__ = ["Fit", "Plan", "TrainStep", "fit", "linear_cross_entropy", "load_cache", "optimize", "save_cache"]
