"""Reasons why an expression in a loss function is NaN or infinite, as its inputs show them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

SHOWN = 60
"""Largest number of characters of an expression in a finding."""


def short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def reason(node: ast.AST, inputs: Any, operands: Sequence[ast.AST], loss: nn.Module | None) -> str:
    """Return what a value that is not finite comes from, if its inputs show it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _has_zeros(inputs[1]):
        is_single = not isinstance(inputs[1], torch.Tensor) or inputs[1].numel() == 1
        return f": {short(node.right)} {'is 0' if is_single else 'has zeros'}"
    if not operands or not isinstance(node, ast.Call) or not isinstance(inputs[0], torch.Tensor):
        return ""
    first, name = short(operands[0]), short(node.func)
    if not inputs[0].numel():
        return f": {first} is empty"
    if name.rpartition(".")[2] in ("log", "log2", "log10"):
        return f": {first} has {'zeros' if _has_zeros(inputs[0]) else 'negative values'}"
    if len(operands) > 1 and (name.endswith(("cross_entropy", "nll_loss")) or hasattr(loss, "ignore_index")):
        keywords = {word.arg: word.value for word in node.keywords}
        ignored = keywords.get("ignore_index", ast.Constant(getattr(loss, "ignore_index", -100)))
        return _of_labels(inputs[1], short(operands[1]), ignored, getattr(loss, "weight", None))
    return ""


def _of_labels(labels: Any, name: str, ignored: ast.AST, weight: Any) -> str:
    """Return what is wrong with the labels of a cross-entropy."""
    if (
        not isinstance(labels, torch.Tensor)
        or labels.is_floating_point()
        or not isinstance(ignored, ast.Constant)
        or not isinstance(ignored.value, int)
    ):
        return ""
    counted = labels[torch.ne(labels, ignored.value)]
    if not counted.numel():
        return f": all labels in {name} are ignored ({ignored.value})"
    if isinstance(weight, torch.Tensor) and not bool(weight[counted].any()):
        return ": the weights of all these classes are 0"
    return ""


def _has_zeros(value: Any) -> bool:
    return bool((value == 0).any()) if isinstance(value, torch.Tensor) else bool(value == 0)
