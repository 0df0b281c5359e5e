"""Subscriptions to the updates of optimizers: one pair of hooks for each optimizer and all its subscribers.

Dynamo traces the hooks of an optimizer whose ``step`` is compiled.  There they leave an operator in the graph, which
calls the subscribers when the graph runs, so that no code of theirs is compiled.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..torch_internals import set_grad_mode
from .guards import as_pickle
from .operators import operator


class UpdateSubscriber:
    """Base class of subscribers to updates; no method may raise."""

    def step_called(self, optimizer: Optimizer) -> None:
        """``optimizer.step`` was called; a closure has not made gradients yet."""

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete and the parameters are about to change; called after each call of a closure."""

    def after_update(self, optimizer: Optimizer) -> None:
        """``optimizer.step`` is about to return."""

    def joined(self, optimizer: Optimizer) -> None:
        """Another optimizer, which holds parameters of one that was subscribed to, makes its first update.

        From here on the subscriber is called at its updates as well.
        """


def _methods(subscribers: tuple[UpdateSubscriber, ...], *names: str) -> list[Callable[[Optimizer], None]]:
    """Return the methods that the classes of the subscribers have of their own, in the order of the subscribers."""
    pairs = [(subscriber, name) for subscriber in subscribers for name in names]
    return [
        getattr(s, name) for s, name in pairs if getattr(type(s), name) is not getattr(UpdateSubscriber, name)
    ]


_numbers = itertools.count()
_live: weakref.WeakValueDictionary[int, _Updates] = weakref.WeakValueDictionary()


class _Updates:
    """Hooks and subscribers of one optimizer.  The hooks of an unpickled optimizer have no subscribers."""

    def __init__(self) -> None:
        self.set_subscribers(())
        self.optimizer: weakref.ref[Optimizer] | None = None
        self._handles: list[Any] = []
        self._number, self._token = next(_numbers), torch.zeros(1)

    def __reduce__(self) -> Any:
        return as_pickle()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Updates:
        return _Updates()

    def set_subscribers(self, subscribers: tuple[UpdateSubscriber, ...]) -> None:
        """Replace the subscribers; they are called in this order, if their class has the method."""
        self.subscribers = subscribers
        self._on_call = _methods(subscribers, "step_called")
        self._on_call_and_update = _methods(subscribers, "step_called", "before_update")
        self._before_update = _methods(subscribers, "before_update")
        self._after_update = _methods(subscribers, "after_update")

    def called(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Tell the subscribers that ``optimizer.step`` was called."""
        for method in self._on_call if has_closure else self._on_call_and_update:
            method(optimizer)

    def has_gradients(self, optimizer: Optimizer) -> None:
        """Tell the subscribers that a closure made the gradients."""
        for method in self._before_update:
            method(optimizer)

    def returns(self, optimizer: Optimizer) -> None:
        """Tell the subscribers that ``optimizer.step`` is about to return."""
        for method in self._after_update:
            method(optimizer)

    def register(self, optimizer: Optimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        device = next((p.device for group in optimizer.param_groups for p in group["params"]), None)
        self._token = torch.zeros(1, device=device)
        _live[self._number] = self
        self._handles = [
            optimizer.register_step_pre_hook(self.before),
            optimizer.register_step_post_hook(self.after),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Call the subscribers; return the step's arguments, a closure among them wrapped so that it calls the subscribers."""
        if torch.compiler.is_compiling():
            self._trace(optimizer, False)
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        enabled = torch.is_grad_enabled()
        try:
            self.called(optimizer, closure is not None)
        except BaseException:  # an interrupt, which may have come between a context's end and its effect
            set_grad_mode(enabled)
            raise
        if closure is None:
            return None

        def closure_that_tells() -> Any:
            loss = closure()
            self.has_gradients(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], closure_that_tells, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_that_tells}

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            self._trace(optimizer, True)
            return
        self.returns(optimizer)

    def _trace(self, optimizer: Optimizer, is_after: bool) -> None:
        """Put an operator into the graph; it takes the parameters, so that it keeps its place before or after their change."""
        parameters = [
            p.detach() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        updated(parameters, self._token, self._number, is_after)


def _updated(parameters: list[torch.Tensor], token: torch.Tensor, number: int, is_after: bool) -> None:
    """Call the subscribers from a compiled graph; ``token`` is not changed."""
    updates = _live.get(number)
    optimizer = None if updates is None or updates.optimizer is None else updates.optimizer()
    if updates is None or optimizer is None:
        return
    if is_after:
        updates.returns(optimizer)
    else:
        updates.called(optimizer, False)


updated = operator("updated(Tensor[] parameters, Tensor(a!) token, int number, bool is_after)", _updated)

_optimizers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[_Updates]] = weakref.WeakKeyDictionary()
"""Only the hooks on an optimizer keep its ``_Updates`` alive, so an optimizer can be freed with its subscribers."""


def _updates(optimizer: Optimizer) -> _Updates | None:
    reference = _optimizers.get(optimizer)
    return None if reference is None else reference()


def _forget() -> None:
    """Call no subscribers in a fork of the process, which has none of their threads."""
    for updates in list(_live.values()):
        updates.set_subscribers(())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


_foreign: weakref.WeakSet[Optimizer] = weakref.WeakSet()
"""Optimizers without a parameter of a subscribed one."""
_search: Any = None
"""Handle of the hook on the updates of all optimizers, while there are subscribers."""


def _join(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Call the subscribers of an optimizer at the updates of another one that takes its place."""
    if torch.compiler.is_compiling() or optimizer in _optimizers or optimizer in _foreign:
        return
    own = parameters(optimizer)
    followed = [(known, updates) for known in list(_optimizers) if (updates := _updates(known)) is not None]
    subscribers = [s for known, updates in followed if own & parameters(known) for s in updates.subscribers]
    if not subscribers:
        _foreign.add(optimizer)
    for subscriber in dict.fromkeys(subscribers):
        subscribe(optimizer, subscriber)
        subscriber.joined(optimizer)


def parameters(optimizer: Optimizer) -> set[int]:
    """Return the identities of the parameters that an optimizer holds."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def unsubscribe_all(subscriber: UpdateSubscriber) -> None:
    """Remove a subscriber from all optimizers."""
    for optimizer in list(_optimizers):
        unsubscribe(optimizer, subscriber)


def subscribe(optimizer: Optimizer, subscriber: UpdateSubscriber) -> None:
    """Add a subscriber to the optimizer's updates; subscribers are called in the order of their subscription."""
    global _search
    if _search is None:
        _search = register_optimizer_step_pre_hook(_join)
    updates = _updates(optimizer)
    if updates is None:
        updates = _Updates()
        updates.register(optimizer)
        _optimizers[optimizer] = weakref.ref(updates)
        _foreign.clear()
    updates.set_subscribers((*updates.subscribers, subscriber))


def unsubscribe(optimizer: Optimizer, subscriber: UpdateSubscriber) -> None:
    """Remove a subscriber; the hooks are removed with the last one.  Unknown subscribers are ignored."""
    global _search
    updates = _updates(optimizer)
    if updates is None:
        return
    updates.set_subscribers(tuple([other for other in updates.subscribers if other is not subscriber]))
    if not updates.subscribers:
        updates.remove()
        del _optimizers[optimizer]
    if not _optimizers and _search is not None:
        _search.remove()
        _search = None
