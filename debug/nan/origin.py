"""Where a NaN or an infinity came from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

import loopwise

from ..model.source_lines import relative

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = (
    *tuple(str(Path(folder).resolve()) + os.sep for folder in loopwise.__path__),
    str(Path(__file__).resolve().parent.parent) + os.sep,
)
_FRAME = re.compile(r'File "(.+)", line (\d+), in ')
SAMPLES = 8
"""Samples that are named at most."""
FIXES = (
    ("log", "add a small number to what the logarithm is taken of, or use log_softmax and logsigmoid"),
    ("div", "add a small number to the divisor"),
    ("reciprocal", "add a small number to the divisor"),
    ("sqrt", "add a small number under the root: its gradient at 0 is infinite"),
    ("norm", "add a small number under the root: the gradient of a norm at 0 is not finite"),
    ("pow", "keep the base away from 0, or clamp it"),
    ("exp", "subtract the maximum first, clamp, or use softmax and logsumexp"),
    ("softmax", "a row that is masked as a whole has no softmax: leave such rows out"),
    ("acos", "clamp the cosine to less than 1: the gradient at 1 is infinite"),
)
"""Word in the operation's name -> what is usually done about it."""
OTHERWISE = "lower the learning rate, clip gradients, or compute this in float32"


@dataclass(frozen=True, slots=True)
class Origin:
    """The first operation that made something not finite out of what was finite.

    Attributes:
        where: ``input``, ``weight``, ``forward``, ``loss`` (outside of the model) or ``backward``.
        module: path of the module; empty where there is none, as for the model itself.
        kind: its class.
        operation: name of the operation, or of the node of the backward graph; of an input its place.
        line: file and line of the code that called it; of backward, of its forward.
        tensor: what is not finite: how many values of which, with dtype and shape.
        samples: indices in the batch, the first few, where the tensor has a row for each sample.
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
        samples = f", of the samples {', '.join(map(str, self.samples))}" if self.samples else ""
        said = {
            "input": f"the model's input {self.operation} is not finite: {self.tensor}{samples}",
            "weight": f"{self.operation} was not finite before this step: {self.tensor}",
            "forward": f"{self.operation}{place} made {self.tensor} from finite ones{samples}",
            "loss": f"the loss, outside of the model, is where it begins: {self.operation}",
            "backward": f"the gradient of {self.operation}{place} made {self.tensor} from finite ones{samples}",
        }
        return said[self.where]

    def of(self, key: str) -> Origin:
        """The same, named as of one of several models."""
        if not key:
            return self
        if self.where == "weight":
            return replace(self, operation=f"{key}.{self.operation}")
        return replace(self, module=f"{key}.{self.module}".removesuffix(".")) if self.kind else self

    @property
    def advice(self) -> str:
        """What is usually done about it."""
        if self.where == "input":
            return "look at these samples where they are loaded"
        if self.where == "weight":
            return "the update before made it so: lower the learning rate, or clip gradients"
        name = self.operation.lower()
        return next((fix for word, fix in FIXES if word in name), OTHERWISE)


def counted(tensor: torch.Tensor, batch_size: int | None) -> tuple[str, tuple[int, ...]]:
    """What of a tensor is not finite, in words, and of which samples."""
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


def user_line(frame: FrameType | None) -> str:
    """File and line of the innermost frame that is neither torch's nor ours; empty where there is none."""
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_users(file):
            return f"{relative(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def user_line_of(trace: Sequence[str]) -> str:
    """The same for a formatted traceback."""
    for entry in reversed(trace):
        found = _FRAME.search(entry)
        if found and _is_users(found[1]):
            return f"{relative(found[1])}:{found[2]}"
    return ""


def _is_users(file: str) -> bool:
    inside = file.startswith(_TORCH) or file.startswith("<") or file.startswith(_OURS)
    return not inside and not file.startswith(os.path.dirname(os.__file__) + os.sep + "threading")


def here() -> str:
    """The user's line that is running."""
    return user_line(sys._getframe(1))
