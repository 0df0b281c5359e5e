"""Pass that replaces attention written as matmul, softmax, matmul by ``scaled_dot_product_attention``.

The pass looks at each softmax over the last dimension.  It walks up through casts, an added mask and a scale to the
product of queries and keys, and down through casts and a dropout that is off to the product with the values.  torch
then never makes the matrix of scores, (queries, keys), in the forward or backward pass, if it has a kernel for the case
(Dao et al., https://arxiv.org/abs/2205.14135).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx

from .rewriting import (
    CASTS,
    DIV,
    MUL,
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

SOFTMAX = (F.softmax, torch.softmax, "softmax")
PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
DROPOUT = (F.dropout, torch.dropout)


@dataclass(slots=True)
class _Scores:
    """Operations between the product of queries and keys and the softmax."""

    product: fx.Node
    scale: float = 1.0
    mask: fx.Node | None = None


def attention(gm: fx.GraphModule) -> list[Outcome]:
    """Rewrite each written-out attention if this is safe.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.

    Returns:
        One outcome for each softmax whose result is multiplied by a matrix.
    """
    return rewrite(gm, _is_attention, _rewrite, "attention")


def _is_attention(node: fx.Node) -> bool:
    """Return whether the node is a softmax between two matrix products, as far as names tell."""
    if node.target not in SOFTMAX:
        return False
    for _ in range(4):
        users = list(node.users)
        if len(users) != 1:
            return any(user.target in PRODUCTS and user.args[0] is node for user in users)
        if users[0].target in PRODUCTS:
            return users[0].args[0] is node
        node = users[0]
    return False


def _rewrite(softmax: fx.Node) -> int:
    """Replace the second product by torch's attention, and return the size of the scores in bytes."""
    product = _product(softmax)
    scores = _scores(softmax)
    queries, keys, values = (
        _node(scores.product.args[0]),
        _node(scores.product.args[1]),
        _node(product.args[1]),
    )
    q, k, v = value_of(queries), value_of(keys), value_of(values)
    require(q.dim() >= 3 and q.dim() == k.dim() == v.dim(), "queries, keys and values have not the same rank")
    require(q.shape[:-2] == k.shape[:-2] == v.shape[:-2], "queries, keys and values are broadcast")
    require(q.dtype == k.dtype == v.dtype, "queries, keys and values have not the same dtype")
    _require_plain_mask(scores, q)
    sources = {queries, keys, values} | ({scores.mask} if scores.mask is not None else set())
    require_unchanged(scores.product, product, sources, "the products")
    insert = Inserter(product, value_of(product))
    with product.graph.inserting_before(product):
        turned = insert("transpose", keys, -2, -1)
        options = {"attn_mask": scores.mask, "dropout_p": 0.0, "is_causal": False, "scale": scores.scale}
        result = insert(F.scaled_dot_product_attention, queries, turned, values, **options)
    require(value_of(result).dtype == value_of(product).dtype, "the result would have another dtype")
    product.replace_all_uses_with(result)
    product.graph.erase_node(product)
    matrix = value_of(scores.product)
    return math.prod(int(size) for size in matrix.shape) * matrix.element_size()


def _node(argument: object) -> fx.Node:
    """Return a factor of a product, which must be a node of the graph."""
    require(isinstance(argument, fx.Node), "a factor of a product comes from outside the graph")
    assert isinstance(argument, fx.Node)
    return argument


def _product(softmax: fx.Node) -> fx.Node:
    """Return the product of the softmax with the values, which casts and a dropout that is off may precede."""
    dims = [*softmax.args[1:2], *[softmax.kwargs[n] for n in ("dim",) if n in softmax.kwargs]]
    require(dims in ([-1], [value_of(softmax).dim() - 1]), "the softmax is not over the last dimension")
    node = softmax
    while True:
        below = next(iter(node.users))
        require_only_user(node, below, "attention weights")
        if below.target in PRODUCTS:
            return below
        if below.target in DROPOUT:
            _require_no_dropout(below)
        else:
            require(
                below.target in CASTS, f"{called_name(below)} follows the softmax, at {source_line(below)}"
            )
            require(value_of(below).is_floating_point(), "the attention weights are cast to whole numbers")
        node = below


def _require_no_dropout(node: fx.Node) -> None:
    """Refuse a dropout in training mode."""
    names = ("input", "p", "training", "inplace")
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    off = bool(arguments.get("p", 0.5) == 0.0) or arguments.get("training", True) is False
    require(off, "its dropout would draw other masks inside torch's kernel")


def _scores(softmax: fx.Node) -> _Scores:
    """Walk up from the softmax to the product of queries and keys, and collect the operations between them."""
    node, below = softmax.args[0] if softmax.args else softmax.kwargs["input"], softmax
    scores = _Scores(softmax)
    while True:
        require(isinstance(node, fx.Node), "the scores come from outside the graph")
        assert isinstance(node, fx.Node)
        require_only_user(node, below, "scores")
        if node.target in PRODUCTS:
            scores.product = node
            return scores
        if node.target in ADD and len([a for a in node.args if is_tensor(a)]) == 2:
            require(scores.mask is None and scores.scale == 1.0, "more than one mask, or a scaled one")
            require(not node.kwargs, "the mask is scaled")
            upper, scores.mask = _sides(node)
        elif node.target in MUL or node.target in DIV:
            scores.scale *= factor_of(node)
            upper = next(a for a in node.args if isinstance(a, fx.Node))
        elif node.target in CASTS:
            require(value_of(node).is_floating_point(), "the scores are cast to whole numbers")
            assert isinstance(node.args[0], fx.Node)
            upper = node.args[0]
        else:
            raise Refused(
                f"{called_name(node)} lies between the scores and the softmax, at {source_line(node)}"
            )
        node, below = upper, node


def _sides(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return the scores and the mask of a sum; the scores are as large as the sum and come from a product."""
    left, right = (a for a in node.args[:2] if isinstance(a, fx.Node))
    large = [side for side in (left, right) if value_of(side).shape == value_of(node).shape]
    known = (*PRODUCTS, *MUL, *DIV, *CASTS)
    scores = [side for side in large if side.target in known]
    require(
        len(scores) == 1,
        f"the mask and the scores of the sum cannot be distinguished, at {source_line(node)}",
    )
    return scores[0], right if scores[0] is left else left


def _require_plain_mask(scores: _Scores, queries: torch.Tensor) -> None:
    """Refuse a mask that torch's attention cannot add: a mask of another dtype or of more dimensions."""
    if scores.mask is None:
        return
    mask = value_of(scores.mask)
    require(mask.dtype == queries.dtype, f"a mask of {mask.dtype} on queries of {queries.dtype}")
    require(mask.dim() <= queries.dim(), "the mask has more dimensions than the queries")
