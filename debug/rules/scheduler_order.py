"""A learning-rate scheduler that is stepped before the optimizer, or too often.

Statistic: the largest learning rate of an optimizer's groups at each update and at each ``watch.step``.
Default: the rate changed in the first step before the first update; or it changed more than once before three quarters of
the last 16 updates (seen if ``watch.step`` is called for every accumulated batch as well); or it fell to less than a
thousandth of its highest value, and at least 20 and as many updates came afterwards as before; or it fell that far and
rose again three times, within 1,000 updates each.
Why: a schedule that fits ends with the training.  A schedule that is sized in epochs and stepped for every batch runs down
early, and a cosine climbs again after its end.  Restarts leap up at once.
False alarms: a rate that a plateau scheduler lowered until nothing more can be gained.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(
    history: History, often: float = 0.75, updates: float = 20, cycles: float = 3, period: float = 1000
) -> Observations:
    for key, rate in history.now.facts.get("rates", {}).items():
        what = ""
        if rate["early"]:
            what = "the learning rate changed before the optimizer's first update"
        elif rate["often"] >= often:
            what = f"the learning rate changes several times before one update, in {rate['updates']} updates so far"
        elif rate["run_down"] >= 0:
            since = rate["updates"] - rate["run_down"]
            if since >= max(updates, rate["run_down"]):
                what = f"the learning rate fell from {rate['highest']:.3g} to {rate['rate']:.3g} in {rate['run_down']} "
                what += f"updates, and {since} more updates followed"
        if rate["cycles"] >= cycles and rate["updates"] < period * rate["cycles"]:
            what = (
                f"the learning rate fell and rose again {rate['cycles']} times in {rate['updates']} updates"
            )
        if what:
            noted = [(step.number, step.facts.get("rates", {}).get(key)) for step in history.steps()]
            points = [(number, float(at["rate"])) for number, at in noted if at]
            yield Observation(what, (key,) if key else (), {"learning rate": points})


RULE = Rule(
    detect,
    "warning",
    "call scheduler.step() after optimizer.step(), once for each unit that the schedule's length is counted in: "
    "each update, or each epoch",
)
