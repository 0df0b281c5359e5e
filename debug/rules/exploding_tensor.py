"""NaN and infinity in losses, weights, gradients or outputs.

Statistic: counts of NaN and of infinite values; losses themselves.  Default: any.  Gradients of a step that
GradScaler skipped are left out: there they are its way to find the scale.
Minus infinity in outputs is left out, for masks are made of it.
False alarms: none known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .finding import Observation, Rule
from .history import History


def detect(history: History, share: float = 0.0) -> Iterator[Observation]:
    now = history.now
    losses = tuple(name for name, value in now.scalars("losses").items() if not math.isfinite(value))
    if losses:
        evidence = {name: list(zip(*history.scalar(name), strict=True)) for name in losses}
        yield Observation(
            f"{', '.join(losses)} is not finite", losses, {n: p[-20:] for n, p in evidence.items()}
        )
    for kind in ("weight", "gradient", "output"):
        if kind == "gradient" and now.marks.get("skipped"):
            continue
        names, (nan, inf, high), shapes, _ = now.columns(kind, "nan", "inf", "max")
        if kind == "output":  # masks are of minus infinity
            inf = np.where(high == math.inf, inf, 0)
        sizes = np.array([max(1, math.prod(shape)) for shape in shapes])
        bad = np.flatnonzero((nan + inf) > share * sizes)
        if len(bad):
            found = tuple(names[i] for i in bad)
            yield Observation(
                f"{found[0]} and {len(found) - 1} more {kind}s have NaN or infinite values"
                if len(found) > 1
                else f"the {kind} {found[0]} has {int(nan[bad[0]])} NaN and {int(inf[bad[0]])} infinite values",
                tuple(f"{kind} {name}".strip() for name in found),
                history.evidence(kind, found, "nan"),
            )


RULE = Rule(
    detect,
    "critical",
    "lower the learning rate, clip gradients, or look for a division by zero, a logarithm of zero, or fp16 overflow",
)
