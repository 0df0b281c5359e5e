"""Operations that computed a loss, read from its autograd graph."""

from __future__ import annotations

from typing import Any

import torch

from ..torch_internals import result_shape

FAR = 12
"""Largest number of inspected operations before the loss."""
LOSSES = {
    "NllLossBackward0": "nll",
    "NllLoss2DBackward0": "nll",
    "BinaryCrossEntropyWithLogitsBackward0": "bce_with_logits",
}
MOVES = {"View", "Reshape", "UnsafeView", "ToCopy", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze"}
MOVES |= {"Slice", "Clone", "Index", "Select", "IndexSelect", "MaskedSelect", "Expand", "Alias", "Stack"}
MOVES |= {"Cat", "_DDPSink"}
"""Operations that do not change values; the names of their nodes go on with ``Backward`` and a number."""
LOGITS = {"Addmm", "Mm", "Bmm", "Linear", "MkldnnLinear", "Convolution", "Relu", "NativeLayerNorm"}
LOGITS |= {"NativeBatchNorm"}
"""Operations that surely return no log-probabilities."""
NORMALIZING = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}


def of_loss(loss: torch.Tensor) -> dict[str, Any]:
    """Return facts about the operations that a loss was computed by.

    Args:
        loss: a number with its autograd graph, also after backward.

    Returns:
        ``loss_input``, only if the input of the loss function is wrong: the mistake and the operation before it;
        ``classes``: number of classes of a cross-entropy that is neither multiplied nor added to.
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
    source = _without_moves(_first_input(node))
    if kind == "bce_with_logits":
        is_wrong = _normalization(source) == "sigmoid"
        return {"loss_input": ["sigmoid before bce_with_logits", "sigmoid"]} if is_wrong else {}
    if source is None:
        return {}
    if _normalization(source) != "log_softmax":
        is_wrong = _kind(source) in LOGITS or bool(_normalization(source))
        return {"loss_input": ["no log_softmax before nll_loss", _kind(source).lower()]} if is_wrong else {}
    facts: dict[str, Any] = {}
    shape = result_shape(source)
    if shape is not None and len(shape) > 1 and not mixed:
        facts["classes"] = int(shape[1])
    before = _normalization(_without_moves(_first_input(source)))
    if before in ("softmax", "sigmoid"):  # log_softmax twice equals log_softmax
        facts["loss_input"] = ["softmax before cross_entropy", before]
    return facts


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
