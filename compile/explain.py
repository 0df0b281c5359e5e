"""What a training step does and what each piece gained, as a table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .graph.backend import Log
from .plan import Plan
from .search.candidates import Trial
from .search.optimizers import Choice
from .search.search import Search


@dataclass(frozen=True)
class Explanation:
    """Rows and remarks; ``str()`` of it is a table for the terminal."""

    plan: Plan | None
    rows: list[dict[str, Any]]
    """One a tried form: name, milliseconds (median, least, most) of forward and backward, MiB held at
    most, compile seconds, and whether it was chosen or why it was refused."""
    remarks: list[str]

    @classmethod
    def of(
        cls,
        plan: Plan | None,
        search: Search | None,
        choice: Choice | None,
        log: Log,
        events: list[str],
        shapes: Mapping[Any, int],
    ) -> Explanation:
        if search is None:
            return cls(None, [], ["no batch yet: the plan is found at the first one"])
        rows = [_row(trial, trial is search.best) for trial in search.trials]
        remarks = [*search.notes, *_pieces(search), *_break_even(search), *_floor(search)]
        remarks += [*_optimizer(choice), *_passes(log)]
        remarks += [f"could not be compiled: {failure}" for failure in log.failures]
        remarks += [f"graph break at {place}" for place in log.breaks]
        remarks += log.regions
        if log.graphs > 1:
            remarks.append(f"{log.graphs} graphs were compiled: graph breaks, or other shapes")
        if shapes:
            remarks.append(f"{sum(shapes.values())} batches of {len(shapes)} other shapes")
        return cls(plan, rows, remarks + events)

    def __str__(self) -> str:
        lines = [f"plan: {self.plan}"] if self.plan else []
        if self.rows:
            lines.append(f"{'form':<44}{'ms':>9}{'range':>18}{'MiB':>9}{'compile s':>11}  verdict")
        for row in self.rows:
            timed = row["ms"] is not None
            middle = f"{row['ms']:>9.1f}{row['least']:>9.1f}-{row['most']:<8.1f}" if timed else " " * 27
            memory = f"{row['MiB']:>9.1f}" if timed else " " * 9
            lines.append(f"{row['form']:<44}{middle}{memory}{row['compile s']:>11.1f}  {row['verdict']}")
        return "\n".join([*lines, *self.remarks])


def _row(trial: Trial, chosen: bool) -> dict[str, Any]:
    times = [1e3 * value for value in trial.times]
    return {
        "form": str(trial.plan),
        "ms": statistics.median(times) if times else None,
        "least": min(times, default=None),
        "most": max(times, default=None),
        "MiB": trial.peak / 2**20,
        "compile s": trial.compile_seconds,
        "verdict": "chosen" if chosen else trial.refused,
    }


def _pieces(search: Search) -> list[str]:
    """What each piece gained: of two timed forms that differ in one thing."""
    timed = [trial for trial in search.trials if trial.times]
    found = []
    for number, one in enumerate(timed):
        for other in timed[:number]:
            changed = [name for name, value in _parts(one.plan).items() if value != _parts(other.plan)[name]]
            if len(changed) == 1:
                change, memory = 1e3 * (one.seconds - other.seconds), (one.peak - other.peak) / 2**20
                found.append(f"{one.plan} beside {other.plan}: {change:+.1f} ms, {memory:+.1f} MiB")
    return found


def _parts(plan: Plan) -> dict[str, Any]:
    """The things that are on or off; a captured graph without passes is the eager step."""
    graph = "eager" if plan.graph == "captured" else plan.graph
    return dataclasses.asdict(plan) | {"graph": graph}


def _break_even(search: Search) -> list[str]:
    eager, best = search.trials[0], search.best
    if best is eager or not best.times or not eager.times:
        return []
    gain = eager.seconds - best.seconds
    spent = sum(trial.compile_seconds for trial in search.trials)
    if gain <= 0:
        return [f"slower than the eager step by {-1e3 * gain:.1f} ms, for its memory"]
    return [f"finding it took {spent:.1f} s, earned back after {spent / gain:,.0f} batches"]


def _floor(search: Search) -> list[str]:
    if search.floor is None or not search.floor.flops or not search.best.times:
        return []
    return [search.floor.beside(search.best.seconds)]


def _optimizer(choice: Choice | None) -> list[str]:
    if choice is None or not choice.seconds:
        return []
    times = ", ".join(f"{kind} {1e3 * statistics.median(t):.1f} ms" for kind, t in choice.seconds.items())
    refused = [f"{kind} optimizer refused: {why}" for kind, why in choice.refused.items()]
    return [f"optimizer: {times}; chosen: {choice.kind}", *refused]


def _passes(log: Log) -> list[str]:
    found = []
    for outcome in log.outcomes:
        what = f"left as it is: {outcome.reason}"
        if outcome.rewritten:
            kind, size = "logits" if outcome.name == "loss_head" else "scores", outcome.saved_bytes / 2**20
            what = f"{kind} of {size:.1f} MiB are not materialised" if size else "on"
        found.append(f"{outcome.name.replace('_', ' ')} at {outcome.place}: {what}")
    return list(dict.fromkeys(found))
