"""Translate Dynamo's reports of graph breaks and recompilations into the user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..torch_internals import failed_guards, graph_breaks

JUMP = "a branch on a tensor's value: use torch.where, or decide outside of the step"


@contextlib.contextmanager
def collect_graph_breaks(texts: list[str]) -> Iterator[None]:
    """Append a text to ``texts`` for each graph break inside the context: the user's line and the reason, once each."""
    earlier = len(graph_breaks())
    try:
        yield
    finally:
        for stack, reason in graph_breaks()[earlier:]:
            text = f"{_place(stack)}: {_shortened(reason)}"
            if text not in texts:
                texts.append(text)


def recompilations() -> list[str]:
    """Return the guards that failed and caused recompilations in this process so far."""
    return [_shortened(reason) for reason in failed_guards()]


def _place(stack: Sequence[Any]) -> str:
    """Return file, line number and source of the innermost frame of a stack."""
    if not stack:
        return "an unknown place"
    frame = stack[-1]
    line = f" ({frame.line.strip()})" if frame.line else ""
    return f"{frame.filename}:{frame.lineno}{line}"


def _shortened(reason: str) -> str:
    """Return the cause of a graph break, and the first hint how to avoid it."""
    if reason.startswith("generic_jump"):
        return JUMP
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    hints = [re.sub(r"^Hint: ", "", line) for line in lines if line.startswith("Hint: ")]
    return f"{lines[0]}. {hints[0]}" if hints else lines[0] if lines else "no reason given"
