"""Steps that take far longer than the others.

Statistic: seconds of training steps, without the first and without what the Watch takes, over their median.  Default: 10
steps or more above three times the median (SageMaker Debugger: 10 outliers of more than three standard
deviations, which they raise themselves), that cost more than a tenth of at least 30 s.
False alarms: checkpoints that are written between two calls of ``Watch.step``; accumulated batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...rules.finding import Rule, Seen
from ..phases import KINDS
from ..series import Series, percentiles


def check(
    series: Series, ratio: float = 3.0, outliers: float = 10.0, share: float = 0.1, seconds: float = 30.0
) -> Iterator[Seen]:
    train = series.train
    total = float((train["seconds"] - train["loopwise"]).sum())
    if not len(train) or total < seconds:
        return
    each = train["count"]
    usual = percentiles((train["seconds"] - train["loopwise"]) / each, each, [50])[0]
    longest = train["longest"] - train["loopwise"]
    far = longest > ratio * usual
    lost = float((longest[far] - usual).sum())
    if far.sum() < outliers or lost <= share * total:
        return
    more = {
        kind: float((train[kind] - percentiles(train[kind] / each, each, [50])[0] * each)[far].sum())
        for kind in (*KINDS, "other")
    }
    yield Seen(
        f"{far.sum()} steps took more than {ratio:g} times the median of {usual:.3g} s, {lost / total:.0%} of the "
        f"time in all, most of it in the phase {max(more, key=lambda kind: more[kind])!r}",
        (),
        series.points({"step, s": longest}, train),
    )


RULE = Rule(
    check,
    "warning",
    "look at that phase: a loader that stalls wants workers and prefetch_factor, shapes that change a graph each "
    "(pad them, or dynamic=True), checkpoints and evaluation a thread of their own or a mode of their own (Watch.mode)",
)
