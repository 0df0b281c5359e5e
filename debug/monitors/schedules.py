"""Findings at the end of training about learning-rate schedules that have not ended."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loopwise.wrappers import innermost

from ..rules import Finding
from ..rules.engine import Engine
from ..rules.thresholds import Selection
from ..rules.unfinished_schedule import ScheduleLength
from ..signals.learning_rate import largest
from ..torch_internals import has_scheduler, scheduler_parts

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Attributes of torch's schedulers with their lengths."""


def unfinished(optimizers: Iterable[Optimizer], rules: Selection, step: int) -> list[Finding]:
    """Return the findings about schedules of a training that came to its end.

    Args:
        optimizers: the optimizers.
        rules: the selected rules.
        step: the last step.
    """
    scheduled = [one for one in optimizers if has_scheduler(one)]
    return Engine(rules, "schedules").apply(list(lengths(scheduled)), step) if scheduled else []


def lengths(optimizers: list[Optimizer]) -> Iterator[ScheduleLength]:
    """Yield the lengths of the schedulers of some optimizers that are alive and have a length.

    An optimizer does not know its schedulers, so that all objects of the process are looked through.
    """
    own = {id(innermost(optimizer)) for optimizer in optimizers}
    alive: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), LRScheduler)]
    alive = [one for one in alive if id(innermost(getattr(one, "optimizer", None))) in own]
    inner = {id(part) for one in alive for part in scheduler_parts(one)[0]}
    for scheduler in alive:
        total = None if id(scheduler) in inner else length(scheduler)
        if total:
            rate = largest(innermost(scheduler.optimizer)) or 0.0
            yield ScheduleLength(type(scheduler).__name__, steps(scheduler), total, rate)


def steps(scheduler: Any) -> int:
    """Return the number of times that a scheduler was stepped."""
    if hasattr(scheduler, "last_epoch"):
        return max(int(scheduler.last_epoch), 0)
    return max((steps(part) for part in scheduler_parts(scheduler)[0]), default=0)  # a ChainedScheduler


def length(scheduler: Any) -> int | None:
    """Return the number of steps after which a scheduler has done all that it does; ``None`` if it has no such number."""
    parts, milestones = scheduler_parts(scheduler)
    if parts:
        if milestones:  # one after the other
            return milestones[-1] + (length(parts[-1]) or 0)
        return max(length(part) or 0 for part in parts) or None
    for name in LENGTHS:
        if isinstance(total := getattr(scheduler, name, None), (int, float)):
            return int(total)
    if steps := getattr(scheduler, "milestones", None):
        return int(max(steps))
    lambdas = [one for one in getattr(scheduler, "lr_lambdas", ()) if isinstance(one, functools.partial)]
    totals = [one.keywords.get("num_training_steps") for one in lambdas]
    return max((int(total) for total in totals if isinstance(total, int)), default=None)
