"""Verdict about a situation: our step beside the usual loop, within the budget of nudged runs of that loop."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .situation import EAGER, NUDGED, OURS, SITUATIONS, Run, plans

MARGIN = 4.0
"""Our step may be this many times further from the usual loop than the furthest nudged run is."""
SLACK = 16.0
"""Units in the last place that a tensor may be off beside that."""
NUDGES = 3
"""Nudged runs of a situation."""
VERDICTS = ("equal", "eager", "refused", "SILENT", "WRONG", "CRASH")
"""Trained by a compiled step as in the usual loop; eagerly, with a message; an ``InputError`` before anything was
trained; eagerly, without a message; otherwise than in the usual loop; another error than in the usual loop."""
GOOD = VERDICTS[:3]


@dataclass(frozen=True)
class Verdict:
    """Result of one situation."""

    name: str
    verdict: str
    """One of ``VERDICTS``."""
    distance: float = 0.0
    """Distance of the worst tensor, relative to the way that training moved it."""
    budget: float = 0.0
    """Allowed distance of that tensor."""
    plan: str = ""
    message: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in GOOD


def judge(name: str) -> Verdict:
    """Train a situation by the usual loop, by nudged ones and by our step, and compare."""
    from loopwise.errors import InputError

    case = SITUATIONS[name]
    usual = _trained(name, Run(EAGER))
    nudged = [_trained(name, Run(NUDGED, seed=seed)) for seed in range(NUDGES)]
    run = Run(OURS, plans()[case.plan])
    torch._dynamo.reset()
    with own_cache(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ours = _trained(name, run)
        except InputError as error:
            trained = "refused" if not run.losses else "CRASH"
            return Verdict(name, trained, message=str(error).splitlines()[0])
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]} at {where.filename}:{where.lineno}"
            return Verdict(name, "CRASH", message=text)
    messages = [str(w.message) for w in caught if "loopwise" in str(w.message)]
    worst, distance, budget = compare(ours.result(), usual, [other.result() for other in nudged])
    plan, eager, said = _plan(ours, messages)
    asked = "eager" not in str(case.plan)
    if not distance <= budget:
        return Verdict(name, "WRONG", distance, budget, plan, f"{worst}; {said}"[:300])
    if eager and asked:
        return Verdict(name, "eager" if said else "SILENT", distance, budget, plan, said)
    return Verdict(name, "equal", distance, budget, plan, said)


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """Keep plans in an empty folder, so that no situation recalls the plan of another."""
    before = os.environ.get("LOOPWISE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOOPWISE_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("LOOPWISE_CACHE")
            if before is not None:
                os.environ["LOOPWISE_CACHE"] = before


def _trained(name: str, run: Run) -> Run:
    """Return the run after training; what the situation prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        SITUATIONS[name].train(run)
    return run


def _plan(run: Run, messages: list[str]) -> tuple[str, bool, str]:
    """Return the plans in use, whether a step trains eagerly, and what it says about that."""
    plans_, eager = [], False
    for step in run.steps:
        plan = step.plan
        plans_.append(str(plan))
        if plan is not None and plan.graph == "eager" and plan.layout == "as_is":
            eager = True
            explanation = step.explain()
            refused = [
                row["verdict"] for row in explanation.rows if row["verdict"] not in ("chosen", "not timed")
            ]
            reasons = [remark for remark in explanation.remarks if not remark.startswith("finding it took")]
            messages = [*messages, *refused, *reasons]
    return ", ".join(dict.fromkeys([*plans_, *run.ways])), eager, messages[0] if messages else ""


def compare(ours: dict[str, Any], usual: Run, nudged: list[dict[str, Any]]) -> tuple[str, float, float]:
    """Return the name, the distance and the budget of the value that is furthest over its budget."""
    expected, start = usual.result(), usual.start
    if missing := set(ours) ^ set(expected):
        return f"{min(missing)} is in one of both only", math.inf, 0.0
    worst = ("", 0.0, 0.0)
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor):
            if ours[name] != value:
                return f"{name} is {ours[name]!r} instead of {value!r}", math.inf, 0.0
            continue
        distance = _distance(ours[name], value, start.get(name))
        apart = [_distance(other[name], value, start.get(name)) for other in nudged]
        budget = MARGIN * max(apart) + SLACK * _unit(value, start.get(name))
        if _ratio(distance, budget) > _ratio(worst[1], worst[2]) or not worst[0]:
            worst = (name, distance, budget)
    return worst


def _ratio(distance: float, budget: float) -> float:
    if math.isnan(distance):
        return math.inf
    return distance / budget if budget else (math.inf if distance else 0.0)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, its values that are not finite as 0."""
    tensor = tensor.detach().masked_fill(~tensor.detach().isfinite(), 0)
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _moved(end: torch.Tensor, start: torch.Tensor | None) -> float:
    """Return how far training moved a tensor, or its size if it did not."""
    moved = 0.0
    if start is not None and start.shape == end.shape:
        moved = float((_wide(end) - _wide(start)).norm())
    return moved or float(_wide(end).norm())


def _distance(a: torch.Tensor, b: torch.Tensor, start: torch.Tensor | None) -> float:
    """Return the distance of two trained tensors relative to the movement of ``b``."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not torch.equal(a.isfinite(), b.isfinite()):
        return math.inf
    apart = float((_wide(a) - _wide(b)).norm())
    return apart / (_moved(b, start) or 1.0)


def _unit(end: torch.Tensor, start: torch.Tensor | None) -> float:
    """Return a unit in the last place of a tensor relative to its movement."""
    if not (end.is_floating_point() or end.is_complex()):
        return 0.0
    moved = _moved(end, start)
    return torch.finfo(end.dtype).eps * float(_wide(end).norm()) / moved if moved else 0.0
