"""What the outputs of whole models tell that statistics of single tensors cannot: samples beside each other, and the
gradient of the loss as it comes in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from . import names
from .taps import absent
from .walk import tensors
from .zeroing import captures

HEADS = ("spread", "varied", "scale")
"""How far a batch's outputs are apart, in last places of the largest one; whether its inputs are (1 or 0); and what a
cross-entropy of mean 1 was multiplied by before backward (NaN: something else, or it cannot be told)."""
SAMPLES, ELEMENTS = 32, 32
"""Samples, and elements along any other dimension, that are looked at."""
POSITIONS = 4
"""Positions of a sequence whose predictions are looked at."""
FIT = 0.02
"""How far from a cross-entropy's a gradient may be, over its largest element: bfloat16 has 0.004."""


class Outputs:
    """Hooks on models that look at what goes in and comes out while ``open``.

    Args:
        guard: what the hooks run in.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self.open = False
        self._guard = guard
        self._found: dict[str, dict[str, torch.Tensor]] = {}
        self._handles: list[Any] = []

    def attach(self, models: Mapping[str, nn.Module]) -> None:
        for key, model in models.items():
            hook = _Hook(weakref.ref(self), key or "model")
            _, root = next(names.modules({key: model}))
            self._handles.append(root.register_forward_hook(hook, with_kwargs=True))

    def begin(self) -> None:
        """A step that is saved begins."""
        self.open = True
        self._found.clear()

    def taken(self) -> tuple[tuple[str, ...], torch.Tensor] | None:
        """It ends: names of the models that were called, and their `HEADS` as float64 on one device."""
        self.open = False
        found, self._found = self._found, {}
        if not found:
            return None
        device = next(iter(found.values()))["spread"].device
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=device)
        rows = [
            torch.stack([each.get(head, nothing).to(device) for head in HEADS]) for each in found.values()
        ]
        return tuple(f"samples/{key}" for key in found), torch.stack(rows)

    def close(self) -> None:
        self.open = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def look(self, key: str, args: Any, kwargs: Any, output: Any) -> None:
        with self._guard():
            given = [t for _, t in [*tensors("", args), *tensors("", kwargs)] if _has_samples(t, 1)]
            made = [t for _, t in tensors("", output) if _has_samples(t, 2) and t.is_floating_point()]
            if not given or not made or len(given[0]) != len(made[0]):
                return
            x, y = _few(given[0].detach()), _few(made[0].detach()).double()
            last_place = torch.finfo(made[0].dtype).eps
            size = y.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
            found = self._found[key] = {
                "spread": (y.amax(0) - y.amin(0)).amax() / size / last_place,
                "varied": (x != x[:1]).any().double(),
            }
            self._follow(made[0], found)

    def _follow(self, logits: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        if not logits.requires_grad:
            return
        dims = {1, logits.ndim - 1}
        taken = {dim: _rows(logits.detach(), dim).clone() for dim in dims if logits.shape[dim] > 1}

        def come(gradient: torch.Tensor) -> None:
            with self._guard():
                scales = [scale(rows, gradient, dim) for dim, rows in taken.items()]
                if scales:
                    best = torch.stack(scales).nan_to_num(-1.0).amax()
                    found["scale"] = torch.where(best > 0, best, torch.nan)

        logits.register_hook(come)  # type: ignore[no-untyped-call]


class _Hook:
    """The hook of one model; a graph that is made of it is as if there were none, and a copy does nothing."""

    def __init__(self, outputs: Callable[[], Outputs | None], key: str) -> None:
        self._outputs, self._key = outputs, key

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        outputs = self._outputs()
        if outputs is not None and outputs.open and not absent() and not captures():
            outputs.look(self._key, args, kwargs, output)

    def __reduce__(self) -> Any:
        return _Hook, (_nobody, self._key)


def _nobody() -> None:
    """Whose hook a copy's is."""


def scale(logits: torch.Tensor, gradient: torch.Tensor, dim: int) -> torch.Tensor:
    """What the mean cross-entropy of all predictions was multiplied by before backward; NaN where it is another loss.

    The gradient of a prediction is its softmax, less 1 at the target, times that over the number of predictions.

    Args:
        logits: some predictions as `_rows` takes them, (predictions, classes).
        gradient: of all, with the classes in ``dim``.
    """
    g, p = _rows(gradient, dim).double(), logits.double().softmax(-1)
    counted = (gradient.select(dim, 0) != 0) | (gradient.select(dim, 1) != 0)
    others = torch.ones_like(g).scatter_(1, g.argmin(1, keepdim=True), 0.0)
    factor = (g * p * others).sum(1) / (p * p * others).sum(1)
    largest = g.abs().amax(1)
    wrong = ((g - factor[:, None] * p) * others).abs().amax(1) + g.sum(1).abs()
    used = largest > 0
    fits = (wrong <= FIT * largest).logical_or(~used).all()
    middle = factor.where(used, torch.nan).nanmedian()
    return torch.where(fits, middle * counted.sum(), torch.nan)


def _rows(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Some predictions, (predictions, classes): a view where there are two dimensions."""
    some = [slice(None, None, -(-size // POSITIONS)) for size in values.shape]
    some[0] = slice(None, None, -(-len(values) // SAMPLES))
    some[dim] = slice(None)
    return values[tuple(some)].movedim(dim, -1).reshape(-1, values.shape[dim])


def _few(values: torch.Tensor) -> torch.Tensor:
    """Some samples with some elements, from all over."""
    steps = [-(-len(values) // SAMPLES), *(-(-size // ELEMENTS) for size in values.shape[1:])]
    return values[tuple(slice(None, None, step) for step in steps)]


def _has_samples(tensor: torch.Tensor, dims: int) -> bool:
    plain = tensor.layout is torch.strided and not hasattr(tensor, "_local_tensor")
    return plain and tensor.ndim >= dims and len(tensor) > 3 and tensor.numel() > 0
