"""Monitor that looks at the end of training whether the learning-rate schedules have ended too."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loopwise.wrappers import innermost

from ..rules import Finding
from ..rules.engine import Engine
from ..rules.thresholds import Selection
from ..rules.unfinished_schedule import ScheduleLength
from ..signals.learning_rate import largest
from ..torch_internals import scheduler_parts
from .monitor import Scalars

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Attributes of torch's schedulers with their lengths."""


class ScheduleMonitor:
    """Finds schedules that are far from their end when training has finished.  It is called at the end only.

    Args:
        optimizers: optimizers by key.
        rules: the selected rules.
        steps: returns the number of steps so far.
    """

    def __init__(
        self, optimizers: Mapping[str, Optimizer], rules: Selection, steps: Callable[[], int]
    ) -> None:
        self._optimizers, self._engine = list(optimizers.values()), Engine(rules, "schedules")
        self._steps = steps
        self._findings: list[Finding] = []

    def begin(self, step: int, mode: str) -> None:
        """Do nothing."""

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Judge the schedules of a training that came to its end."""
        scheduled = [one for one in self._optimizers if hasattr(one.step, "_wrapped_by_lr_sched")]
        if scheduled:
            found = list(lengths(scheduled))
            self._findings += self._engine.apply(found, max(self._steps() - 1, 0))

    def findings(self) -> list[Finding]:
        findings, self._findings = self._findings, []
        return findings

    def close(self) -> None:
        self._optimizers.clear()


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
