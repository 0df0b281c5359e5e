"""Steps that take far longer than the others.

Statistic: seconds of training steps, without the first and without what the Watch takes, over their median, and what
is above it over the distance from the median to the third quartile.  Default: 10 steps or more above three times
the median and eight of these distances (SageMaker Debugger: 10 outliers of more than three standard deviations,
which outliers themselves make larger), that cost more than a tenth of at least 30 s.  Where steps vary
much, as on a machine that other programs keep busy, long ones are none.
False alarms: checkpoints that are written between two calls of ``Watch.step``; accumulated batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..finding import Observation, Rule
from .series import KINDS, Series, percentiles


def detect(
    series: Series,
    ratio: float = 3.0,
    spread: float = 8.0,
    outliers: float = 10.0,
    share: float = 0.1,
    seconds: float = 30.0,
) -> Iterator[Observation]:
    train = series.train
    total = float((train["seconds"] - train["loopwise"]).sum())
    if not len(train) or total < seconds:
        return
    each = train["count"]
    usual, quartile = percentiles((train["seconds"] - train["loopwise"]) / each, each, [50, 75])
    longest = train["longest"] - train["loopwise"]
    bound = max(ratio * usual, usual + spread * (quartile - usual))
    far = longest > bound
    lost = float((longest[far] - usual).sum())
    if far.sum() < outliers or lost <= share * total:
        return
    more = {
        kind: float((train[kind] - percentiles(train[kind] / each, each, [50])[0] * each)[far].sum())
        for kind in (*KINDS, "other")
    }
    yield Observation(
        f"{far.sum()} steps took more than {bound:.3g} s, with a median of {usual:.3g} s, {lost / total:.0%} of the "
        f"time in all, most of it in the phase {max(more, key=lambda kind: more[kind])!r}",
        (),
        series.points({"step, s": longest}, train),
    )


RULE = Rule(
    detect,
    "warning",
    "look at that phase: a loader that stalls wants workers and prefetch_factor, shapes that change a graph each "
    "(pad them, or dynamic=True), checkpoints and evaluation a thread of their own or a mode of their own (Watch.mode)",
    source="profile",
)
