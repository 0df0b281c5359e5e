"""Preflight: faults of a training that show on one batch, before the training begins."""

from .check import preflight as preflight
from .report import PreflightReport as PreflightReport
