"""Origin of a NaN or an infinity: the operation that made it, and the user's line that called the operation."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

import loopwise

from ..model.source_lines import relative

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = (
    *(str(Path(folder).resolve()) + os.sep for folder in loopwise.__path__),
    str(Path(__file__).resolve().parent.parent) + os.sep,
)
_FRAME = re.compile(r'File "(.+)", line (\d+), in ')
AT_OUTPUT = "its gradient at the model's output"
"""Operation of an origin in the loss whose code does not show it."""
SAMPLES = 8
"""Largest number of samples that a finding names."""
FIXES = (
    ("log", "add a small number to the argument of the logarithm, or use log_softmax and logsigmoid"),
    ("div", "add a small number to the divisor"),
    ("reciprocal", "add a small number to the divisor"),
    ("sqrt", "add a small number under the root: its gradient at 0 is infinite"),
    ("norm", "add a small number under the root: the gradient of a norm at 0 is not finite"),
    ("pow", "keep the base away from 0, or clamp it"),
    ("exp", "subtract the maximum first, clamp, or use softmax and logsumexp"),
    ("softmax", "leave out rows that are masked as a whole: they have no softmax"),
    ("acos", "clamp the cosine to less than 1: the gradient at 1 is infinite"),
)
"""Pairs of a word in the operation's name and the usual fix."""
LOSS_FIXES = (
    ("is not finite", "look at these values where they are made or loaded"),
    ("are ignored", "leave out batches without labels, or sum the loss and divide it by at least 1"),
    ("weights of all these", "give each class that occurs a weight above 0"),
    ("is empty", "leave out the loss of an empty selection"),
    (" is 0", "clamp the divisor to at least 1, or leave this batch out"),
)
"""The same for what an expression in the loss function shows."""
DEFAULT_FIX = "lower the learning rate, clip gradients, or compute this in float32"


@dataclass(frozen=True, slots=True)
class Origin:
    """First operation that made values that are not finite from finite ones.

    Attributes:
        where: ``input``, ``weight``, ``forward``, ``loss`` (outside the model) or ``backward``.
        module: path of the module; empty for the model itself, or if there is no module.
        kind: class of the module.
        operation: name of the operation, or of the node of the backward graph; place of an input; name of a weight.
        line: file and line of the code that called the operation, for ``backward`` in the forward pass.
        tensor: number and kind of the values that are not finite, with dtype and shape.
        samples: indices of the first few bad samples in the batch, if the tensor has one row for each sample.
    """

    where: str
    module: str
    kind: str
    operation: str
    line: str
    tensor: str
    samples: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = f" in {self.module or 'the model'} ({self.kind})" if self.kind else ""
        samples = f", in samples {', '.join(map(str, self.samples))}" if self.samples else ""
        texts = {
            "input": f"the model's input {self.operation} is not finite: {self.tensor}{samples}",
            "weight": f"{self.operation} was not finite before this step: {self.tensor}",
            "forward": f"{self.operation}{place} made {self.tensor} from finite values{samples}",
            "loss": f"the first value that is not finite arose in the loss, outside the model: {self.operation}"
            + ("" if self.operation == AT_OUTPUT else f", {self.tensor}"),
            "backward": f"the gradient of {self.operation}{place} made {self.tensor} from finite values{samples}",
        }
        return texts[self.where]

    def of(self, key: str) -> Origin:
        """Return the origin with ``key``, the name of one of several models, before its names; empty: no change."""
        if not key:
            return self
        if self.where == "weight":
            return replace(self, operation=f"{key}.{self.operation}")
        return replace(self, module=f"{key}.{self.module}".removesuffix(".")) if self.kind else self

    @property
    def advice(self) -> str:
        """Usual fix."""
        if self.where == "input":
            return "look at these samples where they are loaded"
        if self.where == "weight":
            return "lower the learning rate, or clip gradients: the update before this step made it so"
        name = self.operation.lower()
        fixes = (*LOSS_FIXES, *FIXES) if self.where == "loss" else FIXES
        return next((fix for word, fix in fixes if word in name), DEFAULT_FIX)


def describe(tensor: torch.Tensor, batch_size: int | None) -> tuple[str, tuple[int, ...]]:
    """Return a text about the values that are not finite, and the indices of their samples.

    Args:
        tensor: a tensor that is not finite.
        batch_size: number of samples in the batch; ``None`` if it is unknown.

    Returns:
        The text, and the first few indices; no indices if all samples are bad, or if the tensor has no row for each
        sample.
    """
    bad = ~torch.isfinite(tensor.detach())
    nan = int(torch.isnan(tensor.detach()).sum())
    total = int(bad.sum())
    kinds = " and ".join([f"{nan} NaN"] * bool(nan) + [f"{total - nan} infinite"] * (total > nan))
    shape, dtype = "x".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype).removeprefix("torch.")
    text = f"{kinds} of {tensor.numel()} values ({dtype}, {shape})"
    if batch_size is None or tensor.dim() == 0 or tensor.size(0) != batch_size:
        return text, ()
    rows = bad.reshape(batch_size, -1).any(1).nonzero().flatten().tolist()
    return text, tuple(rows[:SAMPLES]) if len(rows) < batch_size else ()


def user_line(frame: FrameType) -> str:
    """Return file and line of the innermost frame outside torch and Loopwise; empty if there is none."""
    outer: FrameType | None = frame
    while outer is not None:
        if is_users(outer.f_code.co_filename):
            return f"{_shown(outer.f_code.co_filename)}:{outer.f_lineno}"
        outer = outer.f_back
    return ""


def user_line_of(trace: Sequence[str]) -> str:
    """Return file and line of the innermost entry of a formatted traceback outside torch and Loopwise."""
    matches = filter(None, map(_FRAME.search, reversed(trace)))
    return next((f"{relative(match[1])}:{match[2]}" for match in matches if is_users(match[1])), "")


_shown = functools.cache(relative)


@functools.cache
def is_users(file: str) -> bool:
    inside = file.startswith(_TORCH) or file.startswith("<") or file.startswith(_OURS)
    return not inside and not file.startswith(os.path.dirname(os.__file__) + os.sep + "threading")
