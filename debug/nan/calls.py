"""Recorded calls of the models in the last steps: all that a replay needs."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise import batch
from loopwise.torch_internals import version
from loopwise.wrappers import unwrap

from ..hooks import calls as hook_calls
from ..hooks.guards import is_capturing, is_extra_pass
from ..hooks.tensors import Gradients, before_node
from . import random_states
from .origin import user_line

LARGE = 256 * 2**20
"""Largest number of bytes of one step's inputs, and of its gradients, that are kept."""
CALLS = 64
"""Largest number of calls of one step that are kept; a step that accumulates gradients has many."""


@dataclass
class Call:
    """One call of a model.

    Attributes:
        step: number of the step, over all modes.
        model: key of the model.
        args, kwargs: arguments of the call; the tensors are the caller's own, without their autograd graph.
        states: random states of torch and of Python before the call, as ``random_states`` has them.
        autocast: device type, whether autocast was on, and its dtype.
        line: file and line of the caller.
        gradients: gradients of the loss with respect to the outputs, by their place among the leaves of the output.
        left_out: whether a gradient was too large to keep.
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
    known: InitVar[list[torch.Tensor] | None] = None
    """The tensors among the arguments, where the caller has them already."""

    def __post_init__(self, known: list[torch.Tensor] | None) -> None:
        leaves = batch.leaves((self.args, self.kwargs)) if known is None else known
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        """All tensors among the arguments."""
        self._versions = list(map(version, self.tensors))

    @property
    def batch_size(self) -> int | None:
        """Number of rows of the first tensor among the arguments; ``None`` if no tensor has rows."""
        return next((tensor.size(0) for tensor in self.tensors if tensor.dim()), None)

    @property
    def changed(self) -> bool:
        """True if an argument was changed in place after the call."""
        return self._versions != list(map(version, self.tensors))


class Calls(hook_calls.CallSubscriber):
    """Recorder of the models' calls; it records while ``open`` is true.

    Args:
        models: models by key.
        keep: number of steps whose calls are kept, with the present step.
        guard: context manager that the hooks run in.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], keep: int, guard: AbstractContextManager[Any]
    ) -> None:
        self.open, self._guard = False, guard
        self._steps: deque[tuple[int, list[Call]]] = deque(maxlen=keep)
        self._running: list[tuple[nn.Module, Call | None]] = []
        self._input_bytes = self._gradient_bytes = 0
        self._models = {id(unwrap(model)): (key, unwrap(model)) for key, model in models.items()}
        for _, model in self._models.values():
            hook_calls.subscribe(model, self)

    def begin(self, step: int) -> None:
        """Begin a step.  A step that has the number of the last one replaces it."""
        self._running.clear()
        if self._input_bytes > LARGE:
            self._steps.clear()
        self._input_bytes = self._gradient_bytes = 0
        if self._steps and self._steps[-1][0] == step:
            self._steps[-1][1].clear()
            return
        self._steps.append((step, []))
        for _, model in self._models.values():
            hook_calls.refresh(model)

    def of(self, step: int) -> list[Call]:
        """Return the calls of a step, in order."""
        return [call for call in self if call.step == step]

    def __iter__(self) -> Iterator[Call]:
        return (call for _, calls in self._steps for call in calls)

    def close(self) -> None:
        for _, model in self._models.values():
            hook_calls.unsubscribe(model, self)
        self._steps.clear()

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record the arguments of a call."""
        if not self.open or not torch.is_grad_enabled() or is_capturing():
            return
        self._running.append((module, None))
        with self._guard:
            if len(self._steps[-1][1]) < CALLS and self._input_bytes <= LARGE:
                self._running[-1] = module, self._add_call(self._models[id(module)][0], args, kwargs)

    def _add_call(self, key: str, args: Any, kwargs: Any) -> Call:
        tensors: list[torch.Tensor] = []

        def detach(tensor: torch.Tensor) -> torch.Tensor:
            tensors.append(tensor if tensor.grad_fn is None else tensor.detach().requires_grad_())
            return tensors[-1]

        args = batch.map_tensors(detach, args)
        kwargs = batch.map_tensors(detach, kwargs) if kwargs else {}
        device = next(iter([kind for t in tensors if (kind := t.device.type) != "cpu"]), "cpu")
        autocast = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        step, calls = self._steps[-1]
        line = user_line(sys._getframe(4))  # from the hook's caller on
        call = Call(step, key, args, kwargs, random_states.take(), autocast, line, known=tensors)
        calls.append(call)
        self._input_bytes += sum([t.nbytes for t in tensors])
        return call

    def returned(self, module: nn.Module, output: Any) -> None:
        """Ask for the gradients of the outputs of a call."""
        if not self._running or self._running[-1][0] is not module or is_extra_pass():
            return
        _, call = self._running.pop()
        if call is None:
            return
        with self._guard:
            leaves = (output,) if type(output) is torch.Tensor else batch.leaves(output)
            for place, leaf in enumerate(leaves):
                # a hook on a parameter would outlive the step
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                    before_node(leaf, functools.partial(self._add_gradient, call, place, leaf.output_nr))

    def _add_gradient(self, call: Call, place: int, number: int, gradients: Gradients) -> None:
        gradient = gradients[number]
        if gradient is None:
            return
        self._gradient_bytes += gradient.nbytes
        if self._gradient_bytes > LARGE:
            call.left_out = True
        else:
            call.gradients[place] = gradient.detach()
