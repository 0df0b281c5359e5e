"""NaN or infinity in losses, weights, gradients or outputs.

Statistic: numbers of NaN and infinite values, and the losses themselves.  Gradients of a step that GradScaler skipped do
not count, because they are how it finds its scale; nor does minus infinity in outputs, because masks consist of it.
Default: any.  ``share`` is the largest share of a tensor's elements that may be so; any such loss counts.
Why: the next update spreads NaN to all weights.
False alarms: none known.
"""

import math

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History, sizes, some


def detect(history: History, share: float = 0.0) -> Observations:
    now = history.now
    losses = tuple(name for name, value in now.scalars("losses").items() if not math.isfinite(value))
    if losses:
        evidence = {name: list(zip(*history.scalar(name), strict=True)) for name in losses}
        yield Observation(f"{some(losses)} is not finite", losses, {n: p[-20:] for n, p in evidence.items()})
    for kind in () if now.layout.is_of_scalars else ("weight", "gradient", "output"):
        if kind == "gradient" and now.marks.get("skipped"):
            continue
        columns = now.columns(kind, "nan", "inf", "max")
        nan, inf, high = columns.values
        if kind == "output":  # masks consist of minus infinity
            inf = np.where(high == math.inf, inf, 0)
        bad = np.flatnonzero((nan + inf) > share * sizes(columns))
        if len(bad):
            bad_names = tuple(columns.names[i] for i in bad)
            yield Observation(
                f"{kind}s have NaN or infinite values: {some(bad_names)}"
                if len(bad_names) > 1
                else f"the {kind} {bad_names[0]} has {int(nan[bad[0]])} NaN and {int(inf[bad[0]])} infinite values",
                tuple(f"{kind} {name}".strip() for name in bad_names),
                history.evidence(kind, bad_names, "nan"),
            )


RULE = Rule(
    detect,
    "critical",
    "lower the learning rate, clip gradients, or look for a division by zero, a logarithm of zero, or fp16 overflow",
    scalars=True,
)
