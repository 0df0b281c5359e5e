"""A learning-rate scheduler that is stepped before the optimizer, or per wrong unit.

Statistic: the largest rate of an optimizer's groups, seen at each update and each ``watch.step``.  Default: it changed in the
first step before the first update; it changed more than once before three quarters of the last 16 updates
(stepped per batch while gradients accumulate: seen where ``watch.step`` is called per batch as well); it fell to less than a thousandth of its highest value, and there were
as many updates after that as before, 20 at least (a schedule sized in epochs that is stepped per batch); or it
went down to that and climbed up again three times within 1,000 updates each (a cosine of a few epochs that is stepped
per batch: after its end it climbs).
Why: a schedule that fits ends with the training; restarts leap and do not climb.
False alarms: a rate that was lowered on plateaus until nothing more is to be gained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .finding import Observation, Points, Rule
from .history import History


def detect(
    history: History, often: float = 0.75, updates: float = 20, cycles: float = 3, period: float = 1000
) -> Iterator[Observation]:
    for key, rate in history.now.facts.get("rates", {}).items():
        what = ""
        if rate["early"]:
            what = "the learning rate changed before the optimizer's first update"
        elif rate["often"] >= often:
            what = f"the learning rate changes several times for one update, {rate['updates']} so far"
        elif rate["run_down"] >= 0:
            since = rate["updates"] - rate["run_down"]
            if since >= max(updates, rate["run_down"]):
                what = f"the learning rate fell from {rate['highest']:.3g} to {rate['rate']:.3g} in {rate['run_down']} "
                what += f"updates, and there were {since} more"
        if rate["cycles"] >= cycles and rate["updates"] < period * rate["cycles"]:
            what = f"the learning rate ran down and climbed up again {rate['cycles']} times in {rate['updates']} updates"
        if what:
            yield Observation(what, (key,) if key else (), {"learning rate": _points(history, key)})


def _points(history: History, key: str) -> Points:
    found: list[tuple[int, Mapping[str, Any]]] = [
        (step.number, step.facts.get("rates", {}).get(key, {})) for step in history.steps()
    ]
    return [(number, float(rate["rate"])) for number, rate in found if rate]


RULE = Rule(
    detect,
    "warning",
    "call scheduler.step() after optimizer.step(), as often as the schedule's length is counted in: "
    "once per update, or once per epoch",
)
