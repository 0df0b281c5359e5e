"""A tensor whose variance collapses or grows beyond all bounds.

Statistic: variance of each tensor in a collection called ``variance``, over its own at the first saved step that has it:
``Collection("variance", include="attention.*output", keep=("std",))`` among the collections; raw tensors, those of ``watch.save`` too,
are measured here.
Default: less than a millionth or more than a million times as much.  ``least`` and ``most`` are bounds of the variance itself,
none by default.
Why: a millionth in variance is a thousandth in size; what trains changes by less than a hundred.
False alarms: tensors that begin with next to nothing, such as the output of a branch that is initialised with zeros.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from .arrays import memory
from .finding import Observation, Rule
from .history import WINDOW, History


def detect(
    history: History, ratio: float = 1e6, least: float = 0.0, most: float = math.inf
) -> Iterator[Observation]:
    kept = memory(history, "tensor_variance")
    for name, now in _variances(history).items():
        point = (history.now.number, now)
        (start, first), last = kept.setdefault(name, (point, deque(maxlen=WINDOW)))
        last.append(point)
        if not math.isfinite(now):
            continue  # exploding_tensor is about those
        if now < least or now > most or (first > 0 and not first / ratio <= now <= first * ratio):
            evidence = {name: [*([] if start == last[0][0] else [(start, first)]), *last]}
            yield Observation(f"the variance of {name} went from {first:.4g} to {now:.4g}", (name,), evidence)


def _variances(history: History) -> dict[str, float]:
    now = history.now
    found = {name: std**2 for name, std in now.of_collection("variance", "std").items()}
    for group in now.layout.groups:
        for name, *_ in group.get("tensors", ()) if group["collection"] == "variance" else ():
            tensor = now.tensor(name)
            if tensor is not None and tensor.numel() > 1:
                found[name] = float(tensor.double().var(correction=0))
    return found


RULE = Rule(
    detect,
    "warning",
    "look at the initialisation and normalisation of what makes it, and at the learning rate",
)
