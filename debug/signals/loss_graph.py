"""Operations that computed a loss, read from its autograd graph."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..torch_internals import expanded_from, result_shape

FAR = 12
"""Largest number of inspected operations before the loss."""
LOSSES = {
    "NllLossBackward0": "nll",
    "NllLoss2DBackward0": "nll",
    "BinaryCrossEntropyWithLogitsBackward0": "bce_with_logits",
    "MseLossBackward0": "distance",
    "SmoothL1LossBackward0": "distance",
    "HuberLossBackward0": "distance",
}
MOVES = {"View", "Reshape", "UnsafeView", "ToCopy", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze"}
MOVES |= {"Slice", "Clone", "Index", "Select", "IndexSelect", "MaskedSelect", "Expand", "Alias", "Stack"}
MOVES |= {"Cat", "_DDPSink"}
"""Operations that do not change values; the names of their nodes go on with ``Backward`` and a number."""
LOGITS = {"Addmm", "Mm", "Bmm", "Linear", "MkldnnLinear", "Convolution", "Relu", "NativeLayerNorm"}
LOGITS |= {"NativeBatchNorm"}
"""Operations that surely return no log-probabilities."""
NORMALIZING = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
BOUNDED = {"Softmax", "Sigmoid", "Tanh", "Relu", "Softplus", "Exp"}
"""Operations whose results are bounded on a side, or on both."""
SQUASHING = {"Tanh", "Relu", "Hardtanh"}
"""Operations after which logits are bounded on a side, or on both."""


def of_loss(loss: torch.Tensor) -> dict[str, Any]:
    """Return facts about the operations that a loss was computed by.

    Args:
        loss: a number with its autograd graph, also after backward.

    Returns:
        ``loss_input``, only if the input of the loss function is wrong: the mistake and the operation before it, or the
        shapes; ``classes``: number of classes of a cross-entropy that is neither multiplied nor added to; ``bounded``: the
        operation that bounds the outputs of a regression.
    """
    node: Any = loss.grad_fn
    above, mixed = "", False
    for _ in range(FAR):
        if node is None:
            return {}
        mixed |= (above == "Add") != (_kind(node) == "Mul")  # label smoothing is an Add above a Mul
        if (kind := LOSSES.get(node.name())) is not None:
            break
        above, node = _kind(node), _first_input(node)
    else:
        return {}
    if kind == "distance":
        return _of_distance(_first_input(node))
    source = _without_moves(_first_input(node))
    if kind == "bce_with_logits":
        if _normalization(source) == "sigmoid":
            return {"loss_input": ["sigmoid before bce_with_logits", "sigmoid"]}
        return _squashed(source)
    if source is None:
        return {}
    if _normalization(source) != "log_softmax":
        is_wrong = _kind(source) in LOGITS or bool(_normalization(source))
        return {"loss_input": ["no log_softmax before nll_loss", _kind(source).lower()]} if is_wrong else {}
    facts: dict[str, Any] = {}
    shape = result_shape(source)
    if shape is not None and len(shape) > 1 and not mixed:
        facts["classes"] = int(shape[1])
    before = _without_moves(_first_input(source))
    if _normalization(before) in ("softmax", "sigmoid"):  # log_softmax twice equals log_softmax
        facts["loss_input"] = ["softmax before cross_entropy", _normalization(before)]
    return facts | _squashed(before)


def _squashed(source: Any) -> dict[str, Any]:
    """Return the fact that logits are bounded, if they are."""
    is_bounded = source is not None and _kind(source) in SQUASHING
    return {"loss_input": ["bounded before cross_entropy", _kind(source).lower()]} if is_bounded else {}


def _of_distance(node: Any) -> dict[str, Any]:
    """Return facts about the outputs of a regression, which torch expands to the shape of outputs and targets together."""
    facts: dict[str, Any] = {}
    if node is not None and _kind(node) == "Expand":
        shape, expanded = expanded_from(node), result_shape(node)
        if shape is not None and expanded == (math.prod(shape),) * 2 and max(shape) > 1:
            facts["loss_input"] = ["outputs expanded", f"{shape} to {expanded}"]
    source = _without_moves(node)
    is_bounded = source is not None and _kind(source) in BOUNDED
    return facts | {"bounded": _kind(source).lower()} if is_bounded else facts


def _first_input(node: Any) -> Any:
    """Return the node whose result is the first operand of ``node``."""
    return next((other for other, _ in node.next_functions if other is not None), None)


def _without_moves(node: Any) -> Any:
    """Return the node that computed the values which ``node`` only moves."""
    for _ in range(FAR):
        if node is None or _kind(node) not in MOVES:
            break
        node = _first_input(node)
    return node


def _kind(node: Any) -> str:
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def _normalization(node: Any) -> str:
    return "" if node is None else NORMALIZING.get(_kind(node), "")
