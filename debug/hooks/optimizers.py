"""Subscriptions to the updates of optimizers: one pair of hooks for each optimizer and all its subscribers."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim import Optimizer


class UpdateSubscriber:
    """Base class of subscribers to updates; no method may raise.

    A compiled update has the hooks in its graph and does not call subscribers.
    """

    def step_called(self, optimizer: Optimizer) -> None:
        """``optimizer.step`` was called; a closure has not made gradients yet."""

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete and the parameters are about to change; called after each call of a closure."""

    def after_update(self, optimizer: Optimizer) -> None:
        """``optimizer.step`` is about to return."""


class _Updates:
    """Hooks and subscribers of one optimizer.  The hooks of an unpickled optimizer have no subscribers."""

    def __init__(self) -> None:
        self.subscribers: tuple[UpdateSubscriber, ...] = ()
        self._handles: list[Any] = []

    def __reduce__(self) -> Any:
        return _Updates, ()

    def register(self, optimizer: Optimizer) -> None:
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
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        for subscriber in self.subscribers:
            subscriber.step_called(optimizer)
            if closure is None:
                subscriber.before_update(optimizer)
        if closure is None:
            return None

        def closure_that_tells() -> Any:
            loss = closure()
            for subscriber in self.subscribers:
                subscriber.before_update(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], closure_that_tells, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_that_tells}

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for subscriber in self.subscribers:
            subscriber.after_update(optimizer)


_optimizers: weakref.WeakKeyDictionary[Optimizer, weakref.ref[_Updates]] = weakref.WeakKeyDictionary()
"""Only the hooks on an optimizer keep its ``_Updates`` alive, so an optimizer can be freed with its subscribers."""


def _updates(optimizer: Optimizer) -> _Updates | None:
    reference = _optimizers.get(optimizer)
    return None if reference is None else reference()


def subscribe(optimizer: Optimizer, subscriber: UpdateSubscriber) -> None:
    """Add a subscriber to the optimizer's updates; subscribers are called in the order of their subscription."""
    updates = _updates(optimizer)
    if updates is None:
        updates = _Updates()
        updates.register(optimizer)
        _optimizers[optimizer] = weakref.ref(updates)
    updates.subscribers = (*updates.subscribers, subscriber)


def unsubscribe(optimizer: Optimizer, subscriber: UpdateSubscriber) -> None:
    """Remove a subscriber; the hooks are removed with the last one.  Unknown subscribers are ignored."""
    updates = _updates(optimizer)
    if updates is None:
        return
    updates.subscribers = tuple([other for other in updates.subscribers if other is not subscriber])
    if not updates.subscribers:
        updates.remove()
        del _optimizers[optimizer]
