"""What Dynamo says about graph breaks and recompilations, in the user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch._dynamo.utils as dynamo


@contextlib.contextmanager
def listening(breaks: list[str]) -> Iterator[None]:
    """Append to ``breaks`` each graph break that happens inside, once: the user's line, and Dynamo's reason."""
    before = len(dynamo.graph_break_reasons)
    try:
        yield
    finally:
        for reason in dynamo.graph_break_reasons[before:]:
            text = f"{_place(reason.user_stack)}: {_first(reason.reason)}"
            if text not in breaks:
                breaks.append(text)


def _place(stack: list) -> str:  # type: ignore[type-arg]  # FrameSummary, of traceback
    if not stack:
        return "a place that is not known"
    frame = stack[-1]
    line = f" ({frame.line.strip()})" if frame.line else ""
    return f"{frame.filename}:{frame.lineno}{line}"


JUMP = "a branch on a tensor's value: use torch.where, or decide outside of the step"


def _first(reason: str) -> str:
    """What happened, and the first hint how to avoid it."""
    if reason.startswith("generic_jump"):
        return JUMP
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    hints = [re.sub(r"^Hint: ", "", line) for line in lines if line.startswith("Hint: ")]
    return f"{lines[0]}. {hints[0]}" if hints else lines[0] if lines else "no reason given"


def recompilations() -> list[str]:
    """The guards that failed and caused recompilations in this process so far."""
    found = [str(reason) for reasons in dynamo.guard_failures.values() for reason in reasons]
    return [_first(reason) for reason in found]
