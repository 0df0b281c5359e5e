"""Losses that the training loop itself computes: read by a hook, or by the loop's own criterion."""

from .criterion import Recorder as Recorder
from .training_losses import TrainingLosses as TrainingLosses
