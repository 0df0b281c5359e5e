"""Bound of a search in time: candidates that would exceed it are not begun."""

from __future__ import annotations

import os
import time

from ..plan import Plan

LEAST, MOST = 10.0, 60.0
"""Seconds that the default allows at least and at most."""
REPAID = 1000
"""Steps whose whole time the default allows: as long as a gain of 10 % takes 10,000 steps to repay."""
FIRST = 0.5
"""Seconds of Inductor for an operation of the graph, before one compilation was measured: 0.3 to 1.1 on two CPU cores."""


def repayable(seconds: float) -> float:
    """Return the seconds that a search may take by default, for an eager step of ``seconds``."""
    return min(MOST, max(LEAST, REPAID * seconds))


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children, such as C++ compilers."""
    return sum(os.times()[:4])


class Deadline:
    """Time of a search, and what it may still begin.

    Args:
        max_seconds: seconds by the clock that the search may take; ``None``: what ``repayable`` returns.  A
            compilation cannot be interrupted, so the first one by Inductor is always begun then.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self.limit = MOST if max_seconds is None else max_seconds
        self._given = max_seconds is not None
        self._wall, self._processor = time.perf_counter(), processor_seconds()
        self._compiled: tuple[float, int] | None = None
        """Seconds of the latest compilation by Inductor, and the operations that it worked on."""
        self._captured = 0.0
        """Seconds of the latest candidate without Inductor."""

    @property
    def elapsed(self) -> float:
        """Seconds by the clock since the beginning."""
        return time.perf_counter() - self._wall

    @property
    def processor(self) -> float:
        """Seconds of processor time since the beginning, compilers included."""
        return processor_seconds() - self._processor

    def adapt(self, eager_seconds: float) -> None:
        """Set the default limit, as soon as the time of the eager step is known."""
        if not self._given:
            self.limit = repayable(eager_seconds)

    def record(self, plan: Plan, seconds: float, operations: int) -> None:
        """Take into account how long a candidate took to compile, and the operations that Inductor worked on."""
        if plan.graph == "inductor":
            self._compiled = seconds, operations
        else:
            self._captured = seconds

    def estimate(self, plan: Plan, operations: int) -> float:
        """Return the seconds that a candidate will take to compile; 0 if nothing is known.

        Args:
            plan: the candidate's plan.
            operations: operations of the graph that Inductor would work on; 0 if they are unknown.
        """
        if plan.graph != "inductor":
            return self._captured
        if self._compiled is None:
            return FIRST * operations
        seconds, before = self._compiled
        return seconds * operations / before if operations and before else seconds

    def comparing(self, compiled: float) -> float:
        """Return the seconds that the comparison of a candidate may take: as long as its compilation, and a quarter of what is left.

        The rest is for the candidates that follow, among them the one by Inductor.

        Args:
            compiled: seconds of the candidate's compilation.
        """
        return compiled + max(0.0, self.limit - self.elapsed) / 4

    def refusal(self, plan: Plan, operations: int, insist: bool = True) -> str:
        """Return the reason why a candidate is not begun; empty if it may begin.

        Args:
            plan: the candidate's plan.
            operations: operations of the graph that Inductor would work on; 0 if they are unknown.
            insist: whether the first compilation by Inductor is begun by default whatever it takes.
        """
        left, estimated = self.limit - self.elapsed, self.estimate(plan, operations)
        if insist and plan.graph == "inductor" and self._compiled is None and not self._given and left > 0:
            return ""
        if estimated <= left:
            return ""
        return f"not tried: would exceed max_seconds (about {estimated:.0f} s, {max(0.0, left):.0f} of {self.limit:.0f} s are left)"
