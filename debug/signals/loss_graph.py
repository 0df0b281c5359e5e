"""What a loss is made of, from its autograd graph."""

from __future__ import annotations

from typing import Any

import torch

FAR = 12
"""Operations behind the loss that are looked at."""
LOSSES = {
    "NllLossBackward0": "nll",
    "NllLoss2DBackward0": "nll",
    "BinaryCrossEntropyWithLogitsBackward0": "bce_with_logits",
}
MOVES = {"View", "Reshape", "UnsafeView", "ToCopy", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze"}
MOVES |= {"Slice", "Clone", "Index", "Select", "IndexSelect", "MaskedSelect", "Expand", "Alias", "Stack"}
MOVES |= {"Cat", "_DDPSink"}
"""Operations that leave values alone; their nodes are called so, with ``Backward`` and a number behind it."""
LOGITS = {"Addmm", "Mm", "Bmm", "Linear", "MkldnnLinear", "Convolution", "Relu", "NativeLayerNorm"}
LOGITS |= {"NativeBatchNorm"}
"""Operations that surely make no log-probabilities."""
NORMALIZING = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}


def of_loss(loss: torch.Tensor) -> dict[str, Any]:
    """``loss_input``, where it is wrong: a word for it and what the loss gets; ``classes`` of a cross-entropy
    that nothing multiplies, and nothing is added to.

    Args:
        loss: a number with its autograd graph, also after backward.
    """
    node: Any = loss.grad_fn
    above, mixed = "", False
    for _ in range(FAR):
        if node is None:
            return {}
        mixed |= (above == "Add") != (_kind(node) == "Mul")  # one beneath the other is label smoothing
        if (kind := LOSSES.get(node.name())) is not None:
            break
        above, node = _kind(node), _before(node)
    else:
        return {}
    source = _values(_before(node))
    if kind == "bce_with_logits":
        return (
            {"loss_input": ["sigmoid before bce_with_logits", "sigmoid"]}
            if _word(source) == "sigmoid"
            else {}
        )
    if source is None:
        return {}
    if _word(source) != "log_softmax":
        sure = _kind(source) in LOGITS or _word(source)
        return {"loss_input": ["no log_softmax before nll_loss", _kind(source).lower()]} if sure else {}
    found: dict[str, Any] = {}
    metadata = getattr(source, "_input_metadata", None)
    if metadata and len(metadata[0].shape) > 1 and not mixed:
        found["classes"] = int(metadata[0].shape[1])
    word = _word(_values(_before(source)))
    if word in ("softmax", "sigmoid"):  # log_softmax twice is log_softmax
        found["loss_input"] = ["softmax before cross_entropy", word]
    return found


def _before(node: Any) -> Any:
    """The node whose result is this one's first operand."""
    return next((each for each, _ in node.next_functions if each is not None), None)


def _values(node: Any) -> Any:
    """The node that made the values."""
    for _ in range(FAR):
        if node is None or _kind(node) not in MOVES:
            break
        node = _before(node)
    return node


def _kind(node: Any) -> str:
    return str(node.name()).rpartition("::")[2].partition("Backward")[0]


def _word(node: Any) -> str:
    return "" if node is None else NORMALIZING.get(_kind(node), "")
