"""Pass that replaces a linear layer and cross entropy by one operator, which never holds a whole batch's logits.

The pass walks from each ``F.cross_entropy`` up to the linear layer that made its logits.  It notes the operations on
the way: the scale, the soft cap, and the views and slices of rows, which it repeats on the input of the linear layer.
It refuses, with the reason, a loss head with an unknown operation, or with another user of its logits.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ...torch_internals import linear_functions
from .rewriting import (
    CASTS,
    DIV,
    MUL,
    PERMUTES,
    SWAPS,
    Inserter,
    Outcome,
    Refused,
    called_name,
    factor_of,
    is_tensor,
    require,
    require_only_user,
    require_unchanged,
    rewrite,
    source_line,
    value_of,
)

LINEARS = linear_functions()
TANH = (torch.tanh, "tanh")
VIEWS = ("view", "reshape", torch.reshape)
SAME = ("contiguous", "clone", torch.clone)
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
"""Arguments of ``F.cross_entropy``, in its order."""


@dataclass(slots=True)
class _Chain:
    """Operations between the linear layer and the loss."""

    linear: fx.Node
    scale: float = 1.0
    """Factor before the soft cap."""
    cap: float | None = None
    """Factor after tanh; None if there is no tanh."""
    rows: list[fx.Node] = field(default_factory=list)
    """Views and slices of rows, in the order of the graph."""


def loss_head(gm: fx.GraphModule, at_least: int = 0) -> list[Outcome]:
    """Rewrite each linear layer with cross entropy into ``linear_cross_entropy``, if that is safe.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.
        at_least: size of logits in bytes below which a loss head stays as it is.

    Returns:
        One outcome for each cross entropy of the graph.  The graph stays as it is if none is rewritten.
    """
    return rewrite(
        gm, lambda node: node.target is F.cross_entropy, lambda node: _rewrite(node, at_least), "loss_head"
    )


def _rewrite(loss: fx.Node, at_least: int) -> int:
    """Replace ``loss`` by the operator, and return the size of the logits in bytes."""
    arguments = dict(zip(ARGUMENTS, loss.args, strict=False)) | loss.kwargs
    chain = _chain(loss, arguments["input"])
    _require_plain_loss(arguments)
    sources = set(chain.linear.all_input_nodes)
    require_unchanged(chain.linear, loss, sources, "the linear layer and the loss")
    logits = value_of(chain.linear)
    saved = math.prod(_hint(size) for size in logits.shape) * logits.element_size()
    require(saved >= at_least, f"the logits take {saved:,} bytes, under the threshold of {at_least:,}")
    _replace(loss, chain, arguments)
    return saved


def _hint(size: Any) -> int:
    """Return a size as a number; a symbolic size has the value of the batch that it was captured with."""
    return size if isinstance(size, int) else int(getattr(size.node, "hint", 0) or 0)


def _require_plain_loss(arguments: dict[str, Any]) -> None:
    """Refuse options of ``F.cross_entropy`` that the operator does not have."""
    current = arguments.get("size_average") is None and arguments.get("reduce") is None
    require(current, "size_average and reduce are deprecated: use reduction")
    target, weight = value_of(arguments["target"]), arguments.get("weight")
    require(not target.is_floating_point(), "the targets are probabilities, not classes")
    require(target.dtype == torch.int64, f"the targets are {target.dtype}, not torch.int64")
    same = target.dim() == value_of(arguments["input"]).dim() - 1
    require(same, "the targets' shape is not that of the logits without the classes")
    require(weight is None or not value_of(weight).requires_grad, "the class weights require a gradient")
    plain = all(
        not isinstance(arguments.get(n), fx.Node) for n in ("ignore_index", "reduction", "label_smoothing")
    )
    require(plain, "an option of cross_entropy is computed in the graph")


def _chain(loss: fx.Node, logits: Any) -> _Chain:
    """Walk from the loss up to its linear layer and collect the operations between them."""
    classes_last = value_of(logits).dim() <= 2
    chain, below, node = _Chain(logits), loss, logits
    while node.op not in ("call_function", "call_method") or node.target not in LINEARS:
        require_only_user(node, below, "logits")
        require(node.op != "placeholder", "the logits come from outside of the graph, as after a graph break")
        require(
            node.op in ("call_function", "call_method"), f"the logits come from {node}, not a linear layer"
        )
        if not classes_last and _moves_classes(node):
            classes_last = True
        elif node.target in (*VIEWS, "flatten", torch.flatten, operator.getitem):
            require(classes_last, "the classes are not the last dimension of the linear layer's output")
            _require_whole_rows(node)
            chain.rows.insert(0, node)
        else:
            _note(chain, node)
        below, node = node, _upstream(node)
    require_only_user(node, below, "logits")
    require(classes_last, "the classes are not the last dimension of the linear layer's output")
    chain.linear = node
    return chain


def _upstream(node: fx.Node) -> fx.Node:
    """Return the logits among an operation's arguments; the other ones are numbers, shapes and indices."""
    tensors = [a for a in node.args[:2] if is_tensor(a)]
    require(bool(tensors), f"{called_name(node)} lies between the linear layer and the loss")
    logits = tensors[0]
    assert isinstance(logits, fx.Node)
    return logits


def _note(chain: _Chain, node: fx.Node) -> None:
    """Add an operation on each logit to the chain: a copy, a cast, tanh or a factor."""
    target = node.target
    if target in SAME:
        return
    if target in CASTS:
        new, old = value_of(node), value_of(_upstream(node))
        plain = new.is_floating_point() and new.device == old.device and new.dtype != torch.float64
        require(plain, f"the logits are cast by {called_name(node)} to {new.dtype}")
    elif target in TANH:
        require(chain.cap is None, "there is more than one tanh between the linear layer and the loss")
        chain.cap, chain.scale = chain.scale, 1.0
        require(chain.cap > 0, f"tanh is multiplied by {chain.cap}")
    elif target in MUL or target in DIV:
        chain.scale *= factor_of(node)
    else:
        raise Refused(
            f"{called_name(node)} lies between the linear layer and the loss, at {source_line(node)}"
        )


def _moves_classes(node: fx.Node) -> bool:
    """Return whether the node moves the last dimension to place 1, which cross_entropy takes for the classes."""
    n, sizes = value_of(node).dim(), node.args[1:]
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


def _require_whole_rows(node: fx.Node) -> None:
    """Refuse views and slices that do not leave the classes whole, last and in order."""
    before, after = value_of(_upstream(node)), value_of(node)
    whole, index = after.dim() > 0 and after.shape[-1] == before.shape[-1], node.args[1:]
    if node.target is operator.getitem:
        items = index[0] if isinstance(index[0], tuple) else (index[0],)
        simple = all(item is ... or item is None or isinstance(item, (int, slice)) for item in items)
        require(simple, "rows of the logits are picked by a tensor")
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
    require(whole, f"{called_name(node)} cuts or mixes the classes, at {source_line(node)}")


def _sizes(node: fx.Node) -> list[Any]:
    """Return the sizes given to a view or reshape, as numbers or nodes."""
    sizes = node.args[1:]
    return list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)


def _replace(loss: fx.Node, chain: _Chain, arguments: dict[str, Any]) -> None:
    """Insert the operator before ``loss`` and let it replace ``loss`` in the graph."""
    from ...loss_head.op import OPERATOR  # registers the operator

    names = ("input", "weight", "bias")
    parts = dict.fromkeys(names) | dict(zip(names, chain.linear.args, strict=False)) | chain.linear.kwargs
    logits, graph = value_of(chain.linear), loss.graph
    needs = [p is not None and logits.requires_grad and value_of(p).requires_grad for p in parts.values()]
    smoothing, reduction = arguments.get("label_smoothing", 0.0), arguments.get("reduction", "mean")
    scale, cap = (chain.scale, None) if chain.cap is None else (chain.scale * chain.cap, chain.cap)

    insert = Inserter(loss, logits)
    with graph.inserting_before(loss):
        # under autocast the linear layer ran in autocast's dtype
        x, weight, bias = (
            p if p is None or value_of(p).dtype == logits.dtype else insert("to", p, logits.dtype)
            for p in (parts[name] for name in names)
        )
        features = value_of(weight).shape[1]
        if not isinstance(features, int):
            features = insert("size", weight, 1)
        for node in chain.rows:
            if node.target in VIEWS:
                x = insert("reshape", x, (*_sizes(node)[:-1], features))
            elif node.target is operator.getitem:
                x = insert(operator.getitem, x, node.args[1])
            else:
                x = insert("flatten", x, *node.args[1:], *node.kwargs.values())
        x, target = (
            insert("reshape", x, (-1, features)),
            insert("reshape", arguments["target"], (-1,)),
        )
        ignored = arguments.get("ignore_index", -100)
        options = (ignored, float(smoothing), reduction, float(scale), cap, 0.0, 0, False, needs)
        operands = (x, weight, target, bias, arguments.get("weight"), *options)
        made = insert(OPERATOR, *operands)
        result = insert(operator.getitem, made, 0)
        if reduction == "none":
            result = insert("view_as", result, arguments["target"])
        if value_of(result).dtype != value_of(loss).dtype:
            result = insert("to", result, value_of(loss).dtype)
    loss.replace_all_uses_with(result)
    graph.erase_node(loss)
