"""What the trap says of a step that was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..monitors.monitor import Scalars
from ..rules import Finding, Observation, engine
from .calls import Call
from .origin import Origin

SHOWN = 8
"""Operations of a loss that are named at most."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A step whose loss or gradients are not finite.

    Attributes:
        step: over all modes.
        origin: where it began; ``None``: that was not found.
        calls: of the models in that step.
        talks: whether a model's forward pass talks to other ranks, so that it was not called again.
        box: the file that the batch is in; empty where it could not be written.
        failed: why the models could not be called again.
    """

    step: int
    origin: Origin | None
    calls: Sequence[Call]
    talks: bool
    box: str
    failed: str = ""


def finding(alarm: Alarm, losses: list[tuple[int, float]], scalars: Scalars) -> Finding:
    """The alarm as a finding, with the last losses; ``scalars`` are those of the step, with their graph."""
    origin = alarm.origin
    what = f"loss or gradients are not finite: {_why(alarm)}" if origin is None else str(origin)
    if (alarm.calls and not alarm.talks) if origin is None else origin.where == "loss":
        what += _operations(scalars)
    if any(call.changed for call in alarm.calls):
        what += "; an input was changed in place since"
    advice = "" if origin is None else origin.advice
    line = (origin.line if origin else "") or next((call.line for call in alarm.calls), "")
    tensors = (origin.module,) if origin is not None and origin.module else ()
    evidence = {"loss": losses} if losses else {}
    what += f"; the batch is in {alarm.box}" if alarm.box else "; the batch could not be written"
    seen = Observation(what, tensors, evidence, advice)
    return engine.make_finding("non_finite", seen, alarm.step, line=line)


def _why(alarm: Alarm) -> str:
    if alarm.talks:
        return "a model whose forward pass talks to other ranks is not called again"
    if alarm.failed:
        return f"calling the model again failed: {alarm.failed}"
    if not alarm.calls:
        return "the model was not called by itself, so it could not be called again"
    return "calling the model again gave finite values, so it began in the loss, in another rank, or in compiled code"


def _operations(scalars: Scalars) -> str:
    """Names in the graph of the losses, from the loss towards the model."""
    found: list[str] = []
    for name, value in scalars.items():
        node = value.grad_fn if isinstance(value, torch.Tensor) and "loss" in name else None
        while node is not None and len(found) < SHOWN:
            found.append(node.name().removesuffix("Backward0"))
            node = next((after for after, _ in node.next_functions if after is not None), None)
    return f" (its operations, backwards: {', '.join(found)})" if found else ""
