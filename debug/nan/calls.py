"""How each model was called in the last steps: what a replay needs."""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise import batch, random_state
from loopwise.wrappers import unwrap

from ..hooks import calls as hook_calls
from ..hooks.guards import is_extra_pass, is_observable
from ..hooks.tensors import on_gradient
from .origin import user_line

LARGE = 256 * 2**20
"""Bytes of one step's inputs, and of its gradients at outputs, that are kept at most."""
CALLS = 64
"""Calls of one step that are kept, as where gradients accumulate."""


@dataclass
class Call:
    """One call of a model.

    Attributes:
        step: over all modes.
        model: its key.
        args, kwargs: what it was called with; tensors are the caller's own, without their graph.
        states: random states of torch and of Python before it.
        autocast: device type, whether autocast was on, and its dtype.
        line: the caller's file and line.
        gradients: of the loss with respect to outputs, by their place among the leaves of what it returned.
        left_out: whether such a gradient was too large to keep.
    """

    step: int
    model: str
    args: Any
    kwargs: Any
    states: dict[str, Any]
    autocast: tuple[str, bool, torch.dtype]
    line: str
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)
    left_out: bool = False
    _tensors: list[torch.Tensor] | None = None
    _versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._versions = self._now()

    def _now(self) -> list[int]:
        return [tensor._version for tensor in self.tensors]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that went in."""
        if self._tensors is None:
            leaves = batch.leaves((self.args, self.kwargs))
            self._tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return self._tensors

    @property
    def changed(self) -> bool:
        """Whether an input was changed in place since."""
        return self._versions != self._now()


class Calls(hook_calls.CallSubscriber):
    """Listens to models and remembers their calls while ``open``.

    Args:
        models: by key.
        keep: steps of which they are remembered, the present one too.
        guard: what the hooks run in.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], keep: int, guard: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.open, self._guard = False, guard
        self._steps: deque[list[Call]] = deque(maxlen=keep)
        self._numbers: deque[int] = deque(maxlen=keep)
        self._running: list[tuple[nn.Module, Call | None]] = []
        self._inputs = self._gradients = 0
        self._models = {id(unwrap(model)): (key, unwrap(model)) for key, model in models.items()}
        for _, model in self._models.values():
            hook_calls.subscribe(model, self)

    def begin(self, step: int) -> None:
        """A step begins; one of the same number starts anew."""
        self._running.clear()
        if self._inputs > LARGE:
            self._steps.clear()
            self._numbers.clear()
        self._inputs = self._gradients = 0
        if self._numbers and self._numbers[-1] == step:
            self._steps[-1].clear()
            return
        self._steps.append([])
        self._numbers.append(step)
        for _, model in self._models.values():
            hook_calls.refresh(model)

    def of(self, step: int) -> list[Call]:
        """The calls of a step, in order."""
        return [call for calls in self._steps for call in calls if call.step == step]

    def __iter__(self) -> Iterator[Call]:
        return (call for calls in self._steps for call in calls)

    def _keep(self, call: Call, place: int, gradient: torch.Tensor) -> None:
        self._gradients += gradient.nbytes
        if self._gradients > LARGE:
            call.left_out = True
        else:
            call.gradients[place] = gradient.detach()

    def close(self) -> None:
        for _, model in self._models.values():
            hook_calls.unsubscribe(model, self)
        self._steps.clear()
        self._numbers.clear()

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A model is called."""
        if not self.open or not torch.is_grad_enabled() or not is_observable():
            return
        self._running.append((module, None))
        with self._guard():
            if len(self._steps[-1]) < CALLS and self._inputs <= LARGE:
                self._running[-1] = module, self._call(self._models[id(module)][0], args, kwargs)

    def _call(self, key: str, args: Any, kwargs: Any) -> Call:
        tensors: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(_without_graph(tensor))
            return tensors[-1]

        args, kwargs = batch.map_tensors(keep, (args, kwargs))
        device = next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu")
        on = torch.is_autocast_enabled(device)
        autocast = (device, on, torch.get_autocast_dtype(device))
        line = user_line(sys._getframe())
        call = Call(self._numbers[-1], key, args, kwargs, random_now(), autocast, line, _tensors=tensors)
        self._inputs += sum([t.nbytes for t in tensors])
        self._steps[-1].append(call)
        return call

    def returned(self, module: nn.Module, output: Any) -> None:
        """It gave its output."""
        if not self._running or self._running[-1][0] is not module or is_extra_pass():
            return
        _, call = self._running.pop()
        if call is None:
            return
        with self._guard():
            for place, leaf in enumerate(batch.leaves(output)):
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:  # a parameter's would stay
                    on_gradient(leaf, functools.partial(self._keep, call, place))


def _without_graph(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.grad_fn is None else tensor.detach().requires_grad_()


def random_now() -> dict[str, Any]:
    """Those that models draw from; NumPy's, which costs more than all others, is left out."""
    return {"torch": torch.get_rng_state(), "devices": random_state.devices(), "python": random.getstate()}
