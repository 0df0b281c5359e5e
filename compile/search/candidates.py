"""Candidates of the search: plans that are compiled, compared with the eager step, and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loopwise.preserve import restored
from loopwise.ranks import anywhere

from ..graph.backend import Log, first_line
from ..graph.diagnostics import collect_graph_breaks
from ..layout import in_layout
from ..plan import Plan
from ..spec import Compute, StepSpec
from ..verify.numerics import Comparison, Difference, NoTime
from ..verify.sandbox import Observed, Sandbox
from .measure import REPEATS, median, peak_bytes, seconds
from .variants import variant

TIE = 0.02
"""Share of the simpler candidate's time that a candidate must save to win; smaller differences are noise."""
BUDGET = 5.0
"""Seconds of timing after which four timed repeats are enough; after twice as many, two are."""
DROP = 1.25
"""Factor by which all repeats of a candidate must be slower than all of another for it to be timed no more."""
DRAWS = "state/random numbers"
"""Name of the random states among the tensors of a pass."""


@dataclass
class Candidate:
    """A plan, its compiled computation, and the results of the comparison and of the measurement."""

    plan: Plan
    log: Log = field(default_factory=Log)
    compute: Compute | None = None
    """``None``: the candidate was refused."""
    refused: str = ""
    """Reason of the refusal."""
    difference: Difference | None = None
    """The worst difference from the eager step, if it is over its budget."""
    compile_seconds: float = 0.0
    """Seconds of the first pass, which captures and compiles, minus the seconds of a later pass."""
    times: list[float] = field(default_factory=list)
    """Seconds of forward and backward."""
    peak: int = 0
    """Largest number of bytes that forward and backward hold besides parameters and batch."""

    @property
    def seconds(self) -> float:
        """Median seconds of forward and backward; infinite if they were not timed."""
        return median(self.times) if self.times else float("inf")


def try_plan(
    spec: StepSpec,
    plan: Plan,
    comparison: Comparison,
    needless: Callable[[Candidate, Observed], str] = lambda candidate, observed: "",
) -> Candidate:
    """Compile by ``plan`` and compare its passes with the eager ones; refuse the plan on all ranks if any rank does.

    Args:
        spec: the training step.
        plan: the plan.
        comparison: comparison with the eager step.
        needless: returns from the candidate, which has run once, and the tensors of that pass the reason why the candidate
            need not be compared, and is refused; empty if it must be compared.
    """
    candidate = Candidate(plan)
    log, compute = candidate.log, variant(spec, plan, candidate.log)
    comparison.reference()  # the eager pass shows what a pass changes, so it comes first
    try:
        with in_layout(spec.model, plan.layout), collect_graph_breaks(log.breaks):
            start = time.perf_counter()
            observed = comparison.sandbox.observe(compute)
            candidate.compile_seconds = time.perf_counter() - start
        candidate.compute = compute
        candidate.refused = log.failures[0] if log.failures else needless(candidate, observed)
        if not candidate.refused:
            with in_layout(spec.model, plan.layout), collect_graph_breaks(log.breaks):
                candidate.difference = comparison.difference(compute, observed)
    except NoTime as reason:
        candidate.refused = str(reason)
    except Exception as error:
        candidate.refused = first_line(error)
    if candidate.difference is not None:
        candidate.refused = _in_words(candidate.difference)
    if anywhere(bool(candidate.refused)):
        candidate.compute, candidate.refused = None, candidate.refused or "refused on another rank"
    return candidate


def _in_words(difference: Difference) -> str:
    """Return the reason of a refusal."""
    if difference.tensor.startswith(DRAWS):  # what hangs on the draws says nothing about the rest
        return "cannot be compared: its random draws are not those of the eager step"
    return f"wrong: {difference}"


def time_candidates(
    candidates: list[Candidate], sandbox: Sandbox, repeats: int = REPEATS, warm: int = 1
) -> None:
    """Time the candidates that were not refused, one pass of each in turns; those that are clearly slower fewer times."""
    running = [candidate for candidate in candidates if candidate.compute is not None]
    with sandbox:
        steps = {str(n): _pass_in_layout(c, sandbox) for n, c in enumerate(running)}
        times = seconds(steps, sandbox.spec.device, repeats, warm, BUDGET, DROP)
    for candidate, own in zip(running, times.values(), strict=True):
        candidate.times = own


def measure_peaks(candidates: list[Candidate], sandbox: Sandbox) -> None:
    """Measure the memory of the candidates that were not refused, unless it is known."""
    for candidate in candidates:
        if candidate.compute is not None and not candidate.peak:
            with sandbox:
                candidate.peak = peak_bytes(_pass_in_layout(candidate, sandbox), sandbox.spec.device)


def _pass_in_layout(candidate: Candidate, sandbox: Sandbox) -> Callable[[], None]:
    """Return a function that runs a pass with the weights in the candidate's layout and restores their layout."""
    assert candidate.compute is not None
    run, layout, model = sandbox.training_pass(candidate.compute), candidate.plan.layout, sandbox.spec.model
    if layout == "as_is":
        return run
    with in_layout(model, layout):
        converted = [p.data for p in model.parameters()]

    def run_converted() -> None:
        with restored("data", model.parameters()):
            for parameter, data in zip(model.parameters(), converted, strict=True):
                parameter.data = data
            run()

    return run_converted
