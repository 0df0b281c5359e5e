"""A loader that training waits for, or that has more workers than its cores can run.

Statistic: the share of the time of training steps that is spent waiting for a DataLoader, without the first step and without
the time of the Watch; and the number of workers over the number of cores that the process may use.
Default: more than a quarter of at least 30 s; more than twice the cores (the default of SageMaker Debugger, which tests only
the number of workers).
Why: with w workers that are always busy, a step of t seconds that waits v seconds needs w t / (t - v) workers, and without
workers v / (t - v).
False alarms: a model so small that no loader is fast enough.
"""

import math

from ..finding import Observation, Observations, Rule
from .series import Series


def detect(series: Series, share: float = 0.25, seconds: float = 30.0, workers: float = 2.0) -> Observations:
    train = series.train
    total = float((train["seconds"] - train["loopwise"]).sum())
    if not len(train) or total < seconds:
        return
    waiting, now = float(train["data"].sum()), int(train["workers"][-1])
    if waiting > share * total:
        spare = max(total - waiting, 1e-3 * total)
        workers_needed = math.ceil(now * total / spare if now else waiting / spare)
        remedy = (
            f"about {workers_needed} workers would suffice"
            if workers_needed <= 2 * series.usable
            else "no number of workers would suffice here"
        )
        count = train["count"]
        yield Observation(
            f"the loader is the bottleneck: {waiting / total:.0%} of a step is spent waiting for it, "
            f"with num_workers={now}; {remedy}",
            (),
            series.points({"data, s": train["data"] / count, "step, s": train["seconds"] / count}, train),
        )
    if series.usable and now > workers * series.usable:
        yield Observation(f"the loader has {now} workers on {series.usable} cores", ("workers",))


RULE = Rule(
    detect,
    "warning",
    "set num_workers accordingly, with persistent_workers=True, and pin_memory=True for a device, or compute costly "
    "transforms once and store their results; `loopwise feed diagnose SCRIPT` measures how many workers fill the step, and "
    "whether workers on other machines pay",
    source="profile",
)
