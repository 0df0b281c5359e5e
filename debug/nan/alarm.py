"""Alarms of the NaN trap, and their findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..monitors.monitor import Scalars
from ..rules import Finding, Observation
from ..rules.engine import make_finding
from .calls import Call
from .origin import AT_OUTPUT, Origin

SHOWN = 8
"""Largest number of operations of a loss that a finding names."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A step whose loss or gradients are not finite.

    Attributes:
        step: number of the step, over all modes.
        origin: the operation that made the first value that is not finite; ``None`` if the replay did not show it.
        calls: calls of the models in that step.
        communicates: whether a model's forward pass communicates with other ranks, so that it was not replayed.
        box: path of the black box; empty if it could not be written.
        failed: error of the replay; empty if the replay did not fail.
    """

    step: int
    origin: Origin | None
    calls: Sequence[Call]
    communicates: bool
    box: str
    failed: str = ""


def finding_of(alarm: Alarm, losses: list[tuple[int, float]], scalars: Scalars) -> Finding:
    """Return the finding of an alarm.

    Args:
        alarm: the alarm.
        losses: the last losses, as pairs of step and value.
        scalars: losses of the step, with their autograd graph.
    """
    origin = alarm.origin
    what = f"loss or gradients are not finite: {_why(alarm)}" if origin is None else str(origin)
    is_unknown = origin is None or (origin.where == "loss" and origin.operation == AT_OUTPUT)
    if is_unknown and alarm.calls and not alarm.communicates:
        what += _operations(scalars)
    if any(call.changed for call in alarm.calls):
        what += "; an input was changed in place after the call"
    line = (origin.line if origin else "") or next((call.line for call in alarm.calls), "")
    what += f"; the batch is in {alarm.box}" if alarm.box else "; the batch could not be written"
    seen = Observation(
        what,
        (origin.module,) if origin is not None and origin.module else (),
        {"loss": losses} if losses else {},
        "" if origin is None else origin.advice,
    )
    return make_finding("non_finite", seen, alarm.step, line=line)


def _why(alarm: Alarm) -> str:
    if alarm.communicates:
        return "the model is not called again, because its forward pass communicates with other ranks"
    if alarm.failed:
        return f"calling the model again failed: {alarm.failed}"
    if not alarm.calls:
        return "no call of the model was recorded, so the model could not be called again"
    return (
        "the model gave finite values when it was called again, so the first bad value comes from the loss, "
        "another rank, or compiled code"
    )


def _operations(scalars: Scalars) -> str:
    """Return the names of the operations in the graph of the losses, from the loss towards the model."""
    operations: list[str] = []
    for name, value in scalars.items():
        node = value.grad_fn if isinstance(value, torch.Tensor) and "loss" in name else None
        while node is not None and len(operations) < SHOWN:
            operations.append(node.name().removesuffix("Backward0"))
            node = next((after for after, _ in node.next_functions if after is not None), None)
    return f" (its operations, backwards: {', '.join(operations)})" if operations else ""
