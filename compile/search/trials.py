"""Plans that are tried one after the other on one batch, as long as there is time."""

from __future__ import annotations

import time
from typing import Any

from loopwise.ranks import from_main, world_size

from ..plan import Plan
from ..verify.numerics import Comparison
from ..verify.sandbox import Observed
from .candidates import TIE, Candidate, measure_peaks, time_candidates, try_plan
from .deadline import Deadline
from .progress import Progress

FEW = 3
"""Passes of a candidate that tell whether something is worth being compiled, or compared."""
LONG = 0.01
"""Seconds of an eager pass from which on it pays to time a candidate before a comparison that takes further passes: up to
forty, in float64 or with rounded results, each of which takes as long as several eager ones."""
NOTHING = "the passes found nothing to rewrite"
SLOWER = "not compared: each of its passes was slower than all of the eager step"


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
        self.eager: Candidate | None = None
        """The eager step, as soon as it was timed."""
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
        candidate = try_plan(self.spec, plan, self.comparison, self._needless)
        log = candidate.log
        if not log.regions:
            candidate.plan = plan.changed(regions=False)
        if log.operations:
            self._operations, self._distinct = log.operations, log.distinct
        deadline.record(plan, candidate.compile_seconds, log.distinct if log.regions else log.operations)
        return candidate

    def _needless(self, candidate: Candidate, observed: Observed) -> str:
        """Return the reason why a candidate need not be compared, as it would not be chosen; empty if it must be.

        The end of its comparison is set here, as it depends on the time that the compilation took.
        A candidate with passes that no other candidate has is compared however slow it is: what is wrong has to be named.
        """
        plan, eager = candidate.plan, self.eager
        if eager is not None:
            self.comparison.ends = time.perf_counter() + self.deadline.comparing(candidate.compile_seconds)
        if plan.graph == "captured":
            rewritten = plan.budget < 1 or any(outcome.rewritten for outcome in candidate.log.outcomes)
            return "" if rewritten else NOTHING
        alone = world_size() == 1 and self.spec.memory is None  # ranks must agree; a slow one may hold less
        if eager is None or eager.seconds < LONG or not alone or self.comparison.is_near(observed):
            return ""
        time_candidates([eager, candidate], self.sandbox, FEW)
        if min(candidate.times) > max(eager.times):
            return SLOWER
        candidate.times = []
        return ""

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
