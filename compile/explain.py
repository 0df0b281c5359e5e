"""Explanation of a training step's plan: where it comes from, a table of the variants that were tried, and remarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .graph.backend import Log
from .plan import Plan, StoredPlan
from .search.candidates import Candidate
from .search.measure import median
from .search.optimizers import Choice
from .search.search import SearchResult

TENSORS = {"loss_head": "logits", "attention": "scores", "short_attention": "scores"}
"""Pass -> the tensors that it does not materialise."""


@dataclass(frozen=True)
class Origin:
    """Facts about where the plan in use comes from."""

    pinned: bool = False
    """Whether the plan was given as ``plan=``."""
    stored: StoredPlan | None = None
    """Plan of an earlier run that was taken."""
    left: str = ""
    """Reason why the step went back to eager; empty if it did not."""

    def in_words(self, result: SearchResult) -> str:
        """Return a line about the origin of the plan that a search returned."""
        if self.left:
            return f"stepped back to eager: {self.left}"
        if not self.pinned and self.stored is None:
            if len(result.candidates) > 1 and result.known:
                return "compiled without timing"
            return "not measured" if result.known else "measured now"
        text = "given as plan="
        if self.stored is not None:
            text = f"remembered from {self.stored.path}, measured {self.stored.measured_at}"
        refused = [one.refused for one in result.candidates if one.refused]
        if refused:
            text = f"eager, because the plan {text} was refused"
        return text if self.pinned else f"{text}; replan(batch) measures anew"


@dataclass(frozen=True)
class Explanation:
    """Explanation of a plan: a table of variants, and remarks; ``str(explanation)`` is text for a terminal."""

    plan: Plan | None
    rows: list[dict[str, Any]]
    """A row for each variant that was tried or left out.  Keys: ``form`` (its plan), ``ms``, ``least`` and ``most``
    (milliseconds of forward and backward: median, minimum, maximum), ``MiB`` (peak memory), ``compile s``, and
    ``verdict``."""
    remarks: list[str]
    source: str = ""
    """Line about where the plan comes from."""

    @classmethod
    def of(
        cls,
        plan: Plan | None,
        result: SearchResult | None,
        choice: Choice | None,
        events: list[str],
        origin: Origin | None = None,
    ) -> Explanation:
        """Explain the plan in use.

        Args:
            plan: plan in use; ``None`` before the first batch.
            result: results of the search, if it ran.
            choice: measured implementations of the optimizer, if they were measured.
            events: later remarks.
            origin: where the plan comes from.
        """
        origin = origin or Origin()
        if result is None:
            return cls(None, [], ["no batch yet: the plan is chosen at the first one"])
        rows = [_row(candidate, result, origin.left) for candidate in result.candidates]
        log = result.best.log
        remarks = [*_time(result), *result.notes, *_refused_before(origin.stored)]
        remarks += [*_noise(result), *_gains(result), *_break_even(result), *_roofline(result)]
        remarks += [*_optimizer(choice), *_passes(log)]
        remarks += [f"could not be compiled: {failure}" for failure in log.failures]
        remarks += [f"graph break at {place}" for place in log.breaks]
        remarks += log.regions
        if log.graphs > 1:
            remarks.append(f"{log.graphs} graphs were compiled: graph breaks, or other shapes")
        return cls(plan, rows, remarks + events, origin.in_words(result))

    def __str__(self) -> str:
        lines = [f"plan: {self.plan}"] if self.plan else []
        lines += [f"source: {self.source}"] if self.source else []
        if self.rows:
            lines.append(f"{'variant':<44}{'ms':>9}{'min-max':>18}{'peak MiB':>10}{'compile s':>11}  result")
        for row in self.rows:
            timed = row["ms"] is not None
            times = f"{row['ms']:>9.1f}{row['least']:>9.1f}-{row['most']:<8.1f}" if timed else " " * 27
            memory = f"{row['MiB']:>10.1f}" if row["MiB"] is not None else " " * 10
            lines.append(f"{row['form']:<44}{times}{memory}{row['compile s']:>11.1f}  {row['verdict']}")
        return "\n".join([*lines, *self.remarks])


def _row(candidate: Candidate, result: SearchResult, left: str) -> dict[str, Any]:
    """Return a candidate's row of the table; ``left`` is the reason of a step back to eager."""
    verdict = _verdict(candidate, result, left)
    return row_of(candidate.plan, candidate.times, verdict, candidate.peak, candidate.compile_seconds)


def row_of(
    plan: Plan, seconds: Sequence[float], verdict: str, peak: float = 0.0, compile_seconds: float = 0.0
) -> dict[str, Any]:
    """Return a row of the table.

    Args:
        plan: plan of the variant.
        seconds: its timed passes; none: it was not timed.
        verdict: whether it is in use, or why not.
        peak: peak memory in bytes; 0: it was not measured.
        compile_seconds: seconds of its compilation.
    """
    times = [1e3 * value for value in seconds]
    return {
        "form": str(plan),
        "ms": median(times) if times else None,
        "least": min(times, default=None),
        "most": max(times, default=None),
        "MiB": peak / 2**20 if peak else None,
        "compile s": compile_seconds,
        "verdict": verdict,
    }


def _verdict(candidate: Candidate, result: SearchResult, left: str) -> str:
    """Return "chosen", or the reason why the candidate is not in use."""
    best, budget = result.best, result.memory
    if left and best is not result.candidates[0]:
        if candidate is best:
            return f"was chosen, left later: {left}"
        if candidate is result.candidates[0]:
            return "in use"
    if candidate is best:
        return "chosen"
    if candidate.refused:
        return candidate.refused
    if budget is not None and candidate.peak > budget:
        return "too much memory"
    if not candidate.times:
        return "not timed"
    return f"not faster{'; times overlap' if _overlap(candidate, best) else ''}"


def _overlap(one: Candidate, other: Candidate) -> bool:
    """Return whether the ranges of the times of two candidates overlap."""
    if not one.times or not other.times:
        return False
    return min(one.times) <= max(other.times) and min(other.times) <= max(one.times)


def _time(result: SearchResult) -> list[str]:
    """Return a line about what the search took."""
    if not result.seconds:
        return []
    limit = "" if result.limit is None else f"; max_seconds was {result.limit:.0f}"
    return [f"finding it took {result.seconds:.1f} s, {result.processor:.1f} s of processor time{limit}"]


def _refused_before(stored: StoredPlan | None) -> list[str]:
    """Return a line for each plan that was refused when a remembered plan was measured."""
    refused = [] if stored is None else stored.refused
    return [f"when it was measured, {one['plan']} was left out: {one['reason']}" for one in refused]


def _noise(result: SearchResult) -> list[str]:
    """Return a line if the chosen variant may be no faster than the eager step."""
    eager, best = result.candidates[0], result.best
    if best is eager or not _overlap(eager, best):
        return []
    return [f"the times of {best.plan} and of {eager.plan} overlap: the difference may be noise"]


def _gains(result: SearchResult) -> list[str]:
    """Return the gain of each choice, from pairs of timed candidates that differ in one choice."""
    timed = [candidate for candidate in result.candidates if candidate.times]
    lines = []
    for number, candidate in enumerate(timed):
        choices = _choices(candidate.plan)
        for other in timed[:number]:
            others = _choices(other.plan)
            if sum(value != others[name] for name, value in choices.items()) == 1:
                change = 1e3 * (candidate.seconds - other.seconds)
                memory = (candidate.peak - other.peak) / 2**20
                noise = " (times overlap)" if _overlap(candidate, other) else ""
                lines.append(
                    f"{candidate.plan} instead of {other.plan}: {change:+.1f} ms{noise}, {memory:+.1f} MiB"
                )
    return lines


def _choices(plan: Plan) -> dict[str, Any]:
    """Return the plan's fields; a captured graph without passes counts as eager."""
    graph = "eager" if plan.graph == "captured" else plan.graph
    return dataclasses.asdict(plan) | {"graph": graph}


def _break_even(result: SearchResult) -> list[str]:
    """Return a line about the number of batches that save as much time as the search took."""
    eager, best = result.candidates[0], result.best
    if best is eager or not best.times or not eager.times:
        return []
    gain = eager.seconds - best.seconds
    if gain <= 0:
        return [f"slower than the eager step by {-1e3 * gain:.1f} ms, to hold less memory"]
    return [f"{result.seconds / gain:,.0f} batches save as much time"]


def _roofline(result: SearchResult) -> list[str]:
    """Return a line that compares the chosen variant with the roofline."""
    if result.roofline is None or not result.roofline.flops or not result.best.times:
        return []
    flops, rate = result.roofline
    share = f"{flops / rate / result.best.seconds:.0%} of forward and backward"
    speed = f"at the speed of a large matrix product ({rate / 1e9:,.0f} GFLOP/s)"
    return [f"roofline: {speed} the step's products take {1e3 * flops / rate:.1f} ms, {share}"]


def _optimizer(choice: Choice | None) -> list[str]:
    """Return lines about the implementations of the optimizer."""
    if choice is None:
        return []
    refused = [f"{name} optimizer refused: {reason}" for name, reason in choice.refused.items()]
    if not choice.seconds:  # the plan's implementation was compared, not timed
        return refused
    times = ", ".join(f"{name} {1e3 * median(t):.1f} ms" for name, t in choice.seconds.items())
    return [f"optimizer: {times}; chosen: {choice.name}", *refused]


def _passes(log: Log) -> list[str]:
    """Return a line for each place that a pass rewrote or left as it is."""
    lines = []
    for outcome in log.outcomes:
        text = f"left as it is: {outcome.reason}"
        if outcome.rewritten:
            kind, size = TENSORS.get(outcome.name, "tensors"), outcome.saved_bytes / 2**20
            text = f"{kind} of {size:.1f} MiB are not materialised" if size else "on"
        lines.append(f"{outcome.name.replace('_', ' ')} at {outcome.place}: {text}")
    return list(dict.fromkeys(lines))
