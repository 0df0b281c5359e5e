"""What passes over Dynamo's captured graph have in common: outcomes, refusals, reading and inserting nodes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

MUL = (operator.mul, torch.mul, "mul", "multiply")
DIV = (operator.truediv, torch.div, torch.true_divide, "div", "true_divide")
CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as")
SWAPS = ("transpose", "swapaxes", torch.transpose, torch.swapaxes)
PERMUTES = ("permute", torch.permute)
_WRITES = ("setitem", "iadd", "imul", "isub")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one place that a pass looked at."""

    rewritten: bool
    where: str
    """The call in the user's code, as "file:line"."""
    why: str = ""
    """Reason of a refusal."""
    saved_bytes: int = 0
    """Size of the tensor that is not made any more."""
    what: str = ""
    """The pass, in words."""


class Refused(Exception):
    """This place stays as it is; the reason is the text."""


def require(holds: bool, why: str) -> None:
    if not holds:
        raise Refused(why)


def rewrite(
    gm: fx.GraphModule, found: Callable[[fx.Node], bool], change: Callable[[fx.Node], int], what: str
) -> list[Outcome]:
    """Apply ``change`` to each node that is ``found``; what is unused thereby is removed.

    Args:
        gm: Dynamo's captured graph; it is as it was where everything is refused.
        found: whether a call of a function or method is a place to look at.
        change: rewrites there and returns the bytes saved, or raises ``Refused``.
        what: the pass, in words.
    """
    outcomes = []
    unused = {node for node in gm.graph.nodes if not node.users}
    for node in list(gm.graph.nodes):
        if node.op in ("call_function", "call_method") and found(node):
            place = where(node)
            try:
                saved = change(node)
            except Refused as refusal:
                outcomes.append(Outcome(False, place, str(refusal), what=what))
            else:
                outcomes.append(Outcome(True, place, saved_bytes=saved, what=what))
    if any(outcome.rewritten for outcome in outcomes):
        # what nothing used before is there for its effect, as BatchNorm's count of batches is
        gm.graph.eliminate_dead_code(lambda node: node in unused or node.is_impure())
        gm.graph.lint()
        gm.recompile()
    return outcomes


def where(node: fx.Node) -> str:
    """The call in the user's code."""
    frames = re.findall(r'File "([^"]*)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else f"node {node.name}"


def value_of(node: Any) -> Tensor:
    """The fake tensor that Dynamo noted for a node."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    require(isinstance(value, Tensor), f"the shape of {node} is not known")
    assert isinstance(value, Tensor)
    return value


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("example_value"), Tensor)


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def check_users(node: fx.Node, below: fx.Node, what: str) -> None:
    """``below`` must be the only user of ``node``, which makes ``what``."""
    for user in node.users:
        place = "in what the graph returns" if user.op == "output" else f"at {where(user)}"
        require(user is below, f"the {what} are used elsewhere, {place}")


def check_between(first: fx.Node, last: fx.Node, sources: set[fx.Node], what: str) -> None:
    """What runs at ``last`` read ``sources`` at ``first`` before: nothing between may change them."""
    node = first.next
    while node is not last:
        name = called(node)
        if node.op == "call_function" and name == "_set_grad_enabled":
            raise Refused(f"the grad mode changes between {what}")
        writes = (name.endswith("_") and not name.endswith("__")) or name in _WRITES
        if writes and node.args and node.args[0] in sources:
            raise Refused(f"its input or parameters are written to, at {where(node)}")
        node = node.next


def number_of(node: fx.Node) -> float:
    """The factor by which a multiplication or division by a number multiplies its tensor."""
    numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    fits = len(node.args) == 2 and len(numbers) == 1 and not node.kwargs
    first, times = isinstance(node.args[0], fx.Node), node.target in MUL
    require(fits and (first or times), f"{called(node)} is not by a number, at {where(node)}")
    require(times or numbers[0] != 0, "a division by 0")
    return float(numbers[0]) if times else 1 / numbers[0]


class Put:
    """Inserts nodes beside ``place``, as if Dynamo had captured them there."""

    def __init__(self, place: fx.Node, like: Tensor) -> None:
        self.place, self.like = place, like

    def __call__(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """A call of a function, or of a method where ``target`` is its name."""
        graph = self.place.graph
        create = graph.call_method if isinstance(target, str) else graph.call_function
        node = create(target, args, options)
        node.meta = {k: v for k, v in self.place.meta.items() if k != "example_value"}
        node.meta["example_value"] = self._example(node)
        return node

    def _example(self, node: fx.Node) -> Any:
        """The node's value among fake tensors, as Dynamo would have noted it."""
        args, options = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["example_value"])
        mode = self.like.fake_mode if isinstance(self.like, FakeTensor) else torch.no_grad()
        with mode, torch.set_grad_enabled(self.like.requires_grad):
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **options)
            assert callable(node.target)
            return node.target(*args, **options)
