"""Linear layer and cross entropy become one chunked operator, in the graph that Dynamo gives to a backend.

The pass walks from each ``F.cross_entropy`` up to the linear layer that made its logits, and notes what it
meets: the scale, the soft cap, and the views and slices of rows, which it repeats on the linear's input.  What it
does not know, or what needs the logits for something else, is refused with the reason.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from ..loss_head import linear_cross_entropy_op

LINEARS = (F.linear, torch._C._nn.linear)
MUL = (operator.mul, torch.mul, "mul", "multiply")
DIV = (operator.truediv, torch.div, torch.true_divide, "div", "true_divide")
TANH = (torch.tanh, "tanh")
VIEWS = ("view", "reshape", torch.reshape)
CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as")
SAME = ("contiguous", "clone", torch.clone)
SWAPS = ("transpose", "swapaxes", torch.transpose, torch.swapaxes)
PERMUTES = ("permute", torch.permute)
ARGUMENTS = (
    "input",
    "target",
    "weight",
    "size_average",
    "ignore_index",
    "reduce",
    "reduction",
    "label_smoothing",
)
"""Of ``F.cross_entropy``, in its order."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one cross entropy."""

    rewritten: bool
    where: str
    """The call in the user's code, as "file:line"."""
    why: str = ""
    """Reason of a refusal."""
    saved_bytes: int = 0
    """Size of the logits that are not made."""


class _Refused(Exception):
    """This cross entropy stays; the reason is the text."""


@dataclass(slots=True)
class _Chain:
    """What lies between the linear layer and the loss, read from the loss up."""

    linear: fx.Node
    scale: float = 1.0
    """Factor before the soft cap."""
    cap: float | None = None
    """Factor after tanh; None: there is no tanh."""
    rows: list[fx.Node] = field(default_factory=list)
    """Views and slices of rows, the first one first."""


def loss_head(gm: fx.GraphModule, at_least: int = 0) -> list[Outcome]:
    """Rewrite in place each linear layer with cross entropy into ``linear_cross_entropy``, where that is safe.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.
        at_least: bytes of logits under which a loss head stays as it is.

    Returns:
        One outcome for each cross entropy of the graph; the graph is as it was where none is rewritten.
    """
    outcomes = []
    unused = {node for node in gm.graph.nodes if not node.users}
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target is F.cross_entropy:
            try:
                saved = _rewrite(node, at_least)
            except _Refused as refusal:
                outcomes.append(Outcome(False, _where(node), str(refusal)))
            else:
                outcomes.append(Outcome(True, _where(node), saved_bytes=saved))
    if any(outcome.rewritten for outcome in outcomes):
        # what nothing used before is there for its effect, as BatchNorm's count of batches is
        gm.graph.eliminate_dead_code(lambda node: node in unused or node.is_impure())
        gm.graph.lint()
        gm.recompile()
    return outcomes


def _where(node: fx.Node) -> str:
    frames = re.findall(r'File "([^"]*)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else f"node {node.name}"


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise _Refused(why)


def _value(node: Any) -> Tensor:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    _require(isinstance(value, Tensor), f"the shape of {node} is not known")
    assert isinstance(value, Tensor)
    return value


def _rewrite(loss: fx.Node, at_least: int) -> int:
    """Put the operator in the place of ``loss``; the bytes of the logits."""
    arguments = dict(zip(ARGUMENTS, loss.args, strict=False)) | loss.kwargs
    chain = _chain(loss, arguments["input"])
    _check_loss(arguments)
    _check_between(chain.linear, loss)
    logits = _value(chain.linear)
    saved = math.prod(_hint(size) for size in logits.shape) * logits.element_size()
    _require(saved >= at_least, f"the logits take {saved:,} bytes, under the threshold of {at_least:,}")
    _replace(loss, chain, arguments)
    return saved


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(getattr(size.node, "hint", 0) or 0)


def _check_loss(arguments: dict[str, Any]) -> None:
    deprecated = arguments.get("size_average") is None and arguments.get("reduce") is None
    _require(deprecated, "size_average and reduce are deprecated: use reduction")
    target, weight = _value(arguments["target"]), arguments.get("weight")
    _require(not target.is_floating_point(), "the targets are probabilities, not classes")
    _require(target.dtype == torch.int64, f"the targets are {target.dtype}, not torch.int64")
    same = target.dim() == _value(arguments["input"]).dim() - 1
    _require(same, "the targets' shape is not that of the logits without the classes")
    _require(weight is None or not _value(weight).requires_grad, "the class weights require a gradient")
    plain = all(
        not isinstance(arguments.get(n), fx.Node) for n in ("ignore_index", "reduction", "label_smoothing")
    )
    _require(plain, "an option of cross_entropy is computed in the graph")


def _check_between(linear: fx.Node, loss: fx.Node) -> None:
    """The operator runs where the loss ran: nothing on the way there may change what the linear layer read."""
    sources, node = set(linear.all_input_nodes), linear.next
    while node is not loss:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op == "call_function" and name == "_set_grad_enabled":
            raise _Refused("the grad mode changes between the linear layer and the loss")
        writes = (name.endswith("_") and not name.endswith("__")) or name in (
            "setitem",
            "iadd",
            "imul",
            "isub",
        )
        if writes and node.args and node.args[0] in sources:
            raise _Refused(f"the linear layer's input or parameters are written to, at {_where(node)}")
        node = node.next


def _chain(loss: fx.Node, logits: Any) -> _Chain:
    """Walk from the loss up to its linear layer."""
    classes_last = _value(logits).dim() <= 2
    chain, below, node = _Chain(logits), loss, logits
    while node.op not in ("call_function", "call_method") or node.target not in LINEARS:
        _check_users(node, below)
        _require(
            node.op in ("call_function", "call_method"), f"the logits come from {node}, not a linear layer"
        )
        if not classes_last and _moves_classes(node):
            classes_last = True
        elif node.target in (*VIEWS, "flatten", torch.flatten, operator.getitem):
            _require(classes_last, "the classes are not the last dimension of the linear layer's output")
            _check_rows(node)
            chain.rows.insert(0, node)
        else:
            _step(chain, node)
        below, node = node, _upstream(node)
    _check_users(node, below)
    _require(classes_last, "the classes are not the last dimension of the linear layer's output")
    chain.linear = node
    return chain


def _check_users(node: fx.Node, below: fx.Node) -> None:
    for user in node.users:
        place = "in what the graph returns" if user.op == "output" else f"at {_where(user)}"
        _require(user is below, f"the logits are used elsewhere, {place}")


def _upstream(node: fx.Node) -> fx.Node:
    """The logits among a known operation's arguments: the other ones are numbers, shapes and indices."""
    tensors = [
        a for a in node.args[:2] if isinstance(a, fx.Node) and isinstance(a.meta.get("example_value"), Tensor)
    ]
    _require(bool(tensors), f"{_called(node)} lies between the linear layer and the loss")
    return tensors[0]


def _called(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _step(chain: _Chain, node: fx.Node) -> None:
    """Take over an operation on each logit."""
    target = node.target
    if target in SAME:
        return
    if target in CASTS:
        new, old = _value(node), _value(_upstream(node))
        kept = new.is_floating_point() and new.device == old.device
        _require(
            kept and new.dtype != torch.float64, f"the logits are cast by {_called(node)} to {new.dtype}"
        )
    elif target in TANH:
        _require(chain.cap is None, "there is more than one tanh between the linear layer and the loss")
        chain.cap, chain.scale = chain.scale, 1.0
        _require(chain.cap > 0, f"tanh is multiplied by {chain.cap}")
    elif target in MUL or target in DIV:
        numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        fits = len(node.args) == 2 and len(numbers) == 1 and not node.kwargs
        first = isinstance(node.args[0], fx.Node)
        _require(fits and (first or target in MUL), f"{_called(node)} of the logits is not by a number")
        _require(target in MUL or numbers[0] != 0, "the logits are divided by 0")
        chain.scale *= numbers[0] if target in MUL else 1 / numbers[0]
    else:
        raise _Refused(f"{_called(node)} lies between the linear layer and the loss, at {_where(node)}")


def _moves_classes(node: fx.Node) -> bool:
    """Whether it moves the last dimension to place 1, where cross_entropy looks for the classes."""
    n, sizes = _value(node).dim(), node.args[1:]
    if node.kwargs:
        return False
    if node.target in SWAPS and n == 3:
        return all(isinstance(i, int) for i in sizes) and {i % n for i in sizes if isinstance(i, int)} == {
            1,
            2,
        }
    if node.target in PERMUTES:
        order = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        return [i % n if isinstance(i, int) else None for i in order] == [0, n - 1, *range(1, n - 1)]
    return False


def _check_rows(node: fx.Node) -> None:
    """Views and slices must leave the classes whole, last and in order."""
    before, after = _value(_upstream(node)), _value(node)
    whole, index = after.dim() > 0 and after.shape[-1] == before.shape[-1], node.args[1:]
    if node.target is operator.getitem:
        items = index[0] if isinstance(index[0], tuple) else (index[0],)
        simple = all(item is ... or item is None or isinstance(item, (int, slice)) for item in items)
        _require(simple, "rows of the logits are picked by a tensor")
        named = len([item for item in items if item is not ... and item is not None])
        full = (slice(None), slice(0, None), slice(None, None, 1), slice(0, None, 1))
        last = items[-1] is not ... and (... in items or named == before.dim())
        whole = whole and (not last or items[-1] in full)
    elif node.target in VIEWS:
        sizes = _sizes(node)
        whole = whole and not node.kwargs and all(isinstance(size, (int, fx.Node)) for size in sizes)
    else:
        end = index[1] if len(index) > 1 else node.kwargs.get("end_dim", -1)
        whole = whole and isinstance(end, int) and end % before.dim() != before.dim() - 1
    _require(whole, f"{_called(node)} cuts or mixes the classes, at {_where(node)}")


def _sizes(node: fx.Node) -> list[Any]:
    sizes = node.args[1:]
    return list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)


def _replace(loss: fx.Node, chain: _Chain, arguments: dict[str, Any]) -> None:
    """Insert the operator before ``loss`` and give it the users of it."""
    names = ("input", "weight", "bias")
    parts = dict.fromkeys(names) | dict(zip(names, chain.linear.args, strict=False)) | chain.linear.kwargs
    logits, graph = _value(chain.linear), loss.graph
    needs = [p is not None and logits.requires_grad and _value(p).requires_grad for p in parts.values()]
    smoothing, reduction = arguments.get("label_smoothing", 0.0), arguments.get("reduction", "mean")
    scale, cap = (chain.scale, None) if chain.cap is None else (chain.scale * chain.cap, chain.cap)

    def put(create: Callable[..., fx.Node], target: Any, *args: Any) -> fx.Node:
        node = create(target, args)
        node.meta = {k: v for k, v in loss.meta.items() if k != "example_value"}
        node.meta["example_value"] = _example(node, logits)
        return node

    with graph.inserting_before(loss):
        method, function = graph.call_method, graph.call_function
        # the linear layer's dtype is autocast's where it ran under autocast
        x, weight, bias = (
            p if p is None or _value(p).dtype == logits.dtype else put(method, "to", p, logits.dtype)
            for p in (parts[name] for name in names)
        )
        features = _value(weight).shape[1]
        if not isinstance(features, int):
            features = put(method, "size", weight, 1)
        for node in chain.rows:
            if node.target in VIEWS:
                x = put(method, "reshape", x, (*_sizes(node)[:-1], features))
            elif node.target is operator.getitem:
                x = put(function, operator.getitem, x, node.args[1])
            else:
                x = put(method, "flatten", x, *node.args[1:], *node.kwargs.values())
        x, target = (
            put(method, "reshape", x, (-1, features)),
            put(method, "reshape", arguments["target"], (-1,)),
        )
        ignored = arguments.get("ignore_index", -100)
        options = (ignored, float(smoothing), reduction, float(scale), cap, 0.0, 0, needs)
        operands = (x, weight, target, bias, arguments.get("weight"), *options)
        made = put(function, linear_cross_entropy_op._opoverload, *operands)
        result = put(function, operator.getitem, made, 0)
        if reduction == "none":
            result = put(method, "view_as", result, arguments["target"])
        if _value(result).dtype != _value(loss).dtype:
            result = put(method, "to", result, _value(loss).dtype)
    loss.replace_all_uses_with(result)
    graph.erase_node(loss)


def _example(node: fx.Node, logits: Tensor) -> Any:
    """The node's value among fake tensors, as Dynamo would have noted it."""
    args = fx.node.map_arg(node.args, lambda n: n.meta["example_value"])
    mode = logits.fake_mode if isinstance(logits, FakeTensor) else torch.no_grad()
    with mode, torch.set_grad_enabled(logits.requires_grad):
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:])
        assert callable(node.target)
        return node.target(*args)
