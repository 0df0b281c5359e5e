"""Number of samples of a training step, read from the inputs of the model's calls."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..hooks import calls
from ..hooks.guards import is_capturing
from ..model import names
from ..model.tensors import tensors


class Samples:
    """Counter of the samples that models were trained on in a step.

    Args:
        models: models by key.

    Attributes:
        is_kept: whether the last call got the very tensor of the call before, as if the script kept it.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._counts = Counter[str]()
        self._last: dict[str, Callable[[], torch.Tensor | None]] = {}
        self.is_kept = False
        self._subscribers = [
            (names.root(model), _Subscriber(weakref.ref(self), key)) for key, model in models.items()
        ]
        for module, subscriber in self._subscribers:
            calls.subscribe(module, subscriber)

    def add(self, key: str, args: Any, kwargs: Any) -> None:
        """Count the samples of a call: the first dimension of its first tensor that has one."""
        found = [args[0]] if args and type(args[0]) is torch.Tensor and args[0].ndim else ()
        for tensor in found or [tensor for _, tensor in (*tensors("", args), *tensors("", kwargs))]:
            if tensor.ndim:
                self._counts[key] += tensor.size(0)
                self.is_kept = key in self._last and self._last[key]() is tensor
                self._last[key] = weakref.ref(tensor)
                return

    def take(self) -> int | None:
        """Return the number of samples since the last call, of the model with most; ``None`` if no call was seen."""
        if not self._counts:
            return None
        count = max(self._counts.values())
        self._counts.clear()
        return count

    def close(self) -> None:
        for module, subscriber in self._subscribers:
            calls.unsubscribe(module, subscriber)
        self._subscribers.clear()


class _Subscriber(calls.CallSubscriber):
    """Subscriber to the calls of one model that holds ``Samples`` by a weak reference."""

    def __init__(self, samples: Callable[[], Samples | None], key: str) -> None:
        self._samples, self._key = samples, key

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        samples = self._samples()
        if samples is not None and torch.is_grad_enabled() and not is_capturing():
            samples.add(self._key, args, kwargs)
