"""A tensor whose variance collapses or grows without bounds.

Statistic: the variance of each tensor in a collection called ``variance``, over its variance at the first saved step:
``Collection("variance", include="attention.*output", statistics=("std",))`` among the collections.  Raw tensors, also those
of ``watch.save``, are measured by the rule.
Default: less than a millionth or more than a million.  ``least`` and ``most`` are bounds of the variance itself, without a
default.
Why: a millionth in variance is a thousandth in size; tensors of a training change by less than a factor of a hundred.
False alarms: tensors that begin near zero, such as the output of a branch that is initialized with zeros.
"""

import math
from collections import deque

from .arrays import memory
from .finding import Observation, Observations, Rule
from .history import WINDOW, History


def detect(history: History, ratio: float = 1e6, least: float = 0.0, most: float = math.inf) -> Observations:
    kept = memory(history, "tensor_variance")
    for name, now in _variances(history).items():
        point = (history.now.number, now)
        (start, first), last = kept.setdefault(name, (point, deque(maxlen=WINDOW)))
        last.append(point)
        if not math.isfinite(now):
            continue  # exploding_tensor reports those
        if now < least or now > most or (first > 0 and not first / ratio <= now <= first * ratio):
            evidence = {name: [*([] if start == last[0][0] else [(start, first)]), *last]}
            yield Observation(f"the variance of {name} went from {first:.4g} to {now:.4g}", (name,), evidence)


def _variances(history: History) -> dict[str, float]:
    now = history.now
    variances = {name: std**2 for name, std in now.of_collection("variance", "std").items()}
    for group in now.layout.groups:
        for name, *_ in group.get("tensors", ()) if group["collection"] == "variance" else ():
            tensor = now.tensor(name)
            if tensor is not None and tensor.numel() > 1:
                variances[name] = float(tensor.double().var(correction=0))
    return variances


RULE = Rule(
    detect,
    "warning",
    "look at the initialization and normalization of the layers before it, and at the learning rate",
)
