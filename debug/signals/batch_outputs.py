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

from ..hooks import calls
from ..hooks.guards import is_observable
from ..hooks.tensors import on_gradient
from ..model import names
from ..model.tensors import tensors

HEADS = ("spread", "varied", "scale")
"""How far a batch's outputs are apart, in last places of float32 (or a finer dtype) at the largest one; whether its inputs are (1 or 0); and what a
cross-entropy of mean 1 was multiplied by before backward (NaN: something else, or it cannot be told)."""
SAMPLES, ELEMENTS = 32, 32
"""Samples, and elements along any other dimension, that are looked at."""
POSITIONS = 4
"""Positions of a sequence whose predictions are looked at."""
MOST = 2**20
"""Elements of all of them: of a large vocabulary fewer samples are looked at."""
FIT = 0.02
"""How far from a cross-entropy's a gradient may be, over its largest element: bfloat16 has 0.004."""


class Outputs:
    """Listens to models, and looks at what goes in and comes out while ``open``.

    Args:
        guard: what it looks in.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self.open = False
        self._guard = guard
        self._given: dict[str, tuple[int, torch.Tensor]] = {}
        self._found: dict[str, dict[str, torch.Tensor]] = {}
        self._heard: list[tuple[nn.Module, _Ear]] = []

    def attach(self, models: Mapping[str, nn.Module]) -> None:
        for key, model in models.items():
            ear = _Ear(weakref.ref(self), key or "model")
            inner = names.root(model)
            calls.subscribe(inner, ear)
            self._heard.append((inner, ear))

    def begin(self) -> None:
        """A step that is saved begins."""
        self.rest()
        self.open = True
        for module, _ in self._heard:
            calls.refresh(module)

    def rest(self) -> None:
        """Look no more, and forget what was seen, until a step that is saved begins."""
        self.open = False
        self._given.clear()
        self._found.clear()

    def taken(self) -> tuple[tuple[str, ...], torch.Tensor] | None:
        """It ends: names of the models that were called, and their `HEADS` as float64 on one device."""
        found, self._found = self._found, {}
        self.rest()
        if not found:
            return None
        device = next(iter(found.values()))["spread"].device
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=device)
        rows = [
            torch.stack([each.get(head, nothing).to(device) for head in HEADS]) for each in found.values()
        ]
        return tuple(f"samples/{key}" for key in found), torch.stack(rows)

    def close(self) -> None:
        self.rest()
        for module, ear in self._heard:
            calls.unsubscribe(module, ear)
        self._heard.clear()

    def called(self, key: str, args: Any, kwargs: Any) -> None:
        with self._guard():
            self._given.pop(key, None)
            given = [t for _, t in [*tensors("", args), *tensors("", kwargs)] if _has_samples(t, 1)]
            if given:
                x = _few(given[0].detach())
                self._given[key] = len(given[0]), (x != x[:1]).any().double()

    def returned(self, key: str, output: Any) -> None:
        with self._guard():
            count, varied = self._given.pop(key, (0, None))
            made = [t for _, t in tensors("", output) if _has_samples(t, 2) and t.is_floating_point()]
            if varied is None or not made or len(made[0]) != count:
                return
            y = _few(made[0].detach()).double()
            last_place = min(torch.finfo(made[0].dtype).eps, torch.finfo(torch.float32).eps)
            size = y.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
            spread = (y.amax(0) - y.amin(0)).amax() / size / last_place
            found = self._found[key] = {"spread": spread, "varied": varied.to(spread.device)}
            self._follow(made[0], found)

    def _follow(self, logits: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
        if logits.grad_fn is None:  # a hook on a parameter would stay
            return
        dims = {1, logits.ndim - 1}
        taken = {dim: _rows(logits.detach(), dim).clone() for dim in dims if logits.shape[dim] > 1}

        def come(gradient: torch.Tensor) -> None:
            with self._guard():
                scales = [scale(rows, gradient, dim) for dim, rows in taken.items()]
                if scales:
                    best = torch.stack(scales).nan_to_num(-1.0).amax().double()
                    found["scale"] = torch.where(best > 0, best, torch.nan)

        on_gradient(logits, come)


class _Ear(calls.CallSubscriber):
    """Listens to one model for as long as there is someone to tell."""

    def __init__(self, outputs: Callable[[], Outputs | None], key: str) -> None:
        self._outputs, self._key = outputs, key

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if (outputs := self._awake()) is not None:
            outputs.called(self._key, args, kwargs)

    def returned(self, module: nn.Module, output: Any) -> None:
        if (outputs := self._awake()) is not None:
            outputs.returned(self._key, output)

    def _awake(self) -> Outputs | None:
        outputs = self._outputs()
        return outputs if outputs is not None and outputs.open and is_observable() else None


def scale(logits: torch.Tensor, gradient: torch.Tensor, dim: int) -> torch.Tensor:
    """What the mean cross-entropy of all predictions was multiplied by before backward; NaN where it is another loss.

    The gradient of a prediction is its softmax, less 1 at the target, times that over the number of predictions.

    Args:
        logits: some predictions as `_rows` takes them, (predictions, classes).
        gradient: of all, with the classes in ``dim``.
    """
    g, p = _rows(gradient, dim).float(), logits.float().softmax(-1)
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
    samples = MOST // (values.shape[dim] * POSITIONS ** (values.ndim - 2))
    some[0] = slice(None, None, -(-len(values) // max(1, min(SAMPLES, samples))))
    some[dim] = slice(None)
    return values[tuple(some)].movedim(dim, -1).reshape(-1, values.shape[dim])


def _few(values: torch.Tensor) -> torch.Tensor:
    """Some samples with some elements, from all over."""
    steps = [-(-len(values) // SAMPLES), *(-(-size // ELEMENTS) for size in values.shape[1:])]
    return values[tuple(slice(None, None, step) for step in steps)]


def _has_samples(tensor: torch.Tensor, dims: int) -> bool:
    plain = tensor.layout is torch.strided and not hasattr(tensor, "_local_tensor")
    return plain and tensor.ndim >= dims and len(tensor) > 3 and tensor.numel() > 0
