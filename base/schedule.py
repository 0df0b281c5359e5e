"""When something happens: small callables ``step -> bool`` that combine with ``|``, ``&`` and ``~``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loopwise.errors import InputError


class Schedule:
    """A question asked at every step: does it happen now?  Steps count from 0."""

    __slots__ = ()

    def __call__(self, step: int) -> bool:
        raise TypeError("Schedule is abstract; use every(), at() or between()")

    def __or__(self, other: Schedule) -> Schedule:
        return _Either(self, other)

    def __and__(self, other: Schedule) -> Schedule:
        return _Both(self, other)

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
class _Either(Schedule):
    left: Schedule
    right: Schedule

    def __call__(self, step: int) -> bool:
        return self.left(step) or self.right(step)


@dataclass(frozen=True, slots=True)
class _Both(Schedule):
    left: Schedule
    right: Schedule

    def __call__(self, step: int) -> bool:
        return self.left(step) and self.right(step)


@dataclass(frozen=True, slots=True)
class _Not(Schedule):
    inner: Schedule

    def __call__(self, step: int) -> bool:
        return not self.inner(step)


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}",
            f"a whole number of at least {least}",
            "steps are counted one by one from 0",
            f"pass an int of at least {least}",
        )
    return value


def every(n: int, *, start: int = 0) -> Schedule:
    """True at ``start``, ``start + n``, ``start + 2n``, ...  (``n`` >= 1 steps)."""
    return _Every(_whole("n", n, 1), _whole("start", start, 0))


def at(steps: Iterable[int]) -> Schedule:
    """True at exactly the given steps."""
    return _At(frozenset(_whole("step", step, 0) for step in steps))


def between(start: int, stop: int | None = None) -> Schedule:
    """True from ``start`` up to, not including, ``stop`` (``None``: for ever)."""
    start = _whole("start", start, 0)
    return _Between(start, None if stop is None else _whole("stop", stop, start))
