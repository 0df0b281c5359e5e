"""Small trainings on real data, healthy as they come, and faults that break them."""

from . import depths, loops, signals, updates
from .fault import FAULTS as FAULTS
from .job import Job as Job

__all__ = ["FAULTS", "Job", "depths", "loops", "signals", "updates"]
