"""Replay of a model's call, which inspects every operation until one makes a value that is not finite."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from loopwise import batch
from loopwise.preserve import preserve
from loopwise.torch_internals import compiled_call, set_compiled_call

from ..hooks.forward import on_call, on_return
from ..hooks.tensors import on_node
from ..model.names import root
from ..torch_internals import RUNNING_NORMS, TorchDispatchMode, storage_key
from . import random_states
from .calls import Call
from .finite_check import not_finite
from .origin import AT_OUTPUT, Origin, describe, user_line, user_line_of

FILLS = (
    "masked_fill",
    "full",
    "fill",
    "where",
    "triu",
    "tril",
    "scalar_tensor",
    "lift_fresh",
    "clone",
    "copy",
)
"""Operations that write infinity on purpose, as for masks of attention."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An operation whose output is not finite; ``meant`` if it wrote infinity on purpose."""

    origin: Origin
    meant: bool


def replay(model: nn.Module, call: Call) -> Origin | None:
    """Repeat a call of the model and its backward pass, and return the origin of the first value that is not finite.

    The model, its gradients and all random states stay as they are.  The model runs eagerly, even if it is compiled.

    Args:
        model: the model, with the weights that it had in the call.
        call: the recorded call.

    Returns:
        The origin; ``None`` if all values are finite this time.
    """
    model = root(model)
    origin = _of_inputs(call) or _of_weights(model)
    if origin is not None:
        return origin
    anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)  # its NaN check would stop at masks
    with _again(model, call), torch.enable_grad(), anomaly:
        return _run(model, call)


def output(model: nn.Module, call: Call) -> Any:
    """Repeat a call of the model and return its output, without autograd and without side effects."""
    model = root(model)
    with _again(model, call), torch.no_grad():
        return model(*call.args, **call.kwargs)


@contextlib.contextmanager
def _again(model: nn.Module, call: Call) -> Iterator[None]:
    """Let the model run as in the call, but eagerly, and restore all that it changes."""
    device, on, dtype = call.autocast
    with (
        preserve(model),
        torch.compiler.set_stance("force_eager"),
        _eager(model),
        torch.autocast(device, dtype=dtype, enabled=on),
    ):
        random_states.restore(call.states)
        yield


def _run(model: nn.Module, call: Call) -> Origin | None:
    size = call.batch_size
    forward = Tracker(model, size)
    with forward:
        output = model(*call.args, **call.kwargs)
    leaves = batch.leaves(output)
    for leaf in leaves:
        event = forward.event_of(leaf) if isinstance(leaf, torch.Tensor) and not_finite(leaf) else None
        if event is not None and not event.meant:
            return event.origin
    for gradient in call.gradients.values():
        if not_finite(gradient):
            return Origin("loss", "", "", AT_OUTPUT, call.line, *describe(gradient, size))
    return _backward(model, call, leaves, forward.owners, size)


def _of_inputs(call: Call) -> Origin | None:
    size = call.batch_size
    for place, tensor in enumerate(call.tensors):
        if not_finite(tensor) and bool(torch.isnan(tensor).any()):  # infinity may be a mask
            return Origin("input", "", "", str(place), call.line, *describe(tensor, size))
    return None


def _of_weights(model: nn.Module) -> Origin | None:
    named: list[tuple[str, torch.Tensor]] = list(model.named_parameters())
    for path, module in model.named_modules():
        # in training mode the running statistics were updated after the call, and were not used in it
        if not (isinstance(module, RUNNING_NORMS) and module.training):
            buffers = module.named_buffers(path, recurse=False)  # infinity may be a mask
            named += [(name, buffer) for name, buffer in buffers if bool(torch.isnan(buffer).any())]
    for name, tensor in named:
        if not_finite(tensor):
            return Origin("weight", "", "", name, "", describe(tensor, None)[0])
    return None


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracking of values that are not finite from the operation that made them to the output."""

    def __init__(self, model: nn.Module, size: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size = size
        self._path: list[tuple[str, str]] = []
        self._events: dict[int, _Event] = {}
        self._alive: list[Any] = []
        self.owners: dict[Node, tuple[str, str]] = {}
        """Node of the backward graph -> path and class of the module that made it."""
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            owner = (name, type(module).__name__)
            self._handles.append(on_call(module, functools.partial(self._enter, owner)))
            self._handles.append(on_return(module, functools.partial(self._leave, owner)))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _enter(self, owner: tuple[str, str], module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._path:
            self._add_owner((args, kwargs), self._path[-1])
        self._path.append(owner)

    def _leave(self, owner: tuple[str, str], module: nn.Module, args: Any, output: Any) -> None:
        self._add_owner(output, self._path.pop())

    def _add_owner(self, tensors: Any, owner: tuple[str, str]) -> None:
        """Note the owner of all nodes beneath the tensors that have none yet."""
        self.owners.update(dict.fromkeys(_nodes(tensors, self.owners), owner))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        bad = [t for t in batch.leaves(output) if isinstance(t, torch.Tensor) and not_finite(t)]
        if bad:
            event = self._source(bad, (args, kwargs or {})) or self._new_event(func, bad[0])
            for tensor in bad:
                self._events[storage_key(tensor)] = event
                self._alive.append(tensor)  # keeps another tensor from getting the same storage
        return output

    def event_of(self, tensor: torch.Tensor) -> _Event | None:
        """Return the operation that made values of the tensor not finite."""
        return self._events.get(storage_key(tensor))

    def _source(self, bad: Sequence[torch.Tensor], inputs: Any) -> _Event | None:
        """Return the earlier operation that an output is not finite because of; ``None`` if it is this operation."""
        tensors = [t for t in batch.leaves(inputs) if isinstance(t, torch.Tensor)]
        events = [event for t in tensors if (event := self.event_of(t)) is not None]
        for event in events:
            if not event.meant:
                return event
        if events and not any(bool(torch.isnan(t).any()) for t in bad):
            return events[0]
        return None

    def _new_event(self, func: Any, tensor: torch.Tensor) -> _Event:
        name = func.overloadpacket.__name__
        meant = name.strip("_").startswith(FILLS) and not bool(torch.isnan(tensor).any())
        path, kind = self._path[-1] if self._path else ("", "")
        origin = Origin(
            "forward", path, kind, name, user_line(sys._getframe()), *describe(tensor, self._size)
        )
        return _Event(origin, meant)


def _backward(
    model: nn.Module, call: Call, leaves: Sequence[Any], owners: dict[Node, tuple[str, str]], size: int | None
) -> Origin | None:
    """Return the first node of the backward graph whose output is not finite although its input is."""
    gradients = {
        place: gradient
        for place, gradient in call.gradients.items()
        if isinstance(leaves[place], torch.Tensor) and leaves[place].requires_grad
    }
    outer = [p for p in gradients if not any(_reaches(leaves[o], leaves[p]) for o in gradients if o != p)]
    wanted = [t for t in (*model.parameters(), *call.tensors) if t.requires_grad]
    if not outer or not wanted:
        return None
    origins: list[Origin] = []

    def inspect(node: Node, outputs: Any, inputs: Any) -> None:
        bad = [g for g in outputs if g is not None and not_finite(g)]
        if bad and not origins and not any(g is not None and not_finite(g) for g in inputs):
            path, kind = owners.get(node, ("", ""))
            name = node.name().removesuffix("Backward0").removesuffix("Backward")
            metadata: Any = node.metadata
            line = user_line_of(metadata.get("traceback_", []))
            origins.append(Origin("backward", path, kind, name, line, *describe(bad[0], size)))

    nodes = _nodes([leaves[p] for p in outer], {})
    handles = [on_node(node, functools.partial(inspect, node)) for node in nodes]
    try:
        outputs, seeds = [leaves[p] for p in outer], [gradients[p] for p in outer]
        torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return origins[0] if origins else None


def _nodes(output: Any, known: Any) -> list[Node]:
    """Return the nodes of the backward graph beneath the tensors, down to known nodes."""
    start = [t.grad_fn for t in batch.leaves(output) if isinstance(t, torch.Tensor)]
    pending = [node for node in start if node is not None]
    nodes: dict[Node, None] = {}
    while pending:
        node = pending.pop()
        if node in known or node in nodes:
            continue
        nodes[node] = None
        pending += [after for after, _ in node.next_functions if after is not None]
    return list(nodes)


def _reaches(outer: torch.Tensor, inner: torch.Tensor) -> bool:
    return inner.grad_fn is not None and inner.grad_fn in _nodes([outer], {})


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Run modules eagerly inside the ``with`` block that were compiled in place."""
    compiled = [(module, call) for module in model.modules() if (call := compiled_call(module)) is not None]
    for module, _ in compiled:
        set_compiled_call(module, None)
    try:
        yield
    finally:
        for module, call in compiled:
            set_compiled_call(module, call)
