"""A loader that training waits for, or that has more workers than its cores can run.

Statistic: the share of the time of training steps, without the first and without what the Watch takes, that is
spent in waiting for a DataLoader; and its workers over the cores that the process may use.  Default: more than a quarter of at
least 30 s; more than twice the cores (the bound of SageMaker Debugger, whose own test is the number of
workers alone).  With w workers that are always busy, a step of t seconds with v of them spent waiting needs
w t / (t - v) workers; without workers, v / (t - v).
False alarms: a model so small that nothing could load its batches in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..finding import Observation, Rule
from .series import Series


def detect(
    series: Series, share: float = 0.25, seconds: float = 30.0, workers: float = 2.0
) -> Iterator[Observation]:
    train = series.train
    total = float((train["seconds"] - train["loopwise"]).sum())
    if not len(train) or total < seconds:
        return
    waiting, now = float(train["data"].sum()), int(train["workers"][-1])
    if waiting > share * total:
        spare = max(total - waiting, 1e-3 * total)
        needed = math.ceil(now * total / spare if now else waiting / spare)
        enough = (
            f"about {needed} would fill it"
            if needed <= 2 * series.usable
            else "no number of them would do here"
        )
        each = train["count"]
        yield Observation(
            f"the loader is the bottleneck: {waiting / total:.0%} of a step is spent waiting for it, "
            f"with num_workers={now}; {enough}",
            (),
            series.points({"data, s": train["data"] / each, "step, s": train["seconds"] / each}, train),
        )
    if series.usable and now > workers * series.usable:
        yield Observation(f"the loader has {now} workers on {series.usable} cores", ("workers",))


RULE = Rule(
    detect,
    "warning",
    "set num_workers so, with persistent_workers=True and pin_memory=True for a device, or do costly "
    "transforms once and keep their results",
    source="profile",
)
