"""A call of a model made again, with an eye on every operation, until something is not finite."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from loopwise import batch
from loopwise.preserve import preserve

from ..hooks.forward import on_call, on_return
from ..hooks.tensors import on_node
from ..model.names import root
from .calls import Call
from .origin import Origin, counted, here, user_line_of

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
"""Operations that write infinity because they are told to, as masks of attention do."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An operation that gave something that is not finite.  ``meant``: infinity that it was told to write."""

    origin: Origin
    meant: bool


def replay(model: nn.Module, call: Call) -> Origin | None:
    """Where something was not finite first in a call of the model and the backward pass through it.

    The model, its gradients and all random states are as before.  It runs eagerly, whatever it was compiled by.

    Args:
        model: with the weights that it had.
        call: what it was called with.

    Returns:
        ``None`` where everything is finite this time.
    """
    model = root(model)
    found = _of_inputs(call) or _of_weights(model)
    if found is not None:
        return found
    device, on, dtype = call.autocast
    # not anomaly mode's check: it stops at what is meant
    with (
        preserve(model),
        torch.compiler.set_stance("force_eager"),
        torch.enable_grad(),
        _eager(model),
        torch.autograd.set_detect_anomaly(True, check_nan=False),
        torch.autocast(device, dtype=dtype, enabled=on),
    ):
        _set(call.states)
        found = _run(model, call)
    return found


def _run(model: nn.Module, call: Call) -> Origin | None:
    size = batch_size(call)
    forward = _Forward(model, size)
    with forward:
        output = model(*call.args, **call.kwargs)
    leaves = batch.leaves(output)
    for leaf in leaves:
        event = forward.event_of(leaf) if isinstance(leaf, torch.Tensor) and not_finite(leaf) else None
        if event is not None and not event.meant:
            return event.origin
    for gradient in call.gradients.values():
        if not_finite(gradient):
            return Origin(
                "loss", "", "", "its gradient at the model's output", call.line, *counted(gradient, size)
            )
    return _backward(model, call, leaves, forward.owners, size)


def _of_inputs(call: Call) -> Origin | None:
    size = batch_size(call)
    for place, tensor in enumerate(call.tensors):
        if not_finite(tensor) and bool(torch.isnan(tensor).any()):  # infinity may be a mask
            return Origin("input", "", "", str(place), call.line, *counted(tensor, size))
    return None


def _of_weights(model: nn.Module) -> Origin | None:
    named: list[tuple[str, torch.Tensor]] = list(model.named_parameters())
    for path, module in model.named_modules():
        if not (isinstance(module, _NormBase) and module.training):  # what it read is lost, and was not used
            buffers = module.named_buffers(path, recurse=False)
            named += [
                (name, b) for name, b in buffers if bool(torch.isnan(b).any())
            ]  # infinity may be a mask
    for name, tensor in named:
        if not_finite(tensor):
            return Origin("weight", "", "", name, "", counted(tensor, None)[0])
    return None


class _Forward(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what is not finite from the operation that made it to the output."""

    def __init__(self, model: nn.Module, size: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size = size
        self._path: list[tuple[str, str]] = []
        self._events: dict[int, _Event] = {}
        self._alive: list[Any] = []
        self.owners: dict[Node, tuple[str, str]] = {}
        """Node of the backward graph -> module that made it."""
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            who = (name, type(module).__name__)
            enter = functools.partial(self._enter, who)
            self._handles.append(on_call(module, enter))
            self._handles.append(on_return(module, functools.partial(self._leave, who)))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _enter(self, who: tuple[str, str], module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._path:
            self._own((args, kwargs), self._path[-1])
        self._path.append(who)

    def _leave(self, who: tuple[str, str], module: nn.Module, args: Any, output: Any) -> None:
        self._own(output, self._path.pop())

    def _own(self, tensors: Any, who: tuple[str, str]) -> None:
        """What of their graph no module made before, this one did."""
        self.owners.update(dict.fromkeys(_nodes(tensors, self.owners), who))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        bad = [t for t in batch.leaves(output) if isinstance(t, torch.Tensor) and not_finite(t)]
        if bad:
            event = self._source(bad, (args, kwargs or {})) or self._new(func, bad[0])
            for tensor in bad:
                self._events[_key(tensor)] = event
                self._alive.append(tensor)  # or another one could come to lie where it did
        return output

    def event_of(self, tensor: torch.Tensor) -> _Event | None:
        """What made a tensor not finite."""
        return self._events.get(_key(tensor))

    def _source(self, bad: Sequence[torch.Tensor], inputs: Any) -> _Event | None:
        """The operation that spoilt an input, so that this one is not to blame."""
        events = [self._events.get(_key(t)) for t in batch.leaves(inputs) if isinstance(t, torch.Tensor)]
        found = [event for event in events if event is not None]
        for event in found:
            if not event.meant:
                return event
        if found and not any(bool((torch.isnan(t)).any()) for t in bad):
            return found[0]
        return None

    def _new(self, func: Any, tensor: torch.Tensor) -> _Event:
        name = func.overloadpacket.__name__
        meant = name.strip("_").startswith(FILLS) and not bool(torch.isnan(tensor).any())
        path, kind = self._path[-1] if self._path else ("", "")
        return _Event(Origin("forward", path, kind, name, here(), *counted(tensor, self._size)), meant)


def _backward(
    model: nn.Module, call: Call, leaves: Sequence[Any], owners: dict[Node, tuple[str, str]], size: int | None
) -> Origin | None:
    """The node of the graph whose gradient is not finite though what it got was."""
    given = {
        place: gradient
        for place, gradient in call.gradients.items()
        if isinstance(leaves[place], torch.Tensor) and leaves[place].requires_grad
    }
    outer = [p for p in given if not any(_reaches(leaves[o], leaves[p]) for o in given if o != p)]
    wanted = [t for t in (*model.parameters(), *call.tensors) if t.requires_grad]
    if not outer or not wanted:
        return None
    found: list[Origin] = []

    def look(node: Node, gives: Any, gets: Any) -> None:
        bad = [g for g in gives if g is not None and not_finite(g)]
        if bad and not found and not any(g is not None and not_finite(g) for g in gets):
            path, kind = owners.get(node, ("", ""))
            name = node.name().removesuffix("Backward0").removesuffix("Backward")
            metadata: Any = node.metadata
            line = user_line_of(metadata.get("traceback_", []))
            found.append(Origin("backward", path, kind, name, line, *counted(bad[0], size)))

    handles = [
        on_node(node, functools.partial(look, node)) for node in _nodes([leaves[p] for p in outer], {})
    ]
    try:
        torch.autograd.grad([leaves[p] for p in outer], wanted, [given[p] for p in outer], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _nodes(output: Any, known: Any) -> list[Node]:
    """Nodes of the backward graph beneath tensors, down to those that are known."""
    start = [t.grad_fn for t in batch.leaves(output) if isinstance(t, torch.Tensor)]
    waiting = [node for node in start if node is not None]
    found: dict[Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node in known or node in found:
            continue
        found[node] = None
        waiting += [after for after, _ in node.next_functions if after is not None]
    return list(found)


def _reaches(outer: torch.Tensor, inner: torch.Tensor) -> bool:
    return inner.grad_fn is not None and inner.grad_fn in _nodes([outer], {})


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Modules that were compiled in place run as they are written."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def _set(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    for name, each in states["devices"].items():
        getattr(torch, name).set_rng_state_all(each)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def batch_size(call: Call) -> int | None:
    """Rows of the first tensor that went in."""
    return next((t.size(0) for t in call.tensors if t.dim()), None)


def not_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor has a NaN or an infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return False
    values = tensor._values() if tensor.layout is torch.sparse_coo else tensor
    return not bool(torch.isfinite(values).all())


def _key(tensor: torch.Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found
