"""Small healthy trainings on real data, and faults that break them."""

from typing import Any

from . import depths, loops, signals, two_models, two_ranks, updates
from .fault import FAULTS as FAULTS
from .job import Job as Job

__all__ = [
    "FAULTS",
    "Job",
    "depths",
    "injected",
    "loops",
    "made",
    "signals",
    "two_models",
    "two_ranks",
    "updates",
]


def made(kind: str, seed: int, **more: Any) -> Any:
    """Return a healthy training; its ``run(folder)`` returns an object with ``findings``."""
    if kind == "gan":
        return two_models.Adversarial(seed, **more)
    return two_ranks.Parallel(seed, **more) if kind == "ddp" else Job(kind, seed, **more)


def injected(name: str, seed: int, **more: Any) -> Any:
    """Return a training with a fault."""
    job = made(FAULTS[name].kind, seed, **more)
    job.name = name
    FAULTS[name].inject(job)
    return job
