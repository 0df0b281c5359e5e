"""Tools for passes over Dynamo's captured graph: outcomes, refusals, reading and inserting nodes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...torch_internals import fake_mode_of

MUL = (operator.mul, torch.mul, "mul", "multiply")
DIV = (operator.truediv, torch.div, torch.true_divide, "div", "true_divide")
CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as")
SWAPS = ("transpose", "swapaxes", torch.transpose, torch.swapaxes)
PERMUTES = ("permute", torch.permute)
_WRITES = ("setitem", "iadd", "imul", "isub")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a pass at one place of the graph."""

    rewritten: bool
    place: str
    """Place of the call in the user's code, as "file:line"."""
    reason: str = ""
    """Reason of a refusal."""
    saved_bytes: int = 0
    """Size of the tensor that the step no longer makes."""
    name: str = ""
    """Name of the pass, a key of ``PASSES``."""


class Refused(Exception):
    """Signal that a pass does not rewrite a place; the text is the reason."""


def require(holds: bool, reason: str) -> None:
    """Refuse to rewrite the place unless the condition holds."""
    if not holds:
        raise Refused(reason)


def rewrite(
    gm: fx.GraphModule, matches: Callable[[fx.Node], bool], change: Callable[[fx.Node], int], name: str
) -> list[Outcome]:
    """Apply ``change`` to each matching node, and remove the nodes that become unused.

    Args:
        gm: Dynamo's captured graph.  It stays as it is if every place is refused.
        matches: returns whether a call of a function or method is a place to look at.
        change: rewrites the graph there and returns the bytes saved, or raises ``Refused``.
        name: name of the pass.

    Returns:
        One outcome for each matching node.
    """
    outcomes = []
    unused = {node for node in gm.graph.nodes if not node.users}
    for node in list(gm.graph.nodes):
        if node.op in ("call_function", "call_method") and matches(node):
            place = source_line(node)
            try:
                saved = change(node)
            except Refused as refusal:
                outcomes.append(Outcome(False, place, str(refusal), name=name))
            else:
                outcomes.append(Outcome(True, place, saved_bytes=saved, name=name))
    if any(outcome.rewritten for outcome in outcomes):
        # keep nodes that had no user before the pass: they have a side effect, such as BatchNorm's counter
        gm.graph.eliminate_dead_code(lambda node: node in unused or node.is_impure())
        gm.graph.lint()
        gm.recompile()
    return outcomes


def source_line(node: fx.Node) -> str:
    """Return file and line of the node's call in the user's code."""
    frames = re.findall(r'File "([^"]*)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else f"node {node.name}"


def value_of(node: Any) -> Tensor:
    """Return the fake tensor that Dynamo stored with a node; refuse the place if there is none."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    require(isinstance(value, Tensor), f"the shape of {node} is not known")
    assert isinstance(value, Tensor)
    return value


def is_tensor(node: Any) -> bool:
    """Return whether an argument is a node whose value is a tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("example_value"), Tensor)


def called_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def require_only_user(node: fx.Node, user: fx.Node, values: str) -> None:
    """Refuse the place unless ``user`` is the only user of ``node``; ``values`` names its values in the reason."""
    for other in node.users:
        place = "in the values that the graph returns" if other.op == "output" else f"at {source_line(other)}"
        require(other is user, f"the {values} are used elsewhere, {place}")


def require_unchanged(first: fx.Node, last: fx.Node, sources: set[fx.Node], ends: str) -> None:
    """Refuse the place if a node between ``first`` and ``last`` changes one of ``sources`` or the grad mode.

    The new operation stands at ``last`` and reads ``sources`` there; the original operation read them at ``first``.
    """
    node = first.next
    while node is not last:
        name = called_name(node)
        if node.op == "call_function" and name == "_set_grad_enabled":
            raise Refused(f"the grad mode changes between {ends}")
        writes = (name.endswith("_") and not name.endswith("__")) or name in _WRITES
        if writes and node.args and node.args[0] in sources:
            raise Refused(f"its input or parameters are written to, at {source_line(node)}")
        node = node.next


def factor_of(node: fx.Node) -> float:
    """Return the number by which a multiplication or division scales its tensor."""
    numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    fits = len(node.args) == 2 and len(numbers) == 1 and not node.kwargs
    first, times = isinstance(node.args[0], fx.Node), node.target in MUL
    require(
        fits and (first or times),
        f"{called_name(node)} does not have exactly one number as a factor, at {source_line(node)}",
    )
    require(times or numbers[0] != 0, "a division by 0")
    return float(numbers[0]) if times else 1 / numbers[0]


class Inserter:
    """Inserter of nodes next to ``place``, with the fake values that Dynamo would have stored with them."""

    def __init__(self, place: fx.Node, like: Tensor) -> None:
        self.place, self.like = place, like

    def __call__(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """Insert a call of the function ``target``, or of the method with that name."""
        graph = self.place.graph
        create = graph.call_method if isinstance(target, str) else graph.call_function
        node = create(target, args, options)
        node.meta = {k: v for k, v in self.place.meta.items() if k != "example_value"}
        node.meta["example_value"] = self._value(node)
        return node

    def _value(self, node: fx.Node) -> Any:
        """Compute the node's value on fake tensors."""
        args, options = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
        mode = fake_mode_of(self.like) or torch.no_grad()
        with mode, torch.set_grad_enabled(self.like.requires_grad):
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **options)
            assert callable(node.target)
            return node.target(*args, **options)
