"""Plans that are tried one after the other on one batch, as long as there is time."""

from __future__ import annotations

from typing import Any

from loopwise.ranks import from_main

from ..plan import Plan
from ..verify.numerics import Comparison
from .candidates import TIE, Candidate, measure_peaks, time_candidates, try_plan
from .deadline import Deadline
from .progress import Progress

FEW = 3
"""Passes of a candidate that tell whether something is worth being compiled."""


class Trials:
    """Trials of plans on one batch.

    Args:
        comparison: comparison with the eager step, whose sandbox the passes run in.
        deadline: time of the search.
    """

    def __init__(self, comparison: Comparison, deadline: Deadline) -> None:
        self.comparison, self.deadline = comparison, deadline
        self.sandbox, self.spec = comparison.sandbox, comparison.sandbox.spec
        self.progress = Progress(deadline)
        self._operations = self._distinct = 0
        """Operations of the captured graphs: all, and with repeated blocks counted once."""

    def attempt(self, insist: bool = True, **changes: Any) -> Candidate:
        """Try the plan that differs from the eager one by ``changes``, unless it takes too long.

        Args:
            insist: whether the first compilation by Inductor is begun by default whatever it takes.
            changes: fields of the plan.

        Returns:
            The candidate; its plan has ``regions`` only if the graph has repeated blocks.
        """
        plan, deadline = Plan(precision=self.spec.precision).changed(**changes), self.deadline
        operations = self._distinct if plan.regions else self._operations
        if refusal := from_main(lambda: deadline.refusal(plan, operations, insist)):
            return Candidate(plan, refused=refusal)
        self.progress.begin(plan, deadline.estimate(plan, operations))
        candidate = try_plan(self.spec, plan, self.comparison)
        log = candidate.log
        if not log.regions:
            candidate.plan = plan.changed(regions=False)
        if log.operations:
            self._operations, self._distinct = log.operations, log.distinct
        deadline.record(plan, candidate.compile_seconds, log.distinct if log.regions else log.operations)
        return candidate

    def measure(self, candidates: list[Candidate]) -> None:
        """Measure time, in turns, and memory of the candidates that were not refused."""
        time_candidates(candidates, self.sandbox)
        self.measure_peaks(candidates)

    def measure_peaks(self, candidates: list[Candidate]) -> None:
        """Measure the memory of the candidates that were not refused, unless it is known."""
        measure_peaks(candidates, self.sandbox)

    def time_shortly(self, candidates: list[Candidate], repeats: int = FEW) -> None:
        """Time candidates, in turns, by a few passes: for decisions what else to try."""
        time_candidates(candidates, self.sandbox, repeats, warm=0)


def is_faster(candidate: Candidate, other: Candidate) -> bool:
    """Return whether a timed candidate is faster than a simpler one.  Collective under DDP: rank 0's times decide."""
    return from_main(lambda: fastest([other, candidate]) is candidate)


def fastest(candidates: list[Candidate]) -> Candidate:
    """Return the fastest candidate; of two within ``TIE`` the first one, which is simpler."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.seconds < best.seconds * (1 - TIE):
            best = candidate
    return best
