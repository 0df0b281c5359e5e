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
from loopwise.model import unwrapped

from ..taps import absent
from .origin import user_line

LARGE = 256 * 2**20
"""Bytes of a gradient at a model's output, or of one step's inputs, that are not kept any more."""
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
    _versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._versions = self._now()

    def _now(self) -> list[int]:
        return [leaf._version for leaf in self.tensors]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that went in."""
        return [x for x in batch.leaves((self.args, self.kwargs)) if isinstance(x, torch.Tensor)]

    @property
    def changed(self) -> bool:
        """Whether an input was changed in place since."""
        return self._versions != self._now()


class Calls:
    """Hooks on models that remember their calls while ``open``.

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
        self._running: list[Call | None] = []
        self._handles: list[Any] = []
        self._models = {key: unwrapped(model) for key, model in models.items()}
        self._wrapped: dict[str, tuple[nn.Module, Any, Any]] = {}
        for key, model in self._models.items():
            if _compiled(model) is None:  # hooks would be compiled, too
                before, after = functools.partial(self._before, key), functools.partial(self._after, key)
                self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(model.register_forward_hook(after))

    def begin(self, step: int) -> None:
        """A step begins; one of the same number starts anew."""
        self._running.clear()
        if self._numbers and self._numbers[-1] == step:
            self._steps[-1].clear()
            return
        if self._steps and sum(batch.nbytes((c.args, c.kwargs)) for c in self._steps[-1]) > LARGE:
            self._steps.clear()
            self._numbers.clear()
        self._steps.append([])
        self._numbers.append(step)
        for key, model in self._models.items():
            self._wrap(key, model)

    def of(self, step: int) -> list[Call]:
        """The calls of a step, in order."""
        return [call for calls in self._steps for call in calls if call.step == step]

    def __iter__(self) -> Iterator[Call]:
        return (call for calls in self._steps for call in calls)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for model, original, ours in self._wrapped.values():
            if _compiled(model) is ours:
                model._compiled_call_impl = original
        self._steps.clear()
        self._numbers.clear()

    def _wrap(self, key: str, model: nn.Module) -> None:
        """A module that is compiled in place is looked at from outside of its graph."""
        compiled: Callable[..., Any] | None = _compiled(model)
        if compiled is None or (key in self._wrapped and compiled is self._wrapped[key][2]):
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(key, model, args, kwargs)
            output = compiled(*args, **kwargs)
            self._after(key, model, args, output)
            return output

        self._wrapped[key] = (model, compiled, call)
        model._compiled_call_impl = call

    def _before(self, key: str, model: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or not self.open or not torch.is_grad_enabled() or absent():
            return
        self._running.append(None)
        with self._guard():
            if len(self._steps[-1]) < CALLS:
                self._running[-1] = self._call(key, args, kwargs)

    def _call(self, key: str, args: Any, kwargs: Any) -> Call:
        args, kwargs = batch.map_tensors(_without_graph, (args, kwargs))
        leaves = batch.leaves((args, kwargs))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)} - {"cpu"}
        device = next(iter(devices), "cpu")
        on = torch.is_autocast_enabled(device)
        autocast = (device, on, torch.get_autocast_dtype(device))
        line = user_line(sys._getframe())
        call = Call(self._numbers[-1], key, args, kwargs, random_now(), autocast, line)
        self._steps[-1].append(call)
        return call

    def _after(self, key: str, model: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._running or absent():
            return
        call = self._running.pop()
        if call is None:
            return
        with self._guard():
            for place, leaf in enumerate(batch.leaves(output)):
                if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                    leaf.register_hook(functools.partial(_keep, call, place))  # type: ignore[no-untyped-call]


def _compiled(model: nn.Module) -> Any:
    return getattr(model, "_compiled_call_impl", None)


def _without_graph(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.grad_fn is None else tensor.detach().requires_grad_()


def _keep(call: Call, place: int, gradient: torch.Tensor) -> None:
    if gradient.nbytes > LARGE:
        call.left_out = True
    else:
        call.gradients[place] = gradient.detach()


def random_now() -> dict[str, Any]:
    """Those that models draw from; NumPy's, which costs more than all others, is left out."""
    return {"torch": torch.get_rng_state(), "devices": random_state.devices(), "python": random.getstate()}
