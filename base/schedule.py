"""Schedules: callables ``step -> bool`` that choose steps and combine with ``|``, ``&`` and ``~``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loopwise.validate import whole_number


class Schedule:
    """Choice of steps, which count from 0; ``a | b``, ``a & b`` and ``~a`` are schedules too."""

    __slots__ = ()

    def __call__(self, step: int) -> bool:
        raise TypeError("Schedule is abstract; use every(), at() or between()")

    def __or__(self, other: Schedule) -> Schedule:
        return _Combined(operator.or_, self, other)

    def __and__(self, other: Schedule) -> Schedule:
        return _Combined(operator.and_, self, other)

    def __invert__(self) -> Schedule:
        return _Not(self)


@dataclass(frozen=True, slots=True)
class _Every(Schedule):
    n: int
    start: int

    def __call__(self, step: int) -> bool:
        return step >= self.start and (step - self.start) % self.n == 0


@dataclass(frozen=True, slots=True)
class _At(Schedule):
    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps


@dataclass(frozen=True, slots=True)
class _Between(Schedule):
    start: int
    stop: int | None

    def __call__(self, step: int) -> bool:
        return step >= self.start and (self.stop is None or step < self.stop)


@dataclass(frozen=True, slots=True)
class _Combined(Schedule):
    combine: Callable[[bool, bool], bool]
    left: Schedule
    right: Schedule

    def __call__(self, step: int) -> bool:
        return self.combine(self.left(step), self.right(step))


@dataclass(frozen=True, slots=True)
class _Not(Schedule):
    inner: Schedule

    def __call__(self, step: int) -> bool:
        return not self.inner(step)


def every(n: int, *, start: int = 0) -> Schedule:
    """Choose ``start``, ``start + n``, ``start + 2n``, ...; ``InputError`` unless ``n >= 1`` and ``start >= 0``."""
    return _Every(whole_number("n", n, 1, "steps"), whole_number("start", start, 0, "steps"))


def at(steps: Iterable[int]) -> Schedule:
    """Choose exactly the steps in ``steps``; raise an ``InputError`` if one is no whole number from 0."""
    return _At(frozenset(whole_number("step", step, 0, "steps") for step in steps))


def between(start: int, stop: int | None = None) -> Schedule:
    """Choose the steps ``start <= step < stop`` (``None``: no end); ``InputError`` unless ``0 <= start <= stop``."""
    start = whole_number("start", start, 0, "steps")
    return _Between(start, None if stop is None else whole_number("stop", stop, start, "steps"))
