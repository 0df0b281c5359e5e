"""What a loss is given, before torch fails on it, or computes something else without a word."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..rules import Finding
from .report import found

F = nn.functional


class Bounds(NamedTuple):
    """What the loss of the batch can come to."""

    floor: float
    """Where every target is known."""
    guess: float
    """By the best guess that knows nothing of the inputs."""


class Refused(Exception):
    """A loss that is not computed: torch would fail, on a GPU for good."""


class Targets(TorchFunctionMode):
    """Looks at what torch's losses are called with inside.

    Attributes:
        findings: what is wrong with it.
        seen: losses that were called, and with what.
        bounds: of the loss of torch's that was called, where it was one and they are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.findings: list[Finding] = []
        self.seen: list[str] = []
        self.bounds: Bounds | None = None
        self._value: torch.Tensor | None = None

    def bounds_of(self, loss: torch.Tensor) -> Bounds | None:
        """Of a whole loss: none where it is more than what torch's came to, such as a multiple or with a penalty."""
        if self._value is None or not math.isclose(self._value.item(), loss.item(), rel_tol=1e-5):
            return None
        return self.bounds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        look = LOSSES.get(func)
        if look is not None:
            given = inspect.signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            outputs, targets = given.arguments["input"], given.arguments["target"]
            self.seen.append(f"{func.__name__} of {_form(outputs)} and {_form(targets)}")
            wrong = look(outputs, targets, given.arguments)
            if wrong is not None:
                self.findings.append(found("bad_targets", "critical", *wrong))
                if look is not _broadcast:
                    raise Refused(wrong[0])
            self.bounds = None
            if wrong is None and len(self.seen) == 1:
                self.bounds = _bounds(func, outputs, targets, given.arguments)
        made = func(*args, **kwargs)
        if look is not None:
            self._value = made.detach().mean()
        return made


Wrong = tuple[str, str]
"""What is wrong, and what is done about it."""


def _classes(outputs: torch.Tensor, targets: torch.Tensor, given: dict[str, Any]) -> Wrong | None:
    """Of cross_entropy and nll_loss."""
    classes = outputs.shape[1 if outputs.ndim > 1 else 0] if outputs.ndim else 0
    wanted = outputs.shape[:1] + outputs.shape[2:] if outputs.ndim > 1 else torch.Size()
    if classes == 1:
        return (
            f"cross_entropy of one class, in outputs {tuple(outputs.shape)}, is always zero",
            "use binary_cross_entropy_with_logits for one output, or give the model an output a class",
        )
    if targets.is_floating_point():
        if targets.shape == outputs.shape and "label_smoothing" in given:
            return None
        return (
            f"class indices of dtype {_plain(targets)}, shape {tuple(targets.shape)}",
            "targets.long() for class indices; probabilities have to have the shape of the outputs",
        )
    if targets.shape != wanted:
        return (
            f"targets {tuple(targets.shape)} for outputs {tuple(outputs.shape)}: their shape should be {tuple(wanted)}",
            _reshaped(outputs, targets, wanted),
        )
    if targets.dtype not in (torch.int64, torch.uint8):
        return f"class indices of dtype {_plain(targets)}", "targets.long()"
    return _out_of_range(targets, classes, int(given.get("ignore_index", -100)))


def _out_of_range(targets: torch.Tensor, classes: int, ignored: int) -> Wrong | None:
    counted = targets[targets != ignored]
    if not counted.numel():
        return f"all targets are {ignored}, which the loss leaves out", "look at how targets are masked"
    low, high = int(counted.min()), int(counted.max())
    if low >= 0 and high < classes:
        return None
    if low == 1 and high == classes:
        fix = "count classes from 0: targets - 1"
    elif low < 0:
        fix = f"mark targets to be left out by {ignored}, or pass ignore_index={low}"
    else:
        fix = f"give the model {high + 1} outputs, or look for labels that are no classes"
    return f"class indices from {low} to {high}, but {classes} outputs", fix


def _reshaped(outputs: torch.Tensor, targets: torch.Tensor, wanted: torch.Size) -> str:
    if targets.shape == outputs.shape:
        return "targets.argmax(1) for one-hot targets, or targets.float() for probabilities"
    if targets.numel() == wanted.numel():
        return "targets.squeeze()"
    if outputs.ndim > 2 and targets.shape == outputs.shape[:-1]:
        return "classes belong into the second dimension: outputs.transpose(1, -1), or flatten both"
    return "one class index for each sample (and position), and outputs of shape (batch, classes, ...)"


def _binary(outputs: torch.Tensor, targets: torch.Tensor, _: dict[str, Any]) -> Wrong | None:
    """Of binary_cross_entropy, with logits and without."""
    if outputs.shape != targets.shape:
        return (
            f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}",
            "bring both to one shape, with outputs.squeeze(-1) or targets.unsqueeze(-1)",
        )
    if not targets.is_floating_point():
        return f"targets of dtype {_plain(targets)}", "targets.float()"
    low, high = targets.amin().item(), targets.amax().item()
    if not (low >= 0 and high <= 1):
        return (
            f"targets from {low:g} to {high:g}, which are no probabilities",
            "targets have to be from 0 to 1",
        )
    return None


def _broadcast(outputs: torch.Tensor, targets: torch.Tensor, _: dict[str, Any]) -> Wrong | None:
    """Of losses that compare element by element."""
    try:
        size = math.prod(torch.broadcast_shapes(outputs.shape, targets.shape))  # type: ignore[no-untyped-call]
    except RuntimeError:  # torch says so
        return None
    if size <= max(outputs.numel(), targets.numel()):
        return None
    return (
        f"outputs {tuple(outputs.shape)} against targets {tuple(targets.shape)}: each is compared with all others",
        "bring both to one shape, with outputs.squeeze(-1) or targets.unsqueeze(-1)",
    )


LOSSES: dict[Any, Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], Wrong | None]] = {
    F.cross_entropy: _classes,
    F.nll_loss: _classes,
    F.binary_cross_entropy: _binary,
    F.binary_cross_entropy_with_logits: _binary,
    F.mse_loss: _broadcast,
    F.l1_loss: _broadcast,
    F.smooth_l1_loss: _broadcast,
    F.huber_loss: _broadcast,
}


def _of_classes(targets: torch.Tensor, classes: int, given: dict[str, Any]) -> Bounds | None:
    """Of cross_entropy: by the shares of the classes in the batch; ``None`` where they are weighted."""
    if given.get("weight") is not None:
        return None
    spread = given["label_smoothing"] / classes
    if targets.is_floating_point():
        each = targets.movedim(1, -1).reshape(-1, classes) if targets.ndim > 1 else targets[None]
        each = each.double() * (1 - given["label_smoothing"]) + spread
        return Bounds(_entropy(each).mean().item(), _entropy(each.mean(0)).item())
    counts = targets[targets != given["ignore_index"]].long().bincount(minlength=classes).double()
    smooth = torch.full((classes,), spread, dtype=torch.float64)
    one = smooth.clone()
    one[0] += 1 - given["label_smoothing"]
    mean = counts.cpu() / counts.sum().cpu() * (1 - given["label_smoothing"]) + smooth
    return Bounds(_entropy(one).item(), _entropy(mean).item())


def _bounds(func: Any, outputs: torch.Tensor, targets: torch.Tensor, given: dict[str, Any]) -> Bounds | None:
    """Where they are known for a mean over the batch."""
    if given.get("reduction") == "sum":
        return None
    if func is F.cross_entropy:
        return _of_classes(targets, outputs.shape[1 if outputs.ndim > 1 else 0], given)
    if outputs.shape != targets.shape or given.get("weight") is not None:
        return None
    known = targets.detach().double()
    if func is F.mse_loss:
        return Bounds(0.0, (known - known.mean(0)).square().mean().item())
    if (
        func in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
        and given.get("pos_weight") is None
    ):
        each, mean = torch.stack([known, 1 - known], -1), torch.stack([known.mean(0), 1 - known.mean(0)], -1)
        return Bounds(_entropy(each).mean().item(), _entropy(mean).mean().item())
    return None


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    """Over the last dimension."""
    found: torch.Tensor = torch.special.entr(shares).sum(-1)
    return found


def _form(given: Any) -> str:
    if not isinstance(given, torch.Tensor):
        return type(given).__name__
    return f"{_plain(given)} {tuple(given.shape)}"


def _plain(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
