"""Steps that take far longer than the others.

Statistic: the seconds of training steps, without the first step and without the time of the Watch.
Default: at least 10 steps are above three times the median, and above the median by eight times the distance from the median
to the third quartile; together they cost more than a tenth of at least 30 s.
Why: SageMaker Debugger counts 10 outliers of more than three standard deviations, which the outliers themselves enlarge.  If
steps vary much, as on a machine that other programs keep busy, long steps are no outliers.
False alarms: checkpoints that are written between two calls of ``Watch.step``; accumulated batches.
"""

from ..finding import Observation, Observations, Rule
from .series import KINDS, Series, percentiles


def detect(
    series: Series,
    ratio: float = 3.0,
    spread: float = 8.0,
    outliers: float = 10.0,
    share: float = 0.1,
    seconds: float = 30.0,
) -> Observations:
    train = series.train
    total = float((train["seconds"] - train["loopwise"]).sum())
    if not len(train) or total < seconds:
        return
    count = train["count"]
    usual, quartile = percentiles((train["seconds"] - train["loopwise"]) / count, count, [50, 75])
    longest = train["longest"] - train["loopwise"]
    bound = max(ratio * usual, usual + spread * (quartile - usual))
    far = longest > bound
    lost = float((longest[far] - usual).sum())
    if far.sum() < outliers or lost <= share * total:
        return
    more = {
        kind: float((train[kind] - percentiles(train[kind] / count, count, [50])[0] * count)[far].sum())
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
    "look at that phase: a loader that stalls needs more workers or a larger prefetch_factor; shapes that change need "
    "padding or dynamic=True; checkpoints belong into a thread, and evaluations into a mode of their own (Watch.mode)",
    source="profile",
)
