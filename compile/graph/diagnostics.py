"""Translate Dynamo's reports of graph breaks and recompilations into the user's terms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..torch_internals import failed_guards, graph_breaks

JUMP = "a branch on a tensor's value: use torch.where, or decide outside of the step"
DRAW = "a random draw by NumPy: draw by torch, or in the data loader"
ITEM = "a tensor's value is read: keep the tensor, detached, and read it after the step"
OUT = "take this line out of the step"
SETTINGS = "torch._dynamo.config"
REST = "step_unsupported"
"""Dynamo's reason for a call whose inner frames hold the break; that break is reported by itself."""
TORCH = str(Path(torch.__file__).parent)


@contextlib.contextmanager
def collect_graph_breaks(texts: list[str]) -> Iterator[None]:
    """Append a text to ``texts`` for each graph break inside the context: the user's line and the reason, once each."""
    earlier = len(graph_breaks())
    try:
        yield
    finally:
        breaks = graph_breaks()[earlier:]
        causes = [(stack, reason) for stack, reason in breaks if reason != REST]
        for stack, reason in causes or breaks:
            text = f"{_place(stack)}: {_shortened(reason)}"
            if text not in texts:
                texts.append(text)


def recompilations() -> list[str]:
    """Return the guards that failed and caused recompilations in this process so far."""
    return [next(iter(reason.strip().splitlines()), "no reason given").strip() for reason in failed_guards()]


def _place(stack: Sequence[Any]) -> str:
    """Return file, line number and source of the innermost frame outside of torch."""
    if not stack:
        return "an unknown place"
    own = [frame for frame in stack if not frame.filename.startswith(TORCH)]
    frame = (own or stack)[-1]
    line = f" ({frame.line.strip()})" if frame.line else ""
    return f"{frame.filename}:{frame.lineno}{line}"


def _shortened(reason: str) -> str:
    """Return the cause of a graph break and a way to avoid it."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    if not lines or reason == REST:
        return f"no reason given: {OUT}"
    if lines[0].startswith(("generic_jump", "Data-dependent branching")):
        return JUMP
    if "use_numpy_random_stream" in reason:
        return DRAW
    if "Tensor.item()" in lines[0]:
        return ITEM
    if method := re.search(r"method: .*\.(\w+), args", reason) if "logging.Logger" in lines[0] else None:
        name = method[1]
        return f"a message by a logger: {OUT}, or have it left out: {SETTINGS}.ignore_logging_functions.add(logger.{name})"
    if printed := re.search(r"builtin(?: operator)? `(?:_warnings\.)?(print|warn)`", reason):
        name = {"warn": "warnings.warn"}.get(printed[1], printed[1])
        return f"a message by {name}: {OUT}, or have it come after the graph: {SETTINGS}.reorderable_logging_functions.add({name})"
    hints = [line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: ")]
    useful = [hint for hint in hints if "report an issue" not in hint and "file an issue" not in hint]
    return f"{lines[0]}. {useful[0]}" if useful else f"{lines[0]}: {OUT}"
